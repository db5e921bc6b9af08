"""Every named figure and table of the reports, as data, and `figure`, which makes one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from pandas.io.formats.style import Styler

from fragile_lib.plots import means, scatter, steps, tables, texts, words
from fragile_lib.plots.base import Picture
from fragile_lib.plots.photographs import pictures
from fragile_lib.plots.published import DECAY, GROUPS
from fragile_lib.plots.rows import Spec, show_rows
from fragile_lib.plots.scatter import Scatter
from fragile_lib.tools.errors import bad_input


def _but(spec: Spec, where: Mapping | None = None, **changes: object) -> Spec:
    """The specification with other rows and other properties."""
    return replace(spec, where={**spec.where, **(where or {})}, **changes)


CHOSEN = {"test_choice": "max_loss", "train_choice": "top_influence"}

# -- Iris: the paper's protocol, unless a figure says otherwise --
IRIS = {"dataset": "iris", "activation": "relu", "fit": "descent", "estimator": "exact", "ground_truth": "warm_descent"}
BY_DEPTH = Spec("lines", "depth", hue="weight_decay", where=IRIS | CHOSEN, steps=(steps.widest("depth", "width"),))
BOTH_FITS = {"fit": ["descent", "certified"], "ground_truth": ["warm_descent", "minimum"]}
TRUTHS_OF_IRIS = ["warm_descent", "warm_descent_minus_control", "minimum"]
FINISHED = _but(
    BY_DEPTH,
    BOTH_FITS | {"estimator": ["exact", "exact_ggn"]},
    hue="estimator",
    rows="fit",
    columns="weight_decay",
    dots=False,
    by_panel=True,
    topic="Agreement over depth where training has not ended and where it has",
    note="Upper row: the end of gradient descent; lower row: the same networks driven on to a certified optimum",
)
TANH = {"activation": "tanh"}


def _subsets(where: Mapping, truths: Sequence[str], **changes: object) -> Spec:
    """Agreement against the share of the training points that random subsets leave out."""
    all_of = {"test_choice": "max_loss", "train_choice": None, "ground_truth": list(truths)}
    common = {"hue": "estimator", "columns": "ground_truth", "steps": (steps.subsets,), "dots": False}
    return Spec("lines", "left_out", where=all_of | where, **{**common, **changes})


OF_IRIS = {
    "iris_depth": _but(BY_DEPTH, paper="iris"),
    "iris_depth_tanh": _but(BY_DEPTH, TANH),
    "iris_width": _but(
        BY_DEPTH, at="width", paper="iris", steps=(steps.widest("width", "depth"), steps.several("width", "dataset"))
    ),
    "iris_test_points": _but(
        BY_DEPTH, {"test_choice": ["max_loss", "p50_loss"], "weight_decay": 0.005}, hue="test_choice"
    ),
    "iris_norms": _but(BY_DEPTH, rows="statistic", statistics=("norm_ratio", "norm_spearman")),
    "iris_largest_eigenvalue": _but(BY_DEPTH, statistics=("eig_max",)),
    "iris_smallest_eigenvalue": _but(BY_DEPTH, statistics=("eig_min",)),
    "iris_gradient": _but(BY_DEPTH, BOTH_FITS, statistics=("grad_norm",), rows="fit"),
    "iris_solvers": _but(
        BY_DEPTH,
        {"estimator": ["exact", "lissa_single"]},
        statistics=("spearman", "difference"),
        hue="estimator",
        rows="statistic",
        columns="weight_decay",
        steps=(*BY_DEPTH.steps, steps.differences),
        without=({"statistic": "difference", "estimator": "exact"},),
    ),
    "iris_finished_relu": FINISHED,
    "iris_finished_tanh": _but(FINISHED, TANH),
    "iris_rungs": _but(
        BY_DEPTH,
        {"weight_decay": 0.005, "depth": [1, 3, 5, 8]}
        | {"estimator": ["exact", "unrolled_descent", "source"], "ground_truth": ["warm_descent", "unrolled_descent"]},
        kind="dots",
        at="rung",
        hue="depth",
        steps=(*BY_DEPTH.steps, steps.rungs),
        dots=False,
        topic="Between the unrolled derivative and one retraining",
        note="The unrolled derivative goes through the retraining's own starts: no ceiling binds it",
    ),
    "iris_subsets": _subsets(
        {"dataset": "iris", "activation": "relu", "fit": "descent", "weight_decay": 0.005}
        | {"estimator": ["exact", "lissa_single", "source", "rescaled", "newton_step", "unrolled_descent"]},
        ["warm_descent", "scratch_descent"],
        rows="depth",
    ),
    "iris_outcomes": _but(
        FINISHED,
        BOTH_FITS | {"estimator": "exact"},
        statistics=("networks",),
        hue="outcome",
        steps=(*BY_DEPTH.steps, steps.by_outcome),
        topic="How training ended, share of networks over depth",
    ),
}

UNROLLED = ("unrolled_descent", "unrolled_minibatch")
LISSA = ("lissa_single", "lissa_random", "lissa_partition")

# -- small MNIST: what is resampled is a test point of a network --
POINTS = ("seed", "test_point")
TRUTHS = {"ground_truth": ["warm_minibatch", "tilted_minimum", "minimum", "pbrf"]}
DIRECT = ["exact", "exact_ggn", "second_order", "exact_undamped", "rescaled", "newton_step"]
SMALL = Spec(
    "lines",
    "weight_decay",
    hue="train_choice",
    rows="ground_truth",
    wrap=2,
    where=CHOSEN | TRUTHS | {"dataset": "small_mnist", "train_choice": ["top_influence", "p30_influence"]},
    unit=POINTS,
    steps=(steps.later_fit, steps.reached, steps.own_estimates),
)
COMPARED = Spec(
    "dots",
    "estimator",
    ("solver_residual", "seconds_estimate", "products", "memory_mb"),
    rows="statistic",
    wrap=2,
    where=CHOSEN | TRUTHS | {"dataset": "small_mnist", "weight_decay": DECAY, "estimator": None},
    unit=POINTS,
    steps=(steps.later_fit, steps.compared),
    order="solver_residual",
    dots=False,
    topic="What solvers reach and what they cost, relative residual",
    note="Solvers are in the order of their residuals, those without one last",
)
OF_SMALL_MNIST = {
    "small_mnist_points": _but(
        SMALL,
        {"weight_decay": DECAY, "test_choice": ["max_loss", "p50_loss"]},
        kind="marks",
        at="rank",
        columns="test_choice",
        wrap=1,
        steps=(*SMALL.steps, steps.ranked),
        dots=False,
        paper="test points",
        sums=("ground_truth", "train_choice", "test_choice"),
        topic="Agreement differs from one test point to the next",
        note="Colours tell the choice of training points",
    ),
    "small_mnist_decay": SMALL,
    "small_mnist_truths": Spec(
        "dots",
        "target",
        hue="estimator",
        where={"dataset": "small_mnist", "weight_decay": DECAY, "test_choice": "max_loss", "estimator": DIRECT},
        topic="Which truth estimates agree with",
        unit=POINTS,
        steps=(steps.later_fit, steps.reached, steps.targets),
    ),
    "small_mnist_dampings": _but(
        SMALL,
        {"weight_decay": DECAY, "estimator": "exact", "damping": None}
        | {"ground_truth": ["minimum", "warm_minibatch", "unrolled_minibatch"]},
        at="damping",
        statistics=("spearman", "slope"),
        hue="ground_truth",
        rows="statistic",
        columns="train_choice",
        wrap=1,
        steps=(steps.later_fit, steps.over_dampings, steps.reached),
        dots=False,
        topic="Order and size of the exact Hessian's estimates, from the least damping to the most",
        note="A slope of 1 says that an estimate has the size of the truth; above 1 it is too small",
    ),
    "small_mnist_solvers": COMPARED,
    "small_mnist_solver_agreement": _but(
        COMPARED, statistics=("spearman",), rows="ground_truth", topic="Agreement by solver"
    ),
    "small_mnist_subsets": _subsets(
        {"dataset": "small_mnist", "weight_decay": DECAY}
        | {"estimator": ["exact", "exact_ggn", "ekfac", "identity", "trak", "unrolled_minibatch"]},
        ["warm_minibatch", "scratch_starts"],
        unit=POINTS,
    ),
    "small_mnist_finish": Spec(
        "lines",
        "weight_decay",
        ("grad_norm", "eig_min"),
        hue="fit",
        rows="statistic",
        where={"dataset": "small_mnist"},
        steps=(steps.networks,),
        topic="Where training ends, norm of the gradient of J",
    ),
}

# -- architectures: the paper's estimator, truth and points, for one start of Adam --
MAIN = {"dataset": ["mnist", "cifar10"], "optimiser": "adam", "seed": 0, "weight_decay": DECAY}
MAIN |= {"estimator": "lissa_partition", "ground_truth": "warm_minibatch", **CHOSEN}
ESTIMATORS = {"estimator": None}  # all that there are
EVERY_SET = {"dataset": ["mnist", "cifar10", "cifar100"]}
ASKED = ["lissa_partition", "cg_ggn", "ekfac", "identity"]
LENET = {"dataset": "mnist", "architecture": "lenet"}
DOTS = Spec("dots", "architecture", where=MAIN, unit=POINTS, steps=(steps.whole_repeats,))
SIZES = _but(
    DOTS,
    {"weight_decay": None},
    kind="lines",
    hue="weight_decay",
    rows="dataset",
    order="n_params",
    paper="networks",
    sums=("dataset", "weight_decay"),
    by_panel=True,
    note="Networks stand in the order of the sizes below their names",
)
TABLE = _but(SIZES, EVERY_SET, kind="table", statistics=("pearson", "spearman"), sums=None, dots=False)
OF_NETWORKS = {
    "networks_table": TABLE,
    "networks_parameters": SIZES,
    "networks_estimators": _but(
        DOTS,
        ESTIMATORS | {"train_choice": ["top_influence", "random"]},
        hue="estimator",
        rows="dataset",
        columns="train_choice",
        order="n_params",
        dots=False,
        topic="Which estimator agrees with retraining",
        sums=("train_choice", "estimator"),
    ),
    "networks_optimisers": _but(
        DOTS,
        LENET | {"optimiser": None},
        at="optimiser",
        paper="optimisers",
        sums=(),
        topic="Agreement by the optimiser",
    ),
    "networks_starts": _but(
        DOTS,
        {"dataset": "mnist", "seed": None},
        at="seed",
        hue="architecture",
        steps=(steps.whole_repeats, steps.several("seed", "architecture")),
        sums=("architecture",),
        topic="Agreement from one start to another",
    ),
    "networks_groups": _but(
        DOTS,
        EVERY_SET
        | {"architecture": "resnet18", "weight_decay": [DECAY, 0.0005], "seed": None}
        | {"train_choice": ["top_influence", *GROUPS]},
        at="removed",
        rows="dataset",
        steps=(steps.whole_repeats, steps.with_groups),
        topic="Agreement where groups are left out together",
        paper="groups",
        sums=("dataset",),
    ),
    "networks_scratch": _but(
        DOTS,
        LENET
        | {"train_choice": "scratch", "estimator": ["lissa_partition", "warm_minibatch"]}
        | {"ground_truth": ["warm_minibatch", "scratch_batches"]},
        at="ground_truth",
        hue="estimator",
        steps=(),
        topic="Agreement with training from scratch",
    ),
    "networks_longer": _but(
        DOTS,
        ESTIMATORS | {"dataset": "mnist", "ground_truth": None},
        kind="lines",
        at="share",
        statistics=("spearman", "slope"),
        hue="estimator",
        rows="architecture",
        columns="statistic",
        steps=(steps.whole_repeats, steps.shares),
        without=({"statistic": "slope", "estimator": "identity"},),
        dots=False,
        sums=("architecture", "estimator"),
        topic="Agreement over the length of the retraining",
        note="A slope of 1 says that an estimate has the size of the truth; the product of gradients has the size that "
        "the damping gives it, so its slope is not shown",
    ),
    "networks_size": _but(
        DOTS,
        {"dataset": ["mnist", "cifar10"], "seed": None},
        kind="lines",
        at="n_train",
        hue="measure",
        rows="architecture",
        columns="dataset",
        steps=(steps.several("n_train", "architecture"), steps.measures),
        dots=False,
        topic="Agreement over the number of training images",
    ),
    "networks_subsets": _subsets(
        {"dataset": "mnist", "weight_decay": DECAY} | {"estimator": [*ASKED, "unrolled_minibatch", "warm_minibatch"]},
        ["warm_minibatch", "scratch_batches"],
        rows="architecture",
        unit=POINTS,
    ),
    "networks_costs": _but(
        TABLE,
        MAIN | ESTIMATORS | {"test_choice": None, "train_choice": ["top_influence", "random"]},
        statistics=("seconds_estimate", "seconds_retrain"),
        hue="estimator",
    ),
}
WATERFALL = Spec(
    "dots",
    "rung",
    rows="network",
    wrap=2,
    where={"dataset": ["iris", "small_mnist", "mnist", "cifar10", "cifar100"], "test_choice": "max_loss"}
    | {"train_choice": ["top_influence", "p30_influence"], "weight_decay": [0.005, DECAY]}
    | {"estimator": ["exact", "exact_undamped", "ekfac", *LISSA, *UNROLLED]}
    | {"ground_truth": ["minimum", "warm_descent", "warm_minibatch"]},
    unit=POINTS,
    steps=(steps.falls,),
    dots=False,
    paper="falls",
    falls=steps.FALLS,
    topic="Where agreement with retraining is lost",
    note="Each bar starts where the one above it ends, the first at perfect agreement; orange: lost, blue: won. "
    "Estimates are the damped Hessian's, else EK-FAC's; what is not measured is in the next",
)
PHOTOGRAPHS = {"dataset": list(words.PHOTOGRAPHS), "ground_truth": "warm_minibatch"}
OF_PHOTOGRAPHS = {"photographs_table": Spec("table", "estimator", where=PHOTOGRAPHS)}
OF_ONES_OWN = {
    "own_agreement": Spec(
        "dots",
        "estimator",
        hue="ground_truth",
        rows="dataset",
        columns="weight_decay",
        where=CHOSEN
        | {"dataset": ["diabetes", "digits"], "test_choice": None, "estimator": None}
        | {"ground_truth": ["scratch_fit", "warm_minibatch"]},
        unit=POINTS,
        dots=False,
        topic="Agreement of a model of one's own with training anew and with going on",
    )
}
OF_PUZZLES = {
    "puzzle_ways": Spec(
        "dots",
        "way",
        ("spearman_single",),
        hue="estimator",
        rows="train_choice",
        where={"dataset": "puzzle", "puzzle": "perceptron", "train_choice": ["random", "top_influence"]},
        unit=POINTS,
        steps=(steps.ways,),
        dots=False,
        topic="Leave-one-out of the perceptron by way of training",
        note="The ceiling is the root of one retraining's reliability",
    ),
    "puzzle_dampings": Spec(
        "lines",
        "damping",
        ("spearman", "slope"),
        hue="estimator",
        rows="statistic",
        columns="train_choice",
        where={"dataset": "puzzle", "puzzle": "logistic", "damping": None, "train_choice": ["random", "top_influence"]},
        unit=POINTS,
        dots=False,
        topic="Softmax regression: agreement with the certified minima without each image, over damping",
        note="A slope of 1 says that an estimate has the size of the truth; below 1 it is too large",
    ),
    "puzzle_removals": Spec(
        "lines",
        "without",
        ("loss_after",),
        hue="selected_by",
        columns="fit",
        where={"dataset": "puzzle", "puzzle": "curve", "test_point": None},
        steps=(steps.from_nothing_on,),
        dots=False,
        error="loss_error",
        topic="Loss of the test examples without the examples that help them most, by each score",
        note="Bars: standard error of the change from the control",
    ),
}
SPECS: dict[str, Spec] = (
    {"waterfall": WATERFALL} | OF_IRIS | OF_SMALL_MNIST | OF_NETWORKS | OF_PHOTOGRAPHS | OF_ONES_OWN | OF_PUZZLES
)

WARM = ("warm_minibatch", "warm_minibatch_minus_control")
SCATTERS: dict[str, Scatter] = {
    "iris_points": Scatter([(None, truth) for truth in TRUTHS_OF_IRIS], CHOSEN),
    "small_mnist_together": Scatter(
        [(None, truth) for truth in (*WARM, "tilted_minimum", "pbrf", "minimum")], CHOSEN | {"weight_decay": DECAY}
    ),
    "small_mnist_damped": Scatter(
        [("exact", "minimum"), ("exact_undamped", "minimum")],
        CHOSEN,
        fullest=True,
        note="Left: the damped Hessian's estimates; right: the same without damping",
    ),
    "networks_points": Scatter([(None, truth) for truth in WARM], CHOSEN),
    "own_points": Scatter([(None, "scratch_fit"), (None, WARM[1])], CHOSEN),
    "photographs_points": Scatter([(None, truth) for truth in WARM], {"train_choice": "top_influence"}),
}
HEADLINES = (
    "waterfall",
    "networks_size",
    "iris_finished_relu",
    "small_mnist_dampings",
    "networks_estimators",
    "networks_longer",
)
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
    told = texts.alt(shown, damping), texts.caption(shown, damping)
    return Picture(means.draw(shown, damping), *told, rows=shown.table())


def headlines(results: pd.DataFrame, points: Sequence[Mapping]) -> list[Picture | Styler]:
    """The figures of the report's first page, from all runs: the waterfall first, and images as the last."""
    sets = pictures(points, dataset=["small_mnist", "cifar10"], weight_decay=DECAY)
    return [*(figure(name, results) for name in HEADLINES), *sets]
