"""Spectra of many gradients at once: shared work is done once, equal shapes are batched.

The query, key and value projections of a layer have the same inputs, as have the gate and the up
projection, and the layers of a model have the same shapes; a small model's spectra then cost a few
batched calls instead of hundreds of tiny ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from oneshot_lit.spectral.factors import checked_factors, decomposed, has_small_core, triangle
from oneshot_lit.spectral.precision import full_precision

T = TypeVar("T")

# Entries that are stacked at once: bounds the copy that batching needs to 256 MiB in float32.
_LARGEST_STACK = 2**26


@full_precision
def many_gradient_singular_values(factors: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return what `gradient_singular_values` returns for each pair of factors.

    Args:
        factors: Pairs of inputs, (tokens, in_features), and output gradients, (tokens,
            out_features). Inputs that several pairs share as the same tensor are factorised once.

    Raises:
        ValueError: as `gradient_singular_values`.
    """
    spectra: list[Tensor] = [torch.zeros(0)] * len(factors)
    small: list[int] = []
    large: list[int] = []
    for n, (x, d) in enumerate(factors):
        if x.ndim != 2 or d.ndim != 2:
            raise ValueError(f"pair {n}: factors must be matrices, (tokens, features)")
        wide_x, _ = checked_factors(x, d)
        spectra[n] = wide_x.new_zeros(0)
        if len(x):
            (small if has_small_core(x, d) else large).append(n)

    triangles: dict[int, Tensor] = {}
    distinct = list({id(m): m for n in small for m in factors[n]}.values())
    for group in _stacks(distinct, [m.shape for m in distinct]):
        for matrix, r in zip(group, triangle(torch.stack([_wide(m) for m in group])), strict=True):
            triangles[id(matrix)] = r
    tokens = [torch.Size((len(factors[n][0]),) * 2) for n in small]
    for chosen in _stacks(small, tokens):
        # Promoted, as the two factors may differ in precision.
        pairs = [(triangles[id(d)], triangles[id(x)]) for x, d in (factors[n] for n in chosen)]
        _fill(spectra, chosen, [_product(r_d, r_x.mT) for r_d, r_x in pairs])
    shapes = [torch.Size((factors[n][1].shape[1], factors[n][0].shape[1])) for n in large]
    for chosen in _stacks(large, shapes):
        pairs = [(_wide(d).mT, _wide(x)) for x, d in (factors[n] for n in chosen)]
        _fill(spectra, chosen, [_product(left, right) for left, right in pairs])
    return spectra


def _fill(spectra: list[Tensor], chosen: Sequence[int], cores: Sequence[Tensor]) -> None:
    for kind in {(core.dtype, core.device) for core in cores}:
        members = [n for n, c in zip(chosen, cores, strict=True) if (c.dtype, c.device) == kind]
        stack = torch.stack([c for c in cores if (c.dtype, c.device) == kind])
        for n, values in zip(members, decomposed(stack), strict=True):
            spectra[n] = values


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _product(left: Tensor, right: Tensor) -> Tensor:
    dtype = torch.promote_types(left.dtype, right.dtype)
    return left.to(dtype) @ right.to(dtype)


def _stacks(items: Sequence[T], shapes: Sequence[torch.Size]) -> Iterator[list[T]]:
    """Yield items of equal shape together, in stacks of bounded size."""
    groups: dict[tuple[torch.Size, Any], list[T]] = defaultdict(list)
    for item, shape in zip(items, shapes, strict=True):
        kind = (item.dtype, item.device) if isinstance(item, Tensor) else None
        groups[shape, kind].append(item)
    for (shape, _), group in groups.items():
        size = max(1, _LARGEST_STACK // max(1, shape.numel()))
        yield from (group[i : i + size] for i in range(0, len(group), size))
