"""An outcome is taken for one of this run only if nothing that decides it has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from oneshot_lit.data import Microworld, PromptSet, SafetyDataModule
from oneshot_lit.methods import BruteForceModule, Decoding
from oneshot_lit.methods.select import settings
from oneshot_lit.methods.select.settings import candidate_key, outcome_settings, settings_hash
from quiet_trainer import run_job

SETS = {
    kind: PromptSet(Microworld(f"{kind}_dev", size=2), kind)  # type: ignore[arg-type]
    for kind in ("harmful", "benign")
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BruteForceModule]:
    torch.manual_seed(0)
    module = BruteForceModule(
        str(Path(__file__).parents[2] / "checkpoints" / "small"),
        patch_steps=1,
        decoding=Decoding(max_new_tokens=2),
    )
    data = SafetyDataModule(
        train=Microworld("pool", limit=1), batch_size=1, max_length=128, val_sets=SETS
    )
    root = tmp_path_factory.mktemp("measured")
    trainer = run_job(module, data, root)
    yield module
    assert trainer.datamodule is data


def val_set(module: Any) -> Any:
    return module.trainer.datamodule.prompt_sets("val")[0]


def weight(module: Any) -> torch.nn.Parameter:
    return next(module.model.parameters())


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=1e-3)


def falling(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5)


# What is set, where, and to what.
Change = tuple[Callable[[Any], Any], str, Any]
CHANGES: dict[str, list[Change]] = {
    "weights": [(weight, "data", torch.zeros(518, 96))],
    "dtypes": [(weight, "data", torch.zeros(518, 96, dtype=torch.bfloat16))],
    "precision": [(lambda m: m.trainer, "precision", "bf16-mixed")],
    "model": [(lambda m: m.model.config, "rms_norm_eps", 0.5)],
    "attention": [(lambda m: m.model.config, "_attn_implementation", "eager")],
    "generation": [(lambda m: m.model.generation_config, "repetition_penalty", 1.5)],
    "optimizer": [(lambda m: m, "optimizer", sgd), (lambda m: m, "lr_scheduler", falling)],
    "steps": [(lambda m: m, "patch_steps", 3)],
    "sets": [
        (val_set, "kind", "near_miss"),
        (val_set, "metrics", []),
        (val_set, "references", ["a", "b"]),
        (val_set, "encoded", []),
    ],
    "decoding": [(lambda m: m.decoding, "max_new_tokens", 3)],
    "stops": [(lambda m: m, "stop_ids", [7])],
    "phrases": [(lambda m: settings, "PHRASE_LIST_VERSION", "other")],
    "seed": [(lambda m: m, "run_seed", 5)],
    "code": [(lambda m: settings, "source_hash", lambda: "other")],
    "versions": [
        (lambda m: settings.torch, "__version__", "0"),
        (lambda m: settings.transformers, "__version__", "0"),
    ],
}


@pytest.mark.parametrize(
    ("key", "change"), [(key, change) for key, changes in CHANGES.items() for change in changes]
)
def test_every_part_counts(
    measured: BruteForceModule, monkeypatch: pytest.MonkeyPatch, key: str, change: Change
) -> None:
    before = outcome_settings(measured)
    assert set(before) == set(CHANGES)
    assert settings_hash(outcome_settings(measured)) == settings_hash(before)
    owner, name, value = change
    monkeypatch.setattr(owner(measured), name, value)
    after = outcome_settings(measured)
    assert after[key] != before[key]
    assert settings_hash({**before, key: after[key]}) != settings_hash(before)


def test_the_template_is_part_of_prompts_and_candidate(
    measured: BruteForceModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = measured.pool[0]
    before = candidate_key(measured, candidate)
    assert candidate_key(measured, candidate) == before
    tokenizer = measured.tokenizer
    template = "<|user|>" + tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", template)
    assert candidate_key(measured, candidate) != before
