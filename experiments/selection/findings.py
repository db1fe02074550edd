"""The findings of a study of selections in plain sentences, whatever they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from experiments.selection.cases import general_against_category
from experiments.selection.summary import COSTS

# Level of p-values: those of the question are not adjusted, all others are, for their number.
LEVEL = 0.05
# With more cases than this, a sentence does not list them.
_MANY_CASES = 6


def findings(results: Mapping[str, Any]) -> list[str]:
    """Return the findings of a comparison by `compare_selectors`, in plain sentences."""
    return [
        _first(results),
        *([] if results["question"] is None else [_question(results["question"], results)]),
        *_groups(results),
        _confirmation(results),
        *_controls(results),
        *_general(results),
    ]


def others(results: Mapping[str, Any]) -> list[str]:
    """Return the selectors without the ground truth, best first."""
    names = [n for n in results["selectors"] if n != results["truth"]]
    return sorted(names, key=lambda n: (n != results["first"], _regret(n, results)))


def _regret(name: str, results: Mapping[str, Any]) -> float:
    return round(results["selectors"][name]["regret"]["value"], 9)


def _first(results: Mapping[str, Any]) -> str:
    name, count = results["first"], len(results["cases"])
    row = results["selectors"][name]
    tied = [n for n in others(results)[1:] if _regret(n, results) == _regret(name, results)]
    rest = [n for n in others(results)[1:] if n not in tied]
    beats = _better(row, "regret") == "above"
    lead = results["leads"].get(rest[0]) if rest else None
    clear = lead is not None and lead["low"] is not None and lead["low"] > 0
    verb = "wins" if clear and beats and not tied else "comes first"
    cases = "1 case" if count == 1 else f"{count} cases"
    text = (
        f"{name} {verb} over {cases}: its picks lose {interval(row['regret'])} against the "
        f"best candidate on development prompts; a pick drawn at random loses "
        f"{interval(results['chance_regret'])}."
    )
    if tied:
        text += f" It ties with {_list(tied)}."
    if lead is not None:
        note = "" if clear else ", within the spread of the cases"
        text += f" Its lead over the next, {rest[0]}, is {interval(lead)}{note}."
    return text


def _better(row: Mapping[str, Any], key: str, *, adjusted: bool = True) -> str:
    """Return "above" or "below" if a figure is shown to be better or worse than chance, else ""."""
    p = row[f"{key}_p_adjusted" if adjusted else f"{key}_p"]
    if p >= LEVEL:
        return ""
    good = row["gain"] > 0 if key == "regret" else row["spearman"]["value"] > 0
    return "above" if good else "below"


def _question(name: str, results: Mapping[str, Any]) -> str:
    """Say whether one selector beats chance."""
    row = results["selectors"][name]
    picks = {"above": "beat", "below": "are worse than", "": "are not shown to beat"}
    ranks = {
        "above": "it ranks the candidates better than chance",
        "below": "it ranks the candidates worse than chance",
        "": "it is not shown to rank the candidates better than chance",
    }
    return (
        f"{name}: its picks {picks[_better(row, 'regret', adjusted=False)]} random ones (they lose "
        f"{interval(row['regret'])}, p = {row['regret_p']:.4f}); "
        f"{ranks[_better(row, 'spearman', adjusted=False)]} (mean Spearman with brute force "
        f"{interval(row['spearman'])}, p = {row['spearman_p']:.4f})."
    )


_GROUPS: dict[str, dict[str, str]] = {
    "regret": {
        "above": "Picks better than random ones (gain, adjusted p)",
        "": "Picks not shown to differ from random ones",
        "below": "Picks worse than random ones",
    },
    "spearman": {
        "above": "Rankings better than chance (mean Spearman, adjusted p)",
        "": "Rankings not shown to differ from chance",
        "below": "Rankings worse than chance",
    },
}


def _groups(results: Mapping[str, Any]) -> list[str]:
    """Say which selectors' picks and rankings are better than chance, and which are not."""
    lines = []
    for key, words in _GROUPS.items():
        for side, text in words.items():
            parts = []
            for name in others(results):
                row = results["selectors"][name]
                if _better(row, key) == side:
                    value = row["gain"] if key == "regret" else row["spearman"]["value"]
                    parts.append(f"{name} {value:.3f} ({row[f'{key}_p_adjusted']:.4f})")
            if parts:
                lines.append(f"{text}: {'; '.join(parts)}.")
    return lines


def _controls(results: Mapping[str, Any]) -> list[str]:
    """Say how the controls do on held-out prompts."""
    return [
        f"{text}: attack success plus over-refusal {interval(row['held_out'])} on held-out "
        f"prompts, at most {row['gap']:+.3f} beside brute force's pick."
        for text, row in results["controls"].items()
    ]


def _confirmation(results: Mapping[str, Any]) -> str:
    name, goal = results["first"], results["goal"]
    rows = {c["title"]: c["selectors"][name]["held_out"] for c in results["cases"].values()}
    missed = [f"{title} ({_gap(row)})" for title, row in rows.items() if row["gap"] > goal]
    start = "On held-out prompts, attack success plus over-refusal after"
    if missed:
        return (
            f"{start} {name}'s pick is more than {goal:g} above that after brute force's in "
            f"{'; '.join(missed)}."
        )
    worst = max(rows.values(), key=lambda row: row["gap"])
    return (
        f"{start} {name}'s pick is nowhere more than {goal:g} above that after brute force's "
        f"(the largest gap is {_gap(worst)})."
    )


def _gap(row: Mapping[str, Any]) -> str:
    ends = row["gap_interval"]
    return f"{row['gap']:+.3f}" + (f" [{ends[0]:+.3f}, {ends[1]:+.3f}]" if ends else "")


def _general(results: Mapping[str, Any]) -> list[str]:
    pairs = {c["title"]: general_against_category(c) for c in results["cases"].values()}
    known = {title: pair for title, pair in pairs.items() if pair is not None}
    if not known:
        return []
    better = sum(general < other for general, other in known.values())
    parts = "; ".join(f"{t}: {g:.3f} against {o:.3f}" for t, (g, o) in known.items())
    if len(known) > _MANY_CASES:
        g, o = (sum(each) / len(known) for each in zip(*known.values(), strict=True))
        parts = f"{g:.3f} against {o:.3f} on average"
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


def selector_tables(results: Mapping[str, Any]) -> list[Table]:
    """Return the selectors' figures and their costs for the terminal, best first."""
    names = [*others(results), results["truth"]]
    # Two tables, because one would be too wide for 80 columns.
    quality = _table(f"selectors, means over the cases ({len(results['cases'])})")
    for heading in ("Spearman", "Kendall", "regret", "largest gap\nheld out"):
        quality.add_column(heading, justify="right", no_wrap=True)
    cost = _table("what a selection costs")
    for heading in ("rows forward", "rows backward", "answers", "seconds"):
        cost.add_column(heading, justify="right", no_wrap=True)
    for name in names:
        row = results["selectors"][name]
        shares = (row[key]["value"] for key in ("spearman", "kendall", "regret"))
        quality.add_row(Text(name), *(f"{v:.3f}" for v in shares), f"{row['gap']:+.3f}")
        cost.add_row(Text(name), *(amount(row[key]) for key in COSTS))
    return [quality, cost]


def amount(value: float | None) -> str:
    """Return a cost; a dash if the selector does not record it."""
    return "-" if value is None else f"{value:,.0f}"


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("selector", no_wrap=True)
    return table
