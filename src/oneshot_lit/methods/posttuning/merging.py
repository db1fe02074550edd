"""Merging a fine-tuned model with the aligned one, tensor by tensor, as mergekit does.

Source: Djuhera et al. for pre- and post-merging (arXiv 2412.19512), with the arithmetic of
mergekit; DARE (arXiv 2311.03099), TIES (2306.01708), Model Stock (2403.19522). All functions
compute in float32, or in float64 if a tensor has it, and return that; mergekit computes in the
dtype of the files, which in bfloat16 is off by up to 1.2e-3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from oneshot_lit.methods.posttuning.alignment_matrix import (
    BLOCK,
    add_scaled,
    difference,
    dot,
    wide,
    wide_copy,
)

Rescale = Literal["l1", "density", "none"]
# Above this cosine the arc is a line, and mergekit takes the straight one.
PARALLEL = 0.9995
_TINY = 1e-8
# Below it, a sum of absolute differences counts as zero.
_NOTHING = 1e-7


def linear(aligned: Tensor, tuned: Tensor, weight: float) -> Tensor:
    """Return ``(1 - weight) aligned + weight tuned``; the same as task arithmetic."""
    return add_scaled(wide_copy(aligned, tuned).mul_(1 - weight), tuned, weight)


def slerp(aligned: Tensor, tuned: Tensor, t: float) -> tuple[Tensor, bool]:
    """Interpolate along the arc between two tensors, taken as flat vectors.

    Args:
        aligned: The tensor at t = 0.
        tuned: The tensor at t = 1, of the same shape.
        t: From 0 to 1.

    Returns:
        The tensor, and whether the two were so nearly parallel that the line was taken. That is so
        for most weights of a fine-tuned model, so the share is worth reporting.
    """
    merged = wide_copy(aligned, tuned)
    norms = [math.sqrt(dot(each, each)) for each in (aligned, tuned)]
    cosine = dot(aligned, tuned)
    for norm in norms:
        cosine /= norm if norm > _TINY else 1.0
    if abs(cosine) > PARALLEL:
        return add_scaled(merged.mul_(1 - t), tuned, t), True
    angle = math.acos(cosine)
    shares = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return add_scaled(merged.mul_(shares[0]), tuned, shares[1]), False


def drop_and_rescale(delta: Tensor, keep: Tensor, density: float, rescale: Rescale) -> Tensor:
    """Return a difference of which only the entries in `keep` are left (DARE).

    Args:
        delta: The difference, any shape.
        keep: Which entries stay: True or 1, same shape.
        density: The share of entries that was meant to stay.
        rescale: ``l1`` keeps the sum of absolute values, as mergekit does since April 2024;
            ``density`` divides by the density, as in the paper; ``none`` leaves the entries.
    """
    kept = delta.masked_fill(~keep.bool(), 0.0)
    if rescale == "density":
        return kept.div_(density)
    before, after = (float(torch.linalg.vector_norm(each, 1)) for each in (delta, kept))
    if rescale == "none" or before < _NOTHING or after < _NOTHING:
        return kept
    return kept.mul_(before / after)


def trim(delta: Tensor, density: float) -> Tensor:
    """Keep the ``int(density * n)`` entries of a difference that are largest in size (TIES)."""
    k = int(density * delta.numel())
    if k >= delta.numel():
        return delta
    if not k:
        return torch.zeros_like(delta)
    # The k-th largest; of entries that tie with it, the first ones stay.
    size = delta.abs().flatten().numpy()
    size.partition(len(size) - k)
    threshold = float(size[-k])
    del size
    keep = delta.abs() > threshold
    # Unlike a sum, this makes no copy of the mask in integers.
    missing = k - int(torch.count_nonzero(keep))
    level = (delta.abs() == threshold).flatten().nonzero()[:missing]
    keep.view(-1)[level] = True
    return delta.masked_fill(~keep, 0.0)


def ties(
    aligned: Tensor,
    tuned: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    normalize: bool = False,
) -> Tensor:
    """Trim each difference, elect a sign for each entry, and add up what agrees with it.

    Args:
        aligned: The tensor that the differences are taken from.
        tuned: One or more fine-tuned tensors.
        weights: One for each.
        density: The share of entries of each difference that is kept.
        normalize: Divide each entry by the sum of the weights that agree on it. With one model the
            weight then cancels.
    """
    parts = [
        trim(difference(each, aligned), density).mul_(weight).view(-1)
        for each, weight in zip(tuned, weights, strict=True)
    ]
    out = wide_copy(aligned, *tuned)
    blocks = zip(*(torch.split(each, BLOCK) for each in (out.view(-1), *parts)), strict=True)
    for own, *changes in blocks:
        positive = sum(changes) >= 0
        total, agreeing = torch.zeros_like(own), torch.zeros_like(own)
        for change, weight in zip(changes, weights, strict=True):
            # An entry that is zero agrees with no sign.
            agrees = (change != 0) & ((change > 0) == positive)
            total += change * agrees
            agreeing += weight * agrees
        if normalize:
            total /= torch.where(agreeing == 0, torch.ones_like(agreeing), agreeing)
        own += total
    return out


def model_stock(
    aligned: Tensor, tuned: Sequence[Tensor], filter_wise: bool = False
) -> tuple[Tensor, float]:
    """Move from the mean of several fine-tuned tensors towards the aligned one (Model Stock).

    With c, the mean cosine between the differences of N models, the share of the mean is
    ``N c / (1 + (N - 1) c)``.

    Args:
        aligned: The tensor that the differences are taken from.
        tuned: Two or more.
        filter_wise: Take the cosine of each row by itself.

    Returns:
        The tensor, and the share of the mean; the mean share over the rows if they have their own.

    Raises:
        ValueError: for fewer than two models.
    """
    if len(tuned) < 2:
        raise ValueError("Model Stock needs at least two fine-tuned models.")
    merged = wide_copy(aligned, *tuned)
    # Row by row where each has a share of its own; one row otherwise.
    by_row = filter_wise and aligned.dim() > 1
    rows = (aligned.shape[0] if by_row else 1, -1)
    start, *own = (each.reshape(rows) for each in (aligned, *tuned))
    gram = torch.zeros(rows[0], len(own), len(own), dtype=torch.float64)
    columns = max(1, BLOCK // rows[0])
    for part, *parts in zip(*(torch.split(x, columns, 1) for x in (start, *own)), strict=True):
        deltas = torch.stack([wide(x) - wide(part) for x in parts], 1).double()
        gram += deltas @ deltas.transpose(1, 2)
    norms = gram.diagonal(dim1=1, dim2=2).sqrt()
    pairs = list(itertools.combinations(range(len(own)), 2))
    cosines = [
        (gram[:, a, b] / (norms[:, a] * norms[:, b]).clamp(min=1e-6)).clamp(-1, 1) for a, b in pairs
    ]
    cosine = torch.stack(cosines).mean(0)
    share = len(own) * cosine / (1 + (len(own) - 1) * cosine)
    shares = share.to(merged).unsqueeze(-1)
    merged.view(rows).mul_(1 - shares)
    for each in own:
        for out, part in zip(
            *(torch.split(x, columns, 1) for x in (merged.view(rows), each)), strict=True
        ):
            out += shares / len(own) * part
    return merged, float(share.mean())
