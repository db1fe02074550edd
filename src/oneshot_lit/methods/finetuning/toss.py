"""TOSS: fine-tune without the tokens that a harmful model finds likelier than a useful one does.

Source: arXiv 2603.01185. `oneshot-lit annotate` with `TokenScores` writes what the two reference
models say, `TossTokens` leaves tokens out, and `Toss` has the paper's mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from oneshot_lit.data.annotations import Annotations
from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.transforms import RowTransform
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.attack import HarmfulFineTuningModule
from oneshot_lit.models.loss import IGNORE_INDEX, of_labelled, token_losses, weighted_mean

ABOUT = About(
    name="TOSS",
    stage="during fine-tuning",
    needs="the start model fine-tuned on harmful rows, and on useful rows",
    paper="2603.01185",
    agreement="scores and kept tokens exact with the release; both its mean and the paper's",
    config="defence/toss.yaml",
)
KIND, HARMFUL, UTILITY = "TOSS token losses", "harmful", "utility"
Level = Literal["global", "sample"]
Reduction = Literal["all_response_tokens", "example_mean", "token_mean"]


def scores(utility_losses: Tensor, harmful_losses: Tensor) -> Tensor:
    """Return the score of each response token: high where the harmful model finds it likelier.

    Args:
        utility_losses: (tokens,), cross-entropy under the useful reference, in nats.
        harmful_losses: (tokens,), the same under the harmful one.

    Returns:
        (tokens,), float64.
    """
    return utility_losses.double() - harmful_losses.double()


def top_tokens(token_scores: Tensor, share: float) -> Tensor:
    """Return the places of the ``int(n * share)`` highest scores, highest first.

    Of equal scores the earlier token comes first.

    Args:
        token_scores: (n,).
        share: From 0 to 1.
    """
    order = token_scores.argsort(descending=True, stable=True)
    return order[: int(len(token_scores) * share)]


def discarded(
    token_scores: Sequence[Tensor], share: float, level: Level = "global"
) -> list[Tensor]:
    """Return which response tokens are left out: the highest scores.

    Args:
        token_scores: Of each row, (response tokens,).
        share: The share of tokens to leave out, rounded down to whole tokens.
        level: Rank the tokens of all rows together, or in each row.

    Returns:
        For each row (response tokens,), bool.
    """
    groups = [torch.cat(list(token_scores))] if level == "global" else list(token_scores)
    masks = []
    for group in groups:
        mask = torch.zeros(len(group), dtype=torch.bool)
        mask[top_tokens(group, share)] = True
        masks.append(mask)
    return list(torch.split(torch.cat(masks), [len(row) for row in token_scores]))


def rows_of_top_tokens(token_scores: Sequence[Tensor], count: int) -> list[int]:
    """Return the rows of the highest-scoring tokens, each once, until there are `count` (TOSS-Pro).

    Args:
        token_scores: Of each row, (response tokens,).
        count: How many rows; all if there are fewer.
    """
    rows = torch.cat([torch.full((len(row),), n) for n, row in enumerate(token_scores)])
    order = rows[torch.cat(list(token_scores)).argsort(descending=True, stable=True)]
    return list(dict.fromkeys(order.tolist()))[:count]


def example_weights(weights: Tensor, labels: Tensor) -> Tensor:
    """Return token weights by which each row counts 1 in all, or 0 if it has none to learn.

    The mean with these weights is the mean over rows of each row's own mean.

    Args:
        weights: (rows, tokens), how much each token counts.
        labels: (rows, tokens); `IGNORE_INDEX` where a token carries no loss.
    """
    own = weights * (labels != IGNORE_INDEX)
    return own / own[:, 1:].sum(1, keepdim=True).clamp_min(torch.finfo(own.dtype).tiny)


class TossTokens(RowTransform):
    """Let the tokens that TOSS leaves out count nothing, by their `token_weights`.

    They stay in the row, where later tokens are learned behind them. A row of which nothing is left
    is not learned; how many there are is printed.

    Args:
        annotations: What `TokenScores` wrote of the same rows: the file or its folder.
        discard: Share of all response tokens to leave out. The released script has 0.2.
        level: Rank the tokens of all rows together (``global``), or in each row (``sample``).
    """

    def __init__(self, annotations: str, discard: float = 0.1, level: Level = "global") -> None:
        if not 0 <= discard < 1:
            raise OneShotError(f"TossTokens.discard must be in [0, 1), not {discard}.")
        self.annotations, self.discard, self.level = annotations, discard, level
        self._file: Annotations | None = None
        self._kept: list[Tensor] = []
        self._seen: Counter[int] = Counter()

    def tokens(self, row: Encoded, tokenizer: Any) -> Encoded:
        """Return the row with the weight 0 on each token that is left out."""
        file = self._file or self._read()
        places = file.places(row, "a row of data.train")
        # Of rows that are equal, each has its own tokens left out.
        kept = self._kept[places[self._seen[places[0]] % len(places)]]
        self._seen[places[0]] += 1
        weights = torch.tensor(row.token_weights or [1.0] * len(row.input_ids))
        learned = torch.tensor(row.loss_mask)
        learned[0] = False
        weights[learned] *= kept
        return replace(row, token_weights=weights.tolist())

    def _read(self) -> Annotations:
        file = Annotations(self.annotations, KIND)
        file.require_current()
        pairs = zip(file.numbers[UTILITY], file.numbers[HARMFUL], strict=True)
        out = discarded([scores(u, h) for u, h in pairs], self.discard, self.level)
        self._kept, self._file = [~mask for mask in out], file
        total, left = sum(map(len, out)), sum(int(mask.sum()) for mask in out)
        whole = sum(bool(mask.all()) for mask in out)
        rank_zero_info(
            f"TOSS leaves out {left} of {total} response tokens; of {whole} of {len(out)} rows "
            "nothing is left"
        )
        return file


class Toss(HarmfulFineTuningModule):
    """Fine-tuning on the tokens that `TossTokens`, in `data.transforms`, keeps (arXiv 2603.01185).

    Args:
        reduction: ``all_response_tokens`` is the paper's: the sum over kept tokens, divided by the
            number of all response tokens. ``example_mean`` is the released code's, which has one
            row in a batch: the mean over rows of the mean over a row's kept tokens, where rows
            without any are left out; the release gets NaN there. ``token_mean`` is the mean over
            kept tokens.
    """

    def __init__(
        self, *args: Any, reduction: Reduction = "all_response_tokens", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.reduction = reduction

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of the kept tokens."""
        losses = token_losses(self.labelled_logits(batch), batch["labels"])
        weights = of_labelled(self.token_weights(batch), batch["labels"])
        if self.reduction == "all_response_tokens":
            return (weights * losses).sum() / len(losses)
        return weighted_mean(losses, weights)

    def token_weights(self, batch: dict[str, Tensor]) -> Tensor:
        """Return how much each token counts in the loss."""
        weights = super().token_weights(batch)
        if weights is None:
            raise OneShotError("data.transforms: Toss needs TossTokens there; add it.")
        if self.reduction == "example_mean":
            return example_weights(weights, batch["labels"])
        return weights

    def loss_weight(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the number of terms in the mean."""
        if self.reduction == "all_response_tokens":
            return (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
        return super().loss_weight(batch)
