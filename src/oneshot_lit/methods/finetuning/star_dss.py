"""STAR-DSS: learn the safe parts of answers, and stay near a reference on the others.

Source: "Shape it Up! Restoring LLM Safety during Finetuning" (arXiv 2505.17196). `oneshot-lit
annotate` with `StarScores` asks guards how safe each beginning of an answer is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from oneshot_lit.data.annotations import RowNumbers
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.finetuning.label_reference import LabelReferenceModule
from oneshot_lit.models.loss import of_labelled, token_losses, weighted_mean

ABOUT = About(
    name="STAR-DSS",
    stage="during fine-tuning",
    needs="a guard",
    paper="2505.17196",
    agreement="losses, token weights and gradients exact with the release",
    config="defence/star_dss.yaml",
)
KIND, VALUES = "STAR scores", "values"
Boundary = Literal["exact", "released"]
Estimator = Literal["k1", "k2", "k3"]
Variant = Literal["star", "rejection", "kl_only"]


def prefix_word_counts(words: int, chunk_words: int) -> list[int]:
    """Return how many words of an answer each scored beginning has: M, 2M, ... and all."""
    return [min(n, words) for n in range(chunk_words, max(words, 1) + chunk_words, chunk_words)]


def without_repeats(
    positions: Sequence[int], values: Sequence[float]
) -> tuple[list[int], list[float]]:
    """Return positions and values up to the first position that repeats the one before."""
    pairs = enumerate(positions)
    end = next((n for n, p in pairs if n and p == positions[n - 1]), len(positions))
    return list(positions[:end]), list(values[:end])


def chunk_weights(positions: Tensor, values: Tensor, length: int) -> Tensor:
    """Return the value of each token's chunk: the first chunk that ends behind the token.

    Args:
        positions: (rows, chunks), where chunks end, as numbers of tokens of the whole row,
            ascending; -1 fills up a row.
        values: (rows, chunks), how safe the answer is up to there.
        length: Tokens of the longest row.

    Returns:
        (rows, length), the dtype of `values`; 0 past the last end.
    """
    used = positions >= 0
    ends = positions.where(used, torch.iinfo(positions.dtype).max).contiguous()
    places = torch.arange(length, dtype=ends.dtype, device=ends.device).expand(len(ends), length)
    chunk = torch.searchsorted(ends, places.contiguous(), right=True)
    known = torch.cat([values.where(used, 0.0), values.new_zeros(len(values), 1)], 1)
    return known.gather(1, chunk)


def kl_estimates(
    log_probabilities: Tensor,
    reference: Tensor,
    estimator: Estimator = "k2",
    clamp: float | None = None,
) -> Tensor:
    """Return estimates of the divergence from the reference, of the label tokens alone.

    With ``d = log p - log p_ref``: k1 is d, k2 is d^2 / 2, and k3 is exp(-d) - 1 + d.

    Args:
        log_probabilities: (tokens,), in nats.
        reference: (tokens,), the same under the reference; it gets no gradient.
        estimator: Which one.
        clamp: Clamp the estimates to plus and minus this, where they then have no gradient.
    """
    d = log_probabilities - reference.detach()
    estimates = {"k1": lambda: d, "k2": lambda: d.square() / 2, "k3": lambda: (-d).exp() - 1 + d}
    result = estimates[estimator]()
    return result if clamp is None else result.clamp(-clamp, clamp)


def star_terms(
    log_probabilities: Tensor,
    reference: Tensor,
    safety: Tensor,
    estimator: Estimator = "k2",
    kl_scale: float = 0.5,
    kl_clamp: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return both parts of the loss of each token: ``w CE`` and ``(1 - w) kl_scale KL``.

    Args:
        log_probabilities: (tokens,), in nats.
        reference: (tokens,), the same under the reference.
        safety: (tokens,), w, from 0 (not safe) to 1.
        estimator: See `kl_estimates`.
        kl_scale: Factor of the divergence.
        kl_clamp: See `kl_estimates`.
    """
    divergence = kl_estimates(log_probabilities, reference, estimator, kl_clamp)
    return -safety * log_probabilities, (1 - safety) * kl_scale * divergence


def row_weights(positions: Sequence[int], values: Sequence[float], length: int) -> Tensor:
    """Return how safe the chunk of each token of a row is.

    Args:
        positions: Where chunks end, with repeats.
        values: How safe the answer is up to there.
        length: Tokens of the row; the last chunk takes what is left of it.

    Returns:
        (length,), float32.
    """
    ends, safe = without_repeats([min(position, length) for position in positions], values)
    ends[-1] = length
    return chunk_weights(torch.tensor([ends]), torch.tensor([safe]), length)[0]


def rejection_values(values: Tensor, threshold: float = 0.5) -> Tensor:
    """Return 1 for each answer whose value reaches the threshold, and 0 for the others."""
    return (values >= threshold).to(values.dtype)


def mean_safety(values: Sequence[Tensor]) -> Tensor:
    """Return the mean over guards of the probability that each beginning is safe."""
    return torch.stack(list(values)).mean(0)


def probability_safe(safe: Tensor, unsafe: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the softmax over two keyword scores, of the first one.

    Args:
        safe: Scores of the word for safe, any shape; -inf where it is ruled out.
        unsafe: Scores of the word for unsafe.
        temperature: Divides the scores; below 1 it moves the results towards 0 and 1.

    Returns:
        The shape of `safe`; NaN where both are -inf.
    """
    return (torch.stack([safe, unsafe], -1) / temperature).softmax(-1)[..., 0]


class StarDSS(LabelReferenceModule):
    """Fine-tuning that follows a guard's scores of each part of an answer (arXiv 2505.17196).

    Of each labelled token, the cross-entropy counts as much as its chunk is safe, and the
    divergence from the reference (the start model) counts the rest; the loss is the mean over all
    labelled tokens. ``train/ce_part`` and ``train/kl_part`` are logged.

    Args:
        annotations: What `StarScores` wrote of the same rows: the file or its folder.
        kl_estimator: ``k1`` pushes every such token down, whatever the reference; see
            `kl_estimates`.
        kl_scale: Factor of the divergence.
        kl_clamp: Clamp it to plus and minus this, as newer versions of the library that the release
            builds on do with 10.
        boundary: Where chunks end. ``released`` takes the length of the text with the end of turn
            behind it, so that a chunk takes the first tokens of the next; ``exact`` does not.
        variant: ``rejection`` learns whole answers that are safe (the last value is 0.5 or more)
            and no others, without a divergence. ``kl_only`` learns nothing and stays near the
            reference; as in the release, tokens with the id 0 are not counted in its mean.
    """

    def __init__(
        self,
        *args: Any,
        annotations: str | None = None,
        kl_estimator: Estimator = "k2",
        kl_scale: float = 0.5,
        kl_clamp: float | None = None,
        boundary: Boundary = "exact",
        variant: Variant = "star",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if annotations is None and variant != "kl_only":
            raise OneShotError(
                "model.annotations: is missing; write them with oneshot-lit annotate (StarScores)."
            )
        if kl_scale < 0 or (kl_clamp is not None and kl_clamp <= 0):
            raise OneShotError("model: kl_scale must not be negative, and kl_clamp be above 0.")
        if kl_estimator == "k1" and variant != "rejection":
            rank_zero_warn("model.kl_estimator: k1 pushes label tokens down and has no least value")
        self.annotations_file, self.boundary, self.variant = annotations, boundary, variant
        self.kl_estimator, self.kl_scale, self.kl_clamp = kl_estimator, kl_scale, kl_clamp
        self._safety: RowNumbers | None = None
        if variant == "rejection":
            if self.reference_file is not None or self.reference_name_or_path is not None:
                raise OneShotError("model.variant: rejection has no reference; drop its keys.")
            self.keeps_start_weights = False

    def read_annotations(self) -> None:
        """Read the scores, and the reference's numbers if they are in a file."""
        super().read_annotations()
        if self.variant == "kl_only":
            return
        assert self.annotations_file is not None
        file = self.annotations(self.annotations_file, KIND, "annotations")
        data = self.training_rows()
        rows = []
        for row, text in zip(data.encoded, data.conversations, strict=True):
            place = file.places(row, text.origin, text.digest())[0]
            positions = file.numbers[self.boundary][place].tolist()
            values = file.numbers[VALUES][place].tolist()
            if self.variant == "rejection":
                accepted = rejection_values(file.numbers[VALUES][place][-1])
                safety = accepted.expand(len(row.input_ids))
            else:
                safety = row_weights(positions, values, len(row.input_ids))
            rows.append(safety)
        self._safety = RowNumbers(rows)

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean over all labelled tokens of the two parts."""
        labels = batch["labels"]
        no_reference = self.variant == "rejection"
        reference = None if no_reference else self.reference_log_probabilities(batch)
        now = -token_losses(self.labelled_logits(batch), labels)
        reference = now.detach() if reference is None else reference
        reference = torch.where(reference.isnan(), now.detach(), reference)
        kl = self.kl_estimator, self.kl_scale, self.kl_clamp
        if self._safety is None:
            divergence = kl_estimates(now, reference, self.kl_estimator, self.kl_clamp)
            return self._own(batch, divergence).sum() / self.loss_weight(batch)
        safety = of_labelled(self._safety.of(batch), labels).nan_to_num(1.0)
        parts = star_terms(now, reference, safety, *kl)
        counts = self.token_weights(batch)
        counts = None if counts is None else of_labelled(counts, labels)
        means = [weighted_mean(part, counts) for part in parts]
        for name, mean in zip(("ce_part", "kl_part"), means, strict=True):
            self.log_part(name, mean)
        return means[0] + means[1]

    def loss_weight(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the number of terms in the mean: labelled tokens, weighted."""
        if self.variant != "kl_only":
            return super().loss_weight(batch)
        labels = batch["labels"]
        return self._own(batch, (of_labelled(labels, labels) != 0).float()).sum()

    def _own(self, batch: dict[str, Tensor], terms: Tensor) -> Tensor:
        weights = self.token_weights(batch)
        return terms if weights is None else terms * of_labelled(weights, batch["labels"])
