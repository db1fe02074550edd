"""What Lightning's own DeepSpeed strategy gets wrong without a word, and ours right.

``STOCK_DEEPSPEED=1 pytest tests/strategies/test_silent_faults.py`` runs the same on Lightning's
strategy, made to run on CPUs and otherwise as it is; then every test here fails.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import in_processes
from safetensors.torch import load_file

from oneshot_lit.methods import LanguageModelModule

pytestmark = pytest.mark.slow

STOCK = os.environ.get("STOCK_DEEPSPEED") == "1"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
LORA = {"r": 4, "target_modules": "all-linear"}
CASES: dict[str, dict[str, Any]] = {
    "folder": {"stage": 3},
    "config": {"stage": 3, "config": CONFIG},
    "adapter": {"stage": 3, "peft": LORA},
    "bfloat16, zero2": {"stage": 2, "precision": "bf16-mixed"},
    "bfloat16, zero3": {"stage": 3, "precision": "bf16-mixed"},
    **{f"accumulating, zero{n}": {"stage": n, "accumulate": 2} for n in (1, 2, 3)},
}


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, uneven_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("faults")
    paths = {"folder": str(tiny_folder), "rows": str(uneven_rows), "stock": STOCK}
    cases = [{"root": str(root / name), **paths, **case} for name, case in CASES.items()]
    in_processes(root, "faults", "probe", cases)
    return root


def found(runs: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(runs / name / "found.pt", weights_only=True)
    assert "error" not in content, content
    return content


def expected(**options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = LanguageModelModule(**options)
    module.configure_model()
    return {name: p.detach() for name, p in module.named_parameters()}


def test_zero3_loads_a_folder(runs: Path, tiny_folder: Path) -> None:
    start = found(runs, "folder")["start"]
    for name, weight in load_file(tiny_folder / "model.safetensors").items():
        assert torch.equal(start[f"model.{name}"], weight), name


def test_zero3_draws_the_usual_weights(runs: Path, tiny_folder: Path) -> None:
    start = found(runs, "config")["start"]
    usual = expected(model_config=CONFIG, tokenizer_name_or_path=str(tiny_folder))
    assert set(start) == set(usual)
    for name, weight in usual.items():
        assert torch.equal(start[name], weight), name
    assert usual["model.model.embed_tokens.weight"].std() == pytest.approx(0.02, rel=0.05)


def test_zero3_starts_an_adapter_that_changes_nothing(runs: Path, tiny_folder: Path) -> None:
    start = found(runs, "adapter")["start"]
    usual = expected(model_name_or_path=str(tiny_folder), peft=LORA)
    for name, weight in usual.items():
        assert torch.equal(start[name], weight), name
        assert "lora_B" not in name or not weight.any()


@pytest.mark.parametrize("name", ["bfloat16, zero2", "bfloat16, zero3"])
def test_buffers_and_master_weights_keep_float32(name: str, runs: Path, tiny_folder: Path) -> None:
    content = found(runs, name)
    module = LanguageModelModule(str(tiny_folder))
    module.configure_model()
    buffers = dict(module.named_buffers())
    assert any("inv_freq" in key for key in buffers)
    for key, buffer in buffers.items():
        dtype, values = content["buffers"][key]
        assert dtype == "torch.float32"
        assert torch.equal(values, buffer), key
    for key, weight in load_file(tiny_folder / "model.safetensors").items():
        assert torch.equal(content["start"][f"model.{key}"], weight), key


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_accumulation_divides_once_and_ends_with_the_epoch(
    stage: int, runs: Path, tiny_folder: Path, uneven_rows: Path
) -> None:
    """Three batches, two a step; plain SGD by hand gives the weights."""
    from oneshot_lit.data import ChatJsonl, SafetyDataModule

    content = found(runs, f"accumulating, zero{stage}")
    module = LanguageModelModule(str(tiny_folder))
    module.configure_model()
    data = SafetyDataModule(ChatJsonl(str(uneven_rows)), batch_size=4, shuffle=False)
    data.use_tokenizer(module.tokenizer)
    data.setup("fit")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    batches = list(data.train_dataloader())
    for step in (batches[:2], batches[2:]):
        tokens = [int((batch["labels"][:, 1:] != -100).sum()) for batch in step]
        for batch, own in zip(step, tokens, strict=True):
            (module.compute_loss(batch) * own / sum(tokens)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert content["steps"] == 2
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(content["end"][name], parameter.detach(), atol=1e-6, rtol=0)
