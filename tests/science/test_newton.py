"""Newton's method and the way to certified stationary points."""

import math

import pytest
import torch
from helpers import Regression, iris_subset, sklearn_softmax, softmax_regression

from fragile_lib.data.sets import Data
from fragile_lib.minimise.descent import certify, descend
from fragile_lib.minimise.newton import SHARPNESS, finish, newton
from fragile_lib.models.mlp import MLP
from fragile_lib.objectives.fused import FusedObjective


@pytest.mark.parametrize("weight_decay", [0.3, 0.01])
def test_newton_reaches_the_optimum_that_scikit_learn_finds(weight_decay):
    data = iris_subset(12)[0]
    objective = softmax_regression(data, weight_decay)
    theta, norm, steps = newton(objective, torch.zeros(1, 15).double(), objective.uniform(1))
    expected = sklearn_softmax(data, weight_decay)
    torch.testing.assert_close(theta[0, :12], expected[:12], rtol=0, atol=1e-6)
    biases, other = theta[0, 12:], expected[12:]  # known up to a common shift, since they are free
    torch.testing.assert_close(biases - biases.mean(), other - other.mean(), rtol=0, atol=1e-6)
    assert norm.item() <= 1e-8
    assert norm.item() == pytest.approx(objective.gradient(theta, objective.uniform(1)).norm().item())
    assert 0 < steps.item() < 40


def test_newton_solves_weighted_normal_equations_for_each_member_of_a_stack():
    problem = Regression()
    weights = torch.rand(3, problem.n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / problem.n
    theta, norm, _ = newton(problem.train, torch.zeros(3, 4).double(), weights)
    for e in range(3):
        torch.testing.assert_close(theta[e], torch.tensor(problem.optimum(weights[e].numpy())), rtol=1e-7, atol=1e-7)
    assert norm.max() <= 1e-8


def test_newton_does_not_move_from_an_optimum_and_leaves_its_start_alone():
    problem = Regression()
    start = problem.fitted()[None]
    kept = start.clone()
    theta, _, steps = newton(problem.train, start, problem.train.uniform(1))
    assert torch.equal(theta, kept) and steps.item() == 0
    start += 1.0
    kept = start.clone()
    newton(problem.train, start, problem.train.uniform(1))
    assert torch.equal(start, kept)


def test_newton_stops_where_there_is_no_optimum():
    x = torch.tensor([[[-2.0], [-1.0], [1.0], [2.0]]]).double()
    objective = softmax_regression(Data(x, torch.tensor([[0, 0, 1, 2]])), 0.0)
    apart = softmax_regression(Data(x, torch.tensor([[0, 0, 1, 1]])), 0.0)
    theta, _, steps = newton(apart, torch.zeros(1, 6).double(), apart.uniform(1))
    assert torch.isfinite(theta).all() and steps.item() < 60
    assert certify(apart, theta, steps, finished=True)[0].status == "separable"
    assert torch.isfinite(newton(objective, torch.zeros(1, 6).double(), objective.uniform(1))[0]).all()


def test_newton_never_raises_the_objective_of_a_network():
    model = MLP(2, 4, "tanh")
    objective = FusedObjective(model, iris_subset(8)[0], 0.01)
    start = torch.stack([model.init(0), 3 * model.init(1)])
    places, uniform = torch.zeros(2, dtype=torch.long), objective.uniform(2)
    values = [objective.value(start, uniform, places)]
    for steps in (1, 3, 10):
        theta = newton(objective, start, uniform, places, max_steps=steps)[0]
        values.append(objective.value(theta, uniform, places))
    falls = torch.stack(values).diff(dim=0)
    assert (falls <= 1e-12).all() and (falls.sum(0) < -1e-3).all()


def test_finish_leaves_a_saddle():
    objective = FusedObjective(MLP(1, 4, "tanh"), iris_subset(8)[0], 0.01)
    zeros = torch.zeros(1, objective.model.n_params, dtype=torch.float64)
    stuck, norm, _ = newton(objective, zeros, objective.uniform(1))
    assert norm.item() <= 1e-8 and torch.equal(stuck, zeros)
    assert torch.linalg.eigvalsh(objective.matrices(zeros, objective.uniform(1))[0])[0] < -0.01
    found = finish(objective, zeros)
    certificate = certify(objective, found.theta, found.steps, finished=True)[0]
    assert certificate.status == "ok"
    assert certificate.eig_min >= -1e-6
    assert certificate.objective < math.log(3) - 0.1


def test_a_tanh_network_is_driven_to_a_certified_minimum():
    model = MLP(2, 4, "tanh")
    data = iris_subset(10)[0]
    objective = FusedObjective(model, Data(data.x.repeat(2, 1, 1), data.y.repeat(2, 1)), 0.01)
    start = torch.stack([model.init(0), model.init(1)])
    theta = descend(objective, start, objective.uniform(2), 500, 0.1, 0.9)
    found = finish(objective, theta)
    assert found.objective is objective
    for certificate in certify(found.objective, found.theta, found.steps, finished=True):
        assert certificate.status == "ok"
        assert certificate.grad_norm <= 1e-8
        assert certificate.eig_min >= -1e-6
    torch.testing.assert_close(found.grad_norm, objective.gradient(found.theta, objective.uniform(2)).norm(dim=1))
    assert (objective.value(found.theta, objective.uniform(2)) <= objective.value(theta, objective.uniform(2))).all()


def test_a_relu_network_is_finished_through_softplus_of_growing_sharpness():
    model = MLP(1, 4, "relu")
    objective = FusedObjective(model, iris_subset(10)[0], 0.02)
    theta = descend(objective, model.init(0)[None], objective.uniform(1), 500, 0.1, 0.9)
    found = finish(objective, theta)
    assert found.objective.model == model.smoothed(SHARPNESS[-1])
    certificate = certify(found.objective, found.theta, found.steps, finished=True)[0]
    assert certificate.status == "ok" and certificate.grad_norm <= 1e-8 and certificate.eig_min >= -1e-6
    smooth = found.objective.value(found.theta, objective.uniform(1)).item()
    assert smooth == pytest.approx(objective.value(found.theta, objective.uniform(1)).item(), abs=0.01)
