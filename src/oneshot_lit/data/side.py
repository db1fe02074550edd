"""A second stream of training batches, exact on resume and with any number of processes."""

from __future__ import annotations

import torch

from oneshot_lit.data.samplers import ResumableSampler


class SideSampler(ResumableSampler):
    """Rows of a second stream: pass after pass over all its rows, independent of the first stream.

    Which rows go with a batch of the first stream depends only on the seed and on the batch's
    number in the run.

    Args:
        size: Number of rows of the stream.
        batches: Batches of an epoch of the first stream.
        batch_size: Rows a batch, of this process.
        shuffle: Draw a new order for each pass; otherwise keep the rows' order.
        seed: Decides every order.
        start_epoch: The epoch that a resumed run continues.
        skip: Batches already done in `start_epoch`.
        rank: This process among `world_size`, which share the rows of each batch.
        world_size: Number of processes.
    """

    def __init__(
        self,
        size: int,
        *,
        batches: int,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        start_epoch: int = 0,
        skip: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(size, shuffle, seed, start_epoch, skip * batch_size, rank, world_size)
        self.batches, self.batch_size = batches, batch_size

    def _pass(self, number: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator()
        # The offset keeps its orders different from those of the first stream.
        generator.manual_seed((self.seed * 1_000_003 + 500_009 + number) % 2**63)
        return torch.randperm(self.size, generator=generator).tolist()

    def order(self) -> list[int]:
        """Return this process's rows of the whole current epoch."""
        count = self.batches * self.batch_size * self.world_size
        first = self.epoch * count
        number, offset = divmod(first, self.size)
        rows: list[int] = []
        while len(rows) < offset + count:
            rows += self._pass(number)
            number += 1
        return rows[offset : offset + count][self.rank :: self.world_size]

    def __len__(self) -> int:
        # The whole epoch: Lightning counts the batches already done itself.
        return self.batches * self.batch_size
