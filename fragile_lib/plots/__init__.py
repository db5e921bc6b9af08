"""Every figure of the reports.

Each function takes a table (or the points of a record), changes nothing, and returns a `Picture`: figure, alternative
text and caption, the two texts computed from the same numbers as the drawing. In a notebook:

    show(*correlation_against(results, "depth"))
"""

from fragile_lib.plots.base import Picture, png_bytes, show, theme
from fragile_lib.plots.correlations import correlation_against, finished_or_not, solver_comparison
from fragile_lib.plots.outcomes import outcomes
from fragile_lib.plots.quantities import (
    finish_against_decay,
    gradient_norm,
    parameter_change_norms,
    smallest_eigenvalue,
    top_eigenvalue,
)
from fragile_lib.plots.scatter import scatter_estimate_truth, together
from fragile_lib.plots.small_mnist import against_decay, by_test_point
from fragile_lib.plots.small_mnist_checks import solver_page, truth_page

__all__ = [
    "Picture",
    "against_decay",
    "by_test_point",
    "correlation_against",
    "finish_against_decay",
    "finished_or_not",
    "gradient_norm",
    "outcomes",
    "parameter_change_norms",
    "png_bytes",
    "scatter_estimate_truth",
    "show",
    "smallest_eigenvalue",
    "solver_comparison",
    "solver_page",
    "theme",
    "together",
    "top_eigenvalue",
    "truth_page",
]
