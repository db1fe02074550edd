"""`EpochPosition`: where in its epochs a resumed run stands, even if it cuts them otherwise."""

from __future__ import annotations

from typing import Any

from oneshot_lit.errors import OneShotError


class EpochPosition:
    """How epochs are cut into batches, which a checkpoint's count of batches refers to."""

    def __init__(self) -> None:
        # Where the epochs began that are cut as they are now: epoch, batches done until then.
        self.cut: dict[str, int] | None = None

    def resume(self, done: int, batches_per_epoch: int, rows_per_batch: int) -> tuple[int, int]:
        """Return the epoch and the batches done in it, and remember how epochs are cut now.

        Args:
            done: Batches done in all, of the run and those that it goes on with.
            batches_per_epoch: Batches of an epoch, as this run cuts it.
            rows_per_batch: Different rows that a batch of all processes holds.

        Raises:
            OneShotError: in mid-epoch, if it was begun with other batches.
        """
        now = {"batches_per_epoch": batches_per_epoch, "rows_per_batch": rows_per_batch}
        cut = {"epoch": 0, "batches": 0, **now} if self.cut is None else self.cut
        passed, batches = divmod(done - cut["batches"], cut["batches_per_epoch"])
        epoch = cut["epoch"] + passed
        if any(cut[key] != value for key, value in now.items()):
            if batches > 0:
                raise OneShotError(
                    f"--ckpt_path: the checkpoint is of batch {batches} in an epoch of "
                    f"{cut['batches_per_epoch']} with {cut['rows_per_batch']} rows each, and now "
                    f"there are {batches_per_epoch} with {rows_per_batch}; resume with the same "
                    "number of processes (trainer.devices), or set data.share_batch from the start."
                )
            # From here on epochs are cut in another way.
            cut = {"epoch": epoch, "batches": done, **now}
        self.cut = cut
        return epoch, batches


def batches_let_through(batches: int, limit: Any) -> int:
    """Return how many of an epoch's batches `trainer.limit_train_batches` lets through."""
    return min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
