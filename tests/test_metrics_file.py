"""Scores of later evaluations join those of the test."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.io.locking import LOCK_FILE, results_locked
from oneshot_lit.io.metrics_file import METRICS_FILE, merge_scores, read_metrics


def test_a_later_evaluation_adds_its_scores(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"metrics": {"a/x": 0.5}, "seed": 3}')
    merge_scores(tmp_path, "judge", {"a/y": 0.25, "b/y": float("nan")}, {"version": "1"})
    content = json.loads((tmp_path / METRICS_FILE).read_text())
    assert content["metrics"] == {"a/x": 0.5, "a/y": 0.25}
    assert content["seed"] == 3
    assert content["evaluations"] == {"judge": {"version": "1", "scores": ["a/y", "b/y"]}}


def test_the_same_evaluation_replaces_its_own(tmp_path: Path) -> None:
    merge_scores(tmp_path, "judge", {"a/y": 0.25, "b/y": 1.0}, {})
    merge_scores(tmp_path, "other", {"a/z": 0.75}, {})
    merge_scores(tmp_path, "judge", {"a/y": 0.5}, {})
    assert read_metrics(tmp_path)["metrics"] == {"a/z": 0.75, "a/y": 0.5}


def test_no_evaluation_takes_anothers_name(tmp_path: Path) -> None:
    merge_scores(tmp_path, "judge", {"a/y": 0.25}, {})
    before = (tmp_path / METRICS_FILE).read_bytes()
    with pytest.raises(OneShotError, match=r"'a/y' is there already"):
        merge_scores(tmp_path, "other", {"a/y": 0.5}, {})
    assert (tmp_path / METRICS_FILE).read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", '{"metrics": 3}', '{"evaluations": []}'])
def test_a_foreign_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text(text)
    with pytest.raises(OneShotError, match="run the test again"):
        merge_scores(tmp_path, "judge", {"a/y": 0.25}, {})
    assert (tmp_path / METRICS_FILE).read_text() == text


def test_evaluations_that_end_at_the_same_moment_all_stay(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from oneshot_lit.io.metrics_file import merge_scores\n"
        "for n in range(25):\n"
        "    merge_scores(Path(sys.argv[1]), f'judge/{sys.argv[2]}{n}', "
        "{f'a/{sys.argv[2]}{n}': 1.0}, {})"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in ("x", "y")
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    assert len(read_metrics(tmp_path)["metrics"]) == 50
    # Nothing but the results stays in the folder.
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).touch()
    merge_scores(tmp_path, "judge", {"a/y": 0.25}, {})
    assert read_metrics(tmp_path)["metrics"] == {"a/y": 0.25}


def test_a_test_waits_for_a_judge_that_is_adding_its_scores(tmp_path: Path, monkeypatch) -> None:
    from oneshot_lit.callbacks import metrics_writer

    monkeypatch.setattr(metrics_writer.MetricsWriter, "content", lambda *_: {"metrics": {"a/x": 1}})
    monkeypatch.setattr(metrics_writer, "show_scores", lambda module: None)
    monkeypatch.setattr(metrics_writer, "gathered_rows", lambda *_: [])
    trainer = SimpleNamespace(
        is_global_zero=True,
        fast_dev_run=False,
        default_root_dir=str(tmp_path),
        test_dataloaders=None,
    )
    writer = metrics_writer.MetricsWriter()
    test = threading.Thread(target=writer.on_test_end, args=(trainer, SimpleNamespace(outcomes=[])))
    with results_locked(tmp_path):
        test.start()
        test.join(0.3)
        assert test.is_alive()
        facts = {"judge": {"scores": ["a/y"]}}
        write_json_atomically(
            tmp_path / METRICS_FILE, {"metrics": {"a/y": 0.25}, "evaluations": facts}
        )
    test.join(30)
    assert read_metrics(tmp_path)["metrics"] == {"a/x": 1, "a/y": 0.25}
