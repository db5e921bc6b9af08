"""Ground truths of stacks: controls, refits by scikit-learn, one by one, named outcomes; and rows of whole cases."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import Regression, iris_subset, network_of, sklearn_softmax, softmax_regression

from fragile_lib.choices import Chosen, Points, Removals, choose, choose_points
from fragile_lib.data.sets import Data
from fragile_lib.estimates import estimate
from fragile_lib.minimise.descent import STATIONARY, descend
from fragile_lib.minimise.newton import newton
from fragile_lib.models.mlp import MLP
from fragile_lib.network import stack
from fragile_lib.rows import compare
from fragile_lib.tools.errors import InputError
from fragile_lib.truths import leave_out
from fragile_lib.truths.stacked import stacked

SEEDS = [4, 7]
DESCENT = {"steps": 400, "learning_rate": 0.1, "momentum": 0.9}
AGAIN = {"warm_descent": DESCENT | {"steps": 50}}
COUNTS = {"top_influence": 7, "top_loss": 7, "all": 18}


def data(per_class=6):
    sets = [iris_subset(per_class, seed) for seed in SEEDS]
    return [Data(torch.cat([d[k].x for d in sets]), torch.cat([d[k].y for d in sets])) for k in (0, 1)]


def case(networks, names=("exact", "exact_ggn")):
    """All steps at one fit: (networks, points, chosen, estimates)."""
    points = [choose_points(network.test_losses(), {"max_loss": 1, "p50_loss": 1}) for network in networks]
    options = dict.fromkeys(("exact", "exact_ggn"), {"norms": True}) | {"lissa_single": {"depth": 200}}
    estimates = estimate(networks, points, names, options=options)
    chosen = [choose(e["exact"].changes, COUNTS, n.train_losses()) for e, n in zip(estimates, networks, strict=True)]
    return networks, points, chosen, estimates


def started(weight_decay=0.02, **further):
    return stack.descended(MLP(1, 4, "tanh"), *data(), weight_decay, 1e-3, SEEDS, **(DESCENT | further))


@pytest.fixture(scope="module")
def descent():
    found = case(started(), ("exact", "exact_ggn", "lissa_single"))
    truths = leave_out(*found[:3], ["warm_descent"], options=AGAIN)
    return *found, truths, compare(*found, truths)


@pytest.fixture(scope="module")
def certified(descent):
    found = case(stack.driven_on(descent[0]))
    truths = leave_out(*found[:3], ["minimum"])
    return *found, truths, compare(*found, truths)


def pick(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_there_is_one_row_for_each_combination(descent, certified):
    assert len(descent[-1]) == 2 * 2 * 3 * 3 * 2  # seeds, test and training choices, estimators, truths
    assert len(certified[-1]) == 2 * 2 * 3 * 2 * 1
    keys = ["seed", "test_choice", "train_choice", "estimator", "ground_truth"]
    for rows in (descent[-1], certified[-1]):
        assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows)
        assert {row["seed"] for row in rows} == set(SEEDS)
    assert set(descent[4][0]) == {"warm_descent", "warm_descent_minus_control"} and set(certified[4][0]) == {"minimum"}
    for choice, count in COUNTS.items():
        assert {row["n_points"] for row in pick(descent[-1], train_choice=choice)} == {count}


def test_subtracting_the_control_shifts_changes_and_leaves_ranks_and_slopes(descent):
    *_, truths, rows = descent
    for by_name in truths:
        plain, less = by_name["warm_descent"], by_name["warm_descent_minus_control"]
        assert np.abs(plain.control).min() > 0
        np.testing.assert_allclose(plain.changes - plain.control, less.changes, rtol=0, atol=1e-15)
    for row in pick(rows, ground_truth="warm_descent"):
        same = {key: row[key] for key in ("seed", "test_choice", "train_choice", "estimator")}
        (other,) = pick(rows, ground_truth="warm_descent_minus_control", **same)
        assert other["spearman"] == pytest.approx(row["spearman"], abs=1e-12)
        assert other["slope"] == pytest.approx(row["slope"], rel=1e-6)


def test_warm_truths_are_the_left_out_descents_one_by_one(descent):
    networks, points, _, _, truths, _ = descent
    for s, i in ((0, 3), (1, 11)):
        network, removal = networks[s], Removals.single([i], 18)
        weights, zero = network.train.uniform(1) + removal.changes(), torch.zeros(1, len(network.theta)).double()
        theta = network.train.descend(network.theta[None], zero, weights, network.dataset, 0.1, 0.9, 50)[0]
        change = (network.test.losses(theta, network.dataset)[0] - network.test_losses())[points[s].index]
        truth = truths[s]["warm_descent"]
        np.testing.assert_allclose(truth.on(removal)[0], change, rtol=1e-9, atol=1e-13)
        assert truth.norms_on(removal)[0] == pytest.approx((theta[0] - network.theta).norm().item(), rel=1e-9)


def test_training_anew_by_descent_is_that_of_each_start_against_its_own_control(descent):
    networks, points, chosen = descent[:3]
    how = {"scratch_descent": DESCENT | {"steps": 30, "seeds": [2, 5]}}
    network, truth = networks[1], leave_out(networks, points, chosen, how, 7, how)[1]["scratch_descent"]
    for repetition, seed in zip(truth.repeats, (1002, 1005), strict=True):
        weights = network.train.uniform(2) + torch.stack([torch.zeros(18), Removals.single([3], 18).changes()[0]])
        start = network.train.model.init(seed)[None].expand(2, -1)
        theta = descend(network.train, start, weights, 30, 0.1, 0.9, torch.ones(2, dtype=torch.long))
        control, without = network.on_points(points[1]).losses(theta)
        place = truth.removals.places(Removals.single([3], 18))
        np.testing.assert_allclose(repetition[place][0], without - control, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(truth.changes, truth.repeats.mean(axis=0))
    assert (truth.control == 0).all() and (truth.norms > 0).all()


def test_at_certified_optima_the_exact_estimate_agrees_with_the_minima_that_are_left(certified):
    networks, rows = certified[0], certified[-1]
    assert [network.certificate["status"] for network in networks] == ["ok", "ok"]
    for row in pick(rows, estimator="exact", train_choice="all"):
        assert row["status"] in ("ok", "not_certified", "indefinite")
        assert row["pearson"] > 0.7 and row["slope"] > 0.3
        assert row["solver_residual"] < 1e-8 and row["grad_norm"] <= 1e-8 and row["eig_min"] >= -1e-6
    assert all(np.abs(by_name["minimum"].control).max() == 0 for by_name in certified[4])


def test_lissa_has_no_parameter_norms_and_the_exact_solvers_do(descent):
    for by_name in descent[3]:
        assert len(by_name["lissa_single"].norms) == 0 and np.isfinite(by_name["lissa_single"].changes).all()
        assert (by_name["exact"].norms > 0).all() and (by_name["exact_ggn"].norms > 0).all()


@pytest.mark.parametrize(("broken", "status"), [(0.0, "constant"), (float("nan"), "diverged")])
def test_rows_of_an_unusable_network_are_named_and_kept(monkeypatch, broken, status):
    init = MLP.init
    monkeypatch.setattr(MLP, "init", lambda self, seed: init(self, seed) * (1 if seed == SEEDS[0] else broken))
    networks = started()
    assert [network.certificate["status"] for network in networks] == ["ok", status]
    found = case(networks)
    truths = leave_out(*found[:3], ["warm_descent"], options=AGAIN)
    rows = compare(*found, truths)
    assert len(rows) == 2 * 2 * 3 * 2 * 2 and np.isnan(truths[1]["warm_descent"].changes).all()
    for row in pick(rows, seed=SEEDS[1]):
        assert (row["status"], row["n_points"], row["n_uncertified"]) == (status, 0, 0)
        assert np.isnan(row["spearman"]) and np.isnan(row["slope"]) and np.isnan(row["sign_agreement"])
    assert all(row["status"] in ("ok", "indefinite") for row in pick(rows, seed=SEEDS[0]))
    driven = stack.driven_on(networks)[1]  # it keeps its outcome and is not certified as another one
    assert (driven.certificate["status"], driven.usable, driven.certified) == (status, False, False)


def test_a_separable_fit_is_named_in_every_row():
    one = Data(torch.tensor([[[-2.0], [-1.0], [1.0], [2.0]]] * 2).double(), torch.tensor([[0, 0, 1, 1]] * 2))
    model = MLP(1, 3, "tanh", n_features=1, n_classes=2)
    first = stack.descended(model, one, one, 0.0, 1e-3, SEEDS, 400, 0.3, 0.9)
    assert [network.certificate["status"] for network in first] == ["ok", "ok"]
    networks = stack.driven_on(first)
    points = [choose_points(network.test_losses(), {"max_loss": 1}) for network in networks]
    estimates = estimate(networks, points, ["exact"])
    chosen = [choose(by["exact"].changes, {"all": 4}) for by in estimates]
    rows = compare(networks, points, chosen, estimates, leave_out(networks, points, chosen, ["minimum"]))
    assert {(row["status"], row["n_points"]) for row in rows} == {("separable", 0)} and len(rows) == 2


# -- against refits --------------------------------------------------------------------------------------------------


def everyone(n, m):
    return [Points(np.arange(m), ["random"] * m)], [Chosen({"all": [Removals.single(range(n), n)] * m})]


def test_the_minimum_is_the_solution_of_the_weighted_normal_equations():
    problem = Regression()
    (found,) = leave_out([problem.network()], *everyone(problem.n, problem.m), ["minimum"])
    np.testing.assert_allclose(found["minimum"].changes, problem.exact_leave_one_out(), rtol=1e-5, atol=1e-8)
    assert (found["minimum"].control == 0).all()  # a control moves nothing at a certified minimum
    own = network_of(problem.train, problem.train.on(problem.train.data), problem.fitted())
    (found,) = leave_out([own], *everyone(problem.n, problem.n), ["minimum"])
    assert (found["minimum"].changes.diagonal() > 0).all()  # leaving an example out raises its own loss


def test_the_minimum_is_the_scikit_learn_refit():
    train, weight_decay = iris_subset(10)[0], 0.05
    objective = softmax_regression(train, weight_decay)
    start = newton(objective, torch.zeros(1, 15).double(), objective.uniform(1))[0][0]
    network = network_of(objective, objective.on(train), start)
    removals, points = Removals.single([0, 9, 21], 30), [Points(np.arange(30), ["random"] * 30)]
    (found,) = leave_out([network], points, [Chosen({"some": [removals] * 30})], ["minimum"])
    for changes, i in zip(found["minimum"].changes, (0, 9, 21), strict=True):
        expected = objective.losses(sklearn_softmax(train, weight_decay, without=i)[None])[0] - network.test_losses()
        np.testing.assert_allclose(changes, expected, atol=1e-6)


def test_left_out_networks_above_the_stated_gradient_norm_are_not_there(descent):
    networks, points, chosen = descent[:3]
    few = partial(newton, networks[0].train, max_steps=0)
    found = stacked(networks, points, chosen, few, tolerance=STATIONARY)
    assert all(np.isnan(t.changes).all() and np.isnan(t.norms).all() for t in found)
    assert all(np.isfinite(t.changes).all() for t in stacked(networks, points, chosen, few))


def test_networks_that_do_not_share_their_objective_are_refused(descent):
    others = [descent[0][0], started()[1]]
    with pytest.raises(InputError, match="networks of one stack"):
        leave_out(others, *descent[1:3], ["warm_descent"], options=AGAIN)


def test_unknown_names_are_refused(descent):
    with pytest.raises(InputError, match="truth = 'magic': choose one of"):
        leave_out(*descent[:3], ["magic"])
    with pytest.raises(InputError, match="estimator = 'magic': choose one of"):
        estimate(*descent[:2], ["magic"])
