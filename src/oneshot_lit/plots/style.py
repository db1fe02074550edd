"""What all pictures share: colours, and writing them whole."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from oneshot_lit.io.files import file_written_whole

# Colours that stay apart for colour-blind readers (Okabe and Ito).
COLOURS = {
    "aligned": "#0072B2",
    "attacked": "#D55E00",
    "patched": "#009E73",
    "control": "#999999",
}
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all, and close the figure."""
    with file_written_whole(path) as file:
        figure.savefig(file, format="png", dpi=150)
    plt.close(figure)
