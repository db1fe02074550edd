"""`LowRankRealignmentModule`: repair a broken model by projection, from one backward pass."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.padding import pad_training
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.refusal import is_refusal
from oneshot_lit.methods.about import About
from oneshot_lit.methods.job import Job
from oneshot_lit.methods.own_answers import own_answers
from oneshot_lit.methods.posttuning.low_rank.bounded_step import BoundedStep
from oneshot_lit.methods.posttuning.low_rank.guard_rows import Drift, GuardRows
from oneshot_lit.methods.posttuning.low_rank.prompt_search import PromptChoice
from oneshot_lit.methods.posttuning.low_rank.step import (
    Triplets,
    directions,
    factor,
    write_step,
)
from oneshot_lit.methods.posttuning.step_selection import require_rates
from oneshot_lit.methods.posttuning.weight_edit import Repair
from oneshot_lit.models import adapters
from oneshot_lit.models.linear_layers import chosen_layers

ABOUT = About(
    name="low-rank realignment",
    stage="after fine-tuning",
    needs="one refusal, harmless guard prompts",
    paper="2601.01887",
    agreement="the idea is the paper's; guard and step search are ours",
    config="realign/low_rank.yaml",
)


class LowRankRealignmentModule(Repair, Job):
    """Step along the top-k singular directions of the one instance's gradient.

    One backward pass at the broken weights gives the token factors of every linear layer's
    gradient; per matrix the k largest singular triplets make a step
    ``-alpha * sum_i s_i u_i v_i^T`` (projective recovery, arXiv 2601.01887), which is a LoRA
    adapter of rank k. The size alpha comes from forward passes only. With harmful and harmless
    prompts in ``data.val_sets`` it is the one with the best development score, as for
    `OneShotRealignmentModule`; without, the largest at which the drift on harmless rows stays under
    `max_drift` and the instance is refused. Before the decomposition
    the gradient is projected away from what other harmless rows, the guard, use (see
    `oneshot_lit.spectral.guard`). No gradient of a weight and no optimiser state is ever made.

    The output is the PEFT adapter, or with ``--export.merge_adapter true`` the whole model. The
    optimizer, scheduler and peft options of the base have no use here.

    Args:
        guard: Harmless conversations of every kind that must keep working, in random order; a row
            without an answer gets the broken model's own. The first `drift_rows` measure the drift
            where it bounds the step, the next `guard_rows` make the projection.
        k: Singular triplets a matrix; the rank of the adapter.
        matrices: Repair the linear layers with names that match this pattern, or one of these, such
            as ``*mlp*``; all but the output layer by default.
        normalise: Give every matrix's step the spectral norm alpha; otherwise it has the gradient's
            own scale (after the guard: rescaled to the norm of the unguarded one).
        guard_rows: Rows of the projection; 0 steps unguarded.
        drift_rows: Rows on which the drift is measured; disjoint from those of the projection.
        guard_lambda: Lambda of the projection; smaller values guard more. Of several, the
            development prompts choose one; a step with the score 0 ends the search.
        max_drift: Bound of the drift: mean KL divergence of the next-token distributions on the
            answers of the drift rows, broken model against repaired one, in nats a token.
        alpha: Take a step of this size instead of searching.
        search_steps: Maximum number of bisections.
    """

    def __init__(
        self,
        *args: Any,
        guard: ConversationSource | None = None,
        k: int = 1,
        matrices: str | list[str] = "*",
        normalise: bool = True,
        guard_rows: int = 32,
        drift_rows: int = 64,
        guard_lambda: float | list[float] = 100.0,
        max_drift: float = 0.01,
        alpha: float | None = None,
        search_steps: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.peft is not None:
            raise OneShotError("model.peft: the repair makes its own adapter; drop it.")
        if self.model_config is not None:
            raise OneShotError("model.model_config: a repair needs a broken model, not a new one.")
        least = {"k": 1, "guard_rows": 0, "drift_rows": 1, "search_steps": 0}
        given = (k, guard_rows, drift_rows, search_steps)
        for (name, floor), value in zip(least.items(), given, strict=True):
            if value < floor:
                raise OneShotError(f"model.{name} must be at least {floor}, not {value}.")
        # From the strongest guard on, which is taken when others are as good.
        self.lambdas = sorted(guard_lambda if isinstance(guard_lambda, list) else [guard_lambda])
        above = {"guard_lambda": min(self.lambdas, default=0.0), "max_drift": max_drift}
        above |= {} if alpha is None else {"alpha": alpha}
        for name, number in above.items():
            if not 0 < number < float("inf"):
                raise OneShotError(f"model.{name} must be above 0 and finite, not {number}.")
        if guard is None:
            raise OneShotError(
                "model.guard: give a source of harmless conversations; their drift bounds the step."
            )
        self.k, self.normalise = k, normalise
        self.patterns = [matrices] if isinstance(matrices, str) else list(matrices)
        self.alpha, self.sources = alpha, {"model.guard": guard}
        self.guard = GuardRows(guard, guard_rows, drift_rows)
        self.bounded = BoundedStep(max_drift, alpha, search_steps)
        self._chooses_by_prompts = False
        self._directions: list[dict[str, Triplets]] = []
        self.choice = PromptChoice()

    # ---------------------------------------------------------------- building

    def configure_model(self) -> None:
        """Load the broken model and add an adapter that changes nothing yet."""
        if self.model is not None:
            return
        super().configure_model()
        layers = chosen_layers(self.model, self.patterns)
        for name, layer in layers.items():
            if self.k > min(layer.weight.shape):
                raise OneShotError(
                    f"model.k={self.k} is more than {name} allows, which has "
                    f"{min(layer.weight.shape)} singular values; lower it."
                )
        self.peft = {"r": self.k, "lora_alpha": self.k, "target_modules": sorted(layers)}
        self.model = adapters.add_adapter(self.model, self.peft).train()
        self.layers = {n: self.model.get_base_model().get_submodule(n) for n in layers}
        with torch.no_grad():
            for layer in self.layers.values():
                factor(layer, "A").zero_()

    def check(self) -> None:
        """Refuse settings that cannot work, before any work is done."""
        if self.model_dtype == torch.float16:
            raise OneShotError(
                "model.dtype: gradients of one instance vanish in float16; use bfloat16 or float32."
            )
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        # Rows that come twice count once.
        rows = list({row.messages: row for row in data.training.conversations}.values())
        most = data.batch_size * (1 if data.share_batch else data.trainer.world_size)
        if len(rows) > most:
            raise OneShotError(
                f"data.train has {len(rows)} rows, and a pass reads {most} of them; raise "
                "data.batch_size, or give fewer rows."
            )
        self.instance: list[Conversation] = rows
        prompts = data.prompt_sets("val")
        if self.alpha is None and (prompts or len(self.lambdas) > 1):
            require_rates(prompts, "a step chosen by prompts")
            self._chooses_by_prompts = True

    # ------------------------------------------------------------------ repair

    def prepare(self) -> None:
        """Encode the instance and the guard; keep the outputs that the drift compares with."""
        self.eval()
        with self.trainer.autocast():  # type: ignore[attr-defined]
            # Other prompts may still be answered; where there are some, they decide.
            by_instance = self.alpha is None and not self._chooses_by_prompts
            if by_instance and self.instance_refused():
                raise OneShotError(
                    f"the model already refuses the instance ({self._origin()}); there is nothing "
                    "to repair. Give a broken model, or an instance that it answers."
                )
            max_length = self.trainer.datamodule.max_length  # type: ignore[attr-defined]
            self._batch = self._encoded(max_length)
            by_drift = not self._chooses_by_prompts
            self._guard_batch, drift = self.guard.encoded(self, max_length, by_drift)
            self._drift = Drift(self, drift)

    def _encoded(self, max_length: int) -> dict[str, Tensor]:
        """Return the rows of the instance as one batch."""
        rows = [
            encode_conversation(self.tokenizer, row, max_length=max_length) for row in self.instance
        ]
        # The last token predicts nothing, so it carries no gradient.
        tokens = sum(len(row.input_ids) - 1 for row in rows)
        if self.k > tokens:
            raise OneShotError(
                f"model.k={self.k} is more than the instance allows, which has gradient on "
                f"{tokens} tokens; lower it or give a longer instance."
            )
        batch = pad_training(rows, self.tokenizer.pad_token_id)
        return {key: value.to(self.device) for key, value in batch.items()}

    def _origin(self) -> str:
        """Return where the first rows of the instance come from."""
        more = f" and {len(self.instance) - 3} more" if len(self.instance) > 3 else ""
        return ", ".join(row.origin for row in self.instance[:3]) + more

    def steps(self) -> tuple[int, int]:
        """Return how many lambdas are done, and how many will be."""
        if not self._chooses_by_prompts:
            return int(bool(self.bounded.tried)), 1
        done = len({step.guard_lambda for step in self.choice.tried})
        # Nothing is better than the score 0.
        perfect = bool(self.choice.tried) and self.choice.best.score == 0
        return done, done if perfect else len(self.lambdas)

    def progress_text(self) -> str:
        """Return the best step so far."""
        return str(self.choice)

    def step(self) -> bool:
        """Find the step for one lambda; return whether it was the last."""
        start = time.monotonic()
        self.eval()
        number = self.steps()[0]
        try:
            if not self._directions:
                # A resumed job has a step in its adapter already.
                with self.model.disable_adapter():
                    self._directions = directions(
                        self, self._batch, self._guard_batch, self.lambdas, self.k, self.normalise
                    )
        except ValueError as error:
            raise OneShotError(
                f"no direction for the instance ({self._origin()}): {error}. No model was written."
            ) from error
        if self._chooses_by_prompts:
            return self._search_by_prompts(self._directions[number], self.lambdas[number])
        return self._search_by_drift(self._directions[number], start)

    def instance_refused(self) -> bool:
        """Whether the greedy answer to every prompt of the instance refuses."""
        prompts = list({row.prompt.messages: row.prompt for row in self.instance}.values())
        return all(is_refusal(answer) for answer in own_answers(self, self.model, prompts, 16))

    def _search_by_prompts(self, steps: dict[str, Triplets], guard_lambda: float) -> bool:
        """Try sizes for one lambda; return whether it was the last."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]

        def write(alpha: float) -> None:
            write_step(self.layers, steps, alpha)

        def measure() -> dict[str, float]:
            with torch.no_grad():
                return self.score_loaders(data.val_dataloader())

        self.choice.search(guard_lambda, write, measure, self._adapter())
        done, total = self.steps()
        return done >= total

    def _adapter(self) -> dict[str, Tensor]:
        return {n: p for n, p in self.model.named_parameters() if ".lora_" in n}

    def job_state(self) -> dict[str, Any]:
        """Return what the prompts have shown so far, and the best adapter."""
        return self.choice.as_dict() if self._chooses_by_prompts else {}

    def load_job_state(self, state: dict[str, Any]) -> None:
        """Go on after the last lambda that was searched."""
        self.choice.load(state)

    def _search_by_drift(self, steps: dict[str, Triplets], start: float) -> bool:
        def drift_at(alpha: float) -> float:
            write_step(self.layers, steps, alpha)
            return self._drift()

        def refused_at(alpha: float) -> bool:
            write_step(self.layers, steps, alpha)
            return self.instance_refused()

        step = self.bounded.search(drift_at, refused_at)
        write_step(self.layers, steps, step.alpha)
        rank_zero_info(
            f"{len(self.layers)} matrices, {self.bounded}, {time.monotonic() - start:.1f} s"
        )
        return True

    def finish(self, root: Path) -> None:
        """Take the best step, and write table and picture; the export writes the weights."""
        if self._chooses_by_prompts:
            self.choice.take(self._adapter())
            rank_zero_info(str(self.choice))
            best = self.choice.best
            if max(best.attack, best.refusal) > 0.05:
                rank_zero_warn("not repaired on the development prompts; try another instance.")
        if self.trainer.is_global_zero:
            (self.choice if self._chooses_by_prompts else self.bounded).write(root)
