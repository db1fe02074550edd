"""The exponential moving average of weights as a pure function.

Source: arXiv 2508.12531; no code of it was released, and neither its eta nor whether the average is
fed back into the training is known.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping

import torch
from torch import Tensor

from oneshot_lit.methods.about import About

ABOUT = [
    About(
        name="EMA",
        stage="during fine-tuning",
        needs="-",
        paper="2508.12531",
        agreement="formula only; no code of it was released, and its eta is not known",
        config="defence/ema.yaml",
    ),
    About(
        name="EMA's smaller rate",
        stage="control",
        needs="-",
        paper="",
        agreement="equals EMA fed back after every step",
        config="defence/ema_control.yaml",
    ),
]


@torch.no_grad()
def update_average(
    average: MutableMapping[str, Tensor], weights: Iterable[tuple[str, Tensor]], eta: float
) -> None:
    """Set each average to ``eta * average + (1 - eta) * weight``, in place.

    Args:
        average: Name -> the average so far, in float32 or wider: in 16 bits most updates at a high
            eta are rounded away.
        weights: Names and weights after an optimiser step, of the same shapes and any dtype.
        eta: In [0, 1); half of the start is left after ``ln 0.5 / ln eta`` steps.
    """
    for name, weight in weights:
        average[name].lerp_(weight.to(average[name]), 1 - eta)
