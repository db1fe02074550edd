"""Pictures: pure functions from results to matplotlib figures."""

from oneshot_lit.plots.comparison import attack_success, helpfulness, safety_utility, sweep_panels
from oneshot_lit.plots.realignment import search_curve, step_curve
from oneshot_lit.plots.spectra import energy_curves
from oneshot_lit.plots.style import COLOURS, close, save_figure

__all__ = [
    "COLOURS",
    "attack_success",
    "close",
    "energy_curves",
    "helpfulness",
    "safety_utility",
    "save_figure",
    "search_curve",
    "step_curve",
    "sweep_panels",
]
