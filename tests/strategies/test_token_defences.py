"""ConstrainedSFT, STAR-DSS and TOSS: under every strategy, with accumulation, and resumed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from outputs import product, require_equal
from processes import in_processes
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from token_defences import CASES, annotated, fit
from training import saving_trainer
from transformers import AutoModelForCausalLM

from oneshot_lit.data import ChatJsonl, RowTransform, SafetyDataModule
from oneshot_lit.data.chat import Encoded
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import LanguageModelModule

STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")


@pytest.fixture(scope="module")
def words(
    tiny_folder: Path, uneven_rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("annotated")
    shutil.copytree(tiny_folder, root / "other")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    model.save_pretrained(root / "other")
    paths = {"folder": str(tiny_folder), "rows": str(uneven_rows)}
    return {**paths, "files": annotated(root, other=str(root / "other"), **paths)}


@pytest.mark.parametrize("label", list(CASES))
def test_accumulated_batches_make_the_same_step(
    words: dict[str, Any], tmp_path: Path, label: str
) -> None:
    fit(label, "single", str(tmp_path / "one"), **words)
    fit(label, "single", str(tmp_path / "two"), accumulate=2, **words)
    # The anchors of two smaller batches are other rows of the stream.
    if "side" not in label:
        require_equal(tmp_path / "two", tmp_path / "one", 2e-6)


@pytest.mark.parametrize("label", list(CASES))
def test_a_killed_fit_ends_bit_for_bit_the_same(
    words: dict[str, Any], tmp_path: Path, label: str
) -> None:
    fit(label, "single", str(tmp_path / "whole"), **words)
    fit(label, "single", str(tmp_path / "cut"), max_steps=2, **words)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    kept = "own_state" in torch.load(last, weights_only=True)
    assert kept == (label in ("constrained", "constrained, side", "star", "star, KL only"))
    fit(label, "single", str(tmp_path / "cut"), ckpt_path=str(last), **words)
    require_equal(tmp_path / "cut", tmp_path / "whole")


def test_a_file_stands_for_the_reference(words: dict[str, Any], tmp_path: Path) -> None:
    fit("constrained", "single", str(tmp_path / "live"), **words)
    fit("constrained, file", "single", str(tmp_path / "file"), **words)
    require_equal(tmp_path / "file", tmp_path / "live", 2e-6)


def test_a_resumed_fit_needs_the_same_annotations(words: dict[str, Any], tmp_path: Path) -> None:
    fit("star", "single", str(tmp_path / "cut"), max_steps=2, **words)
    copy = shutil.copytree(words["files"]["star"], tmp_path / "star")
    path = copy / "annotations.safetensors"
    with safe_open(path, framework="pt") as opened:
        facts = opened.metadata()
    tensors = load_file(path)
    tensors["values"][0] += 0.1
    save_file(tensors, path, facts)
    last = str(tmp_path / "cut" / "checkpoints" / "last.ckpt")
    files = {**words["files"], "star": str(copy)}
    with pytest.raises(OneShotError, match=r"model\.annotations"):
        fit("star", "single", str(tmp_path / "cut"), ckpt_path=last, **{**words, "files": files})


class NothingCounts(RowTransform):
    """Gives no token any weight."""

    def tokens(self, row: Encoded, tokenizer: Any) -> Encoded:
        return replace(row, token_weights=[0.0] * len(row.input_ids))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_without_any_token_changes_nothing(
    words: dict[str, Any], tmp_path: Path, accumulate: int
) -> None:
    module = LanguageModelModule(words["folder"], optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1))
    data = SafetyDataModule(ChatJsonl(words["rows"]), batch_size=2, transforms=[NothingCounts()])
    trainer = saving_trainer("single", str(tmp_path), accumulate_grad_batches=accumulate)
    trainer.fit(module, data)
    before = load_file(Path(words["folder"]) / "model.safetensors")
    assert all(torch.equal(before[name], weight) for name, weight in product(tmp_path).items())


@pytest.fixture(scope="module")
def runs(words: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("token_defences")
    cases: list[dict[str, Any]] = []
    for label in CASES:
        for name in STRATEGIES:
            # The anchors of two smaller batches are other rows of the stream.
            accumulate = 1 if "side" in label else 2
            own = {"label": label, "name": name, "processes": 2, "accumulate": accumulate}
            cases.append({"root": f"{root}/{name}, {label}", **own, **words})
        fit(label, "single", f"{root}/single, {label}", **words)
    in_processes(root, "token_defences", "fit", cases, seconds=900)
    return root


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("label", list(CASES))
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_make_the_same_step(name: str, label: str, runs: Path) -> None:
    require_equal(runs / f"{name}, {label}", runs / f"single, {label}", 1e-5)
