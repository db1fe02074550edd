"""`oneshot-lit memory` as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oneshot_lit.errors import OneShotError
from oneshot_lit.models.memory import STRATEGIES
from oneshot_lit.models.model_facts import model_facts


def test_command(command: Callable[..., Any], tmp_path: Path, tiny_folder: Path) -> None:
    file = tmp_path / "memory.json"
    words = ["--model", tiny_folder, "--model", tiny_folder / "config.json", "--model", "llama-8b"]
    words += ["--precision", "bf16-mixed", "--lora", "16", "--json", file, "--parts"]
    done = command("memory", *words, "--processes", "2,1")
    assert done.code == 0, done.err
    assert "llama-8b fits into 80 GiB with single on one GPU" in done.out
    first, second, third = json.loads(file.read_text())["models"]
    assert {**first, "model": "", "recommendation": ""} == {
        **second,
        "model": "",
        "recommendation": "",
    }
    assert (third["parameters"] - third["trained"], third["layers"]) == (8_030_261_248, 32)
    cells = {(one["strategy"], one["processes"]): one for one in third["estimates"]}
    assert len(cells) == 2 * len(STRATEGIES) - 1
    assert cells["single", 1]["fits"]
    done = command("memory", "--model", "llama-70b", "--processes", "1", "--gpu-gib", "2")
    assert "llama-70b does not fit into 2 GiB: the least is" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "lama-8b"], "(did you mean 'llama-8b'?)"),
        (["--model", "README.md"], "README.md: is not JSON"),
        (["--model", "configs"], "configs: no config.json"),
        (["--model", "llama-8b", "--processes", "0"], "at least one process"),
        (["--model", "llama-8b", "--processes", "two"], "give numbers such as 1,2,4,8"),
        (["--model", "llama-8b", "--batch", "0"], "--batch 0: at least 1"),
        (["--model", "llama-8b", "--gpu-gib", "-1"], "give a number above 0"),
        (["--processes", "1"], "required: --model; see oneshot-lit memory --help"),
    ],
    ids=str,
)
def test_mistakes(command: Callable[..., Any], words: list[str], message: str) -> None:
    done = command("memory", *words)
    assert done.code == 2
    assert message in done.error


def test_a_config_that_is_none(command: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for content, message in (
        ({"hidden_size": 4}, "it has no model_type"),
        ({"model_type": "lama"}, "no causal language model"),
        ({"model_type": "vit"}, "no causal language model"),
        ({"model_type": "llama", "hidden_size": "wide"}, "no causal language model"),
    ):
        file.write_text(json.dumps(content))
        assert message in command("memory", "--model", file).error
    with pytest.raises(OneShotError, match="unknown key 'rank'"):
        model_facts("llama-1b", peft={"rank": 3})
