"""`ReferenceModule`: training that compares with a frozen reference model on each batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.base import LanguageModelModule
from oneshot_lit.models.building import ModelBuilding
from oneshot_lit.models.gguf import model_folder
from oneshot_lit.models.loss import labelled_logits, log_probabilities

# The prefix of the second model's parameters in the module.
_PART = "reference_model."


class FrozenModel(ModelBuilding):
    """Builds a second, frozen model as the strategy of a module builds the first.

    Args:
        module: The module that trains.
        name: Folder or hub name of the frozen model.
    """

    def __init__(self, module: LanguageModelModule, name: str) -> None:
        self.model_name_or_path = model_folder(name)
        self.model_config = self.peft = None
        self.model_dtype = module.model_dtype
        self.gradient_checkpointing = False
        self.attn_implementation = module.attn_implementation
        self.trust_remote_code = module.trust_remote_code
        self.tokenizer = module.tokenizer
        self.trainer, self._trainer = module._trainer, module._trainer

    def build(self, mesh: Any) -> Any:
        """Return the model, sharded over a mesh if there is one."""
        return super().build(mesh).requires_grad_(False).eval()


class ReferenceModule(LanguageModelModule):
    """The base of methods that compare with a reference model; call `reference` in `compute_loss`.

    Args:
        reference_name_or_path: Folder or hub name of the reference, with the same tokenizer; it is
            in memory beside the model, under the same strategy. By default the reference is the
            model itself at the start of the run: with an adapter that is its base, without one the
            weights of the start, which are then kept on the CPU and in checkpoints.
    """

    def __init__(
        self, *args: Any, reference_name_or_path: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.reference_name_or_path = reference_name_or_path
        self.reference_model: Any = None
        self.keeps_start_weights |= reference_name_or_path is None and self.peft is None
        if reference_name_or_path is not None:
            # Checkpoints do not hold its weights.
            self.strict_loading = False

    def configure_model(self) -> None:
        """Load the model, and the reference beside it."""
        first = self.model is None
        super().configure_model()
        if first and self.reference_name_or_path is not None:
            frozen = FrozenModel(self, self.reference_name_or_path)
            self.reference_model = frozen.build(self.device_mesh)
            rows = [_outputs(model) for model in (self.model, self.reference_model)]
            if rows[0] != rows[1]:
                raise OneShotError(
                    f"model.reference_name_or_path: {self.reference_name_or_path} has {rows[1]} "
                    f"tokens, and the model that is trained {rows[0]}; give one of the same family."
                )

    @torch.no_grad()
    def reference(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the reference's log-probabilities at the labelled tokens of a batch.

        Without dropout. All processes must call it together, before the forward pass that gets the
        gradient.

        Args:
            batch: ``input_ids``, ``attention_mask`` and ``labels``, each (rows, tokens).

        Returns:
            (labelled tokens, vocabulary), float32 or wider, in the order of `token_losses`.
        """
        with self._as_reference() as model:
            output = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                use_cache=False,
            )
        return log_probabilities(labelled_logits(output.logits, batch["labels"]))

    @contextmanager
    def _as_reference(self) -> Iterator[Any]:
        if self.reference_model is not None:
            yield self.reference_model.eval()
        elif self.peft is not None:
            training = self.training
            self.eval()
            with self.model.disable_adapter():
                yield self.model
            self.train(training)
        else:
            with self.at_start():
                yield self.model

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the frozen weights: a resumed run reads them from their own folder again."""
        super().on_save_checkpoint(checkpoint)
        weights = checkpoint.get("state_dict")
        if weights:
            checkpoint["state_dict"] = {
                name: w for name, w in weights.items() if not name.startswith(_PART)
            }


def _outputs(model: Any) -> int:
    head = model.get_output_embeddings()
    return int(getattr(head.weight, "ds_shape", head.weight.shape)[0])
