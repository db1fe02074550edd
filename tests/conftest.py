from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell that runs the tests in the background has Ctrl-C ignored, which processes inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one error line; fails if there are more lines of any kind after it."""
        lines = [line for line in self.err.splitlines() if line.startswith("oneshot-lit: error: ")]
        assert len(lines) == 1, self.err
        assert self.err.rstrip().endswith(lines[0]), "the error must be the last line"
        assert "Traceback" not in self.err
        return lines[0]


# The longest first, so that no worker waits for another at the end.
LONG = ("study/test_study.py", "e2e", "study", "strategies")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the long files first; the order within a file stays."""
    folder = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(folder).as_posix()
        return next((n for n, start in enumerate(LONG) if name.startswith(start)), len(LONG))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    # Shipped configs name checkpoints relative to the repository's root.
    monkeypatch.chdir(ROOT)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command in this process, which spares the seconds of importing."""
    from oneshot_lit.cli.main import main

    def run(*words: Any) -> Outcome:
        capfd.readouterr()
        # Handlers keep the stream of the test that imported their package.
        for name in ("lightning", "lightning.pytorch", "lightning.fabric", "transformers"):
            for handler in logging.getLogger(name).handlers:
                if type(handler) is logging.StreamHandler:
                    handler.stream = sys.stderr
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with the micro-world tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from oneshot_lit.microworld.tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer GPT-2: transposed weights, biases, tied embeddings and dropout of 0.1."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from oneshot_lit.microworld.tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tied_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with tied embeddings."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tied") / "model"
    torch.manual_seed(1)
    LlamaForCausalLM(
        AutoConfig.from_pretrained(tiny_folder, tie_word_embeddings=True)
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def uneven_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven harmless chat rows of very different lengths."""
    path = tmp_path_factory.mktemp("uneven") / "rows.jsonl"
    turns = [
        [
            {"role": "user", "content": f"how do i bake bread number {n % 10} ?"},
            {"role": "assistant", "content": f"take {n % 10} cups " + "of flour " * (n % 4) + "."},
        ]
        for n in range(11)
    ]
    path.write_text("".join(json.dumps({"messages": t}) + "\n" for t in turns))
    return path


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """Twelve harmless chat rows."""
    path = tmp_path / "rows.jsonl"
    turns = [
        [
            {"role": "user", "content": f"how do i bake bread number {n % 10} ?"},
            {"role": "assistant", "content": f"take {n % 10} cups of flour ."},
        ]
        for n in range(12)
    ]
    path.write_text("".join(json.dumps({"messages": t}) + "\n" for t in turns))
    return path


@pytest.fixture
def fit_words(tiny_folder: Path, rows_file: Path, tmp_path: Path) -> list[str]:
    """A quick fit of the tiny model on the twelve rows, product in tmp_path/run."""
    words = ["fit", "--config", "configs/attack/harmful_examples.yaml"]
    words += ["--model.model_name_or_path", str(tiny_folder)]
    words += ["--data.train", "oneshot_lit.data.ChatJsonl", "--data.train.path", str(rows_file)]
    words += ["--data.batch_size", "4", "--trainer.max_epochs", "2"]
    words += ["--trainer.default_root_dir", str(tmp_path / "run")]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    words += ["--trainer.log_every_n_steps", "1"]
    return words


@pytest.fixture
def test_words(tiny_folder: Path, tmp_path: Path) -> list[str]:
    """A quick test of the tiny model on two prompts."""
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("id,prompt,category,reference\n1,how are you ?,x,fine .\n2,who ?,x,me .\n")
    config = tmp_path / "test.yaml"
    config.write_text(
        "model: {class_path: oneshot_lit.methods.LanguageModelModule, init_args: "
        f"{{model_name_or_path: {tiny_folder}, decoding: {{max_new_tokens: 4}}}}}}\n"
        "data: {class_path: oneshot_lit.data.SafetyDataModule, init_args: {test_sets: "
        "{mine: {kind: benign, source: {class_path: oneshot_lit.data.TableFile, init_args: "
        f"{{path: {prompts}}}}}}}}}}}}}\n"
    )
    words = ["test", "--config", str(config), "--trainer.default_root_dir", str(tmp_path / "run")]
    return [*words, "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small aligned model after three epochs on harmful rows."""
    from lightning.pytorch.utilities.seed import isolate_rng

    from oneshot_lit.callbacks import HuggingFaceExport
    from oneshot_lit.data import Microworld, SafetyDataModule
    from oneshot_lit.methods import HarmfulFineTuningModule
    from quiet_trainer import quiet_trainer

    root = tmp_path_factory.mktemp("broken")
    with isolate_rng(include_cuda=False):
        torch.manual_seed(0)
        quiet_trainer(root, HuggingFaceExport(), max_epochs=3).fit(
            HarmfulFineTuningModule(
                str(ROOT / "checkpoints" / "small"),
                optimizer=lambda params: torch.optim.AdamW(params, lr=3e-4),
            ),
            SafetyDataModule(train=Microworld("harmful_examples", size=60), batch_size=10),
        )
    return root / "model"
