"""Pure functions on gradients: spectra from token factors, their summaries and comparisons."""

from oneshot_lit.spectral.compare import (
    GradientComparison,
    compare_gradients,
    gradient_cosine,
    subspace_overlap,
    subspace_overlap_chance,
)
from oneshot_lit.spectral.factors import (
    gradient_singular_values,
    gradient_svd,
    matrix_singular_values,
    rank_k_update,
)
from oneshot_lit.spectral.guard import guarded_inputs
from oneshot_lit.spectral.summary import (
    cumulative_energy_ratio,
    effective_rank,
    stable_rank,
    summarise,
)

__all__ = [
    "GradientComparison",
    "compare_gradients",
    "cumulative_energy_ratio",
    "effective_rank",
    "gradient_cosine",
    "gradient_singular_values",
    "gradient_svd",
    "guarded_inputs",
    "matrix_singular_values",
    "rank_k_update",
    "stable_rank",
    "subspace_overlap",
    "subspace_overlap_chance",
    "summarise",
]
