"""`QuadrupleData`: batches of quadruples, in the order of a curriculum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from oneshot_lit.data.resuming import ResumableDataModule
from oneshot_lit.data.samplers import ResumableDataLoader, ResumableSampler
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.safer_clip.quadruples import QuadrupleRows, QuadrupleSource


class CurriculumSampler(ResumableSampler):
    """Rows of the first level in the first epoch, of the first two in the second, and so on.

    Args:
        levels: The rows of each level, easy ones first.
        more: Further arguments of `ResumableSampler`.
    """

    def __init__(self, levels: Sequence[Sequence[int]], **more: Any) -> None:
        super().__init__(sum(map(len, levels)), **more)
        self.levels = levels

    def rows_of(self, epoch: int) -> list[int]:
        """Return the rows of an epoch, counted from 0, in their order of difficulty."""
        return [row for level in self.levels[: epoch + 1] for row in level]

    def one_pass(self, number: int) -> list[int]:
        """Return the order of the rows of an epoch."""
        rows = self.rows_of(number)
        if not self.shuffle:
            return rows
        places = [place for place in super().one_pass(number) if place < len(rows)]
        return [rows[place] for place in places]

    def __len__(self) -> int:
        # The whole epoch: Lightning counts the batches already done itself.
        return len(self.rows_of(self.epoch))


class QuadrupleData(ResumableDataModule):
    """Quadruples to train on, and others to measure with.

    Args:
        train: Quadruples to train on.
        heldout: Quadruples to measure with; none are measured if not given.
        batch_size: Rows a batch.
        curriculum: Learn the easiest third in the first epoch, two thirds in the second, all from
            the third on. Otherwise all at once.
        shuffle: Shuffle the rows of each epoch.
        num_workers: Processes that read the images.
        seed: Decides the order of rows; the run's `seed_everything` when not given.
    """

    def __init__(
        self,
        train: QuadrupleSource,
        heldout: QuadrupleSource | None = None,
        batch_size: int = 48,
        curriculum: bool = True,
        shuffle: bool = True,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise OneShotError(f"data.batch_size must be at least 1, not {batch_size}.")
        self.train, self.heldout, self.batch_size = train, heldout, batch_size
        self.curriculum, self.shuffle = curriculum, shuffle
        self.num_workers, self.seed = num_workers, seed
        self.training: QuadrupleRows
        self.measuring: QuadrupleRows | None = None
        self.levels: list[list[int]] = []
        self.report: dict[str, dict[str, Any]] = {}

    def setup(self, stage: str) -> None:
        """Read the rows; the module knows the tokenizer and the size of the images."""
        if stage != "fit":
            raise OneShotError(f"{stage}: a CLIP model is measured in its fit (data.heldout).")
        module: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        self.training = module.encoded(self.train.load())
        self.measuring = None if self.heldout is None else module.encoded(self.heldout.load())
        self.levels = [list(range(len(self.training)))]
        for name, rows in (("train", self.training), ("heldout", self.measuring)):
            if rows is not None:
                self.report[name] = {"rows": len(rows), "digest": rows.digest()}
        # Epochs of a curriculum have different lengths, which Lightning asks for only then.
        self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[union-attr]

    def contents(self) -> dict[str, list[Any]]:
        """Return what a resumed run must find unchanged: how many rows, and their digest."""
        return {f"data.{name}": list(facts.values()) for name, facts in self.report.items()}

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the batches of the present epoch, from where an interrupted run was."""
        sampler = CurriculumSampler(
            self.levels,
            shuffle=self.shuffle,
            seed=self.seed if self.seed is not None else torch.initial_seed(),
        )
        sampler.start_epoch, done = self._place(sampler)
        sampler.epoch, sampler.skip = sampler.start_epoch, done * self.batch_size
        return self.batches(self.training, sampler)

    def _place(self, sampler: CurriculumSampler) -> tuple[int, int]:
        """Return the epoch and the batches done in it, from the progress of the run."""
        trainer: Any = self.trainer
        limit, epoch = trainer.limit_train_batches, 0
        done = int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)
        while True:
            batches = -(-len(sampler.rows_of(epoch)) // self.batch_size)
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
            if done < max(1, batches):
                return epoch, done
            done -= max(1, batches)
            epoch += 1

    def batches(self, rows: QuadrupleRows, sampler: Any = None) -> DataLoader[dict[str, Any]]:
        """Return batches of rows: in the order of a sampler, else in their own."""
        return ResumableDataLoader(
            rows,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            # A separate generator: a draw from the global one would shift dropout after a resume.
            generator=torch.Generator().manual_seed(0),
        )
