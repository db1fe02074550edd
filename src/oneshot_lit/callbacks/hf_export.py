"""`HuggingFaceExport`: the trained model as a Hugging Face folder at ``<root>/model``."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from oneshot_lit.callbacks.hf_writer import gather, in_parts, write_model
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import folder_written_whole, remove
from oneshot_lit.io.locking import results_locked
from oneshot_lit.io.runs import DERIVED, PRODUCTS, record_run, recorded_runs
from oneshot_lit.methods.base import LanguageModelModule
from oneshot_lit.models.adapters import is_adapter, load_adapter, merge
from oneshot_lit.models.loading import load_model, resolve_dtype
from oneshot_lit.models.weight_files import is_local
from oneshot_lit.strategies.deepspeed import whole_models


class HuggingFaceExport(Callback):
    """Write the trained model, its tokenizer and chat template when `fit` has ended well.

    The folder appears whole or not at all, and loads with `AutoModelForCausalLM.from_pretrained`;
    with PEFT it is the adapter, unless merged.

    Args:
        enabled: Write the model at all.
        save_dtype: Cast the weights on writing (float16 halves the size); as trained by default.
        merge_adapter: Write the merged model in place of a PEFT adapter. It is always written if
            the base is an adapter itself.
    """

    def __init__(
        self,
        enabled: bool = True,
        save_dtype: str | None = None,
        merge_adapter: bool = False,
    ) -> None:
        self.enabled, self.merge_adapter = enabled, merge_adapter
        self.save_dtype = None if save_dtype is None else resolve_dtype(save_dtype)
        # The command line sets what identifies the run that owns the model.
        self.run: dict[str, Any] = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the model; all processes give their parts, the first one writes."""
        if not self.enabled or trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
            return
        if isinstance(pl_module, LanguageModelModule):
            pl_module.before_export()
        self.write(trainer, pl_module, Path(trainer.default_root_dir), "fit")

    def write(self, trainer: Any, module: Any, root: Path, command: str) -> None:
        """Write the model that a command has made to ``<root>/model``; all processes call it.

        Args:
            trainer: Says which process this is: a Lightning trainer, or that of a job.
            module: A `LanguageModelModule`.
            root: Folder of the run.
            command: fit or edit.
        """
        target = root / PRODUCTS[command]
        with folder_written_whole(target) if trainer.is_global_zero else nullcontext() as folder:
            self.save(module, folder)
        if trainer.is_global_zero:
            self._drop_stale_results(root, command)
            self.record(root, command)
            rank_zero_info(f"model written to {target}")
        trainer.strategy.barrier("model written")

    def record(self, root: Path, command: str) -> None:
        """Note which run made the model."""
        with results_locked(root):
            record_run(root, command, self.run)

    def _drop_stale_results(self, root: Path, command: str) -> None:
        # Scores and answers of the replaced model would be taken for those of the new one.
        if recorded_runs(root).get(command, self.run) != self.run:
            for derived in ("test", "predict"):
                (root / PRODUCTS[derived]).unlink(missing_ok=True)
            for name in DERIVED:
                remove(root / name)

    def save(self, module: Any, folder: Path | None) -> None:
        """Write model and tokenizer of a `LanguageModelModule`.

        Args:
            module: The module; all processes call this together. Merging uses up its model.
            folder: An empty folder on the process that writes, None on the others.
        """
        if module.peft is None:
            write_model(module.model, folder, self.save_dtype)
        elif not any(p.requires_grad for p in module.model.parameters()):
            raise OneShotError("the adapter has no trained weights; nothing to export.")
        elif self.merge_adapter:
            self._write_merged(module, folder)
        elif is_adapter(module.model_name_or_path):
            # Its base would be a folder that is not a model, which peft loads without a warning.
            rank_zero_warn(
                f"{module.model_name_or_path} is an adapter itself, and an adapter on an "
                "adapter loads nowhere else; the merged model is written."
            )
            self._write_merged(module, folder)
        else:
            self._write_adapter(module, folder)
        if folder is not None:
            module.tokenizer_to_export().save_pretrained(folder)

    def _write_adapter(self, module: Any, folder: Path | None) -> None:
        model = module.model
        state = model.state_dict(keep_vars=True)
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        weights = gather(trained, folder is not None, self.save_dtype)
        if folder is None:
            return
        # A path relative to the working folder would break when the user moves.
        base = module.model_name_or_path
        resolved = str(Path(base).expanduser().resolve()) if is_local(base) else base
        model.peft_config[model.active_adapter].base_model_name_or_path = resolved
        # `peft` knows what belongs to an adapter: also fixed projections and shared vectors.
        whole = {id(parameter): weights[name] for name, parameter in trained}
        state = {name: whole.get(id(tensor), tensor) for name, tensor in state.items()}
        model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)

    def _write_merged(self, module: Any, folder: Path | None) -> None:
        if not any(in_parts(parameter) for parameter in module.model.parameters()):
            if folder is not None:
                write_model(merge(module.model), folder, self.save_dtype)
            return
        # Shards cannot be merged, and 16-bit copies are not the weights, so the first process loads
        # the whole base once more.
        with tempfile.TemporaryDirectory() as place:
            self._write_adapter(module, None if folder is None else Path(place))
            if folder is None:
                return
            with whole_models(), torch.device("cpu"):
                base = load_model(
                    module.model_name_or_path,
                    dtype=module.model_dtype,
                    trust_remote_code=module.trust_remote_code,
                )
                merged = load_adapter(base, Path(place))
            write_model(merged, folder, self.save_dtype)
