"""An adapter's folder finds its base beside it, and the tokenizer in its base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.classifier import model_digest
from oneshot_lit.evaluation.lm_eval import _place
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.models.loading import load_model, load_tokenizer


@pytest.fixture
def folders(tiny_folder: Path, tmp_path: Path) -> Path:
    """A base and an adapter as `peft` alone writes it, without a tokenizer."""
    shutil.copytree(tiny_folder, tmp_path / "base")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    return tmp_path


def name_base(folders: Path, name: str) -> str:
    path = folders / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))
    return str(folders / "adapter")


@pytest.mark.parametrize("name", ["{}/base", "base", "./base", "../base", "inside/base"])
def test_the_base_is_found_wherever_the_command_runs(name: str, folders: Path) -> None:
    if name.startswith("inside"):
        shutil.copytree(folders / "base", folders / "adapter" / name)
    adapter = name_base(folders, name.format(folders))
    module = LanguageModelModule(adapter)
    assert module.tokenizer.get_vocab() == load_tokenizer(str(folders / "base")).get_vocab()
    assert module.tokenizer.chat_template == load_tokenizer(str(folders / "base")).chat_template
    assert module.context_length == 256
    module.configure_model()
    plain = AutoModelForCausalLM.from_pretrained(folders / "base").state_dict()
    loaded = module.model.state_dict()
    changed = {name for name, weight in loaded.items() if not torch.equal(weight, plain[name])}
    assert changed
    assert all(name.endswith("q_proj.weight") for name in changed)
    arguments = _place(adapter)
    assert Path(arguments["pretrained"]).resolve().name == "base"
    assert model_digest(adapter) is not None


def test_the_working_folder_comes_first(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folders / "work").mkdir()
    shutil.copytree(folders / "base", folders / "work" / "base")
    (folders / "base" / "model.safetensors").unlink()
    monkeypatch.chdir(folders / "work")
    load_model(name_base(folders, "base"), dtype=torch.float32)


def test_a_tokenizer_of_its_own_is_kept(folders: Path) -> None:
    adapter = Path(name_base(folders, "base"))
    own = load_tokenizer(str(folders / "base"))
    own.chat_template = "{{ 'mine' }}"
    own.save_pretrained(adapter)
    assert load_tokenizer(str(adapter)).chat_template == "{{ 'mine' }}"


def test_a_missing_base_is_named_with_its_adapter(
    folders: Path, command: Callable[..., Any], fit_words: list[str]
) -> None:
    adapter = name_base(folders, "./gone")
    with pytest.raises(OneShotError, match=r"adapter: its base model \./gone is neither in"):
        load_model(adapter, dtype=torch.float32)
    done = command(*fit_words, "--model.model_name_or_path", adapter)
    assert done.code == 2
    assert f"{adapter}: its base model ./gone is neither in the working folder nor" in done.error


def test_the_digest_follows_a_relative_base(folders: Path) -> None:
    adapter = name_base(folders, "../base")
    before = model_digest(adapter)
    (folders / "base" / "generation_config.json").write_text("{}")
    assert model_digest(adapter) != before
