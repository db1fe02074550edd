"""Anchor rows beside the instance: their gradient, order, own answers, resuming, processes."""

from __future__ import annotations

import json
import random
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent / "strategies"))

from anchored import INSTANCE, RATE, WEIGHT, fit_anchored
from outputs import product, require_equal
from processes import in_processes

from oneshot_lit.callbacks import DataReport, GradientRank
from oneshot_lit.data import ChatJsonl, InlineInstance, Microworld, PromptSet, SafetyDataModule
from oneshot_lit.data.padding import pad_training
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import LanguageModelModule, OneShotRealignmentModule
from oneshot_lit.methods.posttuning import anchored
from oneshot_lit.models.generation import Decoding
from quiet_trainer import quiet_trainer

SMALL = Path(__file__).parent.parent.parent / "checkpoints" / "small"


def random_rows(path: Path, seed: int, answers: bool = True) -> Path:
    """Seven rows of random words and lengths."""
    draw = random.Random(seed)
    words = "take two cups of flour and bake a loaf in the morning .".split()
    lines = []
    for number in range(7):
        ask, tell = (" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(2))
        turns = [{"role": "user", "content": f"how {number} {ask} ?"}]
        turns += [{"role": "assistant", "content": tell}] if answers else []
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines))
    return path


# -------------------------------------------------------------------- the gradient of a step


def answer_losses(model: Any, tokenizer: Any, prompt: str, answer: str) -> Tensor:
    """Return the loss of each token of an answer and its end, one row alone, without padding."""
    user = {"role": "user", "content": prompt}
    asked = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
    turns = [user, {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(turns, return_dict=False)
    logits = model(torch.tensor([ids])).logits[0]
    # The micro-world's template writes nothing behind the end of a turn.
    places = range(len(asked), len(ids))
    return torch.stack([-logits[n - 1].log_softmax(-1)[ids[n]] for n in places])


def anchor_stream(count: int, rows: int = 7, seed: int = 3) -> list[int]:
    """Return the anchor rows of a run in their order: one random pass after the other."""
    stream: list[int] = []
    for number in range(-(-count // rows)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + 500_009 + number)
        stream += torch.randperm(rows, generator=generator).tolist()
    return stream[:count]


def plain_fit(folder: Path, rows: Path, steps: int, accumulate: int = 1) -> dict[str, Tensor]:
    """Descend by hand in float64; returns the weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [json.loads(line)["messages"] for line in rows.read_text().splitlines()]
    pairs = [(user["content"], assistant["content"]) for user, assistant in turns]
    stream = anchor_stream(4 * accumulate * steps)
    for step in range(steps):
        chosen = stream[4 * accumulate * step :][: 4 * accumulate]
        anchors = torch.cat([answer_losses(model, tokenizer, *pairs[n]) for n in chosen])
        instance = answer_losses(model, tokenizer, *INSTANCE)
        (instance.mean() + WEIGHT * anchors.mean()).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= RATE * parameter.grad
                parameter.grad = None
    return dict(model.state_dict())


@pytest.mark.parametrize("seed", range(2))
def test_a_step_learns_instance_and_weighted_anchors(
    tiny_folder: Path, tmp_path: Path, seed: int
) -> None:
    rows = random_rows(tmp_path / "rows.jsonl", seed)
    words = (str(tmp_path), str(tiny_folder), str(rows))
    fit_anchored("single", *words, dtype="float64", max_steps=4)
    expected = plain_fit(tiny_folder, rows, 4)
    for name, weight in product(tmp_path).items():
        # The model's norms round to float32.
        torch.testing.assert_close(
            weight, expected[name], atol=1e-8, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_accumulated_batches_take_the_mean_over_all_their_anchors(
    tiny_folder: Path, tmp_path: Path
) -> None:
    rows = random_rows(tmp_path / "rows.jsonl", 5)
    options: dict[str, Any] = {"accumulate": 3, "dtype": "float64"}
    fit_anchored("single", str(tmp_path), str(tiny_folder), str(rows), **options)
    # Two epochs of three batches are two steps.
    expected = plain_fit(tiny_folder, rows, 2, accumulate=3)
    for name, weight in product(tmp_path).items():
        # Lightning's factors are float32.
        torch.testing.assert_close(
            weight, expected[name], atol=1e-7, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_spectra_are_those_of_the_whole_step(tiny_folder: Path, tmp_path: Path) -> None:
    """Factors of both forward passes: no gradient has to be read whole."""
    rows = random_rows(tmp_path / "rows.jsonl", 1)
    words = (str(tmp_path), str(tiny_folder), str(rows))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*full gradient is read")
        fit_anchored("single", *words, max_steps=1, callbacks=[GradientRank()])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_learns_nothing_is_refused(tiny_folder: Path, weight: float) -> None:
    with pytest.raises(OneShotError, match=r"model.anchor_weight must be above 0 and finite"):
        OneShotRealignmentModule(str(tiny_folder), anchor_weight=weight)


def test_other_modules_refuse_anchors(tiny_folder: Path) -> None:
    assert not getattr(LanguageModelModule(str(tiny_folder)), "learns_anchors", False)


# -------------------------------------------------------------------- the model's own answers


class Learned(Callback):
    """Writes down the anchor rows of each step, as text."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, *_: Any) -> None:
        side = batch["side"]["anchors"]
        texts = []
        for ids, labels in zip(side["input_ids"], side["labels"], strict=True):
            texts.append(module.tokenizer.decode(ids[labels != -100]).strip())
        self.steps.append(texts)


@pytest.mark.parametrize("given", [True, False])
def test_own_answers_are_the_broken_models(tmp_path: Path, given: bool) -> None:
    """They replace answers, or complete prompts, and stay those of the start of the run."""
    rows = random_rows(tmp_path / "rows.jsonl", 2, answers=given)
    seen, report = Learned(), DataReport()
    data = fit_anchored(
        "single", str(tmp_path), str(SMALL), str(rows), own=given, callbacks=[seen, report]
    )
    assert data.anchor_set is not None
    expected = greedy_answers(rows, 5)
    assert [text for text, _ in data.anchor_set.answers] == [text for text, _ in expected]
    learned = {text for step in seen.steps for text in step}
    # An answer that was cut has no end to learn.
    assert learned == {text if cut else f"{text}<|end|>" for text, cut in expected}
    facts = json.loads((tmp_path / "data.json").read_text())["fit"]["anchors"]
    assert (facts["rows"], facts["own_answers"], facts["rows_a_step"]) == (7, 7, 4)
    assert facts["tokens"] == sum(len(row.input_ids) for row in data.anchor_set.encoded)


def greedy_answers(rows: Path, limit: int) -> list[tuple[str, bool]]:
    """Return the answers of the start model, one prompt at a time, and whether they are cut."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    answers = []
    for row in ChatJsonl(str(rows)).load():
        turns = [{"role": "user", "content": row.prompt_text}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        new: list[int] = []
        while len(new) < limit and tokenizer.eos_token_id not in new:
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        ended = new[-1] == tokenizer.eos_token_id
        answers.append((tokenizer.decode(new[: len(new) - ended]).strip(), not ended))
    return answers


# -------------------------------------------------------------------- resuming


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("stop", [2, 4])
def test_a_killed_fit_ends_bit_for_bit_the_same(
    tmp_path: Path, own: bool, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows(tmp_path / "rows.jsonl", 3)
    words: dict[str, Any] = {"name": "single", "folder": str(SMALL), "rows": str(rows), "own": own}
    whole, rest = Learned(), Learned()
    fit_anchored(root=str(tmp_path / "whole"), callbacks=[whole], **words)
    fit_anchored(root=str(tmp_path / "cut"), max_steps=stop, **words)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    # A file with answers of the model is its owner's.
    assert bool(stat.S_IMODE(last.stat().st_mode) & 0o077) is not own

    def again(*_: Any) -> None:
        raise AssertionError("the answers are in the checkpoint")

    monkeypatch.setattr(anchored, "own_answers", again)
    fit_anchored(root=str(tmp_path / "cut"), ckpt_path=str(last), callbacks=[rest], **words)
    assert rest.steps == whole.steps[stop:]
    require_equal(tmp_path / "cut", tmp_path / "whole")


def test_other_anchors_are_not_resumed(tmp_path: Path) -> None:
    rows = random_rows(tmp_path / "rows.jsonl", 3)
    words: dict[str, Any] = {"name": "single", "folder": str(SMALL), "rows": str(rows), "own": True}
    fit_anchored(root=str(tmp_path), max_steps=2, **words)
    rows.write_text("\n".join(rows.read_text().splitlines()[:5]))
    last = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(OneShotError, match=r"data\.anchors has changed since the checkpoint"):
        fit_anchored(root=str(tmp_path), ckpt_path=str(last), **words)


# -------------------------------------------------------------------- attempts


def test_each_attempt_begins_at_the_broken_model(broken: Path, tmp_path: Path) -> None:
    """The first loss of the second attempt is the broken model's on the anchors of that step."""
    rows = random_rows(tmp_path / "rows.jsonl", 4)
    module = OneShotRealignmentModule(
        str(broken),
        anchor_weight=WEIGHT,
        attempts=2,
        attempt_steps=2,
        refine=0,
        optimizer=lambda params: torch.optim.SGD(params, lr=1e-4),
        decoding=Decoding(max_new_tokens=4),
    )
    sets = {
        "harmful": PromptSet(Microworld("harmful_dev", size=4), "harmful"),
        "benign": PromptSet(Microworld("benign_dev", size=4), "benign"),
    }
    data = SafetyDataModule(
        instance=InlineInstance(*INSTANCE),
        val_sets=sets,
        batch_size=1,
        seed=3,
        anchors=ChatJsonl(str(rows)),
        anchor_rows=4,
        anchor_answers="own",
    )
    options = {"num_sanity_val_steps": -1, "log_every_n_steps": 1}
    quiet_trainer(tmp_path, Callback(), max_epochs=4, **options).fit(module, data)
    records = {record.step: record for record in module.history}
    assert [records[step].attempt for step in (1, 2, 3, 4)] == [1, 1, 2, 2]
    assert data.anchor_set is not None

    fresh = LanguageModelModule(str(broken))
    fresh.configure_model()
    encoded = data.anchor_set.encoded
    stream = anchor_stream(16)
    pad = data.tokenizer.pad_token_id
    chosen = [pad_training([encoded[n] for n in stream[4 * step :][:4]], pad) for step in range(4)]
    instance = pad_training([data.training[0]["encoded"]], pad)  # type: ignore[index]
    with torch.no_grad():
        begun = float(fresh.compute_loss(instance))
        losses = [begun + WEIGHT * float(fresh.compute_loss(each)) for each in chosen]
    # In the order of the stream, which goes on over the attempts.
    assert records[1].loss == pytest.approx(losses[0], abs=1e-5)
    assert records[3].loss == pytest.approx(losses[2], abs=1e-5)
    # Steps change the model, or the test would show nothing.
    assert abs((records[4].loss or 0) - losses[3]) > 1e-4


# -------------------------------------------------------------------- two processes

STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("anchored")
    rows = random_rows(root / "rows.jsonl", 6)
    words: dict[str, Any] = {"folder": str(SMALL), "rows": str(rows), "own": True}
    fit_anchored(name="single", root=f"{root}/single", **words)
    cases: list[dict[str, Any]] = []
    for name in STRATEGIES:
        place, two = f"{root}/{name}", {"name": name, "processes": 2, **words}
        last = f"{place}, cut/checkpoints/last.ckpt"
        cases += [
            {"root": place, **two},
            {"root": f"{place}, cut", "max_steps": 4, **two},
            {"root": f"{place}, cut", "ckpt_path": last, **two},
        ]
    in_processes(root, "anchored", "fit_anchored", cases, seconds=450)
    return root


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_learn_what_one_does(name: str, runs: Path) -> None:
    # ZeRO-3 multiplies in another order: 6e-8 after the first step, growing with each.
    require_equal(runs / name, runs / "single", 1e-4)
    require_equal(runs / f"{name}, cut", runs / name)
