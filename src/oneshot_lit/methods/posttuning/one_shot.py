"""`OneShotRealignmentModule`: repair a broken model with one safety example."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.posttuning.anchored import AnchoredModule
from oneshot_lit.methods.posttuning.step_selection import (
    StepRecord,
    StepSelector,
    attack_rate,
    development_score,
    overshoots,
    refusal_rate,
    require_rates,
)
from oneshot_lit.strategies.folders import own_state
from oneshot_lit.strategies.weights import own_weights, restart_optimizer, set_own_weights

ABOUT = About(
    name="one-shot realignment",
    stage="after fine-tuning",
    needs="one refusal, development prompts",
    paper="2601.01887",
    agreement="formula; no code of it was released",
    config="realign/one_shot.yaml",
)


class OneShotRealignmentModule(AnchoredModule):
    """Fine-tune the broken model on ONE safety instance for a few steps (arXiv 2601.01887).

    The number of steps that repairs without over-refusal depends on the rate and the model, and
    the window is narrow; so after every step the development prompts are answered, the best step is
    kept and training stops early. Scores are read on ``data.val_sets`` only, never on test sets.
    Each step also learns a few harmless rows of ``data.anchors``, if there are any.

    Args:
        select_best: Keep the weights of the best step; off keeps the last step, as in the paper.
        patience: Stop after this many validations without a better score, once the attack success
            rate has begun to fall.
        margin: How many validations beyond the first of several equally good ones to take, so that
            the kept step does not sit on the edge of the good window.
        refine: If the weights go from too little to too much repair between two validations, try
            this many points between them by bisection, with forward passes only. A rate that is too
            high then still finds the good window. 0 turns this off.
        attempts: If the attack survives an attempt and no harmless prompt is refused, the rate is
            too low: go back to the broken model and double it, up to this many attempts in all. 1
            turns this off. The best step of all attempts is kept.
        attempt_steps: Optimiser steps that an attempt has to remove the attack, no matter how many
            of them lie between two validations.
    """

    validation_prefix = "dev/"

    def __init__(
        self,
        *args: Any,
        select_best: bool = True,
        patience: int = 8,
        margin: int = 1,
        refine: int = 3,
        attempts: int = 4,
        attempt_steps: int = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        least = {"patience": 1, "margin": 0, "refine": 0, "attempts": 1, "attempt_steps": 1}
        given = (patience, margin, refine, attempts, attempt_steps)
        for (name, floor), value in zip(least.items(), given, strict=True):
            if value < floor:
                raise OneShotError(f"model.{name} must be at least {floor}, not {value}.")
        self.select_best = select_best
        self.selector = StepSelector(patience, margin, attempts, attempt_steps)
        self.refine = refine
        self._attempt = 1
        # On the CPU: an accelerator may not have the memory for a second copy of a large model.
        self._best_weights: dict[str, Tensor] = {}
        self._previous_weights: dict[str, Tensor] = {}
        # A second attempt starts from these.
        self.keeps_start_weights |= select_best and attempts > 1

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the configured optimiser, at twice the rate for each attempt after the first."""
        configured, factor = self.optimizer, 2.0 ** (self._attempt - 1)
        if factor == 1.0:
            return super().configure_optimizers()

        def faster(parameters: Any) -> Optimizer:
            optimizer = configured(parameters)
            for group in optimizer.param_groups:
                group["lr"] *= factor
            return optimizer

        self.optimizer = faster
        try:
            return super().configure_optimizers()
        finally:
            self.optimizer = configured

    @property
    def history(self) -> list[StepRecord]:
        """The record of each validation, also of those between steps, in the order of steps."""
        return sorted(self.selector.records, key=lambda record: record.step)

    @property
    def kept_step(self) -> float:
        """The step with the weights that are written, or would be if the run ended now."""
        best = self.selector.best
        return best.step if self.select_best and best is not None else self.global_step

    def on_fit_start(self) -> None:
        """Refuse to choose a step by rates that are not measured, or by some of the prompts."""
        super().on_fit_start()
        if not self.select_best:
            return
        require_rates(self.trainer.datamodule.prompt_sets("val"), "model.select_best")  # type: ignore[attr-defined]
        limit = self.trainer.limit_val_batches
        # A whole number counts batches; 1.0 is all of them.
        limited = isinstance(limit, int) or limit < 1
        if limited and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise OneShotError(
                f"trainer.limit_val_batches={limit} (or overfit_batches) keeps development prompts "
                "out, and model.select_best chooses by all of them; leave it out, or give smaller "
                "data.val_sets."
            )

    def on_train_start(self) -> None:
        """Score the broken model, unless the sanity check has done so on all prompts."""
        super().on_train_start()
        if self.selector.history or not self.trainer.val_dataloaders or not self.select_best:
            return
        self.eval()
        with torch.no_grad():
            self.scores = self.development_scores()
        self.train()
        self._judge()

    def on_validation_epoch_end(self) -> None:
        """Log the scores and judge the step."""
        super().on_validation_epoch_end()
        if not self.scores or self.trainer.state.fn != "fit":
            return
        # A sanity check of a few prompts does not measure the broken model.
        counts = zip(self.trainer.num_sanity_val_batches, self._prompt_loaders(), strict=True)
        if self.trainer.sanity_checking and any(n < len(loader) for n, loader in counts):
            return
        several = self.trainer.world_size > 1
        self.log("dev/score", self._judge().score, prog_bar=True, sync_dist=several)

    def _judge(self) -> StepRecord:
        """Record this step's scores; then keep its weights, stop or start over."""
        loss = self.trainer.callback_metrics.get("train/loss")
        started = self.global_step > 0 and loss is not None
        record = self._record(self.global_step, float(loss) if started else None)  # type: ignore[arg-type]
        before = self._before(record)
        better = self.selector.see(record)
        if not self.select_best:
            return record
        # One copy is enough: the first, the last and the best step may be the same.
        weights = self._start_weights if self.global_step == 0 else None
        if weights is None and (better or self.refine > 0):
            weights = own_weights(self)
        if better and weights is not None:
            self._best_weights = weights
        if self.refine > 0:
            if before is not None and overshoots(before.scores, record.scores):
                self._try_parts(before, record)
            self._previous_weights = weights or {}
        if self.selector.should_stop:
            self.trainer.should_stop = True
        elif self.selector.attempt == self._attempt and self.selector.should_start_over:
            self._start_over(record)
        return record

    def _before(self, record: StepRecord) -> StepRecord | None:
        """Return what was validated last; for the first of an attempt, the broken model."""
        seen = self.selector.history
        # A resumed run may validate the step it was saved at once more.
        if not seen or seen[-1].step >= record.step:
            return None
        return (
            seen[-1] if seen[-1].attempt == record.attempt else replace(seen[0], step=seen[-1].step)
        )

    def _start_over(self, record: StepRecord) -> None:
        """Go back to the broken model with a new optimiser at twice the rate."""
        rank_zero_info(
            f"step {record.step:g}: {attack_rate(record.scores):.1%} of the harmful development "
            "prompts are still answered and no harmless one is refused, so the rate is too low; "
            f"starting over at {2**self._attempt} times the configured rate"
        )
        self._attempt += 1
        set_own_weights(self, self.start_weights)
        self._previous_weights = self.start_weights
        restart_optimizer(self.trainer, factor=2.0)

    def _record(self, step: float, loss: float | None) -> StepRecord:
        seen = self.selector.history
        sets = [loader.dataset for loader in self._prompt_loaders()]
        unused = {prompt_set.name for prompt_set in sets if prompt_set.watch}
        watched = {k: v for k, v in self.scores.items() if k.rsplit("/", 1)[0] in unused}
        scores = {k: v for k, v in self.scores.items() if k not in watched}
        score = development_score(scores, seen[0].scores if seen else scores)
        attempt = 1 if step == 0 else self._attempt
        return StepRecord(step, score, scores, loss, attempt, watched)

    @torch.no_grad()
    def _try_parts(self, before: StepRecord, after: StepRecord) -> None:
        """Bisect between two validations for weights that refuse harmful prompts and no others."""
        start, end, scores = self._previous_weights, own_weights(self), self.scores
        low, high = 0.0, 1.0
        for _ in range(self.refine):
            part = (low + high) / 2
            mixed = {name: start[name].lerp(end[name], part) for name in end}
            set_own_weights(self, mixed)
            self.scores = self.development_scores()
            record = self._record(before.step + part * (after.step - before.step), None)
            if self.selector.see(replace(record, between=True)):
                self._best_weights = mixed
            if refusal_rate(record.scores) > refusal_rate(before.scores):
                high = part
            elif attack_rate(record.scores) > 0:
                low = part
            else:
                break
        set_own_weights(self, end)
        self.scores = scores

    def development_scores(self) -> dict[str, float]:
        """Answer and score the development prompts with the present weights."""
        # In the precision in which whole steps are validated.
        with self.trainer.precision_plugin.val_step_context():
            return self.score_loaders(self._prompt_loaders())

    def before_export(self) -> None:
        """Go back to the best step's weights, also when a finished run is resumed."""
        best = self.selector.best
        if not self.select_best:
            return
        if best is None or self.selector.history[-1].step == 0:
            raise OneShotError(
                "the run ended before a step was validated, so model.select_best has nothing to "
                "choose from; run longer (trainer.max_epochs, max_steps, max_time), or validate "
                "more often (check_val_every_n_epoch, val_check_interval). No model was written."
            )
        # Empty if the model is written a second time.
        if not self._best_weights:
            return
        set_own_weights(self, self._best_weights)
        self._best_weights = {}
        rank_zero_info(
            f"kept step {best.step:g} of {self.selector.history[-1].step:g}: development score "
            f"{best.score:.4f}"
        )
        attack, refused = attack_rate(best.scores), refusal_rate(best.scores)
        if max(attack, refused) > 0.05:
            rank_zero_warn(
                f"not repaired: at the kept step {attack:.1%} of the harmful development prompts "
                f"are answered and up to {refused:.1%} of the harmless ones refused; try another "
                "instance (general refusals repair best) or another rate."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also keep the records and the best weights, so that a killed run ends the same."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["realignment"] = {
            "records": [asdict(record) for record in self.selector.records],
            "attempt": self._attempt,
        }
        own_state(checkpoint)["realignment"] = {
            "best_weights": self._best_weights,
            "previous_weights": self._previous_weights,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the records from before the interruption."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("realignment")
        if state is None:
            return
        self.selector.records, self.selector.best = [], None
        for record in state["records"]:
            self.selector.see(StepRecord(**record))
        own = own_state(checkpoint)["realignment"]
        self._best_weights = own["best_weights"]
        self._previous_weights = own["previous_weights"]
        self._attempt = state["attempt"]
        # Killed after its last step but before the model was written: nothing is left to train.
        if self.trainer.state.fn == "fit" and self.select_best and self.selector.should_stop:
            self.trainer.should_stop = True
