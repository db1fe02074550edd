"""Small methods, one for each seam, and their fits under a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from anchoring import documented
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from training import saving_trainer

from oneshot_lit.data import ChatJsonl, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule, ReferenceModule
from oneshot_lit.models.hidden_states import chosen_modules, hidden_gradients, perturbed
from oneshot_lit.models.loss import kl_divergences, labelled_logits
from oneshot_lit.strategies.gradient_edits import own_parts


class Weighted(LanguageModelModule):
    """Tokens count 0, 1, 2, 0, 1, 2 ... along a row."""

    def token_weights(self, batch: dict[str, Tensor]) -> Tensor:
        places = torch.arange(batch["labels"].shape[1], device=batch["labels"].device)
        return (places % 3).float().expand(batch["labels"].shape)


class Referred(ReferenceModule):
    """The mean KL divergence from the reference beside the loss."""

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        before = self.reference(batch)
        logits = self(batch["input_ids"], batch["attention_mask"])
        now = labelled_logits(logits, batch["labels"])
        return super().compute_loss(batch) + 5.0 * kl_divergences(before, now).mean()


def direction(name: str, shape: Any) -> Tensor:
    """Return a tensor that depends on a parameter's name alone."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.randn(tuple(shape), generator=generator)


class Projected(LanguageModelModule):
    """Each gradient without its part along a direction, as in SPF and SSAH."""

    def edit_gradients(self, gradients: Mapping[str, Tensor], reduce: Any) -> None:
        named = dict(self.named_parameters())
        shapes = {n: getattr(named[n], "ds_shape", named[n].shape) for n in gradients}
        whole = {name: direction(name, shape) for name, shape in shapes.items()}
        for name, part in own_parts(named, whole).items():
            gradient = gradients[name][: len(part)]
            along, square = reduce(torch.stack([(gradient * part).sum(), part.square().sum()]))
            gradient.sub_(along / square * part)


class Frozen(LanguageModelModule):
    """About half of the entries of every weight stay where they are."""

    def frozen_entries(self) -> dict[str, Tensor]:
        return {
            name: direction(name, getattr(p, "ds_shape", p.shape)) > 0
            for name, p in self.named_parameters()
            if p.requires_grad
        }


class TwoPasses(LanguageModelModule):
    """The loss with a step along the gradient of the hidden states, as in Vaccine."""

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        modules = chosen_modules(self.model, "*.self_attn")
        plain = super().compute_loss
        gradients = hidden_gradients(modules, lambda: plain(batch))
        deltas = {
            n: 0.5 * g / g.norm(dim=-1, keepdim=True).clamp_min(1e-12) for n, g in gradients.items()
        }
        with perturbed(modules, deltas):
            return plain(batch)


Replayed = documented("ReplayedFineTuning")
KINDS: dict[str, Any] = {
    **{each.__name__: each for each in (Weighted, Referred, Projected, Frozen, TwoPasses)},
    "Replayed": Replayed,
    # Lightning's own callback does the work.
    "Averaged": LanguageModelModule,
}


def fit(
    kind: str,
    name: str,
    root: str,
    folder: str,
    rows: str,
    processes: int = 1,
    options: dict[str, Any] | None = None,
    kill_at: int | None = None,
    max_steps: int = -1,
    ckpt_path: str | None = None,
    accumulate: int = 1,
) -> None:
    """Train two epochs of three steps each, saving after each step; write the product."""
    torch.manual_seed(0)
    decay = {"weight_decay": 0.1} if kind == "Frozen" else {}
    module = KINDS[kind](
        folder,
        optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.5, **decay),
        **(options or {}),
    )
    trainer = saving_trainer(
        name,
        root,
        processes,
        max_steps,
        kill_at,
        [EMAWeightAveraging(decay=0.5)] if kind == "Averaged" else [],
        accumulate_grad_batches=accumulate,
    )
    side = {"alignment": ChatJsonl(rows, skip=4)} if kind == "Replayed" else None
    data = SafetyDataModule(
        ChatJsonl(rows), batch_size=4 // accumulate, share_batch=True, seed=3, side=side
    )
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
