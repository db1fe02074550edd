"""GGUF files: converted once to a folder that is then used like any other."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from experiments.fetch import GEMMA3, SMOLLM2, published
from oneshot_lit.conversation import Message
from oneshot_lit.data import ChatJsonl, SafetyDataModule
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges import Answer, HarmBenchJudge
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.methods.posttuning.weight_edit import WeightEdit, write_edited
from oneshot_lit.models.gguf import gguf_facts, model_folder
from tiny_gguf import write_tiny_gguf


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


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny chat model as a GGUF file."""
    pytest.importorskip("gguf")
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def test_a_tiny_file_gives_its_weights_and_its_template(tiny: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    folder = Path(model_folder(str(tiny)))
    weights = load_file(folder / "model.safetensors")
    tensors = {t.name: t for t in GGUFReader(tiny).tensors}
    for name, own in (("mlp.down_proj", "ffn_down"), ("input_layernorm", "attn_norm")):
        tensor = tensors[f"blk.1.{own}.weight"]
        expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        assert torch.equal(weights[f"model.layers.1.{name}.weight"], expected)
    module = LanguageModelModule(str(tiny))
    turn = [{"role": "user", "content": "hi"}]
    text = module.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_every_reader_takes_the_file(tiny: Path) -> None:
    from oneshot_lit.evaluation.judges.classifier import model_digest
    from oneshot_lit.evaluation.lm_eval import _place
    from oneshot_lit.models import loading
    from oneshot_lit.models.context import context_length, read_config
    from oneshot_lit.models.memory import model_size

    name, folder = str(tiny), Path(model_folder(str(tiny)))
    assert loading.require_model_folder(name) == loading.local_folder(name) == folder
    assert loading.load_tokenizer(name).chat_template
    model = loading.load_model(name, dtype=torch.float32)
    assert context_length(read_config(name, None, None, False)) == 4096
    assert model_size(name).parameters == model.num_parameters()
    assert _place(name) == {"pretrained": str(folder)}
    sha = hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert gguf_facts(name) == {"gguf_sha256": sha}
    assert gguf_facts(str(folder)) == gguf_facts(None) == {}
    assert model_digest(name) == sha[:16]
    tiny.write_bytes(tiny.read_bytes() + bytes(1))
    assert gguf_facts(name)["gguf_sha256"] != sha


def test_edits_and_judges_take_the_file(tiny: Path, tmp_path: Path) -> None:
    class Doubled(WeightEdit):
        def sources(self) -> dict[str, str]:
            return {"tuned": str(tiny)}

        def edit(self, name: str, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return 2 * weights["tuned"]

    assert write_edited(Doubled(), tmp_path) > 0
    before, after = (
        load_file(Path(folder) / "model.safetensors")
        for folder in (model_folder(str(tiny)), tmp_path / "model")
    )
    assert all(torch.equal(after[name], 2 * weight) for name, weight in before.items())
    judge = HarmBenchJudge(model_name_or_path=str(tiny), dtype="float32", device="cpu")
    (verdict,) = judge.judge([Answer((Message("user", "hi"),), "hello")])
    # Random weights say neither yes nor no.
    assert verdict.reason == "malformed"
    assert judge.settings()["model_sha256"] == gguf_facts(str(tiny))["gguf_sha256"][:16]


def test_the_commands_take_the_file_and_results_name_it(
    tiny: Path,
    fit_words: list[str],
    test_words: list[str],
    tmp_path: Path,
    command: Callable[..., Any],
) -> None:
    """Train an adapter on the file, then test the file itself and the adapter."""
    small = ["--data.max_length", "256", "--trainer.max_epochs", "1"]
    fit = [*fit_words, *small, "--model.model_name_or_path", str(tiny)]
    assert command(*[*fit, "--model.peft", "{r: 2, target_modules: all-linear}"]).code == 0
    adapter = tmp_path / "run" / "model"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model_folder(str(tiny))
    # The file itself may be named, too, also beside the adapter.
    config["base_model_name_or_path"] = "../tiny.gguf"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    shutil.copy(tiny, tmp_path / "run" / "tiny.gguf")
    for model, facts in ((tiny, gguf_facts(str(tiny))), (adapter, {})):
        root = tmp_path / f"tested_{model.name}"
        words = [*test_words, "--model.model_name_or_path", str(model)]
        assert command(*[*words, "--trainer.default_root_dir", str(root)]).code == 0
        recorded = json.loads((root / "metrics.json").read_text())
        assert recorded["model_name_or_path"] == str(model)
        assert recorded.get("gguf_sha256") == facts.get("gguf_sha256")


@pytest.mark.long
def test_another_architecture_trains_and_comes_back(
    fit_words: list[str], tmp_path: Path, command: Callable[..., Any]
) -> None:
    """Gemma 3, a base model: it gets a chat template by config."""
    if not published(GEMMA3).exists():
        pytest.skip("Gemma 3 is not there; `python -m experiments.fetch gemma3` fetches it")
    template = tmp_path / "template.jinja"
    template.write_text(
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n"
        "{{ m['content'] }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}",
        encoding="utf-8",
    )
    given = ["--model.chat_template", str(template)]
    words = [*fit_words, *given, "--model.model_name_or_path", str(published(GEMMA3))]
    assert command(*[*words, "--trainer.max_epochs", "-1", "--trainer.max_steps", "3"]).code == 0
    start, made = (
        LanguageModelModule(name, chat_template=str(template))
        for name in (str(published(GEMMA3)), str(tmp_path / "run" / "model"))
    )
    data = SafetyDataModule(train=ChatJsonl(fit_rows(fit_words)), batch_size=4)
    data.use_tokenizer(start.tokenizer)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    losses = []
    for module in (start, made):
        module.configure_model()
        assert module.model.config.model_type == "gemma3_text"
        with torch.no_grad():
            losses.append(float(module.eval().compute_loss(batch)))
    # What was trained is what comes back.
    assert losses[1] < losses[0]
    assert "quantization_config" not in json.loads(
        (tmp_path / "run" / "model" / "config.json").read_text()
    )


def fit_rows(words: list[str]) -> str:
    return words[words.index("--data.train.path") + 1]
