"""Realignment by the leading directions of one gradient, guarded by a projection."""
