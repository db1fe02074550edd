"""`LanguageModelModule`: the base of every module; loads, trains, generates and scores."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, distributed
from torch.optim import Optimizer

from oneshot_lit.data.chat import (
    ChatOptions,
    SystemTurn,
    check_tokenizer,
    set_chat_options,
    stop_token_ids,
)
from oneshot_lit.data.padding import IGNORE_INDEX
from oneshot_lit.data.read_files import require_file
from oneshot_lit.errors import OneShotError
from oneshot_lit.metrics.base import TextScore
from oneshot_lit.modules import loading
from oneshot_lit.modules.building import ModelBuilding
from oneshot_lit.modules.context import read_context_length
from oneshot_lit.modules.generation import Decoding
from oneshot_lit.modules.loss import next_token_loss
from oneshot_lit.modules.rounding import check_rounding
from oneshot_lit.modules.scoring import PromptScoring
from oneshot_lit.modules.weight_files import is_local
from oneshot_lit.strategies.gradients import is_boundary, total_norm
from oneshot_lit.strategies.random_state import random_states, restore_random_state


class LanguageModelModule(PromptScoring, ModelBuilding, LightningModule):
    """Supervised fine-tuning and evaluation of any Hugging Face causal language model.

    Subclasses change `compute_loss` for another objective, or the hooks of `LightningModule`.
    Weights are kept in `dtype`, float32 by default: at the small learning rates of realignment,
    pure bfloat16 weights lose most updates to rounding, and are refused if they would; use
    `trainer.precision=bf16-mixed`. Buffers, such as the frequencies of RoPE, keep float32.

    Args:
        model_name_or_path: Folder or hub name of the model to start from; a PEFT adapter folder is
            merged into its base. Not needed with `model_config`.
        model_config: Build a new, randomly initialised model instead: ``model_type`` and the
            arguments of its Hugging Face config.
        tokenizer_name_or_path: Where the tokenizer comes from, if not from the model;
            ``microworld`` is the embedded one.
        chat_template: A Jinja file in place of the tokenizer's own chat template.
        system_turn: ``template`` hands a system turn to the template; ``user`` puts its text before
            the first user turn, for families without a system role (Gemma, Mistral).
        stop_tokens: Further tokens that end an answer, besides the template's end of turn and the
            EOS tokens of tokenizer and model.
        dtype: Dtype of the weights: float32, bfloat16, float16 or float64.
        peft: Train an adapter instead of all weights: ``peft_type`` (default LORA) and the
            arguments of its PEFT config, such as ``{r: 16, target_modules: all-linear}``. Kinds
            whose product would not be what was trained are refused.
        optimizer: Any torch optimiser class with its arguments.
        lr_scheduler: Any torch scheduler class with its arguments, stepped once an optimiser step.
        decoding: How answers are generated in validation, test and predict.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        attn_implementation: eager, sdpa, flash_attention_2 ...; the model's default if not given.
        trust_remote_code: Allow code from a hub repository to run. Off unless you read that code.
        allow_rounding: Train 16-bit weights even if the learning rate is too small to move most.
    """

    def __init__(
        self,
        model_name_or_path: str | None = None,
        model_config: dict[str, Any] | None = None,
        tokenizer_name_or_path: str | None = None,
        chat_template: str | None = None,
        system_turn: SystemTurn = "template",
        stop_tokens: list[str] | None = None,
        dtype: str = "float32",
        peft: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-5),
        lr_scheduler: LRSchedulerCallable | None = None,
        decoding: Decoding | None = None,
        gradient_checkpointing: bool = False,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        allow_rounding: bool = False,
    ) -> None:
        super().__init__()
        if (model_name_or_path is None) == (model_config is None):
            given = "neither" if model_config is None else "both"
            raise OneShotError(
                f"model: {given} of model_name_or_path and model_config given; one is needed."
            )
        if model_config is not None and peft is not None:
            raise OneShotError("model: an adapter (peft) needs a trained base, not model_config.")
        self.model_name_or_path, self.model_config = model_name_or_path, model_config
        self.tokenizer_name_or_path = tokenizer_name_or_path
        self.chat_template = chat_template
        self.chat_options = ChatOptions(system_turn, tuple(stop_tokens or ()))
        self.dtype_name = dtype
        self.model_dtype = loading.resolve_dtype(dtype)
        self.peft = peft
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.decoding = decoding or Decoding()
        self.gradient_checkpointing = gradient_checkpointing
        self.attn_implementation = attn_implementation
        self.trust_remote_code = trust_remote_code
        self.allow_rounding = allow_rounding
        self.model: Any = None
        self.scores: dict[str, float] = {}
        self.sample_counts: dict[str, int] = {}
        self.empty_counts: dict[str, int] = {}
        self.unscored_counts: dict[str, int] = {}
        self.outcomes: list[dict[str, Any]] = []
        self._metrics: dict[str, dict[str, TextScore]] = {}
        # Only the adapter is in a checkpoint when only the adapter is trained.
        self.strict_loading = peft is None

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded on first use (the data module needs it before the model exists)."""
        name = self.tokenizer_name_or_path or self.model_name_or_path
        if name is None:
            raise OneShotError("model.tokenizer_name_or_path: a new model needs a tokenizer.")
        if self.tokenizer_name_or_path is None and is_local(name):
            loading.require_model_folder(name)
        tokenizer = loading.load_tokenizer(name, self.trust_remote_code)
        if self.chat_template is not None:
            tokenizer.chat_template = require_file(self.chat_template).read_text(encoding="utf-8")
        check_tokenizer(tokenizer, name)
        set_chat_options(tokenizer, self.chat_options, name)
        return tokenizer

    @cached_property
    def context_length(self) -> int | None:
        """How many positions the model has; None if its config does not say."""
        return read_context_length(
            self.model_name_or_path,
            self.model_config,
            self.tokenizer,
            self.trust_remote_code,
            self.peft,
        )

    # ---------------------------------------------------------------- building

    def configure_model(self) -> None:
        """Load or build the model once, under whatever context the strategy has opened."""
        if self.model is not None:
            return
        if self.decoding.backend == "vllm":
            self.stop_ids = stop_token_ids(self.tokenizer, self._configure_vllm())
            return
        if self.device_mesh is not None:
            model = self._cut_model(self.device_mesh)
        else:
            model = self._prepared(self._whole_model())
        # Hugging Face models arrive in eval mode, which Lightning keeps; dropout must be on in fit.
        self.model = model.train()
        self.stop_ids = stop_token_ids(self.tokenizer, model.generation_config)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Convert the model, but keep the precision of its buffers."""
        before = {name: b for name, b in self.named_buffers() if b.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in list(self.named_buffers()):
            old = before.get(name)
            if old is not None and buffer.dtype.itemsize < old.dtype.itemsize:
                owner, _, leaf = name.rpartition(".")
                self.get_submodule(owner)._buffers[leaf] = old.to(buffer.device)
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the configured optimiser on the trainable parameters, and its scheduler."""
        try:
            optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        except ValueError as error:
            raise OneShotError(f"model.optimizer: {error}.") from error
        if self._trainer is not None:
            check_rounding(self.trainer, optimizer, self.allow_rounding)
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    # ---------------------------------------------------------------- training

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits, (rows, tokens, vocabulary)."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        # What an adapter puts before the prompt has logits of its own.
        return output.logits[:, -input_ids.shape[1] :]  # type: ignore[no-any-return]

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the scalar training loss of a batch; the place to plug another objective in."""
        return next_token_loss(self(batch["input_ids"], batch["attention_mask"]), batch["labels"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss, or stop the run when it is not finite."""
        loss = self._shared_loss(batch)
        if not torch.isfinite(loss):
            raise OneShotError(
                f"the loss is {loss.item()} at step {self.global_step}, batch {batch_idx} of epoch "
                f"{self.current_epoch} ({self._rows(batch)}); lower the learning rate or mend the "
                "rows. No product was written."
            )
        # Only what is shown is logged: a scalar a step costs more than the tiny models' own work.
        if self._log_this_step():
            self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
            self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def loss_weight(self, batch: dict[str, Tensor]) -> Tensor:
        """Return over how many terms `compute_loss` takes its mean: labelled tokens.

        Processes are weighted by it, so that their number does not change the gradient of a step.
        Override it together with `compute_loss` if that takes another mean.
        """
        return (batch["labels"][:, 1:] != IGNORE_INDEX).sum()

    def _shared_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss whose mean over the processes is that of all their rows at once."""
        if self.trainer.world_size == 1:
            return self.compute_loss(batch)
        weight = self.loss_weight(batch).float()
        mean = weight / self.trainer.world_size
        # Not by the strategy's `reduce`, which lets all processes wait for each other first.
        distributed.all_reduce(mean)
        # Rows that fill up an epoch stand at its end only, and take the usual way, as all processes
        # must; but a mean over nothing is no number, even times zero.
        if self.trainer.is_last_batch and weight == 0:
            batch = {**batch, "labels": batch["input_ids"]}
        return self.compute_loss(batch) * (weight / mean)

    def _log_this_step(self) -> bool:
        period = max(1, int(getattr(self.trainer, "log_every_n_steps", 1)))
        return (self.global_step + 1) % period == 0 or self.trainer.is_last_batch

    def _rows(self, batch: dict[str, Tensor]) -> str:
        dataset = getattr(self.trainer.train_dataloader, "dataset", None)
        conversations = getattr(dataset, "conversations", None)
        if conversations is None or "index" not in batch:
            return "rows unknown"
        origins = [conversations[i].origin for i in batch["index"].tolist() if i >= 0]
        more = f" and {len(origins) - 3} more" if len(origins) > 3 else ""
        return ", ".join(origins[:3]) + more

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the total gradient norm, before any clipping."""
        if self._log_this_step() and is_boundary(self.trainer):
            norm = total_norm(self.trainer, [p for p in self.parameters() if p.requires_grad])
            if norm is not None:
                self.log("train/grad_norm", norm)

    # ----------------------------------------------------- product, checkpoints

    def before_export(self) -> None:
        """Bring the weights to what the product shall hold; called by the export after `fit`."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random state, and only the adapter's weights when only an adapter is trained."""
        checkpoint["random_states"] = random_states(self.trainer)
        if self.peft is not None:
            trained = {name for name, p in self.named_parameters() if p.requires_grad}
            weights = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: v for k, v in weights.items() if k in trained}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load weights; those of another model are the user's mistake, in one line."""
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise OneShotError(
                f"the checkpoint does not fit this model: {' '.join(lines[1:2] or lines).strip()}"
            ) from error

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the random state back and refuse a checkpoint without this run's trained weights."""
        if self.decoding.backend == "vllm":
            raise OneShotError(
                "--ckpt_path: vLLM reads no checkpoint; give the product's folder in "
                "model.model_name_or_path, or choose model.decoding.backend auto."
            )
        self._random_states = checkpoint.get("random_states")
        if self.peft is not None and self.model is not None:
            trained = [name for name, p in self.named_parameters() if p.requires_grad]
            # Sharded checkpoints are read by their strategy, which misses nothing in silence.
            weights = checkpoint.get("state_dict")
            missing = [name for name in trained if weights is not None and name not in weights]
            if missing:
                raise OneShotError(f"the checkpoint lacks the adapter weight {missing[0]}.")

    def on_train_start(self) -> None:
        """Go on with the random numbers of the interrupted run."""
        states = getattr(self, "_random_states", None)
        if states is not None:
            restore_random_state(self.trainer, states)
            self._random_states = None
