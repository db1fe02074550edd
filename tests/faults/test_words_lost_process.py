"""What a user's own code raises keeps its traceback, whatever it says of connections."""

from __future__ import annotations

from pathlib import Path

import pytest

from oneshot_lit.cli.main import run_command


@pytest.mark.slow
def test_a_users_error_that_mentions_nccl_shows_its_traceback(
    fit_words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "users_nccl.py").write_text(
        "from oneshot_lit.methods import HarmfulFineTuningModule\n\n\n"
        "class Mine(HarmfulFineTuningModule):\n"
        "    def training_step(self, batch, batch_idx):\n"
        '        raise RuntimeError("NCCL is not what this metric needs")\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [*fit_words, "--model.class_path", "users_nccl.Mine", "--trainer.strategy", "ddp"]
    assert run_command([*words, "--trainer.devices", "1"]) == 1
    said = capfd.readouterr().err
    assert "Traceback" in said
    assert 'users_nccl.py", line 6, in training_step' in said
    assert said.count("oneshot-lit: error: ") == 1
