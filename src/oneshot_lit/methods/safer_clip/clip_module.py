"""`ClipModule`: contrastive training of a CLIP model, and what SafeR-CLIP shares with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.methods.checkpoints import RunState
from oneshot_lit.methods.optimizers import built
from oneshot_lit.methods.safer_clip.losses import (
    retrieval_scores,
    similarities,
)
from oneshot_lit.methods.safer_clip.patches import build_tokenizer
from oneshot_lit.methods.safer_clip.quadruples import Quadruple, QuadrupleRows
from oneshot_lit.models.adapters import add_adapter, is_adapter
from oneshot_lit.models.generation import Decoding
from oneshot_lit.models.loading import load_model, load_tokenizer, local_folder, resolve_dtype
from oneshot_lit.strategies.step_window import StepWindow
from oneshot_lit.strategies.weights import is_sharded

SCORES_FILE = "safer_clip.json"
# Special tokens of a text, as configs and tokenizers name them.
_ENDS = ("bos", "eos", "pad")
ITEMS = ("safe_image", "unsafe_image", "safe_text", "unsafe_text")


class ClipModule(RunState):
    """Contrastive training of a CLIP model on the safe and the unsafe pairs of quadruples.

    It makes the model that `SaferClipModule` starts from, in the tiny world.

    Args:
        model_name_or_path: Folder or hub name of a CLIP model of transformers.
        model_config: Build a new model for the tiny world instead: arguments of `CLIPConfig`, such
            as ``text_config`` and ``vision_config``.
        dtype: Dtype of the weights: float32 or float64.
        peft: Train an adapter instead of all weights; see `LanguageModelModule`.
        optimizer: Any torch optimiser class with its arguments.
    """

    def __init__(
        self,
        model_name_or_path: str | None = None,
        model_config: dict[str, Any] | None = None,
        dtype: str = "float32",
        peft: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-4),
    ) -> None:
        super().__init__()
        if (model_name_or_path is None) == (model_config is None):
            given = "neither" if model_config is None else "both"
            raise OneShotError(
                f"model: {given} of model_name_or_path and model_config given; one is needed."
            )
        if dtype not in ("float32", "float64"):
            raise OneShotError(f"model.dtype {dtype}: give float32 or float64.")
        self.model_name_or_path, self.model_config = model_name_or_path, model_config
        self.model_dtype = resolve_dtype(dtype)
        self.peft, self.optimizer = peft, optimizer
        # What `RunState` asks for; nothing is generated here.
        self.decoding = Decoding()
        self.model: Any = None
        # Only the adapter is in a checkpoint when only the adapter is trained.
        self.strict_loading = peft is None
        self._window = StepWindow(self.loss_weight)
        self.scores: dict[str, dict[str, float]] = {}

    # -------------------------------------------------------------------- building

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the model, or that of the tiny world for a new model."""
        if self.model_name_or_path is None:
            return build_tokenizer()
        return load_tokenizer(str(local_folder(self.model_name_or_path)))

    def tokenizer_to_export(self) -> Any:
        """Return the tokenizer that is written beside the exported weights."""
        return self.tokenizer

    @cached_property
    def clip_config(self) -> Any:
        """The model's config."""
        from transformers import AutoConfig, CLIPConfig

        if self.model_name_or_path is None:
            options: dict[str, Any] = dict(self.model_config or {})
            words = self.tokenizer
            ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in _ENDS}
            text = {"vocab_size": len(words), **ids, **options.pop("text_config", {})}
            try:
                return CLIPConfig(text_config=text, **options)
            except (TypeError, ValueError) as error:
                said = " ".join(str(error).split())[:200]
                raise OneShotError(f"model.model_config: {said}.") from error
        folder = local_folder(self.model_name_or_path)
        if is_adapter(folder):
            raise OneShotError(
                f"model.model_name_or_path: {folder} is an adapter; give a whole CLIP model "
                "(--export.merge_adapter true writes one)."
            )
        config = AutoConfig.from_pretrained(str(folder))
        if config.model_type != "clip":
            raise OneShotError(
                f"model.model_name_or_path: {self.model_name_or_path} is a {config.model_type} "
                "model; SafeR-CLIP needs a CLIP model of transformers."
            )
        return config

    def encoded(self, rows: Sequence[Quadruple]) -> QuadrupleRows:
        """Return quadruples as this model takes them."""
        config = self.clip_config
        longest = config.text_config.max_position_embeddings
        return QuadrupleRows(rows, self.tokenizer, config.vision_config.image_size, longest)

    def configure_model(self) -> None:
        """Load or build the model once."""
        if self.model is not None:
            return
        config = self.clip_config
        if self.model_name_or_path is None:
            from transformers import CLIPModel

            with torch.device("cpu"):
                model = CLIPModel(config).to(self.model_dtype)
        else:
            folder = str(local_folder(self.model_name_or_path))
            model = load_model(folder, dtype=self.model_dtype, auto_class="CLIPModel")
        if self.peft is not None:
            model = add_adapter(model, {"task_type": None, **self.peft})
        self.model = model.train()

    def configure_optimizers(self) -> Any:
        """Build the configured optimiser on the trainable parameters."""
        return built(
            self.optimizer, [p for p in self.parameters() if p.requires_grad], "model.optimizer"
        )

    def on_fit_start(self) -> None:
        """Refuse strategies that shard the model; measure the model as it was given."""
        if self.trainer.world_size > 1 or is_sharded(self):
            raise OneShotError(
                "trainer.devices: a CLIP model is trained in one process, as it is compared with "
                "its frozen self; give 1, and no strategy."
            )
        if "before" not in self.scores:
            with self.frozen():
                self._measure("before")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the scores of the start."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["scores"] = self.scores

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them."""
        super().on_load_checkpoint(checkpoint)
        self.scores = dict(checkpoint.get("scores") or {})

    # ------------------------------------------------------------------ embeddings

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Give the model that the run started from, without gradients and dropout."""
        training = self.training
        self.eval()
        with torch.no_grad():
            if self.peft is None:
                yield
            else:
                with self.model.disable_adapter():
                    yield
        self.train(training)

    def embeddings(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the projected embeddings of `ITEMS`, (rows, features) each; not normalised."""
        images = torch.cat([batch["safe_image"], batch["unsafe_image"]]).to(self.model_dtype)
        pictures = self.model.get_image_features(pixel_values=images).pooler_output.chunk(2)
        texts = [
            self.model.get_text_features(
                input_ids=batch[f"{kind}_ids"], attention_mask=batch[f"{kind}_mask"]
            ).pooler_output
            for kind in ("safe", "unsafe")
        ]
        return dict(zip(ITEMS, (*pictures, *texts), strict=True))

    def embeddings_of(self, rows: QuadrupleRows) -> dict[str, Tensor]:
        """Return the embeddings of all rows, in their order."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        parts = []
        for batch in data.batches(rows):
            parts.append(self.embeddings({k: v.to(self.device) for k, v in batch.items()}))
        return {item: torch.cat([part[item] for part in parts]) for item in ITEMS}

    def _measure(self, name: str) -> None:
        """Keep the retrieval scores of the held-out rows."""
        rows = self.trainer.datamodule.measuring  # type: ignore[attr-defined]
        if rows is not None:
            with torch.no_grad():
                self.scores[name] = retrieval_scores(self.embeddings_of(rows), rows.texts())

    # -------------------------------------------------------------------- training

    def loss_terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms of the loss: here the contrastive one, over all pairs of the batch."""
        rows = self.embeddings(batch)
        images = torch.cat([rows["safe_image"], rows["unsafe_image"]])
        texts = torch.cat([rows["safe_text"], rows["unsafe_text"]])
        logits = self.model.logit_scale.exp() * similarities(texts, images)
        own = torch.arange(len(logits), device=logits.device)
        both = functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)
        return {"contrastive": both / 2}

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the loss of the terms."""
        return torch.stack(list(terms.values())).sum()

    def loss_weight(self, batch: dict[str, Tensor]) -> Tensor:
        """Return how many rows the loss is the mean of."""
        return torch.tensor(len(batch["index"]))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss, scaled so that a step takes the mean over the rows of its batches."""
        _, scale = self._window.begin(self.trainer, batch)
        terms = self.loss_terms(batch)
        loss = self.total(terms)
        if not torch.isfinite(loss):
            raise OneShotError(
                f"the loss is {loss.item()} at step {self.global_step}; lower the learning rate. "
                "No model was written."
            )
        if self._log_this_step():
            values = {f"train/{name}": term.detach() for name, term in terms.items()}
            self.log_dict({"train/loss": loss.detach(), **values})
        return loss * scale

    def _log_this_step(self) -> bool:
        period = max(1, int(getattr(self.trainer, "log_every_n_steps", 1)))
        return (self.global_step + 1) % period == 0 or self.trainer.is_last_batch

    def scores_facts(self) -> dict[str, Any]:
        """Return what else ``safer_clip.json`` should say."""
        return {"model": self.model_name_or_path}

    def on_train_end(self) -> None:
        """Measure the trained model, and write the scores to ``<root>/safer_clip.json``."""
        training = self.training
        self.eval()
        self._measure("after")
        self.train(training)
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            target = Path(self.trainer.default_root_dir) / SCORES_FILE
            write_json_atomically(target, {**self.scores_facts(), **self.scores})
            rank_zero_info(f"scores written to {target}")
