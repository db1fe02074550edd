"""`SelectionModule`: the base of everything that ranks the candidates of a pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.datasets import TrainingDataset
from oneshot_lit.data.leakage import refuse_shared
from oneshot_lit.data.selection_file import rank_candidates, write_selection
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.refusal import is_refusal
from oneshot_lit.io.files import write_rows_atomically
from oneshot_lit.methods.job import Job
from oneshot_lit.methods.select.reference import Batch, batches_of
from oneshot_lit.models.gguf import gguf_facts

# More chosen rows are only counted.
_MOST_NAMED = 10


class SelectionModule(Job):
    """Rank the candidates that `data.train` gives; subclass it and implement `step`.

    The output of `oneshot-lit select` is ``<root>/selection.json``, which `SelectedInstance` reads.

    Args:
        m: How many instances to choose.
        require_refusals: Ask for a refusal phrase in every candidate's answer.
        rows_at_once: Candidates in one forward pass.
    """

    verb = "select"
    # The name of the table that shows the steps.
    progress_name = "selection"
    # Whether it trains with `model.optimizer`, steps `model.lr_scheduler`, and may run in several
    # processes.
    trains = schedules = several_processes = False

    def __init__(
        self,
        *args: Any,
        m: int = 1,
        require_refusals: bool = True,
        rows_at_once: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.model_config is not None:
            raise OneShotError("model.model_config: a selection needs a trained model.")
        for key, value in {"m": m, "rows_at_once": rows_at_once}.items():
            if value < 1:
                raise OneShotError(f"model.{key} must be at least 1, not {value}.")
        if self.lr_scheduler is not None and not self.schedules:
            raise OneShotError("model.lr_scheduler: this selection steps no scheduler; drop it.")
        self.m, self.require_refusals, self.rows_at_once = m, require_refusals, rows_at_once
        self.pool: list[Conversation] = []
        # Row of each candidate in its source, from 1.
        self.pool_rows: list[int] = []
        # The seed of all that a selection draws, equal in all processes.
        self.run_seed = 0

    # --------------------------------------------------------------- to implement

    def candidate_scores(self) -> list[float]:
        """Return a score for each candidate, higher is better; after the last step."""
        raise NotImplementedError

    def selection_facts(self) -> dict[str, Any]:
        """Return what else `selection.json` should say: settings and cost."""
        return {}

    def progress_rows(self) -> list[dict[str, Any]]:
        """Return what is known so far as the rows of ``<root>/<progress_name>.csv``."""
        return []

    # -------------------------------------------------------------------- the run

    def check(self) -> None:
        """Check the settings and the pool before any work is done."""
        if self.trainer.world_size > 1 and not self.several_processes:
            raise OneShotError("trainer.devices: this selection runs in one process; give 1.")
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.training is None or data.train is None:
            raise OneShotError("data.train: give the pool of candidates there, not an instance.")
        # Chosen as for the order of rows: the seed of the data, else that of the run.
        seed = torch.initial_seed() if data.seed is None else int(data.seed)
        self.run_seed = int(self.trainer.strategy.broadcast(seed))
        self.take_pool(data.training)
        for kind, sets in (("development", data.val_sets), ("held-out", data.test_sets)):
            for name, prompt_set in sets.items():
                refuse_shared(self.pool, prompt_set.source.load(), f"{kind} set {name}", "pool")

    def take_pool(self, training: TrainingDataset) -> None:
        """Take the candidates from the rows of `data.train`; refuse those that cannot be ranked."""
        self.pool = training.conversations
        self.pool_rows = list(range(1, len(self.pool) + 1))
        if left_out := training.left_out:
            # A candidate is identified by its row in the source.
            raise OneShotError(
                f"data.train: {left_out.first}. Remove the row: a pool leaves none out."
            )
        self._check_pool()

    def _check_pool(self) -> None:
        """Refuse a pool that is too small, has two equal rows, or a row without a refusal."""
        if len(self.pool) < self.m:
            raise OneShotError(
                f"data.train: the pool has {len(self.pool)} candidates, fewer than "
                f"model.m={self.m}; give more or lower it."
            )
        first: dict[object, Conversation] = {}
        for row in self.pool:
            twin = first.setdefault(row.messages, row)
            if twin is not row:
                raise OneShotError(
                    f"{row.origin}: the same candidate as {twin.origin}; leave one out."
                )
            if self.require_refusals and not is_refusal(row.response_text or ""):
                raise OneShotError(
                    f"{row.origin}: the candidate's answer has no refusal phrase; fix the row, or "
                    "set model.require_refusals to false."
                )

    def prepare(self) -> None:
        """Check the optimiser of a selection that trains."""
        configured: Any = self.configure_optimizers() if self.trains else None
        if isinstance(configured, dict) and "monitor" in configured["lr_scheduler"]:
            raise OneShotError(
                "model.lr_scheduler: a selection has no value to monitor; give another."
            )

    def batches(self, rows: list[Conversation]) -> list[Batch]:
        """Return right-padded batches of conversations, with their ``index``."""
        longest = self.trainer.datamodule.max_length  # type: ignore[attr-defined]
        encoded = [encode_conversation(self.tokenizer, row, max_length=longest) for row in rows]
        pad = self.tokenizer.pad_token_id
        return batches_of(encoded, pad, self.rows_at_once, torch.device(self.device))

    # ----------------------------------------------------------------- the output

    def write_progress(self, root: Path) -> None:
        """Write the table of what is known so far."""
        if rows := self.progress_rows():
            write_rows_atomically(root / f"{self.progress_name}.csv", rows)

    def finish(self, root: Path) -> None:
        """Write ``selection.json`` and the table."""
        ranking = rank_candidates(self.pool, self.candidate_scores(), self.pool_rows or None)
        if not self.trainer.is_global_zero:
            return
        facts = {
            "selector": f"{type(self).__module__}.{type(self).__qualname__}",
            "model": self.given_model,
            **gguf_facts(self.given_model),
            "seconds": round(self.seconds, 3),
            **self.selection_facts(),
        }
        target = write_selection(root, ranking, self.m, facts)
        self.write_progress(root)
        best = [str(each.id or f"row {each.row}") for each in ranking[: min(self.m, _MOST_NAMED)]]
        more = f" and {self.m - len(best)} more" if self.m > len(best) else ""
        chosen = ", ".join(best) + more
        rank_zero_info(f"chosen: {chosen}\nranking written to {target}")
