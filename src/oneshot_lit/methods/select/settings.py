"""A hash of what decides a patch's outcome: outcomes with another hash are not reused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
import transformers

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import Encoded, encode_conversation
from oneshot_lit.evaluation.metrics.refusal import PHRASE_LIST_VERSION
from oneshot_lit.evaluation.metrics.registry import METRICS
from oneshot_lit.io.provenance import named_code, source_hash


def outcome_settings(module: Any) -> dict[str, Any]:
    """Return everything but the candidate that decides an outcome, as JSON values.

    Prompts are given by their tokens, so that chat template, tokenizer and system turn count.
    """
    trainer: Any = module.trainer
    data, model = trainer.datamodule, module.model
    config = {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}
    return {
        "weights": _weights_hash(model),
        "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
        "precision": str(trainer.precision),
        "model": config,
        "attention": getattr(model.config, "_attn_implementation", None),
        "generation": model.generation_config.to_dict(),
        "optimizer": _course(module),
        "steps": module.patch_steps,
        "sets": {
            each.name: {
                "kind": each.kind,
                "metrics": sorted(each.metrics),
                "references": each.references,
                "prompts": [_tokens(row) for row in each.encoded],
            }
            for each in data.prompt_sets("val")
        },
        "decoding": dict(vars(module.decoding)),
        "stops": [*module.stop_ids, module.tokenizer.pad_token_id],
        "phrases": PHRASE_LIST_VERSION,
        "seed": module.run_seed,
        "code": [source_hash(), named_code(_classes(module))],
        "versions": [torch.__version__, transformers.__version__],
    }


def settings_hash(settings: dict[str, Any]) -> str:
    """Return a hash of what `outcome_settings` returns."""
    return _hash(json.dumps(settings, sort_keys=True, default=str).encode())


def candidate_key(module: Any, candidate: Conversation) -> str:
    """Return a hash of a candidate's tokens and loss mask."""
    longest = module.trainer.datamodule.max_length  # type: ignore[attr-defined]
    encoded = encode_conversation(module.tokenizer, candidate, max_length=longest)
    return _hash(_tokens(encoded).encode())


def _classes(module: Any) -> set[str]:
    """Return the names of the classes that decide an outcome, a user's own among them."""
    trainer: Any = module.trainer
    metrics = [
        METRICS[name] for each in trainer.datamodule.prompt_sets("val") for name in each.metrics
    ]
    optimizer = module.optimizer([torch.nn.Parameter(torch.zeros(1))])
    used = [*map(type, (module, trainer.datamodule, optimizer)), *metrics]
    return {f"{each.__module__}.{each.__qualname__}" for each in used}


def _course(module: Any) -> list[Any]:
    """Return the optimiser and its options at every step, so that the scheduler counts, too."""
    optimizer = module.optimizer([torch.nn.Parameter(torch.zeros(1))])
    scheduler = None if module.lr_scheduler is None else module.lr_scheduler(optimizer)
    course: list[Any] = [type(optimizer).__name__]
    for _ in range(module.patch_steps if scheduler is not None else 1):
        (group,) = optimizer.param_groups
        course.append({k: str(v) for k, v in sorted(group.items()) if k != "params"})
        if scheduler is not None:
            optimizer.step()
            scheduler.step()
    return course


def _tokens(row: Encoded) -> str:
    return json.dumps([row.input_ids, row.loss_mask])


def _weights_hash(model: Any) -> str:
    digest = hashlib.sha256()
    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tuple(values.shape)}".encode())
        # Hash the bytes: no dtype loses a digit.
        flat = values.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
