"""Every figure of the reports.

Each function takes a table (or the points of a record), changes nothing, and returns a `Picture`: figure, alternative
text and caption, the two texts computed from the same numbers as the drawing. In a notebook:

    show(*correlation_against(results, "depth"))
"""

from fragile_lib.plots.base import Picture, png_bytes, show, theme
from fragile_lib.plots.correlations import correlation_against, finished_or_not, solver_comparison
from fragile_lib.plots.outcomes import outcomes
from fragile_lib.plots.quantities import gradient_norm, parameter_change_norms, smallest_eigenvalue, top_eigenvalue
from fragile_lib.plots.scatter import scatter_estimate_truth

__all__ = [
    "Picture",
    "correlation_against",
    "finished_or_not",
    "gradient_norm",
    "outcomes",
    "parameter_change_norms",
    "png_bytes",
    "scatter_estimate_truth",
    "show",
    "smallest_eigenvalue",
    "solver_comparison",
    "theme",
    "top_eigenvalue",
]
