"""What single figures show of which rows, on synthetic tables: selection, pairing, counting, references."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plot_tables
import pytest

from fragile_lib import plots
from fragile_lib.agreement import bootstrap_interval
from fragile_lib.plots import words
from fragile_lib.plots.means import CEILING
from fragile_lib.plots.rows import show_rows
from fragile_lib.plots.words import number

IRIS = {"fit": "descent", "estimator": "exact", "ground_truth": "warm_descent", "activation": "relu"}
IRIS |= {"test_choice": "max_loss", "train_choice": "top_influence", "width": 5}
SMALL = {"weight_decay": 0.001, "estimator": "exact", "train_choice": "top_influence", "test_choice": "max_loss"}
MNIST, LENET, RESNET = {"dataset": "mnist"}, {"architecture": "lenet"}, {"architecture": "resnet18"}
SCRATCH = {"estimator": "warm_minibatch", "ground_truth": "scratch_batches"}
LONGER = {"ground_truth": "warm_minibatch_1"}
TO_GROUPS = {"ground_truth": "pbrf", "train_choice": "random_groups"}
DEEP = {"dataset": "mnist", "weight_decay": 0.001, "optimiser": "adam", "seed": 0, "estimator": "lissa_partition"}
DEEP |= {"ground_truth": "warm_minibatch", "test_choice": "max_loss", "train_choice": "top_influence"}


def rows_of(table: pd.DataFrame, defaults: dict, **where) -> pd.DataFrame:
    for column, value in (defaults | where).items():
        table = table[table[column] == value]
    return table


def mark(name: str, table: pd.DataFrame, **key) -> pd.Series:
    marks = show_rows(table, plots.SPECS[name]).marks
    for column, value in key.items():
        marks = marks[marks[column] == value]
    assert len(marks) == 1
    return marks.iloc[0]


def dots(ax) -> np.ndarray:
    """The heights of single units, those of stars and of empty collections left out."""
    faint = [c for c in ax.collections if hasattr(c, "get_sizes") and len(c.get_offsets()) and max(c.get_sizes()) < 100]
    return np.concatenate([np.asarray(c.get_offsets(), dtype=float)[:, 1] for c in faint])


def stars(ax) -> list[float]:
    """The heights of the paper's figures."""
    found = [c for c in ax.collections if hasattr(c, "get_sizes") and len(c.get_sizes()) and max(c.get_sizes()) > 100]
    return sorted(float(c.get_offsets()[0][1]) for c in found)


# -- Iris --------------------------------------------------------------------------------------------------------------


# figure, what tells the mark, and the rows that it is the mean of, picked by hand
PICKED = [
    ("iris_depth", {"depth": 4}, {}),
    ("iris_depth_tanh", {"depth": 4}, {"activation": "tanh"}),
    ("iris_width", {"width": 50}, {"depth": 1}),
    ("iris_test_points", {"depth": 4, "test_choice": "p50_loss", "weight_decay": None}, {}),
    ("iris_norms", {"depth": 4, "statistic": "norm_ratio"}, {}),
    ("iris_largest_eigenvalue", {"depth": 4, "statistic": "eig_max"}, {}),
    ("iris_smallest_eigenvalue", {"depth": 4, "statistic": "eig_min"}, {}),
    ("iris_gradient", {"depth": 4, "statistic": "grad_norm", "fit": "certified"}, {"ground_truth": "minimum"}),
    ("iris_solvers", {"depth": 4, "statistic": "spearman", "estimator": "lissa_single"}, {}),
    ("iris_finished_relu", {"depth": 4, "estimator": "exact_ggn", "fit": "descent"}, {}),
    ("iris_finished_relu", {"depth": 4, "estimator": "exact", "fit": "certified"}, {"ground_truth": "minimum"}),
    ("small_mnist_decay", {"ground_truth": "tilted_minimum", "train_choice": "top_influence", "weight_decay": 0.0}, {}),
    ("small_mnist_solver_agreement", {"estimator": "kfac", "ground_truth": "pbrf"}, {}),
    ("small_mnist_truths", {"estimator": "exact_ggn", "target": "PBRF, random groups"}, TO_GROUPS),
    ("small_mnist_truths", {"estimator": "second_order", "target": "PBRF, random groups"}, TO_GROUPS),
    ("networks_parameters", MNIST | {"weight_decay": 0.001, "architecture": "resnet50"}, {}),
    ("networks_estimators", MNIST | {"architecture": "vgg13", "estimator": "ekfac", "train_choice": "random"}, {}),
    ("networks_optimisers", {"optimiser": "sgd"}, LENET),
    ("networks_starts", {"seed": 2, "architecture": "small_cnn"}, {}),
    ("networks_groups", MNIST | {"removed": "single_images"}, RESNET),
    ("networks_groups", MNIST | {"removed": "random_groups"}, RESNET | {"train_choice": "random_groups"}),
    ("networks_scratch", SCRATCH, LENET | {"train_choice": "scratch"}),
    ("networks_longer", {"statistic": "spearman", "share": 1.0, "estimator": "ekfac"}, LENET | LONGER),
]


@pytest.mark.parametrize(("name", "key", "where"), PICKED)
def test_a_mark_is_the_mean_of_the_rows_that_it_is_said_to_be_of(name, key, where):
    table, defaults = plot_tables.everything(), {"ir": IRIS, "sm": SMALL, "ne": DEEP}[name[:2]]
    if defaults is IRIS:
        key = {"weight_decay": 0.005} | key
        defaults = IRIS if "width" not in key else {k: v for k, v in IRIS.items() if k != "width"}
    key = {c: v for c, v in key.items() if v is not None}
    column = key.get("statistic", "spearman")
    picked = {c: v for c, v in key.items() if c not in ("statistic", "target", "removed", "share")}
    rows = rows_of(table, defaults | {"weight_decay": defaults.get("weight_decay", 0.005)}, **picked, **where)
    rows = rows[rows["n_train"] == 500] if defaults is DEEP else rows
    average = np.median if column in ("norm_ratio", "eig_max", "eig_min", "grad_norm") else np.mean
    found, interval = mark(name, table, **key), bootstrap_interval(rows[column], average)
    assert len(rows) > 1 and found["n"] == len(rows)
    assert found["mean"] == pytest.approx(interval.mean)
    assert [found["low"], found["high"]] == pytest.approx([interval.low, interval.high], abs=1e-2 * abs(interval.mean))


def test_the_call_can_choose_other_rows():
    table = plot_tables.iris()
    rows = rows_of(table, IRIS, weight_decay=0.005, depth=1, test_choice="p50_loss")
    other = plots.figure("iris_depth", table, test_choice="p50_loss").alt
    assert f"Weight decay 0.005: depth 1 {number(rows['spearman'].mean())}" in other
    assert plots.figure("iris_width", table).figure is None  # one width has no axis


def test_every_seed_is_a_dot_and_flagged_ones_are_hollow():
    table = plot_tables.iris()
    ax = plots.figure("iris_depth", table).figure.axes[0]
    rows = rows_of(table, IRIS)
    np.testing.assert_allclose(np.sort(dots(ax)), np.sort(rows["spearman"].dropna()))
    hollow = [
        y
        for c in ax.collections
        if hasattr(c, "get_sizes") and len(c.get_facecolor()) == len(c.get_offsets())
        for (_, y), colour in zip(c.get_offsets(), c.get_facecolor(), strict=True)
        if colour[3] == 0
    ]
    np.testing.assert_allclose(hollow, rows[rows["status"] == "indefinite"]["spearman"])


def test_negative_correlations_stay_negative_and_zero_is_marked():
    table = plot_tables.iris()
    table["spearman"] = -table["spearman"].abs()
    picture = plots.figure("iris_depth", table)
    ax = picture.figure.axes[0]
    assert ax.get_ylim()[0] < rows_of(table, IRIS)["spearman"].min() and ax.get_ylim()[1] >= 1
    assert any(np.allclose(line.get_ydata(), 0) for line in ax.get_lines() if len(line.get_ydata()))
    assert "\N{MINUS SIGN}0." in picture.alt


def test_missing_numbers_are_counted_under_the_axis():
    ax = plots.figure("iris_depth", plot_tables.iris()).figure.axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "4", "8"]
    assert [t.get_text() for t in ax.get_xticklabels(minor=True)] == ["", "", "2\N{EN DASH}4"]
    assert "seeds with a number" in ax.get_xlabel()
    complete = plots.figure("iris_depth", plot_tables.iris(depths=(1, 4))).figure.axes[0]
    assert complete.get_xticklabels(minor=True) == []


def test_alt_and_caption_hold_numbers_setting_and_the_papers_figures():
    table = plot_tables.iris()
    picture = plots.figure("iris_depth", table)
    assert "The paper, weight decay 0.005, depth 1: 0.97" in picture.alt
    assert "The paper, no weight decay, depth 1: 0.51" in picture.alt
    for text in ("Iris", "ReLU", "width 5", "profile quick", "4 seeds", "95% bootstrap", "too short", "constant 1"):
        assert text in picture.caption, text
    for text in ("diverged 1", "indefinite 1", "profile quick (reduced: not a study", "Stars: the paper's figures"):
        assert text in picture.caption, text
    assert stars(picture.figure.axes[0]) == [0.508, 0.97]
    assert "The paper" not in plots.figure("iris_depth_tanh", table.assign(activation="tanh")).alt
    assert "(reduced" not in plots.figure("iris_depth", table.assign(profile="laptop")).caption


def test_solvers_are_paired_by_seed():
    table = plot_tables.iris(seeds=5)
    lost = (table["estimator"] == "lissa_single") & (table["seed"] == 0)
    table.loc[lost, ["spearman", "status"]] = [np.nan, "solver_diverged"]
    two = [rows_of(table, IRIS, estimator=e, weight_decay=0.005, depth=1) for e in ("lissa_single", "exact")]
    paired = (two[0].set_index("seed")["spearman"] - two[1].set_index("seed")["spearman"]).dropna()
    found = mark("iris_solvers", table, statistic="difference", weight_decay=0.005, depth=1)
    assert (found["n"], found["mean"]) == (4, pytest.approx(paired.mean()))
    assert "solver diverged" in plots.figure("iris_solvers", table).caption
    assert "no difference" in plots.figure("iris_solvers", table[table["estimator"] != "lissa_single"]).caption


def test_finished_training_has_a_panel_for_each_fit_and_decay_that_is_there():
    table = plot_tables.iris()
    figure = plots.figure("iris_finished_relu", table).figure
    fits = ("gradient descent", "certified optimum")
    titles = [ax.get_title().replace("\n", " ") for ax in figure.axes]
    assert titles == [f"{f}, {d}" for f in fits for d in ("decay 0.005", "no decay")]
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    part = plots.figure("iris_finished_relu", table[(table["fit"] == "descent") & (table["estimator"] == "exact")])
    assert len(part.figure.axes) == 2 and "GGN" not in part.alt and "certified" not in part.alt


def test_sizes_have_a_log_axis_with_a_line_where_they_agree():
    names = ("iris_norms", "iris_largest_eigenvalue", "iris_smallest_eigenvalue", "iris_gradient")
    pictures = [plots.figure(name, plot_tables.iris(), damping=2e-3) for name in names]
    assert [p.figure.axes[0].get_yscale() for p in pictures] == ["log", "log", "symlog", "log"]
    assert all("edians" in p.caption for p in pictures)
    heights = [line.get_ydata() for line in pictures[0].figure.axes[0].get_lines()]
    assert any(len(y) and np.allclose(y, 1) for y in heights)


def test_the_smallest_eigenvalue_counts_the_indefinite():
    table = plot_tables.iris()
    picture = plots.figure("iris_smallest_eigenvalue", table, damping=2e-3)
    rows = rows_of(table, IRIS)
    below = (rows["eig_min"] < -2e-3).sum()
    assert 0 < below < len(rows)
    assert f"indefinite: {below} of {len(rows)}" in picture.alt and f"{below} of {len(rows)}" in picture.caption
    lines = [line.get_ydata() for line in picture.figure.axes[0].get_lines()]
    assert any(len(y) and np.allclose(y, -2e-3) for y in lines)


def test_outcomes_count_every_network_once():
    table = plot_tables.iris()
    assert "Of 48 networks" in plots.figure("iris_outcomes", table).caption
    for kind in ("constant", "indefinite", "diverged", "ok"):
        found = mark("iris_outcomes", table, fit="descent", weight_decay=0.0, depth=8, outcome=kind)
        assert (found["mean"], found["n"]) == (0.25, 4)
    melted = table.assign(status=table["status"].where(table["depth"] != 1, "melted"))
    assert "melted 16" in plots.figure("iris_outcomes", melted).caption


# -- small MNIST -------------------------------------------------------------------------------------------------------


def repeated(table: pd.DataFrame) -> pd.DataFrame:
    """Retraining was repeated at one decay: 0.61 and 0.27 for the two choices of training points."""
    heights = table["train_choice"].map({"top_influence": 0.61, "p30_influence": 0.27})
    told = (table["ground_truth"] == "warm_minibatch") & (table["weight_decay"] == 0.001)
    return table.assign(ceiling_spearman=heights.where(told))


def test_points_are_in_the_order_of_loss_with_the_count_in_the_papers_range():
    table = plot_tables.small_mnist()
    picture = plots.figure("small_mnist_points", table)
    rows = rows_of(table, SMALL, ground_truth="warm_minibatch").sort_values("test_loss", ascending=False)
    marks = show_rows(table, plots.SPECS["small_mnist_points"]).marks
    key = {"ground_truth": "warm_minibatch", "train_choice": "top_influence", "test_choice": "max_loss"}
    np.testing.assert_allclose(rows_of(marks, key).sort_values("rank")["mean"], rows["spearman"])
    values = rows["spearman"]
    assert (
        "Warm-start minibatches, training points of largest |influence|, test points of highest loss: "
        f"mean {number(values.mean())} ± {number(values.std())}"
    ) in picture.alt
    assert f"{values.between(0.38, 0.92).sum()} of 16 in the paper's range" in picture.alt
    own = rows_of(table, SMALL, ground_truth="pbrf", estimator="exact_ggn")["spearman"]  # the estimate of this truth
    assert f"PBRF, training points of largest |influence|, test points of highest loss: mean {number(own.mean())}" in (
        picture.alt
    )
    assert "8 test points of highest loss and 8 test points of median loss of each network, 2 seeds" in picture.caption
    assert "5,500 training examples, 2,616 parameters" in picture.caption


def test_a_truth_known_after_two_fits_counts_once():
    table = plot_tables.small_mnist()
    twice = table[table["ground_truth"] == "pbrf"].assign(fit="certified", spearman=-1.0)
    both = [plots.figure("small_mnist_decay", t).alt for t in (table, pd.concat([table, twice]))]
    assert both[0] == both[1]


def test_the_ceiling_is_the_root_of_a_truths_reliability_where_it_was_repeated():
    table = repeated(plot_tables.small_mnist())
    picture = plots.figure("small_mnist_decay", table)
    first, *others = picture.figure.axes
    heights = [line.get_ydata()[0] for line in first.get_lines() if line.get_label() == CEILING]
    assert sorted(heights) == pytest.approx(np.sqrt([0.27, 0.61]))
    assert not any(line.get_label() == CEILING for ax in others for line in ax.get_lines())
    assert f"training points of largest |influence|: weight decay 0.001 {np.sqrt(0.61):.2f}" in picture.alt
    reached = "what an estimate without error would reach beside so noisy a truth, "
    assert f"{reached}{np.sqrt(0.27):.2f} to {np.sqrt(0.61):.2f}" in picture.caption
    below = table.assign(ceiling_spearman=-table["ceiling_spearman"])
    assert f"{reached}0.00" in plots.figure("small_mnist_decay", below).caption
    known = table.assign(reliability=np.where(table["ceiling_spearman"].notna(), 0.81, np.nan))
    assert f"{reached}0.90." in plots.figure("small_mnist_decay", known).caption, "that of the mean, where it is known"


def test_a_test_point_counts_once_in_the_ceiling_whatever_number_of_estimators_it_has():
    table = plot_tables.small_mnist()
    table = table[table["ground_truth"] == "warm_minibatch"]
    first = table["test_point"] == rows_of(table, SMALL)["test_point"].iloc[0]
    table["ceiling_spearman"] = np.where(first, 0.4, np.nan)
    second = table["test_point"] == rows_of(table, SMALL)["test_point"].iloc[1]
    table.loc[second & (table["estimator"] == "exact"), "ceiling_spearman"] = 0.1
    marks = show_rows(table, plots.SPECS["small_mnist_truths"]).marks
    marks = marks[marks["target"] == "warm-start minibatches"]
    assert len(marks) == 2 and marks["ceiling"].tolist() == pytest.approx(2 * [(0.4**0.5 + 0.1**0.5) / 2])


def test_solvers_are_in_the_order_of_their_residuals_with_what_they_cost():
    table = plot_tables.small_mnist()
    picture = plots.figure("small_mnist_solvers", table)
    names = [t.get_text() for t in picture.figure.axes[0].get_yticklabels()]
    solvers = ("exact", "cg", "lissa_random", "exact_ggn", "kfac", "trak")
    assert names == [words.code(s).replace(" (random batches)", " (random\nbatches)") for s in solvers] or names == [
        words.code(s) for s in solvers
    ]
    shown = show_rows(table, plots.SPECS["small_mnist_solvers"]).rows
    residual = (
        shown.loc[shown["estimator"] == "kfac"].groupby(["seed", "test_point"])["solver_residual"].mean().median()
    )
    assert f"K-FAC {number(residual)}" in picture.alt and "TRAK 9.00" in picture.alt
    assert "not converged" in picture.caption  # LiSSA's mark is hollow
    assert "none" in [t.get_text() for t in picture.figure.axes[0].texts]  # TRAK has no residual
    assert plots.figure("small_mnist_solvers", table[table["estimator"] == "exact"]).figure is None


def test_truths_have_a_line_for_each_kind_of_training_points_without_what_was_not_reached():
    table = plot_tables.small_mnist()
    picture = plots.figure("small_mnist_truths", table)
    # three truths but the control at two choices, the minimum, from scratch, three kinds of group
    assert len(picture.figure.axes[0].get_yticks()) == 3 * 2 + 1 + 1 + 3
    assert "minus control" not in picture.alt and "Not drawn" not in picture.caption
    few = rows_of(table, SMALL, ground_truth="pbrf").assign(spearman=-1.0, status="not_certified")
    more = plots.figure("small_mnist_truths", pd.concat([table, few]))
    assert more.alt == picture.alt and f"Not drawn: {len(few)} of" in more.caption
    undamped = rows_of(table, SMALL, ground_truth="minimum").assign(estimator="exact_undamped")
    assert (
        "Exact Hessian undamped: certified minimum"
        in plots.figure("small_mnist_truths", pd.concat([table, undamped])).alt
    )


def test_a_truth_of_another_length_stands_below_that_of_the_protocol_with_its_length():
    table = plot_tables.small_mnist()
    warm = rows_of(table, SMALL, ground_truth="warm_minibatch")
    longer = [warm.assign(ground_truth=f"warm_minibatch_{length}") for length in (0.25, 30000)]
    drawn = plots.figure("small_mnist_truths", pd.concat([table, *longer])).figure.axes[0]
    names = [label.get_text().replace("\n", " ") for label in drawn.get_yticklabels()]
    first = "warm-start minibatches"
    assert names[0] == first and names[1].startswith(f"{first}, at")
    assert names[2:4] == [f"{first} for 25% of the steps", f"{first} for 30,000 steps"]


def test_finish_counts_each_network_once():
    table = plot_tables.small_mnist()
    picture = plots.figure("small_mnist_finish", table, damping=0.01)
    networks = table.drop_duplicates(["weight_decay", "seed", "fit"])
    below = (networks["eig_min"] < -0.01).sum()
    assert 0 < below < len(networks) and f"indefinite: {below} of {len(networks)}" in picture.caption
    assert "indefinite 1" not in picture.caption  # outcomes are of estimates


def test_runs_over_dampings_are_shown_over_damping_and_nowhere_else():
    table, swept = plot_tables.everything(), plot_tables.dampings()
    shown = show_rows(table, plots.SPECS["small_mnist_dampings"])
    assert set(shown.rows["run_id"]) == set(swept["run_id"]) and shown.rows["damping"].notna().all()
    key = {"damping": 0.01, "ground_truth": "minimum", "train_choice": "p30_influence"}
    for statistic in ("spearman", "slope"):
        found = mark("small_mnist_dampings", table, statistic=statistic, **key)
        assert found["n"] == 3 and found["mean"] == pytest.approx(rows_of(swept, key)[statistic].mean())
    caption = plots.figure("small_mnist_dampings", table).caption
    assert "certified minimum, images at the 30th percentile of |influence|: 0.90" in caption
    others = {name: show_rows(table, spec) for name, spec in plots.SPECS.items() if name != "small_mnist_dampings"}
    assert all(swept["run_id"][0] not in set(shown.rows["run_id"]) for shown in others.values())
    assert show_rows(table.drop(columns="damping"), plots.SPECS["small_mnist_dampings"]) is None


# -- architectures -----------------------------------------------------------------------------------------------------


def test_sizes_have_every_mean_in_order_with_sizes_and_stars():
    table, name = plot_tables.networks(), "networks_parameters"
    picture = plots.figure(name, table)
    order = sorted(plot_tables.NETWORKS, key=lambda a: plot_tables.NETWORKS[a][1])
    upper, lower = picture.figure.axes
    labels = [t.get_text().split("\n") for t in upper.get_xticklabels()]
    assert [label[0] for label in labels] == [words.code(a) for a in order]
    assert labels[order.index("lenet")][1] == "62k"
    assert upper.get_ylim() == lower.get_ylim() and "ResNet-50 −0." in picture.alt
    assert stars(upper) == [0.13, 0.22, 0.51, 0.87]
    assert "500 training examples, VGG13, ResNet-18 and ResNet-50 at 0.125 of the published width" in picture.caption
    median = plots.figure(name, table, test_choice="p50_loss")
    assert "The paper" not in median.alt and "Black marks" not in median.caption


def cells(made) -> dict:
    table = made.data
    return {name: [str(v).split("<br>") for v in table.loc[name]] for name in table.index}


def test_the_table_has_the_papers_form_and_names_what_is_not_there():
    table = plot_tables.networks()
    made = plots.figure("networks_table", table)
    rows = cells(made)
    assert [c[1] for c in made.data.columns] == ["decay 0.001", "no decay", "decay 0.001", "no decay", "parameters"]
    values = rows_of(table, DEEP, architecture="lenet")
    interval = bootstrap_interval(values.sort_values("test_point")["spearman"])
    assert rows["LeNet"][0] == [
        f"{number(values['pearson'].mean())} / {number(values['spearman'].mean())}",
        f"{number(interval.low)} to {number(interval.high)}",
        "paper 0.83 / 0.51",
    ]
    assert rows["ResNet-50"][1][2] == "paper ? / 0.13" and len(rows["VGG13"][0]) == 2
    assert rows["VGG13"][4] == ["148,706 to", "148,850"]
    for text in ("3 test points of highest loss", "500 training examples", "shorter", "mean Pearson / mean Spearman"):
        assert text in made.caption
    lost = table[(table["dataset"] != "cifar10") | (table["architecture"] != "vgg13")].copy()
    failed = lost["run_id"].eq("cifar10-resnet50-wd0-adam-s0") & lost["estimator"].eq("lissa_partition")
    lost.loc[failed, ["spearman", "pearson", "status"]] = [np.nan, np.nan, "solver_diverged"]
    lost.loc[rows_of(lost, DEEP, architecture="resnet18").index[0], "spearman"] = np.nan
    made = plots.figure("networks_table", lost)
    rows = cells(made)
    assert rows["VGG13"][2] == ["not run"] and rows["ResNet-50"][3] == ["no number"]
    assert rows["ResNet-18"][0][-1] == "2 of 3 points" and "solver diverged 3" in made.caption
    assert "paper" not in plots.figure("networks_table", table, test_choice="p50_loss").to_html()


def test_cifar100_has_a_column_and_a_range_of_its_own_where_it_was_run():
    table = plot_tables.networks()
    more = table[table["run_id"] == "cifar10-resnet18-wd0.001-adam-s0"]
    more = more.assign(dataset="cifar100", weight_decay=0.0005, n_train=1000, run_id="cifar100-resnet18")
    both = pd.concat([table, more], ignore_index=True)
    rows = cells(plots.figure("networks_table", both))
    assert rows["ResNet-18"][4][-1] == "paper 0.15 / 0.11" and rows["LeNet"][4] == ["not run"]
    assert "0.01 to 0.21 and 0.01 to 0.18" in plots.figure("networks_groups", both).caption
    assert plots.figure("networks_parameters", both).alt == plots.figure("networks_parameters", table).alt


def test_estimators_are_compared_on_influential_and_on_random_points():
    table = plot_tables.networks()
    picture = plots.figure("networks_estimators", table)
    titles = [f"{d}, {t}" for d in ("MNIST", "CIFAR-10") for t in ("of largest |influence|", "drawn at random")]
    assert [ax.get_title().replace("\n", " ") for ax in picture.figure.axes] == titles
    marks = show_rows(table, plots.SPECS["networks_estimators"]).marks
    # of random points only those are repeated that are among the others, which are few
    assert marks.groupby("train_choice")["ceiling"].count().to_dict() == {"random": 0, "top_influence": 40}
    means = rows_of(marks, {"train_choice": "top_influence", "estimator": "lissa_partition"})["mean"]
    head = "Training points of largest |influence|, LiSSA (fixed batches): mean"
    assert f"{head} {number(means.mean())} ± {number(means.std())}" in picture.caption and "10 marks" in picture.caption


def test_optimisers_and_starts_give_their_spread():
    table = plot_tables.networks()
    picture = plots.figure("networks_optimisers", table)
    assert [t.get_text() for t in picture.figure.axes[0].get_yticklabels()] == [
        *("Adam", "gradient descent", "Nesterov", "RMSProp")
    ]
    optimisers = ("adam", "sgd", "nesterov", "rmsprop")
    means = [rows_of(table, DEEP, architecture="lenet", optimiser=o)["spearman"].mean() for o in optimisers]
    assert f"Mean {number(np.mean(means))} ± {number(np.std(means, ddof=1))}" in picture.caption
    assert f"{sum(0.45 <= m <= 0.67 for m in means)} of 4 in the paper's range" in picture.caption
    bands = [c for c in picture.figure.axes[0].collections if c.get_label() == "the paper's range"]
    assert bands[0].get_paths()[0].get_extents().intervalx == pytest.approx((0.45, 0.67))
    picture = plots.figure("networks_starts", table)
    assert [t.get_text() for t in picture.figure.axes[0].get_yticklabels()] == [f"seed {s}" for s in range(4)]
    assert "VGG13" not in picture.alt  # of one start alone
    starts = [rows_of(table, DEEP, architecture="small_cnn", seed=s)["spearman"].mean() for s in range(4)]
    assert f"Small CNN: mean {number(np.mean(starts))} ± {number(np.std(starts, ddof=1))}" in picture.caption


def test_groups_stand_beside_single_images_and_scratch_beside_the_warm_start():
    table = plot_tables.networks()
    picture = plots.figure("networks_groups", table)
    assert [ax.get_title() for ax in picture.figure.axes] == ["MNIST", "CIFAR-10"]
    assert "10 groups of each kind" in picture.caption and "of 3 in the paper's range" in picture.caption
    scratch = plots.figure("networks_scratch", table).alt
    assert "Warm-start minibatches: from scratch (other batches) −0." in scratch


def test_longer_retraining_shows_networks_that_went_on_longer_at_all_lengths():
    table = plot_tables.networks()
    picture = plots.figure("networks_longer", table)
    axes = picture.figure.axes
    assert [ax.get_title() for ax in axes] == ["LeNet"] * 2
    assert [[t.get_text() for t in ax.get_xticklabels()] for ax in axes] == [["6%", "25%", "100%"]] * 2
    assert "gradient product" not in picture.alt.split("Slope of truth on estimate, ")[1].split("Truth with")[0]
    short = table[~table["ground_truth"].str.match(r"warm_minibatch_[\d.]+$")]
    assert plots.figure("networks_longer", short).figure is None


def test_costs_are_of_single_images_and_of_each_network_once():
    made = plots.figure("networks_costs", plot_tables.networks())
    assert made.data.loc[("MNIST", "LeNet"), "LiSSA (fixed batches)"] == number(10 * (61706 / 60000) ** 0.7)
    assert made.data.loc[("MNIST", "ResNet-18"), "retraining"] == number(176258**0.5)  # not that of the groups
    assert made.data.shape == (10, 5)


# -- the waterfall -----------------------------------------------------------------------------------------------------


def chain(**columns: dict) -> pd.DataFrame:
    """Rows of one network and two test points for pairs of estimator and truth, with their correlations."""
    run = {"run_id": "r", "profile": "laptop", "dataset": "small_mnist", "architecture": "small_cnn", "seed": 0}
    run |= {"activation": "tanh", "depth": None, "width": None, "weight_decay": 0.001, "n_train": 5500, "n_params": 9}
    run |= {"test_choice": "max_loss", "train_choice": "top_influence", "status": "ok", "unseen": 0.25}
    rows = []
    for name, values in columns.items():
        estimator, truth = name.split("__")
        for point, value in values.items():
            single = {"spearman": value, "spearman_single": value - 0.3}
            rows.append(run | {"test_point": point, "estimator": estimator, "ground_truth": truth} | single)
    return pd.DataFrame(rows)


def test_the_waterfall_falls_from_one_over_the_test_points_that_all_its_steps_have():
    table = chain(
        exact_undamped__minimum={1: 0.9, 2: 0.8, 3: 0.1},
        exact__minimum={1: 0.7, 2: 0.6, 3: 0.1},
        exact__warm_minibatch={1: 0.5, 2: 0.4, 9: 0.0},
    )
    picture = plots.figure("waterfall", table)
    marks = show_rows(table, plots.SPECS["waterfall"]).marks
    assert marks.set_index("rung")["mean"].round(9).to_dict() == {
        "a removal is not small": 0.85, "damping": 0.65, "training cut short": 0.45, "noise of one retraining": 0.15
    }  # fmt: skip
    (ax,) = (ax for ax in picture.figure.axes if ax.axison)
    told = [text.get_text() for text in ax.texts]
    assert told == ["−0.15", "−0.20", "−0.20", "−0.30", "not measured"], "the stochastic solver has none"
    bars = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in ax.patches if patch.get_height() < 0.9]
    assert [ends for ends in np.round(bars, 9).tolist()] == [[1, 0.85], [0.85, 0.65], [0.65, 0.45], [0.45, 0.15]]
    assert picture.caption.startswith("Where agreement with retraining is lost: most to noise of one retraining")
    assert "25% of those of small MNIST" in picture.caption and len(picture.rows) == 2 * 4


def test_the_waterfall_takes_the_unrolled_derivative_and_ekfac_where_nothing_can_be_inverted():
    table = chain(
        unrolled_minibatch__warm_minibatch={1: 0.99},
        ekfac__warm_minibatch={1: 0.8},
        lissa_partition__warm_minibatch={1: 0.9},
    ).assign(dataset="mnist", architecture="lenet", activation=None, n_train=20_000)
    smaller = table.assign(n_train=5_000, spearman=0.1, run_id="s")
    marks = show_rows(pd.concat([table, smaller]), plots.SPECS["waterfall"]).marks
    assert marks.set_index("rung")["mean"].round(9).to_dict() == {
        "a removal is not small": 0.99,
        "training cut short": 0.8,
        "stochastic solver": 0.9,
        "noise of one retraining": 0.6,
    }
    picture = plots.figure("waterfall", table)
    assert "The paper, LeNet, 20,000 MNIST images, noise of one retraining: 0.51" in picture.alt
    assert "+0.10" in [text.get_text() for text in picture.figure.axes[0].texts]
    starts = [table.assign(seed=seed, run_id=f"r{seed}") for seed in range(3)]
    once = table.assign(n_train=50_000, spearman=0.1, run_id="once")
    assert show_rows(pd.concat([*starts, once]), plots.SPECS["waterfall"]).marks["mean"].min() > 0.5, "of three starts"
    few = table.assign(n_train=500)
    assert plots.figure("waterfall", few).figure is None, "too few images to show the noise of batches"


# -- puzzles -----------------------------------------------------------------------------------------------------------


def test_ways_of_training_stand_under_the_ceiling_of_one_retraining():
    table = plot_tables.puzzles()
    marks = show_rows(table, plots.SPECS["puzzle_ways"]).marks
    assert marks["ceiling"].unique().tolist() == [0.5] and set(marks["mean"].round(9)) == {0.4}
    assert set(marks["way"]) == {"masked, dropout 0", "masked, dropout 1"}
    more = table.assign(n_points=table["n_points"].where(table["run_id"] != "puzzles-1", 32), run_id="other")
    both = show_rows(pd.concat([table, more[more["n_points"] == 32]]), plots.SPECS["puzzle_ways"])
    assert both.levels("way") == ["masked, dropout 0", "masked, dropout 1", "masked, dropout 1, 32 left out"]


def test_removals_start_from_the_control_with_the_error_of_their_change():
    table = plot_tables.puzzles()
    key = {"selected_by": "ekfac"}
    found = [mark("puzzle_removals", table, without=k, **key)[["mean", "low", "high"]].tolist() for k in (0, 5)]
    assert found == [[1.0, 1.0, 1.0], [1.5, 1.4, 1.6]]
    picture = plots.figure("puzzle_removals", table)
    assert "8 trainings anew" in picture.caption and "loss_error" in picture.rows and len(picture.rows) == 2 * 3
    drawn = table[(table["puzzle"] != "curve") | (table["selected_by"] == "random")]
    assert "EK-FAC" not in plots.figure("puzzle_removals", drawn).caption, "of the order, not the estimator"
