"""`WeightEdit`: a repair that changes weights without optimiser steps; `oneshot-lit edit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from oneshot_lit.data.datasets import Collate
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import folder_written_whole
from oneshot_lit.methods.job import Job
from oneshot_lit.models.adapters import is_adapter
from oneshot_lit.models.edit_files import TUNED, Progress, edit_folder
from oneshot_lit.models.loading import local_folder
from oneshot_lit.models.quantised import require_trainable

OUTPUT = "model"


class Repair:
    """What ``oneshot-lit edit`` runs: a `WeightEdit`, or a `Job` that also has this base."""


class WeightEdit(Repair):
    """A change of a model's weights, one tensor after the other.

    Subclasses take the folders that they need as arguments, name them in `sources`, and implement
    `edit`. One that needs activations implements `calibrate`, too, and gets the batches of
    `data.train`.
    """

    def sources(self) -> dict[str, str]:
        """Return which models are read: ``tuned``, the one to edit, and any others by name."""
        raise NotImplementedError

    def edit(self, name: str, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the edited tensor.

        Args:
            name: The tensor's name in the files of the model.
            weights: The tensor of each model in `sources`, as it is on disk: any dtype, one shape.

        Returns:
            A tensor of the same shape; the one of ``tuned`` itself if nothing changes.
        """
        raise NotImplementedError

    def calibrate(self, model: Any, batches: Iterator[dict[str, Tensor]]) -> None:
        """Measure activations of the tuned model before anything is edited.

        Args:
            model: The tuned model, on its device, in eval mode, without gradients.
            batches: Right-padded batches of `data.train`: ``input_ids``, ``attention_mask``,
                ``labels`` and ``index``.
        """

    def folders(self) -> dict[str, Path]:
        """Return the folder of each model; one of the hub is downloaded.

        Raises:
            OneShotError: for an adapter, which is not a whole model, and for quantised weights.
        """
        folders = {name: local_folder(source) for name, source in self.sources().items()}
        for name, folder in folders.items():
            if is_adapter(folder):
                raise OneShotError(
                    f"{folder} ({name}): is an adapter; give the merged model ("
                    "--export.merge_adapter true writes it)."
                )
            require_trainable(str(folder), adapter=False)
        return folders


def write_edited(
    edit: WeightEdit,
    root: Path,
    *,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the edited model to ``<root>/model``; returns how many tensors were changed."""
    folders = edit.folders()
    with folder_written_whole(root / OUTPUT) as folder:
        return edit_folder(folders, folder, edit.edit, dtype=dtype, progress=progress)


class Calibration(Job):
    """The job that loads the tuned model for an edit and shows it the batches of `data.train`.

    Args:
        edit: The edit to calibrate.
    """

    def __init__(self, edit: WeightEdit, **options: Any) -> None:
        super().__init__(edit.sources()[TUNED], **options)
        self.edit = edit
        self._done = 0

    def check(self) -> None:
        """Refuse a job without rows."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.training is None:
            raise OneShotError("data.train: the edit looks at activations; give it rows.")

    def steps(self) -> tuple[int, int]:
        """Return one step: all batches."""
        return self._done, 1

    @torch.no_grad()
    def step(self) -> bool:
        """Hand the batches to the edit."""
        self.eval()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        collate = Collate(self.tokenizer.pad_token_id, generation=False)
        loader: Any = DataLoader(data.training, data.batch_size, collate_fn=collate)
        self.edit.calibrate(
            self.model, ({k: v.to(self.device) for k, v in batch.items()} for batch in loader)
        )
        self._done = 1
        return True

    def finish(self, root: Path) -> None:
        """Leave the writing to the edit."""
