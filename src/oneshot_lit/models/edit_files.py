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
    total = sum(len(_names(file)) for file in files)
    done = changed = size = 0
    for file in files:
        header, metadata = _header(file, dtype)
        with (target / file.name).open("wb") as written:
            _write_header(written, header, metadata)
            for name in header:
                # In a function of its own, so that nothing of a tensor outlives it.
                tensor, differs = _edited(name, file, folders, others, edit, dtype)
                size += _write(written, tensor)
                del tensor
                changed += differs
                done += 1
                if progress is not None:
                    progress(done, total)
    _update_configs(target, size, dtype)
    return changed


def _edited(
    name: str,
    file: Path,
    folders: Mapping[str, Path],
    others: Mapping[str, Mapping[str, Path]],
    edit: Edit,
    dtype: torch.dtype | None,
) -> tuple[Tensor, bool]:
    """Return what is written in place of a tensor, on the CPU, and whether it was changed."""
    before = _read(file, name)
    weights = {TUNED: before}
    for model, places in others.items():
        weights[model] = _of_other(folders[model], places, name, before)
    after = edit(name, weights)
    if after.shape != before.shape:
        raise ValueError(f"{name}: edited to {after.shape} from {before.shape}")
    wanted = dtype if dtype is not None and before.is_floating_point() else before.dtype
    return after.detach().to("cpu", wanted), after is not before


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _read(file: Path, name: str) -> Tensor:
    """Return a tensor as a copy, so that the mapped part of the file is freed at once."""
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name).clone()  # type: ignore[no-any-return]


def _of_other(folder: Path, places: Mapping[str, Path], name: str, tuned: Tensor) -> Tensor:
    if name not in places:
        raise OneShotError(f"{folder}: has no tensor {name}; give the model that was tuned.")
    other = _read(places[name], name)
    if other.shape != tuned.shape:
        raise OneShotError(
            f"{folder}: {name} is {tuple(other.shape)} there and {tuple(tuned.shape)} in the tuned "
            "model; give the model that was tuned."
        )
    return other


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


def _write(file: BinaryIO, tensor: Tensor) -> int:
    content = tensor.contiguous().flatten().view(torch.uint8).numpy()
    file.write(content.data)
    return int(content.nbytes)


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
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config = folder / "config.json"
    if dtype is not None and config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        content.pop("torch_dtype", None)
        content["dtype"] = str(dtype).removeprefix("torch.")
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
