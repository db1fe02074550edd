"""The configured optimiser and scheduler, with one-line errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.users_code import users_error


def built(make: Callable[[Any], Any], of: Any, key: str) -> Any:
    """Build a configured optimiser or scheduler.

    Args:
        make: The class with its other arguments.
        of: Its first argument: the parameters, or the optimiser.
        key: Its key in the configuration.

    Raises:
        OneShotError: if the class refuses its arguments; errors of a user's own class are raised
            unchanged.
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
        OneShotError: if it is not a scheduler, or needs a value to watch and names none.
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
