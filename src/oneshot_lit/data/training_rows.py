"""`TrainingRows`: the rows that a fit learns from, a second stream beside them, and their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader

from oneshot_lit.data.datasets import TrainingDataset
from oneshot_lit.data.instance import SafetyInstance
from oneshot_lit.data.limits import Limits
from oneshot_lit.data.position import EpochPosition, batches_let_through
from oneshot_lit.data.samplers import ResumableSampler
from oneshot_lit.data.side import SideSampler
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.data.transforms import RowTransform
from oneshot_lit.errors import OneShotError
from oneshot_lit.strategies.resumed_loops import correct_counts

# The name of the first stream where there is a second one.
_MAIN = "train"


class TrainingRows(LightningDataModule):
    """The part of `SafetyDataModule` that loads and orders training rows."""

    train: ConversationSource | None
    instance: SafetyInstance | None
    side: Mapping[str, ConversationSource]
    transforms: Sequence[RowTransform]
    training: TrainingDataset | None
    tokenizer: Any
    report: dict[str, dict[str, Any]]
    batch_size: int
    share_batch: bool
    max_length: int
    instance_repeats: int
    shuffle: bool
    seed: int | None
    _limits: Limits
    _epochs: EpochPosition
    _note: Any
    _loader: Any
    _world: Any
    _sides: dict[str, TrainingDataset]

    def _training_dataset(self) -> TrainingDataset:
        if (self.train is None) == (self.instance is None):
            given = "neither" if self.train is None else "both"
            raise OneShotError(f"data: {given} of train and instance given; fit needs exactly one.")
        if self.instance is not None:
            rows = [self.instance.load()] * self.instance_repeats
            dataset = TrainingDataset(
                rows, self.tokenizer, self._limits, transforms=self.transforms
            )
        else:
            assert self.train is not None
            skip = self.train.skips_bad_rows
            dataset = TrainingDataset(
                self.train.load(), self.tokenizer, self._limits, skip, self.transforms
            )
        pairs = zip(dataset.conversations, dataset.encoded, strict=True)
        shortened = [row for row, encoded in pairs if encoded.cut]
        if shortened and self.instance is not None:
            raise OneShotError(
                f"data.instance: longer than data.max_length={self.max_length}, and its end would "
                "not be learned; raise data.max_length or give a shorter one."
            )
        if shortened:
            rank_zero_warn(
                f"{len(shortened)} of {len(dataset)} training rows are cut to data.max_length="
                f"{self.max_length} tokens; the first is {shortened[0].origin}"
            )
        self._note("train", self.train, dataset)
        self.report["train"]["cut"] = len(shortened)
        return dataset

    def _side_datasets(self) -> dict[str, TrainingDataset]:
        """Return the rows of each second stream."""
        datasets = {}
        for name, source in self.side.items():
            rows, skip = source.load(), source.skips_bad_rows
            if name == _MAIN:
                raise OneShotError(f"data.side.{name}: is the first stream; choose another name.")
            datasets[name] = TrainingDataset(
                rows, self.tokenizer, self._limits, skip, self.transforms
            )
            self._note(f"side/{name}", source, datasets[name])
        return datasets

    def _position(self, batches: int) -> tuple[int, int]:
        """Return the epoch and the batches done in it, from the progress a checkpoint restored."""
        if self.trainer is None:
            return 0, 0
        loop: Any = self.trainer.fit_loop
        if getattr(loop, "is_resuming", False):
            # For modules from elsewhere; ours have done so already.
            state = loop.state_dict()
            correct_counts(self.trainer, state)
            loop.load_state_dict(state)
        total: Any = loop.epoch_loop.batch_progress.total
        per_epoch = batches_let_through(batches, self.trainer.limit_train_batches)
        return self._epochs.resume(int(total.processed), per_epoch, self._rows_of_all())

    def _rows_of_all(self) -> int:
        """Return how many different rows a batch has over all processes."""
        processes = 1 if self.instance is not None else self._world()[1]
        return self._batch_of_process() * processes

    def train_dataloader(self) -> DataLoader[dict[str, Any]] | CombinedLoader:
        """Return right-padded batches: ``input_ids``, ``attention_mask``, ``labels``, ``index``.

        With `side`, each batch has the batches of the other streams in ``side``, by name.
        """
        assert self.training is not None
        # Every process repeats the whole instance, so their number does not change the gradient.
        rank, world_size = self._world() if self.instance is None else (0, 1)
        share = -(-len(self.training) // world_size)
        batch_size = self._batch_of_process()
        per_epoch = -(-share // batch_size)
        epoch, batches = self._position(per_epoch)
        seed = self.seed if self.seed is not None else torch.initial_seed()
        sampler = ResumableSampler(
            len(self.training),
            shuffle=self.shuffle,
            seed=seed,
            start_epoch=epoch,
            skip=batches * batch_size,
            rank=rank,
            world_size=world_size,
        )
        main = self._loader(self.training, sampler, batch_size, generation=False)
        if not self._sides:
            return main  # type: ignore[no-any-return]
        rank, world_size = self._world()
        loaders = {_MAIN: main}
        for name, dataset in self._sides.items():
            beside = SideSampler(
                len(dataset),
                batches=per_epoch,
                batch_size=batch_size,
                shuffle=self.shuffle,
                seed=seed,
                start_epoch=epoch,
                skip=batches,
                rank=rank,
                world_size=world_size,
            )
            loaders[name] = self._loader(dataset, beside, batch_size, generation=False)
        return CombinedLoader(loaders, "min_size")

    def _side_into_batch(self, batch: Any, dataloader_idx: int) -> Any:
        """Put the batches of other streams into that of the first, as ``batch["side"]``."""
        if isinstance(batch, dict) and isinstance(batch.get(_MAIN), dict):
            side = {name: each for name, each in batch.items() if name != _MAIN}
            return {**batch[_MAIN], "side": side}
        return batch

    def _batch_of_process(self) -> int:
        """Return how many rows a batch of this process has."""
        world_size = self._world()[1]
        if not self.share_batch or self.instance is not None:
            return self.batch_size
        share = -(-self.batch_size // world_size)
        if share * world_size != self.batch_size:
            rank_zero_warn(
                f"data.batch_size {self.batch_size} does not divide by {world_size} processes: "
                f"each takes {share}, together {share * world_size}"
            )
        return share
