"""How a module builds its model: whole, or only this process's rows of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from oneshot_lit.errors import OneShotError
from oneshot_lit.models import adapters, loading, streaming
from oneshot_lit.models.chat_format import chat_options
from oneshot_lit.models.weight_files import tensors_of, weight_files
from oneshot_lit.strategies.fsdp2 import shard


class ModelBuilding:
    """The part of `LanguageModelModule` that builds a model from its arguments."""

    model_name_or_path: str | None
    model_config: dict[str, Any] | None
    model_dtype: torch.dtype
    peft: dict[str, Any] | None
    gradient_checkpointing: bool
    attn_implementation: str | None
    trust_remote_code: bool
    tokenizer: Any
    trainer: Trainer
    _trainer: Any

    def _whole_model(self) -> Any:
        if self.model_config is not None:
            return loading.build_model(self.model_config, self.tokenizer, self.model_dtype)
        assert self.model_name_or_path is not None
        return loading.load_model(
            self.model_name_or_path,
            dtype=self.model_dtype,
            trust_remote_code=self.trust_remote_code,
            attn_implementation=self.attn_implementation,
        )

    def _cut_model(self, mesh: Any) -> Any:
        """Return a sharded model; each process reads or draws its own rows only, where it can."""
        source: Any
        if self.model_config is not None:
            source = loading.architecture(self.model_config, self.tokenizer)
            if loading.drawn_whole(source):
                model = self._prepared(self._whole_model())
                shard(model, mesh, str(self.trainer.precision))
                return model
        else:
            assert self.model_name_or_path is not None
            source = loading.local_folder(self.model_name_or_path, self.trust_remote_code)
        # Restored if streaming is given up, which must not use up random numbers.
        random_state = torch.get_rng_state()
        streams = not streaming.needs_base_weights(self.peft)
        if isinstance(source, Path):
            streams = streams and not adapters.is_adapter(source)
        files: dict[str, Path] = {}
        if streams:
            if isinstance(source, Path):
                files = tensors_of(weight_files(source))
            base = loading.empty_model(
                source,
                dtype=self.model_dtype,
                trust_remote_code=self.trust_remote_code,
                attn_implementation=self.attn_implementation,
            )
            streams = not isinstance(source, Path) or streaming.can_stream(base, files)
        if streams:
            where = streaming.places(base)
            with streaming.adapters_stay_real():
                model = self._prepared(base)
            # Some adapters begin with their base's values, or on its device.
            streams = streaming.only_base_is_empty(model, where)
        if not streams:
            rank_zero_warn(
                f"{self.model_name_or_path}: each process loads the whole model into the host's "
                "memory before it is sharded, because its files or the adapter need that; a folder "
                "that transformers wrote anew, and a plain LoRA, do not."
            )
            torch.set_rng_state(random_state)
            with torch.device("cpu"):
                model = self._prepared(self._whole_model())
            shard(model, mesh, str(self.trainer.precision))
            return model
        shard(model, mesh, str(self.trainer.precision))
        streaming.materialise(model, self.trainer.strategy.root_device)
        if isinstance(source, Path):
            streaming.read_weights(base, where, files)
        else:
            streaming.draw_weights(base)
        return model

    def _prepared(self, model: Any) -> Any:
        """Check a model against its tokenizer; add what is configured."""
        rows = model.get_input_embeddings().num_embeddings
        # Tokens that nothing uses may be missing: the tokens of every row and prompt are compared
        # with the number of rows that the config names, if it names one.
        known = chat_options(self.tokenizer).embedded
        if len(self.tokenizer) > rows and (known is None or known > rows):
            raise OneShotError(
                f"the tokenizer has {len(self.tokenizer)} tokens but the model embeds only {rows}; "
                "they do not belong together."
            )
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        if hasattr(model, "peft_config") and (fitting or self.peft is not None):
            raise OneShotError(
                f"{self.model_name_or_path}: an adapter of kind "
                f"{model.active_peft_config.peft_type.value} cannot be merged into its base, so "
                "nothing can be trained on top of it; it can be tested, or train its base instead."
            )
        if self.peft is not None:
            if self.gradient_checkpointing and self.peft.get("peft_type") == "PREFIX_TUNING":
                # Layers that are computed again drop the keys and values that were given to them.
                raise OneShotError(
                    "model.peft.peft_type PREFIX_TUNING does not work with "
                    "model.gradient_checkpointing; set that to false."
                )
            model = adapters.add_adapter(model, self.peft)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            if self.peft is not None:
                model.enable_input_require_grads()
        return model
