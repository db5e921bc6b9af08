"""Gradient descent against torch.optim, and what a certificate says of a fit."""

import math

import numpy as np
import pytest
import torch
from helpers import iris_subset, random_network, sklearn_softmax, softmax_regression

from fragile_lib.data.sets import Data
from fragile_lib.minimise.descent import accuracy, certify, descend, kinks, separable
from fragile_lib.models.mlp import MLP
from fragile_lib.objectives.fused import FusedObjective


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_descent_is_torch_sgd_with_weight_decay_on_weights_alone(activation, momentum):
    data, model, weight_decay = iris_subset(10)[0], MLP(2, 5, activation), 0.02
    kind = torch.nn.ReLU if activation == "relu" else torch.nn.Tanh
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 5), kind(), torch.nn.Linear(5, 5), kind(), torch.nn.Linear(5, 3)
    ).double()
    start = model.init(1)
    torch.nn.utils.vector_to_parameters(start.clone(), network.parameters())
    groups = [
        {"params": [p for p in network.parameters() if p.dim() == 2], "weight_decay": weight_decay},
        {"params": [p for p in network.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.SGD(groups, lr=0.1, momentum=momentum)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(data.x[0]), data.y[0]).backward()
        optimiser.step()
    expected = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    objective = FusedObjective(model, data, weight_decay)
    found = descend(objective, start[None], objective.uniform(1), 60, 0.1, momentum)[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [0, 1, 19, 20, 47])
def test_the_chunks_between_progress_reports_do_not_matter(steps):
    fused, _, theta, weights = random_network("tanh", 2, 5, 11)
    places = torch.arange(3)
    expected = fused.descend(theta, torch.zeros_like(theta), weights, places, 0.1, 0.9, steps)[0]
    assert torch.equal(descend(fused, theta, weights, steps, 0.1, 0.9), expected)
    assert torch.equal(expected, theta) == (steps == 0)


def test_accuracy_is_the_share_of_examples_on_their_own_side():
    data = Data(torch.tensor([[[-2.0], [-1.0], [1.0], [2.0]]]).double(), torch.tensor([[0, 1, 1, 1]]))
    objective = softmax_regression(data, 0.0)
    theta = torch.tensor([[-1.0, 1.0, 0.0, 0.0, 0.0, 0.0]]).double()  # class 1 exactly where x > 0
    assert accuracy(objective, theta).item() == 0.75


def test_a_model_without_decay_is_separable_only_when_all_examples_are_classified():
    x = torch.tensor([[[-2.0], [-1.0], [1.0], [2.0]]]).double()
    theta = torch.tensor([[-1.0, 1.0, 0.0, 0.0, 0.0, 0.0]]).double()
    apart = Data(x, torch.tensor([[0, 0, 1, 1]]))
    mixed = Data(x, torch.tensor([[0, 1, 1, 1]]))
    assert separable(softmax_regression(apart, 0.0), theta).tolist() == [True]
    assert separable(softmax_regression(mixed, 0.0), theta).tolist() == [False]
    assert separable(softmax_regression(apart, 1e-6), theta).tolist() == [False]
    assert certify(softmax_regression(apart, 0.0), theta, 7, finished=True)[0].status == "separable"
    assert certify(softmax_regression(apart, 0.0), theta, 7, finished=False)[0].status == "ok"


def test_a_certified_optimum_is_ok_and_its_facts_are_right():
    data = iris_subset(8)[0]
    objective = softmax_regression(data, 0.05)
    theta = sklearn_softmax(data, 0.05)[None]
    found = certify(objective, theta, torch.tensor([12]), finished=True)[0]
    spectrum = torch.linalg.eigvalsh(objective.matrices(theta, objective.uniform(1))[0])
    lost = objective.losses(theta)[0]
    assert (found.status, found.steps, found.kinks) == ("ok", 12, 0)
    assert found.grad_norm == pytest.approx(objective.gradient(theta, objective.uniform(1)).norm().item())
    assert found.grad_norm <= 1e-8
    assert found.loss == pytest.approx(lost.mean().item())
    decay = 0.05 / 2 * (theta[0, :12] ** 2).sum().item()
    assert found.objective == pytest.approx(lost.mean().item() + decay)
    assert (found.eig_min, found.eig_max) == pytest.approx((spectrum[0].item(), spectrum[-1].item()), abs=1e-12)
    assert found.eig_min == pytest.approx(0, abs=1e-10)  # a common shift of the free biases


def test_a_point_that_is_not_stationary_is_not_certified():
    objective = softmax_regression(iris_subset(8)[0], 0.05)
    theta = torch.linspace(-1, 1, 15, dtype=torch.float64)[None]
    assert certify(objective, theta, 0, finished=True)[0].status == "not_certified"
    assert certify(objective, theta, 0, finished=False)[0].status == "ok"


def test_the_saddle_of_equal_logits_is_named_constant():
    objective = FusedObjective(MLP(1, 5, "tanh"), iris_subset(8)[0], 1e-3)
    theta = torch.zeros(1, 43, dtype=torch.float64)
    found = certify(objective, theta, 0, finished=True)[0]
    assert found.grad_norm <= 1e-12
    assert found.eig_min < -0.01
    assert found.status == "constant"  # the name that comes first


def test_equal_logits_everywhere_are_constant():
    objective = FusedObjective(MLP(2, 5), iris_subset(8)[0], 1e-3)
    theta = MLP(2, 5).init(0)[None]
    theta[:, :20] = 0
    theta[:, 20:25] = -1  # a dead first layer
    found = certify(objective, theta, 0, finished=False)[0]
    assert found.status == "constant"
    assert found.loss == pytest.approx(math.log(3))
    assert found.train_accuracy == pytest.approx(1 / 3)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus"])
def test_a_network_that_is_not_finite_has_diverged(activation, place, poison):
    model = MLP(1, 5, activation)
    data = iris_subset(4)[0]
    objective = FusedObjective(model, Data(data.x.repeat(2, 1, 1), data.y.repeat(2, 1)), 0.01)
    theta = torch.stack([model.init(0), model.init(1)])
    theta[0, place] = poison
    assert [c.status for c in certify(objective, theta, 5, finished=False)] == ["diverged", "ok"]
    assert certify(objective, theta, 5, finished=True)[0].status == "diverged"


def test_a_descent_that_blows_up_is_named_diverged():
    objective = FusedObjective(MLP(3, 5), iris_subset(8)[0], 1.0)
    theta = descend(objective, MLP(3, 5).init(0)[None], objective.uniform(1), 2000, 5.0, 0.9)
    found = certify(objective, theta, 2000, finished=False)[0]
    assert found.status == "diverged"
    assert np.isnan(found.eig_min)


def test_planted_kinks_are_counted_on_live_units_alone():
    x = torch.tensor([[[-1.0], [0.5], [2.0]]]).double()
    objective = FusedObjective(MLP(1, 3, n_features=1), Data(x, torch.tensor([[0, 1, 2]])), 0.0)
    #                      weights           biases          the second layer
    theta = torch.tensor([[1.0, 1.0, 0.0] + [-0.5, 0.0, 0.0] + [1.0] * 9 + [0.0] * 3]).double()
    assert kinks(objective, theta).tolist() == [1]  # unit 1 at x = 0.5; unit 2 nowhere; unit 3 zero but never live
    theta[0, 4] = 1 - 5e-6
    assert kinks(objective, theta).tolist() == [2]  # unit 2 within 1e-5 of zero at x = -1
    assert kinks(objective.smoothed(10.0), theta).tolist() == [0]
    assert certify(objective, theta, 0, finished=False)[0].kinks == 2
