"""A study of selections from its file to the comparison: real selections of few candidates."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.selection.__main__ import main

CPU = {"trainer.accelerator": "cpu"}
POOL = {"data.train.limit": 3, "data.train.shuffle_seed": 0}


def prompts(*splits: str) -> dict[str, Any]:
    return {
        split.split("_")[0]: {
            "kind": {"sql": "task"}.get(split.split("_")[0], split.split("_")[0]),
            "source": {
                "class_path": "oneshot_lit.data.Microworld",
                "init_args": {"split": split, "size": 4},
            },
        }
        for split in splits
    }


def write(path: Path, root: Path) -> Path:
    test_sets = {"data.test_sets": prompts("harmful_heldout", "benign_heldout")}
    study = {
        "root": str(root),
        "jobs": 2,
        "test": {"config": "configs/evaluate/microworld.yaml", "set": {**CPU, **test_sets}},
        "stages": {
            "{case}_brute": {
                "each": {"case": ["a", "b"]},
                "model": "checkpoints/small",
                "select": {
                    "config": "configs/select/brute_force.yaml",
                    "set": {
                        **CPU,
                        **POOL,
                        "model.patch_steps": 2,
                        "data.val_sets": prompts("harmful_dev", "benign_dev", "sql_dev"),
                    },
                },
            },
            "{case}_random": {
                "each": {"case": {"a": {"draw": 1}, "b": {"draw": 2}}},
                "model": "checkpoints/small",
                "select": {
                    "config": "experiments/selection/rule.yaml",
                    "set": {
                        **CPU,
                        **POOL,
                        "model.rule": "random",
                        "seed_everything": "{case.draw}",
                    },
                },
            },
            "{case}_{selector}_pick": {
                "each": {"case": ["a", "b"], "selector": ["brute", "random"]},
                "model": "checkpoints/small",
                "fit": {
                    "config": ["configs/realign/one_shot.yaml", "configs/realign/selected.yaml"],
                    "set": {
                        **CPU,
                        "data.instance.selection": "{root}/{case}_{selector}/selection.json",
                        "trainer.max_epochs": 1,
                        "trainer.num_sanity_val_steps": 0,
                        "trainer.limit_val_batches": 0,
                        "trainer.callbacks": [],
                    },
                },
            },
        },
    }
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


COMPARISON = {
    "truth": "brute",
    "selectors": ["random"],
    "cases": {"a": "case A", "b": "case B"},
    "question": "random",
}


def states(err: str) -> list[str]:
    return re.findall(r" (done|kept|resumed) \(", err)


@pytest.mark.slow
def test_from_the_file_to_the_comparison(
    command, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root, file, spec = tmp_path / "out", tmp_path / "study.yaml", tmp_path / "comparison.yaml"
    spec.write_text(yaml.safe_dump(COMPARISON))
    done = command("study", "--config", write(file, root))
    assert done.code == 0, done.err
    assert states(done.err) == ["done"] * 12
    results = (root / "results.json").read_text()
    assert "select --config experiments/selection/rule.yaml" in results
    words = ["--comparison", str(spec), "--study", str(root)]
    assert main(words) == 0
    assert "random comes first over 2 cases" in capfd.readouterr().out
    compared = json.loads((root / "selections" / "comparison.json").read_text())["selections"]
    for case, seed in (("a", 1), ("b", 2)):
        ranking = json.loads((root / f"{case}_random" / "selection.json").read_text())
        assert ranking["provenance"]["seed"] == seed
        entry = compared["cases"][case]["selectors"]["random"]
        assert entry["pick"] == ranking["ranking"][0]["id"]
        # The pick's own row is what its model was patched with.
        config = yaml.safe_load((root / f"{case}_random_pick" / "fit.yaml").read_text())
        assert config["data"]["init_args"]["instance"]["init_args"]["selection"] == str(
            root / f"{case}_random" / "selection.json"
        )
        truth = json.loads((root / f"{case}_brute" / "selection.json").read_text())
        outcomes = {row["id"]: -row["score"] for row in truth["ranking"]}
        assert entry["regret"] == pytest.approx(outcomes[entry["pick"]] - min(outcomes.values()))
    assert compared["selectors"]["brute"]["regret"]["value"] == 0
    assert compared["selectors"]["brute"]["answers"] == 3 * 12
    assert states(command("study", "--config", file).err) == ["kept"] * 12
    # A new choice patches again; what did not change stays.
    path = root / "a_random" / "selection.json"
    content = json.loads(path.read_text())
    content["ranking"].reverse()
    path.write_text(json.dumps(content))
    again = command("study", "--config", file)
    assert states(again.err).count("done") == 2, again.err
