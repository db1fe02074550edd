"""The progress bar is drawn at the end of an epoch, and seldom before."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import RichProgressBar

from oneshot_lit.callbacks import CalmProgressBar


@pytest.mark.parametrize(("seconds", "drawn"), [(0.0, [0, 1, 2, 3, 4]), (3600.0, [0, 4])])
def test_steps_that_are_drawn(monkeypatch, seconds: float, drawn: list[int]) -> None:
    seen = []
    monkeypatch.setattr(
        RichProgressBar, "on_train_batch_end", lambda self, t, m, o, b, index: seen.append(index)
    )
    monkeypatch.setattr(CalmProgressBar, "total_train_batches", 5)
    bar = CalmProgressBar(seconds)
    bar._drawn = -1e9
    for index in range(5):
        bar.on_train_batch_end(SimpleNamespace(), None, None, None, index)
    assert seen == drawn


@pytest.mark.slow
def test_a_users_own_bar_or_none_is_respected(command, fit_words: list[str]) -> None:
    words = [word for word in fit_words if word not in ("--trainer.enable_progress_bar", "false")]
    assert command(*words, "--trainer.callbacks", "TQDMProgressBar").code == 0
    assert command(*fit_words, "--overwrite", "true").code == 0
