"""The configured optimiser and scheduler, with one-line errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.provenance import users_error
from oneshot_lit.strategies.masters import keeps_masters


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


def slow_bfloat16(trainer: Any, dtype: torch.dtype) -> str | None:
    """Return a warning if bfloat16 is computed on a CPU that has no instructions for it.

    Args:
        trainer: A trainer of Lightning or of a job.
        dtype: Dtype of the model.
    """
    # Older versions of torch do not say.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    wanted = dtype == torch.bfloat16 or "bf16" in str(trainer.precision)
    if not wanted or trainer.strategy.root_device.type != "cpu":
        return None
    has = [name for name, there in capabilities.items() if "bf16" in name and there]
    if has or not any("bf16" in name for name in capabilities):
        return None
    return (
        "this CPU has no bfloat16 instructions (such as avx512_bf16 or amx_bf16), so bfloat16 is "
        "several times slower than float32 here; set trainer.precision 32-true and model.dtype "
        "float32."
    )


def check_rounding(trainer: Trainer, optimizer: Optimizer, insist: bool) -> None:
    """Say in which precision the weights are kept; refuse to train them in 16 bits.

    A bfloat16 weight moves by 0.4 % of itself or not at all, so that most steps of a usual learning
    rate are lost.

    Args:
        trainer: The trainer, whose strategy has taken the model.
        optimizer: The optimiser.
        insist: Train all the same.

    Raises:
        OneShotError: for 16-bit weights without float32 masters.
    """
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in trained})
    masters = keeps_masters(trainer.strategy)
    rank_zero_info(
        f"trained weights: {'float32 masters of ' if masters else ''}{', '.join(dtypes)}; "
        f"trainer.precision {trainer.precision}"
    )
    if not insist and not masters and any(p.dtype.itemsize < 4 for p in trained):
        raise OneShotError(
            f"model.dtype, trainer.precision: {dtypes[0]} weights would lose most steps to "
            "rounding; keep float32 weights (model.dtype float32 with trainer.precision "
            "bf16-mixed), or insist with model.allow_rounding true."
        )
