"""Estimates beside ground truths for one setting: rows, named outcomes, controls."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import iris_subset

from fragile_lib.comparison import (
    Estimates,
    Fit,
    Truths,
    choose_removals,
    choose_test_points,
    compare_all,
    descent_again,
    estimate,
    fit_certified,
    fit_descent,
    ground_truths,
    leave_out,
    scatter_points,
)
from fragile_lib.data.sets import Data, iris_splits
from fragile_lib.influence import leave_one_out
from fragile_lib.minimise.descent import Certificate
from fragile_lib.models.mlp import MLP
from fragile_lib.objectives.base import FusedObjective

SEEDS = [4, 7]
TEST_CHOICES, TRAIN_CHOICES = ["max_loss", "p50_loss"], ["top_influence", "top_loss", "all"]
STEPS, RATE, MOMENTUM = 400, 0.1, 0.9
CONTRACT = [
    *("seed", "test_point", "test_choice", "train_choice", "n_points", "estimator", "ground_truth"),
    *("pearson", "spearman", "slope", "grad_norm", "eig_min", "eig_max", "solver_residual", "status"),
    *("seconds_estimate", "seconds_retrain"),
]


def objectives(weight_decay=0.02, per_class=6):
    sets = [iris_subset(per_class, seed) for seed in SEEDS]
    train, test = (Data(torch.cat([d[k].x for d in sets]), torch.cat([d[k].y for d in sets])) for k in (0, 1))
    objective = FusedObjective(MLP(1, 4, "tanh"), train, weight_decay)
    return objective, objective.on(test)


def start(broken=None):
    theta = torch.stack([MLP(1, 4, "tanh").init(seed) for seed in SEEDS])
    if broken is not None:
        theta[1] = broken
    return theta


def study(fit, names=("exact", "exact_ggn")):
    """All steps at one fit: (points, removals, estimates, truths, rows)."""
    points = choose_test_points(fit, TEST_CHOICES)
    estimates = {name: estimate(fit, points, name, 1e-3, lissa_depth=200) for name in names}
    removals = choose_removals(fit, estimates["exact"], TEST_CHOICES, TRAIN_CHOICES, 0.4)
    truths = ground_truths(fit, points, removals, 50, RATE, MOMENTUM)
    rows = compare_all(fit, SEEDS, removals, estimates, truths, TEST_CHOICES, points)
    return points, removals, estimates, truths, rows


@pytest.fixture(scope="module")
def descent():
    fit = fit_descent(*objectives(), start(), STEPS, RATE, MOMENTUM)
    return fit, *study(fit, ("exact", "exact_ggn", "lissa"))


@pytest.fixture(scope="module")
def certified(descent):
    fit = fit_certified(descent[0])
    return fit, *study(fit)


def pick(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_there_is_one_row_for_each_combination(descent, certified):
    assert len(descent[-1]) == 2 * 2 * 3 * 3 * 2  # seeds, test and training choices, estimators, truths
    assert len(certified[-1]) == 2 * 2 * 3 * 2 * 1
    keys = ["seed", "test_choice", "train_choice", "estimator", "ground_truth"]
    for rows in (descent[-1], certified[-1]):
        assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows)
        assert {row["seed"] for row in rows} == set(SEEDS)


def test_every_row_has_the_columns_of_the_results_table(descent, certified):
    for rows in (descent[-1], certified[-1]):
        assert all(set(CONTRACT) <= set(row) and set(row) == set(rows[0]) for row in rows)


def test_the_truths_are_named_after_their_protocol(descent, certified):
    assert list(descent[4]) == ["loo_warm", "loo_warm_minus_control"]
    assert list(certified[4]) == ["loo_certified"]
    assert {row["fit"] for row in descent[-1]} == {"descent"} and certified[0].name == "certified"


def test_the_numbers_of_points_are_those_of_the_choices(descent):
    for choice, count in {"top_influence": 7, "top_loss": 7, "all": 18}.items():
        assert {row["n_points"] for row in pick(descent[-1], train_choice=choice)} == {count}


def test_test_points_are_those_of_largest_and_median_loss(descent):
    fit, points = descent[:2]
    losses = fit.test.losses(fit.theta)
    for s in range(2):
        assert points[s, 0] == losses[s].argmax()
        assert losses[s][points[s, 1]] == losses[s].sort().values[14]


def test_subtracting_the_control_shifts_changes_and_leaves_ranks_and_slopes(descent):
    _, _, _, _, truths, rows = descent
    plain, less = truths["loo_warm"], truths["loo_warm_minus_control"]
    assert np.abs(plain.control).min() > 0
    np.testing.assert_allclose(plain.changes - plain.control[:, None, :], less.changes, rtol=0, atol=1e-15)
    for row in pick(rows, ground_truth="loo_warm"):
        same = ("seed", "test_choice", "train_choice", "estimator")
        (other,) = pick(rows, ground_truth="loo_warm_minus_control", **{key: row[key] for key in same})
        assert other["spearman"] == pytest.approx(row["spearman"], abs=1e-12)
        assert other["slope"] == pytest.approx(row["slope"], rel=1e-6)


def test_warm_truths_are_the_left_out_descents_one_by_one(descent):
    fit, points, _, _, truths, _ = descent
    for s, i in ((0, 3), (1, 11)):
        weights = fit.train.uniform(1) + leave_one_out(torch.tensor([i]), 18)
        place = torch.tensor([s])
        zero = torch.zeros_like(fit.theta[:1])
        theta = fit.train.descend(fit.theta[s : s + 1], zero, weights, place, RATE, MOMENTUM, 50)[0]
        change = (fit.test.losses(theta, place) - fit.test.losses(fit.theta[s : s + 1], place))[0, points[s]]
        np.testing.assert_allclose(truths["loo_warm"].changes[s, i], change, rtol=1e-9, atol=1e-13)
        move = (theta[0] - fit.theta[s]).norm().item()
        assert truths["loo_warm"].norms[s, i] == pytest.approx(move, rel=1e-9)


def test_at_certified_optima_the_exact_estimate_agrees_with_certified_retraining(certified):
    fit, rows = certified[0], certified[-1]
    assert [c.status for c in fit.certificates] == ["ok", "ok"]
    for row in pick(rows, estimator="exact", train_choice="all"):
        assert row["status"] in ("ok", "not_certified", "indefinite")
        assert row["pearson"] > 0.7 and row["slope"] > 0.3
        assert row["solver_residual"] < 1e-8 and row["grad_norm"] <= 1e-8 and row["eig_min"] >= -1e-6
        assert np.abs(certified[4]["loo_certified"].control).max() == 0


def test_lissa_has_no_parameter_norms_and_the_exact_solvers_do(descent):
    estimates = descent[3]
    assert np.isnan(estimates["lissa"].norms).all()
    assert (estimates["exact"].norms > 0).all() and (estimates["exact_ggn"].norms > 0).all()
    assert np.isfinite(estimates["lissa"].changes).all()


@pytest.mark.parametrize(("broken", "status"), [(0.0, "constant"), (float("nan"), "diverged")])
def test_rows_of_an_unusable_network_are_named_and_kept(broken, status):
    fit = fit_descent(*objectives(), start(broken), STEPS, RATE, MOMENTUM)
    assert [c.status for c in fit.certificates] == ["ok", status]
    points, _, _, truths, rows = study(fit)
    assert len(rows) == 2 * 2 * 3 * 2 * 2
    assert np.isnan(truths["loo_warm"].changes[1]).all()
    for row in pick(rows, seed=SEEDS[1]):
        assert (row["status"], row["n_points"], row["n_uncertified"]) == (status, 0, 0)
        assert np.isnan(row["spearman"]) and np.isnan(row["slope"]) and np.isnan(row["sign_agreement"])
    assert all(row["status"] in ("ok", "indefinite") for row in pick(rows, seed=SEEDS[0]))


def test_a_separable_fit_is_named_in_every_row():
    data = Data(torch.tensor([[[-2.0], [-1.0], [1.0], [2.0]]] * 2).double(), torch.tensor([[0, 0, 1, 1]] * 2))
    train = FusedObjective(MLP(1, 3, "tanh", n_features=1, n_classes=2), data, 0.0)
    theta = torch.stack([train.model.init(seed) for seed in SEEDS])
    first = fit_descent(train, train.on(data), theta, 400, 0.3, 0.9)
    assert [c.status for c in first.certificates] == ["ok", "ok"]
    fit = fit_certified(first)
    assert [c.status for c in fit.certificates] == ["separable"] * 2
    rows = study(fit)[-1]
    assert {row["status"] for row in rows} == {"separable"} and {row["n_points"] for row in rows} == {0}


# -- outcomes, on numbers made for them ------------------------------------------------------------------------------


def row_of(fit_name="certified", solver="ok", change=None, changes_true=None, certificate="ok"):
    rng = np.random.default_rng(0)
    guessed = rng.standard_normal((1, 10, 1)) if change is None else change
    true = guessed + 0.1 if changes_true is None else changes_true
    train, test = objectives()
    fit = Fit(fit_name, train, test, start(), [Certificate(certificate, 0, 1, 0, 0, 1, 1, 2, 0)], 0.0)
    estimates = {"exact": Estimates(guessed, np.abs(guessed[:, :, 0]), [0.0], [0.0], [solver])}
    truths = {"truth": Truths(true, np.abs(true[:, :, 0]), 0.0, np.zeros((1, 1)))}
    removals = {("max_loss", "all"): [np.arange(10)]}
    (row,) = compare_all(fit, [0], removals, estimates, truths, ["max_loss"], np.array([[3]]))
    return row


def with_nan(count):
    true = np.random.default_rng(0).standard_normal((1, 10, 1)) + 0.1
    true[0, :count] = np.nan
    return true


def test_an_estimate_that_is_a_shift_of_the_truth_is_perfect_but_for_signs():
    row = row_of()
    assert (row["pearson"], row["spearman"], row["slope"]) == pytest.approx((1, 1, 1))
    assert (row["status"], row["n_points"], row["test_point"]) == ("ok", 10, 3)


@pytest.mark.parametrize(("missing", "status"), [(0, "ok"), (2, "ok"), (3, "not_certified"), (10, "not_certified")])
def test_a_row_is_certified_when_four_fifths_of_its_left_out_optima_are(missing, status):
    row = row_of(changes_true=with_nan(missing))
    assert (row["status"], row["n_points"], row["n_uncertified"]) == (status, 10 - missing, missing)


def test_the_share_concerns_certified_fits_alone():
    assert row_of("descent", changes_true=with_nan(3))["status"] == "ok"
    assert row_of("descent", changes_true=with_nan(9))["status"] == "too_few"


def test_the_first_outcome_that_is_not_ok_is_named():
    assert row_of(solver="indefinite")["status"] == "indefinite"
    assert row_of(solver="solver_diverged", changes_true=with_nan(9))["status"] == "solver_diverged"
    assert row_of(solver="indefinite", changes_true=np.ones((1, 10, 1)))["status"] == "constant"
    assert row_of(solver="indefinite", change=np.full((1, 10, 1), np.nan), changes_true=with_nan(0))["status"] == (
        "diverged"
    )
    for status in ("diverged", "constant", "separable", "not_certified"):
        assert row_of(certificate=status, solver="solver_diverged")["status"] == status


def test_signs_agree_by_their_share():
    change = np.arange(1.0, 11.0).reshape(1, 10, 1)
    true = change.copy()
    true[0, :3] *= -1
    assert row_of(change=change, changes_true=true)["sign_agreement"] == pytest.approx(0.7)


def test_left_out_optima_above_the_stated_gradient_norm_are_not_there(descent):
    fit, points, removals = descent[:3]
    again = descent_again(fit.train, 1, RATE, MOMENTUM)
    plain, less = leave_out(fit, points, removals, again, finished=True)
    assert np.isnan(plain.changes).all() and np.isnan(plain.norms).all() and np.isnan(less.changes).all()
    assert np.isfinite(leave_out(fit, points, removals, again, finished=False)[0].changes).all()


def test_scatter_points_are_the_compared_numbers(descent):
    fit, _, removals, estimates, truths, _ = descent
    found = scatter_points(fit, SEEDS, removals, estimates, truths, TEST_CHOICES, "p50_loss", "top_loss")
    assert [place["seed"] for place in found] == SEEDS
    for s, place in enumerate(found):
        index = removals["p50_loss", "top_loss"][s]
        np.testing.assert_array_equal(place["index"], index)
        np.testing.assert_array_equal(place["estimate"]["exact"], estimates["exact"].changes[s, index, 1])
        np.testing.assert_array_equal(place["truth"]["loo_warm"], truths["loo_warm"].changes[s, index, 1])


def test_the_table_of_certificates_names_seed_and_fit(descent):
    fit = descent[0]
    rows = fit.table(SEEDS)
    assert [row["seed"] for row in rows] == SEEDS
    assert rows[0] == {"seed": 4, "fit": "descent"} | dataclasses.asdict(fit.certificates[0])


@pytest.mark.parametrize(("activation", "depth"), [("relu", 1), ("tanh", 1), ("relu", 2), ("tanh", 2)])
def test_a_diverged_network_is_not_certified_as_another_one(activation, depth):
    train_data, test_data = iris_splits([0])
    model = MLP(depth, 5, activation)
    train = FusedObjective(model, train_data, 0.005)
    start = model.init(0)
    start[0] = float("nan")
    descent = fit_descent(train, train.on(test_data), start[None], 1, 0.1, 0.9)
    certified = fit_certified(descent)
    assert [fit.certificates[0].status for fit in (descent, certified)] == ["diverged", "diverged"]
    assert torch.isnan(certified.theta[0, 0])
