"""Descent by whitened L-BFGS and left-out optima by chord steps, against the dense Newton method."""

import pytest
import torch
from helpers import leave_one_out

from fragile_lib.data.sets import iris_splits
from fragile_lib.minimise.near_optimum import approach, chord
from fragile_lib.minimise.newton import newton
from fragile_lib.models.mlp import MLP
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.fused import make_objective
from fragile_lib.solvers import ExactSolver


@pytest.fixture(scope="module")
def finished() -> tuple[Objective, torch.Tensor]:
    data, _ = iris_splits([0])
    train = make_objective(MLP(1, 6, "tanh"), data, 0.01)
    theta, norm, _ = newton(train, train.model.init(0)[None], train.uniform(1), max_steps=300)
    assert norm[0] <= 1e-8
    return train, theta[0]


def test_whitened_descent_reaches_the_tolerance(finished) -> None:
    train, theta = finished
    moved = theta + 0.02 * torch.randn(len(theta), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = approach(train, moved, tolerance=1e-6, rounds=10)
    assert found.grad_norm <= 1e-6 and 0 < found.passes < 1000
    assert float(train.gradient(found.theta[None], train.uniform(1)).norm()) == pytest.approx(found.grad_norm)


def test_nothing_to_do_takes_no_pass(finished) -> None:
    train, theta = finished
    found = approach(train, theta, tolerance=1e-6, rounds=3)
    assert found.passes == 0 and torch.equal(found.theta, theta)


def test_chord_finds_the_left_out_optima_of_newton(finished) -> None:
    train, theta = finished
    solver = ExactSolver(train, theta, 1e-6)  # the common shift of the output biases has no curvature
    weights = train.uniform(41)
    weights[1:] += leave_one_out(torch.arange(0, 120, 3), 120)  # the first is a control
    start = theta.expand(41, -1)
    found, norm, _ = chord(train, start, weights, solve=lambda v: solver(v).x, tolerance=1e-9, max_steps=60)
    expected = newton(train, start, weights)[0]
    reached = norm[1:] <= 1e-9
    assert reached.double().mean() > 0.9
    apart = (train.losses(found) - train.losses(expected))[1:].abs().amax(1)
    assert (apart[reached] < 1e-6).double().mean() > 0.9  # the others are optima of their own
    assert apart[reached].median() > 0  # two methods, not one
    assert (found[0] - theta).norm() < 1e-4


def test_chord_tells_the_gradient_norm_where_it_stands(finished) -> None:
    train, theta = finished
    solver = ExactSolver(train, theta, 1e-6)  # the common shift of the output biases has no curvature
    weights = train.uniform(4) + leave_one_out(torch.arange(4), 120)
    options = {"solve": lambda v: solver(v).x, "tolerance": 1e-30, "max_steps": 2}
    moved, norm, steps = chord(train, theta.expand(4, -1), weights, **options)
    torch.testing.assert_close(train.gradient(moved, weights, torch.zeros(4, dtype=torch.long)).norm(dim=1), norm)
    assert (steps == 2).all()


def test_a_wrong_curvature_never_makes_it_worse(finished) -> None:
    train, theta = finished
    weights = train.uniform(4) + leave_one_out(torch.arange(4), 120)
    first = train.gradient(theta.expand(4, -1), weights).norm(dim=1)
    _, norm, _ = chord(train, theta.expand(4, -1), weights, solve=lambda v: -1e3 * v, tolerance=1e-12)
    torch.testing.assert_close(norm, first)
