"""Ground truths: the control, stacks, signs, and refits by scikit-learn."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import Regression, iris_subset, random_network, sklearn_softmax, softmax_regression

from fragile_lib.influence import leave_one_out
from fragile_lib.minimise.descent import descend
from fragile_lib.minimise.newton import newton
from fragile_lib.minimise.retraining import loss_changes, retrain


def protocol(objective, steps=40):
    return partial(descend, objective, steps=steps, learning_rate=0.1, momentum=0.9)


def test_a_control_moves_nothing_at_a_certified_optimum():
    problem = Regression()
    start = problem.fitted()[None]
    removals = [leave_one_out(torch.tensor([0, 4]), problem.n)]
    stayed = retrain(problem.train, start, removals, partial(newton, problem.train))
    assert torch.equal(stayed.control, start)
    descended = retrain(problem.train, start, removals, protocol(problem.train, 200))
    torch.testing.assert_close(descended.control, start, rtol=0, atol=1e-12)
    assert (descended.theta[0] - start).norm(dim=1).min() > 1e-4


def test_newton_retrains_to_the_weighted_normal_equations_with_the_other_weights_kept():
    problem = Regression()
    everyone = leave_one_out(torch.arange(problem.n), problem.n)
    found = retrain(problem.train, problem.fitted()[None], [everyone], partial(newton, problem.train))
    for i in range(problem.n):
        w = np.full(problem.n, 1 / problem.n)
        w[i] = 0
        np.testing.assert_allclose(found.theta[0][i], problem.optimum(w), rtol=1e-6, atol=1e-7)
    assert found.grad_norm[0].shape == (problem.n,) and found.grad_norm[0].max() <= 1e-8
    changes = loss_changes(problem.test, found.theta[0], problem.fitted(), torch.arange(problem.m), 0)
    np.testing.assert_allclose(changes, problem.exact_leave_one_out(), rtol=1e-5, atol=1e-8)


def test_newton_retrains_softmax_regression_to_the_scikit_learn_refit():
    data, weight_decay = iris_subset(10)[0], 0.05
    objective = softmax_regression(data, weight_decay)
    start = newton(objective, torch.zeros(1, 15).double(), objective.uniform(1))[0]
    points = torch.tensor([0, 9, 10, 21, 29])
    found = retrain(objective, start, [leave_one_out(points, 30)], partial(newton, objective))
    for theta, i in zip(found.theta[0], points.tolist(), strict=True):
        expected = sklearn_softmax(data, weight_decay, without=i)
        torch.testing.assert_close(theta[:12], expected[:12], rtol=0, atol=1e-6)
        torch.testing.assert_close(
            objective.logits(theta[None]).softmax(2), objective.logits(expected[None]).softmax(2), rtol=0, atol=1e-6
        )


def test_a_stack_of_fits_equals_single_fits_and_a_removal_of_nothing_is_the_control():
    train, _, theta, _ = random_network("tanh", 1, 4, 9)
    nothing = torch.zeros(1, 9, dtype=torch.float64)
    removals = [
        leave_one_out(torch.tensor([1, 5]), 9),
        torch.cat([nothing, leave_one_out(torch.tensor([3]), 9)]),
        leave_one_out(torch.tensor([], dtype=torch.long), 9),
    ]
    found = retrain(train, theta, removals, protocol(train))
    assert [part.shape for part in found.theta] == [(2, 21 + 14), (2, 35), (0, 35)]
    assert [len(part) for part in found.grad_norm] == [2, 2, 0]
    for s in range(3):
        place = torch.tensor([s])
        weights = train.uniform(1)
        control = descend(train, theta[s : s + 1], weights, 40, 0.1, 0.9, dataset=place)
        assert torch.equal(found.control[s], control[0])
        for k, d in enumerate(removals[s]):
            alone = descend(train, theta[s : s + 1], weights + d, 40, 0.1, 0.9, dataset=place)
            assert torch.equal(found.theta[s][k], alone[0])
            norm = train.gradient(alone, weights + d, place).norm()
            assert found.grad_norm[s][k].item() == pytest.approx(norm.item(), rel=1e-12)
    assert torch.equal(found.theta[1][0], found.control[1])


def test_loss_changes_are_after_minus_before_on_the_chosen_points_of_the_data_set():
    test, _, theta, _ = random_network("relu", 1, 4, 9)
    after, points = theta[:2] + 0.1, torch.tensor([4, 0, 7])
    place = torch.tensor([2])
    found = loss_changes(test, after, theta[2], points, 2)
    before = test.losses(theta[2:3], place)[0, points]
    for k in range(2):
        expected = test.losses(after[k : k + 1], place)[0, points] - before
        torch.testing.assert_close(found[k], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(loss_changes(test, theta[2:3], theta[2], points, 2), torch.zeros(1, 3).double())


def test_leaving_an_example_out_raises_its_own_loss():
    problem = Regression(n=12, n_features=2)
    test = problem.train.on(problem.train.data)
    found = retrain(
        problem.train, problem.fitted()[None], [leave_one_out(torch.arange(12), 12)], partial(newton, problem.train)
    )
    own = loss_changes(test, found.theta[0], problem.fitted(), torch.arange(12), 0).diagonal()
    assert (own > 0).all()
