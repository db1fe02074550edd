"""`ResumableDataModule`: batches that go on exactly where an interrupted run was."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from oneshot_lit.data.datasets import Collate, EncodedRows
from oneshot_lit.data.samplers import ResumableDataLoader
from oneshot_lit.errors import OneShotError
from oneshot_lit.strategies.resumed_loops import correct_counts


class ResumableDataModule(LightningDataModule):
    """The part of `SafetyDataModule` that knows the processes and the place in an epoch."""

    num_workers: int

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer: Any = None
        # How the run divides its epochs: batches of each, and different rows in a batch.
        self._division: list[int] | None = None
        # The same of the run that is resumed.
        self._resumed: list[int] | None = None

    def world(self) -> tuple[int, int]:
        """Return the rank of this process and the number of processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def state_dict(self) -> dict[str, Any]:
        """Return how epochs are divided into batches; a checkpoint's position depends on it."""
        return {"division": self._division}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember how the interrupted run divided its epochs."""
        self._resumed = state_dict.get("division")

    def position(self, batches: int, rows: int) -> tuple[int, int]:
        """Return the epoch and the batches done in it, from the progress a checkpoint restored.

        Args:
            batches: Batches of an epoch.
            rows: Different rows in a batch, over all processes.

        Raises:
            OneShotError: if the interrupted run divided its epochs into other batches.
        """
        if self.trainer is None:
            return 0, 0
        loop: Any = self.trainer.fit_loop
        if getattr(loop, "is_resuming", False):
            # For modules from elsewhere; ours have done so already.
            state = loop.state_dict()
            correct_counts(self.trainer, state)
            loop.load_state_dict(state)
        limit = self.trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
        before, self._division = self._resumed, [batches, rows]
        if before is not None and before != self._division:
            raise OneShotError(
                f"--ckpt_path: the checkpoint is of epochs of {before[0]} batches with {before[1]} "
                f"rows each, and now there are {batches} with {rows}; resume with the same number "
                "of processes (trainer.devices), or set data.share_batch from the start."
            )
        return divmod(int(loop.epoch_loop.batch_progress.total.processed), batches)

    def loader(
        self, dataset: EncodedRows, sampler: Any, batch_size: int, generation: bool
    ) -> DataLoader[dict[str, Any]]:
        """Return a loader of padded batches, for training or for generation."""
        return ResumableDataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=Collate(self.tokenizer.pad_token_id, generation),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # A separate generator: a draw from the global one would shift dropout after a resume.
            generator=torch.Generator().manual_seed(0),
        )
