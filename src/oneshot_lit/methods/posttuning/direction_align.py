"""`DirectionAlign`: put entries of the aligned model back until harmful prompts look harmful again.

Source: Kang et al. (arXiv 2504.09757); see `direction_steps`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.padding import pad_generation
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.registry import is_skill
from oneshot_lit.methods.about import About
from oneshot_lit.methods.job import Job
from oneshot_lit.methods.posttuning.direction_steps import (
    add_gradients,
    candidates,
    default_end,
    first_layers,
    largest,
    mean_state,
)
from oneshot_lit.methods.posttuning.edit_record import EditRecord
from oneshot_lit.methods.posttuning.weight_edit import Repair, given, write_record
from oneshot_lit.models.adapters import is_adapter
from oneshot_lit.models.edit_files import read_tensor
from oneshot_lit.models.loading import local_folder
from oneshot_lit.models.weight_files import tensors_of, weight_files

ABOUT = About(
    name="DirectionAlign",
    stage="after fine-tuning",
    needs="the aligned model, harmful prompts, task prompts, a task's score",
    paper="2504.09757",
    agreement="gradients, masks and weights exact with the release",
    config="defence/direction_align.yaml",
)

# What a job that is started again needs, beside weights and gradients.
_STATE = ("_done", "_ended", "_rollback", "measured", "_kept")
_SETTINGS = (
    *("recovery_rate", "num_steps", "warmup_steps", "save_every", "metric_drop", "rollback_rate"),
    *("end", "measured"),
)


class DirectionAlign(Repair, Job):
    """DirectionAlign (arXiv 2504.09757): entries go back to the aligned model, the best ones first.

    The direction is the mean hidden state of harmful prompts in the aligned model, at the last
    token after the first two thirds of the layers. In each step the gradient of the cosine with it
    says which entries of those layers turn the fine-tuned model towards it when they go back; the
    largest do. The harmful prompts are those of `data.train`, 256 in the release; their answers do
    not matter. Gradients add up over the steps, as in the release. A skill is measured on
    `data.val_sets` of kind ``task``: if it has fallen too far after the warm-up, the steps begin
    again, and each is followed by one that undoes what hurts the hidden states of task prompts.

    Args:
        aligned: The model before fine-tuning, whole.
        task: Requests of the task.
        recovery_rate: How many entries go back in a step, as a share of all of the model's layers.
        num_steps: Steps in all.
        warmup_steps: Steps before the skill is measured for the first time.
        save_every: The model is measured after so many steps; one of these is kept.
        metric_drop: Largest loss of the skill, as a share of the fine-tuned model's.
        rollback_rate: How many of a step's entries are undone, at most, as a share of those that
            would help the task.
        layer_end: How many layers count, from the first; two thirds by default.
    """

    def __init__(
        self,
        *args: Any,
        aligned: str | None = None,
        task: ConversationSource | None = None,
        recovery_rate: float = 0.002,
        num_steps: int = 20,
        warmup_steps: int = 5,
        save_every: int = 5,
        metric_drop: float = 0.05,
        rollback_rate: float = 0.2,
        layer_end: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if min(num_steps, warmup_steps, save_every) < 1:
            raise OneShotError("model.num_steps, warmup_steps, save_every: must be at least 1.")
        self.aligned = given("aligned", aligned)
        self.recovery_rate, self.rollback_rate = recovery_rate, rollback_rate
        self.num_steps, self.warmup_steps, self.save_every = num_steps, warmup_steps, save_every
        self.metric_drop, self.layer_end = metric_drop, layer_end
        self.sources = {"model.task": given("task", task)}
        self._done, self._ended, self._rollback = 0, False, False
        # Steps that were measured, with the skill; 0 is the fine-tuned model.
        self.measured: list[dict[str, float]] = []
        self._kept: dict[str, Tensor] = {}
        self._resumed: dict[str, Any] = {}

    # ---------------------------------------------------------------- building

    def check(self) -> None:
        """Refuse a job without a skill to measure."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        keys = [f"{s.name}/{metric}" for s in data.prompt_sets("val") for metric in s.metrics]
        if not any(is_skill(key) for key in keys):
            raise OneShotError(
                "data.val_sets: needs a set of kind task, whose score says how much of the skill "
                "is left."
            )

    def prepare(self) -> None:
        """Read the aligned weights, encode the prompts, and find both directions."""
        self.model.requires_grad_(False).train()
        layers = len(self.model.get_decoder().layers)
        self.end = default_end(layers) if self.layer_end is None else self.layer_end
        if not 0 < self.end <= layers:
            raise OneShotError(f"model.layer_end: must be 1 to {layers}, not {self.end}.")
        start = next(n for n, m in self.model.named_modules() if m is self._layers())
        names = {
            n: int(n.removeprefix(f"{start}.").split(".")[0])
            for n, _ in self.model.named_parameters()
            if n.startswith(f"{start}.")
        }
        # Their names, too, before layers are taken away for the passes.
        self._all = parameters = dict(self.model.named_parameters())
        total = sum(parameters[n].numel() for n in names)
        self.count = math.ceil(self.recovery_rate * total)
        self.own = {
            n: parameters[n]
            for n, layer in names.items()
            if layer < self.end and "layernorm" not in n
        }
        for parameter in self.own.values():
            parameter.requires_grad_(True)
        self._tuned = {n: p.detach().clone() for n, p in self.own.items()}
        whole = self._aligned_weights(parameters)
        self._target = {n: whole[n] for n in self.own}
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = {"data.train": data.training.conversations}
        rows["model.task"] = self.sources["model.task"].load()
        self._batches = {name: self._encoded(name, own) for name, own in rows.items()}
        with first_layers(self.model, self.end) as decoder:
            self._task = mean_state(decoder, self._batches["model.task"])
            before = {n: p.detach().clone() for n, p in parameters.items()}
            self._set(whole)
            self._harmful = mean_state(decoder, self._batches["data.train"])
            self._set(before)
        if self._resumed:
            self._take_up(self._resumed)
        elif not self._measure(0):
            raise OneShotError(
                "data.val_sets: the fine-tuned model scores 0 on the task, so no loss could be "
                "seen; give a task that it has learned."
            )

    def _layers(self) -> Any:
        return self.model.get_decoder().layers

    def _aligned_weights(self, parameters: Mapping[str, Any]) -> dict[str, Tensor]:
        folder = local_folder(self.aligned)
        if is_adapter(folder):
            raise OneShotError(f"{folder} (aligned): is an adapter; give the merged model.")
        places, weights = tensors_of(weight_files(folder)), {}
        for name, parameter in parameters.items():
            if name not in places:
                raise OneShotError(
                    f"{folder}: has no tensor {name}; give the model that was tuned."
                )
            own = read_tensor(places[name], name)
            if own.shape != parameter.shape:
                raise OneShotError(
                    f"{folder}: {name} is {tuple(own.shape)} there and {tuple(parameter.shape)} in "
                    "the tuned model; give the model that was tuned."
                )
            weights[name] = own.to(parameter)
        return weights

    @torch.no_grad()
    def _set(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in weights.items():
            self._all[name].copy_(value)

    def _encoded(self, name: str, rows: Sequence[Conversation]) -> list[dict[str, Tensor]]:
        """Return the prompts of rows as batches, padded on the left."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not rows:
            raise OneShotError(f"{name}: has no rows.")
        encoded = [encode_conversation(self.tokenizer, r.prompt, for_generation=True) for r in rows]
        size = data.batch_size
        parts = [encoded[start : start + size] for start in range(0, len(encoded), size)]
        padded = [pad_generation(part, self.tokenizer.pad_token_id) for part in parts]
        return [{k: v.to(self.device) for k, v in batch.items()} for batch in padded]

    # ------------------------------------------------------------- a killed job

    def job_state(self) -> dict[str, Any]:
        """Return the weights, the gradients that have added up, and what was measured."""
        facts = {name: getattr(self, name) for name in _STATE}
        own = {n: p.detach() for n, p in self.own.items()}
        gradients = {n: p.grad for n, p in self.own.items() if p.grad is not None}
        return facts | {"own": own, "gradients": gradients}

    def load_job_state(self, state: dict[str, Any]) -> None:
        """Remember what `prepare` will take up."""
        self._resumed = state

    def _take_up(self, state: dict[str, Any]) -> None:
        for name in _STATE:
            setattr(self, name, state[name])
        self._kept = {n: value.to(self.own[n]) for n, value in self._kept.items()}
        self._set(state["own"])
        for name, gradient in state["gradients"].items():
            self.own[name].grad = gradient.to(self.own[name])
        self._resumed = {}

    # ------------------------------------------------------------------- steps

    def steps(self) -> tuple[int, int]:
        """Return how many steps are done, and how many there are."""
        return self._done, self._done if self._ended else self.num_steps

    def progress_text(self) -> str:
        """Return the skill after the last step that was measured."""
        return f"skill {self.measured[-1]['skill']:.3f}"

    def step(self) -> bool:
        """Put entries back; return whether it was the last step."""
        zipped = list(zip(*self._batches.values(), strict=False))
        harmful = [h for h, _ in zipped] if self._rollback else self._batches["data.train"]
        back = self._move(harmful, self._harmful, self._target, self.count, None)
        if self._rollback:
            self.zero_grad(set_to_none=False)
            chosen = {n: m for n, m in back.items() if m.any()}
            self._move([t for _, t in zipped], self._task, self._tuned, None, chosen)
            self.zero_grad(set_to_none=False)
        self._done += 1
        if self._done == self.warmup_steps and not self._rollback:
            if self._measure(self._done) < self._floor():
                rank_zero_info("the skill falls; beginning again with rollback.")
                self._begin_rollback()
                return False
        elif self._done % self.save_every == 0 or self._done == self.num_steps:
            self._measure(self._done)
        # The first model whose skill has fallen ends the search.
        fallen = self.measured[-1]["step"] > 0 and self.measured[-1]["skill"] <= self._floor()
        self._ended = fallen or self._done >= self.num_steps
        return self._ended

    def _move(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        direction: Tensor,
        target: Mapping[str, Tensor],
        count: int | None,
        only: Mapping[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """Add gradients, and move the entries that they choose to their target."""
        with first_layers(self.model, self.end) as decoder:
            add_gradients(decoder, batches, direction)
        gradients = {n: p.grad for n, p in self.own.items() if p.grad is not None}
        with torch.no_grad():
            chosen = candidates(self.own, target, gradients)
            if only is not None:
                chosen = {n: chosen[n] & mask for n, mask in only.items()}
            if count is None:
                total = sum(int(mask.sum()) for mask in chosen.values())
                count = math.ceil(self.rollback_rate * total)
            if not count:
                return {}
            moved = largest(chosen, gradients, count)
            for name, mask in moved.items():
                self.own[name].copy_(torch.where(mask, target[name], self.own[name]))
        return moved

    def _begin_rollback(self) -> None:
        self._set(self._tuned)
        self.zero_grad(set_to_none=False)
        self._rollback, self._done = True, 0
        self.measured, self._kept = self.measured[:1], {}

    def _floor(self) -> float:
        return (1 - self.metric_drop) * self.measured[0]["skill"]

    def _measure(self, step: int) -> float:
        """Score the skill, and keep the weights while it has not fallen."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.model.eval()
        with torch.no_grad():
            scores = self.score_loaders(data.val_dataloader())
        self.model.train()
        skills = [value for key, value in scores.items() if is_skill(key)]
        self.measured.append({"step": step, "skill": math.fsum(skills) / len(skills)} | scores)
        if step and self.measured[-1]["skill"] > self._floor():
            self._kept = {n: p.detach().clone() for n, p in self.own.items()}
        return self.measured[-1]["skill"]

    def finish(self, root: Path) -> None:
        """Take the last model that kept the skill, and write ``edit.json``."""
        if not self._kept:
            rank_zero_warn("the skill fell at once; the fine-tuned model is returned as it was.")
        self._set(self._kept or self._tuned)
        if not self.trainer.is_global_zero:
            return
        record = EditRecord()
        for name, own in self.own.items():
            before = self._tuned[name]
            after = before if torch.equal(own, before) else own.detach()
            record.tensor(name, {"tuned": before, "aligned": self._target[name]}, after)
        settings = {name: getattr(self, name) for name in _SETTINGS}
        write_record(record, self, root, settings | {"rollback": self._rollback})
