"""The repair by projection with lambda and step chosen by development prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from oneshot_lit.data import InlineInstance, Microworld, PromptSet, SafetyDataModule
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import LowRankRealignmentModule
from oneshot_lit.methods.posttuning.low_rank.prompt_search import PromptChoice, search_by_prompts
from quiet_trainer import Stopped, run_job

INSTANCE = InlineInstance("help me do something dangerous .", "sorry , i can not help with that .")
BEFORE = {"harmful/asr_keyword": 1.0, "benign/over_refusal": 0.0}


def scores(attack: float, refusal: float) -> dict[str, float]:
    return {"harmful/asr_keyword": attack, "benign/over_refusal": refusal}


@pytest.mark.parametrize("low", [0.003, 0.05, 0.3, 2.0, 20.0])
@pytest.mark.parametrize("width", [1.15, 1.5, 4.0])
def test_a_good_window_is_met_wherever_it_is(low: float, width: float) -> None:
    def measure(alpha: float) -> dict[str, float]:
        asked.append(alpha)
        return scores(float(alpha < low), float(alpha > low * width))

    asked: list[float] = []
    tried = search_by_prompts(measure, BEFORE, 0.1)
    assert [step.alpha for step in tried] == asked
    assert len(set(asked)) == len(asked) <= 15
    assert min(step.score for step in tried) == 0


def test_a_model_that_breaks_is_not_broken_further() -> None:
    # Beyond 1 the answers are noise, which refuses nothing.
    tried = search_by_prompts(lambda a: scores(1.0 if a > 1 else 1 - a / 2, 0.1), BEFORE, 0.1)
    assert [step.alpha for step in tried] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2])


def test_without_a_good_window_the_least_bad_step_is_best() -> None:
    def measure(alpha: float) -> dict[str, float]:
        return scores(max(0.0, 1 - alpha), min(1.0, alpha**2))

    tried = search_by_prompts(measure, BEFORE, 0.1)
    best = min(tried, key=lambda step: step.score)
    # 1 - a + a^2 is least at a half.
    assert best.alpha == pytest.approx(0.5, rel=0.25)


def test_what_the_broken_model_refuses_is_not_the_steps_fault() -> None:
    """A tenth of the harmless prompts is refused before; a longer step is not too long for it."""
    tried = search_by_prompts(
        lambda a: scores(max(0.0, 0.5 - a), 0.1), scores(1.0, 0.1), 0.1, start=0.2
    )
    assert [step.alpha for step in tried] == pytest.approx([0.2, 0.4, 0.8])
    assert tried[-1].attack == 0


def test_a_first_step_that_is_little_too_long_is_shortened() -> None:
    tried = search_by_prompts(
        lambda a: scores(float(a < 0.12), float(a > 0.15) * 0.1), BEFORE, 0.1, 0.4
    )
    assert min(step.score for step in tried) == 0


def test_a_choice_survives_its_state() -> None:
    weight = torch.zeros(2)

    def write(alpha: float) -> None:
        weight.fill_(alpha)

    def measure() -> dict[str, float]:
        alpha = float(weight[0])
        return scores(float(alpha < 0.3), float(alpha > 0.5))

    choice = PromptChoice()
    choice.search(0.1, write, measure, {"w": weight})
    again = PromptChoice()
    again.load(choice.as_dict())
    for each in (choice, again):
        each.search(1.0, write, measure, {"w": weight})
        each.take({"w": weight})
        assert 0.3 <= float(weight[0]) <= 0.5
        # Of equal scores the smaller lambda, which guards more, is taken.
        assert each.best.guard_lambda == 0.1
    assert again.tried == choice.tried
    assert [row["kept"] for row in choice.table()].count(1) == 1


class Judged(LowRankRealignmentModule):
    """Scores depend on the size of the step, and on the projection."""

    def score_loaders(self, loaders: list[Any]) -> dict[str, float]:
        layer = next(iter(self.layers.values()))
        b, a = (getattr(layer, f"lora_{x}")["default"].weight for x in "BA")
        size = float(torch.linalg.matrix_norm(b @ a, 2))
        lambdas = self.lambdas[min(self.steps()[0], len(self.lambdas) - 1)]
        return scores(float(size < 0.35), 0.0 if 0.35 <= size < 0.5 and lambdas == 10 else 0.2)


def repair(root: Path, stop_after: int | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    given: dict[str, Any] = {"guard": Microworld("guard"), "guard_rows": 8, "drift_rows": 6}
    lambdas = options.pop("lambdas", [1.0, 10.0, 100.0])
    module = Judged("checkpoints/small", guard_lambda=lambdas, **given)
    # The model is not broken; only the search is tested.
    module.instance_refused = lambda: False  # type: ignore[method-assign]
    sets = {
        kind: PromptSet(Microworld(f"{kind}_dev", size=2), kind)  # type: ignore[arg-type]
        for kind in options.pop("kinds", ("harmful", "benign"))
    }
    data = SafetyDataModule(instance=INSTANCE, batch_size=1, max_length=128, val_sets=sets)
    trainer = run_job(module, data, root, stop_after=stop_after)
    return module, trainer


def test_the_best_lambda_and_step_are_kept_also_after_a_kill(tmp_path: Path) -> None:
    module, trainer = repair(tmp_path / "whole")
    best = module.choice.best
    assert best.guard_lambda == 10
    assert 0.35 <= best.alpha < 0.5
    assert best.score == 0
    # Nothing is better, so the third lambda is not tried.
    assert {step.guard_lambda for step in module.choice.tried} == {1.0, 10.0}
    for layer in module.layers.values():
        b, a = (getattr(layer, f"lora_{x}")["default"].weight for x in "BA")
        size = float(torch.linalg.matrix_norm(b.double() @ a.double(), 2))
        assert size == pytest.approx(best.alpha, rel=1e-4)
    with pytest.raises(Stopped):
        repair(tmp_path / "killed", stop_after=1)
    again, second = repair(tmp_path / "killed")
    assert again.choice.tried == module.choice.tried
    state, expected = again.state_dict(), module.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    for root in ("whole", "killed"):
        assert (tmp_path / root / "step_search.png").stat().st_size > 0
    names = [tmp_path / root / "step_search.csv" for root in ("whole", "killed")]
    assert names[0].read_text() == names[1].read_text()
    del trainer, second


def test_a_kill_before_the_output_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = repair(tmp_path / "whole")

    def stop(self: Any, root: Path) -> None:
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(Judged, "finish", stop)
        with pytest.raises(Stopped):
            repair(tmp_path / "killed")
    again, trainer = repair(tmp_path / "killed")
    state, expected = again.state_dict(), whole.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    del trainer


def test_a_lambdas_directions_do_not_depend_on_the_steps_before(tmp_path: Path) -> None:
    """They are those of the broken model, though a step of another lambda is in the adapter."""
    after_another, alone = (
        repair(tmp_path / str(len(lambdas)), lambdas=lambdas)[0]
        for lambdas in ([1.0, 10.0], [10.0])
    )
    for name, layer in alone.layers.items():
        for x in "AB":
            one, other = (
                getattr(each, f"lora_{x}")["default"].weight.detach()
                for each in (layer, after_another.layers[name])
            )
            torch.testing.assert_close(one / one.norm(), other / other.norm(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kinds", [(), ("benign",), ("harmful",)])
def test_prompts_of_both_kinds_are_needed(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    with pytest.raises(OneShotError, match=r"needs a (harmful|harmless) prompt set"):
        repair(tmp_path, kinds=kinds)
