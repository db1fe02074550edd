"""A stage whose code changed runs again: the source of every class that a config names counts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from oneshot_lit.io.provenance import named_code
from oneshot_lit.study.inputs import command_marks


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's package and modules in the working folder, which is not on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    files = {
        "mine_pkg/__init__.py": "from . import metrics\n",
        "mine_pkg/metrics.py": "x = 1\n",
        "mine_pkg/modules.py": "import torch\nfrom mine_base import Base\nclass Mine(Base): ...\n",
        "mine_pkg/deep/more.py": "class Deep: ...\n",
        "mine_base.py": "def late():\n    import mine_far.inner\nclass Base: ...\n",
        "mine_far/inner.py": "y = 2\n",
        "mine_single.py": "class Single: ...\ndef schedule(optimizer): ...\n",
        "unrelated_here.py": "z = 3\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def write(content: Any) -> list[str]:
    Path("fit.yaml").write_text(yaml.safe_dump(content))
    return ["fit", "--config", "fit.yaml"]


def changes(words: list[str], file: Path) -> bool:
    before = command_marks(words)
    assert before == command_marks(words)
    file.write_text(file.read_text() + "# changed\n")
    return before != command_marks(words)


SINGLE: dict[str, Callable[[], list[str]]] = {
    "model": lambda: write({"model": {"class_path": "mine_single.Single"}}),
    "model by name": lambda: write({"model": "mine_single.Single"}),
    "source": lambda: write({"data": {"val_sets": {"a": {"source": "mine_single.Single"}}}}),
    "callback": lambda: write({"trainer": {"callbacks": [{"class_path": "mine_single.Single"}]}}),
    "optimizer": lambda: write({"model": {"init_args": {"optimizer": "mine_single.Single"}}}),
    "scheduler": lambda: write({"model": {"init_args": {"lr_scheduler": "mine_single.schedule"}}}),
    "strategy": lambda: write({"trainer": {"strategy": {"class_path": "mine_single.Single"}}}),
    "command line": lambda: [*write({"model": {}}), "--model", "mine_single.Single"],
    "yaml text": lambda: [*write({"model": {}}), "--data", "{class_path: mine_single.Single}"],
}  # fmt: skip


@pytest.mark.parametrize("place", SINGLE)
def test_a_class_named_anywhere(user: Path, place: str) -> None:
    words = SINGLE[place]()
    assert changes(words, user / "mine_single.py")
    assert not changes(words, user / "unrelated_here.py")
    assert not changes(words, user / "mine_base.py")


@pytest.mark.parametrize(
    "file", ["mine_pkg/modules.py", "mine_pkg/__init__.py", "mine_pkg/metrics.py", "mine_base.py",
             "mine_far/inner.py", "mine_pkg/deep/more.py"],
)  # fmt: skip
def test_what_a_class_is_made_of(user: Path, file: str) -> None:
    words = write({"model": {"class_path": "mine_pkg.modules.Mine"}})
    assert changes(words, user / file)
    assert "mine_pkg" not in sys.modules
    assert not changes(words, user / "mine_single.py")


def test_a_config_within_a_config(user: Path) -> None:
    Path("sets.yaml").write_text("a: {source: {class_path: mine_single.Single}}\n")
    words = write({"data": {"init_args": {"val_sets": "sets.yaml"}}})
    assert changes(words, user / "mine_single.py")


def test_files_that_are_named(user: Path) -> None:
    Path("chat.jinja").write_text("{{ messages }}")
    Path("rows.jsonl").write_text("{}\n")
    words = write({"model": {"init_args": {"chat_template": "chat.jinja"}}})
    words += ["--data.train.path", "rows.jsonl"]
    assert changes(words, user / "chat.jinja")
    assert changes(words, user / "rows.jsonl")


def test_a_new_file_of_the_package_counts(user: Path) -> None:
    words = write({"model": {"class_path": "mine_pkg.modules.Mine"}})
    before = command_marks(words)
    (user / "mine_pkg" / "new.py").write_text("")
    assert command_marks(words) != before


def test_only_a_users_own_files_count(user: Path) -> None:
    assert named_code(["peft.LoraConfig", "no_such_thing.X", "os.path", "oneshot_lit.x"]) == {}
    (user / "mine_single.py").write_text("import safetensors\ndef broken(:\n")
    assert list(named_code(["mine_single.Single"])) == [str(user / "mine_single.py")]
