"""SEAL in processes of its own: two take the steps of one, and a killed one goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from test_seal import run, selection, words

from child_commands import finish, start


@pytest.mark.long
def test_two_processes_choose_what_one_does(
    command: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    # Steps of 3, 3 and 1 rows: the processes have unequal shares, and the second may have none.
    sgd = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"]
    line = words(tiny_folder, two, *sgd, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert finish(line, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    run(command, words(tiny_folder, one, *sgd))
    scores = [
        {each["row"]: each["score"] for each in selection(root)["ranking"]} for root in (one, two)
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)
    tables = [json.dumps(selection(root)["provenance"]["kept"]) for root in (one, two)]
    assert tables[0] == tables[1]


def test_sharded_models_are_refused(command: Any, tiny_folder: Path, tmp_path: Path) -> None:
    for name in ("deepspeed_zero3", "fsdp2"):
        line = words(tiny_folder, tmp_path, "--config", f"configs/strategy/{name}.yaml")
        done = command(*line)
        assert done.code == 2, done.err
        assert "trainer.strategy: a job needs the whole model in each process" in done.error


@pytest.mark.slow
def test_a_killed_selection_ends_the_same(command: Any, tiny_folder: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    more = ["--model.epochs", "40", "--model.upperlevel_weight_decay", "0.01"]
    line = words(tiny_folder, killed, *more)
    process = start(line, tmp_path / "log")
    deadline, table = time.monotonic() + 120, killed / "selection.csv"
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if (killed / "checkpoints" / "job.ckpt").exists() and len(table.read_text()) > 1000:
                break
            time.sleep(0.002)
        assert process.poll() is None, (tmp_path / "log").read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    assert not (killed / "selection.json").exists()
    run(command, line)
    run(command, words(tiny_folder, whole, *more))
    assert selection(killed) == selection(whole)
    assert (killed / "selection.csv").read_text() == (whole / "selection.csv").read_text()
