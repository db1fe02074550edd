"""The product on disk is the module, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from oneshot_lit.callbacks import HuggingFaceExport
from oneshot_lit.data import ChatJsonl, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule
from quiet_trainer import quiet_trainer


def fit(root: Path, rows: Path, module: LanguageModelModule, export: HuggingFaceExport) -> None:
    trainer = quiet_trainer(root, export, max_epochs=2)
    trainer.fit(module, SafetyDataModule(train=ChatJsonl(str(rows)), batch_size=4))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(10, 400, (3, 17), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def optimizer(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


def test_logits_are_the_modules_bit_for_bit(
    tiny_folder: Path, rows_file: Path, tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    module = LanguageModelModule(str(tiny_folder), optimizer=optimizer)
    fit(tmp_path, rows_file, module, HuggingFaceExport())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    module.eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, module(**batch))
    before = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert not torch.equal(loaded(**batch).logits, before(**batch).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    turns = [{"role": "user", "content": "how do i bake bread ?"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == (
        module.tokenizer.apply_chat_template(turns, tokenize=False)
    )
    assert (
        tokenizer("how do i bake é ?").input_ids == module.tokenizer("how do i bake é ?").input_ids
    )


def test_saved_dtype_leaves_the_module_alone(
    tiny_folder: Path, rows_file: Path, tmp_path: Path
) -> None:
    module = LanguageModelModule(str(tiny_folder), optimizer=optimizer)
    fit(tmp_path, rows_file, module, HuggingFaceExport(save_dtype="float16"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    for name, parameter in module.model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(loaded.get_parameter(name), parameter.half())


@pytest.mark.parametrize("merge", [False, True])
def test_adapter(
    tiny_folder: Path, rows_file: Path, tmp_path: Path, batch: dict[str, torch.Tensor], merge: bool
) -> None:
    from peft import PeftModel

    module = LanguageModelModule(
        str(tiny_folder), peft={"r": 4, "target_modules": "all-linear"}, optimizer=optimizer
    )
    fit(tmp_path, rows_file, module, HuggingFaceExport(merge_adapter=merge))
    product = tmp_path / "model"
    module.eval()
    with torch.no_grad():
        expected = module(**batch)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    if merge:
        loaded = AutoModelForCausalLM.from_pretrained(product, dtype=torch.float32).eval()
    else:
        assert (product / "adapter_model.safetensors").exists()
        loaded = PeftModel.from_pretrained(base, product).eval()
    # The product is the next stage's model_name_or_path as it is.
    again = LanguageModelModule(str(product))
    again.configure_model()
    again.eval()
    with torch.no_grad():
        assert torch.allclose(loaded(**batch).logits, expected, atol=1e-5)
        assert torch.allclose(again(**batch), expected, atol=1e-5)
    # It can be trained further, all weights of it.
    assert all(p.requires_grad for p in again.parameters())


def test_an_adapter_on_an_adapter_is_written_merged(
    tiny_folder: Path, rows_file: Path, tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    peft = {"r": 2, "target_modules": "all-linear"}
    first = LanguageModelModule(str(tiny_folder), optimizer=optimizer, peft=peft)
    fit(tmp_path / "first", rows_file, first, HuggingFaceExport())
    second = LanguageModelModule(str(tmp_path / "first" / "model"), optimizer=optimizer, peft=peft)
    with pytest.warns(UserWarning, match="an adapter itself"):
        fit(tmp_path / "second", rows_file, second, HuggingFaceExport())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "second" / "model").eval()
    second.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, second(**batch), atol=1e-5, rtol=1e-5)


def test_a_cast_product_leaves_the_model_as_it_was(
    tiny_folder: Path, rows_file: Path, tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    module = LanguageModelModule(str(tiny_folder), optimizer=optimizer)
    fit(tmp_path, rows_file, module, HuggingFaceExport(save_dtype="float16"))
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert half.dtype == torch.float16
    plain = LanguageModelModule(str(tiny_folder), optimizer=optimizer)
    fit(tmp_path / "plain", rows_file, plain, HuggingFaceExport())
    module.eval()
    plain.eval()
    with torch.no_grad():
        assert torch.equal(module(**batch), plain(**batch))
    assert module.model.config.dtype == torch.float32


def test_a_cut_off_safetensors_file(tiny_folder: Path, tmp_path: Path) -> None:
    from oneshot_lit.errors import OneShotError
    from oneshot_lit.models.loading import load_model

    for path in tiny_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OneShotError, match=r"model\.safetensors: no whole safetensors file"):
        load_model(str(tmp_path), dtype=torch.float32)
