"""Which files hold the weights of a folder: the choice of `transformers` and of `peft`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from oneshot_lit.errors import OneShotError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
ADAPTER_CONFIG = "adapter_config.json"


def is_local(path: str) -> bool:
    """Whether a name means a folder on disk rather than a hub repository."""
    place = Path(path).expanduser()
    if place.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
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
    files = _adapter_files(folder) if (folder / ADAPTER_CONFIG).is_file() else _files(folder)
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


def _adapter_files(folder: Path) -> list[Path]:
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise _without_weights(folder, SAFETENSORS_WEIGHTS_NAME)
    return [folder / SAFETENSORS_WEIGHTS_NAME]


def _files(folder: Path) -> list[Path]:
    from transformers.modeling_utils import _get_resolved_checkpoint_files
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

    chosen = _chosen_by_config(folder)
    try:
        files, _ = _get_resolved_checkpoint_files(
            str(folder),
            variant=None,
            gguf_file=None,
            use_safetensors=True,
            user_agent=None,
            is_remote_code=False,
            transformers_explicit_filename=chosen,
        )
    except OSError as error:
        raise _without_weights(folder) from error
    # The index is not JSON, is no mapping, or lacks a key.
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        index = folder / (chosen or SAFE_WEIGHTS_INDEX_NAME)
        raise OneShotError(
            f"{index}: no index of weights ({type(error).__name__}: {error}); copy or download it "
            "again."
        ) from error
    return [Path(file) for file in files]


def _chosen_by_config(folder: Path) -> str | None:
    """Return the file that the config names for `transformers`, if it names one."""
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        chosen = config.get("transformers_weights")
    except (OSError, ValueError, AttributeError):
        # Reading the config itself says what is wrong with it.
        return None
    return chosen if isinstance(chosen, str) else None


def _without_weights(folder: Path, wanted: str = "*.safetensors") -> OneShotError:
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        return OneShotError(
            f"{folder}: only pickled weights ({pickles[0]}), which can run code when loaded; "
            "convert them to safetensors first."
        )
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    if others and wanted == "*.safetensors":
        wanted = f"model.safetensors or its index, only {others[0]}"
    return OneShotError(f"{folder}: a model folder without weights (no {wanted}).")
