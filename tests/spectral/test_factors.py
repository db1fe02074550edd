"""Singular values from token factors, against those of the explicit gradient in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from oneshot_lit.spectral import (
    gradient_cosine,
    gradient_singular_values,
    gradient_svd,
    guarded_inputs,
    subspace_overlap,
)


def explicit(inputs: Tensor, output_grads: Tensor) -> Tensor:
    """Form the (out, in) gradient token by token in float64 and decompose it."""
    x, d = inputs.double(), output_grads.double()
    gradient = torch.zeros(d.shape[1], x.shape[1], dtype=torch.float64)
    for token in range(len(x)):
        gradient += torch.outer(d[token], x[token])
    return torch.linalg.svdvals(gradient)


def check(inputs: Tensor, output_grads: Tensor, tolerance: float = 1e-5) -> None:
    values = gradient_singular_values(inputs, output_grads)
    reference = explicit(inputs, output_grads)[: len(values)]
    assert values.shape == (min(*inputs.shape, output_grads.shape[1]),)
    assert (values >= 0).all()
    assert (values.diff() <= 0).all()
    # Relative to the largest value, which sets the scale of all rounding errors.
    error = (values.double() - reference).abs().max() / reference[0].clamp_min(1e-300)
    assert error <= tolerance


def random_factors(seed: int, tokens: int, features: int, outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(tokens, features, generator=generator),
        torch.randn(tokens, outputs, generator=generator),
    )


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        (1, 40, 30),
        (7, 40, 30),
        (7, 30, 40),
        (29, 30, 40),
        # From here on there are as many tokens as rows or columns.
        (30, 30, 40),
        (30, 40, 30),
        (100, 40, 30),
        (5, 1, 30),
        (5, 30, 2),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_random(shape: tuple[int, int, int], seed: int) -> None:
    inputs, grads = random_factors(seed, *shape)
    check(inputs, grads)
    check(inputs.double(), grads.double(), tolerance=1e-12)
    # Scales as they occur in training: large activations, tiny gradients.
    check(inputs * 1e3, grads * 1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 24), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99), st.booleans()
)
def test_any_shape(tokens: int, features: int, outputs: int, seed: int, repeat: bool) -> None:
    inputs, grads = random_factors(seed, tokens, features, outputs)
    if repeat:
        # The same token again, as one repeated instance gives.
        inputs, grads = inputs[:1].expand(tokens, -1), grads[:1].expand(tokens, -1)
    check(inputs, grads)


@pytest.mark.parametrize("tokens", [6, 12, 60])
@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank(tokens: int, rank: int) -> None:
    mixing, grads = random_factors(0, tokens, rank, 40)
    inputs = mixing @ torch.randn(rank, 30, generator=torch.Generator().manual_seed(1))
    check(inputs, grads)
    values = gradient_singular_values(inputs, grads)
    assert values[rank - 1] > 1e-2 * values[0]
    assert (values[rank:] < 1e-5 * values[0]).all()


def test_gradient_of_hidden_rank_one() -> None:
    # The factors have full rank, their product does not.
    generator = torch.Generator().manual_seed(0)
    grads = torch.eye(6, 40)
    inputs = torch.ones(6, 1) @ torch.randn(1, 30, generator=generator)
    check(inputs, grads)
    assert gradient_singular_values(inputs, grads)[1] < 1e-5


@pytest.mark.parametrize("tokens", [1, 5, 50])
def test_zero(tokens: int) -> None:
    inputs, grads = random_factors(0, tokens, 12, 9)
    for factors in ((inputs * 0, grads), (inputs, grads * 0), (inputs * 0, grads * 0)):
        values = gradient_singular_values(*factors)
        assert values.shape == (min(tokens, 9),)
        assert (values == 0).all()


def test_no_token() -> None:
    assert gradient_singular_values(torch.zeros(0, 12), torch.zeros(0, 9)).shape == (0,)


@pytest.mark.parametrize("tokens", [5, 50])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_on_in_float32(tokens: int, dtype: torch.dtype) -> None:
    inputs, grads = random_factors(0, tokens, 30, 20)
    inputs, grads = inputs.to(dtype), grads.to(dtype)
    values = gradient_singular_values(inputs, grads)
    assert values.dtype == torch.float32
    # The reference rounds nothing, so any half-precision arithmetic would show here.
    check(inputs, grads)
    check(inputs, grads.float())


def test_precision_of_the_result() -> None:
    inputs, grads = random_factors(0, 5, 30, 20)
    assert gradient_singular_values(inputs, grads).dtype == torch.float32
    assert gradient_singular_values(inputs.double(), grads.double()).dtype == torch.float64


@pytest.mark.parametrize("tokens", [5, 50])
def test_it_is_the_gradient_of_a_layer(tokens: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 9, bias=False).double()
    inputs = torch.randn(tokens, 12, dtype=torch.float64)
    outputs = layer(inputs)
    outputs.retain_grad()
    nn.functional.cross_entropy(outputs, torch.randint(9, (tokens,))).backward()
    values = gradient_singular_values(inputs, outputs.grad)
    reference = torch.linalg.svdvals(layer.weight.grad)
    torch.testing.assert_close(values, reference[: len(values)], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("inputs", "grads"), [((3, 4), (2, 5)), ((3,), (3, 5)), ((1, 3, 4), (3, 5)), ((3, 4), (3,))]
)
def test_factors_must_be_two_matrices_of_the_same_tokens(inputs, grads) -> None:
    with pytest.raises(ValueError, match="tokens"):
        gradient_singular_values(torch.zeros(inputs), torch.zeros(grads))


# ---------------------------------------------------------------- singular vectors


@pytest.mark.parametrize(
    "shape", [(1, 40, 30), (7, 40, 30), (29, 30, 40), (30, 30, 40), (90, 8, 5)]
)
@pytest.mark.parametrize("kind", ["random", "low rank", "zero"])
def test_vectors_rebuild_the_gradient(shape: tuple[int, int, int], kind: str) -> None:
    inputs, grads = random_factors(3, *shape)
    if kind == "low rank":
        inputs = inputs[:1].expand_as(inputs) * torch.arange(1.0, len(inputs) + 1)[:, None]
    inputs = inputs * (kind != "zero")
    u, s, v = gradient_svd(inputs, grads)
    most = min(shape)
    assert (u.shape, s.shape, v.shape) == ((shape[2], most), (most,), (shape[1], most))
    gradient = grads.double().T @ inputs.double()
    scale = float(torch.linalg.matrix_norm(gradient, 2)) or 1.0
    rebuilt = (u.double() * s.double()) @ v.double().T
    assert (rebuilt - gradient).abs().max() <= 1e-5 * scale
    for basis in (u, v):
        torch.testing.assert_close(basis.T @ basis, torch.eye(most), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tokens", [6, 40])
def test_leading_triplets_are_the_best_low_rank_gradient(tokens: int) -> None:
    inputs, grads = (m.double() for m in random_factors(4, tokens, 20, 15))
    gradient = grads.T @ inputs
    reference = torch.linalg.svdvals(gradient)
    for k in (1, 3, 6):
        u, s, v = gradient_svd(inputs, grads, k)
        left = gradient - (u * s) @ v.T
        # Eckart and Young: what is left has the next singular value as its norm.
        norm = torch.linalg.matrix_norm(left, 2)
        torch.testing.assert_close(norm, reference[k], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("k", [0, 6, -1])
def test_no_more_vectors_than_tokens(k: int) -> None:
    inputs, grads = random_factors(0, 5, 12, 9)
    with pytest.raises(ValueError, match="k must be between 1 and 5"):
        gradient_svd(inputs, grads, k)


# ------------------------------------------------------------------ many matrices


@pytest.mark.parametrize("tokens", [5, 50])
def test_leading_dimensions_are_a_batch(tokens: int) -> None:
    inputs, grads = random_factors(0, 6 * tokens, 30, 20)
    inputs, grads = inputs.view(2, 3, tokens, 30), grads.view(2, 3, tokens, 20)
    values = gradient_singular_values(inputs, grads)
    _, s, _ = gradient_svd(inputs, grads, 4)
    for i in range(2):
        for j in range(3):
            alone = gradient_singular_values(inputs[i, j], grads[i, j])
            torch.testing.assert_close(values[i, j], alone, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(s[i, j], alone[:4], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("tokens", [5, 50])
def test_non_finite_factors_are_an_error(bad: float, tokens: int) -> None:
    inputs, grads = random_factors(0, tokens, 30, 20)
    inputs[2, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        gradient_singular_values(inputs, grads)
    with pytest.raises(ValueError, match="NaN or infinity"):
        gradient_svd(inputs, grads)


def test_autocast_rounds_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    x, d = (torch.randn(9, n, generator=generator) for n in (40, 30))
    guard = torch.randn(50, 40, generator=generator)

    def everything() -> list[torch.Tensor]:
        return [
            gradient_singular_values(x, d),
            gradient_singular_values(x[:, :5], d[:, :5]),
            *gradient_svd(x, d, 4),
            guarded_inputs(x, guard, 0.1),
            torch.tensor(gradient_cosine(x, d, 2 * x, d)),
            torch.tensor(subspace_overlap(*(torch.linalg.qr(m.T).Q for m in (x, guard[:3])))),
        ]

    plain = everything()
    with torch.autocast("cpu", torch.bfloat16):
        under = everything()
    for one, other in zip(plain, under, strict=True):
        assert other.dtype == one.dtype
        assert torch.equal(one, other)
