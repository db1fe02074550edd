"""`HuggingFaceExport`: the trained model as a Hugging Face folder at ``<root>/model``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
from oneshot_lit.methods.posttuning.weight_edit import WeightEdit
from oneshot_lit.models.adapters import is_adapter, load_adapter, merge
from oneshot_lit.models.edit_files import edit_folder
from oneshot_lit.models.loading import load_model, resolve_dtype
from oneshot_lit.models.weight_files import is_local
from oneshot_lit.strategies.deepspeed import whole_models

PRODUCT, MERGED = "model", "merged"


class HuggingFaceExport(Callback):
    """Write the trained model, its tokenizer and chat template when `fit` has ended well.

    The folder appears whole or not at all, and loads with `AutoModelForCausalLM.from_pretrained`;
    with PEFT it is the adapter, unless merged.

    Args:
        enabled: Write the model at all.
        save_dtype: Cast the weights on writing (float16 halves the size); as trained by default.
        merge_adapter: Write the merged model in place of a PEFT adapter.
        merged: Write the merged model to ``<root>/merged``, beside the PEFT adapter. (If the
            base is an adapter itself, ``<root>/model`` is the merged model, and there is no other.)
    """

    def __init__(
        self,
        enabled: bool = True,
        save_dtype: str | None = None,
        merge_adapter: bool = False,
        merged: bool = False,
    ) -> None:
        if merged and merge_adapter:
            raise OneShotError("export: give merged or merge_adapter, not both.")
        self.enabled, self.merge_adapter, self.merged = enabled, merge_adapter, merged
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
        target, whole = root / PRODUCT, root / MERGED
        with _written_by_first(trainer, target) as folder:
            self.save(module, folder)
        if self.merged and trainer.strategy.broadcast(is_adapter(str(target))):
            with _written_by_first(trainer, whole) as folder:
                self.save_merged(module, folder)
            rank_zero_info(f"merged model written to {whole}")
        elif trainer.is_global_zero and whole.is_dir() and self._wrote_merged(root, command):
            # It would be taken for this model, merged.
            shutil.rmtree(whole)
        if trainer.is_global_zero:
            self._drop_stale_results(root, command)
            self.record(root, command)
            rank_zero_info(f"model written to {target}")
        trainer.strategy.barrier("model written")

    def record(self, root: Path, command: str) -> None:
        """Note which run made the model."""
        with results_locked(root):
            record_run(root, command, self.run)

    @staticmethod
    def _wrote_merged(root: Path, command: str) -> bool:
        """Whether the run that wrote the last model wrote a merged one beside it."""
        export = recorded_runs(root).get(command, {}).get("config", {}).get("export") or {}
        return bool(export.get("merged"))

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
            module: The module; all processes call this together.
            folder: An empty folder on the process that writes, None on the others.
        """
        model = module.model
        if module.peft is None:
            write_model(model, folder, self.save_dtype)
            _write_tokenizer(module, folder)
            return
        if not any(p.requires_grad for p in model.parameters()):
            raise OneShotError("the adapter has no trained weights; nothing to export.")
        on_adapter = module.model_name_or_path and is_adapter(module.model_name_or_path)
        if on_adapter and not self.merge_adapter:
            # Its base would be a folder that is not a model, which peft loads without a warning.
            rank_zero_warn(
                f"{module.model_name_or_path} is an adapter itself, and an adapter on an "
                "adapter loads nowhere else; the merged model is written."
            )
        if self.merge_adapter or on_adapter:
            self.save_merged(module, folder)
            return
        self._write_adapter(module, folder)
        _write_tokenizer(module, folder)

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

    def save_merged(self, module: Any, folder: Path | None) -> None:
        """Write the model with its adapter merged into it, which uses up the module's model."""
        base = str(module.model_name_or_path)
        if isinstance(module, WeightEdit) and not is_adapter(base):
            # Tensor by tensor, from the files of the broken model.
            if folder is not None:
                dtype = self.save_dtype or module.model_dtype  # type: ignore[attr-defined]
                edit_folder(module.folders(), folder, module.edit, dtype=dtype)
                _write_tokenizer(module, folder)
            return
        if not any(in_parts(parameter) for parameter in module.model.parameters()):
            if folder is not None:
                write_model(merge(module.model), folder, self.save_dtype)
                _write_tokenizer(module, folder)
            return
        # Shards cannot be merged, and 16-bit copies are not the weights, so the first process loads
        # the whole base once more.
        with tempfile.TemporaryDirectory() as place:
            adapter = None if folder is None else Path(place)
            self._write_adapter(module, adapter)
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
            _write_tokenizer(module, folder)


def _write_tokenizer(module: Any, folder: Path | None) -> None:
    if folder is not None:
        module.tokenizer.save_pretrained(folder)


@contextmanager
def _written_by_first(trainer: Trainer, target: Path) -> Iterator[Path | None]:
    """Yield a folder that appears when it is whole to the first process, None to the others."""
    if trainer.is_global_zero:
        with folder_written_whole(target) as folder:
            yield folder
    else:
        yield None
