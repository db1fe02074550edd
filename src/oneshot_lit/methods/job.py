"""`Job`: work on a model without a trainer, on Lightning Fabric: `oneshot-lit select` and `edit`.

A job loads the model, takes its own steps, and writes one output. After a kill, the same command
resumes it from the state that the last step saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.fabric import Fabric, seed_everything
from lightning.pytorch.utilities import rank_zero_info

from oneshot_lit.data.datamodule import SafetyDataModule
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import file_written_whole, recover
from oneshot_lit.io.runs import resume_conflict
from oneshot_lit.methods.base import LanguageModelModule
from oneshot_lit.strategies.resumed_loops import own_random_state, set_random_state

STATE = Path("checkpoints") / "job.ckpt"
# The largest share of a job's time that saving its state may take.
_MOST = 0.2
# Steps done, steps in all if that is known, and a few words.
Progress = Callable[[int, int | None, str], None]


class JobTrainer(Fabric):
    """Where a job runs; has the parts of a trainer that modules and data need.

    Args:
        accelerator: cpu, gpu, auto ...
        devices: How many processes; the model is whole in each.
        num_nodes: How many machines.
        precision: 32-true, bf16-mixed, bf16-true or 64-true.
        strategy: ``auto`` or ``ddp``, also as the class that ``configs/strategy/ddp.yaml`` names.
        default_root_dir: Folder of the output.
        enable_progress_bar: Show how far the job is.
    """

    # A job changes its model, so loading must not treat the model as one that is only tested.
    state = SimpleNamespace(fn="fit")
    testing = predicting = False
    datamodule: SafetyDataModule | None = None
    lightning_module: Any = None

    def __init__(
        self,
        accelerator: str = "auto",
        devices: int | str | list[int] = "auto",
        num_nodes: int = 1,
        precision: str | int = "32-true",
        strategy: str | dict[str, Any] = "auto",
        default_root_dir: str = "runs/default",
        enable_progress_bar: bool = True,
    ) -> None:
        if str(precision) in ("16-mixed", "16", "16-true"):
            raise OneShotError(
                f"trainer.precision: {precision} loses the small gradients of one instance, which "
                "nothing scales in a job; give bf16-mixed or 32-true."
            )
        super().__init__(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,  # type: ignore[arg-type]
            strategy=_fabric_strategy(strategy),
        )
        self.precision = str(precision)
        self.default_root_dir = default_root_dir
        self.enable_progress_bar = enable_progress_bar

    def autocast(self) -> Any:
        """Return a context of the precision; no cast is kept, as weights change within it."""
        if self.precision != "bf16-mixed":
            return super().autocast()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)


def _fabric_strategy(strategy: str | dict[str, Any]) -> str:
    name = strategy if isinstance(strategy, str) else str(strategy.get("class_path", ""))
    last = name.rsplit(".", 1)[-1]
    if last in ("auto", "ddp", "DDPStrategy"):
        return "auto" if last == "auto" else "ddp"
    raise OneShotError(
        f"trainer.strategy: a job needs the whole model in each process, which {last} does not "
        "give; use one device or ddp."
    )


class Job(LanguageModelModule):
    """A module that takes its own steps, on `model.model_name_or_path` and the data module's rows.

    Subclasses implement `check`, `prepare`, `step` and `finish`; see `SelectionModule` and
    `LowRankRealignmentModule`.
    """

    # The command that runs it.
    verb = "edit"
    # Save the state after each step, whatever that costs; otherwise as often as it is worth.
    saves_each_step = False
    # What identifies the run; the command line sets it.
    run_record: dict[str, Any]
    seconds: float = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Its steps call `manual_backward`.
        self.automatic_optimization = False

    # --------------------------------------------------------------- to implement

    def check(self) -> None:
        """Refuse settings that cannot work, before the model is loaded."""

    def prepare(self) -> None:
        """Prepare the steps; the model is on its device, and a saved state is already loaded."""

    def step(self) -> bool:
        """Take one step; return whether it was the last."""
        raise NotImplementedError

    def steps(self) -> tuple[int, int | None]:
        """Return how many steps are done, and how many there are in all if that is known."""
        return 0, None

    def progress_text(self) -> str:
        """Return a few words on the last step."""
        return ""

    def write_progress(self, root: Path) -> None:
        """Write what is known so far; the first process calls it after each step."""

    def finish(self, root: Path) -> None:
        """Write the output; all processes call it together."""
        raise NotImplementedError

    def job_state(self) -> dict[str, Any]:
        """Return what a job that is started again needs of the steps so far: tensors and values.

        If there is nothing, no state is saved, and the job starts from its beginning.
        """
        return {}

    def load_job_state(self, state: dict[str, Any]) -> None:
        """Take up what `job_state` returned; called before `prepare`."""

    # -------------------------------------------------------------------- the run

    def setup(self, stage: str) -> None:
        """Refuse to be trained."""
        if stage == "fit":
            raise OneShotError(
                f"{type(self).__name__} is no training: run oneshot-lit {self.verb} in place of "
                "fit, with the same configs."
            )

    def run(
        self,
        trainer: JobTrainer,
        data: SafetyDataModule,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Do the whole job.

        Args:
            trainer: Where it runs.
            data: Gives the rows.
            seed: Of all that is drawn.
            progress: Is told of each step.

        Raises:
            OneShotError: for every mistake that the user can correct.
        """
        seed_everything(seed, workers=True, verbose=False)
        trainer.launch()
        trainer.lightning_module, trainer.datamodule = self, data
        self.trainer = trainer  # type: ignore[assignment]
        data.trainer = trainer  # type: ignore[assignment]
        data.setup("fit")
        root = Path(trainer.default_root_dir)
        self.check()
        self.configure_model()
        trainer.to_device(self)
        if trainer.precision.endswith("-true") and trainer.precision != "32-true":
            self.to({"64": torch.float64}.get(trainer.precision[:2], torch.bfloat16))
        start = time.monotonic()
        before = self.seconds
        # One process looks: the first may save before the last has come here.
        saved = self._saved(root) if trainer.is_global_zero else None
        saved = trainer.strategy.broadcast(saved)
        if saved is not None:
            before = float(saved["seconds"])
            self.load_job_state(saved["state"])
        self.prepare()
        if saved is not None:
            set_random_state(self.device, saved["rng"])
        self.seconds = before + time.monotonic() - start
        self._take_steps(root, progress or (lambda done, of, text: None))
        self.finish(root)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            (root / STATE).unlink(missing_ok=True)
            with suppress(OSError):
                (root / STATE).parent.rmdir()

    def _take_steps(self, root: Path, progress: Progress) -> None:
        worked, cost = time.monotonic(), 0.0
        done, total = self.steps()
        ended = total is not None and done >= total
        progress(done, total, "")
        while not ended:
            start = time.monotonic()
            with self.trainer.autocast():  # type: ignore[attr-defined]
                ended = self.step()
            self.seconds += time.monotonic() - start
            if self.trainer.is_global_zero:
                self.write_progress(root)
                if ended or self.saves_each_step or cost <= _MOST * (time.monotonic() - worked):
                    start = time.monotonic()
                    self._save(root)
                    worked = time.monotonic()
                    cost = worked - start
            progress(*self.steps(), self.progress_text())

    # ------------------------------------------------------------------ the state

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for a saved state to be of use: the config and the rows."""
        config = getattr(self, "run_record", {}).get("config", {})
        return {"config": config, "contents": self.contents()}

    def _save(self, root: Path) -> None:
        if not (state := self.job_state()):
            return
        content = {
            "identity": self._identity(),
            "seconds": self.seconds,
            "rng": own_random_state(self.device),
            "state": state,
        }
        with file_written_whole(root / STATE) as file:
            torch.save(content, file)

    def _saved(self, root: Path) -> dict[str, Any] | None:
        """Return the state of this job if it was interrupted; None otherwise."""
        recover(root / STATE)
        if not (root / STATE).is_file():
            return None
        saved: dict[str, Any] = torch.load(root / STATE, map_location="cpu", weights_only=True)
        before, now = saved["identity"], self._identity()
        why = resume_conflict(before["config"], now["config"])
        if why is None and before["contents"] != now["contents"]:
            why = "its rows have changed"
        if why is not None:
            rank_zero_info(f"an interrupted run is there, but {why}; starting anew.")
            return None
        rank_zero_info("going on where the interrupted run was.")
        return saved
