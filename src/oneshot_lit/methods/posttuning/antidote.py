"""Antidote: zero the entries that matter most for harmful rows.

Source: Huang et al., "Antidote" (arXiv 2408.09600); the score is that of Wanda (2306.11695).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.posttuning.alignment_matrix import wide
from oneshot_lit.methods.posttuning.pair_edit import Factors, PairEdit
from oneshot_lit.models.adapters import is_adapter
from oneshot_lit.models.linear_layers import is_one_of, require_kinds
from oneshot_lit.models.lora_pairs import LoraPair, read_pairs

ABOUT = About(
    name="Antidote",
    stage="after fine-tuning",
    needs="harmful rows",
    paper="2408.09600",
    agreement="exact with the release",
    config="defence/antidote.yaml",
)


class InputEnergy:
    """The mean over sequences of the sum over tokens of each squared input of a linear layer.

    Args:
        size: How many inputs the layer has.
        dtype: Of the sums.
    """

    def __init__(self, size: int, dtype: torch.dtype = torch.float32) -> None:
        self.total = torch.zeros(size, dtype=dtype)
        self.sequences = 0

    def add(self, inputs: Tensor, mask: Tensor) -> None:
        """Count a batch.

        Args:
            inputs: (rows, tokens, size), what the layer gets.
            mask: (rows, tokens), 0 for padding.
        """
        own = (wide(inputs) * mask.unsqueeze(-1)).to(self.total.dtype).square().sum((0, 1))
        self.total += own.cpu()
        self.sequences += len(inputs)

    @property
    def mean(self) -> Tensor:
        """The score of each input: (size,)."""
        return self.total / max(1, self.sequences)


def harmful_entries(weight: Tensor, energy: Tensor | None, ratio: float) -> Tensor:
    """Return which entries of a weight go: the largest ``|W_ij| sqrt(a_j)`` of each row.

    Args:
        weight: (out, in).
        energy: (in,), from `InputEnergy`; without it, the size of the entry alone decides.
        ratio: Of each row, all but ``int(in * (1 - ratio))`` entries go. As this rounds down, a
            short row loses more than the ratio, and any ratio above 0 takes an entry of each row.

    Returns:
        (out, in), bool. Of entries that tie, the later ones go.
    """
    score = wide(weight).abs()
    if energy is not None:
        score = score * energy.sqrt().to(score)
    kept = int(weight.shape[1] * (1 - ratio))
    order = score.argsort(dim=1, stable=True)
    gone = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    return gone.scatter_(1, order[:, kept:], True)


class Antidote(PairEdit):
    """Antidote (arXiv 2408.09600): zero what matters most for harmful rows.

    Of a LoRA adapter, entries of both factors are zeroed; the base stays as it is. Of a whole
    model, entries of the chosen matrices. The rows are those of `data.train`: harmful requests with
    their answers, all tokens of which count.

    Args:
        model_name_or_path: The fine-tuned model, or its LoRA adapter.
        ratio: The share of each row of a matrix that goes, .01 to .2 in the release. As the number
            kept is rounded down, every ratio above 0 takes an entry of each row.
        matrices: Of a whole model, the modules with these names.
    """

    needs_aligned = False

    def __init__(
        self,
        model_name_or_path: str,
        ratio: float = 0.1,
        matrices: list[str] = ["q_proj", "k_proj", "v_proj"],  # noqa: B006
    ) -> None:
        if not 0 < ratio < 1:
            raise OneShotError(f"model.ratio: must be above 0 and below 1, not {ratio}.")
        self.model_name_or_path, self.ratio = model_name_or_path, ratio
        self.matrices = list(matrices)
        self._energies: dict[str, InputEnergy] = {}

    def sources(self) -> dict[str, str]:
        """Return the tuned model alone."""
        return {"tuned": self.model_name_or_path}

    def calibrate(self, model: Any, batches: Iterator[dict[str, Tensor]]) -> None:
        """Measure the inputs of the matrices, and of a pair's second factor, on harmful rows."""
        pairs = read_pairs(self.tuned) if is_adapter(self.tuned) else {}
        linear = {n: m for n, m in model.named_modules() if hasattr(m, "weight")}
        if not pairs:
            require_kinds(list(linear), self.matrices)
        names = list(pairs) or [n for n in linear if is_one_of(n, self.matrices)]
        mask: Tensor | None = None

        def watch(name: str) -> Any:
            def hook(module: Any, args: tuple[Any, ...]) -> None:
                assert mask is not None
                self._energy(name, args[0].shape[-1]).add(args[0], mask)
                if name in pairs:
                    a = pairs[name].a.to(args[0])
                    self._energy(f"{name} B", len(a)).add(args[0] @ a.T, mask)

            return hook

        hooks = [model.get_submodule(n).register_forward_pre_hook(watch(n)) for n in names]
        try:
            for batch in batches:
                mask = batch["attention_mask"]
                model(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False)
        finally:
            for each in hooks:
                each.remove()

    def _energy(self, name: str, size: int) -> InputEnergy:
        return self._energies.setdefault(name, InputEnergy(size, torch.float64))

    def edit_pair(
        self, module: str, pair: LoraPair, weights: Mapping[str, Tensor], second: LoraPair | None
    ) -> tuple[Factors, float] | None:
        """Return both factors with entries zeroed."""
        gone_a = harmful_entries(pair.a, self._energies[module].mean, self.ratio)
        gone_b = harmful_entries(pair.b, self._energies[f"{module} B"].mean, self.ratio)
        return (pair.a * ~gone_a, pair.b * ~gone_b), pair.scaling

    def edit(self, name: str, weights: Mapping[str, Tensor]) -> Tensor:
        """Return a chosen matrix with entries zeroed."""
        module = name.removesuffix(".weight")
        if module not in self._energies:
            return weights["tuned"]
        own = weights["tuned"]
        return own * ~harmful_entries(own, self._energies[module].mean, self.ratio)
