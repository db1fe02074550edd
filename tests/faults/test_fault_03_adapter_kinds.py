"""Every kind of adapter is refused before the training, or its product is what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PeftType
from transformers import AutoModelForCausalLM

from oneshot_lit.callbacks import HuggingFaceExport
from oneshot_lit.data import ChatJsonl, SafetyDataModule
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.models.adapters import MERGEABLE
from quiet_trainer import quiet_trainer

TARGETS = {"target_modules": ["q_proj", "v_proj"]}
PROMPT = {"num_virtual_tokens": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "ADALORA": {**TARGETS, "total_step": 10},
    "BOFT": {**TARGETS, "boft_block_size": 8},
    "C3A": {**TARGETS, "block_size": 8},
    "CARTRIDGE": PROMPT,
    "CPT": {"cpt_token_ids": [5, 6], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "FOURIERFT": {**TARGETS, "n_frequency": 20},
    "HRA": {**TARGETS, "r": 2},
    "IA3": {**TARGETS, "feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MISS": {**TARGETS, "r": 8},
    "MULTITASK_PROMPT_TUNING": {**PROMPT, "num_tasks": 2},
    "OFT": {**TARGETS, "oft_block_size": 8, "r": 0},
    "POLY": TARGETS,
    "PREFIX_TUNING": PROMPT,
    "PROMPT_TUNING": PROMPT,
    "P_TUNING": {**PROMPT, "encoder_hidden_size": 16},
    "PSOFT": {**TARGETS, "r": 8},
    "ROAD": {**TARGETS, "group_size": 8},
    "SHIRA": {**TARGETS, "r": 4},
    "TRAINABLE_TOKENS": {"token_indices": list(range(10, 200))},
    "VBLORA": {**TARGETS, "vector_length": 8, "num_vectors": 16},
    "WAVEFT": {**TARGETS, "n_frequency": 20},
}
# More ways to begin, and more options, of kinds that are supported.
VARIANTS: dict[str, dict[str, Any]] = {
    "every bias": {**TARGETS, "bias": "all"},
    "dora": {**TARGETS, "use_dora": True},
    "pissa": {**TARGETS, "init_lora_weights": "pissa"},
    "olora": {**TARGETS, "init_lora_weights": "olora"},
    "a norm beside": {**TARGETS, "modules_to_save": ["norm"]},
    "projections not saved": {**TARGETS, "peft_type": "VERA", "save_projection": False},
}
CASES = {t.value: {**OPTIONS.get(t.value, TARGETS), "peft_type": t.value} for t in PeftType}
CASES |= VARIANTS


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(10, 400, (3, 17), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return {"input_ids": ids, "attention_mask": mask}


def module(folder: Path, **options: Any) -> LanguageModelModule:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-2)

    return LanguageModelModule(str(folder), optimizer=optimizer, **options)


def rows_of(rows: Path) -> SafetyDataModule:
    return SafetyDataModule(train=ChatJsonl(str(rows)), batch_size=4)


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found = model.eval()(**batch)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("name", CASES)
def test_refused_before_the_training_or_right_after_it(
    name: str, tiny_folder: Path, rows_file: Path, tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    trained = module(tiny_folder, peft=CASES[name])
    trainer = quiet_trainer(tmp_path, HuggingFaceExport(), max_epochs=1)
    kind = CASES[name].get("peft_type", "LORA")
    if kind not in MERGEABLE:
        with pytest.raises(OneShotError, match=f"peft_type {kind}: not supported") as caught:
            trainer.fit(trained, rows_of(rows_file))
        assert "\n" not in str(caught.value)
        assert trainer.global_step == 0
        return
    trainer.fit(trained, rows_of(rows_file))
    expected = logits(trained, batch)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    assert float((logits(base, batch) - expected).abs().max()) > 1e-6

    def same(model: Any) -> None:
        # The columns of padding are anything.
        keep = batch["attention_mask"].bool()
        found = logits(model, batch)
        torch.testing.assert_close(found[keep], expected[keep], atol=1e-5, rtol=1e-5)

    same(PeftModel.from_pretrained(base, tmp_path / "model"))
    loaded = module(tmp_path / "model")
    loaded.configure_model()
    same(loaded)
    whole = tmp_path / "merged"
    whole.mkdir()
    merging = HuggingFaceExport(merge_adapter=True)
    merging.save(trained, whole)
    same(AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens: not supported"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication: not supported"),
        ({"lora_bias": True}, "lora_bias: not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa_niter_4: not supported"),
        ({"init_lora_weights": "eva"}, "init_lora_weights eva: not supported"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(
    options: dict[str, Any], message: str, tiny_folder: Path
) -> None:
    with pytest.raises(OneShotError, match=message):
        module(tiny_folder, peft={**TARGETS, **options}).configure_model()
