"""The tables of `GradientRank`: singular values, and what sums them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oneshot_lit.callbacks.shared_spectra import Measured
from oneshot_lit.io.files import write_text_atomically
from oneshot_lit.spectral import GradientComparison, summarise

if TYPE_CHECKING:
    import pandas as pd

SPECTRA_FILE = Path("spectra") / "spectra.csv"
SUMMARY_FILE = Path("spectra") / "summary.csv"


def start_tables(root: Path, step: int) -> None:
    """Drop the rows that a run will write: all of a new run, those from `step` on of a resumed one.

    The killed run may have gone on after its last checkpoint.
    """
    import pandas as pd

    for path in (root / SPECTRA_FILE, root / SUMMARY_FILE):
        if step == 0:
            path.unlink(missing_ok=True)
        elif path.is_file() and path.stat().st_size:
            rows = pd.read_csv(path, dtype=str, keep_default_na=False)
            kept = rows[pd.to_numeric(rows["step"], errors="coerce") < step]
            write_text_atomically(path, kept.to_csv(index=False, lineterminator="\n"))


def append_tables(
    root: Path, epoch: int, step: int, measured: Mapping[str, Measured], k: Sequence[int]
) -> pd.DataFrame:
    """Append what was measured at one step to ``spectra.csv`` and ``summary.csv``.

    Args:
        root: The run's folder.
        epoch: The epoch.
        step: The optimiser step.
        measured: Parameter -> spectrum and comparison.
        k: For which k the cumulative energy ratio is a column.

    Returns:
        The rows of the summary; comparisons are NaN where there is no reference.
    """
    import pandas as pd

    names = list(measured)
    near = [measured[name].comparison or [None] * 3 for name in names]
    summary = pd.concat(
        [
            pd.DataFrame({"epoch": epoch, "step": step, "parameter": names}),
            pd.DataFrame(summarise([measured[name].values for name in names], k)),
            pd.DataFrame(near, columns=list(GradientComparison._fields), dtype=float),
        ],
        axis=1,
    )
    # Written by hand: pandas takes four times as long for a hundred thousand values.
    values = "".join(
        f"{epoch},{step},{name},{index},{value:.9g}\n"
        for name in names
        for index, value in enumerate(measured[name].values.tolist())
    )
    (root / SPECTRA_FILE).parent.mkdir(parents=True, exist_ok=True)
    with (root / SPECTRA_FILE).open("a", encoding="utf-8", newline="\n") as file:
        file.write(
            values if file.tell() else "epoch,step,parameter,index,singular_value\n" + values
        )
    summary.to_csv(
        root / SUMMARY_FILE,
        mode="a",
        header=not (root / SUMMARY_FILE).exists(),
        index=False,
        float_format="%.9g",
        lineterminator="\n",
    )
    return summary


def read_spectra(root: Path, time: str = "epoch") -> dict[int, dict[str, list[float]]]:
    """Return epoch (or step) -> parameter -> singular values of a run; {} without a table.

    Of several measurements in one epoch the first one counts.
    """
    path = root / SPECTRA_FILE
    if not path.is_file():
        return {}
    import pandas as pd

    rows = pd.read_csv(path)
    rows = rows[rows["step"] == rows.groupby(time)["step"].transform("first")]
    spectra: dict[int, dict[str, list[float]]] = {}
    for (when, name), values in rows.groupby([time, "parameter"], sort=False)["singular_value"]:
        spectra.setdefault(int(when), {})[str(name)] = values.tolist()
    return spectra


def draw_spectra(root: Path, time: str = "epoch") -> None:
    """Draw ``energy.png`` and ``effective_rank.png`` from a run's table.

    Args:
        root: The run's folder.
        time: ``epoch`` or ``step``, what the curves are named by.
    """
    spectra = read_spectra(root, time)
    if not spectra:
        return
    from oneshot_lit import plots

    folder, last = (root / SPECTRA_FILE).parent, max(spectra)
    plots.save_figure(plots.energy_curves(spectra, time), folder / "energy.png")
    plots.save_figure(
        plots.rank_map(spectra[last], f"{time} {last}"), folder / "effective_rank.png"
    )
