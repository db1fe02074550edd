"""Which weights an optimiser changes, and whether its steps are larger than their rounding."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from oneshot_lit.errors import OneShotError
from oneshot_lit.strategies.masters import keeps_masters

# Entries of a tensor that are looked at, and the share that may be too large to move.
_SAMPLE, _MOST = 4096, 0.5


def share_rounded_away(weights: Tensor, step: float) -> float:
    """Return the share of weights that a step of this size leaves as they are.

    A weight w moves only by multiples of its spacing, eps * 2**floor(log2 |w|), and by none if the
    step is less than half of it.

    Args:
        weights: Any shape, a floating-point dtype.
        step: The size of the step, as AdamW takes it at this learning rate.
    """
    flat = weights.detach().flatten()
    flat = flat[:: max(1, flat.numel() // _SAMPLE)].float()
    flat = flat[flat != 0]
    if flat.numel() == 0:
        return 0.0
    spacing = torch.finfo(weights.dtype).eps * torch.exp2(torch.floor(torch.log2(flat.abs())))
    return float((step < spacing / 2).float().mean())


def check_rounding(trainer: Trainer, optimizer: Optimizer, insist: bool) -> None:
    """Say in which precision the weights are kept; refuse one that would lose the training.

    Args:
        trainer: The trainer, whose strategy has taken the model.
        optimizer: The optimiser, before any scheduler has changed its rate.
        insist: Train all the same.

    Raises:
        OneShotError: if most of the 16-bit weights without float32 masters are too large to move.
    """
    groups = [(float(group["lr"]), group["params"]) for group in optimizer.param_groups]
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for _, ps in groups for p in ps})
    kept = "float32 masters of " if keeps_masters(trainer.strategy) else ""
    rank_zero_info(
        f"trained weights: {kept}{', '.join(dtypes)}; trainer.precision {trainer.precision}"
    )
    narrow = [(lr, p) for lr, ps in groups for p in ps if p.dtype.itemsize < 4]
    if insist or kept or not narrow:
        return
    sizes = [p.numel() for _, p in narrow]
    shares = [share_rounded_away(getattr(p, "_local_tensor", p), lr) for lr, p in narrow]
    lost = sum(s * n for s, n in zip(shares, sizes, strict=True)) / max(1, sum(sizes))
    if trainer.world_size > 1:
        own = torch.tensor(lost, device=trainer.strategy.root_device)
        lost = float(trainer.strategy.all_gather(own).mean())
    if lost > _MOST:
        raise OneShotError(
            f"model.optimizer: {lost:.0%} of the {dtypes[0]} weights are too large for a step of "
            f"the learning rate {narrow[0][0]:g}, which rounding takes back; keep float32 weights "
            "(model.dtype float32 with trainer.precision bf16-mixed), or insist with "
            "model.allow_rounding true."
        )
