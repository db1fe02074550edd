"""What a `fit` is timed against: a bare PyTorch loop, and the Hugging Face `Trainer`."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.padding import pad_training


@dataclass(frozen=True)
class Trained:
    """When each step ended, the losses that were logged, and the trained weights."""

    ends: list[float]
    losses: list[float]
    weights: dict[str, torch.Tensor]


def bare(path: str, rows: list[Encoded], pad: int, size: int, rate: float) -> Trained:
    """Train with a plain loop, which computes the logits of all positions."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    loader = torch.utils.data.DataLoader(
        rows, batch_size=size, collate_fn=lambda batch: pad_training(batch, pad)
    )
    ends, losses = [], []
    for batch in loader:
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        ends.append(time.perf_counter())
    return Trained(ends, [float(loss) for loss in losses], model.state_dict())


def arguments(folder: str, size: int, rate: float, logging_steps: int) -> dict[str, Any]:
    """Return the arguments of a trainer that does the same as the bare loop."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": size,
        "num_train_epochs": 1,
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "logging_steps": logging_steps,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def train(trainer: Any) -> Trained:
    """Run a trainer of transformers or TRL."""
    # Imported here: the memory of the others is measured, too.
    from transformers import TrainerCallback

    ends: list[float] = []

    class Ends(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            ends.append(time.perf_counter())

    trainer.add_callback(Ends())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Trained(ends, losses, trainer.model.state_dict())


def hugging_face(
    path: str, rows: list[Encoded], pad: int, size: int, rate: float, logging_steps: int = 1
) -> Trained:
    """Train with `transformers.Trainer`."""
    from transformers import Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        return train(
            Trainer(
                model,
                TrainingArguments(**arguments(folder, size, rate, logging_steps)),
                train_dataset=rows,
                data_collator=lambda batch: pad_training(batch, pad),
            )
        )
