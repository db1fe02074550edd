"""What tells one local model from another that lies at the same path later."""

from __future__ import annotations

import hashlib
from pathlib import Path

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_READ_AT_MOST = 64 * 2**20


def model_digest(name: str) -> str | None:
    """Return a hash of a model folder, None for a model of the hub.

    Config and tokenizer count with their content, weights with their size and time of change, as
    reading them all would take as long as loading; an adapter counts with its base.
    """
    folder = Path(name).expanduser()
    own = _files(folder)
    if own is None:
        return None
    if (base := _base(folder)) is not None:
        own += f"\0{base}\0{_files(Path(base).expanduser())}"
    return hashlib.sha256(own.encode()).hexdigest()[:16]


def _files(folder: Path) -> str | None:
    """Return a hash of the files of a folder, None if there is none."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.name.startswith("."):
            continue
        state = path.stat()
        digest.update(f"{path.name}\0{state.st_size}\0".encode())
        if path.suffix in _WEIGHTS or state.st_size > _READ_AT_MOST:
            digest.update(f"{state.st_mtime_ns}\0".encode())
        else:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _base(folder: Path) -> str | None:
    """Return what an adapter is an adapter of."""
    from oneshot_lit.models.adapters import base_of, is_adapter

    return base_of(folder) if is_adapter(folder) else None
