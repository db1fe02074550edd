"""Pictures: pure functions from results to matplotlib figures."""

from oneshot_lit.plots.comparison import safety_utility, sweep_panels
from oneshot_lit.plots.intervals import rates_with_intervals, run_colours
from oneshot_lit.plots.realignment import search_curve, step_curve
from oneshot_lit.plots.selection import selection_course
from oneshot_lit.plots.spectra import decay_curves, energy_curves, rank_map
from oneshot_lit.plots.style import COLOURS, close, save_figure

__all__ = [
    "COLOURS",
    "close",
    "decay_curves",
    "energy_curves",
    "rank_map",
    "rates_with_intervals",
    "run_colours",
    "safety_utility",
    "save_figure",
    "search_curve",
    "selection_course",
    "step_curve",
    "sweep_panels",
]
