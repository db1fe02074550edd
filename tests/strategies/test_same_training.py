"""Two processes of each strategy train the same model as one process: losses, spectra, product."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import in_processes
from safetensors.torch import load_file
from training import LORA, train
from transformers import AutoModelForCausalLM

from oneshot_lit.callbacks.spectra_files import read_spectra

pytestmark = [pytest.mark.slow, pytest.mark.long]

STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # Divides by no number of processes, as the vocabulary.
    "intermediate_size": 49,
    "max_position_embeddings": 256,
}
TIED = {**ARCHITECTURE, "tie_word_embeddings": True}
# Eleven rows in batches of four: the last batch of an epoch, and of an accumulation, is short.
VARIANTS: dict[str, dict[str, Any]] = {
    "folder": {"spectra": True},
    "folder, accumulating": {"accumulate": 2},
    "folder, clipped": {"clip": 0.05},
    "folder, lora": {"peft": LORA, "accumulate": 2, "clip": 0.5},
    "config": {"config": ARCHITECTURE, "accumulate": 2, "clip": 0.05},
    "config, tied": {"config": TIED, "checkpointing": True},
    "tied folder": {"tied": True, "accumulate": 2},
    "instance": {"instance": True, "batch_size": 1},
}
OPTIMIZERS = ("sgd", "adamw")
KEYS = [(v, o) for v in VARIANTS for o in OPTIMIZERS]


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tied_folder: Path, uneven_rows: Path, tmp_path_factory: Any) -> Path:
    root: Path = tmp_path_factory.mktemp("same")

    def case(name: str, variant: str, optimizer: str, processes: int) -> dict[str, Any]:
        options = dict(VARIANTS[variant])
        folder = tied_folder if options.pop("tied", False) else tiny_folder
        return {
            "name": name,
            "root": str(root / f"{name}, {variant}, {optimizer}"),
            "folder": str(folder),
            "rows": str(uneven_rows),
            "processes": processes,
            "optimizer": optimizer,
            **options,
        }

    for variant, optimizer in KEYS:
        train(**case("single", variant, optimizer, 1))
    cases = [case(name, *key, 2) for name in STRATEGIES for key in KEYS]
    in_processes(root, "training", "train", cases, seconds=400)
    # The instance is repeated on every process: four of them change nothing, either.
    four = [case(name, "instance", o, 4) for name in STRATEGIES for o in OPTIMIZERS]
    for each in four:
        each["root"] += ", four"
    in_processes(root, "training", "train", four, processes=4, seconds=300)
    return root


def difference(found: Path, expected: Path) -> dict[str, float]:
    """Return the largest differences of two runs in what they logged and in what they wrote."""
    logs = [json.loads((root / "losses.json").read_text()) for root in (found, expected)]
    assert [log["step"] for log in logs[0]] == [log["step"] for log in logs[1]]
    products = [root / "model" for root in (found, expected)]
    names = [sorted(path.name for path in product.iterdir()) for product in products]
    assert names[0] == names[1]
    (file,) = [name for name in names[0] if name.endswith(".safetensors")]
    weights = [load_file(product / file) for product in products]
    assert set(weights[0]) == set(weights[1])
    assert {w.dtype for w in weights[0].values()} == {torch.float32}
    return {
        "loss": max(abs(a["train/loss"] - b["train/loss"]) for a, b in zip(*logs, strict=True)),
        "norm": max(
            abs(a.get("train/grad_norm", 0) - b.get("train/grad_norm", 0))
            for a, b in zip(*logs, strict=True)
        ),
        "weights": max(float((weights[0][k] - weights[1][k]).abs().max()) for k in weights[0]),
    }


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(("variant", "optimizer"), KEYS)
def test_losses_and_weights(name: str, variant: str, optimizer: str, runs: Path) -> None:
    single = runs / f"single, {variant}, {optimizer}"
    found = difference(runs / f"{name}, {variant}, {optimizer}", single)
    assert found["loss"] <= 1e-5
    assert found["norm"] <= 1e-4
    assert found["weights"] <= 1e-5
    # The fit did something: a difference to the start would not show otherwise.
    losses = [log["train/loss"] for log in json.loads((single / "losses.json").read_text())]
    assert min(losses[1:]) < losses[0] - 1e-3


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_instance_is_the_same_for_four(name: str, optimizer: str, runs: Path) -> None:
    single = runs / f"single, instance, {optimizer}"
    found = difference(runs / f"{name}, instance, {optimizer}, four", single)
    assert max(found.values()) <= 1e-5


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_spectra(name: str, optimizer: str, runs: Path) -> None:
    found, expected = (
        read_spectra(runs / f"{each}, folder, {optimizer}") for each in (name, "single")
    )
    assert set(found) == set(expected) == {0, 1}
    for epoch, matrices in expected.items():
        assert set(found[epoch]) == set(matrices)
        for matrix, values in matrices.items():
            a, b = torch.tensor(found[epoch][matrix]), torch.tensor(values)
            size = min(len(a), len(b))
            # Ranks stop recording where only rounding is left.
            assert (a[:size] - b[:size]).abs().max() <= 1e-4 * b[0], matrix


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("variant", ["folder", "config", "tied folder", "config, tied"])
def test_product_loads_strictly_and_answers_alike(name: str, variant: str, runs: Path) -> None:
    logits = []
    for each in (name, "single"):
        model, report = AutoModelForCausalLM.from_pretrained(
            runs / f"{each}, {variant}, sgd" / "model", output_loading_info=True
        )
        assert not any(report.values()), report
        assert type(model).__name__ == "LlamaForCausalLM"
        tied = model.lm_head.weight is model.model.embed_tokens.weight
        assert tied == ("tied" in variant)
        with torch.no_grad():
            logits.append(model(torch.arange(5, 25).reshape(2, 10)).logits)
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_adapter_loads_on_its_base(name: str, runs: Path, tiny_folder: Path) -> None:
    from peft import PeftModel

    logits = []
    for each in (name, "single"):
        base = AutoModelForCausalLM.from_pretrained(tiny_folder)
        before = base(torch.arange(5, 25).reshape(2, 10)).logits
        model = PeftModel.from_pretrained(base, runs / f"{each}, folder, lora, sgd" / "model")
        logits.append(model(torch.arange(5, 25).reshape(2, 10)).logits)
        assert not torch.equal(before, logits[-1])
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=0)
