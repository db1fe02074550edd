"""The configured optimiser and scheduler, with one line for what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.users_code import users_error


def built(make: Callable[[Any], Any], of: Any, key: str) -> Any:
    """Return what a class of the configuration makes of the parameters, or of the optimiser.

    Args:
        make: The class with its other arguments.
        of: Its first argument.
        key: Where it stands in the configuration.

    Raises:
        OneShotError: if the class refuses its arguments; what a user's own class raises otherwise
            comes as it is.
    """
    try:
        return make(of)
    except (ValueError, TypeError) as error:
        if users_error(error) is not None:
            raise
        raise OneShotError(f"{key}: {error}.") from error


def schedule(scheduler: Any) -> dict[str, Any]:
    """Return how Lightning steps a scheduler: once an optimiser step, or once an epoch.

    Raises:
        OneShotError: if it is no scheduler, or one that watches a value without a name for it.
    """
    name = type(scheduler).__name__
    if not isinstance(scheduler, ReduceLROnPlateau):
        if not isinstance(scheduler, LRScheduler):
            raise OneShotError(f"model.lr_scheduler: gives {name}, which is no torch scheduler.")
        return {"scheduler": scheduler, "interval": "step"}
    monitor = getattr(scheduler, "monitor", None)
    if monitor is None:
        raise OneShotError(
            f"model.lr_scheduler: {name} lowers the rate when a value stops improving, and must "
            "know which; give class_path: lightning.pytorch.cli.ReduceLROnPlateau with monitor, "
            "such as val/benign/exact_match (and mode: max) or train/loss."
        )
    return {"scheduler": scheduler, "interval": "epoch", "monitor": monitor}
