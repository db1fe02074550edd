"""What identifies a run, and whose folder it may write to."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.runs import (
    PRODUCTS,
    RUN_FILE,
    fingerprint,
    record_run,
    recorded_runs,
    require_own_folder,
)

CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "ckpt_path": None,
    "overwrite": False,
    "config": [Path("a.yaml")],
    "checkpoint": {"every_n_steps": 5},
    "weights_only": None,
    "model": {"class_path": "M", "init_args": {"config": 1, "checkpoint": "x", "lr": 1e-4}},
    "data": {"train": {"path": Path("rows.jsonl")}, "config": "c"},
    "trainer": {
        "default_root_dir": "runs/a",
        "logger": None,
        "enable_progress_bar": True,
        "enable_model_summary": True,
        "enable_checkpointing": True,
        "log_every_n_steps": 1,
        "profiler": None,
        "max_steps": 10,
        "devices": 1,
    },
}


def changed(*keys: str, value: Any = "changed") -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    place = config
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return config


@pytest.mark.parametrize(
    "key",
    [
        "ckpt_path",
        "overwrite",
        "config",
        "checkpoint",
        "weights_only",
        "trainer.default_root_dir",
        "trainer.logger",
        "trainer.enable_progress_bar",
        "trainer.enable_model_summary",
        "trainer.enable_checkpointing",
        "trainer.log_every_n_steps",
        "trainer.profiler",
    ],
)
def test_fingerprint_ignores_how_a_run_is_shown(key: str) -> None:
    *parents, last = key.split(".")
    assert fingerprint(changed(*parents, last)) == fingerprint(CONFIG)
    without = copy.deepcopy(CONFIG)
    place = without[parents[0]] if parents else without
    del place[last]
    assert fingerprint(without) == fingerprint(CONFIG)


@pytest.mark.parametrize(
    "key",
    [
        "seed_everything",
        "model.class_path",
        "model.init_args.lr",
        # Only the top-level keys of these names are volatile.
        "model.init_args.config",
        "model.init_args.checkpoint",
        "data.config",
        "data.train.path",
        "trainer.max_steps",
        "trainer.devices",
        "trainer.new_key",
    ],
)
def test_fingerprint_changes_with_what_decides_the_product(key: str) -> None:
    assert fingerprint(changed(*key.split("."))) != fingerprint(CONFIG)


def test_fingerprint_depends_on_content_alone() -> None:
    backwards = {
        k: dict(reversed(v.items())) if isinstance(v, dict) else v
        for k, v in reversed(CONFIG.items())
    }
    before = copy.deepcopy(CONFIG)
    assert fingerprint(backwards) == fingerprint(CONFIG)
    assert before == CONFIG
    # A study compares fingerprints of earlier processes.
    assert fingerprint({"a": 1}) == "f9d86028c6e0d64e"


@pytest.mark.parametrize("config", [{}, {"trainer": None}, {"trainer": {}}])
def test_fingerprint_needs_no_trainer(config: dict[str, Any]) -> None:
    assert len(fingerprint(config)) == 16


# ----------------------------------------------------------------- whose folder


def make(root: Path, command: str) -> Path:
    product = root / PRODUCTS[command]
    if command == "fit":
        product.mkdir(parents=True)
    else:
        root.mkdir(exist_ok=True)
        product.write_text("{}")
    return product


@pytest.mark.parametrize("command", PRODUCTS)
def test_a_folder_without_that_product_is_free(tmp_path: Path, command: str) -> None:
    require_own_folder(tmp_path, command, "mine", False)
    require_own_folder(tmp_path / "new", command, "mine", False)
    record_run(tmp_path, command, {"fingerprint": "other"})
    require_own_folder(tmp_path, command, "mine", False)


@pytest.mark.parametrize("command", PRODUCTS)
def test_another_runs_product_is_protected(tmp_path: Path, command: str) -> None:
    product = make(tmp_path, command)
    record_run(tmp_path, command, {"fingerprint": "other"})
    with pytest.raises(OneShotError) as caught:
        require_own_folder(tmp_path, command, "mine", False)
    message = str(caught.value)
    assert message.startswith(f"{product}: ")
    assert "--trainer.default_root_dir" in message
    assert "--overwrite true" in message
    assert "\n" not in message
    require_own_folder(tmp_path, command, "mine", True)
    require_own_folder(tmp_path, command, "other", False)


def test_commands_do_not_stand_in_each_others_way(tmp_path: Path) -> None:
    make(tmp_path, "fit")
    record_run(tmp_path, "fit", {"fingerprint": "attack"})
    require_own_folder(tmp_path, "test", "evaluation", False)
    require_own_folder(tmp_path, "validate", "anything", False)
    record_run(tmp_path, "test", {"fingerprint": "evaluation"})
    assert recorded_runs(tmp_path) == {
        "fit": {"fingerprint": "attack"},
        "test": {"fingerprint": "evaluation"},
    }
    record_run(tmp_path, "fit", {"fingerprint": "again"})
    assert recorded_runs(tmp_path)["fit"] == {"fingerprint": "again"}
    assert recorded_runs(tmp_path)["test"] == {"fingerprint": "evaluation"}


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b'{"fit": null}', b'{"fit": "x"}']
)
def test_a_product_of_unknown_origin_is_protected(tmp_path: Path, content: bytes | None) -> None:
    make(tmp_path, "fit")
    if content is not None:
        (tmp_path / RUN_FILE).write_bytes(content)
    assert recorded_runs(tmp_path) == {}
    with pytest.raises(OneShotError):
        require_own_folder(tmp_path, "fit", "mine", False)
    require_own_folder(tmp_path, "fit", "mine", True)
    record_run(tmp_path, "fit", {"fingerprint": "mine"})
    require_own_folder(tmp_path, "fit", "mine", False)


def test_root_that_is_a_file(tmp_path: Path) -> None:
    root = tmp_path / "taken"
    root.write_text("mine")
    with pytest.raises(OneShotError, match="is a file; give a folder"):
        require_own_folder(root, "fit", "mine", True)


def test_a_selection_is_a_product_too(tmp_path: Path) -> None:
    (tmp_path / "selection.json").write_text("{}")
    with pytest.raises(OneShotError, match=r"selection\.json: holds the output of another run"):
        require_own_folder(tmp_path, "select", "abc", False)
    require_own_folder(tmp_path, "select", "abc", True)
