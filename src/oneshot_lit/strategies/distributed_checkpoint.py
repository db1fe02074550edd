"""Read the tensors of a distributed checkpoint without running code that may be pickled there."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load

from oneshot_lit.errors import OneShotError

# Lightning's name for the file of everything that is not a tensor.
META = "meta.pt"
_TABLE = ".metadata"
_METADATA = "torch.distributed.checkpoint.metadata"
_RECORDS = {
    *(
        (_METADATA, name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}


class _TableReader(pickle.Unpickler):
    """Reads the table of a checkpoint, which consists of plain records, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in _RECORDS
        if not known and module == "torch" and "." not in name:
            known = isinstance(getattr(torch, name, None), torch.dtype | torch.layout)
        if not known:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong into its table")
        return super().find_class(module, name)


class _PlainPlanner(DefaultLoadPlanner):
    """Loads tensors as tensors, and everything else without running it."""

    def create_local_plan(self) -> Any:
        assert self.metadata is not None
        for name, wanted in self.state_dict.items():
            known = self.metadata.state_dict_metadata.get(name)
            if isinstance(wanted, torch.Tensor) and isinstance(known, BytesStorageMetadata):
                raise OneShotError(f"{name} is no tensor there")
        return super().create_local_plan()

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        """Load a number or a text that belongs to the optimiser."""
        loaded = torch.load(value, weights_only=True)
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], loaded)
        else:
            self.state_dict[read_item.dest_index.fqn] = loaded


class SafeReader(FileSystemReader):
    """Reads a folder whose table may come from elsewhere."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the table.

        Raises:
            OneShotError: if it is missing, incomplete, or holds anything but records of tensors.
        """
        path = Path(self.path) / _TABLE
        try:
            table = _TableReader(io.BytesIO(path.read_bytes())).load()
        except Exception as error:  # a broken table may raise anything
            raise OneShotError(f"{path.parent}: not a whole checkpoint ({error}).") from error
        if not isinstance(table, Metadata):
            raise OneShotError(f"{path.parent}: not a whole checkpoint.")
        if getattr(table, "storage_meta", None) is None:
            table.storage_meta = StorageMeta()
        assert table.storage_meta is not None
        table.storage_meta.load_id = self.load_id
        return table


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
        load(state, storage_reader=SafeReader(folder), planner=_PlainPlanner())
    except CheckpointException as error:
        causes = list(error.failures.values())
        known = next((c for c in causes if isinstance(c[0], OneShotError)), causes[0])[0]
        if isinstance(known, OneShotError):
            raise known from error
        raise OneShotError(f"{folder}: does not fit this model ({known}).") from error
