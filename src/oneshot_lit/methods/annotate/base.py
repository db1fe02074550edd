"""`Annotation`: the base of jobs that write numbers for each training row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.annotations import Annotations, Annotator, write_annotations
from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.padding import pad_training
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.runs import ANNOTATION_FILE
from oneshot_lit.methods.job import Job
from oneshot_lit.models.gguf import model_folder
from oneshot_lit.models.labelled_head import head_on_labelled
from oneshot_lit.models.loading import load_model, local_folder, model_hash
from oneshot_lit.models.loss import IGNORE_INDEX, token_losses

# Name -> the numbers of a row, (numbers,).
Numbers = dict[str, Tensor]


class Annotation(Job):
    """Give each row of `data.train` numbers, with one or several models, one after the other.

    The output is ``<root>/annotations.safetensors``. Rows that an earlier run with the same models
    has annotated keep their numbers, and a killed run goes on. `model.model_name_or_path` is the
    model that will be trained: its tokenizer and template make the rows.

    Args:
        rows_at_once: Rows in one forward pass.
    """

    verb = "annotate"
    kind: ClassVar[str]

    def __init__(self, *args: Any, rows_at_once: int = 16, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.model_config is not None or self.peft is not None:
            raise OneShotError(
                "model: annotations need trained models; drop model_config and peft."
            )
        if rows_at_once < 1:
            raise OneShotError(f"model.rows_at_once must be at least 1, not {rows_at_once}.")
        self.rows_at_once = rows_at_once
        self.rows: list[Encoded] = []
        self.conversations: list[Conversation] = []
        # Part -> key of a row -> its numbers.
        self._numbers: dict[str, dict[str, Numbers]] = {}
        self._finished: dict[str, Numbers] = {}
        self._keys: list[str] = []
        self._waiting: list[tuple[str, list[int]]] = []
        self._done, self._loaded_part = 0, ""

    # --------------------------------------------------------------- to implement

    def models(self) -> dict[str, str]:
        """Return what each model is for -> its folder or hub name; each is one pass over the rows.

        The names of the parts are those of this mapping.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return what else decides the numbers, as plain JSON values."""
        return {}

    def load_part(self, part: str) -> None:
        """Load the model of a part, in place of the one before."""
        raise NotImplementedError

    def annotate(self, part: str, indices: Sequence[int]) -> list[Numbers]:
        """Return what the loaded model says about each of these rows."""
        raise NotImplementedError

    def joined(self, parts: dict[str, Numbers], index: int) -> Numbers:
        """Return the numbers of a row from those of all parts; by default all of them."""
        return {name: each for own in parts.values() for name, each in own.items()}

    def row_text(self, index: int) -> str:
        """Return a hash of what else than its tokens decides the numbers of a row."""
        return ""

    # -------------------------------------------------------------------- the run

    def configure_model(self) -> None:
        """Load nothing: each part loads its own model."""

    def check(self) -> None:
        """Check the settings, and hash the models."""
        if self.trainer.world_size > 1:
            raise OneShotError("trainer.devices: annotations are made in one process; give 1.")
        precision = str(self.trainer.precision)
        if precision not in ("32-true", "bf16-mixed"):
            raise OneShotError(
                f"trainer.precision: {precision}: give 32-true or bf16-mixed here, and the dtype "
                "of the weights in model.dtype."
            )
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.rows, self.conversations = data.training.encoded, data.training.conversations
        models = {}
        for part, name in self.models().items():
            folder = local_folder(model_folder(name), self.trust_remote_code)
            models[part] = (name, model_hash(folder))
        settings = {"dtype": self.dtype_name, "precision": precision, **self.settings()}
        self.annotator = Annotator(self.kind, models, settings)

    def prepare(self) -> None:
        """Find out which rows have no numbers yet."""
        pairs = enumerate(self.rows)
        self._keys = [self.annotator.key(row, self.row_text(n)) for n, row in pairs]
        first: dict[str, int] = {}
        for index, key in enumerate(self._keys):
            first.setdefault(key, index)
        self._finished = self._kept(first)
        order = sorted(first.values(), key=lambda index: len(self.rows[index].input_ids))
        self._waiting = []
        for part in self.annotator.models:
            have = self._numbers.setdefault(part, {})
            known = have.keys() | self._finished.keys()
            left = [index for index in order if self._keys[index] not in known]
            self._waiting += [(part, each) for each in _chunks(left, self.rows_at_once)]

    def _kept(self, keys: dict[str, int]) -> dict[str, Numbers]:
        """Return what an earlier run has written about these rows."""
        path = Path(self.trainer.default_root_dir) / ANNOTATION_FILE
        if not path.is_file():
            return {}
        try:
            before = Annotations(path, self.kind)
        except OneShotError:
            # It is written anew.
            return {}
        return {key: before[key] for key in keys if key in before}

    def steps(self) -> tuple[int, int | None]:
        """Return how many batches are done, of how many."""
        return self._done, len(self._waiting)

    @torch.no_grad()
    def step(self) -> bool:
        """Annotate one batch."""
        part, indices = self._waiting[self._done]
        if part != self._loaded_part:
            self.load_part(part)
            self._loaded_part = part
        for index, own in zip(indices, self.annotate(part, indices), strict=True):
            numbers = {name: each.cpu() for name, each in own.items()}
            if any(each.is_floating_point() and each.isnan().any() for each in numbers.values()):
                raise OneShotError(
                    f"{self.conversations[index].origin}: {self.annotator.models[part][0]} gives "
                    "no number (NaN); try model.dtype float32, or drop the row."
                )
            self._numbers[part][self._keys[index]] = numbers
        self._done += 1
        return self._done == len(self._waiting)

    def job_state(self) -> dict[str, Any]:
        """Return all numbers so far."""
        return {"numbers": self._numbers}

    def load_job_state(self, state: dict[str, Any]) -> None:
        """Take up the numbers; those of another model have other keys."""
        self._numbers = state["numbers"]

    def finish(self, root: Path) -> None:
        """Write the numbers of all rows, in their order."""
        rows = self.all_numbers()
        write_annotations(root / ANNOTATION_FILE, self.annotator, self._keys, rows)
        again = len(self._finished)
        kept = f", {again} of them kept from an earlier run" if again else ""
        rank_zero_info(f"{len(rows)} rows annotated{kept}; written to {root / ANNOTATION_FILE}")

    # ------------------------------------------------------------------ for subclasses

    def all_numbers(self) -> list[Numbers]:
        """Return the numbers of each row of the data, after the last step."""
        numbers = dict(self._finished)
        for index, key in enumerate(self._keys):
            if key not in numbers:
                parts = {part: self._numbers[part][key] for part in self.annotator.models}
                numbers[key] = self.joined(parts, index)
        return [numbers[key] for key in self._keys]

    def loaded(self, name: str) -> Any:
        """Return a model on the device, in eval mode."""
        model = load_model(
            model_folder(name),
            dtype=self.model_dtype,
            trust_remote_code=self.trust_remote_code,
            attn_implementation=self.attn_implementation,
        )
        return model.to(self.device).eval()

    def answer_losses(self, model: Any, indices: Sequence[int]) -> list[Tensor]:
        """Return the cross-entropy of each labelled token of rows, (labelled tokens,) each."""
        batch = pad_training([self.rows[i] for i in indices], self.tokenizer.pad_token_id)
        batch = {name: each.to(self.device) for name, each in batch.items()}
        labels = batch["labels"]
        with head_on_labelled(model, labels):
            logits = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                use_cache=False,
            ).logits
        counts = (labels[:, 1:] != IGNORE_INDEX).sum(1)
        return list(torch.split(token_losses(logits, labels).float(), counts.tolist()))


def _chunks(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(indices), size):
        yield list(indices[start : start + size])
