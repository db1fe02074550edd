"""Checks that a run validates often enough, and on all prompts, to choose anything by it."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Trainer

from oneshot_lit.errors import OneShotError


def require_whole_sets(trainer: Trainer, why: str) -> None:
    """Refuse limits that let validations see none or only some of the development prompts.

    Args:
        trainer: The trainer, before anything runs.
        why: What is chosen by these prompts, for the error.

    Raises:
        OneShotError: naming the limit. A trial run (``fast_dev_run``) is not checked.
    """
    limit: Any = trainer.limit_val_batches
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    loaders = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
    whole = all(limit >= len(each) for each in loaders) if isinstance(limit, int) else limit >= 1
    if not whole:
        overfit = trainer.overfit_batches > 0  # type: ignore[attr-defined]
        key = "overfit_batches" if overfit else "limit_val_batches"
        raise OneShotError(
            f"trainer.{key}={limit} keeps development prompts out, and {why} is chosen by all of "
            "them; leave it out, or give smaller data.val_sets."
        )


def require_validation(trainer: Trainer, why: str, latest: float = math.inf) -> None:
    """Refuse a run that would end before its first validation.

    Args:
        trainer: The trainer, with its loaders set up, so from `on_train_start` on.
        why: What is chosen by validations, for the error.
        latest: The first validation must come after at most this many batches.

    Raises:
        OneShotError: naming the settings that decide when it would be.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    first, last = batches_until_validation(trainer), batches_of_run(trainer)
    if first is None or first <= min(last, latest):
        return
    keys = ["check_val_every_n_epoch", "val_check_interval"]
    if first > last:
        keys += ["max_epochs", "max_steps"]
    given = ", ".join(f"trainer.{key}={getattr(trainer, key)}" for key in keys)
    when = f"before the run ends with batch {last:g}" if first > last else f"by batch {latest:g}"
    raise OneShotError(
        f"{why} is chosen by validations, and none comes {when}: the first would follow batch "
        f"{first:g} ({given}); validate more often, or run longer."
    )


def batches_until_validation(trainer: Trainer) -> float | None:
    """Return how many batches a run takes until its first validation; None if a clock decides."""
    if getattr(trainer, "_val_check_time_interval", None) is not None:
        return None
    per_epoch, every = float(trainer.num_training_batches), trainer.check_val_every_n_epoch
    # `trainer.val_check_interval` in batches; infinite if validation comes only at an epoch's end.
    interval: Any = trainer.val_check_batch
    within = per_epoch if math.isinf(interval) else interval
    return float(within) if every is None else (every - 1) * per_epoch + within


def batches_of_run(trainer: Trainer) -> float:
    """Return how many batches a whole run takes, as far as epochs and steps limit it."""
    per_epoch, epochs, steps = trainer.num_training_batches, trainer.max_epochs, trainer.max_steps
    most = math.inf if epochs in (None, -1) else epochs * per_epoch
    if steps == -1 or math.isinf(per_epoch):
        return float(most)
    window = trainer.accumulate_grad_batches
    passed, left = divmod(steps, math.ceil(per_epoch / window))
    return float(min(most, passed * per_epoch + left * window))
