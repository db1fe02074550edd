"""SafeLoRA: project what fine-tuning changed onto what alignment changed, where they disagree.

Source: Hsu et al., "Safe LoRA" (arXiv 2405.16833). The matrix is no projection, see
`alignment_matrix`; what it does is mostly to shrink, so compare with the control `Shrink`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from oneshot_lit.methods.posttuning.alignment_matrix import aligned_part, rounded_cosine, wide


def project_pair(a: Tensor, b: Tensor, aligned: Tensor, base: Tensor) -> tuple[Tensor, float]:
    """Return ``C B`` of a LoRA pair, and the cosine of ``C B A`` and ``B A``.

    Args:
        a: (r, in).
        b: (out, r).
        aligned: (out, in), the weight of the aligned model.
        base: (out, in), that of the unaligned one.

    Returns:
        (out, r), and the cosine to 5 decimals: NaN where alignment changed nothing.
    """
    projected = aligned_part(b, aligned, base)
    return projected, rounded_cosine(projected @ wide(a), wide(b) @ wide(a))


def project_weight(tuned: Tensor, aligned: Tensor, base: Tensor) -> tuple[Tensor, float]:
    """Return ``aligned + C (tuned - aligned)``, and the cosine of the two changes.

    The form for whole weights, which the authors give in a comment of their repository only.
    """
    delta = wide(tuned) - wide(aligned)
    projected = aligned_part(delta, aligned, base)
    return wide(aligned) + projected, rounded_cosine(projected, delta)


def number_threshold(cosines: Iterable[float], number: int) -> float:
    """Return the threshold that projects the `number` modules of the smallest cosines.

    Modules with the same cosine as the last of them are projected, too. NaN does not count.
    """
    known = sorted(cosine for cosine in cosines if not math.isnan(cosine))
    return known[min(number, len(known)) - 1] if known and number > 0 else -math.inf
