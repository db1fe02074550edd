"""Lisa against runs of its released trainer, and its turns against that trainer's own rules."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden_llama import batch_of, fit, golden, part, require_close, tiny_llama

from oneshot_lit.data.samplers import StreamSampler
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import Lisa
from oneshot_lit.methods.finetuning.lisa import ALIGNMENT, USER, add_proximal, aligns

DATA, FACTS = golden("lisa")
RUNS: dict[str, Any] = {
    name: steps for name, steps in FACTS["runs"].items() if isinstance(steps, list)
}
STATES = {"alignment": ALIGNMENT, "finetune": USER}


def rows(name: str) -> dict[str, Any]:
    ids = DATA[f"{name}.ids"]
    labels = ids.clone()
    labels[:, : FACTS["prompt_len"]] = -100
    return batch_of(ids, labels)


class Watched(Lisa):
    """Writes down which rows each step learned."""

    def compute_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        learned = self._learned(batch)["input_ids"]
        names = [n for n in DATA if n.endswith(".ids") and torch.equal(DATA[n].long(), learned)]
        self.batches = [*getattr(self, "batches", []), names[0].removesuffix(".ids")]
        return super().compute_loss(batch)


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run(tmp_path: Path, name: str) -> None:
    wanted = RUNS[name]
    given = {k: float(v) for k, v in re.findall(r"(\w+)=([\d.]+)", name)}
    # Without alignment rows there are no turns on them.
    turns = (0, 3) if "guide" in given else (int(given["K1"]), int(given["K2"]))
    model = tiny_llama(part(DATA, "w0."))
    for parameter, weight in model.named_parameters():
        weight.requires_grad_("q_proj" in parameter or "v_proj" in parameter)
    module = Watched(
        "tiny",
        alignment_step=turns[0],
        finetune_step=turns[1],
        rho=given.get("rho", 1.0),
        optimizer=lambda ps: torch.optim.SGD(ps, lr=FACTS["lr_sgd"]),
    )

    def batches(module: Any) -> list[dict[str, Any]]:
        numbers = module.streams(14)[ALIGNMENT].numbers(0)
        return [
            {**rows(f"user{n}"), "side": {ALIGNMENT: rows(f"align{numbers[n] % 3}")}}
            for n in range(14)
        ]

    epochs = int(given.get("epochs", 1))
    steps = fit(module, model, batches, tmp_path, max_epochs=epochs, max_steps=14)
    assert module.batches == [step["batch"] for step in wanted]
    for logged, step in zip(steps.logged, wanted, strict=True):
        assert logged["train/loss"] == pytest.approx(step["ce"], abs=1e-5)
        proximal = logged.get("train/proximal", 0.0)
        assert proximal == pytest.approx(step["prox"], abs=1e-5)
        assert logged["train/loss"] + proximal == pytest.approx(step["loss"], abs=1e-5)
    require_close(dict(model.named_parameters()), part(DATA, f"final[{name}]."), 2e-5)
    for turn, ending in ((ALIGNMENT, "alignment"), (USER, "finetune")):
        for parameter, weight in part(DATA, f"{ending}_weights[{name}].").items():
            own = module._left[turn][f"model.{parameter}"].view(weight.shape)
            torch.testing.assert_close(own, weight, atol=2e-5, rtol=0)


def test_both_of_no_steps_are_refused() -> None:
    assert FACTS.get("K1=0,K2=0", FACTS["runs"].get("K1=0,K2=0")) == "ZeroDivisionError"
    with pytest.raises(OneShotError, match="both are 0"):
        Lisa("tiny", alignment_step=0, finetune_step=0)
    for option in ("alignment_step", "finetune_step", "rho", "warmup_fraction"):
        with pytest.raises(OneShotError, match=f"model.{option}"):
            Lisa("tiny", **{option: -1})


@pytest.mark.parametrize("alignment_steps", [0, 1, 2, 5])
@pytest.mark.parametrize("user_steps", [0, 1, 3, 4])
def test_turns_against_the_rules_of_the_release(alignment_steps: int, user_steps: int) -> None:
    if alignment_steps == user_steps == 0:
        return
    state, clock = ("align" if alignment_steps else "user"), 0
    for step in range(60):
        ends = step != 0 and alignment_steps != 0 and user_steps != 0
        length = alignment_steps if state == "align" else user_steps
        if ends and clock % length == 0:
            state, clock = ("user" if state == "align" else "align"), 0
        assert aligns(step, alignment_steps, user_steps) == (state == "align"), step
        clock += 1


def test_the_proximal_term_against_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(3, 9, generator=generator, dtype=torch.float64) for _ in range(2)]
    names = "abc"
    gradients = dict(zip(names, draw[0].clone(), strict=True))
    anchor = dict(zip(names, draw[1], strict=True))
    weights = {n: w.clone().requires_grad_() for n, w in zip(names, draw[0] * 3, strict=True)}
    value = add_proximal(gradients, {n: w.detach() for n, w in weights.items()}, anchor, 0.7)
    term = 0.35 * sum((w - anchor[n]).square().sum() for n, w in weights.items())
    torch.testing.assert_close(value, term.detach())
    term.backward()
    for name, before in zip(names, draw[0], strict=True):
        torch.testing.assert_close(gradients[name], before + weights[name].grad)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("turns", [(2, 3), (1, 1), (0, 2), (2, 0)])
def test_no_user_batch_is_lost_if_asked(accumulate: int, turns: tuple[int, int]) -> None:
    """The batches that steps learn are the stream's, one after the other."""
    module = Lisa(
        "tiny", alignment_step=turns[0], finetune_step=turns[1], consume_user_batches="never"
    )
    trainer = SimpleNamespace(accumulate_grad_batches=accumulate, callbacks=[])
    module._trainer = trainer  # type: ignore[assignment]
    streams = module.streams(5)
    learned: dict[str, list[int]] = {"train": [], ALIGNMENT: []}
    for epoch in range(4):
        own = {name: list(stream.numbers(epoch)) for name, stream in streams.items()}
        steps = [epoch * -(-5 // accumulate) + n // accumulate for n in range(5)]
        for place, step in enumerate(steps):
            name = ALIGNMENT if module._aligns(step) else "train"
            learned[name].append(own[name][place])
    for numbers in learned.values():
        assert numbers == list(range(len(numbers)))
    assert sum(map(len, learned.values())) == 20
    module.consume_user_batches = "released"
    assert "train" not in module.streams(5)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stream_in_another_order(world_size: int) -> None:
    given = {"batches": 3, "batch_size": 4 // world_size, "world_size": world_size, "seed": 1}
    plain = [StreamSampler(7, rank=rank, **given) for rank in range(world_size)]
    numbers = {0: [0, 0, 1], 1: [1, 4, 2]}
    other = [
        StreamSampler(7, rank=rank, numbers=lambda e: numbers[e], **given)
        for rank in range(world_size)
    ]
    whole: list[list[int]] = []
    for epoch in range(2):
        for each in plain:
            each.set_epoch(epoch)
        own = [list(each) for each in plain]
        rows_of_all = [rows[i] for i in range(len(own[0])) for rows in own]
        whole += [rows_of_all[n : n + 4] for n in range(0, 12, 4)]
    for epoch in range(2):
        for each in other:
            each.set_epoch(epoch)
        own = [list(each) for each in other]
        rows_of_all = [rows[i] for i in range(len(own[0])) for rows in own]
        assert [rows_of_all[n : n + 4] for n in range(0, 12, 4)] == [
            whole[n] for n in numbers[epoch]
        ]
