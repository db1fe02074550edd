"""`oneshot-lit microworld`: the files reload to the conversations they came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from oneshot_lit.cli.main import main
from oneshot_lit.data import ChatJsonl
from oneshot_lit.microworld.splits import NAMES, load_split

SPLITS = [n for n in NAMES if n != "pretrain_then_align"]


def run(*arguments: object) -> int:
    return main(["microworld", *map(str, arguments)])


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "deep" / "er"
    assert run("--out", folder, "--seed", 3, "--splits", *SPLITS) == 0
    return folder


@pytest.mark.parametrize("name", SPLITS)
def test_files_reload_to_the_same_conversations(written: Path, name: str) -> None:
    loaded = ChatJsonl(str(written / f"{name}.jsonl")).load()
    expected = load_split(name, 3)
    for ours, theirs in zip(loaded, expected, strict=True):
        assert (ours.messages, ours.id, ours.category or None, ours.reference) == (
            theirs.messages,
            theirs.id,
            theirs.category,
            theirs.reference,
        )


@pytest.mark.parametrize("old", [b"mine\n", b""])
def test_other_content_is_never_overwritten(tmp_path: Path, capsys, old: bytes) -> None:
    (tmp_path / "pool.jsonl").write_bytes(old)
    assert run("--out", tmp_path, "--splits", "benign_dev", "pool") == 2
    # Nothing else was written either.
    assert contents(tmp_path) == {"pool.jsonl": old}
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path / "pool.jsonl") in error


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--splits", "pol"], "did you mean 'pool'"),
        (["--seed", "x"], "--seed"),
        (["--split", "pool"], "--split"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(tmp_path: Path, capsys, arguments, part: str) -> None:
    assert run("--out", tmp_path / "new", *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert part in error
    assert not (tmp_path / "new").exists()


def test_out_is_needed(capsys) -> None:
    assert run() == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "folder"])
def test_out_that_is_a_file(tmp_path: Path, capsys, below: str) -> None:
    (tmp_path / "taken").write_text("mine")
    assert run("--out", tmp_path / "taken" / below, "--splits", "pool") == 2
    assert str(tmp_path / "taken") in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"
