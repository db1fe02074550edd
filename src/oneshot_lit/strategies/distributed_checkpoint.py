"""Read the tensors of a distributed checkpoint without running code that may be pickled there."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load

from oneshot_lit.errors import OneShotError

# Lightning's name for the file of everything that is not a tensor.
META = "meta.pt"
# The plain records of which the table of a checkpoint consists, beside dtypes and layouts.
_RECORDS = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata ChunkStorageMetadata Metadata MetadataIndex StorageMeta "
        "TensorProperties TensorStorageMetadata _MEM_FORMAT_ENCODING"
    ),
    "torch.distributed.checkpoint.filesystem": "_StorageInfo _StoragePrefix",
    "torch": "Size device",
    "torch.serialization": "_get_layout",
    "collections": "OrderedDict",
    "pathlib": "Path PosixPath",
    "pathlib._local": "PosixPath",
}


class _TableReader(pickle.Unpickler):
    """Reads the table of a checkpoint, and nothing that runs."""

    def find_class(self, module: str, name: str) -> Any:
        known = name in _RECORDS.get(module, "").split()
        if not known and module == "torch" and "." not in name:
            known = isinstance(getattr(torch, name, None), torch.dtype | torch.layout)
        if not known:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong into its table")
        return super().find_class(module, name)


class SafeReader(FileSystemReader):
    """Reads a folder that may come from elsewhere."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the table.

        Raises:
            OneShotError: if it is missing, incomplete, or holds anything but records of tensors.
        """
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                table: Metadata = _TableReader(file).load()
            table.storage_meta = table.storage_meta or StorageMeta()
            table.storage_meta.load_id = self.load_id
        except Exception as error:  # a broken table may raise anything
            raise OneShotError(f"{path.parent}: not a whole checkpoint ({error}).") from error
        return table


def tensors_only() -> Any:
    """Return a context in which libraries read tensors from files, and nothing that runs."""
    return patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1")


def read_tensors(state: dict[str, Any], folder: Path) -> None:
    """Fill the tensors of a nested dictionary in place, whatever number of processes wrote them.

    Args:
        state: Tensors, sharded or whole, under the names with which they were saved.
        folder: The checkpoint.

    Raises:
        OneShotError: if one of them is missing, or the folder is not a whole checkpoint.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with tensors_only():
            load(state, storage_reader=SafeReader(folder))
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        if isinstance(cause, OneShotError):
            raise cause from error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise OneShotError(f"{folder}: does not fit this model ({reason}).") from error
