"""`LabelReferenceModule`: training that compares its label tokens with a frozen reference's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from oneshot_lit.data.annotations import Annotations, RowNumbers, of_answers
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.annotate.log_probabilities import KIND, NAME
from oneshot_lit.methods.reference import ReferenceModule
from oneshot_lit.models.gguf import model_folder
from oneshot_lit.models.loading import local_folder, model_hash
from oneshot_lit.models.loss import of_labelled


class LabelReferenceModule(ReferenceModule):
    """The base of methods that need a reference's log-probabilities of the label tokens alone.

    Args:
        reference_file: Read them from what `oneshot-lit annotate` with `LogProbabilities` wrote of
            the same rows with the start model: the file or its folder. Then no reference is in
            memory. Otherwise the reference is computed with each batch.
    """

    # As of an attack: these methods fine-tune on whatever rows the user brings.
    validation_prefix = "attack/"

    def __init__(self, *args: Any, reference_file: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reference_file = reference_file
        self._annotated: dict[str, Annotations] = {}
        self._log_probabilities: RowNumbers | None = None
        if reference_file is not None:
            if self.reference_name_or_path is not None or self.model_config is not None:
                raise OneShotError(
                    "model.reference_file: is of the start model; drop "
                    "model.reference_name_or_path and model.model_config."
                )
            self.keeps_start_weights = False

    def setup(self, stage: str) -> None:
        """Find the numbers of every training row in the files."""
        super().setup(stage)
        if stage == "fit":
            self.read_annotations()

    def read_annotations(self) -> None:
        """Read the files that the method needs, before anything runs."""
        if self.reference_file is None:
            return
        file = self.annotations(self.reference_file, KIND, "reference_file")
        name, own = file.annotator.models["reference"]
        start = local_folder(model_folder(str(self.given_model)), self.trust_remote_code)
        if model_hash(start) != own:
            raise OneShotError(
                f"model.reference_file: {file.path} is of {name}, not of the start model "
                f"{self.given_model}; run oneshot-lit annotate with that."
            )
        rows = self.training_rows().encoded
        places = [file.places(row, "a row of data.train")[0] for row in rows]
        numbers = [file.numbers[NAME][place] for place in places]
        self._log_probabilities = RowNumbers(
            [of_answers(own, row) for own, row in zip(numbers, rows, strict=True)]
        )

    def annotations(self, path: str, kind: str, key: str) -> Annotations:
        """Return a file of annotations; a resumed run must find the same."""
        file = Annotations(path, kind)
        file.require_current()
        self._annotated[key] = file
        return file

    def training_rows(self) -> Any:
        """Return the training rows of the data module, with their tokens and conversations."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if (rows := getattr(data, "training", None)) is None:
            raise OneShotError("data: annotations belong to rows of a SafetyDataModule; use it.")
        return rows

    def contents(self) -> dict[str, list[Any]]:
        """Return the number and a hash of all rows, and of what the files say about them."""
        files = {f"model.{k}": [len(f.keys), f.digest] for k, f in self._annotated.items()}
        return super().contents() | files

    def reference_log_probabilities(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the reference's log-probabilities of the label tokens.

        All processes must call it together, before the forward pass that gets the gradient.

        Returns:
            (labelled tokens,), in the order of `token_losses`, float32 or wider; NaN for a token
            that the file does not know, as only batches that count nothing have them.
        """
        labels = batch["labels"]
        if self._log_probabilities is not None:
            return of_labelled(self._log_probabilities.of(batch), labels)
        return self.reference(batch).gather(1, of_labelled(labels, labels).unsqueeze(1)).squeeze(1)

    def log_part(self, name: str, value: Tensor) -> None:
        """Log a part of the loss of this batch, where losses are logged."""
        if self._trainer is not None and self._log_this_step():
            self.log(f"train/{name}", value.detach(), sync_dist=True)
