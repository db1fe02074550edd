"""`InstanceSelectionModule`: choose the safety instance by bilevel optimisation."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from oneshot_lit.data.conversation import Conversation
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError
from oneshot_lit.modules import loading
from oneshot_lit.modules.selection_base import SelectionModule
from oneshot_lit.selection.aligned import (
    answered_by,
    require_same_shapes,
    require_same_vocabulary,
)
from oneshot_lit.selection.copies import OMEGA, SharedBase, TwoCopies, WholeModels
from oneshot_lit.selection.penalty import (
    PenaltyRecord,
    PenaltySettings,
    entropy,
    outer_step,
    top_m,
)
from oneshot_lit.selection.reference import Batch, ReferenceRows, labelled_logits


class InstanceSelectionModule(SelectionModule):
    """Choose instances by the first-order penalty form of the bilevel problem.

    Lower level: a copy of the broken model, trained on the weighted candidates. Upper level: on
    harmful prompts it shall answer as the aligned model does, on task rows as the broken one
    (arXiv 2601.01887). The paper does not give its algorithm; ours is V-PBGD (Shen & Chen 2023),
    see `oneshot_lit.selection.penalty`. The candidates' weights start equal; those with the largest
    at the end are the choice.

    Args:
        aligned: Folder or hub name of the aligned model theta_0.
        harmful: A few harmful prompts of the development split; the aligned model's own answers are
            what the upper level compares on.
        task: A few rows of the skill to keep; one without an answer gets the broken model's own.
        penalty: Steps and step sizes.
    """

    def __init__(
        self,
        *args: Any,
        aligned: str | None = None,
        harmful: ConversationSource | None = None,
        task: ConversationSource | None = None,
        penalty: PenaltySettings | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        for key, value in (("aligned", aligned), ("harmful", harmful), ("task", task)):
            if value is None:
                raise OneShotError(f"model.{key}: is missing; the upper level needs it.")
        self.aligned, self.harmful, self.task = aligned, harmful, task
        self.penalty = penalty or PenaltySettings()
        self.records: list[PenaltyRecord] = []
        self.diverged: str | None = None
        self._logits = torch.zeros(0, dtype=torch.float64)
        self._problem: TwoCopies | None = None
        self._good: dict[str, Any] = {}
        self._resumed: dict[str, Any] | None = None

    # ---------------------------------------------------------------- preparation

    def prepare_selection(self) -> None:
        """Load the aligned model for as long as its distributions take; make the two copies."""
        assert self.harmful is not None
        assert self.task is not None
        harmful, task = self.harmful.load(), self.task.load()
        self._refuse_shared(harmful, task)
        # Before there are copies: the model is the broken one still.
        task = self._answered(self.model, task)
        kept = ReferenceRows(self.batches(task), partial(self._plain_logits, self.model))
        copies = self._copies()
        upper = [self._aligned_reference(harmful), kept]
        self._problem = TwoCopies(copies, self.pool_batches(), upper, self.optimizer)
        self._logits = torch.zeros(len(self.pool), dtype=torch.float64)
        if self._resumed is not None:
            self._logits = self._resumed["logits"]
            self._problem.restore(self._resumed["copies"])
        self._keep_good()

    def _refuse_shared(self, harmful: list[Conversation], task: list[Conversation]) -> None:
        from oneshot_lit.data.leakage import refuse_shared

        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        refuse_shared(self.pool, harmful, "model.harmful", "pool")
        for name, prompt_set in data.test_sets.items():
            held_out = prompt_set.source.load()
            refuse_shared([*harmful, *task], held_out, f"test set {name}", "selection's own rows")

    def _copies(self) -> SharedBase | WholeModels:
        if self.peft is None:
            return WholeModels(self.model)
        name = self.model.active_adapter
        self.model.add_adapter(OMEGA, self.model.peft_config[name])
        self.model.to(self.device)
        return SharedBase(self.model, (name, OMEGA))

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
        broken = self.model if self.peft is None else self.model.get_base_model()
        if self.peft is None:
            require_same_shapes(aligned, broken, names)
        aligned = aligned.to(self.device).eval()
        rows = self._answered(aligned, [prompt.prompt for prompt in prompts])
        return ReferenceRows(self.batches(rows), partial(self._plain_logits, aligned))

    def _answered(self, model: Any, rows: list[Conversation]) -> list[Conversation]:
        """Return the rows, each that has no answer with the model's own."""
        silent = [row.prompt for row in rows if row.response_text is None]
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

    # ---------------------------------------------------------------------- steps

    def select_step(self) -> bool:
        """Take one outer step; one that is not finite is taken back and ends the selection."""
        assert self._problem is not None
        step = len(self.records)
        try:
            self._logits, record = outer_step(self._problem, self._logits, step, self.penalty)
        except FloatingPointError as error:
            self._problem.restore(self._good["copies"])
            self._logits = self._good["logits"].clone()
            self.diverged = f"{error}; restored to step {step - 1}"
            rank_zero_warn(
                f"the selection diverges: {self.diverged}. Lower model.optimizer.lr or "
                "model.penalty.rate."
            )
            if not self.records:
                raise OneShotError(
                    f"model.optimizer.lr: the selection diverges at its first step ({error}); "
                    "lower it."
                ) from error
            return True
        self.records.append(record)
        self._keep_good()
        named = ("gamma", "f", "g", "v", "gap", "entropy")
        self.log_dict({f"select/{key}": float(getattr(record, key)) for key in named})
        self.log("select/weight", record.weight, prog_bar=True)
        return len(self.records) >= self.penalty.steps

    def _keep_good(self) -> None:
        assert self._problem is not None
        self._good = {"copies": self._problem.state(), "logits": self._logits.clone()}

    def candidate_scores(self) -> list[float]:
        """Return the candidates' weights; they add up to 1."""
        return [float(w) for w in torch.softmax(self._logits, 0)]

    def selection_facts(self) -> dict[str, Any]:
        """Return settings, cost and the last step."""
        assert self._problem is not None
        weights = torch.softmax(self._logits, 0)
        return {
            "aligned": self.aligned,
            "penalty": asdict(self.penalty),
            "steps": len(self.records),
            "diverged": self.diverged,
            "entropy": entropy(weights),
            "chosen_rows": [i + 1 for i in top_m(weights, self.m)],
            "last": asdict(self.records[-1]) if self.records else None,
            "forward_rows": self._problem.forwards,
            "backward_rows": self._problem.backwards,
        }

    def table(self) -> str:
        """Return what each step saw as CSV."""
        text = io.StringIO()
        fields = list(PenaltyRecord.__dataclass_fields__)
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(record) for record in self.records)
        return text.getvalue()

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep both copies, the weights of the candidates and what was seen."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["selection"] = {
            "records": [asdict(record) for record in self.records],
            "seconds": self.seconds,
            "diverged": self.diverged,
            **self._good,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on after the last whole step."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("selection")
        if state is not None:
            self.records = [PenaltyRecord(**record) for record in state["records"]]
            self.seconds, self.diverged = state["seconds"], state["diverged"]
            self._resumed = state
