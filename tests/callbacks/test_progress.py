"""The progress bar of a fit."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_a_users_own_bar_or_none_is_respected(command, fit_words: list[str]) -> None:
    words = [word for word in fit_words if word not in ("--trainer.enable_progress_bar", "false")]
    assert command(*words, "--trainer.callbacks", "TQDMProgressBar").code == 0
    assert command(*fit_words, "--overwrite", "true").code == 0
