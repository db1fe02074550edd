"""Inner products of many examples' weight gradients, from token factors of one backward pass.

For one example the gradient of a linear layer's weight is ``g_i = D_i^T X_i``, with the inputs X_i
and output gradients D_i of its own tokens. So ``<g_i, G> = sum over tokens of d^T G x``: a batch
gives those of all its examples at once, and no example's gradient is ever formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from oneshot_lit.errors import OneShotError
from oneshot_lit.spectral.precision import full_precision
from oneshot_lit.spectral.recorder import layers_of

# Left and right factor of each layer that uses a weight, (examples, tokens, features): the gradient
# is left^T @ right. A left factor of token ids, (examples, tokens) int64, is one-hot rows.
Factors = dict[str, list[tuple[Tensor, Tensor]]]


@contextmanager
def example_factors(root: nn.Module, weights: Mapping[str, nn.Parameter]) -> Iterator[Factors]:
    """Collect the factors of each weight in one backward pass, example by example.

    The loss must be a sum over the examples, so that no example changes another's gradient.

    Args:
        root: The model.
        weights: Name -> two-dimensional weight of a linear, embedding or Conv1D layer.
    """
    factors: Factors = {}
    handles = []
    for name, layer, pair in layers_of(root, weights):
        handles.append(layer.register_forward_hook(_hook(factors.setdefault(name, []), pair)))
    try:
        yield factors
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    parts: list[tuple[Tensor, Tensor]],
    pair: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Callable[..., None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].detach()
        if output.requires_grad:
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda d: parts.append(pair(x, d.detach()))
            )

    return hook


def require_examples(factors: Factors, examples: int) -> None:
    """Check that every layer has seen each example by itself.

    Raises:
        OneShotError: naming a weight if its layer has one input for all examples, or gets their
            tokens in one list, as experts do. The gradients cannot be told apart there.
    """
    for name, parts in factors.items():
        for left, right in parts:
            if len(left) != examples or right.ndim != 3:
                raise OneShotError(
                    f"model.model_name_or_path: the layer of {name} does not keep the candidates "
                    "apart, so their gradients cannot be told apart; choose another rule."
                )


@full_precision
def inner_products(factors: Factors, gradients: Mapping[str, Tensor]) -> Tensor:
    """Return <g_i, G> of every example i, summed over the weights.

    Args:
        factors: Of `example_factors`, after the backward pass.
        gradients: Name -> G, (out, in), of every name in `factors`.

    Returns:
        (examples,), float64.
    """
    total: Tensor | None = None
    for name, parts in factors.items():
        matrix = gradients[name]
        for left, right in parts:
            projected = matrix[left] if left.dtype == torch.long else left @ matrix.to(left.dtype)
            # The terms have both signs, so a float32 sum over tokens and features loses too much.
            products = torch.linalg.vecdot(projected, right.to(projected.dtype)).double().sum(-1)
            total = products if total is None else total + products
    assert total is not None
    return total
