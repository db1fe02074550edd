"""What a study of selections says, in plain sentences, whichever way it came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from oneshot_lit.study.selectors import general_against_category


def said(found: Mapping[str, Any]) -> list[str]:
    """Return what the comparison of `selectors.compare_selectors` says."""
    return [
        _winner(found),
        *([] if found["question"] is None else [_question(found["question"], found)]),
        *_groups(found),
        _confirmation(found),
        *_controls(found),
        *_general(found),
    ]


def others(found: Mapping[str, Any]) -> list[str]:
    """Return the selectors without the ground truth, best first."""
    names = [n for n in found["selectors"] if n != found["truth"]]
    return sorted(
        names, key=lambda n: (n != found["winner"], found["selectors"][n]["regret"]["value"])
    )


def _winner(found: Mapping[str, Any]) -> str:
    name, all_ = found["winner"], found["selectors"]
    loss = all_[name]["regret"]["value"]
    equal = [n for n in others(found)[1:] if round(all_[n]["regret"]["value"] - loss, 9) == 0]
    also = f", no less than {_list(equal)}" if equal else ""
    second = next((n for n in others(found)[1:] if n not in equal), None)
    behind = (
        "" if second is None else f" The next, {second}, loses {interval(all_[second]['regret'])}."
    )
    lost = interval(all_[name]["regret"])
    return (
        f"{name} wins over {len(found['cases'])} cases: its picks lose {lost} "
        f"against the best candidate on development prompts{also}, a pick drawn at random "
        f"{interval(found['chance_regret'])}.{behind}"
    )


def _question(name: str, found: Mapping[str, Any]) -> str:
    """Say of one selector whether it beats chance."""
    row = found["selectors"][name]
    beats = {"above": "beats", "below": "is worse than", "": "is not shown to beat"}
    return (
        f"{name} {beats[_side(row['gain_over_chance'])]} a random pick: its picks lose "
        f"{interval(row['regret'])}, a gain of {interval(row['gain_over_chance'])}; mean Spearman "
        f"with brute force {interval(row['spearman'])}."
    )


def _groups(found: Mapping[str, Any]) -> list[str]:
    """Say which selectors' picks and rankings are better than chance, which are not shown to be."""
    lines = []
    for key, words in (
        (
            "gain_over_chance",
            {
                "above": "Picks better than random ones (gain)",
                "": "Picks not shown to differ from random ones",
                "below": "Picks worse than random ones",
            },
        ),
        (
            "spearman",
            {
                "above": "Rankings better than chance (mean Spearman)",
                "": "Rankings not shown to differ from chance",
                "below": "Rankings worse than chance",
            },
        ),
    ):
        for side, text in words.items():
            estimates = {n: found["selectors"][n][key] for n in others(found)}
            parts = [f"{n} {interval(e)}" for n, e in estimates.items() if _side(e) == side]
            if parts:
                lines.append(f"{text}: {'; '.join(parts)}.")
    return lines


def _controls(found: Mapping[str, Any]) -> list[str]:
    """Say what the controls come to on held-out prompts."""
    return [
        f"{text}: attack success plus over-refusal {interval(row['held_out'])} on held-out "
        f"prompts, at most {row['gap']:+.3f} beside brute force's pick."
        for text, row in found["controls"].items()
    ]


def _side(estimate: Mapping[str, Any]) -> str:
    """Return which side of 0 the interval lies on; nothing if it holds 0 or there is none."""
    if estimate["low"] is None or estimate["low"] <= 0 <= estimate["high"]:
        return ""
    return "above" if estimate["low"] > 0 else "below"


def _confirmation(found: Mapping[str, Any]) -> str:
    name, goal = found["winner"], found["goal"]
    rows = {c["title"]: c["selectors"][name]["held_out"] for c in found["cases"].values()}
    missed = [f"{title} ({row['gap']:+.3f})" for title, row in rows.items() if row["gap"] > goal]
    start = "On held-out prompts, attack success plus over-refusal after"
    if missed:
        return (
            f"{start} {name}'s pick is more than {goal:g} above that after brute force's in "
            f"{'; '.join(missed)}."
        )
    worst = max(row["gap"] for row in rows.values())
    return (
        f"{start} {name}'s pick is within {goal:g} of that after brute force's in every case "
        f"(at most {worst:+.3f})."
    )


def _general(found: Mapping[str, Any]) -> list[str]:
    pairs = {c["title"]: general_against_category(c) for c in found["cases"].values()}
    known = {title: pair for title, pair in pairs.items() if pair is not None}
    if not known:
        return []
    better = sum(general < other for general, other in known.values())
    parts = "; ".join(f"{t}: {g:.3f} against {o:.3f}" for t, (g, o) in known.items())
    return [
        f"General instances are better than category ones on average in {better} of {len(known)} "
        f"cases (attack success + over-refusal + lost skill: {parts})."
    ]


def interval(estimate: Mapping[str, Any]) -> str:
    """Return a value with its interval, if it has one."""
    if estimate["value"] is None:
        return "-"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def selector_table(found: Mapping[str, Any]) -> Table:
    """Return the selectors' figures as a table for the terminal, best first."""
    title = f"selectors, means over {len(found['cases'])} cases"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("selector", no_wrap=True)
    # Narrow enough for 80 columns: a number cut off would say nothing.
    for heading in ("Spearman", "Kendall", "regret", "held-\nout gap", "rows\nfwd", "rows\nbwd"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("answers", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in [*others(found), found["truth"]]:
        row = found["selectors"][name]
        shares = [row[key]["value"] for key in ("spearman", "kendall", "regret")]
        cells = [*(f"{value:.3f}" for value in shares), f"{row['gap']:+.3f}"]
        costs = [f"{row[k]:,.0f}" for k in ("forward_rows", "backward_rows", "answers", "seconds")]
        table.add_row(Text(name), *cells, *costs)
    return table
