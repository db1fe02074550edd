"""Which files hold the weights of a folder, as `transformers` and `peft` choose them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from oneshot_lit.errors import OneShotError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_local(path: str) -> bool:
    """Whether a name means a folder on disk rather than a hub repository."""
    place = Path(path).expanduser()
    marks = path.startswith((".", "/", "~")) or path.endswith(".gguf")
    if place.exists() or marks or path.count("/") > 1:
        return True
    # "runs/model" with a folder runs is a mistyped path, not a repository of the user "runs".
    return "/" in path and place.parent.is_dir()


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that are loaded from a model's or an adapter's folder.

    Other files of the folder, such as a backup or a stale index, are ignored. Each file's header is
    read, so that a damaged one is named before anything is built.

    Args:
        folder: A Hugging Face folder on disk.

    Returns:
        The files in the order in which they are read; if two hold a tensor, the last one counts.

    Raises:
        OneShotError: if there are none, or one is missing or damaged.
    """
    adapter = (folder / ADAPTER_CONFIG).is_file()
    files = [folder / (ADAPTER_WEIGHTS if adapter else SAFE_WEIGHTS_NAME)]
    if not files[0].is_file():
        files = [] if adapter else _indexed(folder)
    if not files:
        raise _without_weights(folder)
    for file in files:
        if not file.is_file():
            raise OneShotError(f"{file}: missing, though the weights' index names it.")
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise OneShotError(
                f"{file}: no whole safetensors file ({error}); copy or download it again."
            ) from error
    return files


def tensors_of(files: list[Path]) -> dict[str, Path]:
    """Return the file of each tensor."""
    places: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            places.update(dict.fromkeys(opened.keys(), file))
    return places


def _indexed(folder: Path) -> list[Path]:
    """Return the files that the index of a sharded model names; [] without an index."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return []
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OneShotError(
            f"{index}: no index of weights ({type(error).__name__}: {error}); copy or download it "
            "again."
        ) from error


def _without_weights(folder: Path) -> OneShotError:
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        return OneShotError(
            f"{folder}: only pickled weights ({pickles[0]}), which can run code when loaded; "
            "convert them to safetensors first."
        )
    return OneShotError(f"{folder}: a model folder without weights (no *.safetensors).")
