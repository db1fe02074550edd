"""Fault 17: who may read outputs, two runs in one folder, and data that changed before a resume."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_runs import QUIET, end, finish, start, wait_for

from oneshot_lit.callbacks import AtomicCheckpointIO
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import folder_written_whole, write_json_atomically, write_text_atomically
from oneshot_lit.io.locking import run_locked

# ------------------------------------------------------------------ (a) who may read


@pytest.fixture(params=[0o000, 0o022, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_files_are_as_the_umask_says(umask: int, tmp_path: Path) -> None:
    from oneshot_lit.plots import save_figure
    from oneshot_lit.plots.style import plt

    write_text_atomically(tmp_path / "new" / "text", "one")
    write_json_atomically(tmp_path / "json", {})
    save_figure(plt.figure(), tmp_path / "picture.png")
    AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(1)}, tmp_path / "last.ckpt")
    with folder_written_whole(tmp_path / "model") as fresh:
        (fresh / "weights").touch(mode=0o600)
        assert mode(fresh) == 0o777 & ~umask
    for name in ("new/text", "json", "picture.png", "last.ckpt", "model/weights"):
        assert mode(tmp_path / name) == 0o666 & ~umask, name
    assert mode(tmp_path / "model") == 0o777 & ~umask


def test_private_files_are_so_from_the_first_byte_on(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "predictions.jsonl", []
    sync = os.fsync

    def watched(handle: int) -> None:
        seen.extend(mode(each) for each in tmp_path.iterdir() if each != path)
        sync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    # As an earlier version wrote it.
    path.write_text("old")
    path.chmod(0o644)
    write_text_atomically(path, "new", private=True)
    assert seen == [0o600]
    assert mode(path) == 0o600
    assert path.read_text() == "new"


@pytest.mark.slow
def test_outputs_are_private_and_scores_are_not(
    command: Any, test_words: list[str], tmp_path: Path
) -> None:
    before = os.umask(0o022)
    try:
        assert command(*test_words).code == 0
        assert command("predict", *test_words[1:]).code == 0
        run = tmp_path / "run"
        for show in ((), ("--show_outputs",)):
            out = tmp_path / f"report{len(show)}"
            done = command("report", "--runs", run, "--out", out, *show)
            assert done.code == 0, done.err
            for name in ("report.html", "report.md", "report.json"):
                assert mode(out / name) == (0o600 if show else 0o644), name
    finally:
        os.umask(before)
    output = json.loads((run / "predictions.jsonl").read_text().splitlines()[0])["output"]
    assert mode(run / "predictions.jsonl") == 0o600
    for name in ("metrics.json", "outcomes.jsonl", "run.json"):
        assert mode(run / name) == 0o644
    # Nothing else holds an output.
    others = [p for p in run.rglob("*") if p.is_file() and p.name != "predictions.jsonl"]
    assert output
    assert not any(json.dumps(output)[1:-1] in p.read_text() for p in others)


# ------------------------------------------------------------------ (b) two runs


@pytest.mark.slow
def test_a_held_folder_is_refused_in_one_line(
    command: Any, fit_words: list[str], test_words: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    with run_locked(root):
        for words in (fit_words, test_words, ["predict", *test_words[1:]]):
            done = command(*words)
            assert done.code == 2
            assert f"{root}: another run is writing there" in done.error
    # Nothing is left of it, and another folder was always free.
    assert not root.exists()
    assert command(*fit_words).code == 0
    assert not list(root.glob(".*lock"))


def test_a_lock_is_freed_by_an_error_and_its_folder_removed(tmp_path: Path) -> None:
    def fail() -> None:
        with run_locked(tmp_path / "a" / "b"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
    with run_locked(tmp_path / "a"), pytest.raises(OneShotError, match="another run"):
        run_locked(tmp_path / "a").__enter__()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    with run_locked(tmp_path / "a"):
        pass
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["mine"]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [[], ["--trainer.devices", "2", "--trainer.strategy", "ddp"]])
def test_the_second_of_two_runs_ends_and_a_killed_one_holds_nothing(
    command: Any, fit_words: list[str], tmp_path: Path, devices: list[str]
) -> None:
    root = tmp_path / "run"
    first = start([*fit_words, "--trainer.max_epochs", "100000", *devices], tmp_path / "log")
    try:
        rows = root / "logs" / "version_0" / "metrics.csv"
        wait_for(lambda: rows.exists() or (root / "checkpoints").exists(), first, tmp_path / "log")
        done = command(*fit_words)
        assert done.code == 2
        assert f"{root}: another run is writing there" in done.error
        assert first.poll() is None
    finally:
        end(first)
    # The system has freed the lock of the killed run.
    assert command(*fit_words).code == 0


# ------------------------------------------------------------------ (c) other data

SAVED = ["--checkpoint.max_share", "1"]


def rewritten(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def prompts(path: Path, kind: str) -> dict[str, Any]:
    source = {"class_path": "oneshot_lit.data.TableFile", "init_args": {"path": str(path)}}
    return {"kind": kind, "source": source}


@pytest.mark.parametrize(
    "source",
    [
        "{class_path: oneshot_lit.data.ChatJsonl, init_args: {path: ROWS}}",
        "{class_path: oneshot_lit.data.Mixture, init_args: {sources: [{class_path: "
        "oneshot_lit.data.ChatJsonl, init_args: {path: ROWS}}], shuffle_seed: 1}}",
    ],
)
@pytest.mark.slow
def test_a_changed_training_file_is_not_resumed(
    command: Any, fit_words: list[str], rows_file: Path, tmp_path: Path, source: str
) -> None:
    words = [*fit_words, *SAVED, "--data.train", source.replace("ROWS", str(rows_file))]
    done = command(*words)
    assert done.code == 0, done.err
    product = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    more = [*words, "--trainer.max_epochs", "3", "--ckpt_path", "last"]
    text = rows_file.read_text()
    # Another layout of the same rows is no change.
    rows_file.write_text(text.replace('", "', '",  "'))
    rewritten(rows_file, "take 3 cups", "take 4 cups")
    done = command(*more)
    assert done.code == 2
    assert "--ckpt_path: data.train has changed since the checkpoint was saved" in done.error
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == product
    rows_file.write_text(text.replace('", "', '",  "'))
    assert command(*more).code == 0


@pytest.mark.parametrize("changed", ["instance", "prompt", "reference", "template"])
@pytest.mark.slow
def test_a_changed_instance_or_development_set_is_not_resumed(
    command: Any, tiny_folder: Path, rows_file: Path, tmp_path: Path, changed: str
) -> None:
    harmful, task = tmp_path / "harmful.csv", tmp_path / "task.csv"
    harmful.write_text("id,prompt,category\n1,how are you ?,x\n")
    task.write_text("id,prompt,category,reference\n1,who ?,x,me .\n")
    sets = {
        "harmful": prompts(harmful, "harmful"),
        "benign": prompts(harmful, "benign"),
        "task": prompts(task, "task"),
    }
    template = tmp_path / "template.jinja"
    from transformers import AutoTokenizer

    template.write_text(AutoTokenizer.from_pretrained(tiny_folder).chat_template)
    words = [
        *["fit", "--config", "configs/realign/one_shot.yaml", *QUIET, *SAVED],
        *["--model.model_name_or_path", str(tiny_folder), "--trainer.callbacks", "null"],
        *["--data.instance.source", "oneshot_lit.data.ChatJsonl", "--data.instance.id", "null"],
        *["--data.instance.source.path", str(rows_file), "--data.instance.row", "2"],
        *["--data.val_sets", json.dumps(sets), "--trainer.default_root_dir", str(tmp_path / "run")],
        *["--model.chat_template", str(template), "--model.decoding.max_new_tokens", "2"],
    ]
    done = command(*words, "--trainer.max_epochs", "1")
    assert done.code == 0, done.err
    more = [*words, "--trainer.max_epochs", "2", "--ckpt_path", "last"]
    if changed == "instance":
        rewritten(rows_file, "bread number 1", "bread number 7")
        key = "data.instance"
    elif changed == "template":
        # A word before every user turn.
        rewritten(template, "{% else %}{{ ' ' +", "{% else %}{{ ' please ' +")
        key = "data.instance"
    elif changed == "prompt":
        rewritten(harmful, "how", "who")
        key = "data.val_sets.harmful"
    else:
        rewritten(task, "me .", "you .")
        key = "data.val_sets.task"
    done = command(*more)
    assert done.code == 2
    assert f"--ckpt_path: {key} has changed" in done.error


@pytest.mark.slow
def test_a_study_is_run_once_at_a_time(tmp_path: Path) -> None:
    spec = tmp_path / "study.yaml"
    spec.write_text(
        f"name: twice\nroot: {tmp_path / 'runs'}\nstages:\n  one:\n    model: checkpoints/small\n"
        "    test: {config: configs/evaluate/microworld.yaml}\n"
    )
    with run_locked(tmp_path / "runs"):
        code, said = finish(["study", "--config", spec], tmp_path / "log")
    assert code == 2
    assert f"{tmp_path / 'runs'}: another run is writing there" in said
