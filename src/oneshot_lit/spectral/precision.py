"""Linear algebra in the precision of its inputs, whatever autocast would make of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Keep autocast off while a function runs.

    Mixed precision rounds the factors of every matrix product to 16 bits, and GPUs have no
    decompositions in them.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        kind = _device_type([*args, *kwargs.values()])
        if kind is None:
            return function(*args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return function(*args, **kwargs)

    return run


def _device_type(values: Any) -> str | None:
    """Return the kind of device that the first tensor among nested values is on."""
    for value in values:
        if isinstance(value, Tensor):
            return value.device.type
        if isinstance(value, (list, tuple)) and (kind := _device_type(value)) is not None:
            return kind
    return None
