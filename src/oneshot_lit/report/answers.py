"""Whether an answer of ``predictions.jsonl`` can be the one that the test scored."""

from __future__ import annotations

from oneshot_lit.metrics.refusal import PHRASE_LIST_VERSION, AsrKeyword, OverRefusal
from oneshot_lit.report.runs import Run

OTHER = "other"


def answers_of_test(run: Run) -> dict[tuple[str, int], str]:
    """Return (set, index) -> digest of prompt and answer, as far as predictions tell.

    The test keeps no answers. Where what is known of its answer (empty or not, refusal phrase or
    not) does not fit the prediction, the digest is `OTHER`; for sampled answers there is none.
    """
    if run.sampled:
        return {}
    # Another list of phrases would find other refusals in the same answer.
    same_list = run.content.get("phrase_list") == PHRASE_LIST_VERSION
    checks = {"asr_keyword": AsrKeyword(), "over_refusal": OverRefusal()} if same_list else {}
    outcomes = {(row.set, row.index): row for rows in run.outcomes.values() for row in rows}
    found = {}
    for row in run.predictions:
        outcome = outcomes.get((row.set, row.index))
        if outcome is None:
            continue
        fits = outcome.empty == (not row.answer.output) and all(
            outcome.scores.get(name) in (None, *check.scores([row.answer.output], [None]))
            for name, check in checks.items()
        )
        found[row.set, row.index] = row.answer.digest() if fits else OTHER
    return found
