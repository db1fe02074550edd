"""Files and folders are there whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oneshot_lit.io import files
from oneshot_lit.io.files import folder_written_whole, write_json_atomically, write_text_atomically


class BrokenOffError(Exception):
    pass


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, so that left-overs show."""
    return {
        str(p.relative_to(folder)): p.read_text(encoding="utf-8")
        for p in folder.rglob("*")
        if p.is_file()
    }


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights").write_text("old")
    (folder / "deep" / "config").write_text("old config")
    return folder


OLD = {"model/weights": "old", "model/deep/config": "old config"}


# ----------------------------------------------------------------------- folders


def test_a_new_folder_appears_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "mine" / "model"
    with folder_written_whole(target) as fresh:
        (fresh / "weights").write_text("new")
        assert not target.exists()
    assert tree(tmp_path) == {"runs/mine/model/weights": "new"}


def test_an_old_folder_is_replaced_whole(old: Path, tmp_path: Path) -> None:
    with folder_written_whole(old) as fresh:
        assert list(fresh.iterdir()) == []
        (fresh / "weights").write_text("new")
        assert tree(old) == {"weights": "old", "deep/config": "old config"}
    # Nothing of the old one stays, neither inside nor beside the new one.
    assert tree(tmp_path) == {"model/weights": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [BrokenOffError, KeyboardInterrupt, SystemExit])
def test_the_old_folder_is_left_when_the_block_raises(old: Path, tmp_path: Path, error) -> None:
    def write() -> None:
        with folder_written_whole(old) as fresh:
            (fresh / "weights").write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert tree(tmp_path) == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_nothing_is_left_when_the_first_writing_fails(tmp_path: Path) -> None:
    def write() -> None:
        with folder_written_whole(tmp_path / "model") as fresh:
            (fresh / "weights").write_text("half")
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        write()
    assert list(tmp_path.iterdir()) == []


def test_the_old_folder_comes_back_when_the_exchange_fails(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fails_for_the_fresh_one(self: Path, target: Path) -> Path:
        if Path(target) == old and not self.name.endswith(".old"):
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_fresh_one)

    def write() -> None:
        with folder_written_whole(old) as fresh:
            (fresh / "weights").write_text("new")

    with pytest.raises(OSError, match="no space"):
        write()
    assert tree(tmp_path) == OLD


def test_what_a_killed_exchange_left_is_no_obstacle(old: Path, tmp_path: Path) -> None:
    # As after a kill between the two renames: the old product lies beside its place.
    old.rename(tmp_path / ".model.old")

    def write(fail: bool) -> None:
        with folder_written_whole(old) as fresh:
            (fresh / "weights").write_text("new")
            if fail:
                raise BrokenOffError

    with pytest.raises(BrokenOffError):
        write(fail=True)
    assert tree(tmp_path) == OLD
    old.rename(tmp_path / ".model.old")
    write(fail=False)
    assert tree(tmp_path) == {"model/weights": "new"}


def test_products_are_for_everyone_to_read(tmp_path: Path) -> None:
    with folder_written_whole(tmp_path / "model") as fresh:
        (fresh / "deep").mkdir(mode=0o700)
        (fresh / "deep" / "private").touch(mode=0o600)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert modes == {"model": 0o755, "deep": 0o755, "private": 0o644}


# ------------------------------------------------------------------------- files


def test_text_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "notes.txt"
    write_text_atomically(path, "ünï\n")
    write_text_atomically(path, "two\n")
    assert path.read_bytes() == b"two\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert tree(tmp_path) == {"new/notes.txt": "two\n"}


def test_a_file_is_left_when_writing_fails(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "notes.txt"
    write_text_atomically(path, "old")

    def no_space(handle: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        write_text_atomically(path, "new")
    assert tree(tmp_path) == {"notes.txt": "old"}


def test_json_is_readable_and_complete(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    content = {"a": [1, 0.1, None, True], "ü": "🍞"}
    write_json_atomically(path, content)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert text.endswith("}\n")
    assert "🍞" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_cannot_hold_leaves_the_file(tmp_path: Path, value) -> None:
    path = tmp_path / "metrics.json"
    write_json_atomically(path, {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json_atomically(path, {"a": value})
    assert tree(tmp_path) == {"metrics.json": '{\n  "a": 1\n}\n'}
