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
TUNED = "tuned"
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


def edit_folder(
    folders: Mapping[str, Path],
    target: Path,
    edit: Edit,
    *,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a copy of a model's folder with edited weights; its other files come along.

    The files of the copy have the names and the tensors of the originals. One tensor of each model
    is in memory at a time, and what `edit` makes of it.

    Args:
        folders: ``tuned`` is the folder that is edited; the others, such as ``base`` and
            ``aligned``, are read beside it. Each holds safetensors, in any number of files.
        target: An empty folder.
        edit: Called for each tensor of ``tuned`` with its name and the tensors of that name, as
            they are on disk. It may return any floating dtype, but must keep the shape; if nothing
            changes, it returns the tensor of ``tuned`` itself.
        dtype: Cast all floating-point weights to it; otherwise each keeps its own.
        progress: Is told how many tensors are done.

    Returns:
        How many tensors were changed.

    Raises:
        OneShotError: for a folder without safetensors, or a tensor that another model has in
            another shape or not at all.
    """
    files = weight_files(folders[TUNED])
    others = {name: tensors_of(weight_files(f)) for name, f in folders.items() if name != TUNED}
    _copy_the_rest(folders[TUNED], target, files)
    total = len(tensors_of(files))
    done = changed = size = 0
    for file in files:
        header, metadata = _header(file, dtype)
        size += max((entry["data_offsets"][1] for entry in header.values()), default=0)
        with (target / file.name).open("wb") as written:
            _write_header(written, header, metadata)
            for name in header:
                # In a function of its own, so that nothing of a tensor outlives it.
                changed += _write_edited(written, name, file, others, edit, dtype)
                done += 1
                if progress is not None:
                    progress(done, total)
    _update_configs(target, size, dtype)
    return changed


def _write_edited(
    written: BinaryIO,
    name: str,
    file: Path,
    others: Mapping[str, Mapping[str, Path]],
    edit: Edit,
    dtype: torch.dtype | None,
) -> bool:
    """Write what takes the place of a tensor, and return whether it was changed."""
    before = _read(file, name)
    weights = {TUNED: before}
    for model, places in others.items():
        if name not in places:
            where = next(iter(places.values())).parent
            raise OneShotError(f"{where}: has no tensor {name}; give the model that was tuned.")
        weights[model] = _read(places[name], name)
        if weights[model].shape != before.shape:
            raise OneShotError(
                f"{places[name].parent}: {name} is {tuple(weights[model].shape)} there and "
                f"{tuple(before.shape)} in the tuned model; give the model that was tuned."
            )
    after = edit(name, weights)
    if after.shape != before.shape:
        raise ValueError(f"{name}: edited to {after.shape} from {before.shape}")
    wanted = dtype if dtype is not None and before.is_floating_point() else before.dtype
    final = after.detach().to("cpu", wanted).contiguous().flatten()
    written.write(final.view(torch.uint8).numpy().data)
    return after is not before


def _read(file: Path, name: str) -> Tensor:
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
