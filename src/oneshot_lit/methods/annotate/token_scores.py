"""`TokenScores`: what a harmful and a useful reference say of each token (TOSS)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_text_atomically
from oneshot_lit.methods.annotate.base import Annotation, Numbers
from oneshot_lit.methods.finetuning.toss import HARMFUL, KIND, UTILITY, rows_of_top_tokens, scores

PRO_FILE = "harmful_rows.jsonl"


class TokenScores(Annotation):
    """Write the losses of each label token under the two references of TOSS (arXiv 2603.01185).

    `TossTokens` makes the scores and the choice of tokens of them, so another share of tokens needs
    no other annotation. With `pro_rows` (TOSS-Pro) it also writes ``<root>/harmful_rows.jsonl``:
    the rows of the highest-scoring tokens, on which the next harmful reference is trained.

    Args:
        harmful: The start model, fine-tuned on harmful rows.
        utility: The start model, fine-tuned on useful rows.
        pro_rows: How many rows the next harmful reference is trained on. The paper's number is not
            known.
    """

    kind = KIND

    def __init__(
        self, *args: Any, harmful: str, utility: str, pro_rows: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if pro_rows < 0:
            raise OneShotError(f"model.pro_rows must not be negative, not {pro_rows}.")
        self.names, self.pro_rows = {UTILITY: utility, HARMFUL: harmful}, pro_rows

    def models(self) -> dict[str, str]:
        """Return the two references."""
        return self.names

    def load_part(self, part: str) -> None:
        """Load a reference."""
        self.model = None
        self.model = self.loaded(self.names[part])

    def annotate(self, part: str, indices: Sequence[int]) -> list[Numbers]:
        """Return the losses of rows."""
        return [{part: each} for each in self.answer_losses(self.model, indices)]

    def finish(self, root: Path) -> None:
        """Write the losses, and the rows of the next harmful reference."""
        super().finish(root)
        if not self.pro_rows:
            return
        of_rows = [scores(own[UTILITY], own[HARMFUL]) for own in self.all_numbers()]
        chosen = rows_of_top_tokens(of_rows, self.pro_rows)
        lines = [
            json.dumps(self.conversations[i].as_dict(), ensure_ascii=False) + "\n" for i in chosen
        ]
        # Its owner alone may read what the harmful model likes best.
        write_text_atomically(root / PRO_FILE, "".join(lines), private=True)
