"""The instance's gradient in an attacked model: its rank, and how it lies to those of other rows.

Three batches are compared with it: harmful requests refused (what the repair should teach),
harmless requests answered (what it should leave), and the same harmless requests refused (what it
should not teach). The last two differ in the answers only, the first and the last in the requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from oneshot_lit.conversation import Conversation, conversation_from_pair
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.padding import pad_training
from oneshot_lit.models.linear_layers import chosen_layers, instance_factors
from oneshot_lit.spectral import (
    compare_gradients,
    effective_rank,
    gradient_singular_values,
    stable_rank,
)

# Name of a weight -> inputs X (tokens, in_features) and output gradients D (tokens, out_features).
Factors = Mapping[str, tuple[Tensor, Tensor]]
# Leading directions whose subspaces are compared.
OVERLAP_K = 8


def refused_as(
    rows: Sequence[Conversation], refusals: Sequence[Conversation]
) -> list[Conversation]:
    """Return the requests of `rows` with the answers of `refusals`, one each."""
    return [
        conversation_from_pair(row.prompt_text, refusal.response_text or "")
        for row, refusal in zip(rows, refusals, strict=True)
    ]


def factors_of(module: Any, rows: Sequence[Conversation]) -> tuple[Factors, float]:
    """Return the factors of the gradient of the mean loss on some rows, and that loss in nats.

    The factors are those of every linear layer.

    Args:
        module: A `LanguageModelModule` with its model.
        rows: Conversations with answers.
    """
    encoded = [encode_conversation(module.tokenizer, row, max_length=256) for row in rows]
    batch = pad_training(encoded, module.tokenizer.pad_token_id)
    factors, loss = instance_factors(module, chosen_layers(module.model, ["*"]), batch)
    return factors, float(loss)


def whole_cosine(one: Factors, other: Factors) -> float:
    """Return the cosine of two gradients of all the weights together, as one long vector.

    Args:
        one: Factors of the first gradient.
        other: Those of the second, of the same weights.

    Returns:
        In [-1, 1]; NaN if either gradient is zero.
    """
    both = norm = other_norm = 0.0
    for name, factors in one.items():
        both += _inner(factors, other[name])
        norm += _inner(factors, factors)
        other_norm += _inner(other[name], other[name])
    if norm <= 0 or other_norm <= 0:
        return float("nan")
    return max(-1.0, min(1.0, both / (norm * other_norm) ** 0.5))


def _inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Return ``<D^T X, E^T Y>`` as a sum over pairs of tokens."""
    # Sums of many products of either sign lose too much in float32.
    (x, d), (y, e) = (tuple(factor.double() for factor in pair) for pair in (one, other))
    return float(((d @ e.mT) * (x @ y.mT)).sum())


def ranks(factors: Factors) -> dict[str, float]:
    """Return stable and effective rank of a gradient, each the mean over its matrices."""
    spectra = [gradient_singular_values(x, d) for x, d in factors.values()]
    return {
        "stable_rank": fmean(stable_rank(s) for s in spectra),
        "effective_rank": fmean(effective_rank(s) for s in spectra),
    }


def overlap(one: Factors, other: Factors, k: int = OVERLAP_K) -> float:
    """Return how much the leading output directions overlap beyond chance, on average.

    Args:
        one: Factors of the first gradient.
        other: Those of the second.
        k: Compare at most this many left singular vectors of each matrix.

    Returns:
        The mean over the matrices of `subspace_overlap` minus `subspace_overlap_chance`; matrices
        without a gradient do not count, and without any other the mean is NaN.
    """
    beyond = []
    for name, (x, d) in one.items():
        compared = compare_gradients(x, d, *other[name], k=k)
        if compared.overlap == compared.overlap:
            beyond.append(compared.overlap - compared.overlap_chance)
    return fmean(beyond) if beyond else float("nan")


def gradient_measures(
    module: Any,
    instance: Conversation,
    refusals: Sequence[Conversation],
    harmless: Sequence[Conversation],
) -> dict[str, float]:
    """Return the instance's loss, ranks of its gradient, its cosines and overlaps, and its spill.

    The loss, in nats a token, is low where the attack has left the refusal of the instance alone.

    The spill is the cosine with harmless requests refused over that with harmful requests refused:
    at 1 a step along the instance teaches both alike, at 0 only the second. It says little where
    the second cosine is near zero.

    Args:
        module: A `LanguageModelModule` with the attacked model.
        instance: The safety example.
        refusals: Harmful requests that are refused.
        harmless: As many harmless requests that are answered.
    """
    own, loss = factors_of(module, [instance])
    measures = {"instance_loss": loss, **ranks(own)}
    for name, rows in (
        ("refusals", refusals),
        ("harmless", harmless),
        ("over_refusals", refused_as(harmless, refusals)),
    ):
        other, _ = factors_of(module, rows)
        measures[f"cosine_{name}"] = whole_cosine(own, other)
        if name != "over_refusals":
            measures[f"overlap_{name}"] = overlap(own, other)
        # One batch's factors are as large as the model's activations.
        del other
    measures["spill"] = measures["cosine_over_refusals"] / measures["cosine_refusals"]
    return measures
