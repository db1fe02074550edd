"""`LanguageModelModule`: the base of every module; loads, trains, generates and scores."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from oneshot_lit.data.chat import check_tokenizer
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.base import TextScore
from oneshot_lit.io.files import read_text
from oneshot_lit.io.read_files import require_file
from oneshot_lit.methods.checkpoints import RunState
from oneshot_lit.methods.optimizers import built, check_rounding, schedule, slow_bfloat16
from oneshot_lit.methods.scoring import PromptScoring
from oneshot_lit.models import loading
from oneshot_lit.models.building import ModelBuilding
from oneshot_lit.models.chat_format import (
    ChatOptions,
    SystemTurn,
    end_of_turn_warning,
    set_chat_options,
    stop_token_ids,
)
from oneshot_lit.models.context import context_length, embedding_rows, read_config
from oneshot_lit.models.generation import Decoding
from oneshot_lit.models.gguf import model_folder
from oneshot_lit.models.labelled_head import head_on_labelled
from oneshot_lit.models.loss import IGNORE_INDEX, next_token_loss, of_labelled
from oneshot_lit.models.quantised import require_trainable
from oneshot_lit.models.shared_prefix import training_cache
from oneshot_lit.models.weight_files import is_local
from oneshot_lit.strategies.step_window import StepWindow


class LanguageModelModule(PromptScoring, ModelBuilding, RunState):
    """Supervised fine-tuning and evaluation of any Hugging Face causal language model.

    Subclasses change `compute_loss` for another objective, or the hooks of `LightningModule`.
    Weights are kept in `dtype`, float32 by default: at the small learning rates of realignment,
    pure bfloat16 weights lose most updates to rounding, and are then refused; use
    `trainer.precision=bf16-mixed`. Buffers, such as the frequencies of RoPE, keep float32.

    Args:
        model_name_or_path: Folder, ``.gguf`` file or hub name of the model to start from; a PEFT
            adapter folder is merged into its base. Not needed with `model_config`.
        model_config: Build a new, randomly initialised model instead: ``model_type`` and the
            arguments of its Hugging Face config.
        tokenizer_name_or_path: Where the tokenizer comes from, if not from the model;
            ``microworld`` is the embedded one.
        chat_template: A Jinja file that replaces the tokenizer's own chat template.
        system_turn: ``template`` hands a system turn to the template; ``user`` puts its text before
            the first user turn, for families without a system role (Gemma, Mistral).
        template_arguments: Arguments of the chat template, such as ``{enable_thinking: false}``;
            they apply to training rows and prompts alike.
        stop_tokens: Further tokens that end an answer, besides the template's end of turn and the
            EOS tokens of tokenizer and model.
        dtype: Dtype of the weights: float32, bfloat16, float16 or float64.
        peft: Train an adapter instead of all weights: ``peft_type`` (default LORA) and the
            arguments of its PEFT config, such as ``{r: 16, target_modules: all-linear}``. Kinds
            that could not be saved as they were trained are refused.
        optimizer: Any torch optimiser class with its arguments.
        lr_scheduler: Any torch scheduler class with its arguments, or a function that makes one of
            an optimiser, such as `transformers.get_cosine_schedule_with_warmup`; stepped once an
            optimiser step. `lightning.pytorch.cli.ReduceLROnPlateau` is stepped once an epoch, with
            the value that its `monitor` names, such as ``val/benign/exact_match``.
        decoding: How answers are generated in validation, test and predict.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        attn_implementation: eager, sdpa, flash_attention_2 ...; the model's default if not given.
        trust_remote_code: Allow code from a hub repository to run. Off unless you read that code.
        allow_rounding: Train 16-bit weights, though rounding takes back most of a small step.
    """

    def __init__(
        self,
        model_name_or_path: str | None = None,
        model_config: dict[str, Any] | None = None,
        tokenizer_name_or_path: str | None = None,
        chat_template: str | None = None,
        system_turn: SystemTurn = "template",
        template_arguments: dict[str, Any] | None = None,
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
        # What the user gave, for results; a ``.gguf`` file is used as the folder it converts to.
        self.given_model = model_name_or_path
        self.model_name_or_path = model_name_or_path and model_folder(model_name_or_path)
        self.tokenizer_name_or_path = tokenizer_name_or_path
        self.model_config = model_config
        self.chat_template = chat_template
        self.chat_options = ChatOptions(
            system_turn,
            tuple(stop_tokens or ()),
            template_arguments=tuple((template_arguments or {}).items()),
        )
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
        self.counts: dict[str, dict[str, int]] = {}
        self.outcomes: list[dict[str, Any]] = []
        self.evaluations: dict[str, dict[str, Any]] = {}
        self._metrics: dict[str, dict[str, TextScore]] = {}
        self._window = StepWindow(self.loss_weight)
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
            tokenizer.chat_template = read_text(require_file(self.chat_template))
        check_tokenizer(tokenizer, name)
        config = read_config(
            self.model_name_or_path, self.model_config, tokenizer, self.trust_remote_code
        )
        options = replace(self.chat_options, embedded=embedding_rows(config))
        set_chat_options(tokenizer, options, name)
        return tokenizer

    def tokenizer_to_export(self) -> Any:
        """Return the tokenizer that is written beside the exported weights."""
        return self.tokenizer

    @cached_property
    def context_length(self) -> int | None:
        """How many positions the model has; None if its config does not say."""
        config = read_config(
            self.model_name_or_path, self.model_config, self.tokenizer, self.trust_remote_code
        )
        return context_length(config)

    # ---------------------------------------------------------------- building

    def configure_model(self) -> None:
        """Load or build the model once, in the context that the strategy has opened."""
        if self.model is not None:
            return
        trains = self._trainer is not None and self.trainer.state.fn == "fit"
        if trains and self.model_name_or_path is not None:
            adapter, code = self.peft is not None, self.trust_remote_code
            require_trainable(self.model_name_or_path, adapter, code)
        if self.decoding.backend == "vllm":
            self._know_ends(self._configure_vllm())
            return
        if self._trainer is not None and (warning := slow_bfloat16(self.trainer, self.model_dtype)):
            rank_zero_warn(warning)
        model = self.build(self.device_mesh)
        # Hugging Face models arrive in eval mode, which Lightning keeps; dropout must be on in fit.
        self.model = model.train()
        self._know_ends(model.generation_config)

    def _know_ends(self, generation_config: Any) -> None:
        self.stop_ids = stop_token_ids(self.tokenizer, generation_config)
        if (warning := end_of_turn_warning(self.tokenizer, self.stop_ids)) is not None:
            rank_zero_warn(warning)

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
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = built(self.optimizer, parameters, "model.optimizer")
        if self._trainer is not None:
            check_rounding(self.trainer, optimizer, self.allow_rounding)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = built(self.lr_scheduler, optimizer, "model.lr_scheduler")
        return {"optimizer": optimizer, "lr_scheduler": schedule(scheduler)}  # type: ignore[return-value]

    # ---------------------------------------------------------------- training

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits, (rows, tokens, vocabulary)."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return output.logits  # type: ignore[no-any-return]

    def labelled_logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits that predict the labelled tokens, (labelled tokens, vocabulary).

        The other positions' are never computed; the functions of `models.loss` take either. What
        all rows begin with is read once.
        """
        ids, mask, labels = (batch[k] for k in ("input_ids", "attention_mask", "labels"))
        own = type(self).forward is not LanguageModelModule.forward
        if not own and (cache := training_cache(self.model, batch)) is not None:
            start = cache.get_seq_length()
            with head_on_labelled(self.model, labels[:, start:]):
                output = self.model(
                    input_ids=ids[:, start:], attention_mask=mask, past_key_values=cache
                )
            return output.logits  # type: ignore[no-any-return]
        with head_on_labelled(self.model, labels):
            # Not `self(...)`: ZeRO-3 takes each call of the module for the beginning of a step.
            return self.forward(ids, mask)

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the scalar training loss of a batch; override it for another objective."""
        logits = self.labelled_logits(batch)
        return next_token_loss(logits, batch["labels"], self.token_weights(batch))

    def token_weights(self, batch: dict[str, Tensor]) -> Tensor | None:
        """Return how much each token counts in the loss, (rows, tokens); None if all count equally.

        They decide the mean of a batch, and the share of each batch when a step has several batches
        or processes. By default they are what a transform of the data wrote into the batch.
        """
        return batch.get("token_weights")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss, or stop the run when it is not finite."""
        loss = self._shared_loss(batch)
        if not torch.isfinite(loss):
            raise OneShotError(
                f"the loss is {loss.item()} at step {self.global_step}, batch {batch_idx} of epoch "
                f"{self.current_epoch} ({self._rows(batch)}); lower the learning rate or fix the "
                "rows. No model was written."
            )
        whole = self._step_loss(loss)
        # Log only at logged steps: for tiny models, logging a scalar costs more than the step.
        if whole is not None and self._log_this_step():
            self.log("train/loss", whole, prog_bar=True, sync_dist=True)
            self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def loss_weight(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the number of terms in the mean of `compute_loss`: labelled tokens, weighted.

        Accumulated batches and processes are weighted by it, so that neither changes the gradient
        of a step. If you override `compute_loss` with another mean, override this, too. It is
        called for all batches of a step before the first backward pass.
        """
        weights = self.token_weights(batch)
        if weights is not None:
            return of_labelled(weights, batch["labels"]).sum()
        return (batch["labels"][:, 1:] != IGNORE_INDEX).sum()

    def _shared_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss, scaled so that a step takes the mean over all rows of its batches."""
        if self.trainer.world_size == 1 and self.trainer.accumulate_grad_batches == 1:
            return self.compute_loss(batch)
        weight, scale = self._window.begin(self.trainer, batch)
        # Padding rows, or accumulation, may leave a batch without a term. All processes must still
        # compute it; but a mean over nothing is NaN, even times zero, so it gets other labels.
        if (self.trainer.accumulate_grad_batches > 1 or self.trainer.is_last_batch) and weight == 0:
            batch = {**batch, "labels": batch["input_ids"]}
        return self.compute_loss(batch) * scale

    def _step_loss(self, loss: Tensor) -> Tensor | None:
        """Return the loss over all batches of a step after its last batch, otherwise None."""
        if self.trainer.world_size == 1 and self.trainer.accumulate_grad_batches == 1:
            return loss.detach()
        return self._window.mean_loss(self.trainer, loss)

    def _log_this_step(self) -> bool:
        period = max(1, int(getattr(self.trainer, "log_every_n_steps", 1)))
        return (self.global_step + 1) % period == 0 or self.trainer.is_last_batch

    def _rows(self, batch: dict[str, Tensor]) -> str:
        loader: Any = self.trainer.train_dataloader
        # With a second stream there are several.
        loader = loader.get("train") if isinstance(loader, dict) else loader
        dataset = getattr(loader, "dataset", None)
        conversations = getattr(dataset, "conversations", None)
        if conversations is None or "index" not in batch:
            return "rows unknown"
        origins = [conversations[i].origin for i in batch["index"].tolist() if i >= 0]
        more = f" and {len(origins) - 3} more" if len(origins) > 3 else ""
        return ", ".join(origins[:3]) + more
