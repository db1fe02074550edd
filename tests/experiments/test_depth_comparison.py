"""The figures of depth studies: frontiers, held-out scores, causes and correlations."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from depths import CURVES, curve, entry, finished, measures, search, spec, spec_file, write_csv
from scipy import stats

from experiments.real_depth.comparison import compare, scores
from experiments.real_depth.findings import findings, reach_table
from experiments.real_depth.frontier import Point, attainable, held_out, read_points, staircase
from experiments.real_depth.page import render_page
from experiments.real_depth.pictures import frontier_by_depth, predictors_picture
from experiments.real_depth.prediction import clustered_spearman, permutation_p
from experiments.real_depth.spec import load_spec
from experiments.selection.studies import read_studies
from oneshot_lit.errors import OneShotError
from oneshot_lit.study.spec import load_study

SHIPPED = Path("experiments/real_depth/depth.yaml")


def compared(root: Path, *seeds: int, **changes: Any) -> dict[str, Any]:
    studies = read_studies([finished(root / str(s), s, shift=0.0625 * s) for s in seeds])
    return compare(spec(root / "depth.yaml", **changes), studies, measures(*seeds))


# ------------------------------------------------------------------------------ frontiers


def test_steps_of_a_training_and_of_a_search(tmp_path: Path) -> None:
    finished(tmp_path, 0)
    points = read_points(tmp_path / "flat_one")
    assert [(p.refused, p.over_refusal) for p in points] == [
        (refused, max(benign, near)) for refused, benign, near in CURVES["flat"]
    ]
    assert [p.kept for p in points] == [False, False, True, False]
    assert [p.repaired for p in points] == [False, True, True, True]
    tried = read_points(tmp_path / "steep_guarded")
    assert tried == [Point(0.75, 0.0), Point(1.0, 0.05, kept=True)]


def test_attainable_and_its_staircase_agree_with_all_points() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        drawn = rng.integers(0, 33, (12, 2)) / 32
        points = [Point(*row) for row in drawn.tolist()]
        stairs = staircase(points)
        assert stairs == sorted(stairs)
        for bound in (0.0, 0.05, 1 / 32, 0.3, 1.0):
            inside = drawn[drawn[:, 1] <= bound, 0]
            expected = inside.max() if len(inside) else 0.0
            assert attainable(points, bound) == expected
            below = [refused for over, refused in stairs if over <= bound]
            assert (below[-1] if below else 0.0) == expected
    # Doing nothing is always possible.
    assert attainable([Point(1.0, 0.5)], 0.05, attacked=0.25) == 0.25


def test_held_out_counts_and_what_they_need() -> None:
    sets = held_out(entry(0.25, 0.0625), "s")
    assert sets["harmful"] == {"refused": 8, "n": 32, "harmful": True}
    assert sets["near_miss"] == {"refused": 2, "n": 32, "harmful": False}
    half = entry(0.25, 0.0625)
    half["metrics"] = {"harmful/asr_keyword": 0.75}
    with pytest.raises(OneShotError, match=r"stages\.s\.test: needs a set of harmful"):
        held_out(half, "s")


def test_missing_tables(tmp_path: Path) -> None:
    with pytest.raises(OneShotError, match="no table of its steps"):
        read_points(tmp_path)
    write_csv(tmp_path / "step_search.csv", [{"alpha": 1, "drift": 0.1}])
    with pytest.raises(OneShotError, match="not chosen by prompts"):
        read_points(tmp_path)


# ------------------------------------------------------------------------- over the seeds


def test_figures_of_one_seed(tmp_path: Path) -> None:
    results = compared(tmp_path, 0)
    flat, steep = (results["cases"][case]["repairs"] for case in ("flat", "steep"))
    # At most one of 32 prompts: the second step of the flat curve is past that.
    assert flat["one"]["attainable"]["value"] == 0.25
    assert steep["one"]["attainable"]["value"] == 1.0
    assert flat["guarded"]["attainable"]["value"] == 0.125
    assert steep["guarded"]["attainable"]["value"] == 1.0
    assert steep["guarded"]["attainable"]["low"] is None
    held = flat["one"]["held_out"]
    assert (held["refused"]["value"], held["over_refusal"]["value"]) == (0.25, 0.0625)
    assert results["contrasts"]["slope"]["one"]["value"] == 0.75
    lines = "\n".join(findings(results))
    assert "in 1 of 2 cases (steep); in the others less: flat (0.25)." in lines
    assert "one refusal +0.75 (one seed)" in lines
    assert "within 0.05 in 1 of 2 models, and refuses at least 95% as well in 1." in lines


def test_a_search_counts_from_the_attacked_model(tmp_path: Path) -> None:
    finished(tmp_path, 0)
    # The model before the first step refuses more than any step within the bound.
    rows = (tmp_path / "flat_one" / "realignment.csv").read_text()
    assert "\n0,1,0,1.0,,1.0," in rows
    table = rows.replace("\n0,1,0,1.0,,1.0,", "\n0,1,0,1.0,,0.6875,")
    (tmp_path / "flat_one" / "realignment.csv").write_text(table)
    search(tmp_path / "flat_guarded", [(0.9, 0.5)], kept=0)
    results = compare(spec(tmp_path / "depth.yaml"), read_studies([tmp_path]), measures(0))
    assert results["cases"]["flat"]["repairs"]["guarded"]["attainable"]["value"] == 0.3125


def test_a_repair_that_goes_on_from_another_is_no_attacked_model_at_first(tmp_path: Path) -> None:
    finished(tmp_path, 0)
    curve(tmp_path / "flat_more", [(1.0, 0.5, 0.0), (0.5, 0.0, 0.0)], kept=1)
    file = tmp_path / "results.json"
    content = json.loads(file.read_text())
    content["stages"]["flat_more"] = entry(0.5, 0.0) | {"from": "flat_guarded"}
    file.write_text(json.dumps(content))
    own = spec(tmp_path / "depth.yaml", repairs={"one": "one", "more": "more"})
    results = compare(own, read_studies([tmp_path]), measures(0))
    # Its first step refuses everything, beyond the bound.
    assert results["cases"]["flat"]["repairs"]["more"]["attainable"]["value"] == 0.5


def test_figures_over_seeds(tmp_path: Path) -> None:
    results = compared(tmp_path, 0, 1, 2)
    own = results["cases"]["steep"]["repairs"]["one"]
    values = [1.0, 0.9375, 0.875]
    assert list(own["attainable"]["by_seed"].values()) == values
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert own["attainable"]["low"] == pytest.approx(low)
    assert own["attainable"]["high"] == pytest.approx(min(1, high))
    # 32, 30 and 28 of 32 prompts each.
    refused = own["held_out"]["refused"]
    assert (refused["value"], refused["n"], refused["method"]) == (90 / 96, 96, "wilson")
    z, p, n = stats.norm.ppf(0.975), 90 / 96, 96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert refused["low"] == pytest.approx(middle - half)
    assert refused["high"] == pytest.approx(middle + half)
    assert refused["seeds"]["value"] == pytest.approx(90 / 96)
    gaps = results["contrasts"]["slope"]["one"]
    assert gaps["value"] == pytest.approx(0.75)
    assert (gaps["n"], gaps["low"]) == (3, None)
    assert "(the same at every seed)" in "\n".join(findings(results))


def test_the_worst_harmless_set_counts(tmp_path: Path) -> None:
    studies = read_studies([finished(tmp_path, 0)])
    stage = studies[0].results["stages"]["flat_one"]
    stage["metrics"]["benign/over_refusal"] = 0.5
    assert scores("flat_one", studies)["over_refusal"]["value"] == 0.5


# -------------------------------------------------------------------------- correlations


def test_correlation_over_whole_cases() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 1))
    y = x + rng.normal(size=(6, 1))
    # Three seeds of one case tell nothing new: the interval must stay that of the cases.
    alone = [[(float(a), float(b))] for a, b in zip(x[:, 0], y[:, 0], strict=True)]
    thrice = [pairs * 3 for pairs in alone]
    one, three = clustered_spearman(alone), clustered_spearman(thrice)
    assert one.value == pytest.approx(stats.spearmanr(x[:, 0], y[:, 0]).statistic)
    assert three.value == pytest.approx(one.value)
    assert (three.low, three.high) == pytest.approx((one.low, one.high))
    assert one.low < one.value <= one.high
    # Rows that are drawn alone would narrow it.
    apart = clustered_spearman([[pair] for pairs in thrice for pair in pairs])
    assert apart.high - apart.low < 0.8 * (three.high - three.low)


def test_correlation_of_noise_covers_zero_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for n in range(40):
        groups = [[tuple(rng.normal(size=2))] for _ in range(12)]
        estimate = clustered_spearman(groups, seed=n)
        covered += estimate.low <= 0 <= estimate.high
    assert 33 <= covered <= 40


def test_permutations_agree_with_all_of_them() -> None:
    rng = np.random.default_rng(4)
    for _ in range(5):
        data = rng.normal(size=(5, 2, 2))
        data[..., 1] += 0.7 * data[..., 0]
        groups = [[tuple(pair) for pair in group] for group in data.tolist()]
        own = stats.spearmanr(data[..., 0].ravel(), data[..., 1].ravel()).statistic
        every = [
            stats.spearmanr(data[list(order), :, 0].ravel(), data[..., 1].ravel()).statistic
            for order in permutations(range(5))
        ]
        exact = np.mean(np.abs(every) >= abs(own) - 1e-9)
        assert permutation_p(groups) == pytest.approx(exact, abs=0.04)


def test_more_seeds_are_no_more_evidence() -> None:
    rng = np.random.default_rng(5)
    few = [[tuple(rng.normal(size=2))] for _ in range(8)]
    assert permutation_p([pairs * 3 for pairs in few]) == permutation_p(few)
    # Taken for independent, noise seen three times looks like evidence.
    apart = permutation_p([[pair] for pairs in few for pair in pairs * 3])
    assert apart < permutation_p(few)
    assert permutation_p([[(1.0, 1.0)], [(2.0, 2.0), (3.0, 3.0)]]) is None


def test_p_values_are_adjusted_for_the_predictors(tmp_path: Path) -> None:
    rows = compared(tmp_path, 0, 1)["prediction"]["one"].values()
    known = [row for row in rows if row["p"] is not None]
    assert len(known) == 9
    assert all(row["p_adjusted"] == min(1.0, 9 * row["p"]) for row in known)


def test_correlations_that_cannot_be(tmp_path: Path) -> None:
    assert clustered_spearman([[(1.0, 1.0)], [(1.0, 2.0)]]).value is None
    few = clustered_spearman([[(1.0, 1.0)], [(2.0, 2.0)], [(3.0, 3.0)]])
    assert (few.value, few.low) == (pytest.approx(1.0), None)
    table = compared(tmp_path, 0, 1)["prediction"]["one"]
    assert table["probe_benign"]["value"] is None
    # Ranks 1, 2, 3, 4 of the measure against 2, 1, 4, 3 of the outcome.
    assert table["stable_rank"]["value"] == pytest.approx(0.6)


# --------------------------------------------------------------------- pictures and page


def test_pictures_show_every_case(tmp_path: Path) -> None:
    results = compared(tmp_path, 0, 1)
    figure = frontier_by_depth(results)
    assert [axes.get_title() for axes in figure.axes] == ["flat", "steep"]
    line, *_ = figure.axes[1].lines
    bounds, best = line.get_data()
    # The mean of two seeds, 1.0 and 0.9375, from one of 32 prompts on.
    assert best[np.searchsorted(bounds, 0.035)] == pytest.approx(0.96875)
    assert best[0] == pytest.approx((0.5 + 0.4375) / 2)
    page = render_page(results, {"phrase_list": "v"})
    assert page.count("data:image/png") == 2
    assert "steep: one refusal" in page
    picture = predictors_picture(results)
    panel = picture.axes[0]
    assert len(panel.lines) == 2 * 2 * 2
    assert sorted({float(line.get_xdata()[0]) for line in panel.lines}) == pytest.approx(
        [0.0, 0.01, 0.1, 0.11]
    )
    assert reach_table(results).row_count == 2


# ----------------------------------------------------------------------------- the files


def test_the_shipped_comparison_fits_the_shipped_study() -> None:
    shipped, study = load_spec(SHIPPED), load_study(Path("configs/study/real_depth.yaml"))
    names = {stage.name: stage for stage in study.stages}
    for case, body in shipped.cases.items():
        assert names[case].model == body["aligned"]
    repaired = {f"{case}_{repair}" for case in shipped.cases for repair in shipped.repairs}
    compared_stages = repaired & set(names)
    bases = {*shipped.cases, *(body["aligned"] for body in shipped.cases.values())}
    assert set(names) == compared_stages | bases
    # What is measured is the instance that the repairs use, drawn by the same seed.
    command = names["deep_strong_one"].commands["fit"]
    assert command.set["data.instance.id"] == shipped.instance
    assert command.set["data.instance.source.seed"] == study.seed
    for pair in shipped.contrasts.values():
        shared = [{r for r in shipped.repairs if f"{case}_{r}" in names} for case in pair]
        assert shared[0] & shared[1]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"repair": {}}, "unknown key 'repair' .did you mean 'repairs'"),
        ({"world": "atlantis"}, "world: must be one of fairytale, microworld"),
        ({"contrasts": {"c": ["flat", "step"]}}, "contrasts.c: 'step' is no case"),
        ({"contrasts": {"c": ["flat"]}}, "contrasts.c: '' is no case"),
        ({"cases": {"flat": {"title": "f"}}}, "cases.flat: needs 'title' and 'aligned'"),
        ({"bound": 2}, "bound: needs a share"),
    ],
)
def test_mistakes_in_a_spec(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(OneShotError, match=part):
        load_spec(spec_file(tmp_path / "depth.yaml", **changes))


def test_a_repair_without_stages(tmp_path: Path) -> None:
    with pytest.raises(OneShotError, match=r"repairs\.tenn: no case has a stage for it"):
        compared(tmp_path, 0, repairs={"one": "one", "tenn": "ten"})
