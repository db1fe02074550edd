"""Fault 14: every text file is UTF-8, whatever the locale says."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

PROMPT, ANSWER = "wie backe ich Brötchen ½ ?", "nimm Mehl ☃ и соль ."


@pytest.fixture(scope="session")
def latin1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a German locale whose encoding is ISO-8859-1, made for the test."""
    folder = tmp_path_factory.mktemp("locales")
    if (tool := shutil.which("localedef")) is None:
        pytest.skip("no localedef to make a locale with")
    words = [tool, "-i", "de_DE", "-f", "ISO-8859-1", str(folder / "de_DE.ISO-8859-1")]
    if subprocess.run(words, capture_output=True, timeout=60).returncode != 0:
        pytest.skip("the sources of the locale are not installed")
    return {"LOCPATH": str(folder), "LC_ALL": "de_DE.ISO-8859-1"}


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


def _run(
    start: list[str], words: list[Any], environment: dict[str, str]
) -> subprocess.CompletedProcess[bytes]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    kept |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *start, *map(str, words)],
        capture_output=True,
        timeout=300,
        env=kept | environment,
    )


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["ascii", "latin1"])
def test_the_prompts_asked_are_those_written(
    locale: str, files: Path, request: pytest.FixtureRequest
) -> None:
    environment = ASCII if locale == "ascii" else request.getfixturevalue("latin1")
    words = ["predict", "--config", files / "config.yaml", "--trainer.default_root_dir", files]
    done = _run(["-m", "oneshot_lit"], words, environment)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    lines = (files / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line)["messages"][-1]["content"] for line in lines]
    assert asked == [PROMPT, ANSWER]
    resolved = yaml.safe_load((files / "predict.yaml").read_text(encoding="utf-8"))
    sets = resolved["data"]["init_args"]["predict_sets"]
    assert list(sets) == ["höflich", "☃"]
    assert sets["☃"]["source"]["init_args"]["conversations"][0][0]["content"] == ANSWER


@pytest.mark.slow
def test_a_fit_trains_and_writes_the_same_as_under_utf8(
    files: Path, latin1: dict[str, str], command: Callable[..., Any]
) -> None:
    def words(root: Path) -> list[Any]:
        return ["fit", "--config", files / "config.yaml", "--trainer.default_root_dir", root]

    assert command(*words(files / "Lauf-ö-1")).code == 0
    done = _run(["-m", "oneshot_lit"], words(files / "Lauf-ö-2"), latin1)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    found = []
    for root in (files / "Lauf-ö-1", files / "Lauf-ö-2"):
        data = json.loads((root / "data.json").read_text(encoding="utf-8"))["fit"]
        with (root / "logs/version_0/metrics.csv").open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file))
        template = (root / "model/chat_template.jinja").read_text(encoding="utf-8")
        found.append((data["train"]["digest"], sorted(data), header, template))
    assert found[0] == found[1]
    assert "val/höflich" in found[0][1]
    assert any("☃" in column for column in found[0][2])


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


def test_an_argument_that_is_no_utf8(files: Path, command: Callable[..., Any]) -> None:
    word = os.fsdecode("--model.chat_template=für".encode("iso-8859-1"))
    said = command("fit", "--config", files / "config.yaml", word).error
    assert "the argument '--model.chat_template=f\\udcfcr' is not UTF-8 text" in said


def test_what_a_terminal_cannot_show_does_not_end_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    from oneshot_lit.cli.main import main

    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.chdir(tmp_path)
    assert main(["microworld", "--out", "Brötchen ☃", "--splits", "pool"]) == 0
    sys.stdout.flush()
    assert b"Br\\xf6tchen \\u2603" in shown.getvalue()
