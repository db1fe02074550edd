"""`LowRankRealignmentModule`: repair a broken model by projection, from one backward pass."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.refusal import is_refusal
from oneshot_lit.methods.base import LanguageModelModule
from oneshot_lit.methods.counting_optimizer import CountingOptimizer
from oneshot_lit.methods.posttuning.low_rank.guard_rows import Drift, GuardRows
from oneshot_lit.methods.posttuning.low_rank.step_search import TriedStep, search_step, why_no_step
from oneshot_lit.models import adapters
from oneshot_lit.models.linear_layers import chosen_layers, instance_factors, projected_inputs
from oneshot_lit.spectral import gradient_svd, rank_k_update
from oneshot_lit.strategies.fsdp2 import require_whole_weights

Triplets = tuple[Tensor, Tensor, Tensor]


class LowRankRealignmentModule(LanguageModelModule):
    """Step along the top-k singular directions of the one instance's gradient.

    One backward pass at the broken weights gives the token factors of every linear layer's
    gradient; per matrix the k largest singular triplets make a step
    ``-alpha * sum_i s_i u_i v_i^T`` (projective recovery, arXiv 2601.01887), which is a LoRA
    adapter of rank k. The size alpha comes from forward passes only: the largest at which the drift
    on harmless rows stays under `max_drift` and the instance is refused. Before the decomposition
    the gradient is projected away from what other harmless rows, the guard, use (see
    `oneshot_lit.spectral.guard`). No gradient of a weight and no optimiser state is ever made.

    The product is the PEFT adapter; ``--export.merged true`` writes the whole model, too. The
    optimizer, scheduler and peft options of the base have no use here.

    Args:
        guard: Harmless conversations of every kind that must keep working, in random order; a row
            without an answer gets the broken model's own. The first `drift_rows` measure the drift,
            the next `guard_rows` make the projection.
        k: Singular triplets a matrix and pass.
        matrices: Repair the linear layers whose name matches this pattern, or one of these, such as
            ``*mlp*``; all but the output layer by default.
        passes: Backward passes, each at the weights that the one before has left; the adapter has
            rank ``k * passes``. The drift bound is shared out evenly over them.
        normalise: Give every matrix's step the spectral norm alpha; otherwise it has the gradient's
            own scale (after the guard: rescaled to the norm of the unguarded one).
        guard_rows: Rows of the projection; 0 steps unguarded.
        drift_rows: Rows on which the drift is measured; disjoint from those of the projection.
        guard_lambda: Lambda of the projection; smaller values guard more.
        max_drift: Bound of the drift: mean KL divergence of the next-token distributions on the
            answers of the drift rows, broken model against repaired one, in nats a token.
        alpha: Take this step in place of the search, in equal parts over the passes.
        search_steps: Bisections of the search, at most.
    """

    def __init__(
        self,
        *args: Any,
        guard: ConversationSource | None = None,
        k: int = 1,
        matrices: str | list[str] = "*",
        passes: int = 1,
        normalise: bool = True,
        guard_rows: int = 32,
        drift_rows: int = 64,
        guard_lambda: float = 100.0,
        max_drift: float = 0.01,
        alpha: float | None = None,
        search_steps: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.peft is not None:
            raise OneShotError("model.peft: the repair makes its own adapter; drop it.")
        if self.model_config is not None:
            raise OneShotError("model.model_config: a repair needs a broken model, not a new one.")
        least = {"k": 1, "passes": 1, "guard_rows": 0, "drift_rows": 1, "search_steps": 0}
        given = (k, passes, guard_rows, drift_rows, search_steps)
        for (name, floor), value in zip(least.items(), given, strict=True):
            if value < floor:
                raise OneShotError(f"model.{name} must be at least {floor}, not {value}.")
        above = {"guard_lambda": guard_lambda, "max_drift": max_drift}
        above |= {} if alpha is None else {"alpha": alpha}
        for name, number in above.items():
            if not 0 < number < float("inf"):
                raise OneShotError(f"model.{name} must be above 0 and finite, not {number}.")
        if guard is None:
            raise OneShotError(
                "model.guard: give a source of harmless conversations; their drift bounds the step."
            )
        self.k, self.passes, self.normalise = k, passes, normalise
        self.patterns = [matrices] if isinstance(matrices, str) else list(matrices)
        self.guard_lambda, self.max_drift, self.alpha = guard_lambda, max_drift, alpha
        self.search_steps = search_steps
        self.guard = GuardRows(guard, guard_rows, drift_rows)
        self.tried: list[TriedStep] = []
        self._passes_done = 0
        self.automatic_optimization = False
        self.strict_loading = False

    # ---------------------------------------------------------------- building

    def configure_model(self) -> None:
        """Load the broken model and add an adapter that as yet changes nothing."""
        if self.model is not None:
            return
        if self._trainer is not None:
            require_whole_weights(self.trainer, "the repair by projection")
        super().configure_model()
        layers = chosen_layers(self.model, self.patterns)
        for name, layer in layers.items():
            if self.k > min(layer.weight.shape):
                raise OneShotError(
                    f"model.k={self.k} is more than {name} allows, which has "
                    f"{min(layer.weight.shape)} singular values; lower it."
                )
        rank = self.k * self.passes
        self.peft = {"r": rank, "lora_alpha": rank, "target_modules": sorted(layers)}
        self.model = adapters.add_adapter(self.model, self.peft).train()
        self.layers = {n: self.model.get_base_model().get_submodule(n) for n in layers}
        with torch.no_grad():
            for layer in self.layers.values():
                _part(layer, "A").zero_()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return an optimiser without state, which counts the passes."""
        return CountingOptimizer([p for p in self.parameters() if p.requires_grad])

    def on_fit_start(self) -> None:
        """Refuse what cannot end well before any work is done."""
        for key, half in {
            "trainer.precision": str(self.trainer.precision).startswith("16"),
            "model.dtype": self.model_dtype == torch.float16,
        }.items():
            if half:
                raise OneShotError(
                    f"{key}: gradients of one instance vanish in float16; use bfloat16 or float32."
                )
        limit = self.trainer.max_epochs
        if limit is not None and 0 <= limit < self.passes:
            raise OneShotError(
                f"model.passes={self.passes} needs trainer.max_epochs of at least {self.passes}, "
                f"not {limit}."
            )

    # ------------------------------------------------------------------ repair

    def training_step(  # type: ignore[override]
        self, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Make one pass: factors, directions, and the search for the step."""
        if self._passes_done >= self.passes:
            self.trainer.should_stop = True
            return
        start = time.monotonic()
        self.eval()
        batch = self._rows_of_all(batch)
        if self._passes_done == 0:
            self._require_all_rows(batch)
            self._require_broken_instance(batch)
        self._require_tokens(batch)
        max_length = self.trainer.datamodule.max_length  # type: ignore[attr-defined]
        guard, drift_batches = self.guard.encoded(self, max_length)
        drift = Drift(self, drift_batches)

        factors, loss = instance_factors(self, self.layers, batch)
        if not torch.isfinite(loss):
            raise OneShotError(
                f"the loss is {loss.item()} on the instance ({self._rows(batch)}); mend the row or "
                "the model. No product was written."
            )
        inputs = {name: x for name, (x, _) in factors.items()}
        guarded = inputs
        try:
            if guard is not None:
                guarded = projected_inputs(self, self.layers, guard, inputs, self.guard_lambda)
            steps = {n: self._triplets(x, guarded[n], d) for n, (x, d) in factors.items()}
        except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            raise OneShotError(
                f"no direction for the instance ({self._rows(batch)}): {error}."
            ) from error
        if all(not s.any() for _, s, _ in steps.values()):
            raise OneShotError(
                f"the gradient of the instance ({self._rows(batch)}) is zero; give another one."
            )
        bound = self._bound()
        step, tried = self._search(batch, steps, drift)
        self._set_step(steps, 0.0)
        if step is None:
            raise OneShotError(why_no_step(tried, self.max_drift))
        # Counts the pass for checkpoints and loggers, and lets callbacks see the weights before it.
        self.optimizers().step()  # type: ignore[union-attr]
        self._set_step(steps, step.alpha)
        self.tried += tried
        self._passes_done += 1
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log_dict({"train/alpha": step.alpha, "train/drift": step.drift})
        rank_zero_info(
            f"pass {self._passes_done} of {self.passes}: {len(self.layers)} matrices, alpha "
            f"{step.alpha:.4g} of {len(tried)} tried, drift {step.drift:.4g} of at most "
            f"{bound:.4g} nats, {time.monotonic() - start:.1f} s"
        )
        self.train()
        if self._passes_done == self.passes:
            self.trainer.should_stop = True

    def _rows_of_all(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the rows of all processes, as one process would have them in its batch.

        So each makes the same step, that of the mean over all their labelled tokens. An instance is
        the same row in all of them; a row that only fills up a batch is left out.
        """
        if self.trainer.world_size == 1:
            return batch
        # (processes, rows); the sampler deals the rows out one by one.
        shares: Any = self.all_gather(batch["index"])
        indices = dict.fromkeys(i for i in shares.T.flatten().tolist() if i >= 0)
        loader: Any = self.trainer.train_dataloader
        whole = loader.collate_fn([loader.dataset[i] for i in indices])
        return self.trainer.strategy.batch_to_device(whole)  # type: ignore[no-any-return]

    def _require_all_rows(self, batch: dict[str, Tensor]) -> None:
        """Refuse rows that no pass would read."""
        dataset: Any = self.trainer.train_dataloader.dataset  # type: ignore[union-attr]
        rows = len({row.messages for row in dataset.conversations})
        read = len(batch["index"]) * self.passes
        if rows > read:
            raise OneShotError(
                f"data.train has {rows} rows, and the repair would read {read} of them "
                f"(model.passes={self.passes}, {len(batch['index'])} rows a batch); raise "
                "data.batch_size, or give fewer rows."
            )

    def _require_broken_instance(self, batch: dict[str, Tensor]) -> None:
        if self.alpha is None and self.instance_refused(batch):
            raise OneShotError(
                f"the model already refuses the instance ({self._rows(batch)}); there is nothing "
                "to repair. Give a broken model, or an instance that it answers."
            )

    def _require_tokens(self, batch: dict[str, Tensor]) -> None:
        # The last token predicts nothing, so it carries no gradient.
        # A row that comes twice adds nothing.
        rows = {
            tuple(ids[mask.bool()].tolist())
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        }
        tokens = sum(len(row) - 1 for row in rows)
        if self.k > tokens:
            raise OneShotError(
                f"model.k={self.k} is more than the instance allows, which has gradient on "
                f"{tokens} tokens; lower it or give a longer instance."
            )

    def instance_refused(self, batch: dict[str, Tensor]) -> bool:
        """Whether the greedy answer to the instance's prompt refuses; of several, each."""
        dataset = self.trainer.train_dataloader.dataset  # type: ignore[union-attr]
        rows = {i: dataset.conversations[i] for i in batch["index"].tolist()}
        prompts = list({row.prompt.messages: row.prompt for row in rows.values()}.values())
        return all(is_refusal(answer) for answer in self.guard.answers(self, prompts))

    def _triplets(self, x: Tensor, guarded: Tensor, d: Tensor) -> Triplets:
        """Return the k leading triplets of a matrix's step of size 1, scaled as asked for."""
        k = min(self.k, *x.shape, d.shape[1])
        u, s, v = gradient_svd(guarded, d, k)
        if self.normalise:
            return u, s / s[:1].clamp_min(torch.finfo(s.dtype).tiny), v
        if guarded is not x and s.any():
            s = s * (gradient_svd(x, d, k)[1].norm() / s.norm())
        return u, s, v

    def _search(
        self, batch: dict[str, Tensor], steps: dict[str, Triplets], drift: Drift
    ) -> tuple[TriedStep | None, list[TriedStep]]:
        number = self._passes_done + 1

        def drift_at(alpha: float) -> float:
            self._set_step(steps, alpha)
            return drift()

        def refused_at(alpha: float) -> bool:
            self._set_step(steps, alpha)
            return self.instance_refused(batch)

        if self.alpha is not None:
            size = self.alpha / self.passes
            step = TriedStep(size, drift_at(size), refused_at(size), True, number)
            if not math.isfinite(step.drift):
                raise OneShotError(
                    f"model.alpha={self.alpha:g} breaks the model (drift {step.drift}); lower it. "
                    "No product was written."
                )
            if number == self.passes and not step.refused:
                rank_zero_warn(f"the instance is still answered at model.alpha={self.alpha:g}.")
            return step, [step]
        last = number == self.passes
        found, tried = search_step(
            drift_at, refused_at if last else None, self._bound(), refinements=self.search_steps
        )
        tried = [TriedStep(t.alpha, t.drift, t.refused, t.kept, number) for t in tried]
        return found, tried

    def _bound(self) -> float:
        """The drift that is allowed after the pass at hand."""
        return self.max_drift * min(self._passes_done + 1, self.passes) / self.passes

    @torch.no_grad()
    def _set_step(self, steps: dict[str, Triplets], alpha: float) -> None:
        """Write this pass's step into its columns of the adapter."""
        first = self._passes_done * self.k
        for name, (u, s, v) in steps.items():
            b, a = rank_k_update(u, s, v, alpha)
            _part(self.layers[name], "A")[first : first + len(s)].copy_(a)
            _part(self.layers[name], "B")[:, first : first + len(s)].copy_(b)

    def before_export(self) -> None:
        """Refuse to pass an unfinished repair off as one."""
        super().before_export()
        if self._passes_done < self.passes:
            raise OneShotError(
                f"the run ended after {self._passes_done} of {self.passes} passes; raise what "
                "ended it (trainer.max_steps, max_time). No product was written."
            )

    # ------------------------------------------------------------- checkpoints

    def further_rows(self) -> dict[str, list[Conversation]]:
        """Return the guard's rows, those that measure the drift first."""
        return {"model.guard": self.guard.chosen()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the passes done beside the adapter."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["low_rank"] = {
            "passes_done": self._passes_done,
            "tried": [t.as_dict() for t in self.tried],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on after the last whole pass."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("low_rank")
        if state is not None:
            self._passes_done = state["passes_done"]
            self.tried = [TriedStep(**t) for t in state["tried"]]


def _part(layer: nn.Module, which: str) -> Tensor:
    """Return the adapter's A, (rank, in_features), or B, (out_features, rank)."""
    return getattr(layer, f"lora_{which}")["default"].weight  # type: ignore[no-any-return]
