"""Functions that take an optimiser and return a scheduler, named by ``class_path`` like a class.

jsonargparse would call them with their arguments alone, before there is an optimiser. Those of
`transformers.optimization` are such functions.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from jsonargparse import _typehints
from jsonargparse.typing import class_from_function

_ORIGINAL: Any = vars(_typehints)["import_object"]


def take_functions_as_schedulers() -> None:
    """Let the parser treat such a function as a scheduler class, from now on."""
    setattr(_typehints, "import_object", _import_object)  # noqa: B010


def _import_object(name: str, *args: Any, **kwargs: Any) -> Any:
    imported = _ORIGINAL(name, *args, **kwargs)
    return (
        _as_class(imported)
        if inspect.isfunction(imported) and _wants_optimizer(imported)
        else imported
    )


def _wants_optimizer(function: Any) -> bool:
    return next(iter(inspect.signature(function).parameters), "") == "optimizer"


@cache
def _as_class(function: Any) -> type:
    from torch.optim.lr_scheduler import LRScheduler

    made = class_from_function(function, LRScheduler, f"{function.__module__}:{function.__name__}")
    # So that it is called, and written down, as it is named.
    made.__name__, made.__module__ = function.__name__, function.__module__
    made.__qualname__ = function.__qualname__
    return made
