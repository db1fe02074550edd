"""Reading the tensors of a distributed checkpoint without running what may be pickled there."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load

from oneshot_lit.errors import OneShotError

# What Lightning calls the file of everything that is no tensor.
META = "meta.pt"
_TABLE = ".metadata"
_MODULES = ("torch.distributed.checkpoint.", "torch.serialization")
_NAMES = {
    ("torch", "Size"),
    ("torch", "device"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("builtins", "list"),
    ("builtins", "dict"),
    ("torch._C._autograd", "Size"),
    ("torch.storage", "_get_dtype_from_pickle_storage_type"),
    ("pathlib", "PosixPath"),
    ("pathlib", "Path"),
    ("pathlib._local", "PosixPath"),
}


class _TableReader(pickle.Unpickler):
    """Reads the table of a checkpoint, which consists of plain records, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        dtypes = module == "torch" and name.split("_")[0].rstrip("0123456789") in _DTYPES
        if module.startswith(_MODULES) or (module, name) in _NAMES or dtypes:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into a checkpoint's table")


_DTYPES = ("float", "bfloat", "int", "uint", "bool", "complex", "strided")


class SafeReader(FileSystemReader):
    """Reads a folder whose table may come from elsewhere."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the table.

        Raises:
            OneShotError: if it is missing, cut off, or holds anything but records of tensors.
        """
        path = Path(self.path) / _TABLE
        try:
            table = _TableReader(io.BytesIO(path.read_bytes())).load()
        except (OSError, EOFError, pickle.UnpicklingError, AttributeError) as error:
            raise OneShotError(f"{path.parent}: not a whole checkpoint ({error}).") from error
        if getattr(table, "storage_meta", None) is None:
            table.storage_meta = StorageMeta()
        table.storage_meta.load_id = self.load_id
        assert isinstance(table, Metadata)
        return table


def read_tensors(state: dict[str, Any], folder: Path) -> None:
    """Fill the tensors of a nested dictionary in place, whatever number of processes wrote them.

    Args:
        state: Tensors, sharded or whole, under the names with which they were saved.
        folder: The checkpoint.

    Raises:
        OneShotError: if one of them is not there, or the folder is no whole checkpoint.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        load(state, storage_reader=SafeReader(folder))
    except CheckpointException as error:
        causes = list(error.failures.values())
        known = next((c for c in causes if isinstance(c[0], OneShotError)), causes[0])[0]
        if isinstance(known, OneShotError):
            raise known from error
        raise OneShotError(f"{folder}: does not fit this model ({known}).") from error
