"""`SelectionModule`: the base of everything that ranks the candidates of a pool."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.leakage import refuse_shared
from oneshot_lit.data.selection_file import rank_candidates, write_selection
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.runs import SELECTION_FILE
from oneshot_lit.methods.base import LanguageModelModule
from oneshot_lit.methods.counting_optimizer import CountingOptimizer
from oneshot_lit.methods.select.aligned import require_numbers
from oneshot_lit.methods.select.pool import check_pool
from oneshot_lit.methods.select.reference import Batch, batches_of
from oneshot_lit.strategies.fsdp2 import require_whole_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SelectionModule(LanguageModelModule):
    """Rank the candidates that `data.train` gives; subclass it and implement `select_step`.

    The product of `fit` is ``<root>/selection.json``, which `SelectedInstance` reads. One epoch is
    one step of the selection; the batch of the data loader itself is not used.

    Args:
        m: How many instances to choose.
        require_refusals: Ask for a refusal phrase in every candidate's answer.
        rows_at_once: Candidates in one forward pass.
    """

    product = SELECTION_FILE
    # What `SelectionProgress` calls its table and its picture.
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
        self.automatic_optimization = False
        self.strict_loading = False
        self.pool: list[Conversation] = []
        self.seconds = 0.0
        # Of what a selection draws, equal in all processes.
        self.run_seed = 0
        # Epochs of the interrupted run, and whether that is all that `trainer.max_epochs` allows.
        self._epochs_before = 0
        self._over = False

    # --------------------------------------------------------------- to implement

    def prepare_selection(self) -> None:
        """Make what the steps need; called once, with the model on its device."""

    def select_step(self) -> bool:
        """Take one step; return whether the selection has ended."""
        raise NotImplementedError

    def steps_left(self) -> int | None:
        """Return how many steps there are to come, or None if that is not known.

        A selection that says 0 takes none, which is so for one that was killed behind its last.
        """
        return None

    def candidate_scores(self) -> list[float]:
        """Return a score for each candidate, higher is better; after the last step."""
        raise NotImplementedError

    def selection_facts(self) -> dict[str, Any]:
        """Return what else `selection.json` should say: settings and cost."""
        return {}

    def several_processes(self) -> bool:
        """Whether the selection may run in several processes."""
        return False

    def selection_state(self) -> dict[str, Any]:
        """Return what a resumed run needs of the steps so far, as plain tensors and values."""
        return {}

    def load_selection_state(self, state: dict[str, Any]) -> None:
        """Take up what `selection_state` returned; called before `prepare_selection`."""

    def progress_rows(self) -> list[dict[str, Any]]:
        """Return what is known so far as the rows of a table, for `SelectionProgress`."""
        return []

    def progress_figure(self) -> Figure | None:
        """Return a picture of the ended selection, if it has one."""
        return None

    # -------------------------------------------------------------------- the run

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return an optimiser without state, which counts the steps."""
        return CountingOptimizer([p for p in self.parameters() if p.requires_grad])

    def on_fit_start(self) -> None:
        """Check the settings and the pool before any work is done."""
        require_whole_weights(self.trainer, "the selection")
        if self.trainer.world_size > 1 and not self.several_processes():
            raise OneShotError("trainer.devices: a selection runs in one process; give 1.")
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.training is None or data.train is None:
            raise OneShotError("data.train: give the pool of candidates there, not an instance.")
        self._check_training()
        # As the order of rows: the run's own seed unless the data have one.
        seed = torch.initial_seed() if data.seed is None else int(data.seed)
        self.run_seed = int(self.trainer.strategy.broadcast(seed))
        self.pool = data.training.conversations
        if left_out := data.training.left_out:
            # Each candidate is known by its row in the source.
            raise OneShotError(f"data.train: {left_out[0]} Remove the row: a pool leaves none out.")
        check_pool(self.pool, self.m, refusals=self.require_refusals)
        require_numbers(self.model, "model.model_name_or_path", str(self.model_name_or_path))
        for kind, sets in (("development", data.val_sets), ("held-out", data.test_sets)):
            for name, prompt_set in sets.items():
                refuse_shared(self.pool, prompt_set.source.load(), f"{kind} set {name}", "pool")
        # A step of the selection is over all candidates.
        self.trainer.limit_train_batches = 1
        self._run_if_over()

    def _run_if_over(self) -> None:
        """Let a resumed run begin even with no epoch left, for its product takes preparation."""
        loop = self.trainer.fit_loop
        most = -1 if loop.max_epochs is None else loop.max_epochs
        self._over = 0 <= most <= self._epochs_before
        if self._over:
            loop.max_epochs = self._epochs_before + 1

    def _check_training(self) -> None:
        if str(self.trainer.precision) == "16-mixed":
            # Its steps are its own, and nothing scales their losses.
            raise OneShotError(
                "trainer.precision: 16-mixed loses a selection's small gradients; give bf16-mixed "
                "or 32-true."
            )
        if self.trains:
            # The trainer's own optimiser only counts: the real one is checked here.
            found: Any = super().configure_optimizers()
            schedule = found["lr_scheduler"]["scheduler"] if isinstance(found, dict) else None
            if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
                raise OneShotError(
                    "model.lr_scheduler: ReduceLROnPlateau has nothing to watch in a patch; give "
                    "another."
                )

    def on_train_start(self) -> None:
        """Prepare with the model in its place."""
        start = time.monotonic()
        self.prepare_selection()
        self.seconds += time.monotonic() - start
        if (left := self.steps_left()) is not None:
            # So that the progress bar says how far it is, not how far it might be.
            loop = self.trainer.fit_loop
            last = self.trainer.current_epoch + max(1, left)
            given = loop.max_epochs
            loop.max_epochs = last if given in (None, -1) else min(last, given)
        # Behind it: the next random number is a step's, as in a run that was never interrupted.
        super().on_train_start()

    def training_step(  # type: ignore[override]
        self, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Take one step of the selection, unless it was interrupted behind its last one."""
        if self._over or self.steps_left() == 0:
            self.trainer.should_stop = True
            return
        start = time.monotonic()
        ended = self.select_step()
        self.seconds += time.monotonic() - start
        # Counts the step for checkpoints and loggers.
        self.optimizers().step()  # type: ignore[union-attr]
        if ended:
            self.trainer.should_stop = True

    def pool_batches(self) -> list[Batch]:
        """Return right-padded batches of all candidates, with their ``index``."""
        return self.batches(self.pool)

    def batches(self, rows: list[Conversation]) -> list[Batch]:
        """Return right-padded batches of conversations, with their ``index``."""
        longest = self.trainer.datamodule.max_length  # type: ignore[attr-defined]
        encoded = [encode_conversation(self.tokenizer, row, max_length=longest) for row in rows]
        pad = self.tokenizer.pad_token_id
        return batches_of(encoded, pad, self.rows_at_once, torch.device(self.device))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the steps so far, and no weights: a resumed run starts from the broken model too.

        What is compared with are its answers, and its weights are what a candidate patches.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"] = {}
        checkpoint["selection"] = {"seconds": self.seconds, **self.selection_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on after the last whole step."""
        super().on_load_checkpoint({k: v for k, v in checkpoint.items() if k != "state_dict"})
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        self._epochs_before = int(progress["current"]["processed"])
        state = checkpoint.get("selection")
        if state is not None:
            self.seconds = state["seconds"]
            self.load_selection_state(state)

    def write_product(self, root: Path) -> None:
        """Write ``selection.json`` from the first process; all call this together."""
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
        chosen = ", ".join(str(each.id or f"row {each.row}") for each in ranking[: self.m])
        rank_zero_info(f"chosen: {chosen}\nranking written to {target}")
