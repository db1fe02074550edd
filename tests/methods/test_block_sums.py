"""Sums block by block: equal to the whole in float64, for any dtype and any number of entries."""

from __future__ import annotations

import pytest
import torch

from oneshot_lit.methods.posttuning import alignment_matrix
from oneshot_lit.methods.posttuning.alignment_matrix import (
    add_scaled,
    difference,
    distance,
    dot,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 7), (5, 4), (1,)])
def test_blocks_sum_to_the_whole(
    dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment_matrix, "BLOCK", 5)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    wide = [each.double() for each in (a, b)]
    assert dot(a, b) == pytest.approx(float((wide[0] * wide[1]).sum()), rel=1e-12)
    assert distance(a, b) == pytest.approx(float((wide[0] - wide[1]).norm()), rel=1e-6)
    less = difference(a, b)
    assert less.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(less.double(), wide[0] - wide[1], rtol=1e-6, atol=1e-7)
    own = less.clone()
    torch.testing.assert_close(
        add_scaled(own, b, 0.5).double(), less.double() + 0.5 * wide[1], rtol=1e-6, atol=1e-6
    )
