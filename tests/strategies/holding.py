"""How much memory a process takes while a model is built, and when it loads it."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import peft
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from training import strategy

from oneshot_lit.data import ChatJsonl, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule


def own_bytes() -> int:
    """Return the memory that is this process's alone; pages of mapped files are not."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def warm_up() -> None:
    """Build a tiny model, so that what the first one imports is not counted."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
    config = LlamaConfig(vocab_size=8, num_attention_heads=1, num_key_value_heads=1, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))


class Module(LanguageModelModule):
    def _prepared(self, model: Any) -> Any:
        self.loaded = time.time()
        return super()._prepared(model)

    def _whole_model(self) -> Any:
        self.began = time.time()
        return super()._whole_model()

    def configure_model(self) -> None:
        warm_up()
        before, peak, done = own_bytes(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.002):
                peak[0] = max(peak[0], own_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            super().configure_model()
        finally:
            done.set()
            watcher.join()
        self.peak = max(peak[0], own_bytes()) - before


class Built(Exception):
    """Nothing more is needed of the run."""


def build(name: str, root: str, rows: str, **model: Any) -> None:
    """Build the model; write what it took on each process at most, and when it was loaded."""
    torch.manual_seed(0)
    module = Module(**model)
    module.on_fit_start = done  # type: ignore[method-assign]
    trainer = Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=2,
        strategy=strategy(name),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    try:
        trainer.fit(module, SafetyDataModule(ChatJsonl(rows)))
    except Built:
        Path(root).mkdir(parents=True, exist_ok=True)
        facts = {"peak": module.peak, "began": module.began, "loaded": module.loaded}
        (Path(root) / f"facts{rank_zero_only.rank}.json").write_text(json.dumps(facts))


def done() -> None:
    raise Built
