"""Each mistake gives one line that names the place and the mend, exit code 2, and no output."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def row(role: str = "user", last: str = "assistant") -> str:
    turns = [{"role": role, "content": "hello"}, {"role": last, "content": "hello"}]
    return json.dumps({"messages": turns})


BAD_ROWS = {
    "not json": ("{oops", ["row 2", "not JSON"]),
    "no messages": ('{"prompt": "x"}', ["row 2", "messages"]),
    "unknown role": (row("usr"), ["row 2", "unknown role 'usr'", "'user'"]),
    "user turn last": ('{"messages": [{"role": "user", "content": "x"}]}', ["row 2", "user turn"]),
    "empty answer": (
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}',
        ["row 2", "empty"],
    ),
    "not an object": ("[1]", ["row 2", "object"]),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row(command, fit_words: list[str], rows_file: Path, tmp_path: Path, name: str) -> None:
    text, expected = BAD_ROWS[name]
    rows_file.write_text(json.dumps(GOOD) + "\n" + text + "\n")
    done = command(*fit_words)
    assert done.code == 2
    assert str(rows_file) in done.error
    for part in expected:
        assert part in done.error
    assert not (tmp_path / "run" / "model").exists()


def test_missing_data_file(command, fit_words: list[str], tmp_path: Path) -> None:
    done = command(*fit_words, "--data.train.path", tmp_path / "rowss.jsonl")
    assert done.code == 2
    assert "rowss.jsonl: file not found" in done.error
    assert "rows.jsonl" in done.error


def test_empty_data_file(command, fit_words: list[str], rows_file: Path) -> None:
    rows_file.write_text("\n")
    done = command(*fit_words)
    assert done.code == 2
    assert "no conversation" in done.error


def test_missing_config(command) -> None:
    done = command("fit", "--config", "configs/attack/harmful_example.yaml")
    assert done.code == 2
    assert "harmful_examples.yaml" in done.error


def test_config_that_is_not_yaml(command, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model: {\n")
    done = command("fit", "--config", path)
    assert done.code == 2
    assert f"{path} line" in done.error


UNKNOWN_KEYS = {
    "trainer: {max_epoch: 3}": "max_epochs",
    "modle: {init_args: {dtype: float32}}": "model",
    "model: {init_args: {model_name_or_pth: x}}": "model_name_or_path",
    "model: {init_args: {decoding: {max_new_token: 3}}}": "max_new_tokens",
    "model: {init_args: {optimizer: {class_path: torch.optim.AdamW, init_args: {l: 1}}}}": "lr",
    "data: {init_args: {batch_sise: 3}}": "batch_size",
    "data: {init_args: {train: {class_path: oneshot_lit.data.ChatJsonl, init_args: {pth: x}}}}": (
        "path"
    ),
    "data: {init_args: {val_sets: {a: {source: {class_path: oneshot_lit.data.ChatJsonl, "
    "init_args: {path: x}}, knd: benign}}}}": "kind",
    "trainer: {callbacks: [{class_path: oneshot_lit.callbacks.GradientRank, "
    "init_args: {every_n_epoch: 1}}]}": "every_n_epochs",
    "export: {save_dtyp: float16}": "save_dtype",
    "model: {class_path: oneshot_lit.methods.HarmfulFinetuningModule}": "HarmfulFineTuningModule",
}


@pytest.mark.slow
@pytest.mark.parametrize("text", UNKNOWN_KEYS)
def test_unknown_key_in_a_config(command, fit_words: list[str], tmp_path: Path, text: str) -> None:
    path = tmp_path / "overlay.yaml"
    path.write_text(text + "\n")
    done = command(*fit_words[:3], "--config", path)
    assert done.code == 2
    assert f"'{UNKNOWN_KEYS[text]}'" in done.error.replace("oneshot_lit.methods.", "").replace(
        "trainer.max", "max"
    ).replace("export.", "")


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("--trainer.max_epoch", "max_epochs"),
        ("--model.model_name_or_pth", "model_name_or_path"),
        ("--data.train.limitt", "limit"),
        ("--data.batchsize", "batch_size"),
    ],
)
def test_unknown_key_on_the_command_line(command, option: str, nearest: str) -> None:
    done = command("fit", "--config", "configs/attack/harmful_examples.yaml", option, "3")
    assert done.code == 2
    assert option.lstrip("-") in done.error
    assert nearest in done.error.split("did you mean")[1]


def test_wrong_type(command) -> None:
    done = command(
        "fit", "--config", "configs/attack/harmful_examples.yaml", "--data.batch_size", "many"
    )
    assert done.code == 2
    assert "data.batch_size" in done.error
    assert "many" in done.error


def test_unknown_key_in_a_file_that_is_typed_as_a_value(
    command, fit_words: list[str], tmp_path: Path
) -> None:
    sets = tmp_path / "sets.yaml"
    source = "{class_path: oneshot_lit.data.Microworld, init_args: {split: harmful_dev}}"
    sets.write_text(f"harmful:\n  source: {source}\n  kindd: harmful\n")
    done = command(*fit_words, "--data.val_sets", sets)
    assert done.code == 2
    assert f"{sets} line 3: " in done.error
    assert "data.val_sets.harmful.kindd' (did you mean 'kind'?)" in done.error


def test_unknown_command(command) -> None:
    done = command("fitt", "--config", "x")
    assert done.code == 2
    assert "'fit'" in done.error


TABLE = "oneshot_lit.data.TableFile"


def test_unknown_column(command, fit_words: list[str], tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("asked,told\nhow are you ?,fine .\n")
    words = [*fit_words, "--data.train", TABLE, "--data.train.path", table]
    done = command(*words, "--data.train.columns", "{prompt: askd, response: told}")
    assert done.code == 2
    assert "unknown column 'askd' (did you mean 'asked'?)" in done.error
    done = command(*words)
    assert done.code == 2
    assert "no known shape" in done.error


def test_max_length_that_cuts_off_every_assistant_token(command, fit_words: list[str]) -> None:
    done = command(*fit_words, "--data.max_length", "6")
    assert done.code == 2
    assert "row 1" in done.error
    assert "max_length=6" in done.error


def edited_tokenizer(folder: Path, target: Path, edit: Callable[[str], str]) -> Path:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = edit(tokenizer.chat_template)
    tokenizer.save_pretrained(target)
    return target


def test_tokenizer_without_chat_template(
    command, fit_words: list[str], tiny_folder: Path, tmp_path: Path
) -> None:
    folder = edited_tokenizer(tiny_folder, tmp_path / "tok", lambda text: text)
    (folder / "chat_template.jinja").unlink()
    done = command(*fit_words, "--model.tokenizer_name_or_path", folder)
    assert done.code == 2
    assert "no chat template" in done.error


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: "{{ bos_token }}" + text,
        lambda text: text.replace(
            "{% for message in messages %}", "{% for message in messages %}{{ bos_token }}"
        ),
    ],
    ids=["at the start", "at every turn"],
)
def test_template_with_a_second_bos(
    command, fit_words: list[str], tiny_folder: Path, tmp_path: Path, edit
) -> None:
    folder = edited_tokenizer(tiny_folder, tmp_path / "tok", edit)
    done = command(*fit_words, "--model.tokenizer_name_or_path", folder)
    assert done.code == 2
    assert "second BOS" in done.error


def test_empty_prompt_set(command, test_words: list[str], tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("id,prompt,category,reference\n")
    done = command(*test_words)
    assert done.code == 2
    assert "prompts.csv" in done.error
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_no_prompt_set_at_all(command, test_words: list[str]) -> None:
    done = command(*test_words, "--data.test_sets", "null")
    assert done.code == 2
    assert "test_sets is empty" in done.error


def test_model_folder_without_weights(
    command, fit_words: list[str], tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "hollow"
    folder.mkdir()
    for path in tiny_folder.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    done = command(*fit_words, "--model.model_name_or_path", folder)
    assert done.code == 2
    assert "without weights" in done.error

    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    done = command(*fit_words, "--model.model_name_or_path", folder)
    assert done.code == 2
    assert "pickle" in done.error
    assert "pytorch_model.bin" in done.error


def test_missing_model_folder(command, fit_words: list[str]) -> None:
    for name in ("checkpoints/huge", "./nowhere", "runs/no/model"):
        done = command(*fit_words, "--model.model_name_or_path", name)
        assert done.code == 2
        assert f"{name}: model folder not found" in done.error


def test_weights_that_lack_a_tensor(
    command, fit_words: list[str], tiny_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "gap"
    folder.mkdir()
    for path in tiny_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    done = command(*fit_words, "--model.model_name_or_path", folder)
    assert done.code == 2
    assert "model.norm.weight" in done.error


def test_loss_that_is_not_finite(command, fit_words: list[str], tmp_path: Path) -> None:
    done = command(*fit_words, "--model.optimizer.lr", "1e30")
    assert done.code == 2
    assert "nan" in done.error or "inf" in done.error
    assert "step 1, batch 1 of epoch 0" in done.error
    assert "rows.jsonl row" in done.error
    assert not (tmp_path / "run" / "model").exists()


def test_nothing_to_resume(command, fit_words: list[str], tmp_path: Path) -> None:
    done = command(*fit_words, "--ckpt_path", "last")
    assert done.code == 2
    assert "no checkpoint" in done.error
    done = command(*fit_words, "--ckpt_path", tmp_path / "x.ckpt")
    assert done.code == 2
    assert "checkpoint not found" in done.error


def test_realignment_without_development_prompts(
    command, tiny_folder: Path, tmp_path: Path
) -> None:
    done = command(
        "fit",
        "--config",
        "configs/realign/one_shot.yaml",
        "--model.model_name_or_path",
        tiny_folder,
        "--trainer.default_root_dir",
        tmp_path / "r",
        "--data.val_sets",
        "null",
    )
    assert done.code == 2
    assert "val_sets" in done.error


def test_unknown_instance(command, tiny_folder: Path, tmp_path: Path) -> None:
    done = command(
        "fit",
        "--config",
        "configs/realign/one_shot.yaml",
        "--model.model_name_or_path",
        tiny_folder,
        "--trainer.default_root_dir",
        tmp_path / "r",
        "--data.instance.id",
        "genral-00",
    )
    assert done.code == 2
    assert "general-00" in done.error


def test_output_folder_that_is_a_file(command, fit_words: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    done = command(*fit_words)
    assert done.code == 2
    assert "is a file" in done.error
    assert (tmp_path / "run").read_text() == "mine"


def test_accelerator_that_is_not_there(command, fit_words: list[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    done = command(*fit_words, "--trainer.accelerator", "cuda")
    assert done.code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.dtype", "int7"], "model.dtype 'int7'"),
        (["--model.optimizer.lr", "-1"], "model.optimizer: Invalid learning rate: -1.0"),
        (["--data.batch_size", "0"], "data.batch_size must be at least 1, not 0"),
        (["--data.train", "Microworld", "--data.train.split", "pool", "--data.train.size", "0"],
         "size must be at least 1, not 0"),
        (["--trainer.strategy", "dpp"], "invalid strategy name"),
        (["--trainer.val_check_interval", "50"], "val_check_interval"),
        (["--model.decoding.max_new_tokens", "0"], "max_new_tokens must be at least 1, not 0"),
        (["--model.peft", "{r: 2}", "--model.model_config", "{model_type: llama}",
          "--model.model_name_or_path", "null"], "needs a trained base"),
        (["--checkpoint.max_share", "3"], "checkpoint.max_share must be in (0, 1]"),
    ],
)  # fmt: skip
def test_what_a_constructor_refuses_is_one_line(
    command, fit_words: list[str], words: list[str], message: str
) -> None:
    done = command(*fit_words, *words)
    assert done.code == 2
    assert message in done.error


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_instance(command, tmp_path: Path, text: str) -> None:
    words = ["fit", "--config", "configs/realign/one_shot.yaml"]
    words += ["--model.model_name_or_path", "checkpoints/small"]
    words += ["--trainer.default_root_dir", str(tmp_path), "--data.instance", "InlineInstance"]
    done = command(*words, "--data.instance.prompt", "a", "--data.instance.response", text)
    assert done.code == 2
    assert "data.instance: the assistant turn is empty" in done.error


def test_an_output_folder_below_a_file(command, fit_words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command(*fit_words, "--trainer.default_root_dir", tmp_path / "file" / "run")
    assert done.code == 2
    assert str(tmp_path / "file") in done.error


def test_an_instance_that_max_length_would_cut(command, tmp_path: Path) -> None:
    words = ["fit", "--config", "configs/realign/one_shot.yaml", "--data.max_length", "14"]
    words += ["--model.model_name_or_path", "checkpoints/small"]
    done = command(*words, "--trainer.default_root_dir", tmp_path / "run")
    assert done.code == 2
    assert "data.max_length" in done.error


def test_rows_that_max_length_cuts_are_counted(command, fit_words: list[str]) -> None:
    with pytest.warns(UserWarning, match=r"12 of 12 training rows are cut .*rows.jsonl row 1"):
        assert command(*fit_words, "--data.max_length", "30").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.val_sets", "nowhere.yaml"], "data.val_sets: nowhere.yaml: file not found."),
        (["--model", "no_such_package.Mine"], "model: cannot import no_such_package.Mine;"),
        (
            ["--data.train", "no_such_package.rows.Mine"],
            "train: cannot import no_such_package.rows.Mine;",
        ),
    ],
)
def test_what_cannot_be_found_is_named(
    command, fit_words: list[str], words: list[str], message: str
) -> None:
    done = command(*fit_words, *words)
    assert done.code == 2
    assert message in done.error


def test_a_package_in_the_working_folder_is_found(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_in_folder.py").write_text(
        "from oneshot_lit.methods import HarmfulFineTuningModule\n"
        "class Mine(HarmfulFineTuningModule):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    words = ["fit", "--config", "configs/attack/harmful_examples.yaml"]
    shown = command(*words, "--model", "mine_in_folder.Mine", "--print_config")
    assert shown.code == 0, shown.err
    assert "class_path: mine_in_folder.Mine" in shown.out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("modules.HarmfulFineTuningModule", "methods.HarmfulFineTuningModule"),
        ("selection.PenaltySettings", "methods.select.PenaltySettings"),
        ("judges.KeywordJudge", "evaluation.judges.KeywordJudge"),
    ],
)
def test_the_former_address_of_a_class_names_the_present_one(command, old: str, new: str) -> None:
    words = ["fit", "--config", "configs/attack/harmful_examples.yaml"]
    done = command(*words, "--model", f"oneshot_lit.{old}")
    assert done.code == 2
    assert f"model: oneshot_lit.{old} is now oneshot_lit.{new}." in done.error


@pytest.mark.slow
def test_nothing_happens_on_import() -> None:
    """No variable is set and no strategy or model registered by importing the package."""
    code = (
        "import os, pkgutil, importlib, transformers\n"
        "from lightning.pytorch.strategies import StrategyRegistry\n"
        "before = dict(os.environ), dict(StrategyRegistry)\n"
        "import oneshot_lit\n"
        "for module in pkgutil.walk_packages(oneshot_lit.__path__, 'oneshot_lit.'):\n"
        "    if '__main__' not in module.name: importlib.import_module(module.name)\n"
        "assert (dict(os.environ), dict(StrategyRegistry)) == before"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
