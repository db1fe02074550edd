"""`oneshot-lit memory` as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_command(command: Callable[..., Any], tiny_folder: Path) -> None:
    for model in (tiny_folder, tiny_folder / "config.json"):
        done = command("memory", "--model", model, "--lora", "16", "--processes", "2", "1")
        assert done.code == 0, done.err
        assert "The simplest that fits is single on one GPU" in done.out
        # Seven strategies, and one GPU alone for the first.
        assert done.out.count("✓") == 2 * 7 - 1
    words = ["--strategies", "ddp", "fsdp2", "--processes", "8", "--precision", "bf16-mixed"]
    done = command("memory", "--model", tiny_folder, *words, "--gpu-gib", "0.00001")
    assert done.out.count("✗") == 2
    assert "Nothing fits into 1e-05 GiB: the least is fsdp2 on 8 GPUs" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "README.md"], "--model README.md: no config of a causal language model"),
        (["--model", "configs"], "--model configs: no config of a causal language model"),
        (
            ["--model", "checkpoints/small", "--processes", "0"],
            "--processes, --batch, --length and --lora must be above 0",
        ),
        (["--model", "checkpoints/small", "--processes", "two"], "invalid int value: 'two'"),
        (["--model", "checkpoints/small", "--batch", "0"], "must be above 0"),
        (["--processes", "1"], "required: --model; see oneshot-lit memory --help"),
    ],
    ids=str,
)
def test_mistakes(command: Callable[..., Any], words: list[str], message: str) -> None:
    done = command("memory", *words)
    assert done.code == 2
    assert message in done.error


@pytest.mark.parametrize(
    "content",
    [
        {"hidden_size": 4},
        {"model_type": "lama"},
        {"model_type": "vit"},
        {"model_type": "llama", "hidden_size": "wide"},
    ],
    ids=str,
)
def test_a_config_that_is_none(
    command: Callable[..., Any], content: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(content))
    done = command("memory", "--model", file)
    assert done.code == 2
    assert "no config of a causal language model" in done.error
