"""GGUF files: converted once to a folder that is then used like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments.fetch import SMOLLM2, published
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.models.gguf import model_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("ONESHOT_LIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_other_names_stay(tmp_path: Path) -> None:
    assert model_folder("owner/model") == "owner/model"
    assert model_folder(str(tmp_path)) == str(tmp_path)
    assert Path(model_folder("checkpoints/small")).is_dir()


def test_missing_and_damaged_files_are_named(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(OneShotError, match=r"no\.gguf: GGUF file not found"):
        model_folder(str(tmp_path / "no.gguf"))
    (damaged := tmp_path / "damaged.gguf").write_bytes(b"GGUF\x03\0\0\0 not a model")
    with pytest.raises(OneShotError, match=r"damaged\.gguf: this GGUF file cannot be converted"):
        model_folder(str(damaged))
    assert not [path for path in (cache / "gguf").iterdir() if path.is_dir()]


@pytest.mark.slow
def test_a_real_model_is_converted_once_and_trains(cache: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    if not published(SMOLLM2).exists():
        pytest.skip("SmolLM2 is not there; `make fetch` fetches it")
    folder = Path(model_folder(str(published(SMOLLM2))))
    made = (folder / "config.json").stat().st_mtime_ns
    weights = load_file(folder / "model.safetensors")
    # Names of the file's own format, read by its own library.
    tensors = {t.name: t for t in GGUFReader(published(SMOLLM2)).tensors}
    for name, own in (
        ("model.embed_tokens", "token_embd"),
        ("model.layers.3.mlp.down_proj", "blk.3.ffn_down"),
        ("model.norm", "output_norm"),
    ):
        tensor = tensors[f"{own}.weight"]
        expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        torch.testing.assert_close(weights[f"{name}.weight"], expected, rtol=0, atol=0)

    module = LanguageModelModule(model_name_or_path=str(published(SMOLLM2)))
    assert (folder / "config.json").stat().st_mtime_ns == made
    module.configure_model()
    ids = module.tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    loss = module.compute_loss(batch)
    loss.backward()
    assert 0 < loss.item() < 5
    assert all(p.grad is not None for p in module.model.parameters())
