"""How a module scores the answers to prompts, in validation and test, and hands them to predict."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.evaluation.judges.base import Answer
from oneshot_lit.evaluation.metrics.base import TextScore
from oneshot_lit.evaluation.metrics.registry import METRICS
from oneshot_lit.models.answering import Answering
from oneshot_lit.models.generation import Output


class PromptScoring(Answering):
    """The part of `LanguageModelModule` that scores prompt sets.

    Attributes:
        scores: ``<set>/<metric>`` -> value of the last validation or test.
        counts: How many answers each set has (``samples``), how many of them are empty
            (``empty_outputs``) or end at `max_new_tokens` (``cut_outputs``), and how many each
            ``<set>/<metric>`` could not score (``unscored``).
        outcomes: What each answer of this process scored in a test, as rows without any text.
        evaluations: What callbacks measured beside the answers: name -> facts as plain JSON values,
            and ``scores``, ``<set>/<metric>`` -> value. They land in ``metrics.json``.
    """

    # Names of validation scores start with this; those of test scores have no prefix.
    validation_prefix = "val/"
    device: torch.device
    log_dict: Any
    scores: dict[str, float]
    counts: dict[str, dict[str, int]]
    outcomes: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]
    _metrics: dict[str, dict[str, TextScore]]
    _sets: list[Any]
    all_gather: Any

    def score_loaders(self, loaders: list[Any]) -> dict[str, float]:
        """Answer the prompts of each loader; returns ``<set>/<metric>`` -> value.

        For use outside a trainer's loops. All processes must call it together; the caller turns
        gradients off and sets the precision.
        """
        self._start_scoring(loaders)
        for number, loader in enumerate(loaders):
            for batch in loader:
                on_device = {key: value.to(self.device) for key, value in batch.items()}
                self.score_batch(on_device, number)
        return self.computed_scores()

    def _prompt_loaders(self) -> list[Any]:
        if self.trainer.testing:
            loaders: Any = self.trainer.test_dataloaders
        elif self.trainer.predicting:
            loaders = self.trainer.predict_dataloaders
        else:
            loaders = self.trainer.val_dataloaders
        return loaders if isinstance(loaders, list) else [loaders]

    def _prompt_set(self, dataloader_idx: int) -> Any:
        return self._sets[dataloader_idx]

    def score_batch(self, batch: dict[str, Tensor], dataloader_idx: int) -> None:
        """Answer a batch of prompts and add the answers to the metrics of their set."""
        answers = self.answer_batch(batch)
        # A batch may hold padding rows only.
        if not answers:
            return
        prompts = self._prompt_set(dataloader_idx)
        outputs, references = list(answers.values()), [prompts.references[i] for i in answers]
        for metric in self._metrics[prompts.name].values():
            metric.update(outputs, references)
        if self.trainer.testing:
            self._note_outcomes(prompts, answers)
        self.counts["samples"][prompts.name] += len(outputs)
        self.counts["empty_outputs"][prompts.name] += sum(not output for output in outputs)
        self.counts["cut_outputs"][prompts.name] += sum(output.cut for output in outputs)

    def _note_outcomes(self, prompts: Any, answers: dict[int, Output]) -> None:
        """Keep what each answer scores, without any text."""
        metrics = self._metrics[prompts.name]
        scores_by_metric = {name: metric.last_scores for name, metric in metrics.items()}
        for position, (index, output) in enumerate(answers.items()):
            prompt = prompts.conversations[index].prompt
            scores = {name: each[position] for name, each in scores_by_metric.items()}
            self.outcomes.append(
                {
                    "set": prompts.name,
                    "kind": prompts.kind,
                    "index": index,
                    "id": prompt.id,
                    "category": prompt.category,
                    "prompt": prompt.digest(),
                    "digest": Answer(prompt.messages, str(output)).digest(),
                    # JSON has no NaN.
                    "scores": {n: None if math.isnan(v) else v for n, v in scores.items()},
                    "empty": not output,
                }
            )

    def _start_scoring(self, loaders: list[Any]) -> None:
        # All metrics on all processes: one without a prompt of a set must still join the sums.
        sets = self._sets = [loader.dataset for loader in loaders]
        self._metrics = {s.name: {n: METRICS[n]().to(self.device) for n in s.metrics} for s in sets}
        kinds = ("samples", "empty_outputs", "cut_outputs")
        self.counts = {kind: {s.name: 0 for s in sets} for kind in kinds}
        self.outcomes = []

    def computed_scores(self) -> dict[str, float]:
        """Return ``<set>/<metric>`` -> value over all answers of all processes."""
        metrics = {f"{s}/{n}": m for s, of_set in self._metrics.items() for n, m in of_set.items()}
        self.counts["unscored"] = {key: int(metric.unscored) for key, metric in metrics.items()}
        for counts in self.counts.values():
            if counts and self.trainer.world_size > 1:
                summed = torch.tensor(list(counts.values()), device=self.device)
                summed = self.all_gather(summed).sum(0)
                counts.update(zip(counts, summed.tolist(), strict=True))
        return {key: float(metric.compute()) for key, metric in metrics.items()}

    def _finish_scoring(self, prefix: str) -> None:
        self.scores = self.computed_scores()
        # Equal on all processes already.
        named = {prefix + key: value for key, value in self.scores.items()}
        self.log_dict(named, sync_dist=self.trainer.world_size > 1)

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the last validation."""
        self._start_scoring(self._prompt_loaders())

    def validation_step(
        self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Answer and score a batch of development prompts."""
        self.score_batch(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the development scores as ``val/<set>/<metric>``."""
        self._finish_scoring(self.validation_prefix)

    def on_test_epoch_start(self) -> None:
        """Forget earlier scores."""
        self._start_scoring(self._prompt_loaders())

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer and score a batch of held-out prompts."""
        self.score_batch(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Log the held-out scores as ``<set>/<metric>``."""
        self._finish_scoring("")

    def predict_step(
        self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Answer a batch of prompts; returns a row for each."""
        prompts = self._prompt_loaders()[dataloader_idx].dataset
        return [
            {
                "set": prompts.name,
                "kind": prompts.kind,
                "index": index,
                **prompts.conversations[index].prompt.as_dict(),
                "output": output,
                "cut": output.cut,
                **({} if output.raw == output else {"raw_output": output.raw}),
            }
            for index, output in self.answer_batch(batch).items()
        ]
