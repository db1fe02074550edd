"""What models say about training rows before these are learned: `oneshot-lit annotate`."""
