"""In which precision the trained weights are kept, and a refusal of 16-bit ones."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from oneshot_lit.errors import OneShotError
from oneshot_lit.strategies.masters import keeps_masters


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
