"""Samplers that resume in the middle of an epoch and divide their rows among the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler


def padding_row(row: int) -> int:
    """Return the negative number of a row that is computed on but neither learned nor scored.

    All processes of a run must take part in each batch, and rows do not always divide evenly. The
    same function turns a negative number back into its row.
    """
    return -1 - row


class ResumableSampler(Sampler[int]):
    """Order of rows for an epoch, a pure function of (seed, epoch), optionally from the middle.

    Args:
        size: Number of rows.
        shuffle: Draw a new permutation each epoch; otherwise keep the rows' order.
        seed: Decides every permutation.
        start_epoch: The epoch that a resumed run continues.
        skip: Rows of this process already consumed in `start_epoch`.
        rank: This process among `world_size`; every process gets as many rows as the others, the
            last ones a `padding_row` where they do not divide evenly.
        world_size: Number of processes that share the rows.
    """

    # Keeps the orders of one stream of rows different from those of another.
    offset = 0

    def __init__(
        self,
        size: int,
        shuffle: bool = True,
        seed: int = 0,
        start_epoch: int = 0,
        skip: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size, self.shuffle, self.seed = size, shuffle, seed
        self.start_epoch, self.skip = start_epoch, skip
        self.rank, self.world_size = rank, world_size
        self.epoch = start_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's permutation; Lightning calls this before each epoch."""
        self.epoch = epoch

    def one_pass(self, number: int) -> list[int]:
        """Return the order of all rows in a pass over them."""
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator()
        # A factor keeps two seeds that differ by one from sharing permutations an epoch apart.
        generator.manual_seed((self.seed * 1_000_003 + self.offset + number) % 2**63)
        return torch.randperm(self.size, generator=generator).tolist()

    def order(self) -> list[int]:
        """Return this process's rows of the whole current epoch."""
        rows = self.one_pass(self.epoch)
        rows += [
            padding_row(row) for row in (rows * self.world_size)[: -len(rows) % self.world_size]
        ]
        return rows[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[int]:
        return iter(self.order()[self.skip if self.epoch == self.start_epoch else 0 :])

    def __len__(self) -> int:
        # The whole epoch: Lightning counts the batches already done itself.
        return -(-self.size // self.world_size)


class StreamSampler(ResumableSampler):
    """Batches of an endless stream: pass after pass over all rows, whatever an epoch is.

    Args:
        size: Number of rows of the stream.
        batches: Batches of an epoch of the run.
        batch_size: Rows a batch, of this process.
        skip: Batches already done in the epoch that a resumed run continues.
        numbers: Epoch -> which batch of the stream, from 0 on, comes at each of its batches. By
            default the batches of the stream follow one another through the epochs.
        more: Further arguments of `ResumableSampler`.
    """

    def __init__(
        self,
        size: int,
        *,
        batches: int,
        batch_size: int,
        skip: int = 0,
        numbers: Callable[[int], Sequence[int]] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(size, skip=skip * batch_size, **more)
        self.batches, self.batch_size = batches, batch_size
        self.numbers = numbers or (lambda epoch: range(epoch * batches, (epoch + 1) * batches))

    def order(self) -> list[int]:
        """Return this process's rows of the whole current epoch."""
        passes: dict[int, list[int]] = {}
        rows: list[int] = []
        each = self.batch_size * self.world_size
        for batch in self.numbers(self.epoch):
            for place in range(batch * each, (batch + 1) * each):
                number, within = divmod(place, self.size)
                if number not in passes:
                    passes[number] = self.one_pass(number)
                rows.append(passes[number][within])
        return rows[self.rank :: self.world_size]

    def __len__(self) -> int:
        # The whole epoch: Lightning counts the batches already done itself.
        return self.batches * self.batch_size


class SideSampler(StreamSampler):
    """Rows of a second stream, in an order of their own.

    Which rows go with a batch of the first stream depends only on the seed and on the batch's
    number in the run.
    """

    offset = 500_009


class ResumableDataLoader(DataLoader[Any]):
    """A loader with a sampler that resumes by itself.

    Lightning warns about every loader without state; this one has none to save, because its
    position follows from the trainer's own progress.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the position is in the trainer's progress."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing: the sampler was built at the right position."""
