"""The tables of `GradientRank`: singular values, and what sums them up."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oneshot_lit.callbacks.shared_spectra import Measured
from oneshot_lit.io.files import write_text_atomically

SPECTRA_FILE = Path("spectra") / "spectra.csv"
SUMMARY_FILE = Path("spectra") / "summary.csv"
_KEYS = ("epoch", "step", "parameter")


class SpectraFiles:
    """Append to ``<root>/spectra/spectra.csv`` and ``summary.csv``.

    Args:
        root: The run's folder.
        k: For which k the cumulative energy ratio is a column.
    """

    def __init__(self, root: Path, k: Sequence[int]) -> None:
        self.k = list(k)
        sums = [*(f"cer_{each}" for each in self.k)]
        sums += ["effective_rank", "stable_rank", "frobenius_norm"]
        sums += ["overlap", "overlap_chance", "cosine"]
        self.columns = {
            root / SPECTRA_FILE: [*_KEYS, "index", "singular_value"],
            root / SUMMARY_FILE: [*_KEYS, *sums],
        }
        self.spectra, self.summary = self.columns
        self._begun = False

    def start(self, step: int) -> None:
        """Take up the tables of an interrupted run; new ones begin with the first `write`.

        The killed run may have gone on after its last checkpoint, so rows from `step` on come
        again; its last line may be incomplete.
        """
        # A run that ends before it has measured anything leaves an earlier one's tables alone.
        self._begun = step > 0
        if self._begun:
            self._begin(step)

    def _begin(self, step: int) -> None:
        for path, columns in self.columns.items():
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(columns)
            if step > 0 and path.is_file():
                with path.open(newline="", encoding="utf-8") as file:
                    rows = [row for row in list(csv.reader(file))[1:] if len(row) == len(columns)]
                writer.writerows(row for row in rows if int(row[1]) < step)
            write_text_atomically(path, text.getvalue())

    def write(
        self,
        epoch: int,
        step: int,
        measured: Mapping[str, Measured],
        sums: Mapping[str, Sequence[float]],
    ) -> None:
        """Append what was measured at one step; comparisons are empty where there is no reference.

        Args:
            epoch: The epoch.
            step: The optimiser step.
            measured: Parameter -> spectrum and comparison.
            sums: What `summarise` says of these spectra.
        """
        if not self._begun:
            self._begin(0)
            self._begun = True
        lines: list[str] = []
        rows: list[list[Any]] = []
        for n, (name, (spectrum, comparison)) in enumerate(measured.items()):
            start = f"{epoch},{step},{name},"
            lines += [f"{start}{i},{v:.9g}\n" for i, v in enumerate(spectrum.tolist())]
            near = [""] * 3 if comparison is None else [f"{v:.9g}" for v in comparison]
            rows.append([epoch, step, name, *(f"{v[n]:.9g}" for v in sums.values()), *near])
        with self.spectra.open("a", encoding="utf-8") as file:
            file.writelines(lines)
        with self.summary.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def read_spectra(root: Path, time: str = "epoch") -> dict[int, dict[str, list[float]]]:
    """Return epoch (or step) -> parameter -> singular values of a run; {} without a table.

    Of several measurements in one epoch the first one counts.
    """
    path = root / SPECTRA_FILE
    spectra: dict[int, dict[str, list[float]]] = {}
    first: dict[int, str] = {}
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            when = int(row[time])
            if first.setdefault(when, row["step"]) == row["step"]:
                values = spectra.setdefault(when, {}).setdefault(row["parameter"], [])
                values.append(float(row["singular_value"]))
    return spectra


def draw_spectra(root: Path, time: str = "epoch") -> None:
    """Draw ``energy.png``, ``effective_rank.png`` and ``decay.png`` from a run's table.

    Args:
        root: The run's folder.
        time: ``epoch`` or ``step``, what the curves are named by.
    """
    spectra = read_spectra(root, time)
    if not any(values for each in spectra.values() for values in each.values()):
        return
    from oneshot_lit import plots

    folder, last = (root / SPECTRA_FILE).parent, max(spectra)
    plots.save_figure(plots.energy_over_time(spectra, time), folder / "energy.png")
    plots.save_figure(
        plots.rank_map(spectra[last], f"{time} {last}"), folder / "effective_rank.png"
    )
    plots.save_figure(plots.decay_curves(spectra, time), folder / "decay.png")
