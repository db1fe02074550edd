"""The step of a low-rank repair that a bound of the drift on harmless rows chooses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_rows_atomically
from oneshot_lit.methods.posttuning.low_rank.step_search import (
    SEARCH_PICTURE,
    SEARCH_TABLE,
    TriedStep,
    search_step,
    table_rows,
    why_no_step,
)


class BoundedStep:
    """The steps that were tried, and the one that was taken.

    Args:
        max_drift: Bound of the drift, in nats a token.
        alpha: Take a step of this size, whatever its drift; None searches.
        search_steps: Maximum number of bisections.
    """

    def __init__(self, max_drift: float, alpha: float | None, search_steps: int) -> None:
        self.max_drift, self.alpha, self.search_steps = max_drift, alpha, search_steps
        self.tried: list[TriedStep] = []

    def __str__(self) -> str:
        taken = next(step for step in self.tried if step.kept)
        return (
            f"alpha {taken.alpha:.4g} of {len(self.tried)} tried, drift {taken.drift:.4g} of at "
            f"most {self.max_drift:.4g} nats"
        )

    def search(
        self, drift: Callable[[float], float], refused: Callable[[float], bool]
    ) -> TriedStep:
        """Return the step to take.

        Args:
            drift: Step size -> drift on harmless rows.
            refused: Step size -> whether the instance is refused.

        Raises:
            OneShotError: if no step is admissible, or the given one breaks the model.
        """
        if self.alpha is None:
            chosen, self.tried = search_step(
                drift, refused, self.max_drift, refinements=self.search_steps
            )
            if chosen is None:
                raise OneShotError(why_no_step(self.tried, self.max_drift))
            return chosen
        step = TriedStep(self.alpha, drift(self.alpha), refused(self.alpha), True)
        if not math.isfinite(step.drift):
            raise OneShotError(
                f"model.alpha={self.alpha:g} breaks the model (drift {step.drift}); lower it. "
                "No model was written."
            )
        if not step.refused:
            rank_zero_warn(f"the instance is still answered at model.alpha={self.alpha:g}.")
        self.tried = [step]
        return step

    def write(self, root: Path) -> None:
        """Write table and picture into a folder."""
        from oneshot_lit.plots import progress, save_figure

        rows = table_rows(self.tried)
        label = "drift on harmless rows (KL, nats a token)"
        # A step that is lost to rounding has no drift, or one below zero.
        drawn = sorted((row for row in rows if row["drift"] > 0), key=lambda row: row["alpha"])
        if drawn:
            bound = {label: ("bound of the drift", self.max_drift)}
            figure = progress(drawn, "alpha", {label: ["drift"]}, bound, log=True)
            save_figure(figure, root / SEARCH_PICTURE)
        write_rows_atomically(root / SEARCH_TABLE, rows)
