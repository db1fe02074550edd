"""Pictures: pure functions from results to matplotlib figures."""

from oneshot_lit.plots.comparison import safety_utility, sweep_panels
from oneshot_lit.plots.intervals import rates_with_intervals, run_colours
from oneshot_lit.plots.progress import progress
from oneshot_lit.plots.realignment import prompt_search_curve, step_curve
from oneshot_lit.plots.spectra import energy_curves, rank_map
from oneshot_lit.plots.style import save_figure

__all__ = [
    "energy_curves",
    "progress",
    "prompt_search_curve",
    "rank_map",
    "rates_with_intervals",
    "run_colours",
    "safety_utility",
    "save_figure",
    "step_curve",
    "sweep_panels",
]
