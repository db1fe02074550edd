"""Vaccine: align a model while its hidden states are pushed where the loss grows fastest.

What the attack does to hidden states later is then nothing new to the model (arXiv 2402.01109).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, distributed

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.base import LanguageModelModule
from oneshot_lit.models.hidden_states import chosen_modules, hidden_gradients, perturbed
from oneshot_lit.models.labelled_head import head_on_labelled

ABOUT = About(
    name="Vaccine",
    stage="before the attack",
    needs="alignment rows",
    paper="2402.01109",
    agreement="exact with the release, which loses all but the last accumulated batch",
    config="defence/vaccine.yaml",
)
# Keeps the division by a norm of zero finite, as the release does.
_TINY = 1e-7


def squared_norm(gradients: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the squares of all entries of all tensors, a scalar in their dtype."""
    return torch.stack([g.square().sum() for g in gradients.values()]).sum()


def perturbations(
    gradients: Mapping[str, Tensor], norm: Tensor, rho: float, share: Tensor | float = 1.0
) -> dict[str, Tensor]:
    """Return a step of length `rho` along the gradients (section 3.2 of the paper).

    Args:
        gradients: Name -> gradient of the loss at a block's output, (rows, tokens, features).
        norm: Norm of all gradients that the step is taken along, a scalar.
        rho: Length of the step.
        share: Share of these gradients' batch in the loss of all processes.

    Returns:
        Name -> ``rho * share * gradient / (norm + 1e-7)``.
    """
    return {name: rho * share * g / (norm + _TINY) for name, g in gradients.items()}


class Vaccine(LanguageModelModule):
    """Alignment whose steps are taken at perturbed outputs of the attention blocks.

    Each step has two passes over a batch. The first gives the gradient of the loss at the output
    of every attention block, before it is added to the residual stream. The second runs with `rho`
    times the normalised gradient added there as a constant; its gradient is the step, and its loss
    is the one that is logged. Under accumulation each batch has its own perturbation, and all of
    them count, which the release gets wrong. Dropout draws anew in the second pass, as there.

    Args:
        rho: Norm of the perturbation of all blocks together. It is relative to the size of the
            activations, so try several. For `random` its square root is the standard deviation.
        random: Add normal random numbers instead, in one pass (RandomVaccine).
        norm_scope: The norm that gradients are divided by is that of the batch of one process
            (``rank``, as in the release), or that of all processes together (``global``), so that
            their number changes nothing.
        attention_blocks: Pattern of the names of the attention blocks, such as ``*.attn`` of GPT-2.
    """

    def __init__(
        self,
        *args: Any,
        rho: float = 2.0,
        random: bool = False,
        norm_scope: Literal["rank", "global"] = "rank",
        attention_blocks: str = "*.self_attn",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if rho < 0:
            raise OneShotError(f"model.rho: must not be negative, not {rho}.")
        self.rho, self.random = rho, random
        self.norm_scope, self.attention_blocks = norm_scope, attention_blocks
        self._perturbed = ExitStack()

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch with perturbed hidden states."""
        self._perturbed.close()
        blocks = chosen_modules(self.model, self.attention_blocks)
        if self.random:
            deltas = self._noise(list(blocks), batch)
        else:
            plain = super().compute_loss
            gradients = hidden_gradients(blocks, lambda: plain(batch))
            norm, share = self._norm(gradients, batch)
            deltas = perturbations(gradients, norm, self.rho, share)
        self._perturbed.enter_context(perturbed(blocks, deltas))
        loss = super().compute_loss(batch)
        if not self.gradient_checkpointing:
            # Otherwise the backward pass computes the blocks again, and needs the same outputs.
            self._perturbed.close()
        return loss

    def labelled_logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits that predict the labelled tokens; no beginning of rows is shared.

        A beginning that is read once for all rows would have one perturbation for all of them.
        """
        with head_on_labelled(self.model, batch["labels"]):
            return self.forward(batch["input_ids"], batch["attention_mask"])

    def on_after_backward(self) -> None:
        """Leave the hidden states as they are again."""
        self._perturbed.close()

    def _norm(
        self, gradients: Mapping[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | float]:
        square = squared_norm(gradients)
        if self.norm_scope == "rank" or self.trainer.world_size == 1:
            return square.sqrt(), 1.0
        # The loss of all processes together weighs that of each by its tokens. Rows that only fill
        # a batch have none of their own.
        weight = self.loss_weight(batch).to(square)
        weight = weight * (batch["index"] >= 0).any().to(square)
        sums = torch.stack([square * weight.square(), weight])
        distributed.all_reduce(sums)
        return sums[0].sqrt() / sums[1], weight / sums[1]

    def _noise(self, blocks: list[str], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        ids = batch["input_ids"]
        shape = (*ids.shape, int(self.model.config.get_text_config().hidden_size))
        scale = self.rho**0.5
        return {name: scale * torch.randn(shape, device=ids.device) for name in blocks}
