"""Every figure of the reports, and the tables that are made like them.

Each function takes a table (or the points of a record), changes nothing, and returns a `Picture`: figure, alternative
text and caption, the two texts computed from the same numbers as the drawing. In a notebook:

    show(*correlation_against(results, "depth"))

"""

from fragile_lib.plots.architectures import over_architectures
from fragile_lib.plots.architectures_checks import costs, estimators_by_architecture
from fragile_lib.plots.architectures_further import further_axes, groups_and_scratch
from fragile_lib.plots.architectures_longer import longer_retraining
from fragile_lib.plots.architectures_table import architecture_table
from fragile_lib.plots.base import Picture, png_bytes, show, theme
from fragile_lib.plots.correlations import correlation_against, finished_or_not, solver_comparison
from fragile_lib.plots.imagenet import (
    PHOTOGRAPHS,
    dataset_word,
    imagenet_cost_table,
    influential_pictures,
    photographs_table,
    show_photographs,
)
from fragile_lib.plots.outcomes import outcomes
from fragile_lib.plots.quantities import (
    finish_against_decay,
    gradient_norm,
    parameter_change_norms,
    smallest_eigenvalue,
    top_eigenvalue,
)
from fragile_lib.plots.scatter import damped_or_not, scatter_estimate_truth, together
from fragile_lib.plots.small_mnist import against_decay, by_test_point
from fragile_lib.plots.small_mnist_checks import solver_page, truth_page
from fragile_lib.plots.solvers import solver_table

__all__ = [
    "PHOTOGRAPHS",
    "Picture",
    "against_decay",
    "architecture_table",
    "by_test_point",
    "correlation_against",
    "costs",
    "damped_or_not",
    "dataset_word",
    "estimators_by_architecture",
    "finish_against_decay",
    "finished_or_not",
    "further_axes",
    "gradient_norm",
    "groups_and_scratch",
    "imagenet_cost_table",
    "influential_pictures",
    "longer_retraining",
    "outcomes",
    "over_architectures",
    "parameter_change_norms",
    "photographs_table",
    "png_bytes",
    "scatter_estimate_truth",
    "show",
    "show_photographs",
    "smallest_eigenvalue",
    "solver_comparison",
    "solver_page",
    "solver_table",
    "theme",
    "together",
    "top_eigenvalue",
    "truth_page",
]
