"""Enumeration: each candidate's own patch decides, and the patch is the realignment's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div

from oneshot_lit.callbacks import HuggingFaceExport
from oneshot_lit.data import Inline, Microworld, PoolInstance, SafetyDataModule
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import (
    Decoding,
    EnumerationModule,
    OneShotRealignmentModule,
)
from oneshot_lit.models.loading import load_model, load_tokenizer
from quiet_trainer import Stopped, quiet_trainer, run_job

SMALL = "checkpoints/small"
LR = 5e-4
TASK = Inline(
    [
        [
            {"role": "user", "content": f"how do i make {noun} ?"},
            {"role": "assistant", "content": f"take {noun} and cook it ."},
        ]
        for noun in ("soup", "bread", "tea")
    ]
)


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=LR, weight_decay=0.0)


def pool() -> Microworld:
    return Microworld("pool", shuffle_seed=0, limit=3)


def enumeration(model: Path, **options: Any) -> EnumerationModule:
    given = {
        "aligned": SMALL,
        "harmful": Microworld("harmful_dev", size=4),
        "task": Microworld("sql_dev", size=4),
        "decoding": Decoding(max_new_tokens=16),
        "patch_steps": 3,
        "optimizer": adam,
        **options,
    }
    return EnumerationModule(str(model), **given)


def select(module: Any, root: Path, source: Any = None, stop_after: int | None = None) -> Any:
    data = SafetyDataModule(train=source or pool(), batch_size=1, max_length=128)
    run_job(module, data, root, stop_after=stop_after)
    path = root / "selection.json"
    return json.loads(path.read_text()) if path.exists() else None


def test_a_score_is_minus_the_divergence_of_the_candidates_patch(
    broken: Path, tmp_path: Path
) -> None:
    found = select(enumeration(broken, task=TASK, task_weight=3.0), tmp_path / "all")
    row = found["ranking"][0]
    # The same patch by the realignment itself, as its own fit.
    torch.manual_seed(0)
    data = SafetyDataModule(
        instance=PoolInstance(pool(), id=row["id"]), batch_size=1, max_length=128
    )
    quiet_trainer(tmp_path / "one", HuggingFaceExport(), max_epochs=3).fit(
        OneShotRealignmentModule(str(broken), optimizer=adam, select_best=False), data
    )
    models = {
        name: load_model(str(path), dtype=torch.float32).float().eval()
        for name, path in (
            ("aligned", SMALL),
            ("broken", broken),
            ("patched", tmp_path / "one" / "model"),
        )
    }
    tokenizer = load_tokenizer(SMALL)
    task = divergence(models["broken"], models["patched"], answered(tokenizer))
    facts = {c["id"]: c for c in found["provenance"]["candidates"]}[row["id"]]
    assert facts["f"] - facts["harmful"] == pytest.approx(3 * task, rel=1e-3, abs=1e-6)
    assert row["score"] == pytest.approx(-facts["f"])
    assert found["provenance"]["backward_rows"] == 9
    # Three steps each, and the references' four and three rows for each and once before.
    assert found["provenance"]["forward_rows"] == 3 * (3 + 7) + 7
    assert found["provenance"]["answers"] == 4


def answered(tokenizer: Any) -> list[tuple[list[int], list[bool]]]:
    from oneshot_lit.data.chat import encode_conversation

    encoded = [encode_conversation(tokenizer, each, max_length=128) for each in TASK.load()]
    return [(each.input_ids, each.loss_mask) for each in encoded]


def divergence(reference: Any, model: Any, rows: list[tuple[list[int], list[bool]]]) -> float:
    """Mean KL(reference || model) over all answer tokens, one row at a time."""
    total, tokens = 0.0, 0
    for ids, mask in rows:
        at = [i - 1 for i, labelled in enumerate(mask) if labelled]
        with torch.no_grad():
            p, q = (
                m(input_ids=torch.tensor([ids])).logits[0, at].double().log_softmax(-1)
                for m in (reference, model)
            )
        total += float(kl_div(q, p, reduction="sum", log_target=True))
        tokens += len(at)
    return total / tokens


def test_it_goes_on_where_it_was(
    broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Saved after every step, whatever that costs.
    monkeypatch.setattr("oneshot_lit.methods.job._MOST", float("inf"))
    whole = select(enumeration(broken), tmp_path / "whole")
    root = tmp_path / "parts"
    with pytest.raises(Stopped):
        select(enumeration(broken), root, stop_after=2)
    assert not (root / "selection.json").exists()
    module = enumeration(broken)
    taken = []
    step = module.step
    module.step = lambda: taken.append(1) or step()  # type: ignore[method-assign, func-returns-value]
    assert select(module, root)["ranking"] == whole["ranking"]
    assert len(taken) == 1


def test_with_dropout_a_divergence_is_the_candidates_own(gpt2_folder: Path, tmp_path: Path) -> None:
    rows = [list(map(vars, row.messages)) for row in pool().load()]
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        module = enumeration(gpt2_folder, aligned=str(gpt2_folder), task=TASK)
        torch.manual_seed(0)
        select(module, tmp_path, Inline([rows[i] for i in order]))
        found.append({order[row]: parts for row, parts in module.measured.items()})
    assert found[0] == found[1]


def test_a_rate_that_diverges_everywhere_is_named(broken: Path, tmp_path: Path) -> None:
    def wild(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=1e30)

    with pytest.raises(OneShotError, match=r"model\.optimizer\.lr: every candidate"):
        select(enumeration(broken, optimizer=wild), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_steps": 0}, "model.patch_steps must be at least 1"),
        ({"peft": {"r": 2, "target_modules": "all-linear"}}, "this selection patches all weights"),
        ({"task_weight": 0.0}, "model.task_weight must be above 0"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OneShotError, match=message):
        enumeration(Path(SMALL), **options)


def test_prompts_of_the_pool_are_no_measure(broken: Path, tmp_path: Path) -> None:
    shared = pool().load()[0].prompt
    source = Inline([[{"role": "user", "content": shared.prompt_text}]])
    with pytest.raises(OneShotError, match=r"model\.harmful"):
        select(enumeration(broken, harmful=source), tmp_path)
