"""`UpperLevel`: what a good instance should restore, and what it should leave unchanged."""

from __future__ import annotations

from functools import partial
from typing import Any

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.leakage import refuse_shared
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.own_answers import with_own_answers
from oneshot_lit.methods.select.base import SelectionModule
from oneshot_lit.methods.select.reference import ReferenceRows, answer_logits
from oneshot_lit.models import loading


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
        self.aligned = aligned
        self.harmful, self.task = harmful, task
        self.task_weight = task_weight
        # The cost of the references: rows of forward passes, and prompts answered.
        self.reference_rows = self.answers = 0

    def further_rows(self) -> dict[str, list[Conversation]]:
        """Return the rows of the upper level."""
        sources = {"model.harmful": self.harmful, "model.task": self.task}
        return {key: source.load() for key, source in sources.items() if source is not None}

    def upper_terms(self) -> list[ReferenceRows]:
        """Return the terms of f; call it while the model is still the broken one.

        Raises:
            OneShotError: if an argument is missing, a prompt is also in the pool or in a test set,
                or the aligned model cannot be compared with this one.
        """
        for key in ("aligned", "harmful", "task"):
            if getattr(self, key) is None:
                raise OneShotError(f"model.{key}: is missing; the upper level needs it.")
        harmful, task = self.further_rows().values()
        refuse_shared(self.pool, harmful, "model.harmful", "pool")
        # The rows to keep must not be among those to learn.
        refuse_shared(self.pool, task, "model.task", "pool")
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        for name, prompt_set in data.test_sets.items():
            held_out = prompt_set.source.load()
            refuse_shared([*harmful, *task], held_out, f"test set {name}", "selection's own rows")
        terms = [
            self._reference(self._aligned_model(), [row.prompt for row in harmful]),
            self._reference(self.model, task, self.task_weight),
        ]
        self.reference_rows = sum(term.rows for term in terms)
        return terms

    def _aligned_model(self) -> Any:
        assert self.aligned is not None
        tokenizer = loading.load_tokenizer(self.aligned, self.trust_remote_code)
        model = loading.load_model(
            self.aligned,
            dtype=self.model_dtype,
            trust_remote_code=self.trust_remote_code,
            attn_implementation=self.attn_implementation,
        )
        sizes = [len(each.get_output_embeddings().weight) for each in (model, self.model)]
        if tokenizer.get_vocab() != self.tokenizer.get_vocab() or sizes[0] != sizes[1]:
            raise OneShotError(
                f"model.aligned: the vocabularies of {self.aligned} and {self.given_model} "
                f"differ; give the model that {self.given_model} was made of."
            )
        return model.to(self.device)

    def _reference(
        self, model: Any, rows: list[Conversation], weight: float = 1.0
    ) -> ReferenceRows:
        """Return rows with a model's distributions; it answers those without an answer itself."""
        training = model.training
        # Without dropout: a reference must not be random.
        model.eval()
        # In the precision of the steps, so that both distributions are rounded alike.
        with self.trainer.autocast():  # type: ignore[attr-defined]
            self.answers += sum(row.response_text is None for row in rows)
            batches = self.batches(with_own_answers(self, model, rows, self.rows_at_once))
            reference = ReferenceRows(batches, partial(answer_logits, model), weight)
        model.train(training)
        return reference
