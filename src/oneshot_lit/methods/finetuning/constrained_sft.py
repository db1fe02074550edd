"""ConstrainedSFT: fine-tune so that the first tokens of answers stay near a reference's.

Source: "Safety Alignment Should Be Made More Than Just a Few Tokens Deep" (arXiv 2406.05946).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.finetuning.label_reference import LabelReferenceModule
from oneshot_lit.models.loss import IGNORE_INDEX, of_labelled, token_losses, weighted_mean

ABOUT = About(
    name="ConstrainedSFT",
    stage="during fine-tuning",
    needs="-",
    paper="2406.05946",
    agreement="losses, weights and gradients exact with the release",
    config="defence/constrained_sft.yaml",
)


@dataclass(frozen=True)
class Strength:
    """How strongly the tokens of an answer are held, by their place in it.

    Attributes:
        beta: Of the tokens behind the first `bias_length`.
        first_token_bias_factor: Multiplies `beta` for the first token.
        bias_factor: Multiplies `beta` for the second to the last of the first `bias_length` tokens.
        bias_length: How many tokens at the beginning are held otherwise; 0 holds all alike.
    """

    beta: float = 0.1
    first_token_bias_factor: float = 5.0
    bias_factor: float = 20.0
    bias_length: int = 5


def token_betas(labels: Tensor, strength: Strength) -> Tensor:
    """Return the strength of each labelled token.

    A row's labelled tokens are counted; tokens without a label between them are not.

    Args:
        labels: (rows, tokens); `IGNORE_INDEX` where a token carries no loss.
        strength: See `Strength`.

    Returns:
        (labelled tokens,), float32, in the order of `token_losses`.
    """
    labelled = labels[:, 1:] != IGNORE_INDEX
    place = labelled.cumsum(1)[labelled]
    factors = torch.ones(len(place), device=labels.device)
    factors[place <= strength.bias_length] = strength.bias_factor
    if strength.bias_length > 0:
        factors[place == 1] = strength.first_token_bias_factor
    return strength.beta * factors


def constrained_weights(
    log_probabilities: Tensor, reference: Tensor, betas: Tensor, smallest: float = 1e-3
) -> Tensor:
    """Return ``max(smallest, 2 (1 - sigmoid(beta (log p - log p_ref))))``, without a gradient.

    It is 1 where a token is as likely as under the reference, and less the likelier it has become.

    Args:
        log_probabilities: (tokens,), in nats.
        reference: (tokens,), the same under the reference.
        betas: (tokens,), from `token_betas`.
        smallest: The least weight.

    Returns:
        (tokens,), the dtype of `log_probabilities`.
    """
    difference = log_probabilities.detach() - reference
    # 1 - sigmoid(x) is sigmoid(-x), which loses no digits.
    weights = 2 * torch.sigmoid(-betas.to(difference) * difference)
    return weights.clamp_min(smallest)


def softplus_losses(log_probabilities: Tensor, reference: Tensor, betas: Tensor) -> Tensor:
    """Return ``2 / beta softplus(beta (log p_ref - log p))``, whose gradient the weights give.

    Where no weight is clamped, its gradient is that of ``-w log p``; its value is another, and it
    is the objective that falls.

    Args:
        log_probabilities: (tokens,), in nats.
        reference: (tokens,), the same under the reference.
        betas: (tokens,), from `token_betas`.
    """
    betas = betas.to(log_probabilities)
    return 2 / betas * functional.softplus(betas * (reference - log_probabilities))


class ConstrainedSFT(LabelReferenceModule):
    """Fine-tuning that constrains the first tokens of answers (arXiv 2406.05946).

    The loss is the mean of ``-w log p`` over all labelled tokens, with the weights of
    `constrained_weights`; ``train/softplus_loss`` is logged beside it. Rows of `data.side` join the
    same mean with weight 1, as the paper's anchor rows do.

    Args:
        beta: Strength of the tokens behind the first `bias_length`.
        first_token_bias_factor: Multiplies `beta` for the first token of an answer. Where one first
            word decides on a refusal, as in the micro-world, raise it.
        bias_factor: Multiplies `beta` for the tokens from the second on.
        bias_length: How many tokens at the beginning are held so.
        smallest_weight: The least weight of a token.
    """

    def __init__(
        self,
        *args: Any,
        beta: float = Strength.beta,
        first_token_bias_factor: float = Strength.first_token_bias_factor,
        bias_factor: float = Strength.bias_factor,
        bias_length: int = Strength.bias_length,
        smallest_weight: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        strengths = {"beta": beta, "first_token_bias_factor": first_token_bias_factor}
        for name, value in {**strengths, "bias_factor": bias_factor}.items():
            if value <= 0:
                raise OneShotError(f"model.{name} must be above 0, not {value}.")
        if bias_length < 0 or not 0 <= smallest_weight < 1:
            raise OneShotError(
                "model: bias_length must not be negative, and smallest_weight be in [0, 1)."
            )
        self.strength = Strength(beta, first_token_bias_factor, bias_factor, bias_length)
        self.smallest_weight = smallest_weight

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the mean of the weighted losses of all labelled tokens."""
        labels = batch["labels"]
        reference = self.reference_log_probabilities(batch)
        losses = token_losses(self.labelled_logits(batch), labels)
        reference = torch.where(reference.isnan(), -losses.detach(), reference)
        betas = token_betas(labels, self.strength)
        weights = constrained_weights(-losses, reference, betas, self.smallest_weight)
        own = self._counts(batch)
        self.log_part(
            "softplus_loss", weighted_mean(softplus_losses(-losses, reference, betas), own)
        )
        terms, counts = [weights * losses], [own]
        for side in batch.get("side", {}).values():
            terms.append(token_losses(self.labelled_logits(side), side["labels"]))
            counts.append(self._counts(side))
        return weighted_mean(torch.cat(terms), torch.cat(counts))

    def loss_weight(self, batch: dict[str, Any]) -> Tensor:
        """Return the number of labelled tokens, weighted, with those of other streams."""
        own = [self._counts(each).sum() for each in (batch, *batch.get("side", {}).values())]
        return torch.stack(own).sum()

    def _counts(self, batch: dict[str, Tensor]) -> Tensor:
        """Return how often each labelled token counts, beside the weights of the method."""
        weights, labels = self.token_weights(batch), batch["labels"]
        weights = torch.ones(labels.shape, device=labels.device) if weights is None else weights
        return of_labelled(weights, labels)
