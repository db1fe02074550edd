"""`UpperLevel`: what a good instance should restore, and what it should leave unchanged."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.leakage import refuse_shared
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.shipped import or_shipped
from oneshot_lit.methods.select.aligned import (
    answered_by,
    require_numbers,
    require_same_shapes,
    require_same_vocabulary,
)
from oneshot_lit.methods.select.base import SelectionModule
from oneshot_lit.methods.select.reference import Batch, ReferenceRows
from oneshot_lit.models import loading
from oneshot_lit.models.loss import labelled_logits


class UpperLevel(SelectionModule):
    """The part of a selection that has the upper objective.

    On harmful prompts the model should answer like the aligned model, on task rows like the broken
    one: ``f = E_harm KL(pi_theta0 || pi_theta) + task_weight E_task KL(pi_theta* || pi_theta)``
    (arXiv 2601.01887), each the mean over the answers' tokens, in nats.

    Args:
        aligned: Folder or hub name of the aligned model theta_0.
        harmful: A few harmful prompts of the development split; the upper level compares on the
            aligned model's own answers to them.
        task: A few rows of what to keep: the skill, and harmless prompts, because nothing else here
            would notice that they are refused. A row without an answer gets the broken model's own.
        task_weight: Factor of the second divergence; the paper gives none.
    """

    def __init__(
        self,
        *args: Any,
        aligned: str | None = None,
        harmful: ConversationSource | None = None,
        task: ConversationSource | None = None,
        task_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not task_weight > 0:
            raise OneShotError(f"model.task_weight must be above 0, not {task_weight}.")
        self.aligned = aligned and or_shipped(aligned)
        self.harmful, self.task = harmful, task
        self.task_weight = task_weight
        # The cost of the references: rows of forward passes, and prompts answered.
        self.reference_rows = self.answers = 0

    def upper_terms(self) -> list[ReferenceRows]:
        """Return the terms of f; call it while the model is still the broken one.

        Raises:
            OneShotError: if an argument is missing, a prompt is also in the pool or in a test set,
                or the aligned model cannot be compared with this one.
        """
        for key in ("aligned", "harmful", "task"):
            if getattr(self, key) is None:
                raise OneShotError(f"model.{key}: is missing; the upper level needs it.")
        assert self.harmful is not None
        assert self.task is not None
        harmful, task = self.harmful.load(), self.task.load()
        self._refuse_shared(harmful, task)
        # Without dropout: a reference must not be random.
        training = self.model.training
        self.model.eval()
        model = partial(self._plain_logits, self.model)
        # In the precision of the steps, so that both distributions are rounded alike.
        with self.trainer.autocast():  # type: ignore[attr-defined]
            task = self._answered(self.model, task)
            kept = ReferenceRows(self.batches(task), model, self.task_weight)
        self.model.train(training)
        terms = [self._aligned_reference(harmful), kept]
        self.reference_rows = sum(len(b["input_ids"]) for term in terms for b in term.batches)
        return terms

    def further_rows(self) -> dict[str, list[Conversation]]:
        """Return the rows of the upper level."""
        sources = {"model.harmful": self.harmful, "model.task": self.task}
        return {key: source.load() for key, source in sources.items() if source is not None}

    def _refuse_shared(self, harmful: list[Conversation], task: list[Conversation]) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        refuse_shared(self.pool, harmful, "model.harmful", "pool")
        # The rows to keep must not be among those to learn.
        refuse_shared(self.pool, task, "model.task", "pool")
        for name, prompt_set in data.test_sets.items():
            held_out = prompt_set.source.load()
            refuse_shared([*harmful, *task], held_out, f"test set {name}", "selection's own rows")

    def _aligned_reference(self, prompts: list[Conversation]) -> ReferenceRows:
        assert self.aligned is not None
        names = (self.aligned, str(self.model_name_or_path))
        tokenizer = loading.load_tokenizer(self.aligned, self.trust_remote_code)
        require_same_vocabulary(tokenizer, self.tokenizer, names)
        aligned = loading.load_model(
            self.aligned,
            dtype=self.model_dtype,
            trust_remote_code=self.trust_remote_code,
            attn_implementation=self.attn_implementation,
        )
        require_same_shapes(aligned, self.model, names)
        require_numbers(aligned, "model.aligned", self.aligned)
        aligned = aligned.to(self.device).eval()
        with self.trainer.autocast():  # type: ignore[attr-defined]
            rows = self._answered(aligned, [prompt.prompt for prompt in prompts])
            return ReferenceRows(self.batches(rows), partial(self._plain_logits, aligned))

    def _answered(self, model: Any, rows: list[Conversation]) -> list[Conversation]:
        """Return the rows; those without an answer get the model's own."""
        silent = [row.prompt for row in rows if row.response_text is None]
        self.answers += len(silent)
        answers = iter(
            answered_by(
                model,
                self.tokenizer,
                silent,
                stop_ids=self.stop_ids,
                decoding=self.decoding,
                rows_at_once=self.rows_at_once,
                device=torch.device(self.device),
            )
        )
        return [next(answers) if row.response_text is None else row for row in rows]

    @staticmethod
    def _plain_logits(model: Any, batch: Batch) -> Tensor:
        output = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        )
        return labelled_logits(output.logits, batch["labels"])
