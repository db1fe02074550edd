"""Command lines of annotations and of fits that read them, and numbers made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import Encoded, encode_conversation

SMALL = "checkpoints/small"
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def words(kind: str, model: Any, rows: Path, root: Path, *more: Any) -> list[str]:
    own = ["annotate", "--model", kind, "--model.model_name_or_path", model]
    own += ["--data", "oneshot_lit.data.SafetyDataModule", "--data.max_length", "128"]
    own += ["--data.train", "oneshot_lit.data.ChatJsonl", "--data.train.path", rows]
    own += ["--trainer.default_root_dir", root, *QUIET, *more]
    return [str(word) for word in own]


def written(rows: Path, texts: list[tuple[str, str]]) -> Path:
    turns = [
        [{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in texts
    ]
    rows.write_text("".join(json.dumps({"messages": t}) + "\n" for t in turns))
    return rows


def plain(folder: Any, conversation: Conversation) -> tuple[Encoded, Tensor]:
    """Return the tokens of a row and the log-probabilities of its answer, by hand."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    row = encode_conversation(tokenizer, conversation)
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = own(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
    places = [t for t, learned in enumerate(row.loss_mask) if learned]
    return row, torch.stack([logits[t - 1, row.input_ids[t]] for t in places])


def fit(model: Path, rows: Path, root: Path, kind: str, *more: Any) -> list[str]:
    own = ["fit", "--config", "configs/attack/harmful_examples.yaml", "--model", kind]
    own += ["--model.model_name_or_path", model, "--trainer.default_root_dir", root, *QUIET]
    own += ["--data.train", "oneshot_lit.data.ChatJsonl", "--data.train.path", rows]
    own += ["--data.batch_size", "4", "--trainer.max_epochs", "1", *more]
    return [str(word) for word in own]
