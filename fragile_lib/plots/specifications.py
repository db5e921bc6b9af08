"""Every named figure and table of the reports, as data, and `figure`, which makes one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from pandas.io.formats.style import Styler

from fragile_lib.plots import bars, means, scatter, steps, tables, texts, words
from fragile_lib.plots.base import Picture
from fragile_lib.plots.published import DECAY, GROUPS
from fragile_lib.plots.rows import Spec, show_rows
from fragile_lib.plots.scatter import Scatter
from fragile_lib.tools.errors import bad_input

# -- Iris: the paper's protocol, unless a figure says otherwise --
IRIS = {
    "dataset": "iris",
    "fit": "descent",
    "estimator": "exact",
    "ground_truth": "warm_descent",
    "test_choice": "max_loss",
    "train_choice": "top_influence",
    "activation": "relu",
}
BOTH_FITS = IRIS | {"fit": ["descent", "certified"], "ground_truth": ["warm_descent", "minimum"]}
BY_DEPTH = Spec("lines", "depth", hue="weight_decay", where=IRIS, steps=(steps.widest("depth", "width"),))
FINISHED = replace(
    BY_DEPTH,
    hue="variant",
    rows="fit",
    columns="weight_decay",
    where=BOTH_FITS
    | {"estimator": ["exact", "exact_ggn"], "ground_truth": ["warm_descent", "warm_descent_minus_control", "minimum"]},
    steps=(*BY_DEPTH.steps, steps.ends("weight_decay"), steps.variants),
    dots=False,
    note="Upper row: the end of gradient descent; lower row: the same networks driven on to a certified optimum",
)
TANH = {"activation": "tanh"}
OF_IRIS = {
    "iris_depth": replace(BY_DEPTH, paper="iris"),
    "iris_depth_top_loss": replace(BY_DEPTH, paper="iris", where=IRIS | {"train_choice": "top_loss"}),
    "iris_width": replace(BY_DEPTH, at="width", paper="iris", steps=(steps.widest("width", "depth"),)),
    "iris_depth_tanh": replace(BY_DEPTH, where=IRIS | TANH),
    "iris_test_points": replace(
        BY_DEPTH, hue="test_choice", where=IRIS | {"test_choice": ["max_loss", "p50_loss"], "weight_decay": 0.005}
    ),
    "iris_norms": replace(BY_DEPTH, rows="statistic", statistics=("norm_ratio", "norm_spearman")),
    "iris_largest_eigenvalue": replace(BY_DEPTH, statistics=("eig_max",)),
    "iris_smallest_eigenvalue": replace(BY_DEPTH, statistics=("eig_min",)),
    "iris_gradient": replace(BY_DEPTH, statistics=("grad_norm",), style="fit", where=BOTH_FITS),
    "iris_solvers": replace(
        BY_DEPTH,
        rows="statistic",
        statistics=("spearman", "difference"),
        style="estimator",
        where=IRIS | {"estimator": ["exact", "lissa_single"]},
        steps=(*BY_DEPTH.steps, steps.differences),
        without=({"statistic": "difference", "estimator": "exact"},),
    ),
    "iris_finished_relu": FINISHED,
    "iris_finished_tanh": replace(FINISHED, where=FINISHED.where | TANH),
    "iris_outcomes": replace(
        FINISHED, kind="bars", statistics=("status",), hue=None, where=BOTH_FITS, steps=FINISHED.steps[:2], note=""
    ),
}

# -- small MNIST: what is resampled is a test point of a network --
SMALL = {"dataset": "small_mnist", "weight_decay": DECAY, "test_choice": "max_loss"}
TRUTHS = ["warm_minibatch", "tilted_minimum", "minimum", "pbrf"]
BOTH_TRAINS = ["top_influence", "p30_influence"]
DIRECT = ["exact", "exact_ggn", "second_order", "exact_undamped"]
SOLVERS = ["exact", "exact_ggn", "cg", "cg_ggn", "minres", "lissa_random", "arnoldi", "nystroem", "kfac", "ekfac"]
SOLVERS += ["identity", "tracin", "trak"]
POINTS = ("seed", "test_point")
SMALL_STEPS = (steps.later_fit, steps.reached, steps.own_estimates)
COMPARED = Spec(
    "dots",
    "estimator",
    ("solver_residual", "seconds_estimate", "products", "memory_mb"),
    rows="statistic",
    wrap=2,
    where=SMALL | {"train_choice": "top_influence", "estimator": SOLVERS, "ground_truth": TRUTHS},
    unit=POINTS,
    steps=(steps.later_fit, steps.compared),
    order="solver_residual",
    dots=False,
    note="Solvers are in the order of their residuals, those without one last",
)
OF_SMALL_MNIST = {
    "small_mnist_points": Spec(
        "lines",
        "rank",
        hue="train_choice",
        style="seed",
        rows="ground_truth",
        columns="test_choice",
        where=SMALL | {"test_choice": ["max_loss", "p50_loss"], "train_choice": BOTH_TRAINS, "ground_truth": TRUTHS},
        unit=POINTS,
        steps=(*SMALL_STEPS, steps.ranked),
        joined=False,
        dots=False,
        paper="test points",
        sums=("ground_truth", "train_choice", "test_choice"),
        note="Colours tell the choice of training points",
    ),
    "small_mnist_decay": Spec(
        "lines",
        "weight_decay",
        hue="train_choice",
        rows="ground_truth",
        wrap=2,
        where=SMALL | {"weight_decay": None, "train_choice": BOTH_TRAINS, "ground_truth": TRUTHS},
        unit=POINTS,
        steps=SMALL_STEPS,
    ),
    "small_mnist_truths": Spec(
        "dots",
        "target",
        hue="estimator",
        where=SMALL | {"estimator": [*DIRECT, "rescaled", "newton_step"]},
        unit=POINTS,
        steps=(steps.later_fit, steps.reached, steps.targets),
    ),
    "small_mnist_solvers": COMPARED,
    "small_mnist_solver_agreement": replace(COMPARED, statistics=("spearman",), rows="ground_truth"),
    "small_mnist_finish": Spec(
        "lines",
        "weight_decay",
        ("grad_norm", "eig_min"),
        hue="fit",
        rows="statistic",
        where={"dataset": "small_mnist"},
        steps=(steps.networks,),
    ),
}

# -- architectures: the paper's estimator, truth and points, for one start of Adam --
MAIN = {
    "dataset": ["mnist", "cifar10"],
    "optimiser": "adam",
    "seed": 0,
    "weight_decay": DECAY,
    "estimator": "lissa_partition",
    "ground_truth": "warm_minibatch",
    "test_choice": "max_loss",
    "train_choice": "top_influence",
}
BY_ESTIMATOR = {"estimator": ["lissa_partition", "cg_ggn", "ekfac", "identity", "rescaled", "newton_step"]}
DOTS = Spec("dots", "architecture", where=MAIN, unit=POINTS, steps=(steps.whole_repeats,))
SIZES = Spec(
    "lines",
    "architecture",
    hue="weight_decay",
    rows="dataset",
    where=MAIN | {"weight_decay": None},
    unit=POINTS,
    steps=(steps.whole_repeats,),
    order="n_params",
    paper="networks",
    sums=("dataset", "weight_decay"),
    note="Networks stand in the order of their numbers of parameters, which are below their names",
)
TABLE = replace(
    SIZES,
    kind="table",
    statistics=("pearson", "spearman"),
    where=SIZES.where | {"dataset": ["mnist", "cifar10", "cifar100"]},
    sums=None,
    dots=False,
    note="",
)
OF_NETWORKS = {
    "networks_table": TABLE,
    "networks_table_median": replace(TABLE, where=TABLE.where | {"test_choice": "p50_loss"}, paper=""),
    "networks_parameters": SIZES,
    "networks_depth": replace(
        SIZES,
        order="depth",
        note="Networks stand in the order of their layers with weights, which are below their names",
    ),
    "networks_estimators": replace(
        DOTS,
        hue="estimator",
        rows="dataset",
        columns="train_choice",
        where=MAIN | BY_ESTIMATOR | {"train_choice": ["top_influence", "random"]},
        order="n_params",
        dots=False,
        sums=("train_choice", "estimator"),
    ),
    "networks_optimisers": replace(
        DOTS,
        at="optimiser",
        where=MAIN | {"dataset": "mnist", "architecture": "lenet", "optimiser": None},
        paper="optimisers",
        sums=(),
    ),
    "networks_starts": replace(
        DOTS,
        at="seed",
        hue="architecture",
        where=MAIN | {"dataset": "mnist", "seed": None},
        steps=(steps.whole_repeats, steps.several("seed", "architecture")),
        sums=("architecture",),
    ),
    "networks_groups": replace(
        DOTS,
        at="removed",
        rows="dataset",
        where=MAIN
        | {
            "dataset": ["mnist", "cifar10", "cifar100"],
            "architecture": "resnet18",
            "weight_decay": [DECAY, 0.0005],
            "seed": None,
            "train_choice": ["top_influence", *GROUPS],
        },
        steps=(steps.whole_repeats, steps.with_groups),
        paper="groups",
        sums=("dataset",),
    ),
    "networks_scratch": replace(
        DOTS,
        at="ground_truth",
        hue="estimator",
        where=MAIN
        | {
            "architecture": "lenet",
            "train_choice": "scratch",
            "estimator": ["lissa_partition", "warm_minibatch"],
            "ground_truth": ["warm_minibatch", "scratch_batches"],
        },
        steps=(),
    ),
    "networks_longer": Spec(
        "lines",
        "share",
        ("spearman", "slope"),
        hue="estimator",
        rows="architecture",
        columns="statistic",
        where=MAIN | BY_ESTIMATOR | {"dataset": "mnist", "ground_truth": None},
        unit=POINTS,
        steps=(steps.whole_repeats, steps.shares),
        without=({"statistic": "slope", "estimator": "identity"},),
        dots=False,
        sums=("architecture", "estimator"),
        note="A slope of 1 says that an estimate has the size of the truth; the product of gradients has the size that the "
        "damping gives it, so its slope is not shown",
    ),
    "networks_costs": replace(
        TABLE,
        statistics=("seconds_estimate", "seconds_retrain"),
        hue="estimator",
        where=MAIN | BY_ESTIMATOR | {"test_choice": None, "train_choice": ["top_influence", "random"]},
        paper="",
    ),
}

PHOTOGRAPHS = {
    "photographs_table": Spec(
        "table",
        "estimator",
        ("pearson", "spearman", "slope"),
        where={"dataset": list(words.PHOTOGRAPHS), "ground_truth": "warm_minibatch"},
    )
}
SPECS: dict[str, Spec] = OF_IRIS | OF_SMALL_MNIST | OF_NETWORKS | PHOTOGRAPHS

CHOSEN = {"test_choice": "max_loss", "train_choice": "top_influence"}
SMALL_TRUTHS = ("warm_minibatch", "warm_minibatch_minus_control", "tilted_minimum", "pbrf", "minimum")
SCATTERS: dict[str, Scatter] = {
    "iris_points": Scatter([(None, t) for t in ("warm_descent", "warm_descent_minus_control", "minimum")], CHOSEN),
    "small_mnist_together": Scatter([(None, t) for t in SMALL_TRUTHS], CHOSEN | {"weight_decay": DECAY}),
    "small_mnist_damped": Scatter(
        [("exact", "minimum"), ("exact_undamped", "minimum")],
        CHOSEN,
        fullest=True,
        note="Left: the damped Hessian's estimates; right: the same without damping",
    ),
    "networks_points": Scatter([(None, t) for t in SMALL_TRUTHS[:2]], CHOSEN),
    "photographs_points": Scatter([(None, t) for t in SMALL_TRUTHS[:2]], {"train_choice": "top_influence"}),
}
TABLES = {"photographs_table": tables.photographs, "networks_costs": tables.costs}


def figure(
    name: str,
    results: pd.DataFrame | Sequence[Mapping],
    damping: float | None = None,
    estimator: str | None = None,
    **where: object,
) -> Picture | Styler:
    """The figure or table of that name; a `Picture` without a figure where `results` has nothing for it.

    Args:
        name: one of `SPECS` and `SCATTERS`.
        results: the results table, or for a scatter the points of result records.
        damping: of the Hessian, for figures of its smallest eigenvalue.
        estimator: whose estimates a scatter shows, in the place of those that belong to each truth.
        **where: columns and the values that are shown of them (one, a list, or None for all), in the place of the
            specification's own.

    Raises:
        InputError: there is no such figure, or the table lacks a column that it needs.
    """
    if name in SCATTERS:
        return scatter.picture(results, SCATTERS[name], where, estimator)
    if name not in SPECS:
        raise bad_input("name", name, f"the figures are {', '.join([*SPECS, *SCATTERS])}")
    shown = show_rows(results, SPECS[name], where)
    if shown is None:
        return Picture(None, f"No rows: the table has nothing to show of {words.short(SPECS[name].statistics[0])}.")
    if shown.spec.kind == "table":
        return TABLES.get(name, tables.architectures)(shown, name)
    if shown.spec.kind == "bars":
        return bars.picture(shown)
    return Picture(means.draw(shown, damping), texts.alt(shown, damping), texts.caption(shown, damping))
