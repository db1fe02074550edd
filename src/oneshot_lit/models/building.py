"""How a module builds its model: whole, or sharded over processes."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer

from oneshot_lit.errors import OneShotError
from oneshot_lit.models import adapters, loading
from oneshot_lit.models.chat_format import chat_options
from oneshot_lit.models.quantised import require_trainable_layers
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

    def build(self, mesh: Any) -> Any:
        """Return the model, sharded over a mesh if there is one; all processes call it together.

        The processes of a machine load and shard the model one after another, so that its memory
        holds one whole model and the shards.
        """
        if mesh is None:
            return self._prepared(self._whole_model())
        model, failed = None, None
        for turn in range(self.trainer.strategy.num_processes):  # type: ignore[attr-defined]
            if turn == self.trainer.local_rank:
                try:
                    with torch.device("cpu"):
                        model = self._prepared(self._whole_model())
                    shard(model, mesh, str(self.trainer.precision))
                except Exception as error:
                    # The others wait for this process, and will most likely fail, too.
                    failed = error
            self.trainer.strategy.barrier("a process has its shards")
        if failed is not None:
            raise failed
        return model

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
        if self.peft is not None:
            require_trainable_layers(str(self.model_name_or_path), model)
            model = adapters.add_adapter(model, self.peft)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            if self.peft is not None:
                model.enable_input_require_grads()
        return model
