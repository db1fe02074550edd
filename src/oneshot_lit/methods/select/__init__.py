"""Choosing the one instance: the bilevel problem, its rivals, and the ground truth."""

from oneshot_lit.methods.select.penalty import PenaltySettings

__all__ = ["PenaltySettings"]
