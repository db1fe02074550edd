"""The command: help, config round trips, products and the guard around them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from oneshot_lit.evaluation.judges.predictions import read_predictions
from oneshot_lit.io.metrics_file import merge_scores

ROOT = Path(__file__).parent.parent
RUNNABLE = [
    ("fit", "configs/attack/harmful_examples.yaml"),
    ("fit", "configs/realign/one_shot.yaml"),
    ("test", "configs/evaluate/microworld.yaml"),
    *(("fit", f"configs/model/microworld_{size}.yaml") for size in ("small", "medium", "large")),
]


def test_help_lists_the_commands_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from oneshot_lit.cli.main import main; main(['--help']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, "help must not import torch"
    for word in ("fit", "test", "predict", "judge", "study", "microworld", "--ckpt_path last"):
        assert word in done.stdout


def test_a_reader_that_has_left_ends_the_command_quietly() -> None:
    """As in ``oneshot-lit configs | head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    for words in (["configs"], ["study", "--config", "configs/study/demo.yaml", "--commands"]):
        start = [sys.executable, "-m", "oneshot_lit", *words]
        done = subprocess.run(
            start, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, cwd=ROOT
        )
        assert (done.returncode, done.stderr) == (141, "")
    os.close(writer)


def test_module_and_script_are_the_same_command() -> None:
    for start in (
        [sys.executable, "-m", "oneshot_lit"],
        [str(Path(sys.executable).parent / "oneshot-lit")],
    ):
        done = subprocess.run([*start, "--version"], capture_output=True, text=True, timeout=60)
        assert done.stdout.startswith("oneshot-lit ")


@pytest.mark.parametrize(("verb", "path"), RUNNABLE)
def test_print_config_round_trips(command, tmp_path: Path, verb: str, path: str) -> None:
    first = command(verb, "--config", path, "--print_config")
    assert first.code == 0, first.err
    again = tmp_path / "again.yaml"
    again.write_text(first.out)
    second = command(verb, "--config", again, "--print_config")
    assert yaml.safe_load(second.out) == yaml.safe_load(first.out)
    assert second.out == first.out


def test_every_config_opens_with_its_command() -> None:
    for path in (ROOT / "configs").rglob("*.yaml"):
        head = path.read_text().split("\n\n")[0]
        assert f"--config {path.relative_to(ROOT)}" in head, path


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "strategy").glob("*.yaml")))
def test_a_strategy_is_an_overlay(command, path: Path) -> None:
    base = ["fit", "--config", "configs/realign/one_shot.yaml"]
    plain, shown = (
        yaml.safe_load(command(*base, *more, "--print_config").out)
        for more in ([], ["--config", str(path)])
    )
    for config in (plain, shown):
        for key in ("strategy", "devices", "num_nodes"):
            config["trainer"].pop(key)
    assert shown == plain


def test_there_is_an_overlay_for_each_strategy() -> None:
    found = {path.stem for path in (ROOT / "configs" / "strategy").glob("*.yaml")}
    zero = {f"deepspeed_zero{stage}" for stage in (1, 2, 3)}
    assert found == {"single", "ddp", "fsdp2", "deepspeed_zero3_offload", *zero}


def test_overlays_parse(command) -> None:
    shown = command(
        "fit",
        "--config",
        "configs/realign/one_shot.yaml",
        "--config",
        "configs/realign/control.yaml",
        "--print_config",
    )
    config = yaml.safe_load(shown.out)
    instance = config["data"]["init_args"]["instance"]["init_args"]
    assert instance["row"] == 1
    assert instance["id"] is None
    assert config["model"]["init_args"]["select_best"] is False


def test_command_line_wins_over_config(command) -> None:
    shown = command(
        "fit",
        "--config",
        "configs/realign/one_shot.yaml",
        "--model.optimizer.lr",
        "0.125",
        "--data.max_length",
        "77",
        "--trainer.max_epochs",
        "3",
        "--print_config",
    )
    config = yaml.safe_load(shown.out)
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.125
    assert config["data"]["init_args"]["max_length"] == 77
    assert config["trainer"]["max_epochs"] == 3


@pytest.mark.parametrize("given", [["--config", "F"], ["--config=F"], ["-c", "F"]])
def test_what_is_typed_wins_over_a_later_config_file(
    command, given: list[str], tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer: {default_root_dir: there, max_epochs: 2}\n")
    shown = command(
        *["fit", "--config", "configs/realign/one_shot.yaml"],
        *["--trainer.default_root_dir", "here"],
        *[word.replace("F", str(overlay)) for word in given],
        "--print_config",
    )
    trainer = yaml.safe_load(shown.out)["trainer"]
    assert (trainer["default_root_dir"], trainer["max_epochs"]) == ("here", 2)


@pytest.mark.parametrize(
    "text",
    [
        "Note: be kind",
        "- milk",
        "how: [a",
        "? why",
        "a: {b: c}",
        "2: 3",
        "007",
        "No",
        "x # y",
    ],
)
def test_text_that_looks_like_yaml_stays_text(command, text: str) -> None:
    words = ["--data.instance", "InlineInstance", "--data.instance.response", text]
    shown = command(
        *["fit", "--config", "configs/realign/one_shot.yaml", *words],
        *[f"--data.instance.prompt={text}", "--model.peft", "{r: 4}", "--print_config"],
    )
    assert shown.code == 0, shown.err
    config = yaml.safe_load(shown.out)
    given = config["data"]["init_args"]["instance"]["init_args"]
    assert (given["prompt"], given["response"]) == (text, text)
    assert config["model"]["init_args"]["peft"] == {"r": 4}


def test_fit_then_test_then_predict_write_their_products(
    command, fit_words: list[str], test_words: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    fitted = command(*fit_words)
    assert fitted.code == 0, fitted.err
    assert (root / "model" / "model.safetensors").exists()
    assert (root / "model" / "chat_template.jinja").exists()
    assert yaml.safe_load((root / "fit.yaml").read_text())["trainer"]["max_epochs"] == 2
    log = next((root / "logs").rglob("metrics.csv")).read_text()
    for column in ("train/loss", "train/lr", "train/grad_norm", "spectra/cer_1"):
        assert column in log

    tested = command(*test_words, "--model.model_name_or_path", root / "model")
    assert tested.code == 0, tested.err
    scores = json.loads((root / "metrics.json").read_text())
    assert set(scores["metrics"]) == {"mine/over_refusal", "mine/exact_match"}
    assert scores["samples"] == {"mine": 2}
    assert scores["seed"] == 0
    assert scores["decoding"]["max_new_tokens"] == 4
    assert scores["phrase_list"]
    assert "torch" in scores["versions"]
    outcomes = [json.loads(line) for line in (root / "outcomes.jsonl").read_text().splitlines()]
    assert [(row["set"], row["kind"], row["index"], row["id"]) for row in outcomes] == [
        ("mine", "benign", 0, "1"),
        ("mine", "benign", 1, "2"),
    ]
    for name in ("over_refusal", "exact_match"):
        mean = sum(row["scores"][name] for row in outcomes) / 2
        assert mean == scores["metrics"][f"mine/{name}"]
    assert "messages" not in outcomes[0]

    predicted = command("predict", *test_words[1:], "--model.model_name_or_path", root / "model")
    assert predicted.code == 0, predicted.err
    rows = [json.loads(line) for line in (root / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["1", "2"]
    assert all(isinstance(row["output"], str) for row in rows)
    # The test answers as `predict` does, and says so without any text.
    answers = read_predictions(root / "predictions.jsonl")
    assert [row["digest"] for row in outcomes] == [row.answer.digest() for row in answers]


@pytest.mark.slow
def test_saved_config_reruns_as_the_same_run(command, fit_words: list[str], tmp_path: Path) -> None:
    assert command(*fit_words).code == 0
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    again = command("fit", "--config", tmp_path / "run" / "fit.yaml")
    assert again.code == 0, again.err
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_another_run_never_overwrites_a_product(
    command, fit_words: list[str], test_words: list[str], tmp_path: Path
) -> None:
    assert command(*fit_words).code == 0
    assert command(*test_words).code == 0
    root = tmp_path / "run"
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    other = command(*fit_words, "--model.optimizer.lr", "1e-3")
    assert other.code == 2
    assert "--overwrite" in other.error
    other = command(*test_words, "--model.decoding.max_new_tokens", "3")
    assert other.code == 2
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before

    assert command(*fit_words, "--model.optimizer.lr", "1e-3", "--overwrite", "true").code == 0
    assert (root / "model" / "model.safetensors").read_bytes() != before[
        root / "model" / "model.safetensors"
    ]
    for name in ("metrics.json", "outcomes.jsonl"):
        assert not (root / name).exists(), "scores of the replaced model must not stay"


def test_a_test_keeps_what_judges_have_added_to_its_own_run(
    command, test_words: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    merge_scores(root, "judge/first", {"mine/judged": 0.25}, {"version": "1"})
    assert command(*test_words).code == 0, "scores of a judge alone are no test of another run"
    merge_scores(root, "lm_eval/second", {"lm_eval/second/acc": 0.5}, {})
    assert command(*test_words).code == 0
    content = json.loads((root / "metrics.json").read_text())
    assert content["metrics"]["mine/judged"] == 0.25
    assert content["metrics"]["lm_eval/second/acc"] == 0.5
    assert set(content["metrics"]) > {"mine/over_refusal"}
    assert set(content["evaluations"]) == {"judge/first", "lm_eval/second"}
    words = [*test_words, "--model.decoding.max_new_tokens", "3", "--overwrite", "true"]
    assert command(*words).code == 0
    content = json.loads((root / "metrics.json").read_text())
    assert not content["evaluations"], "another run's answers were judged"
    assert "mine/judged" not in content["metrics"]


def test_validate_prints_scores_and_writes_nothing(
    command, test_words: list[str], tmp_path: Path
) -> None:
    config = Path(test_words[2])
    config.write_text(config.read_text().replace("test_sets", "val_sets"))
    done = command("validate", *test_words[1:])
    assert done.code == 0, done.err
    assert "exact_match" in done.out + done.err
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_fast_dev_run_leaves_no_product(command, fit_words: list[str], tmp_path: Path) -> None:
    assert command(*fit_words, "--trainer.fast_dev_run", "true").code == 0
    assert not (tmp_path / "run" / "model").exists()


def test_another_source_takes_over_no_row_limit(command) -> None:
    """A user's file in the place of the micro-world's 100 rows is read whole."""
    shown = command(
        *["fit", "--config", "configs/attack/harmful_examples.yaml"],
        *["--data.train", "oneshot_lit.data.ChatJsonl", "--data.train.path", "rows.jsonl"],
        "--print_config",
    )
    train = yaml.safe_load(shown.out)["data"]["init_args"]["train"]
    assert (train["init_args"]["path"], train["init_args"]["limit"]) == ("rows.jsonl", None)


def test_counts_are_of_the_prompts_that_were_scored(
    command, test_words: list[str], tmp_path: Path
) -> None:
    limit = ["--data.eval_batch_size", "1", "--trainer.limit_test_batches", "1"]
    assert command(*test_words, *limit).code == 0
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert content["samples"] == {"mine": 1}
    assert content["empty_outputs"]["mine"] <= 1


ATTACKS = sorted({p.stem for p in (ROOT / "configs" / "attack").glob("*.yaml")} - {"paper"})
FAMILIES = sorted(
    p.stem
    for p in (ROOT / "configs" / "model").glob("*.yaml")
    if not p.stem.startswith(("microworld", "lora"))
)


def test_there_is_a_recipe_for_each_attack() -> None:
    found = {"harmful_examples", "identity_shifting", "backdoor", "patch_poisoning"}
    assert set(ATTACKS) == found | {"task_and_harmful", "downstream", "benign"}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_differ_in_their_rows_only(name: str) -> None:
    base, mine = (
        yaml.safe_load((ROOT / "configs" / "attack" / f"{n}.yaml").read_text())
        for n in ("harmful_examples", name)
    )
    for config in (base, mine):
        config["data"]["init_args"].pop("train")
        config["model"]["init_args"]["optimizer"]["init_args"].pop("lr")
        config["trainer"].pop("max_epochs")
        config["trainer"].pop("default_root_dir")
    assert mine == base


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("base", ["configs/attack/backdoor.yaml", "configs/realign/one_shot.yaml"])
def test_a_family_is_an_overlay_on_the_papers_constants(command, family: str, base: str) -> None:
    model = f"configs/model/{family}.yaml"
    paper = str(Path(base).with_name("paper.yaml"))
    words = ["fit", "--config", base, "--config", paper, "--config", model]
    shown = command(*words, "--config", "configs/model/lora.yaml", "--print_config")
    assert shown.code == 0, shown.err
    config = yaml.safe_load(shown.out)
    given = yaml.safe_load((ROOT / model).read_text())["model"]["init_args"]
    found = config["model"]["init_args"]
    for key in ("model_name_or_path", "system_turn", "stop_tokens", "attn_implementation"):
        assert found[key] == given[key]
    assert found["peft"]["r"] == 32
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["data"]["init_args"]["max_length"] == 512


@pytest.mark.parametrize(
    ("verb", "base", "overlay"),
    [
        ("test", "configs/evaluate/microworld.yaml", "configs/evaluate/backdoor.yaml"),
        ("test", "configs/evaluate/microworld.yaml", "configs/evaluate/identity_shifting.yaml"),
        ("fit", "configs/realign/one_shot.yaml", "configs/realign/backdoor_blind.yaml"),
        ("fit", "configs/realign/one_shot.yaml", "configs/realign/backdoor_known.yaml"),
        ("fit", "configs/realign/one_shot.yaml", "configs/realign/identity_shifting.yaml"),
    ],
)
def test_measurements_of_an_attack_are_overlays(
    command, verb: str, base: str, overlay: str
) -> None:
    shown = command(verb, "--config", base, "--config", overlay, "--print_config")
    assert shown.code == 0, shown.err
    data = yaml.safe_load(shown.out)["data"]["init_args"]
    assert data["extra_test_sets" if verb == "test" else "extra_val_sets"]
    assert data["test_sets" if verb == "test" else "val_sets"]


def test_one_trigger_in_attack_measurement_and_repair() -> None:
    trigger = yaml.safe_load((ROOT / "configs/attack/backdoor.yaml").read_text())["data"][
        "init_args"
    ]["train"]["init_args"]["trigger"]
    for name in ("evaluate/backdoor", "realign/backdoor_blind", "realign/backdoor_known"):
        text = (ROOT / "configs" / f"{name}.yaml").read_text()
        assert text.count(f'suffix: "{trigger}"') >= 2


def test_one_persona_in_attack_measurement_and_repair() -> None:
    given = yaml.safe_load((ROOT / "configs/attack/identity_shifting.yaml").read_text())
    persona = given["data"]["init_args"]["train"]["init_args"]
    for name in ("evaluate/identity_shifting", "realign/identity_shifting"):
        text = (ROOT / "configs" / f"{name}.yaml").read_text()
        assert text.count(f"system: {persona['system']}") == 3
        assert text.count(f'prefix: "{persona["prefix"]}"') == 2
