"""`SelectionModule`: the base of everything that ranks the candidates of a pool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.leakage import refuse_shared
from oneshot_lit.data.selection_file import rank_candidates, write_selection
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_rows_atomically
from oneshot_lit.methods.job import Job
from oneshot_lit.methods.select.aligned import require_numbers
from oneshot_lit.methods.select.pool import check_pool
from oneshot_lit.methods.select.reference import Batch, batches_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SelectionModule(Job):
    """Rank the candidates that `data.train` gives; subclass it and implement `step`.

    The output of `oneshot-lit select` is ``<root>/selection.json``, which `SelectedInstance` reads.

    Args:
        m: How many instances to choose.
        require_refusals: Ask for a refusal phrase in every candidate's answer.
        rows_at_once: Candidates in one forward pass.
    """

    verb = "select"
    # The name of the table and of the picture that show the steps.
    progress_name = "selection"
    # Whether it trains with `model.optimizer`, and whether it steps `model.lr_scheduler`.
    trains = schedules = False

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
        if rows_at_once < 1:
            raise OneShotError(f"model.rows_at_once must be at least 1, not {rows_at_once}.")
        if self.lr_scheduler is not None and not self.schedules:
            raise OneShotError("model.lr_scheduler: this selection steps no scheduler; drop it.")
        self.m, self.require_refusals, self.rows_at_once = m, require_refusals, rows_at_once
        self.pool: list[Conversation] = []
        # The seed of all that a selection draws, equal in all processes.
        self.run_seed = 0

    # --------------------------------------------------------------- to implement

    def candidate_scores(self) -> list[float]:
        """Return a score for each candidate, higher is better; after the last step."""
        raise NotImplementedError

    def selection_facts(self) -> dict[str, Any]:
        """Return what else `selection.json` should say: settings and cost."""
        return {}

    def several_processes(self) -> bool:
        """Whether the selection may run in several processes."""
        return False

    def progress_rows(self) -> list[dict[str, Any]]:
        """Return what is known so far as the rows of ``<root>/<progress_name>.csv``."""
        return []

    def progress_figure(self) -> Figure | None:
        """Return a picture of the ended selection, if it has one."""
        return None

    # -------------------------------------------------------------------- the run

    def check(self) -> None:
        """Check the settings and the pool before any work is done."""
        if self.trainer.world_size > 1 and not self.several_processes():
            raise OneShotError("trainer.devices: this selection runs in one process; give 1.")
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.training is None or data.train is None:
            raise OneShotError("data.train: give the pool of candidates there, not an instance.")
        # Chosen as for the order of rows: the seed of the data, else that of the run.
        seed = torch.initial_seed() if data.seed is None else int(data.seed)
        self.run_seed = int(self.trainer.strategy.broadcast(seed))
        self.pool = data.training.conversations
        if left_out := data.training.left_out:
            # A candidate is identified by its row in the source.
            raise OneShotError(
                f"data.train: {left_out.first}. Remove the row: a pool leaves none out."
            )
        check_pool(self.pool, self.m, refusals=self.require_refusals)
        for kind, sets in (("development", data.val_sets), ("held-out", data.test_sets)):
            for name, prompt_set in sets.items():
                refuse_shared(self.pool, prompt_set.source.load(), f"{kind} set {name}", "pool")

    def prepare(self) -> None:
        """Check the model, and the optimiser of a selection that trains."""
        require_numbers(self.model, "model.model_name_or_path", str(self.model_name_or_path))
        if self.trains:
            configured: Any = self.configure_optimizers()
            scheduler = (
                configured["lr_scheduler"]["scheduler"] if isinstance(configured, dict) else None
            )
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                raise OneShotError(
                    "model.lr_scheduler: ReduceLROnPlateau has nothing to watch in a patch; give "
                    "another."
                )

    def pool_batches(self) -> list[Batch]:
        """Return right-padded batches of all candidates, with their ``index``."""
        return self.batches(self.pool)

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
        """Write ``selection.json`` and the picture."""
        ranking = rank_candidates(self.pool, self.candidate_scores())
        if not self.trainer.is_global_zero:
            return
        facts = {
            "selector": f"{type(self).__module__}.{type(self).__qualname__}",
            "model": self.model_name_or_path,
            "seconds": round(self.seconds, 3),
            **self.selection_facts(),
        }
        target = write_selection(root, ranking, self.m, facts)
        self.write_progress(root)
        if (figure := self.progress_figure()) is not None:
            from oneshot_lit.plots import save_figure

            save_figure(figure, root / f"{self.progress_name}.png")
        chosen = ", ".join(str(each.id or f"row {each.row}") for each in ranking[: self.m])
        rank_zero_info(f"chosen: {chosen}\nranking written to {target}")
