"""Edit the weights of a model's folder tensor by tensor, so that no model need fit in memory."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.models.weight_files import tensors_of, weight_files

# The tensor's name, and the tensor of each model that has it -> the edited tensor.
Edit = Callable[[str, Mapping[str, Tensor]], Tensor]
# Tensors done, and tensors in all.
Progress = Callable[[int, int], None]
# Name, the tensors of the models, and the one that was written: that of `tuned` if it was kept.
Seen = Callable[[str, Mapping[str, Tensor], Tensor], None]
TUNED = "tuned"
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


class TensorFiles:
    """The tensors of a model to edit, each with those of the same name in other models.

    Args:
        folders: ``tuned`` is the folder that is edited; the others, such as ``base`` and
            ``aligned``, are read beside it. Each holds safetensors, in any number of files.

    Attributes:
        files: Those of ``tuned``.
        names: Its tensors, file after file.

    Raises:
        OneShotError: for a folder without safetensors, or a tensor that only one side has.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)
        self.files = weight_files(folders[TUNED])
        self._own = tensors_of(self.files)
        self.names = list(self._own)
        self._others = {
            name: tensors_of(weight_files(folder))
            for name, folder in folders.items()
            if name != TUNED
        }
        for name, places in self._others.items():
            for missing in self._own.keys() - places.keys():
                raise OneShotError(
                    f"{folders[name]}: has no tensor {missing}; give the model that was tuned."
                )
            extra = places.keys() - self._own.keys() - _may_be_missing(folders[TUNED])
            # Older folders hold the frequencies of rotary positions, which are no weights.
            if more := sorted(n for n in extra if not n.endswith("rotary_emb.inv_freq")):
                raise OneShotError(
                    f"{folders[TUNED]}: has no tensor {more[0]}, but {folders[name]} has; give the "
                    "model that was tuned."
                )

    def read(self, name: str, file: Path | None = None) -> dict[str, Tensor]:
        """Return the tensor of each model, as it is on disk; a copy each.

        Args:
            name: Of ``names``.
            file: Where ``tuned`` has it.

        Raises:
            OneShotError: if the shapes differ.
        """
        weights = {TUNED: read_tensor(file or self._own[name], name)}
        own = weights[TUNED].shape
        for model, places in self._others.items():
            weights[model] = read_tensor(places[name], name)
            if (other := weights[model].shape) != own:
                why = " (another vocabulary)" if other[1:] == own[1:] and "embed" in name else ""
                raise OneShotError(
                    f"{places[name].parent}: {name} is {tuple(other)} there and {tuple(own)} in "
                    f"the tuned model{why}; give the model that was tuned."
                )
        return weights


def _may_be_missing(folder: Path) -> set[str]:
    """Return the tensors that a folder need not hold, although the other model's does."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    return {"lm_head.weight"} if config.get("tie_word_embeddings") else set()


def edit_folder(
    tensors: TensorFiles,
    target: Path,
    edit: Edit,
    *,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    seen: Seen | None = None,
) -> int:
    """Write a copy of a model's folder with edited weights; its other files come along.

    The files of the copy have the names and the tensors of the originals. One tensor of each model
    is in memory at a time, and what `edit` makes of it.

    Args:
        tensors: The models.
        target: An empty folder.
        edit: Called for each tensor of ``tuned`` with its name and the tensors of that name, as
            they are on disk. It may return any floating dtype, but must keep the shape; if nothing
            changes, it returns the tensor of ``tuned`` itself.
        dtype: Cast all floating-point weights to it; otherwise each keeps its own.
        progress: Is told how many tensors are done.
        seen: Is given each tensor's name, the tensors of the models, and what was written.

    Returns:
        How many tensors were changed.

    Raises:
        OneShotError: for a tensor that another model has in another shape.
    """
    _copy_the_rest(tensors.folders[TUNED], target, tensors.files)
    done = changed = size = 0
    for file in tensors.files:
        header, metadata = _header(file, dtype)
        size += max((entry["data_offsets"][1] for entry in header.values()), default=0)
        with (target / file.name).open("wb") as written:
            _write_header(written, header, metadata)
            for name in header:
                # In a function of its own, so that nothing of a tensor outlives it.
                changed += _write_edited(written, name, tensors.read(name, file), edit, dtype, seen)
                done += 1
                if progress is not None:
                    progress(done, len(tensors.names))
    _update_configs(target, size, dtype)
    return changed


def _write_edited(
    written: BinaryIO,
    name: str,
    weights: dict[str, Tensor],
    edit: Edit,
    dtype: torch.dtype | None,
    seen: Seen | None,
) -> bool:
    """Write what takes the place of a tensor, and return whether it was changed."""
    before = weights[TUNED]
    after = edit(name, weights)
    if after.shape != before.shape:
        raise ValueError(f"{name}: edited to {after.shape} from {before.shape}")
    wanted = dtype if dtype is not None and before.is_floating_point() else before.dtype
    final = after.detach().to("cpu", wanted).contiguous()
    written.write(final.flatten().view(torch.uint8).numpy().data)
    if seen is not None:
        seen(name, weights, before if after is before else final)
    return after is not before


def read_tensor(file: Path, name: str) -> Tensor:
    """Return a tensor as a copy, so that the mapped part of the file is freed at once."""
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name).clone()  # type: ignore[no-any-return]


# ------------------------------------------------------------------ the safetensors format


def _header(file: Path, dtype: torch.dtype | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a file's header says of each tensor, in a new dtype, and the file's metadata."""
    header: dict[str, Any] = {}
    start = 0
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            part = opened.get_slice(name)
            code, shape = part.get_dtype(), part.get_shape()
            own = opened.get_tensor(name)
            if dtype is not None and own.is_floating_point():
                code, itemsize = _CODES[dtype], dtype.itemsize
            else:
                itemsize = own.dtype.itemsize
            end = start + own.numel() * itemsize
            header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
            start = end
        metadata: dict[str, str] = opened.metadata() or {"format": "pt"}
    return header, metadata


def _write_header(file: BinaryIO, header: dict[str, Any], metadata: dict[str, str]) -> None:
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    # Tensors begin at a multiple of eight bytes.
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


# ------------------------------------------------------------------------- other files


def _copy_the_rest(folder: Path, target: Path, weights: list[Path]) -> None:
    """Copy configs, tokenizer and the weights' index; no other weights, and nothing hidden."""
    names = {file.name for file in weights}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in names and not path.name.startswith("."):
            if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf"):
                continue
            shutil.copyfile(path, target / path.name)


def _update_configs(folder: Path, size: int, dtype: torch.dtype | None) -> None:
    for path in folder.glob("*.safetensors.index.json"):
        index = json.loads(path.read_text(encoding="utf-8"))
        index.setdefault("metadata", {})["total_size"] = size
        write_json_atomically(path, index)
    if dtype is not None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config.pop("torch_dtype", None)
        write_json_atomically(folder / "config.json", config | {"dtype": str(dtype)[6:]})
