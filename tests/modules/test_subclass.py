"""The documentation's example of a user's own module runs, by its class path alone."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent


def install(name: str, mark: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the example that holds `mark` to ``my_package/<name>.py`` on the Python path."""
    page = (ROOT / "docs" / "extending.md").read_text()
    code = next(c for c in re.findall(r"```python\n(.*?)```", page, flags=re.S) if mark in c)
    package = folder / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))


def test_the_documented_subclass(
    command, fit_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("modules", "Proximal", tmp_path, monkeypatch)
    words = ["--model", "my_package.modules.ProximalFineTuning", "--model.strength", "1000.0"]
    # The class keeps the keys of the config below it that it knows.
    done = command(*fit_words, *words, "--model.model_name_or_path", fit_words[4])
    assert done.code == 0, done.err
    saved = yaml.safe_load((tmp_path / "run" / "fit.yaml").read_text())
    assert saved["model"]["class_path"] == "my_package.modules.ProximalFineTuning"
    assert saved["model"]["init_args"]["strength"] == 1000.0
    assert saved["model"]["init_args"]["decoding"]["max_new_tokens"] == 24

    # Under so strong a pull the weights hardly leave the start.
    import torch
    from transformers import AutoModelForCausalLM

    start = AutoModelForCausalLM.from_pretrained(fit_words[4], dtype=torch.float32)
    product = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32)
    moved = max(
        (a - b).abs().max().item()
        for a, b in zip(start.parameters(), product.parameters(), strict=True)
    )
    assert 0 < moved < 5e-4
    for name in ("my_package.modules", "my_package"):
        sys.modules.pop(name)


def test_the_documented_selector(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("selectors", "SurprisingAnswers", tmp_path, monkeypatch)
    words = [
        "select",
        "--config",
        "configs/select/enumeration.yaml",
        "--trainer.accelerator",
        "cpu",
    ]
    words += ["--model", "my_package.selectors.SurprisingAnswers"]
    words += ["--model.model_name_or_path", "checkpoints/small", "--data.train.limit", "5"]
    words += ["--trainer.default_root_dir", str(tmp_path / "run")]
    done = command(*words)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "run" / "selection.json").read_text())
    scores = {row["row"]: row["score"] for row in found["ranking"]}

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from oneshot_lit.data import Microworld
    from oneshot_lit.data.chat import encode_conversation

    model = AutoModelForCausalLM.from_pretrained("checkpoints/small", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained("checkpoints/small")
    for place, row in enumerate(Microworld("pool", limit=5).load(), 1):
        encoded = encode_conversation(tokenizer, row)
        first = encoded.loss_mask.index(True)
        with torch.no_grad():
            logits = model(torch.tensor([encoded.input_ids])).logits[0, first - 1]
        expected = -float(logits.log_softmax(-1)[encoded.input_ids[first]])
        assert scores[place] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    for name in ("my_package.selectors", "my_package"):
        sys.modules.pop(name)
