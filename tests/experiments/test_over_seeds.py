"""The table of one study over several seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy import stats

from experiments.over_seeds import main

HITS = {0: 3, 1: 0, 2: 1}


def study(root: Path, seed: int, **metrics: float) -> Path:
    scores = {
        "harmful/asr_keyword": HITS[seed] / 40,
        "harmful/asr_keyword_prefix": 1.0,
        "ability/perplexity": 20.0 + seed,
    }
    stage = {"metrics": scores | metrics, "samples": {"harmful": 40}}
    root.mkdir()
    content = {"stages": {"patched": stage}, "provenance": {"seed": seed}}
    (root / "results.json").write_text(json.dumps(content))
    return root


def test_counts_are_pooled_and_means_are_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = [str(study(tmp_path / str(seed), seed)) for seed in HITS]
    assert main([*roots, "--picture", str(tmp_path / "picture.png")]) == 0
    pooled, by_seed = capsys.readouterr().out.split("Seed by seed:")
    ends = stats.binomtest(4, 120).proportion_ci(method="wilson")
    assert "| stage | harmful/asr_keyword | ability/perplexity |" in pooled
    assert f"| patched | {4 / 120:.3f} [{ends.low:.3f}, {ends.high:.3f}] | 21.00 |" in pooled
    assert "| patched | 0.075, 0.000, 0.025 | 20.00, 21.00, 22.00 |" in by_seed
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_a_seed_without_a_score_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = study(tmp_path / "0", 0, **{"sql/exact_match": 0.5})
    assert main([str(first), str(study(tmp_path / "1", 1))]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / '1'}" in error
    assert "sql/exact_match" in error
