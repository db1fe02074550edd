"""`EpochPosition`: where in an epoch a resumed run is, even if its batches differ now."""

from __future__ import annotations

from typing import Any

from oneshot_lit.errors import OneShotError


class EpochPosition:
    """How epochs are divided into batches, which a checkpoint's count of batches depends on."""

    def __init__(self) -> None:
        # The present division, and where it began: the epoch, and the batches done until then.
        self.cut: dict[str, int] | None = None

    def resume(self, done: int, batches_per_epoch: int, rows_per_batch: int) -> tuple[int, int]:
        """Return the epoch and the batches done in it, and remember the present division.

        Args:
            done: All batches done, by this run and the runs that it resumes.
            batches_per_epoch: Batches of an epoch in this run.
            rows_per_batch: Different rows in a batch, over all processes.

        Raises:
            OneShotError: in the middle of an epoch that was begun with other batches.
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
            # From here on epochs are divided differently.
            cut = {"epoch": epoch, "batches": done, **now}
        self.cut = cut
        return epoch, batches


def batches_let_through(batches: int, limit: Any) -> int:
    """Return how many of an epoch's batches `trainer.limit_train_batches` lets through."""
    return min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
