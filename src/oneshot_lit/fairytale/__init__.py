"""The fairy-tale world: natural English stand-ins for danger, for real pretrained models."""
