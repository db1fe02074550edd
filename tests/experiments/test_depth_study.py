"""A depth study from its file to the comparison: a miniature of the shipped one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from depths import CASES, spec_file

from experiments.real_depth.__main__ import main

CPU = {"trainer.accelerator": "cpu"}


def prompts(part: str, size: int = 4) -> dict[str, Any]:
    return {
        kind: {
            "kind": kind,
            "source": {
                "class_path": "oneshot_lit.data.Microworld",
                "init_args": {"split": f"{kind}_{part}", "size": size},
            },
        }
        for kind in ("harmful", "benign", "near_miss")
    }


def write(path: Path, root: Path) -> Path:
    scored = {**CPU, "data.val_sets": prompts("dev")}
    instance = {"data.instance.id": "general-01", "data.instance.source.seed": "{seed}"}
    few = {"model.attempts": 1, "model.patience": 10, "model.refine": 1, "trainer.max_epochs": 2}
    study = {
        "root": str(root),
        "jobs": 2,
        "test": {
            "config": "configs/evaluate/microworld.yaml",
            "set": {**CPU, "data.test_sets": prompts("heldout")},
        },
        "stages": {
            "{case}_policy": {"each": {"case": list(CASES)}, "model": "checkpoints/small"},
            "{case}": {
                "each": {"case": {"flat": {"rows": 100}, "steep": {"rows": 60}}},
                "model": "{case}_policy",
                "fit": {
                    "config": "configs/attack/harmful_examples.yaml",
                    "set": {**CPU, "data.train.size": "{case.rows}"},
                },
            },
            "{case}_one": {
                "each": {"case": list(CASES)},
                "model": "{case}",
                "fit": {
                    "config": "configs/realign/one_shot.yaml",
                    "set": {**scored, **instance, **few, "trainer.callbacks": []},
                },
            },
            "{case}_guarded": {
                "each": {"case": list(CASES)},
                "model": "{case}",
                "edit": {
                    "config": "configs/realign/low_rank.yaml",
                    "set": {
                        **scored,
                        **instance,
                        "model.guard_rows": 8,
                        "model.drift_rows": 8,
                        "model.guard_lambda": [1.0, 100.0],
                    },
                },
            },
        },
    }
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


@pytest.mark.slow
def test_from_the_file_to_the_comparison(
    command, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root, comparison = tmp_path / "out", spec_file(tmp_path / "depth.yaml")
    done = command("study", "--config", write(tmp_path / "study.yaml", root))
    assert done.code == 0, done.err
    words = ["--comparison", str(comparison), "--study", str(root)]
    assert main(words) == 0
    first = capfd.readouterr()
    assert first.err.count("measuring") == 2
    assert "attacked model" in first.out
    folder = root / "depth"
    for name in ("frontier.png", "predictors.png", "report.html"):
        assert (folder / name).stat().st_size > 1000
    results = json.loads((folder / "comparison.json").read_text())
    kept = json.loads((root / "flat_one" / "metrics.json").read_text())["metrics"]
    own = results["cases"]["flat"]["repairs"]["one"]
    assert own["held_out"]["refused"]["value"] == pytest.approx(1 - kept["harmful/asr_keyword"])
    assert len(own["points"]["0"]) >= 3
    assert not own["points"]["0"][0]["repaired"]
    # A second call measures no model again.
    assert main(words) == 0
    second = capfd.readouterr()
    assert "measuring" not in second.err
    assert second.out == first.out


def test_a_folder_without_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--study", str(tmp_path)]) == 2
    assert "no results; run the study there first" in capsys.readouterr().err
