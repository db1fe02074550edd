"""Project gradients off a safety gradient, as pure functions on this process's parts of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from oneshot_lit.strategies.gradient_edits import Reduce

Granularity = Literal["tensor", "global"]


@dataclass(frozen=True)
class Space:
    """The left singular space of a matrix, and which of its entries a process has.

    Attributes:
        basis: (rows, k), orthonormal columns; the same in all processes.
        columns: Columns of the matrix.
        entries: int64, the flat number of each entry of this process's part.
    """

    basis: Tensor
    columns: int
    entries: Tensor


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best approximation of a rank, and its left singular vectors.

    Args:
        matrix: (rows, columns).
        rank: At least 1; ranks above the matrix's own leave it as it is.

    Returns:
        (rows, columns) and (rows, min(rank, rows, columns)), float32 or wider.
    """
    wide = matrix if matrix.dtype == torch.float64 else matrix.float()
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    left = left[:, :rank]
    return (left * values[:rank]) @ right[:rank], left


def project(
    gradients: Mapping[str, Tensor],
    safety: Mapping[str, Tensor],
    reduce: Reduce,
    eps: float = 1e-8,
    granularity: Granularity = "tensor",
    spaces: Mapping[str, Space] | None = None,
) -> list[str]:
    """Take out of gradients, in place, what would raise the safety loss (SPF, arXiv 2601.10141).

    A gradient g with ``||s||^2 > eps`` and ``<g, s> < 0`` becomes ``g - <g, s> / ||s||^2 s``.

    Args:
        gradients: Name -> this process's part, flat.
        safety: Name -> the same part of the safety gradient s; a name that is missing has none.
        reduce: Sums a tensor over all parts.
        eps: Safety gradients as small as this are left alone.
        granularity: Whether inner products are those of each tensor, or of all of them together.
        spaces: Name -> a space. Where a gradient conflicts, all of it in the space goes.

    Returns:
        Names of the tensors that were projected, the same in all processes.
    """
    names = [name for name in gradients if name in safety]
    if not names:
        return []
    s = {name: safety[name].to(gradients[name]) for name in names}
    own = [torch.stack([_dot(gradients[n], s[n]), _dot(s[n], s[n])]) for n in names]
    sums = reduce(torch.stack(own))
    if granularity == "global":
        sums = sums.sum(0, keepdim=True).expand(len(names), 2)
    dot, square = sums.unbind(1)
    # A safety gradient that overflows in 16 bits says nothing.
    finite = dot.isfinite() & square.isfinite()
    conflicts = ((square > eps) & (dot < 0) & finite).tolist()
    projected = [name for name, each in zip(names, conflicts, strict=True) if each]
    factors = dict(zip(names, dot / square, strict=True))
    for name in projected:
        space = (spaces or {}).get(name)
        if space is None:
            gradients[name].sub_((factors[name] * s[name]).to(gradients[name]))
        else:
            leave_space(gradients[name], space, reduce)
    return projected


def leave_space(part: Tensor, space: Space, reduce: Reduce) -> None:
    """Take out of a matrix G, in place, its projection on a left singular space: ``G - U U^T G``.

    Args:
        part: This process's part of G, flat.
        space: U, and where the part lies in G.
        reduce: Sums a tensor over all parts.
    """
    rows, columns = space.entries // space.columns, space.entries % space.columns
    basis = space.basis.to(part)
    along = part.new_zeros(basis.shape[1], space.columns)
    for number, direction in enumerate(basis.unbind(1)):
        along[number].index_add_(0, columns, direction[rows] * part)
    along = reduce(along)
    for number, direction in enumerate(basis.unbind(1)):
        part.sub_(direction[rows] * along[number][columns])


def inner_product(a: Mapping[str, Tensor], b: Mapping[str, Tensor], reduce: Reduce) -> Tensor:
    """Return the inner product of two sets of tensors, over all parts, a scalar.

    Args:
        a: Name -> this process's part, flat.
        b: The same of others; names that only one of them has count nothing.
        reduce: Sums a tensor over all parts.
    """
    own = [_dot(part, b[name].to(part)) for name, part in a.items() if name in b]
    return reduce(torch.stack(own).sum())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of two flat tensors in float32 or wider."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return torch.dot(a.to(wide), b.to(wide))
