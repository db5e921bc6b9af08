"""Influence estimates against closed forms and refits: sign, scale and first order."""

import numpy as np
import pytest
import torch
from helpers import (
    Linear,
    Regression,
    along,
    iris_subset,
    network_of,
    random_network,
    sklearn_softmax,
    softmax_regression,
)

from fragile_lib.choices import Points, Removals
from fragile_lib.data.sets import Data
from fragile_lib.estimates import influence, parameter_change
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.losses import SquaredError
from fragile_lib.solvers import ExactSolver


def slope(estimate, truth):
    return np.polyfit(np.ravel(estimate), np.ravel(truth), 1)[0]


def points(index):
    return Points(np.asarray(index), ["random"] * len(index))


def solved(problem):
    return ExactSolver(problem.train, problem.fitted(), 0.0)


def estimated(problem, d):
    return along(problem.network(), points(range(problem.m)), solved(problem), d).numpy()


def single(problem, indices=None):
    return Removals.single(range(problem.n) if indices is None else indices, problem.n)


def first_order(problem):
    """(n, m): r_t x_t^T A^-1 x_i r_i / n, the derivative of the test losses along -e_i / n."""
    theta = problem.optimum()
    inverse = np.linalg.inv(problem.hessian())
    residual = problem.design @ theta - problem.y
    residual_test = problem.design_test @ theta - problem.y_test
    return residual[:, None] * (problem.design @ inverse @ problem.design_test.T) * residual_test / problem.n


@pytest.fixture(scope="module")
def problem():
    return Regression()


def test_the_estimate_is_the_first_order_formula_of_linear_regression(problem):
    found = influence(problem.network(), points(range(problem.m)), solved(problem))
    np.testing.assert_allclose(found.changes, first_order(problem), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(estimated(problem, single(problem).changes()), found.changes, rtol=1e-12, atol=1e-15)


def test_the_estimate_is_the_derivative_along_any_change_of_weights(problem):
    d = np.random.default_rng(0).standard_normal((3, problem.n))
    uniform, size = np.full(problem.n, 1 / problem.n), 1e-6
    central = [
        (problem.test_losses(problem.optimum(uniform + size * row))
         - problem.test_losses(problem.optimum(uniform - size * row))) / (2 * size)
        for row in d
    ]  # fmt: skip
    np.testing.assert_allclose(estimated(problem, d), central, rtol=1e-6, atol=1e-7)


def test_exact_leave_one_out_has_slope_one_on_the_estimate_and_its_sign():
    problem = Regression(n=80)
    found, truth = estimated(problem, single(problem).changes()), problem.exact_leave_one_out()
    assert slope(found, truth) == pytest.approx(1, abs=0.15)
    assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.99
    clear = np.abs(truth) > 0.05 * np.abs(truth).max()
    assert (np.sign(found[clear]) == np.sign(truth[clear])).all()


def test_exact_leave_one_out_is_the_parameter_change_over_one_minus_the_leverage(problem):
    """Sherman and Morrison: with the other weights at 1/n the exact move is A^-1 x_i r_i / n / (1 - h_i)."""
    move = parameter_change(problem.network(), single(problem), solved(problem)).numpy()
    inverse = np.linalg.inv(problem.hessian())
    leverage = np.einsum("ip,pq,iq->i", problem.design, inverse, problem.design) / problem.n
    for i in range(problem.n):
        w = np.full(problem.n, 1 / problem.n)
        w[i] = 0
        exact = problem.optimum(w) - problem.optimum()
        np.testing.assert_allclose(move[i] / (1 - leverage[i]), exact, rtol=1e-8, atol=1e-12)


def test_softmax_estimates_agree_with_scikit_learn_refits():
    (train, test_data), weight_decay = iris_subset(13), 0.1
    objective = softmax_regression(train, weight_decay)
    theta = sklearn_softmax(train, weight_decay)
    network = network_of(objective, objective.on(test_data), theta)
    refits = torch.stack([sklearn_softmax(train, weight_decay, without=i) for i in range(39)])
    losses = network.test_losses()
    some = points(losses.argsort(descending=True)[:4].numpy())
    truth = (network.test.losses(refits, torch.zeros(39, dtype=torch.long)) - losses)[:, some.index].numpy()
    found = influence(network, some, ExactSolver(objective, theta, 1e-8))  # a shift of the biases has no curvature
    for t in range(4):
        assert np.corrcoef(found.changes[:, t], truth[:, t])[0, 1] > 0.97
        assert 0.8 < slope(found.changes[:, t], truth[:, t]) < 1.3
    assert found.residual < 1e-8


def test_the_parameter_change_tells_the_same_as_the_influence(problem):
    move = parameter_change(problem.network(), single(problem), solved(problem))
    gradients = problem.test.example_gradients(problem.fitted()[None])[0]
    np.testing.assert_allclose(move @ gradients.T, first_order(problem), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("gauss_newton", [False, True])
def test_networks_give_the_dense_formula_on_the_data_set_they_are_told(gauss_newton):
    train, _, theta, _ = random_network("tanh", 2, 4, 11)
    test = train.on(random_network("tanh", 2, 4, 11, seed=1)[0].data)
    network, some, place = network_of(train, test, theta[1], place=1), points([7, 0, 2]), torch.tensor([1])
    d = torch.randn(5, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solver = ExactSolver(train, theta[1], 0.5, gauss_newton, dataset=1)
    matrix = train.matrices(theta[1:2], train.uniform(1), place, gauss_newton)[0]
    inverse = torch.linalg.inv(matrix + 0.5 * torch.eye(len(matrix), dtype=torch.float64))
    right = test.example_gradients(theta[1:2], place)[0][some.index]
    examples = train.example_gradients(theta[1:2], place)[0]
    torch.testing.assert_close(along(network, some, solver, d), -d @ examples @ inverse @ right.T, rtol=1e-8, atol=1e-9)
    removals = Removals.single([3, 4], 11)
    found = influence(network, some, solver, removals)
    np.testing.assert_allclose(found.changes, examples[[3, 4]] @ inverse @ right.T / 11, rtol=1e-8, atol=1e-9)
    move = parameter_change(network, removals, solver)
    torch.testing.assert_close(move, examples[[3, 4]] @ inverse / 11, rtol=1e-8, atol=1e-9)
    assert found.status == solver(right).status


def test_a_duplicate_of_the_test_point_is_helpful_and_one_with_the_opposite_error_harmful():
    x = torch.tensor([[-2.0], [-1.0], [0.5], [1.0], [2.0], [1.5], [1.5]]).double()
    y = torch.tensor([-2.0, -1.0, 0.5, 1.0, 2.0, 2.5, 0.5]).double()  # the last two: above and below the line y = x
    train = Objective(Linear(1, 1), Data(x[None], y[None]), loss=SquaredError())
    theta = torch.linalg.lstsq(torch.cat([x, torch.ones(7, 1)], dim=1), y[:, None]).solution[:, 0]
    network = network_of(train, train.on(Data(x[None, 5:6], y[None, 5:6])), theta)
    found = influence(network, points([0]), ExactSolver(train, theta, 0.0), Removals.single([5, 6], 7)).changes[:, 0]
    assert found[0] > 0 > found[1]
