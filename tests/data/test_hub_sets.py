"""Sets of the hub: said first, replaced by files, and one line without a network; no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from oneshot_lit.data import HuggingFaceDataset, Mixture, TableFile, hub
from oneshot_lit.errors import OneShotError

ROOT = Path(__file__).parents[2]
REAL = ROOT / "configs" / "realign" / "real.yaml"
SETS = ("harmful", "near_miss", "xstest_safe", "ordinary")
# The columns of the public sets, with invented rows.
TABLES = {
    "JailbreakBench/JBB-Behaviors": {
        "Index": 0,
        "Goal": "help me bake bread {}",
        "Target": "take flour",
        "Behavior": "bread",
        "Category": "food",
        "Source": "here",
    },
    "Paul/XSTest": {
        "id": "1",
        "prompt": "how do i beat eggs {} ?",
        "type": "homonyms",
        "label": "safe",
        "focus": "beat",
        "note": "",
    },
    "databricks/databricks-dolly-15k": {
        "instruction": "what is bread {} ?",
        "context": "",
        "response": "food",
        "category": "open_qa",
    },
}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub with the three sets; returns what is asked of it."""
    asked: list[tuple[Any, ...]] = []

    def load(path: str, name: str | None, split: str, revision: str | None) -> Any:
        asked.append((path, name, split))
        rows = [
            {k: v.format(n) if isinstance(v, str) else n for k, v in TABLES[path].items()}
            for n in range(120)
        ]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    return asked


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(hub, "rank_zero_info", lines.append)
    return lines


def test_each_set_is_said_before_any_is_fetched(stand_in, said, monkeypatch) -> None:
    monkeypatch.setattr(hub, "rank_zero_info", lambda line: said.append((line, len(stand_in))))
    one = HuggingFaceDataset("Paul/XSTest", licence="CC-BY-4.0")
    two = HuggingFaceDataset("JailbreakBench/JBB-Behaviors", "behaviors", "benign")
    hub.announce_hub_sets({"data.train": None, "a": Mixture([one, TableFile("x.csv")]), "b": two})
    assert said == [
        (
            "from the Hugging Face hub, or its cache: Paul/XSTest[train] for a; licence: CC-BY-4.0",
            0,
        ),
        (
            "from the Hugging Face hub, or its cache: JailbreakBench/JBB-Behaviors[benign] for b; "
            "licence: see huggingface.co/datasets/JailbreakBench/JBB-Behaviors",
            0,
        ),
    ]


def test_files_and_folders_are_not_of_the_hub(tmp_path: Path, said, monkeypatch) -> None:
    monkeypatch.setattr(hub, "hub_answers", lambda: pytest.fail("asked the network"))
    hub.announce_hub_sets({"a": HuggingFaceDataset(str(tmp_path)), "b": TableFile("x.csv")})
    assert said == []


def test_without_a_network_one_line_names_what_the_cache_lacks(said, monkeypatch) -> None:
    monkeypatch.setattr(hub, "hub_answers", lambda: False)

    def cached(path: str, name: str | None, split: str, revision: str | None) -> Any:
        assert datasets.config.HF_HUB_OFFLINE
        if path == "some/cached":
            return datasets.Dataset.from_list([{"prompt": "a"}])
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", cached)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    hub.announce_hub_sets({"a": HuggingFaceDataset("some/cached")})
    with pytest.raises(OneShotError) as error:
        hub.announce_hub_sets(
            {"a": HuggingFaceDataset("some/cached"), "x.source": HuggingFaceDataset("some/rows")}
        )
    assert "lacks x.source (some/rows[train])" in str(error.value)
    assert "--x.source TableFile --x.source.path FILE" in str(error.value)
    assert "cached" not in str(error.value).replace("its cache", "")
    assert datasets.config.HF_HUB_OFFLINE is False


def words(verb: str, config: str, model: Path, root: Path) -> list[str]:
    return [
        *(verb, "--config", f"configs/realign/{config}.yaml", "--model.model_name_or_path", model),
        *("--trainer.default_root_dir", root, "--trainer.accelerator", "cpu"),
        *("--model.decoding.max_new_tokens", "2", "--trainer.enable_progress_bar", "false"),
    ]


def test_offline_the_command_ends_with_one_line(command, tiny_folder: Path, tmp_path: Path) -> None:
    # The tests run with the hub switched off.
    for verb, config in (("fit", "real"), ("edit", "real_low_rank")):
        done = command(*words(verb, config, tiny_folder, tmp_path / verb))
        assert done.code == 2
        for name in SETS:
            assert f"data.val_sets.{name}.source (" in done.error
        assert ("model.guard (" in done.error) == (verb == "edit")
        assert not (tmp_path / verb / "model").exists()


def test_fit_on_public_sets(command, stand_in, tiny_folder: Path, tmp_path: Path) -> None:
    more = ["--trainer.max_epochs", "1", "--model.attempts", "1"]
    done = command(*words("fit", "real", tiny_folder, tmp_path / "run"), *more)
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert ("JailbreakBench/JBB-Behaviors", "behaviors", "harmful") in stand_in
    assert {path for path, _, _ in stand_in} == set(TABLES)


ANCHORS = ["--config", "configs/realign/real_anchors.yaml"]


def test_anchor_rows_of_public_sets(command, stand_in, broken: Path, tmp_path: Path) -> None:
    more = ["--trainer.max_epochs", "1", "--model.attempts", "1"]
    done = command(*words("fit", "real", broken, tmp_path / "run"), *ANCHORS, *more)
    assert done.code == 0, done.err
    facts = json.loads((tmp_path / "run" / "data.json").read_text())["fit"]["anchors"]
    # A broken model may have no answer to a prompt.
    assert facts["rows"] + sum(facts["left_out"].values()) == facts["own_answers"] == 64
    assert facts["rows_a_step"] == 8
    said = [line for line in done.err.splitlines() if "hub, or its cache" in line]
    assert sum("for data.anchors; licence: " in line for line in said) == 3


def test_a_projected_model_is_polished_with_the_broken_models_answers(
    command, stand_in, broken: Path, tmp_path: Path
) -> None:
    done = command(*words("predict", "real_answers", broken, tmp_path / "answers"))
    assert done.code == 0, done.err
    rows = tmp_path / "answers" / "predictions.jsonl"
    kept = [r for r in map(json.loads, rows.read_text().splitlines()) if not r["cut"]]
    # Two tokens are too few for some answers.
    overlay = ["--config", "configs/realign/real_polish.yaml", "--data.anchors.path", str(rows)]
    more = ["--trainer.max_epochs", "1", "--data.anchors.where", "{kind: benign}"]
    done = command(*words("fit", "real", broken, tmp_path / "run"), *overlay, *more)
    assert done.code == 0, done.err
    facts = json.loads((tmp_path / "run" / "data.json").read_text())["fit"]["anchors"]
    assert (facts["rows_a_step"], facts["own_answers"]) == (8, 0)
    assert facts["rows"] + sum(facts["left_out"].values()) == 64
    assert len(kept) < 64


def test_offline_anchor_rows_are_asked_of_a_file(
    command, tiny_folder: Path, tmp_path: Path
) -> None:
    done = command(*words("fit", "real", tiny_folder, tmp_path / "run"), *ANCHORS)
    assert done.code == 2
    assert "data.anchors (JailbreakBench/JBB-Behaviors[benign], Paul/XSTest[train], " in done.error
    given = ["--data.anchors", "TableFile", "--data.anchors.path", "mine.csv", "--print_config"]
    done = command(*words("fit", "real", tiny_folder, tmp_path / "run"), *ANCHORS, *given)
    assert done.code == 0, done.err
    anchors = yaml.safe_load(done.out)["data"]["init_args"]["anchors"]
    assert anchors["class_path"] == "oneshot_lit.data.TableFile"
    assert (anchors["init_args"]["path"], anchors["init_args"]["limit"]) == ("mine.csv", None)


def test_edit_on_public_sets_reads_guard_and_prompts_apart(
    command, stand_in, broken: Path, tmp_path: Path
) -> None:
    more = ["--model.guard_lambda", "[0.1]"]
    done = command(*words("edit", "real_low_rank", broken, tmp_path / "run"), *more)
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "model" / "adapter_config.json").is_file()


@pytest.mark.parametrize("kind", ["guard", "anchors"])
def test_further_rows_share_no_prompt_with_the_development_sets(stand_in, kind: str) -> None:
    config = yaml.safe_load((REAL.parent / "real_low_rank.yaml").read_text())
    overlay = yaml.safe_load((REAL.parent / "real_anchors.yaml").read_text())

    def prompts(source: dict[str, Any]) -> set[str]:
        return {row.prompt_text for row in HuggingFaceDataset(**source["init_args"]).load()}

    parts = {
        "guard": config["model"]["init_args"]["guard"],
        "anchors": overlay["data"]["init_args"]["anchors"],
    }
    sources = parts[kind]["init_args"]["sources"]
    harmless = [
        each["source"]
        for each in config["data"]["init_args"]["val_sets"].values()
        if each["kind"] != "harmful"
    ]
    assert len(sources) == len(harmless) == 3
    kept = set.union(*map(prompts, sources))
    assert len(kept) == 64
    assert not kept & set.union(*map(prompts, harmless))


@pytest.mark.parametrize("name", SETS)
def test_each_set_is_replaced_by_a_file(command, tiny_folder: Path, tmp_path: Path, name) -> None:
    key = f"--data.val_sets.{name}.source"
    given = [key, "TableFile", f"{key}.path", "mine.csv"]
    done = command(*words("fit", "real", tiny_folder, tmp_path), *given, "--print_config")
    assert done.code == 0, done.err
    sets = yaml.safe_load(done.out)["data"]["init_args"]["val_sets"]
    before = yaml.safe_load(REAL.read_text())["data"]["init_args"]["val_sets"]
    assert sets[name]["source"]["class_path"] == "oneshot_lit.data.TableFile"
    # Nothing of the public set is left, such as its split or columns.
    given_arguments = {k: v for k, v in sets[name]["source"]["init_args"].items() if v is not None}
    assert given_arguments.keys() <= {"path", "bad_rows", "duplicates", "skip"}
    assert sets[name]["kind"] == before[name]["kind"]
    for other in set(SETS) - {name}:
        assert sets[other]["source"]["class_path"].endswith("HuggingFaceDataset")


def test_both_commands_use_the_same_instance_and_prompts() -> None:
    both = [
        yaml.safe_load((REAL.parent / f"{name}.yaml").read_text())["data"]
        for name in ("real", "real_low_rank")
    ]
    assert both[0] == both[1]
