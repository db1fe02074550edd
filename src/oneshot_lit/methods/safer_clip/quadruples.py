"""`Quadruple`: a safe and an unsafe pair of image and text, and the sources of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from oneshot_lit.errors import OneShotError, RowError
from oneshot_lit.io.files import read_text

# An image in memory, (3, height, width), from 0 to 1; or its file.
Image = Tensor | Path
KEYS = ("safe_image", "safe_text", "unsafe_image", "unsafe_text")


@dataclass(frozen=True)
class Quadruple:
    """A safe pair of image and text, and an unsafe pair.

    Attributes:
        safe_image: v.
        safe_text: t, which describes v.
        unsafe_image: v*.
        unsafe_text: t*, which describes v*.
        origin: Its place in the source, for errors.
    """

    safe_image: Image
    safe_text: str
    unsafe_image: Image
    unsafe_text: str
    origin: str = "inline"


class QuadrupleSource:
    """Base of the sources of quadruples; subclass it and implement `load`."""

    def load(self) -> list[Quadruple]:
        """Return all quadruples."""
        raise NotImplementedError


class QuadrupleFile(QuadrupleSource):
    """JSON Lines with ``safe_image``, ``safe_text``, ``unsafe_image`` and ``unsafe_text``.

    Images are named by their paths, relative to the file's folder; they are read when a batch needs
    them.

    Args:
        path: The file.
        limit: Keep at most this many rows.
    """

    def __init__(self, path: str, limit: int | None = None) -> None:
        self.path, self.limit = path, limit

    def load(self) -> list[Quadruple]:
        """Return the rows.

        Raises:
            OneShotError: naming the row that lacks a key, is not JSON, or whose image is missing.
        """
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise OneShotError(f"{file}: file not found; give a JSON Lines file of quadruples.")
        rows = []
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            if line.strip():
                rows.append(_parsed(line, file, f"{file} row {number}"))
            if len(rows) == self.limit:
                break
        if not rows:
            raise OneShotError(f"{file}: holds no row; give quadruples.")
        return rows


def _parsed(line: str, file: Path, origin: str) -> Quadruple:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RowError(origin, "is not JSON") from error
    given: dict[str, Any] = {}
    for key in KEYS:
        value = row.get(key) if isinstance(row, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise RowError(origin, f"has no '{key}'", "; each row needs " + ", ".join(KEYS) + ".")
        given[key] = value
        if key.endswith("_image"):
            given[key] = file.parent / value
            if not given[key].is_file():
                raise RowError(origin, f"its {key} is missing", f" ({value}).")
    return Quadruple(**given, origin=origin)


def pixels(image: Image, size: int, origin: str = "") -> Tensor:
    """Return an image as CLIP takes it: (3, size, size), float32, normalised.

    The shorter side is resized to `size` (bicubic), and the middle is kept. The scale is that of
    OpenAI's CLIP.

    Raises:
        RowError: if the file is not an image.
    """
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    whole = image if isinstance(image, Tensor) else _read(image, origin)
    height, width = whole.shape[1:]
    if (height, width) != (size, size):
        factor = size / min(height, width)
        shape = (max(size, round(height * factor)), max(size, round(width * factor)))
        whole = functional.interpolate(
            whole[None], size=shape, mode="bicubic", antialias=True, align_corners=False
        )[0].clamp(0, 1)
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        whole = whole[:, top : top + size, left : left + size]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (whole.float() - mean) / std


def _read(path: Path, origin: str) -> Tensor:
    # Installed with matplotlib.
    from PIL import Image as Files

    try:
        with Files.open(path) as file:
            colours = file.convert("RGB")
            values = torch.frombuffer(bytearray(colours.tobytes()), dtype=torch.uint8)
            width, height = colours.size
    except (OSError, ValueError) as error:
        raise RowError(origin, f"{path.name} is not an image that can be read") from error
    return values.view(height, width, 3).permute(2, 0, 1).float() / 255


class QuadrupleRows(Dataset[dict[str, Any]]):
    """Quadruples as tensors: texts are tokenised once, images are read when they are needed.

    Args:
        rows: The quadruples.
        tokenizer: That of the CLIP model; it ends each text with the token that CLIP pools at.
        size: Side of the model's images, in pixels.
        longest: Longest text in tokens; longer ones are truncated.
    """

    def __init__(self, rows: Sequence[Quadruple], tokenizer: Any, size: int, longest: int) -> None:
        self.rows, self.size = list(rows), size
        self.tokens: dict[str, Any] = {}
        for kind in ("safe", "unsafe"):
            texts = [getattr(row, f"{kind}_text") for row in rows]
            self.tokens[kind] = tokenizer(
                texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        item: dict[str, Any] = {"index": index}
        for kind in ("safe", "unsafe"):
            item[f"{kind}_image"] = pixels(getattr(row, f"{kind}_image"), self.size, row.origin)
            item[f"{kind}_ids"] = self.tokens[kind]["input_ids"][index]
            item[f"{kind}_mask"] = self.tokens[kind]["attention_mask"][index]
        return item

    def texts(self) -> list[tuple[str, str]]:
        """Return the safe and the unsafe text of each row."""
        return [(row.safe_text, row.unsafe_text) for row in self.rows]

    def digest(self) -> str:
        """Return a hash of the texts and images; files are known by their names and sizes."""
        hashed = hashlib.sha256()
        for row in self.rows:
            hashed.update(json.dumps([row.safe_text, row.unsafe_text]).encode())
            for image in (row.safe_image, row.unsafe_image):
                if isinstance(image, Path):
                    hashed.update(f"{image.name} {image.stat().st_size}".encode())
                else:
                    hashed.update(image.contiguous().numpy().tobytes())
        return hashed.hexdigest()[:16]
