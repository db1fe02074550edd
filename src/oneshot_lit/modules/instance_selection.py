"""`InstanceSelectionModule`: choose the safety instance by bilevel optimisation."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from oneshot_lit.errors import OneShotError
from oneshot_lit.modules.upper_level import UpperLevel
from oneshot_lit.selection.copies import OMEGA, SharedBase, TwoCopies, WholeModels
from oneshot_lit.selection.penalty import (
    PenaltyRecord,
    PenaltySettings,
    entropy,
    outer_step,
    top_m,
)


class InstanceSelectionModule(UpperLevel):
    """Choose instances by the first-order penalty form of the bilevel problem.

    Lower level: a copy of the broken model, trained on the weighted candidates. Upper level: on
    harmful prompts it shall answer as the aligned model does, on task rows as the broken one
    (arXiv 2601.01887). The paper does not give its algorithm; ours is V-PBGD (Shen & Chen 2023),
    see `oneshot_lit.selection.penalty`. The candidates' weights start equal; those with the largest
    at the end are the choice.

    Args:
        penalty: Steps and step sizes.
    """

    def __init__(
        self,
        *args: Any,
        penalty: PenaltySettings | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
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
        upper = self.upper_terms()
        copies = self._copies()
        self._problem = TwoCopies(copies, self.pool_batches(), upper, self.optimizer)
        self._logits = torch.zeros(len(self.pool), dtype=torch.float64)
        if self._resumed is not None:
            self._logits = self._resumed["logits"]
            self._problem.restore(self._resumed["copies"])
        self._keep_good()

    def _copies(self) -> SharedBase | WholeModels:
        if self.peft is None:
            return WholeModels(self.model)
        name = self.model.active_adapter
        self.model.add_adapter(OMEGA, self.model.peft_config[name])
        self.model.to(self.device)
        return SharedBase(self.model, (name, OMEGA))

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
