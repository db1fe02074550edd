"""`LogProbabilities`: how likely a frozen reference finds each token of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oneshot_lit.methods.annotate.base import Annotation, Numbers

KIND, NAME = "reference log-probabilities", "log_probabilities"


class LogProbabilities(Annotation):
    """Write the log-probability of each label token under a reference, in nats and float32.

    Methods that compare with a reference read them with `reference_file`, and then need no
    reference in memory. By default the reference is `model.model_name_or_path` itself.

    Args:
        reference: Folder or hub name of another reference with the same tokenizer.
    """

    kind = KIND

    def __init__(self, *args: Any, reference: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reference_name = reference or self.given_model

    def models(self) -> dict[str, str]:
        """Return the reference."""
        return {"reference": str(self.reference_name)}

    def load_part(self, part: str) -> None:
        """Load the reference."""
        self.model = self.loaded(str(self.reference_name))

    def annotate(self, part: str, indices: Sequence[int]) -> list[Numbers]:
        """Return the log-probabilities of rows."""
        return [{NAME: -each} for each in self.answer_losses(self.model, indices)]
