"""GGUF files: converted once to an ordinary Hugging Face folder, and kept in a cache.

Every later use, under any strategy, reads the folder. Its weights are what the quantised ones stand
for, in float32; training goes on from there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
from functools import cache
from pathlib import Path

from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.shipped import or_shipped

_SUFFIX = ".gguf"
# Names the layout of the cache; another way of converting gets another number.
_VERSION = "1"


def gguf_cache() -> Path:
    """Return the folder of converted models, in that of the Hugging Face libraries."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("ONESHOT_LIT_CACHE", Path(HF_HOME) / "oneshot_lit")) / "gguf"


def model_folder(name: str) -> str:
    """Return the folder of a model's name: that of a converted ``.gguf`` file, or a shipped one.

    Any other name is returned as it is.

    Raises:
        OneShotError: for a file that is missing or that transformers cannot convert, or without
            the package gguf.
    """
    if not name.endswith(_SUFFIX):
        return or_shipped(name)
    path = Path(name).expanduser()
    if not path.is_file():
        raise OneShotError(f"{name}: GGUF file not found; check model.model_name_or_path.")
    folder = gguf_cache() / f"{path.stem}-{gguf_digest(name)[:16]}-{_VERSION}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # One process of a run converts, and the others wait for it.
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                rank_zero_info(f"{name}: converting to a Hugging Face folder, once")
                _convert(path, folder)
    return str(folder)


def gguf_digest(name: str) -> str:
    """Return the SHA-256 of a ``.gguf`` file."""
    path = Path(name).expanduser().resolve()
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


def gguf_facts(name: str | None) -> dict[str, str]:
    """Return what results say of a model besides its name: the hash of a ``.gguf`` file."""
    if name is None or not name.endswith(_SUFFIX):
        return {}
    return {"gguf_sha256": gguf_digest(name)}


@cache
def _digest(path: Path, size: int, time: int) -> str:
    """Return the hash of a file that has not changed since the last call."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise OneShotError(
            f"{path}: GGUF files need the package gguf; install oneshot-lit[gguf]."
        ) from error
    place = {"gguf_file": path.name, "local_files_only": True}
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **place)
        model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **place)
        # The weights are no longer quantised.
        for config in (model.config, model.generation_config):
            config.__dict__.pop("quantization_config", None)
        model.hf_quantizer = None
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.rename(folder)
    except (OSError, ValueError, KeyError, NotImplementedError, struct.error) as error:
        said = " ".join(str(error).split())[:200]
        raise OneShotError(f"{path}: this GGUF file cannot be converted ({said}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
