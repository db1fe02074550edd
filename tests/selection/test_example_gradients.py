"""Products of factors against explicit gradients, one backward pass an example, in float64."""

from __future__ import annotations

import pytest
import torch
from tiny_llama import tiny_llama

from experiments.selection.example_gradients import (
    example_factors,
    inner_products,
)


def losses(model, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return each example's mean loss over its own tokens."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    each = torch.nn.functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
    keep = mask[:, 1:].to(each.dtype)
    return (each * keep).sum(1) / keep.sum(1)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 40, (6, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, size in enumerate([11, 4, 7, 11, 9, 3]):
        mask[row, size:] = 0
    return ids, mask


def explicit(model, weights, ids, mask) -> list[dict[str, torch.Tensor]]:
    found = []
    for row in range(len(ids)):
        (loss,) = losses(model, ids[row : row + 1], mask[row : row + 1])
        grads = torch.autograd.grad(loss, list(weights.values()))
        found.append(dict(zip(weights, grads, strict=True)))
    return found


# Llama normalises in float32 whatever the dtype of its weights.
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-7), (torch.float32, 1e-5)])
def test_products_equal_explicit_gradients(tied: bool, dtype: torch.dtype, close: float) -> None:
    model = tiny_llama(vocabulary=40, groups=2, tied=tied).to(dtype)
    weights = {n: p for n, p in model.named_parameters() if p.ndim == 2}
    ids, mask = batch()
    reference = explicit(model, weights, ids, mask)
    draw = torch.Generator().manual_seed(2)
    direction = {
        n: torch.randn(p.shape, generator=draw, dtype=dtype) + reference[0][n] * 100
        for n, p in weights.items()
    }
    with example_factors(model, weights) as factors:
        torch.autograd.grad(losses(model, ids, mask).sum(), model.model.embed_tokens.weight)
    assert set(factors) == set(weights)
    products = inner_products(factors, direction)
    expected = torch.tensor(
        [
            sum(float((g[n].double() * direction[n].double()).sum()) for n in weights)
            for g in reference
        ]
    ).double()
    sizes = torch.tensor(
        [sum(float(g[n].double().square().sum()) for n in weights) for g in reference]
    ).double()
    scale = sizes.sqrt() * sum(float(d.double().square().sum()) for d in direction.values()) ** 0.5
    assert ((products - expected).abs() <= close * scale).all()
    assert all(p.grad is None for p in model.parameters())


def test_hooks_are_gone_afterwards() -> None:
    model = tiny_llama(vocabulary=40, groups=2)
    weights = {n: p for n, p in model.named_parameters() if p.ndim == 2}
    with example_factors(model, weights):
        pass
    assert not any(module._forward_hooks for module in model.modules())
