"""``annotations.safetensors``: numbers that models gave to training rows, one or several a row.

`oneshot-lit annotate` writes it. A row is known by a hash of the models that gave the numbers and
of its tokens, so a changed row, template or truncation is noticed, and never gets the numbers of
another row. It holds no text.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from oneshot_lit.data.chat import Encoded
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import file_written_whole
from oneshot_lit.io.runs import ANNOTATION_FILE
from oneshot_lit.models.loading import model_hash
from oneshot_lit.models.weight_files import is_local

_VERSION = "1"


@dataclass(frozen=True)
class Annotator:
    """What decides the numbers of a row.

    Attributes:
        kind: What the numbers are.
        models: What each model is for -> its name, and a hash of its files.
        settings: What else decides the numbers, as plain JSON values.
    """

    kind: str
    models: dict[str, tuple[str, str]]
    settings: dict[str, Any] = field(default_factory=dict)

    def key(self, row: Encoded, text: str = "") -> str:
        """Return the hash by which the numbers of a row are known.

        Args:
            row: Its tokens and which of them carry loss.
            text: A hash of its text, where the numbers depend on that, too.
        """
        # A model may be moved: its name does not matter.
        hashes = {part: own for part, (_, own) in self.models.items()}
        origin = json.dumps([_VERSION, self.kind, hashes, self.settings, text], sort_keys=True)
        digest = hashlib.sha256(origin.encode())
        digest.update(array("q", row.input_ids).tobytes())
        digest.update(bytes(row.loss_mask))
        return digest.hexdigest()[:32]


class Annotations:
    """The numbers of a file.

    Attributes:
        path: The file.
        annotator: What gave the numbers.
        keys: The rows, in the order in which they were annotated; equal rows come more than once.
        numbers: Name -> the numbers of each row, (numbers of the row,).
        digest: A hash of the file.
    """

    def __init__(self, path: str | Path, kind: str) -> None:
        file = Path(path).expanduser()
        self.path = file / ANNOTATION_FILE if file.is_dir() else file
        if not self.path.is_file():
            raise OneShotError(
                f"{self.path}: no annotations; write them with oneshot-lit annotate first."
            )
        try:
            with safe_open(self.path, framework="pt") as opened:
                facts = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            models = {part: tuple(own) for part, own in json.loads(facts["models"]).items()}
            self.annotator = Annotator(facts["kind"], models, json.loads(facts["settings"]))
            counts = tensors.pop("counts").tolist()
            raw = tensors.pop("keys")
            self.keys = [bytes(row).hex() for row in raw.tolist()]
            self.numbers = {name: list(each.split(counts)) for name, each in tensors.items()}
        except (KeyError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise OneShotError(
                f"{self.path}: is not what oneshot-lit annotate writes; write it again."
            ) from error
        if facts["kind"] != kind:
            raise OneShotError(
                f"{self.path}: holds {facts['kind']}, where {kind} is needed; give another file."
            )
        self.digest = hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]
        self._places: dict[str, list[int]] = {}
        for place, key in enumerate(self.keys):
            self._places.setdefault(key, []).append(place)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        place = self._places[key][0]
        return {name: each[place] for name, each in self.numbers.items()}

    def require_current(self) -> None:
        """Refuse the numbers of a model whose folder has changed since.

        A folder that is gone, or a model of the hub, is taken to be the same.

        Raises:
            OneShotError: naming the model.
        """
        for name, own in self.annotator.models.values():
            folder = Path(name).expanduser()
            if is_local(name) and folder.is_dir() and model_hash(folder) != own:
                raise OneShotError(
                    f"{self.path}: {name} has changed since it gave these numbers; run oneshot-lit "
                    "annotate again."
                )

    def places(self, row: Encoded, name: str, text: str = "") -> list[int]:
        """Return where a row is in the file: more than one place if it was annotated repeatedly.

        Args:
            row: A row to train on.
            name: What to call it in the error.
            text: See `Annotator.key`.

        Raises:
            OneShotError: if the file does not have it.
        """
        if (places := self._places.get(self.annotator.key(row, text))) is None:
            raise OneShotError(
                f"{self.path}: has no numbers for {name}; its text, the template or the truncation "
                "has changed since. Run oneshot-lit annotate with the same data again."
            )
        return places


def write_annotations(
    path: Path, annotator: Annotator, keys: Sequence[str], rows: Sequence[Mapping[str, Tensor]]
) -> None:
    """Write the numbers of rows, whole or not at all.

    Args:
        path: The file.
        annotator: What gave them.
        keys: The key of each row.
        rows: Name -> numbers of each row, (numbers,), as many under each name.
    """
    names = list(rows[0])
    counts = [len(row[names[0]]) for row in rows]
    tensors = {name: torch.cat([row[name] for row in rows]).contiguous() for name in names}
    tensors["counts"] = torch.tensor(counts)
    tensors["keys"] = torch.tensor([list(bytes.fromhex(key)) for key in keys], dtype=torch.uint8)
    facts = {
        "kind": annotator.kind,
        "models": json.dumps(annotator.models),
        "settings": json.dumps(annotator.settings),
    }
    with file_written_whole(path) as file:
        file.write(save(tensors, facts))


class RowNumbers:
    """A number of each token of the training rows, by the index of a row in its data set.

    Args:
        rows: For each row, (tokens of the row,), a floating dtype; NaN where a token has none.
    """

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self.rows = list(rows)

    def of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the numbers of a batch, (rows, tokens), on its device; NaN where there is none.

        Args:
            batch: ``input_ids`` and the rows' ``index``, which is negative for a row that only
                fills up the batch.
        """
        length = batch["input_ids"].shape[1]
        nothing = self.rows[0].new_full((0,), torch.nan)
        own = [self.rows[i] if i >= 0 else nothing for i in batch["index"].tolist()]
        # The longest row of the batch may be one that only fills it up.
        own.append(self.rows[0].new_full((length,), torch.nan))
        padded = pad_sequence(own, batch_first=True, padding_value=torch.nan)
        return padded[:-1].to(batch["input_ids"].device)


def of_answers(numbers: Tensor, row: Encoded) -> Tensor:
    """Return the numbers of a row's labelled tokens in the places of these tokens.

    Args:
        numbers: (labelled tokens,); the first token of a row is never one.
        row: The row.

    Returns:
        (tokens,), NaN at the others.
    """
    mask = torch.tensor(row.loss_mask)
    mask[0] = False
    return numbers.new_full((len(mask),), torch.nan).masked_scatter(mask, numbers)
