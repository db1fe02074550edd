"""`GradientRank`: singular values of the gradient of every tracked weight matrix as it trains."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from oneshot_lit.callbacks.gradient_reference import GradientReference
from oneshot_lit.callbacks.shared_spectra import shared_spectra
from oneshot_lit.callbacks.spectra_files import append_tables, draw_spectra, start_tables
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError
from oneshot_lit.spectral.recorder import FactorRecorder, base_of
from oneshot_lit.strategies import exchange, gradients

if TYPE_CHECKING:
    import pandas as pd


class GradientRank(Callback):
    """Log singular-value spectra of the weight gradients, at the first step of each epoch.

    The values are exact and come from the inputs and output gradients of linear and embedding
    layers (see `oneshot_lit.spectral.factors`), so no weight-sized matrix is decomposed while there
    are few tokens. They are those of the gradient that the optimiser gets, before clipping: the
    mean over all processes and accumulated batches. When an adapter is trained, the frozen weights
    under it are measured too, as if they were trained.

    Runs on one device and under DDP, FSDP2 (`ModelParallelStrategy`) and DeepSpeed ZeRO 1 to 3; the
    processes share the decompositions. Weights and gradients stay sharded, except those of a matrix
    that is in no such layer, or is used outside its own: its whole gradient is gathered.

    Writes ``<root>/spectra/spectra.csv`` (epoch, step, parameter, index, singular_value) and
    ``<root>/spectra/summary.csv`` (epoch, step, parameter, cer_k, effective_rank, stable_rank,
    frobenius_norm, overlap, overlap_chance, cosine), logs the means over matrices as
    ``spectra/cer_k`` and so on, and each matrix's effective rank, and at the end draws
    ``energy.png`` and ``effective_rank.png`` beside the tables.

    Args:
        parameters: Track the 2-D parameters whose name matches this pattern, or one of these.
        every_n_epochs: How often.
        every_n_steps: Measure every so many optimiser steps instead, from the first one on.
        k: For which k the cumulative energy ratio is summed up and logged.
        frozen: Also measure the frozen weights that an adapter adds to.
        reference: Compare each gradient with that of a batch of these rows at the same weights,
            such as safety instances or harmful examples. Not compared are weights without factors,
            and embeddings unless the output layer shares them.
        reference_rows: How many rows of the source make the batch.
        overlap_k: The overlap is that of so many leading left singular vectors.

    Raises:
        OneShotError: if a pattern matches nothing, or a gradient cannot be read.
    """

    def __init__(
        self,
        parameters: str | list[str] = "*",
        every_n_epochs: int = 1,
        k: list[int] | None = None,
        every_n_steps: int | None = None,
        frozen: bool = True,
        reference: ConversationSource | None = None,
        reference_rows: int = 8,
        overlap_k: int = 20,
    ) -> None:
        for name, value in {
            "every_n_epochs": every_n_epochs,
            "every_n_steps": every_n_steps,
            "reference_rows": reference_rows,
            "overlap_k": overlap_k,
        }.items():
            if value is not None and value < 1:
                raise OneShotError(f"GradientRank: {name} must be >= 1, not {value}.")
        self.patterns = [parameters] if isinstance(parameters, str) else list(parameters)
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.k = [1, 5, 10, 20] if k is None else k
        if any(each < 1 for each in self.k):
            raise OneShotError(f"GradientRank: each k must be >= 1, not {min(self.k)}.")
        self.frozen = frozen
        self.reference = (
            None if reference is None else GradientReference(reference, reference_rows, overlap_k)
        )
        self._names: list[str] = []
        self._recorder: FactorRecorder | None = None
        self._due = self._armed = False
        self._at_boundary = True

    # ------------------------------------------------------------------ set-up

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the parameters and take up the files of an interrupted run."""
        under_adapter = {
            id(getattr(base, "weight", None))
            for module in pl_module.modules()
            if self.frozen and (base := base_of(module)) is not None
        }
        candidates = {
            name: p
            for name, p in pl_module.named_parameters()
            if len(gradients.full_shape(p)) == 2 and (p.requires_grad or id(p) in under_adapter)
        }
        chosen: dict[str, None] = {}
        for pattern in self.patterns:
            matching = fnmatch.filter(candidates, f"*{pattern}")
            if not matching:
                raise OneShotError(
                    f"GradientRank: no trainable 2-D parameter matches '{pattern}'; give a "
                    "pattern such as '*q_proj*'."
                )
            chosen |= dict.fromkeys(matching)
        self._names = [name for name in candidates if name in chosen]
        self._due, self._armed, self._at_boundary = False, False, True
        if self.reference is not None:
            self.reference.start(trainer, pl_module)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            start_tables(Path(trainer.default_root_dir), trainer.global_step)

    def _tracked(self, pl_module: LightningModule) -> dict[str, nn.Parameter]:
        """Return the parameters as they are now; FSDP2 swaps them between passes."""
        parameters = dict(pl_module.named_parameters())
        return {name.removeprefix("model."): parameters[name] for name in self._names}

    # -------------------------------------------------------------------- step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen during the optimiser steps that are to be measured only."""
        if self.every_n_steps is None and batch_idx == 0:
            self._due = trainer.current_epoch % self.every_n_epochs == 0
        # Accumulation may go on from one epoch into the next, so batches are not counted here.
        if not self._at_boundary:
            return
        self._at_boundary = False
        if self.every_n_steps is not None:
            self._due = trainer.global_step % self.every_n_steps == 0
        if self._due:
            self._due, self._armed = False, True
            self._recorder = FactorRecorder(self._tracked(pl_module))
            self._recorder.attach(pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Compute, write and log the spectra."""
        if not gradients.is_boundary(trainer):
            return
        self._at_boundary = True
        if not self._armed:
            return
        self._armed = False
        factors: dict[str, exchange.Pair] = {}
        if self._recorder is not None:
            self._recorder.detach()
            factors = self._recorder.factors()
            self._recorder = None
        tracked, compare = self._tracked(pl_module), None
        if self.reference is not None:
            compare = self.reference.measure(trainer, pl_module, tracked)
        spectra = shared_spectra(trainer, tracked, factors, compare)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            root, epoch, step = (
                Path(trainer.default_root_dir),
                trainer.current_epoch,
                trainer.global_step,
            )
            self._log(trainer, append_tables(root, epoch, step, spectra, self.k))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the tables, those of an earlier part of a resumed run included."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            draw_spectra(
                Path(trainer.default_root_dir), "epoch" if self.every_n_steps is None else "step"
            )

    def _log(self, trainer: Trainer, summary: pd.DataFrame) -> None:
        """Log the means over matrices, and the effective rank of each."""
        alive = summary[summary["frobenius_norm"] > 0]
        means = alive.drop(columns=["epoch", "step", "parameter", "frobenius_norm"]).mean().dropna()
        scalars = {f"spectra/{key}": float(value) for key, value in means.items()}
        for name, rank in zip(alive["parameter"], alive["effective_rank"], strict=True):
            scalars[f"spectra/{name}/effective_rank"] = rank
        for logger in trainer.loggers if scalars else ():
            logger.log_metrics(scalars, step=trainer.global_step)
