"""`RuleSelectionModule`: rank the candidates by a rule that trains on none of them.

A selector outside of the package, as a user writes one. From the repository's root:
oneshot-lit select --config experiments/selection/rule.yaml --model.rule longest
"""

from __future__ import annotations

from typing import Any

from experiments.selection.rules import RULES, Evidence
from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.methods.select.upper_level import UpperLevel


class RuleSelectionModule(UpperLevel):
    """Rank the candidates by a cheap rule, computed at the broken model.

    Rules: ``random`` (of the run's seed), ``longest`` and ``shortest`` (tokens), ``lowest_loss``,
    ``highest_loss``, ``gradient_match`` (the inner product with the gradient of the upper
    objective, the only rule that needs `aligned`, `harmful` and `task`), ``mean_overlap`` (of the
    gradient's leading directions with those of the pool's mean gradient) and ``general_first``
    (category `general` before the others, in the pool's order).

    Args:
        rule: The rule.
        overlap_k: Leading directions that ``mean_overlap`` compares.
    """

    def __init__(
        self, *args: Any, rule: str = "gradient_match", overlap_k: int = 8, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if rule not in RULES:
            raise OneShotError(
                f"model.rule '{rule}'{did_you_mean(rule, list(RULES))} is unknown; the rules are "
                f"{', '.join(RULES)}."
            )
        if self.peft is not None:
            raise OneShotError("model.peft: a rule trains nothing; drop it.")
        if overlap_k < 1:
            raise OneShotError(f"model.overlap_k must be at least 1, not {overlap_k}.")
        self.rule, self.overlap_k = rule, overlap_k
        self._scores: list[float] = []
        self._facts: dict[str, Any] = {}
        self._seen: Evidence | None = None

    def steps(self) -> tuple[int, int]:
        """Return one step: all candidates at once."""
        return int(bool(self._scores)), 1

    def step(self) -> bool:
        """Score all candidates."""
        self.eval()
        upper = self.upper_terms() if self.rule == "gradient_match" else []
        self._seen = Evidence(
            self.pool, self.batches(self.pool), self.model, upper, self.run_seed, self.overlap_k
        )
        self._scores = RULES[self.rule](self._seen)
        compared = {"aligned": self.aligned, "task_weight": self.task_weight} if upper else {}
        self._facts = {
            **compared,
            "seed": self.run_seed,
            "forward_rows": self._seen.forwards + self.reference_rows,
            "backward_rows": self._seen.backwards,
            "answers": self.answers,
        }
        return True

    def candidate_scores(self) -> list[float]:
        """Return the rule's scores."""
        return self._scores

    def selection_facts(self) -> dict[str, Any]:
        """Return the rule and what it cost."""
        return {"rule": self.rule, **self._facts}

    # ---------------------------------------------------------------- checkpoints

    def job_state(self) -> dict[str, Any]:
        """Return the scores and what they cost."""
        return {"scores": list(self._scores), "facts": dict(self._facts)}

    def load_job_state(self, state: dict[str, Any]) -> None:
        """Restore scores that were computed before."""
        self._scores, self._facts = list(state["scores"]), dict(state["facts"])
