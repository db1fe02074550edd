"""`WeightEdit`: a repair that changes weights without optimiser steps; `oneshot-lit edit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from oneshot_lit.data.datasets import Collate
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import folder_written_whole
from oneshot_lit.methods.job import Job
from oneshot_lit.methods.posttuning.edit_record import EDIT_FILE, EditRecord
from oneshot_lit.models.adapters import is_adapter
from oneshot_lit.models.edit_files import TUNED, Progress, TensorFiles, edit_folder
from oneshot_lit.models.loading import local_folder
from oneshot_lit.models.quantised import require_trainable

OUTPUT = "model"
# Name of a tensor -> the tensor of each model.
Read = Callable[[str], Mapping[str, Tensor]]


_T = TypeVar("_T")
_WANTED = {
    "aligned": "the model before fine-tuning (--aligned)",
    "base": "the model before alignment (--base)",
    "safe_adapter": "an adapter trained on safety rows",
    "like": "the folder of the edit's run",
    "task": "a source of requests of the task",
    "harmless": "a source of harmless requests",
}


def given(name: str, value: _T | None, what: str | None = None) -> _T:
    """Return an argument that an edit cannot do without.

    Args:
        name: Its name.
        value: Its value, None if the user gave none.
        what: What to give; a few names are known.

    Raises:
        OneShotError: if it is None.
    """
    if value is None:
        raise OneShotError(f"model.{name}: is missing; give {what or _WANTED[name]}.")
    return value


class Repair:
    """What ``oneshot-lit edit`` runs: a `WeightEdit`, or a `Job` that also has this base."""


class WeightEdit(Repair):
    """A change of a model's weights, one tensor after the other.

    Subclasses take the folders that they need as arguments, name them in `sources`, and implement
    `edit`. One that looks at all tensors before it changes any implements `prepare`, too; one that
    needs activations implements `calibrate`, and gets the batches of `data.train`. `PairEdit` is
    for edits that also take LoRA adapters.
    """

    def sources(self) -> dict[str, str]:
        """Return which models are read: ``tuned``, the one to edit, and any others by name."""
        raise NotImplementedError

    def prepare(self, names: Sequence[str], read: Read) -> None:
        """Look at tensors before any is edited.

        Args:
            names: All tensors of the model, or all modules of the adapter.
            read: Returns what `edit` will get for a name.
        """

    def edit(self, name: str, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the edited tensor.

        Args:
            name: The tensor's name in the files of the model.
            weights: The tensor of each model in `sources`, as it is on disk: any dtype, one shape.

        Returns:
            A tensor of the same shape; the one of ``tuned`` itself if nothing changes.
        """
        raise NotImplementedError

    def note(self, **facts: Any) -> None:
        """Add facts on the tensor that is being edited, such as ``cosine``, to ``edit.json``.

        ``decision`` takes the place of ``kept`` and ``changed``.
        """
        self.recorded.note(**facts)

    @cached_property
    def recorded(self) -> EditRecord:
        """What ``edit.json`` will say."""
        return EditRecord()

    def settings(self) -> dict[str, Any]:
        """Return the settings that ``edit.json`` records: plain values."""
        return {
            key: value
            for key, value in vars(self).items()
            if isinstance(value, (bool, int, float, str, list)) and not key.startswith("_")
        }

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

    def write(self, root: Path, dtype: torch.dtype | None, progress: Progress | None) -> int:
        """Write the edited model to ``<root>/model``; returns how many tensors were changed."""
        folders = self.folders()
        tensors = TensorFiles(folders)
        self.prepare(tensors.names, tensors.read)
        with folder_written_whole(root / OUTPUT) as folder:
            return edit_folder(
                tensors,
                folder,
                self.edit,
                dtype=dtype,
                progress=progress,
                seen=self.recorded.tensor,
            )


def write_edited(
    edit: WeightEdit,
    root: Path,
    *,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the edited model and ``edit.json``; returns how many tensors were changed."""
    changed = edit.write(root, dtype, progress)
    inputs = {name: local_folder(source) for name, source in edit.sources().items()}
    edit.recorded.write(root / EDIT_FILE, type(edit).__name__, edit.settings(), inputs)
    return changed


def write_record(record: EditRecord, job: Any, root: Path, settings: Mapping[str, Any]) -> None:
    """Write the ``edit.json`` of a job that edits a tuned model beside the aligned one."""
    folders = {TUNED: job.model_name_or_path, "aligned": job.aligned}
    inputs = {name: local_folder(str(source)) for name, source in folders.items()}
    record.write(root / EDIT_FILE, type(job).__name__, settings, inputs)


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
