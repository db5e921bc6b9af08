"""Influence with the removal's own curvature taken away, and to second order: dense formulas and real refits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import iris_subset, network_of, random_network, sklearn_softmax, softmax_regression
from torch.func import hessian, jacrev

from fragile_lib.choices import Chosen, Points, Removals, choose, choose_points
from fragile_lib.data.sets import iris_splits
from fragile_lib.estimates import estimate
from fragile_lib.models.mlp import MLP
from fragile_lib.network import stack
from fragile_lib.rows import compare
from fragile_lib.solvers.gram import GramSolver, factors_of
from fragile_lib.tools.errors import InputError
from fragile_lib.truths import leave_out

DAMPING, GROUPS = 0.3, Removals.groups([[0, 4], [2], [1, 3, 7]], 9)
POINTS = Points(np.array([0, 5]), ["random"] * 2)
SOLVERS = ("exact", "exact_ggn", "gram_ggn", "cg_ggn")  # directly, in the space of examples, and iteratively
TIGHT = {"cg_ggn": {"tolerance": 1e-12, "max_iterations": 200}}


@pytest.fixture(scope="module")
def network():
    train, _, theta, _ = random_network("tanh", 1, 4, 9, size=2)
    return network_of(train, train.on(random_network("tanh", 1, 4, 9, size=2, seed=1)[0].data), theta[1], DAMPING, 1)


def parts(network, gauss_newton):
    """(A (P, P), each example's curvature (n, P, P), gradients (n, P), test gradients (m, P)), by plain autograd."""
    train, theta = network.train, network.theta
    x, y = train.data.x[1], train.data.y[1]
    own = []
    for one, label in zip(x, y, strict=True):
        if gauss_newton:
            jacobian = jacrev(lambda t, one=one: train.model(t, one[None])[0])(theta)
            p = train.model(theta, one[None])[0].softmax(0)
            own.append(jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian)
        else:
            own.append(hessian(lambda t, a=one, b=label: train._values(t, a[None], b[None])[0])(theta))
    a = torch.stack(own).mean(0) + torch.diag(train.decay + DAMPING)
    gradients = train.example_gradients(theta[None], network.dataset)[0]
    return a, torch.stack(own), gradients, network.test_gradients(POINTS)


def ask(network, name, removals, **options):
    (found,) = estimate([network], [POINTS], [name], [Chosen({"some": [removals] * 2})], {name: options})
    return found[name].on(removals)


def test_the_factors_are_the_examples_curvature_and_gradient(network):
    _, own, gradients, _ = parts(network, gauss_newton=True)
    b, c = factors_of(network.train, network.theta, torch.arange(9), 1)
    torch.testing.assert_close(b.mT @ b, own, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.einsum("krp,kr->kp", b, c), gradients, rtol=1e-9, atol=1e-12)


def by_formula(network, name, gauss_newton):
    """What each group's removal does to the test losses, (3, 2), by dense solves."""
    a, own, gradients, f = parts(network, gauss_newton)
    ggn = parts(network, gauss_newton=True)[1]

    def change(group):
        members, first = list(group), gradients[list(group)].sum(0) / 9
        if name == "rescaled":  # each member's own step, without its Gauss-Newton part
            return sum(f @ torch.linalg.solve(a - ggn[i] / 9, gradients[i]) / 9 for i in members)
        if name == "newton_step":  # the removal as a whole
            return f @ torch.linalg.solve(a - own[members].sum(0) / 9, first)
        step, curved = torch.linalg.solve(a, first), parts(network, gauss_newton=False)[1][members].sum(0) / 9
        return f @ (step + torch.linalg.solve(a, curved @ step))

    return torch.stack([change(group) for group in GROUPS.members])


@pytest.mark.parametrize(
    ("name", "solver"), [("second_order", ""), *((n, s) for n in ("rescaled", "newton_step") for s in SOLVERS)]
)
def test_estimates_beyond_first_order_are_their_formulas(network, name, solver):
    options = {"solver": solver, **TIGHT.get(solver, {})} if solver else {}
    expected = by_formula(network, name, gauss_newton=solver != "exact")
    np.testing.assert_allclose(ask(network, name, GROUPS, **options), expected, rtol=1e-8, atol=1e-10)


def test_the_gram_solver_inverts_the_damped_gauss_newton_matrix(network):
    v = torch.randn(3, len(network.theta), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = GramSolver(network.train, network.theta, DAMPING, dataset=1)(v)
    a = parts(network, gauss_newton=True)[0]
    torch.testing.assert_close(found.x, torch.linalg.solve(a, v.T).T, rtol=1e-9, atol=1e-11)
    assert found.residual.max() < 1e-12 and found.status == "ok"
    with pytest.raises(InputError, match="damping"):
        GramSolver(network.train, network.theta, 0.0)


@pytest.mark.parametrize("name", ["rescaled", "newton_step"])
def test_a_removal_that_leaves_no_minimum_is_told(network, name):
    """The damping leaves the Hessian barely positive; `rescaled` takes the Gauss-Newton part away, the other all."""
    a = parts(network, gauss_newton=False)[0]
    own = parts(network, gauss_newton=name == "rescaled")[1]
    barely = replace(network, damping=DAMPING + 1e-3 - float(torch.linalg.eigvalsh(a)[0]))
    a = a + (barely.damping - DAMPING) * torch.eye(len(a))
    (found,) = estimate([barely], [POINTS], [name], [Chosen({"some": [GROUPS] * 2})])
    removals, left = found[name].removals, []
    for group in removals.members:
        taken = own[list(group)] if name == "rescaled" else own[list(group)].sum(0, keepdim=True)
        left.append(bool((torch.linalg.eigvalsh(a - taken / 9) > 0).all()))
    assert found[name].indefinite.tolist() == [not positive for positive in left]
    assert found[name].indefinite.any() and found[name].status == "ok"
    assert found[name].status_on(removals) == "indefinite"
    (found,) = estimate([network], [POINTS], [name], [Chosen({"some": [GROUPS] * 2})], {name: {"solver": "exact_ggn"}})
    assert not found[name].indefinite.any()  # what is left of a damped Gauss-Newton matrix is positive


def test_on_iris_it_mends_the_size_of_the_estimate():
    descent = stack.descended(MLP(1, 5, "tanh"), *iris_splits([0]), 0.005, 1e-3, [0], 5000, 1e-2, 0.9)
    networks = stack.driven_on(descent)
    points = [choose_points(network.test_losses(), {"max_loss": 1}) for network in networks]
    estimates = estimate(networks, points, ["exact"])
    chosen = [choose(estimates[0]["exact"].changes, {"top_influence": 20})]
    estimates = estimate(networks, points, ["rescaled", "newton_step"], chosen, into=estimates)
    rows = compare(networks, points, chosen, estimates, leave_out(networks, points, chosen, ["minimum"]))
    slope = {row["estimator"]: row["slope"] for row in rows}
    assert slope["exact"] > 1.15 and abs(slope["rescaled"] - 1) < 0.5 * (slope["exact"] - 1)
    assert abs(slope["newton_step"] - 1) < 0.5 * (slope["exact"] - 1)


def test_second_order_is_closer_to_the_refit_of_a_group_than_first_order():
    """For softmax regression the Gauss-Newton matrix is the Hessian, so that no minimum of a network is in question."""
    (train, test), decay = iris_subset(13), 0.1
    objective = softmax_regression(train, decay)
    network = network_of(objective, objective.on(test), sklearn_softmax(train, decay), damping=1e-9)
    groups = Removals.groups([[0, 3, 4, 8, 9, 12], [1, 2, 14, 15, 30, 31], [13, 16, 20, 22, 24, 25]], 39)
    points = [Points(np.arange(30), ["random"] * 30)]
    chosen = [Chosen({"groups": [groups] * 30})]
    found = estimate([network], points, ["exact", "second_order", "newton_step"], chosen)[0]
    true = leave_out([network], points, chosen, ["minimum"])[0]["minimum"].on(groups)
    error = {name: np.linalg.norm(by.on(groups) - true) / np.linalg.norm(true) for name, by in found.items()}
    assert error["second_order"] < 0.7 * error["exact"]
