"""The search for a step size that uses forward passes only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SEARCH_TABLE, SEARCH_PICTURE = "step_search.csv", "step_search.png"
# The strides are long, so this many of them go beyond any sensible step.
_STRIDE, _LADDER = 4.0, 20
# A drift this near its bound is not worth another forward sweep.
_NEAR = 0.9


@dataclass(frozen=True)
class TriedStep:
    """What was measured at one step size.

    Attributes:
        alpha: The step size.
        drift: Mean KL divergence on the drift rows, in nats a token; infinite if not finite.
        refused: Whether the instance is refused; None if that was not checked.
        kept: Whether it is the step that was taken.
    """

    alpha: float
    drift: float
    refused: bool | None = None
    kept: bool = False


def search_step(
    drift: Callable[[float], float],
    refused: Callable[[float], bool],
    max_drift: float,
    start: float = 0.01,
    refinements: int = 8,
) -> tuple[TriedStep | None, list[TriedStep]]:
    """Find the largest step size that keeps the drift in its bound and refuses the instance.

    The instance is refused long before other prompts are, so the largest admissible step is wanted.
    The step is multiplied (or divided) by 4 until the drift crosses its bound. The crossing is then
    bisected on a logarithmic scale until the drift is within a tenth of the bound. Last, refusal is
    checked from the largest bounded step downwards.

    Args:
        drift: Step size -> drift; one forward sweep a call.
        refused: Step size -> whether the instance is refused.
        max_drift: Bound of the drift, > 0.
        start: First step size, > 0.
        refinements: Maximum number of bisections; n of them leave a factor of ``4^(2^-n)``.

    Returns:
        The step to take, or None if no step is admissible, and all steps tried, in order.
    """
    drifts: dict[float, float] = {}

    def bounded(alpha: float) -> bool:
        value = drift(alpha)
        drifts[alpha] = value if math.isfinite(value) else math.inf
        return drifts[alpha] <= max_drift

    low, high = start, start
    grow = bounded(start)
    for _ in range(_LADDER):
        if grow:
            high = _STRIDE * low
            if not bounded(high):
                break
            low = high
        else:
            low = high / _STRIDE
            if bounded(low):
                break
            high = low
    if drifts[low] <= max_drift < drifts.get(high, 0.0):
        for _ in range(refinements):
            if drifts[low] >= _NEAR * max_drift:
                break
            middle = math.sqrt(low * high)
            if bounded(middle):
                low = middle
            else:
                high = middle

    crossing = min((a for a, d in drifts.items() if d > max_drift), default=math.inf)
    answers: dict[float, bool] = {}
    best = None
    for alpha in sorted((a for a in drifts if a < crossing), reverse=True):
        answers[alpha] = refused(alpha)
        if answers[alpha]:
            best = alpha
            break
    tried = [TriedStep(a, d, answers.get(a), a == best) for a, d in drifts.items()]
    return next((t for t in tried if t.kept), None), tried


def why_no_step(tried: Sequence[TriedStep], max_drift: float) -> str:
    """Return the line that says why no step was admissible, with the best step tried."""
    bounded = [t for t in tried if t.drift <= max_drift]
    if not bounded:
        best = min(tried, key=lambda t: t.drift)
        return (
            f"no admissible step: even alpha {best.alpha:.3g} drifts by {best.drift:.3g} nats, "
            f"above model.max_drift={max_drift:g}; raise it. No model was written."
        )
    best = max(bounded, key=lambda t: t.alpha)
    return (
        f"no admissible step: the best seen, alpha {best.alpha:.3g} with a drift of "
        f"{best.drift:.3g} nats, does not refuse the instance; raise model.max_drift, "
        "model.guard_lambda or model.k, or give another instance. No model was written."
    )


def table_rows(tried: Sequence[TriedStep]) -> list[dict[str, Any]]:
    """Return the rows of ``step_search.csv``, in the order in which the steps were tried.

    Columns: alpha, drift (nats), refused (1, 0, or None if not checked) and kept (1 for the step
    that was taken).
    """
    rows = [asdict(each) for each in tried]
    return [{k: int(v) if isinstance(v, bool) else v for k, v in row.items()} for row in rows]
