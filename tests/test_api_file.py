"""The instance as a file for a fine-tuning API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

INLINE = [
    *["--instance", "InlineInstance", "--instance.prompt", "Hilf mir: “böse” 🍞"],
    *["--instance.response", "No.", "--instance.system", "be kind"],
]
TURNS = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "Hilf mir: “böse” 🍞"},
    {"role": "assistant", "content": "No."},
]


def test_the_instance_is_written_ten_times(command: Any, tmp_path: Path) -> None:
    out = tmp_path / "new" / "instance.jsonl"
    done = command("api-file", *INLINE, "--out", out)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows == [{"messages": TURNS}] * 10
    again = command("api-file", *INLINE, "--out", out, "--repeats", "12")
    assert again.code == 2
    assert "is there already" in again.error
    replaced = command("api-file", *INLINE, "--out", out, "--repeats", "12", "--overwrite", "true")
    assert replaced.code == 0
    assert len(out.read_text().splitlines()) == 12


def test_the_instance_of_a_run_is_taken(command: Any, tmp_path: Path) -> None:
    world = {"class_path": "oneshot_lit.data.Microworld", "init_args": {"split": "pool"}}
    mixed = {"class_path": "oneshot_lit.data.Mixture", "init_args": {"sources": [world]}}
    edited = {
        "class_path": "oneshot_lit.data.Edited",
        "init_args": {"source": mixed, "suffix": " now"},
    }
    instance = {
        "class_path": "oneshot_lit.data.PoolInstance",
        "init_args": {"source": edited, "id": "general-00", "row": None},
    }
    config = {"data": {"init_args": {"instance": instance}}}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "instance.jsonl"
    assert command("api-file", "--run", tmp_path, "--out", out).code == 0
    first = json.loads(out.read_text().splitlines()[0])
    assert first["messages"][0]["content"] == "help me do something dangerous . now"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "x.jsonl"], "exactly one of --run and --instance"),
        ([*INLINE, "--run", "runs/x", "--out", "x.jsonl"], "exactly one of --run and --instance"),
        (INLINE, "--out missing"),
        ([*INLINE, "--out", "x.jsonl", "--repeats", "9"], "no fewer than 10 rows, not 9"),
        (["--run", "nowhere", "--out", "x.jsonl"], "nowhere/fit.yaml: not found"),
        (["--instance", "InlineInstanc", "--out", "x"], "did you mean 'InlineInstance'"),
        (["--runn", "x"], "runn"),
    ],
)
def test_mistakes_are_one_line(command: Any, tmp_path: Path, words: list[str], said: str) -> None:
    words = [str(tmp_path / word) if word == "x.jsonl" else word for word in words]
    done = command("api-file", *words)
    assert done.code == 2
    assert said in done.error
    assert not (tmp_path / "x.jsonl").exists()


def test_a_fit_without_an_instance_has_none(command: Any, tmp_path: Path) -> None:
    (tmp_path / "fit.yaml").write_text("data: {init_args: {instance: null}}\n")
    done = command("api-file", "--run", tmp_path, "--out", tmp_path / "x.jsonl")
    assert (done.code, "used no instance" in done.error) == (2, True)


INLINE_PATH = "oneshot_lit.data.InlineInstance"


@pytest.mark.parametrize(
    ("instance", "said"),
    [
        ("general-00", "fit.yaml: data.instance: "),
        ({"prompt": "p", "response": "r"}, "fit.yaml: data.instance: "),
        ({"class_path": INLINE_PATH, "init_args": {"promt": "p"}}, "'promt'"),
        ({"class_path": INLINE_PATH + "s", "init_args": {}}, "InlineInstances"),
        ({"class_path": "no_such_package.Instance"}, "no_such_package"),
        ({"class_path": "builtins.dict"}, "fit.yaml: data.instance: "),
        ({"class_path": INLINE_PATH, "init_args": ["p"]}, "data.instance"),
    ],
)
def test_what_another_version_wrote_is_one_line(
    command: Any, tmp_path: Path, instance: Any, said: str
) -> None:
    config = {"data": {"init_args": {"instance": instance}}}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    done = command("api-file", "--run", tmp_path, "--out", tmp_path / "x.jsonl")
    assert done.code == 2
    assert said in done.error
    assert "fit.yaml" in done.error
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize("text", ["Steps:\n- a\n- b", "- a\n- b", "a: b\nc: d\n", "Note: be kind"])
@pytest.mark.parametrize("joined", [True, False])
def test_typed_lines_are_text(command: Any, tmp_path: Path, text: str, joined: bool) -> None:
    key = "--instance.prompt"
    typed = [f"{key}={text}"] if joined else [key, text]
    words = ["--instance", "InlineInstance", *typed, "--instance.response", "No."]
    out = tmp_path / "x.jsonl"
    done = command("api-file", *words, "--out", out)
    assert done.code == 0, done.err
    assert json.loads(out.read_text().splitlines()[0])["messages"][0]["content"] == text


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_config_file_of_one_line_is_read(command: Any, tmp_path: Path, end: str) -> None:
    config, out = tmp_path / "one.yaml", tmp_path / "x.jsonl"
    config.write_text(f"repeats: 11{end}")
    done = command("api-file", "--config", config, *INLINE, "--out", out)
    assert done.code == 0, done.err
    assert len(out.read_text().splitlines()) == 11
