"""An adapter on either side of a tied pair: each product computes what was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from oneshot_lit.callbacks import HuggingFaceExport
from oneshot_lit.cli.export import export_checkpoint
from oneshot_lit.data import ChatJsonl, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule
from quiet_trainer import quiet_trainer

LORA = {"r": 4, "init_lora_weights": "gaussian"}
OPTIONS: dict[str, dict[str, Any]] = {
    "head": {**LORA, "target_modules": ["q_proj", "lm_head"]},
    "head alone": {**LORA, "target_modules": ["lm_head"]},
    "embedding": {**LORA, "target_modules": ["q_proj", "embed_tokens"]},
    "both": {**LORA, "target_modules": ["embed_tokens", "lm_head"]},
    "both, tied": {
        **LORA,
        "target_modules": ["embed_tokens", "lm_head"],
        "ensure_weight_tying": True,
    },
    "expression": {**LORA, "target_modules": ".*(v_proj|lm_head)"},
    "dora": {**LORA, "target_modules": ["lm_head"], "use_dora": True},
    "head saved": {**LORA, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embedding saved": {**LORA, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "both saved": {
        **LORA,
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens", "lm_head"],
    },
    "both saved, tied": {
        **LORA,
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens", "lm_head"],
        "ensure_weight_tying": True,
    },
    "tokens": {
        **LORA,
        "target_modules": ["q_proj"],
        "trainable_token_indices": list(range(10, 60)),
    },
    "tokens alone": {"peft_type": "TRAINABLE_TOKENS", "token_indices": list(range(10, 60))},
    "all linear": {**LORA, "target_modules": "all-linear"},
    "loha": {"peft_type": "LOHA", "r": 4, "target_modules": ["lm_head"]},
    "lokr": {"peft_type": "LOKR", "r": 4, "target_modules": ["lm_head"]},
    "ia3": {"peft_type": "IA3", "target_modules": ["lm_head"], "feedforward_modules": []},
    "oft": {"peft_type": "OFT", "oft_block_size": 8, "r": 0, "target_modules": ["lm_head"]},
    "vera": {"peft_type": "VERA", "r": 4, "target_modules": ["lm_head"]},
    "hira": {"peft_type": "HIRA", "r": 4, "target_modules": ["embed_tokens"]},
    "fourierft": {"peft_type": "FOURIERFT", "n_frequency": 50, "target_modules": ["lm_head"]},
}


@pytest.fixture(scope="module")
def tied(tied_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the row of zeros for the padding, by whose norm DoRA divides."""
    folder = shutil.copytree(tied_folder, tmp_path_factory.mktemp("tied") / "full")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[model.config.pad_token_id] = 0.01
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(10, 400, (3, 17), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def module(folder: Path, **options: Any) -> LanguageModelModule:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-2)

    return LanguageModelModule(str(folder), dtype="float64", optimizer=optimizer, **options)


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found = model.eval()(**batch)
    return found if isinstance(found, torch.Tensor) else found.logits


def save_checkpoint(trainer: Any, root: Path, folder: Path, peft: dict[str, Any]) -> Path:
    """Save what the command line's checkpoint of the same run holds."""
    path = root / "last.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    options = {"model_name_or_path": str(folder), "dtype": "float64", "peft": peft}
    model = {"class_path": "oneshot_lit.methods.LanguageModelModule", "init_args": options}
    torch.save(saved | {"run": {"config": {"model": model}}}, path)
    return path


@pytest.mark.parametrize("name", OPTIONS)
def test_each_product_computes_what_was_trained(
    name: str, tied: Path, rows_file: Path, tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    trained = module(tied, peft=OPTIONS[name])
    trainer = quiet_trainer(tmp_path, HuggingFaceExport(), max_epochs=1)
    trainer.fit(trained, SafetyDataModule(train=ChatJsonl(str(rows_file)), batch_size=4))
    checkpoint = save_checkpoint(trainer, tmp_path, tied, OPTIONS[name])
    expected = logits(trained, batch)
    base = AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float64)
    assert float((logits(base, batch) - expected).abs().max()) > 1e-3
    assert base.lm_head.weight is base.model.embed_tokens.weight

    def same(model: Any) -> None:
        torch.testing.assert_close(logits(model, batch), expected, atol=1e-5, rtol=1e-5)

    # The adapter: by peft beside its base, and by our loader, which merges it.
    same(PeftModel.from_pretrained(base, tmp_path / "model"))
    loaded = module(tmp_path / "model")
    loaded.configure_model()
    same(loaded)
    # Converted from the checkpoint of the last step, as an adapter and merged.
    for merge in (False, True):
        place = tmp_path / f"converted{merge}"
        export_checkpoint(checkpoint, place, merge_adapter=merge)
        again = module(place)
        again.configure_model()
        same(again)
    # Merged at the end of the fit, which spends the module's model.
    whole = tmp_path / "merged"
    whole.mkdir()
    HuggingFaceExport(merge_adapter=True).save(trained, whole)
    merged = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float64)
    same(merged)
    is_tied = merged.lm_head.weight is merged.model.embed_tokens.weight
    assert json.loads((whole / "config.json").read_text())["tie_word_embeddings"] is is_tied
