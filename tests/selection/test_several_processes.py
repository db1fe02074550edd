"""Brute force in two processes: the outcomes of one, measured once and written by the first."""

from __future__ import annotations

from pathlib import Path

import pytest
from selecting import bilevel_words, brute_words, product, read_rows

from child_commands import finish

TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.mark.slow
def test_two_processes_find_what_one_does(command, broken: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    # An odd number of prompts, so that the processes have unequal shares.
    uneven = ("--data.val_sets.harmful.source.size", "11")
    words = brute_words(broken, two, *TWO, limit=3)
    assert finish([*words, *uneven], tmp_path / "log") == 0, (tmp_path / "log").read_text()
    done = command(*brute_words(broken, one, *uneven, limit=3))
    assert done.code == 0, done.err
    scores = [
        [(each["row"], each["score"], each["scores"]) for each in found["provenance"]["candidates"]]
        for found in (product(one), product(two))
    ]
    assert scores[1] == scores[0]
    assert product(two)["provenance"]["before"] == product(one)["provenance"]["before"]
    assert product(two)["ranking"] == product(one)["ranking"]
    assert read_rows(two / "candidates.csv") == read_rows(one / "candidates.csv")


def test_the_bilevel_selection_asks_for_one_process(
    command, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oneshot_lit.methods.job import JobTrainer

    # As two processes would see it, without starting them.
    monkeypatch.setattr(JobTrainer, "world_size", property(lambda self: 2))
    done = command(*bilevel_words(broken, tmp_path))
    assert done.code == 2
    assert "trainer.devices: this selection runs in one process; give 1." in done.error
