"""Choosing the one instance: the bilevel problem, its rivals, and the ground truth."""
