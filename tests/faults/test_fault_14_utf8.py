"""Fault 14: text files are UTF-8, with or without a byte order mark."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

PROMPT, ANSWER = "wie backe ich Brötchen ½ ?", "nimm Mehl ☃ и соль ."


@pytest.fixture
def files(tmp_path: Path, tiny_folder: Path) -> Path:
    """A config and all that it names, each with characters that ISO-8859-1 or ASCII lacks."""
    (tmp_path / "rows.jsonl").write_text(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": PROMPT},
                    {"role": "assistant", "content": ANSWER},
                ]
            },
            ensure_ascii=False,
        )
        + "\n",
        encoding="utf-8",
    )
    (tmp_path / "prompts.csv").write_text(f"prompt\n{PROMPT}\n", encoding="utf-8")
    template = (tiny_folder / "chat_template.jinja").read_text(encoding="utf-8")
    (tmp_path / "template.jinja").write_text("{# Brötchen #}" + template, encoding="utf-8")
    # A file that a config names is read by the parser, as the config itself is.
    sets = {
        name: {
            "kind": "benign",
            "source": {
                "class_path": f"oneshot_lit.data.{source}",
                "init_args": arguments,
            },
        }
        for name, source, arguments in (
            ("höflich", "TableFile", {"path": str(tmp_path / "prompts.csv")}),
            ("☃", "Inline", {"conversations": [[{"role": "user", "content": ANSWER}]]}),
        )
    }
    _dump(tmp_path / "sets.yaml", sets)
    config = {
        "model": {
            "class_path": "oneshot_lit.methods.HarmfulFineTuningModule",
            "init_args": {
                "model_name_or_path": str(tiny_folder),
                "chat_template": str(tmp_path / "template.jinja"),
                "decoding": {"max_new_tokens": 4},
            },
        },
        "data": {
            "class_path": "oneshot_lit.data.SafetyDataModule",
            "init_args": {
                "train": {
                    "class_path": "oneshot_lit.data.ChatJsonl",
                    "init_args": {"path": str(tmp_path / "rows.jsonl")},
                },
                "val_sets": str(tmp_path / "sets.yaml"),
                "predict_sets": str(tmp_path / "sets.yaml"),
            },
        },
        "trainer": {
            "max_steps": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
        },
    }
    _dump(tmp_path / "config.yaml", config)
    return tmp_path


def _dump(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_a_byte_order_mark_is_no_part_of_the_text(
    encoding: str, files: Path, command: Callable[..., Any]
) -> None:
    for path in files.iterdir():
        path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    done = command("fit", "--config", files / "config.yaml", "--print_config")
    assert done.code == 0, done.err
    assert list(yaml.safe_load(done.out)["data"]["init_args"]["val_sets"]) == ["höflich", "☃"]


def _latin1(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("iso-8859-1"))
    return path


def test_a_config_in_another_encoding_is_named_with_its_line(
    files: Path, command: Callable[..., Any]
) -> None:
    path = _latin1(files / "latin.yaml", "trainer:\n  max_steps: 1\n  # für heute\n")
    said = command("fit", "--config", path).error
    assert said.endswith(f"{path} line 3: not UTF-8 text; save it as UTF-8.")
    said = command("study", "--config", path).error
    assert said.endswith(f"{path} line 3: not UTF-8 text; save it as UTF-8.")
    said = command("judge", "--config", path, "--run", files).error
    assert said.endswith(f"{path} line 3: not UTF-8 text; save it as UTF-8.")


def test_a_file_that_a_config_names_is_named_with_its_line(
    files: Path, command: Callable[..., Any]
) -> None:
    text = "a:\n  kind: benign\n  source: # für heute\n    class_path: oneshot_lit.data.Inline\n"
    path = _latin1(files / "sets.yaml", text)
    said = command("fit", "--config", files / "config.yaml").error
    assert f"{path} line 3: not UTF-8 text; save it as UTF-8." in said


def test_a_template_in_another_encoding_is_named_with_its_line(
    files: Path, command: Callable[..., Any]
) -> None:
    path = _latin1(files / "template.jinja", "{# a\nfür #}")
    words = ["--trainer.default_root_dir", files / "run"]
    said = command("fit", "--config", files / "config.yaml", *words).error
    assert said.endswith(f"{path} line 2: not UTF-8 text; save it as UTF-8.")
