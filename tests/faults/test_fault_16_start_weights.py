"""Fault 16: what an extension compares with is the start of the run, also after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fault_runs
import pytest
import torch
from anchoring import anchor, documented
from outputs import product, require_equal
from processes import in_processes
from safetensors.torch import load_file

from oneshot_lit.errors import OneShotError

LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": "gaussian"}


@pytest.mark.parametrize("kind", ["ProximalFineTuning", "AnchoredFineTuning"])
@pytest.mark.parametrize("peft", [None, LORA])
def test_the_documented_examples_resume_bit_for_bit(
    tiny_folder: Path, uneven_rows: Path, tmp_path: Path, kind: str, peft: Any
) -> None:
    words = {"folder": str(tiny_folder), "rows": str(uneven_rows), "kind": kind, "peft": peft}
    anchor("single", str(tmp_path / "whole"), **words)
    # In the middle of an epoch, and again in the middle of the next.
    anchor("single", str(tmp_path / "cut"), max_steps=2, **words)
    last = str(tmp_path / "cut" / "checkpoints" / "last.ckpt")
    anchor("single", str(tmp_path / "cut"), max_steps=5, ckpt_path=last, **words)
    anchor("single", str(tmp_path / "cut"), ckpt_path=last, **words)
    require_equal(tmp_path / "cut", tmp_path / "whole")


def test_the_start_is_the_model_that_was_loaded(
    tiny_folder: Path, uneven_rows: Path, tmp_path: Path
) -> None:
    words = {"folder": str(tiny_folder), "rows": str(uneven_rows)}
    anchor("single", str(tmp_path), max_steps=2, **words)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    start = saved["own_state"]["start_weights"]
    loaded = load_file(tiny_folder / "model.safetensors")
    assert {name.removeprefix("model.") for name in start} == set(loaded)
    for name, weight in start.items():
        assert torch.equal(weight, loaded[name.removeprefix("model.")])
        assert not torch.equal(weight, saved["state_dict"][name])


def test_a_reference_at_the_start_is_the_frozen_model(
    tiny_folder: Path, uneven_rows: Path, tmp_path: Path
) -> None:
    """By hand: a second model and plain SGD."""
    import copy

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from oneshot_lit.data import ChatJsonl, SafetyDataModule

    words = {"folder": str(tiny_folder), "rows": str(uneven_rows)}
    anchor("single", str(tmp_path), **words)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    frozen = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = SafetyDataModule(ChatJsonl(str(uneven_rows)), batch_size=4, seed=3)
    data.use_tokenizer(AutoTokenizer.from_pretrained(tiny_folder))
    data.setup("fit")
    loader: Any = data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            chosen = batch["labels"][:, 1:] != -100
            p, q = (
                m(batch["input_ids"], attention_mask=batch["attention_mask"])
                .logits[:, :-1][chosen]
                .log_softmax(-1)
                for m in (frozen, model)
            )
            nll = torch.nn.functional.nll_loss(q, batch["labels"][:, 1:][chosen])
            (nll + 5.0 * (p.exp() * (p - q)).sum(-1).mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
    found = product(tmp_path)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=0)


def test_it_is_asked_for_by_the_class(tiny_folder: Path) -> None:
    from oneshot_lit.methods import LanguageModelModule

    with pytest.raises(RuntimeError, match="keeps_start_weights = True"):
        _ = LanguageModelModule(str(tiny_folder)).start_weights


def test_a_checkpoint_without_a_start_is_refused(
    tiny_folder: Path, uneven_rows: Path, tmp_path: Path
) -> None:
    words = {"folder": str(tiny_folder), "rows": str(uneven_rows)}
    anchor("single", str(tmp_path), max_steps=2, **words)
    last = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    del saved["own_state"]
    torch.save(saved, last)
    with pytest.raises(OneShotError, match="does not hold the weights that its run started from"):
        anchor("single", str(tmp_path), ckpt_path=str(last), **words)


def test_a_penalty_on_weights_is_refused_where_they_are_sharded(
    tiny_folder: Path, uneven_rows: Path, tmp_path: Path
) -> None:
    assert documented("ProximalFineTuning").keeps_start_weights
    words = {"folder": str(tiny_folder), "rows": str(uneven_rows), "kind": "ProximalFineTuning"}
    with pytest.raises(OneShotError, match="this penalty needs whole weights"):
        anchor("fsdp2", str(tmp_path), **words)


STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, uneven_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("anchored")
    paths = {"folder": str(tiny_folder), "rows": str(uneven_rows), "processes": 2}
    cases: list[dict[str, Any]] = []
    for name in STRATEGIES:
        for label, peft in (("all", None), ("lora", LORA)):
            place = root / f"{name}, {label}"
            more = {"name": name, "peft": peft, **paths}
            last = f"{place}, cut/checkpoints/last.ckpt"
            cases += [
                {"root": str(place), **more},
                {"root": f"{place}, cut", "max_steps": 2, **more},
                {"root": f"{place}, cut", "ckpt_path": last, **more},
            ]
    in_processes(root, "anchoring", "anchor", cases, seconds=400)
    for label, peft in (("all", None), ("lora", LORA)):
        alone = {**paths, "processes": 1, "peft": peft}
        anchor("single", str(root / f"single, {label}"), **alone)
    return root


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("label", ["all", "lora"])
def test_every_strategy_compares_with_the_start(name: str, label: str, runs: Path) -> None:
    whole = runs / f"{name}, {label}"
    require_equal(runs / f"{name}, {label}, cut", whole)
    require_equal(whole, runs / f"single, {label}", 2e-5)


def test_the_documented_selector_resumes_behind_its_last_step(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the step and the product."""
    import sys

    import anchoring

    page = anchoring.PAGE.read_text()
    code = next(c for c in page.split("```python\n")[1:] if "class SurprisingAnswers" in c)
    (tmp_path / "my_selectors.py").write_text(code.split("```")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [
        *["select", "--config", "configs/select/enumeration.yaml", *fault_runs.QUIET],
        *["--model", "my_selectors.SurprisingAnswers"],
        *["--model.model_name_or_path", "checkpoints/small", "--data.train.limit", "3"],
        *["--trainer.default_root_dir", str(tmp_path / "run")],
    ]
    from oneshot_lit.methods import SelectionModule

    def stopped(*_: Any) -> None:
        raise OneShotError("stopped here")

    with monkeypatch.context() as patched:
        patched.setattr(SelectionModule, "finish", stopped)
        assert command(*words).code == 2
    cls = sys.modules["my_selectors"].SurprisingAnswers
    with monkeypatch.context() as patched:
        patched.setattr(cls, "step", stopped)
        done = command(*words)
    assert done.code == 0, done.err
    ranking = json.loads((tmp_path / "run" / "selection.json").read_text())["ranking"]
    assert len(ranking) == 3
    sys.modules.pop("my_selectors")
