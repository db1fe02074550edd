"""The DeepSpeed strategies as such; what they compute is tested with the spectra."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from oneshot_lit.errors import OneShotError
from oneshot_lit.strategies import HFDeepSpeedStrategy


def test_missing_deepspeed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OneShotError, match="pip install 'oneshot-lit") as caught:
        HFDeepSpeedStrategy(stage=2)
    assert str(caught.value).startswith("trainer.strategy")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_package_does_not_import_deepspeed() -> None:
    code = "import sys, oneshot_lit.strategies, oneshot_lit.callbacks; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    modules = done.stdout.split()
    assert "oneshot_lit.strategies.deepspeed" in modules
    assert "deepspeed" not in modules
