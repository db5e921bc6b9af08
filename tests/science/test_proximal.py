"""The proximal Bregman response: its derivatives, its minimum, and what it responds to."""

import numpy as np
import pytest
import torch
from helpers import Regression, along, leave_one_out, network_of
from torch.func import grad, hessian

from fragile_lib.choices import Points
from fragile_lib.data.sets import Data, iris_splits
from fragile_lib.minimise.near_optimum import chord
from fragile_lib.models.mlp import MLP
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.conv import ConvObjective
from fragile_lib.objectives.proximal import ProximalObjective, TiltedObjective
from fragile_lib.solvers import ExactSolver

DAMPING = 0.02


@pytest.fixture(scope="module")
def setting() -> tuple[Objective, Objective, torch.Tensor]:
    data, test_data = iris_splits([0])
    train = Objective(MLP(2, 4, "tanh"), data, 0.01)
    return train, train.on(test_data), train.model.init(0)  # not trained at all: PBRF does not ask for it


def by_hand(train: Objective, start: torch.Tensor, change: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Q(theta; d) as it is defined."""
    x, y = train.data.x[0], train.data.y[0]
    fixed, moving = train.model(start, x).log_softmax(1), train.model(theta, x).log_softmax(1)
    divergence = (fixed.exp() * (fixed - moving)).sum(1).mean()
    losses = -moving[torch.arange(len(y)), y]
    return divergence + (change * losses).sum() + 0.5 * ((train.decay + DAMPING) * (theta - start) ** 2).sum()


def test_gradient_is_that_of_the_definition(setting) -> None:
    train, _, start = setting
    proximal = ProximalObjective(train, start, DAMPING)
    change = leave_one_out(torch.tensor([7]), 120)
    moved = start + 0.1 * torch.randn(len(start), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = proximal.gradient(moved[None], train.uniform(1) + change)[0]
    expected = grad(lambda t: by_hand(train, start, change[0], t))(moved)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_values_are_those_of_the_definition_but_for_a_constant(setting) -> None:
    train, _, start = setting
    change = leave_one_out(torch.tensor([7]), 120)
    weights = (train.uniform(1) + change).expand(2, -1)
    moved = start + 0.1 * torch.randn(2, len(start), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    proximal, tilted = ProximalObjective(train, start, DAMPING), TiltedObjective(train, start, DAMPING)
    value, gradient = proximal.value_and_gradient(moved, weights)
    expected = torch.stack([by_hand(train, start, change[0], t) for t in moved])
    torch.testing.assert_close(value[0] - value[1], expected[0] - expected[1], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(gradient, proximal.gradient(moved, weights))
    value, gradient = tilted.value_and_gradient(moved, weights)
    slope, away = train.gradient(start[None], train.uniform(1))[0], moved - start
    expected = train.value(moved, weights) - away @ slope + 0.5 * DAMPING * away.square().sum(1)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, tilted.gradient(moved, weights))


def test_start_is_the_minimum_and_the_curvature_there_the_damped_gauss_newton_matrix(setting) -> None:
    train, _, start = setting
    proximal = ProximalObjective(train, start, DAMPING)
    assert proximal.gradient(start[None], train.uniform(1)).norm() < 1e-15
    found = hessian(lambda t: by_hand(train, start, torch.zeros(120), t))(start)
    expected = train.matrices(start[None], train.uniform(1), gauss_newton=True)[0]
    torch.testing.assert_close(
        found, expected + DAMPING * torch.eye(len(start), dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


def test_the_tilted_objective_is_at_rest_and_has_the_damped_hessian(setting) -> None:
    train, _, start = setting
    tilted = TiltedObjective(train, start, DAMPING)
    weights = train.uniform(1)
    assert tilted.gradient(start[None], weights).norm() == 0
    v = torch.randn(len(start), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-5
    ends = torch.stack([start + step * v, start - step * v])
    numeric = tilted.gradient(ends, weights.expand(2, -1))
    product = train.products(start[None], v[None, None], weights)[0, 0] + DAMPING * v
    torch.testing.assert_close((numeric[0] - numeric[1]) / (2 * step), product, rtol=1e-6, atol=1e-8)


def test_damped_hessian_influence_predicts_the_tilted_response_with_slope_one(setting) -> None:
    train, test, start = setting
    curvature = ExactSolver(train, start, 0.0)
    damping = 0.01 - float(curvature.spectrum[0].clamp(max=0))  # not trained at all: enough to make it positive
    tilted, solver = TiltedObjective(train, start, damping), ExactSolver(train, start, damping)
    removals, points = (
        0.01 * leave_one_out(torch.arange(60), 120),
        Points(np.arange(30), ["random"] * 30),
    )  # small: first order
    theta, norm, _ = chord(
        tilted,
        start.expand(60, -1),
        train.uniform(60) + removals,
        solve=lambda v: solver(v).x,
        tolerance=1e-10,
    )
    assert (norm <= 1e-10).all()
    true = test.losses(theta) - test.losses(start[None])
    estimated = along(network_of(train, test, start), points, solver, removals)
    slope = (true * estimated).sum() / (estimated * estimated).sum()
    assert slope == pytest.approx(1, abs=0.01)


def test_damped_gauss_newton_influence_predicts_the_response_with_slope_one(setting) -> None:
    train, test, start = setting
    proximal, solver = ProximalObjective(train, start, DAMPING), ExactSolver(train, start, DAMPING, gauss_newton=True)
    removals, points = (
        0.1 * leave_one_out(torch.arange(60), 120),
        Points(np.arange(30), ["random"] * 30),
    )  # small: first order

    theta, norm, _ = chord(
        proximal, start.expand(60, -1), train.uniform(60) + removals, solve=lambda v: solver(v).x, tolerance=1e-10,
        max_steps=80,
    )  # fmt: skip
    assert norm.max() <= 1e-9
    true = (test.losses(theta) - test.losses(start[None])).flatten()
    estimate = along(network_of(train, test, start), points, solver, removals).flatten()
    assert (estimate @ true) / (estimate @ estimate) == pytest.approx(1, abs=0.01)
    assert torch.corrcoef(torch.stack([estimate, true]))[0, 1] > 0.99


def test_for_linear_regression_at_its_optimum_the_response_is_leave_one_out_in_closed_form() -> None:
    problem = Regression()
    train, theta = problem.train, problem.fitted()
    proximal, solver = ProximalObjective(train, theta, 0.0), ExactSolver(train, theta, 0.0, gauss_newton=True)
    weights = train.uniform(problem.n) + leave_one_out(torch.arange(problem.n), problem.n)
    moved, norm, _ = chord(
        proximal, theta.expand(problem.n, -1), weights, solve=lambda v: solver(v).x, tolerance=1e-13, max_steps=100
    )
    assert norm.max() <= 1e-12
    expected = torch.stack([torch.tensor(problem.optimum(w.numpy())) for w in weights])
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-10)


@pytest.fixture(scope="module")
def images() -> Data:
    """Two data sets of 21 images: the last block of the kernels is not full."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(2, 21, 1, 21, 21, generator=draw, dtype=torch.float64)
    return Data(x, torch.randint(0, 3, (2, 21), generator=draw))


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["64", "32"])
@pytest.mark.parametrize("dataset", [0, 1])
def test_compiled_gradients_of_a_convolutional_network_are_those_of_autograd(images, dataset, kind, tolerance) -> None:
    model = SmallCNN(2, 3, 21)
    reference = Objective(model, images, 0.01)
    ours = ConvObjective(model, Data(images.x.to(kind), images.y), 0.01)
    start, draw = model.init(0), torch.Generator().manual_seed(1)
    theta = start + 0.1 * torch.randn(3, len(start), generator=draw, dtype=torch.float64)
    weights = reference.uniform(3) + leave_one_out(torch.arange(3), 21)
    weights[1, :16] = 0  # blocks without a loss
    expected = ProximalObjective(reference, start, DAMPING, dataset).gradient(theta, weights)
    found = ProximalObjective(ours, start.to(kind), DAMPING, dataset).gradient(theta.to(kind), weights.to(kind))
    assert found.dtype == kind
    scale = expected.abs().max()
    torch.testing.assert_close(found.double() / scale, expected / scale, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", [Objective, ConvObjective])
def test_a_data_set_that_is_not_the_first_is_seen_throughout(images, kind) -> None:
    model = SmallCNN(2, 3, 21)
    both, alone = kind(model, images, 0.01), kind(model, Data(images.x[1:], images.y[1:]), 0.01)
    start, weights = model.init(0), both.uniform(2) + leave_one_out(torch.arange(2), 21)
    theta, index = torch.stack([0.9 * start, 1.1 * start]), torch.zeros(2, dtype=torch.long)  # retrain's: of the fit
    found = ProximalObjective(both, start, DAMPING, 1).gradient(theta, weights, index)
    assert torch.equal(found, ProximalObjective(alone, start, DAMPING).gradient(theta, weights, index))
