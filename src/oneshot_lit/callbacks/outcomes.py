"""`OutcomesWriter`: what each answer of a test scored, at ``<root>/outcomes.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from oneshot_lit.io.files import write_text_atomically

OUTCOMES_FILE = "outcomes.jsonl"


class OutcomesWriter(Callback):
    """Write one JSON row for each prompt of a test, for rates by category and for comparisons.

    A row holds no text: ``set``, ``kind``, ``index`` (in the source's order, from 0), ``id``,
    ``category``, ``prompt`` (a digest of its turns), ``digest`` (of prompt and answer, as in the
    judgments), ``scores`` (metric -> value, null where it could not be scored) and ``empty``.
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rows of all processes and write the file from the first one."""
        mine = getattr(pl_module, "outcomes", None)
        if mine is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        everyone: list[Any] = [mine]
        if trainer.world_size > 1:
            everyone = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, mine)
        if not trainer.is_global_zero:
            return
        loaders: Any = trainer.test_dataloaders
        sets = [d.dataset.name for d in (loaders if isinstance(loaders, list) else [loaders])]
        rows = [row for part in everyone for row in part]
        rows.sort(key=lambda row: (sets.index(row["set"]), row["index"]))
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_text_atomically(Path(trainer.default_root_dir) / OUTCOMES_FILE, "".join(lines))
