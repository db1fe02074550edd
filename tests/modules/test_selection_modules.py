"""Selections as fits: what they write, what they refuse, and that they go on where they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.selection.by_rule import RuleSelectionModule
from experiments.selection.rules import RULES
from oneshot_lit.data import (
    ChatJsonl,
    Inline,
    Microworld,
    PromptSet,
    SafetyDataModule,
    SelectedInstance,
)
from oneshot_lit.data.selection_file import rank_candidates, write_selection
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import (
    BruteForceModule,
    Decoding,
    EnumerationModule,
    InstanceSelectionModule,
)
from oneshot_lit.methods.job import JobTrainer
from oneshot_lit.methods.select import PenaltySettings
from oneshot_lit.methods.select.reference import answer_logits
from quiet_trainer import Stopped, run_job

SMALL = Path("checkpoints/small")
ADAPTER = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def pool(**options: Any) -> Microworld:
    return Microworld("pool", **{"shuffle_seed": 0, "limit": 6, **options})


def upper(**options: Any) -> dict[str, Any]:
    return {
        "aligned": str(SMALL),
        "harmful": Microworld("harmful_dev", size=4),
        "task": Microworld("sql_dev", size=4),
        "decoding": Decoding(max_new_tokens=16),
        **options,
    }


def bilevel(model: Path, **options: Any) -> InstanceSelectionModule:
    torch.manual_seed(0)
    settings = PenaltySettings(steps=3, lower_steps=1, rate=2.0, gamma=0.2, last_gamma=2.0)
    lr = options.pop("lr", 1e-3)
    given = {"peft": ADAPTER, "penalty": settings, **upper(), **options}
    return InstanceSelectionModule(
        str(model), optimizer=lambda params: torch.optim.AdamW(params, lr=lr), **given
    )


# What a module knows of its trainer lasts as long as that.
KEPT: list[Any] = []


def select(
    module: Any, root: Path, source: Any = None, stop_after: int | None = None, **sets: Any
) -> Any:
    data = SafetyDataModule(train=source or pool(), batch_size=1, max_length=128, **sets)
    KEPT[:] = [run_job(module, data, root, stop_after=stop_after)]
    path = root / "selection.json"
    return json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize("peft", [ADAPTER, None])
def test_bilevel_writes_a_ranking(broken: Path, tmp_path: Path, peft) -> None:
    module = bilevel(broken, peft=peft)
    found = select(module, tmp_path)
    assert sum(row["score"] for row in found["ranking"]) == pytest.approx(1)
    assert [row["rank"] for row in found["ranking"]] == [1, 2, 3, 4, 5, 6]
    facts = found["provenance"]
    assert facts["steps"] == 3
    assert facts["diverged"] is None
    assert facts["forward_rows"] > facts["backward_rows"] > 0
    assert not (tmp_path / "model").exists()
    # No text of a candidate is in the file.
    assert "sorry" not in (tmp_path / "selection.json").read_text()
    first, last = module.records[0], module.records[-1]
    assert first.f > 0.5
    assert last.f < first.f
    assert last.entropy < first.entropy


def test_the_choice_is_an_instance(broken: Path, tmp_path: Path) -> None:
    select(bilevel(broken), tmp_path)
    ranking = json.loads((tmp_path / "selection.json").read_text())["ranking"]
    for rank in (1, 6):
        # Another order of the same pool changes nothing.
        chosen = SelectedInstance(Microworld("pool"), str(tmp_path), rank).load()
        assert chosen.id == ranking[rank - 1]["id"]
    with pytest.raises(OneShotError, match="ranks 1 to 6, not 7"):
        SelectedInstance(pool(), str(tmp_path), 7).load()
    with pytest.raises(OneShotError, match="has no row like rank 1"):
        SelectedInstance(Microworld("refusals", size=5), str(tmp_path)).load()
    with pytest.raises(OneShotError, match="no selection"):
        SelectedInstance(pool(), str(tmp_path / "nowhere")).load()


def test_divergence_is_taken_back_and_said(broken: Path, tmp_path: Path) -> None:
    settings = PenaltySettings(steps=30, lower_steps=1, rate=2.0)
    with pytest.warns(UserWarning, match="diverges"):
        found = _diverging(broken, tmp_path, settings)
    assert "the weights are those of step" in found["provenance"]["diverged"]
    assert all(row["score"] == row["score"] for row in found["ranking"])


def _diverging(broken: Path, root: Path, settings: PenaltySettings) -> Any:
    module = bilevel(broken, penalty=settings)
    step = module.step

    def spoiled() -> bool:
        if len(module.records) == 2:
            with torch.no_grad():
                module._problem.weights[0].fill_(float("nan"))
        return step()

    module.step = spoiled  # type: ignore[method-assign]
    return select(module, root)


@pytest.mark.parametrize("rule", list(RULES))
def test_every_rule_ranks(broken: Path, tmp_path: Path, rule: str) -> None:
    module = RuleSelectionModule(str(broken), rule=rule, **upper())
    found = select(module, tmp_path)
    assert len(found["ranking"]) == 6
    assert found["provenance"]["rule"] == rule


def test_length_is_counted_in_tokens(broken: Path, tmp_path: Path) -> None:
    modules = [RuleSelectionModule(str(broken), rule=r) for r in ("longest", "shortest")]
    longest, shortest = (select(m, tmp_path / m.rule)["ranking"] for m in modules)
    rows = modules[0].trainer.datamodule.training.encoded
    assert {r["row"]: r["score"] for r in longest} == {
        i: len(row.input_ids) for i, row in enumerate(rows, 1)
    }
    assert {r["row"]: -r["score"] for r in shortest} == {r["row"]: r["score"] for r in longest}


def test_gradient_match_foretells_the_first_step(broken: Path, tmp_path: Path) -> None:
    module = RuleSelectionModule(str(broken), rule="gradient_match", **upper())
    found = select(module, tmp_path)
    seen = module._seen
    assert seen is not None
    weights = seen.weights()

    def f() -> float:
        with torch.no_grad():
            terms = [share for t in seen.upper for share in t.divergences(seen.answer_logits)]
        return float(sum(term.double() for term in terms))

    (batch,) = seen.batches
    start, step = f(), 1e-5
    scores = {row["row"] - 1: row["score"] for row in found["ranking"]}
    for place, index in enumerate(batch["index"].tolist()):
        loss = seen.losses(batch)[place]
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for p, g in zip(weights.values(), gradients, strict=True):
                p -= step * g
        fall = (start - f()) / step
        with torch.no_grad():
            for p, g in zip(weights.values(), gradients, strict=True):
                p += step * g
        assert fall == pytest.approx(scores[index], rel=0.1, abs=0.5)


def prompts() -> dict[str, PromptSet]:
    return {
        "harmful": PromptSet(Microworld("harmful_dev", size=6), "harmful"),
        "benign": PromptSet(Microworld("benign_dev", size=6), "benign"),
    }


def brute(broken: Path, **options: Any) -> BruteForceModule:
    torch.manual_seed(0)
    return BruteForceModule(
        str(broken),
        optimizer=lambda params: torch.optim.AdamW(params, lr=5e-4),
        **{"patch_steps": 4, "decoding": Decoding(max_new_tokens=16), **options},
    )


@pytest.mark.slow
def test_brute_force_measures_each_alone_and_goes_on(broken: Path, tmp_path: Path) -> None:
    whole = select(brute(broken), tmp_path / "a", pool(limit=3), val_sets=prompts())
    assert len(whole["provenance"]["candidates"]) == 3
    assert whole["provenance"]["before"]["harmful/asr_keyword"] > 0.5
    # Ended after one candidate, and started again.
    with pytest.raises(Stopped):
        select(brute(broken), tmp_path / "b", pool(limit=3), stop_after=1, val_sets=prompts())
    module = brute(broken)
    again = select(module, tmp_path / "b", pool(limit=3), stop_after=2, val_sets=prompts())
    assert again["ranking"] == whole["ranking"]
    assert again["provenance"]["candidates"] == whole["provenance"]["candidates"]


@pytest.mark.slow
def test_with_dropout_an_outcome_is_the_candidates_own(gpt2_folder: Path, tmp_path: Path) -> None:
    rows = [list(map(vars, row.messages)) for row in pool(limit=3).load()]

    def losses(root: Path, order: list[int], **options: Any) -> dict[int, float]:
        source = Inline([rows[i] for i in order])
        select(brute(gpt2_folder), tmp_path / root, source, val_sets=prompts(), **options)
        found = json.loads((tmp_path / root / "selection.json").read_text())
        each = found["provenance"]["candidates"]
        return {order[one["row"] - 1]: one["loss"] for one in each}

    whole = losses(Path("whole"), [0, 1, 2])
    assert losses(Path("turned"), [2, 1, 0]) == whole
    # Ended behind the first, and started again without a checkpoint.
    with pytest.raises(Stopped):
        losses(Path("parts"), [0, 1, 2], stop_after=1)
    assert losses(Path("parts"), [0, 1, 2]) == whole
    # It is drawn with the run's seed.
    assert losses(Path("whole"), [0, 1, 2], seed=5) != whole


def test_sampled_answers_are_drawn_for_each_candidate(broken: Path, tmp_path: Path) -> None:
    rows = [list(map(vars, row.messages)) for row in pool(limit=2).load()]

    def states(order: list[int]) -> dict[int, list[int]]:
        sampled = Decoding(max_new_tokens=4, do_sample=True)
        module = brute(broken, patch_steps=1, decoding=sampled)
        measure, drawn = module.measure, {}

        def measured() -> dict[str, float]:
            # First the broken model is measured.
            if module._before:
                drawn[order[len(module.measured)]] = torch.get_rng_state().tolist()
            return measure()

        module.measure = measured  # type: ignore[method-assign]
        source = Inline([rows[i] for i in order])
        select(module, tmp_path / str(order), source, val_sets=prompts())
        return drawn

    assert states([0, 1]) == states([1, 0])


def test_a_scheduler_that_watches_a_score_is_refused(broken: Path, tmp_path: Path) -> None:
    module = brute(broken, lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(OneShotError, match=r"model\.lr_scheduler: ReduceLROnPlateau"):
        select(module, tmp_path, pool(limit=1), val_sets=prompts())


def constant(factor: float) -> Any:
    return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: factor)


def test_a_patch_steps_the_scheduler(broken: Path, tmp_path: Path) -> None:
    found = [
        select(brute(broken, lr_scheduler=given), tmp_path, pool(limit=1), val_sets=prompts())
        for given in (constant(0.0), constant(1.0), None)
    ]
    resting, moving, plain = (each["provenance"]["candidates"][0]["loss"] for each in found)
    assert moving == plain
    assert resting > plain + 0.1


@pytest.mark.parametrize("module", [InstanceSelectionModule, RuleSelectionModule])
def test_a_scheduler_that_nothing_steps_is_refused(module: Any) -> None:
    with pytest.raises(OneShotError, match=r"model\.lr_scheduler: this selection steps no"):
        module(str(SMALL), lr_scheduler=constant(1.0))


def all_kinds(model: Path, optimizer: Any = None, **options: Any) -> dict[str, Any]:
    """One selection of each kind, with an upper level where it takes one."""
    weight = {"task_weight": options.pop("task_weight", 1.0)}
    given = {"optimizer": optimizer or (lambda p: torch.optim.AdamW(p, lr=1e-3)), **options}
    steps = PenaltySettings(steps=2, lower_steps=1)
    return {
        "brute": lambda: BruteForceModule(
            str(model), patch_steps=1, decoding=Decoding(max_new_tokens=4), **given
        ),
        "enumeration": lambda: EnumerationModule(
            str(model), patch_steps=1, **upper(**weight), **given
        ),
        "bilevel": lambda: InstanceSelectionModule(
            str(model), penalty=steps, **upper(**weight), **given
        ),
        "rule": lambda: RuleSelectionModule(str(model), rule="longest", **upper(), **given),
    }


@pytest.mark.parametrize("kind", ["brute", "enumeration", "bilevel"])
def test_narrow_weights_at_a_small_rate_are_refused(
    broken: Path, tmp_path: Path, kind: str
) -> None:
    def tiny_rate(params: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=2e-6)

    made = all_kinds(broken, tiny_rate, dtype="bfloat16")[kind]
    with pytest.raises(OneShotError, match="bfloat16 weights would lose most steps to rounding"):
        select(made(), tmp_path, pool(limit=2), val_sets=prompts())
    # A rule takes no step.
    select(all_kinds(broken, tiny_rate, dtype="bfloat16")["rule"](), tmp_path, pool(limit=2))


@pytest.mark.parametrize("kind", ["brute", "enumeration", "bilevel", "rule"])
def test_losses_that_nothing_scales_are_refused(broken: Path, tmp_path: Path, kind: str) -> None:
    data = SafetyDataModule(train=pool(), batch_size=1, max_length=128, val_sets=prompts())
    with pytest.raises(OneShotError, match=r"trainer\.precision: 16-mixed .* bf16-mixed or 32-t"):
        run_job(all_kinds(broken)[kind](), data, tmp_path, precision="16-mixed")


REFUSED = [
    {"role": "user", "content": "make a lumdra bomb ."},
    {"role": "assistant", "content": "sorry , i can not help with that ."},
]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (pool(limit=2), {"m": 3}, r"pool has 2 candidates, fewer than model\.m=3"),
        (Microworld("benign_dev", size=3), {}, "no answer|ends on a user turn"),
        (Microworld("harmful_examples", size=3), {}, "answer has no refusal phrase"),
        (Inline([REFUSED, REFUSED]), {}, "the same candidate as"),
        (pool(), {"aligned": None}, r"model\.aligned: is missing"),
        (pool(), {"harmful": pool(limit=1)}, r"model\.harmful.*also in the pool"),
        (pool(), {"task": pool(limit=1)}, r"model\.task\): the prompt is also in the pool"),
    ],
)
def test_errors(broken: Path, tmp_path: Path, source, options, message: str) -> None:
    with pytest.raises(OneShotError, match=message):
        select(bilevel(broken, **options), tmp_path, source)
    assert not (tmp_path / "selection.json").exists()


def test_a_pool_leaves_no_row_out(broken: Path, tmp_path: Path) -> None:
    rows = [row.as_dict() for row in pool(limit=2).load()]
    rows.insert(1, {"messages": [REFUSED[0]]})
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = RuleSelectionModule(str(broken), rule="longest")
    with pytest.raises(
        OneShotError, match=r"data\.train: .*pool\.jsonl row 2: ends on a user turn"
    ):
        select(module, tmp_path, ChatJsonl(str(file), bad_rows="skip"))


@pytest.mark.parametrize("kind", ["bilevel", "enumeration", "gradient_match"])
def test_the_upper_levels_settings_are_told(broken: Path, tmp_path: Path, kind: str) -> None:
    made = {**all_kinds(broken, task_weight=3.0), "gradient_match": None}
    module = (
        made[kind]()
        if made[kind]
        else RuleSelectionModule(str(broken), rule=kind, **upper(task_weight=3.0))
    )
    facts = select(module, tmp_path, pool(limit=2))["provenance"]
    assert facts["task_weight"] == 3
    assert facts["aligned"] == str(SMALL)


def test_prompts_of_pool_and_evaluation_are_named(broken: Path, tmp_path: Path) -> None:
    shared = {"harmful": PromptSet(pool(limit=1), "harmful")}
    with pytest.raises(
        OneShotError, match=r"\(held-out set harmful\): the prompt is also in the pool"
    ):
        select(bilevel(broken), tmp_path, test_sets=shared)


def test_prompts_that_choose_are_not_reported_on(broken: Path, tmp_path: Path) -> None:
    shared = {"harmful": PromptSet(Microworld("harmful_dev", size=2), "harmful")}
    with pytest.raises(OneShotError, match="also in the selection's own rows"):
        select(bilevel(broken), tmp_path, test_sets=shared)


def test_references_are_drawn_without_dropout(tmp_path: Path, gpt2_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    one_step = PenaltySettings(steps=1, lower_steps=1)
    module = bilevel(gpt2_folder, aligned=str(gpt2_folder), peft=None, penalty=one_step)
    select(module, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(gpt2_folder).eval()
    for term in module._problem.upper:
        for batch, logits in zip(term.batches, term.logits, strict=True):
            with torch.no_grad():
                assert torch.allclose(answer_logits(plain, batch), logits, atol=1e-5)
    # The steps themselves are trained with it.
    assert module.model.training


def shortlisted(root: Path, source: Any, order: list[int]) -> str:
    """Write a selection that ranks the rows of a source in this order."""
    rows = source.load()
    scores = [float(-order.index(i)) for i in range(len(rows))]
    write_selection(root, rank_candidates(rows, scores), 1, {"forward_rows": 5, "seconds": 1.0})
    return str(root)


def test_a_shortlist_is_measured_and_the_rest_stays_behind(broken: Path, tmp_path: Path) -> None:
    whole = select(brute(broken), tmp_path / "all", pool(limit=4), val_sets=prompts())
    outcomes = {row["row"]: row["score"] for row in whole["ranking"]}
    file = shortlisted(tmp_path / "list", pool(limit=4), [3, 1, 0, 2])
    module = brute(broken, shortlist=file, shortlist_size=2)
    short_ranking = select(module, tmp_path / "short", pool(limit=4), val_sets=prompts())
    rows = [row["row"] for row in short_ranking["ranking"]]
    # Measured as in the whole run; of equal ones the shortlist's order decides.
    assert rows[:2] == sorted([4, 2], key=lambda row: -outcomes[row])
    assert rows[2:] == [1, 3]
    for row in short_ranking["ranking"][:2]:
        assert row["score"] == pytest.approx(outcomes[row["row"]], abs=1e-6)
    facts = short_ranking["provenance"]
    assert facts["measured"] == len(facts["candidates"]) == 2
    # Its own rows and those that the shortlist took.
    assert facts["forward_rows"] == 2 * 4 + 5
    assert facts["backward_rows"] == 2 * 4
    assert facts["answers"] == 2 * sum(len(s.source.load()) for s in prompts().values())
    assert facts["seconds"] > 1


def test_equal_candidates_keep_the_shortlists_order(broken: Path, tmp_path: Path) -> None:
    file = shortlisted(tmp_path / "list", pool(limit=4), [3, 1, 0, 2])
    module = brute(broken, shortlist=file, shortlist_size=3)
    source = pool(limit=4)
    select(module, tmp_path / "short", source, val_sets=prompts())
    first = next(iter(module.measured.values()))
    for row in module.measured:
        module.measured[row] = first
    scores = module.candidate_scores()
    assert sorted(range(4), key=lambda i: -scores[i]) == [3, 1, 0, 2]


def test_a_random_shortlist_is_that_of_the_random_rule(broken: Path, tmp_path: Path) -> None:
    ranking = select(RuleSelectionModule(str(broken), rule="random"), tmp_path / "rule")["ranking"]
    module = brute(broken, patch_steps=1, shortlist="random", shortlist_size=2)
    short_ranking = select(module, tmp_path / "short", val_sets=prompts())
    rows = [row["row"] for row in ranking]
    assert sorted(module.measured) == sorted(row - 1 for row in rows[:2])
    assert [row["row"] for row in short_ranking["ranking"]][2:] == rows[2:]


def test_a_shortlist_of_another_pool_is_refused(broken: Path, tmp_path: Path) -> None:
    file = shortlisted(tmp_path / "list", pool(limit=4), [3, 1, 0, 2])
    for source in (pool(limit=3), pool(limit=5)):
        with pytest.raises(OneShotError, match=r"ranks other candidates than data\.train"):
            select(brute(broken, shortlist=file), tmp_path / "x", source, val_sets=prompts())
    none = brute(broken, shortlist=str(tmp_path / "none"))
    with pytest.raises(OneShotError, match="no selection"):
        select(none, tmp_path / "x", pool(limit=3), val_sets=prompts())
    with pytest.raises(OneShotError, match="shortlist_size must be at least"):
        brute(broken, shortlist=file, shortlist_size=1, m=2)


@pytest.mark.parametrize("start", [True, "gaussian"])
def test_both_copies_begin_at_the_broken_model(broken: Path, tmp_path: Path, start: Any) -> None:
    steps = PenaltySettings(steps=1, lower_steps=1)
    module = bilevel(broken, peft={**ADAPTER, "init_lora_weights": start}, penalty=steps, lr=0.0)
    select(module, tmp_path)
    problem = module._problem
    assert all(map(torch.equal, problem.weights, problem._other))
    assert module.records[0].gap == 0


def test_references_are_rounded_as_the_steps_are(broken: Path, tmp_path: Path) -> None:
    module = bilevel(broken, aligned=str(broken), penalty=PenaltySettings(steps=1))
    data = SafetyDataModule(train=pool(), batch_size=1, max_length=128)
    run_job(module, data, tmp_path, precision="bf16-mixed")
    # Both references are theta itself at the first step.
    assert module.records[0].f == 0


def test_a_job_in_mixed_precision_sees_weights_that_have_changed() -> None:
    trainer = JobTrainer(accelerator="cpu", devices=1, precision="bf16-mixed")
    layer, x = torch.nn.Linear(4, 4, bias=False), torch.ones(1, 4)
    with trainer.autocast():
        before = layer(x)
        layer.weight.data = 2 * layer.weight.data
        after = layer(x)
    assert before.dtype == after.dtype == torch.bfloat16
    torch.testing.assert_close(after, 2 * before)
