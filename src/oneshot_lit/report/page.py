"""``report.html`` and its pictures."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from oneshot_lit import plots
from oneshot_lit.evaluation.metrics.registry import LM_EVAL
from oneshot_lit.report import cells
from oneshot_lit.report.cells import verdict
from oneshot_lit.report.text import picture_label

PICTURES = "pictures"
# The names that `draw` gives.
_OWN_PICTURE = re.compile(r"rates\.png|(category|curve)_[a-z0-9_]{1,60}_[0-9]+\.png")
# A score whose interval reaches further than this is not shaded as good.
_WIDE = 0.1


def draw(content: Mapping[str, Any]) -> dict[str, tuple[str, str, Figure]]:
    """Return key -> (file, what it shows, figure) for all pictures of a report."""
    found = {}
    names = [run["name"] for run in content["runs"]]
    labels = {name: picture_label(name) for name in names}
    colours = plots.run_colours(names)
    rows = [(picture_label(row["key"]), row["runs"]) for row in content["scores"] if _fits(row)]
    with _any_letters():
        if rows:
            figure = plots.rates_with_intervals(rows, labels, [colours[n] for n in names])
            found["rates"] = (f"{PICTURES}/rates.png", "Scores with 95% intervals", figure)
        for number, table in enumerate(content["categories"]):
            if not all(_fits({**table, **row}) for row in table["rows"]):
                continue
            by_category = [(picture_label(row["category"]), row["runs"]) for row in table["rows"]]
            figure = plots.category_map(by_category, labels, picture_label(table["key"]))
            file = f"{PICTURES}/category_{_slug(table['key'])}_{number}.png"
            found[f"category {number}"] = (file, f"{table['key']} by category", figure)
        for number, (run, curve) in enumerate(content["curves"].items()):
            file = f"{PICTURES}/curve_{_slug(run)}_{number}.png"
            found[f"curve {run}"] = (file, f"Realignment of {run}", plots.step_curve(curve))
    return found


def save_pictures(pictures: Mapping[str, tuple[str, str, Figure]], out: Path) -> None:
    """Write each picture as a PNG."""
    with _any_letters():
        for file, _, figure in pictures.values():
            plots.save_figure(figure, out / file)


def remove_old_pictures(pictures: Mapping[str, tuple[str, str, Figure]], out: Path) -> None:
    """Remove the pictures of an earlier report that this one does not have."""
    folder = out / PICTURES
    if folder.is_symlink():
        return
    kept = {out / file for file, _, _ in pictures.values()}
    for path in folder.glob("*.png"):
        # Whatever else lies there is somebody's own.
        if path not in kept and path.is_file() and _OWN_PICTURE.fullmatch(path.name):
            path.unlink()


def render_page(content: Mapping[str, Any], pictures: Mapping[str, tuple[str, str, Figure]]) -> str:
    """Return the report as HTML, in one file without any link."""
    environment = Environment(
        loader=PackageLoader("oneshot_lit.report", "."),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = [run["name"] for run in content["runs"]]
    with _any_letters():
        embedded = {k: (plots.embed(figure), what) for k, (_, what, figure) in pictures.items()}
    facts = {
        run["name"]: json.dumps(run["provenance"], indent=2, ensure_ascii=False)
        for run in content["runs"]
    }
    return environment.get_template("report.html.j2").render(
        content=content,
        names=names,
        pictures=embedded,
        colours=plots.run_colours(names),
        colour_of=colour_of,
        cells=cells,
        facts=facts,
    )


def colour_of(key: str, cell: Mapping[str, Any] | None) -> str:
    """Return the colour class of a cell; grades beyond 1 have none, nor has good on few answers."""
    value = None if cell is None else cell["value"]
    if value is None or key.rpartition("/")[2].startswith("harmfulness_score"):
        return ""
    found = verdict(key, value)
    ends = (cell["low"], cell["high"]) if cell else (None, None)
    far = any(end is not None and abs(end - value) > _WIDE for end in ends)
    return "" if found == "good" and far else found


def _fits(row: Mapping[str, Any]) -> bool:
    """Whether a score lies between 0 and 1, so that it can share an axis with rates."""
    if row.get("metric", "").startswith("harmfulness_score"):
        return False
    known = [c["value"] for c in row["runs"].values() if c and c["value"] is not None]
    of_lm_eval = row.get("key", "").startswith(f"{LM_EVAL}/")
    return all(0 <= v <= 1 for v in known) and (bool(known) or not of_lm_eval)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:60] or "picture"


@contextmanager
def _any_letters() -> Iterator[None]:
    """Let names hold letters that the font lacks; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        yield
