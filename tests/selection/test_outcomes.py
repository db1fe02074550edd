"""What is measured stays measured: through kills, and for its own settings only."""

from __future__ import annotations

from pathlib import Path

import pytest

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.select.outcomes import CandidateOutcome, OutcomeCache


def outcome(digest: str, score: float = 0.25) -> CandidateOutcome:
    return CandidateOutcome(digest, score, {"harmful/asr_keyword": score}, 0.5)


def test_what_is_added_is_read(tmp_path: Path) -> None:
    cache = OutcomeCache(tmp_path, "s")
    assert cache.read() == {}
    cache.add(outcome("a"))
    cache.add(outcome("b", 0.5))
    assert OutcomeCache(tmp_path, "s").read() == {"a": outcome("a"), "b": outcome("b", 0.5)}


def test_other_settings_share_nothing(tmp_path: Path) -> None:
    OutcomeCache(tmp_path, "s").add(outcome("a"))
    OutcomeCache(tmp_path, "t").add(outcome("b"))
    assert set(OutcomeCache(tmp_path, "s").read()) == {"a"}


def test_a_row_cut_off_by_a_kill_is_measured_again(tmp_path: Path) -> None:
    cache = OutcomeCache(tmp_path, "s")
    cache.add(outcome("a"))
    cache.add(outcome("b"))
    cache.file.write_bytes(cache.file.read_bytes()[:-9])
    assert set(cache.read()) == {"a"}
    cache.add(outcome("c"))
    assert set(cache.read()) == {"a", "c"}


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    cache = OutcomeCache(tmp_path, "s")
    cache.add(outcome("a"))
    cache.file.write_text("{}\n" + cache.file.read_text())
    with pytest.raises(OneShotError, match=r"candidates\.jsonl row 1: is no outcome"):
        cache.read()
