"""Descent, Newton's method, chord steps and BFGS: against torch.optim, scikit-learn, closed forms and one another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import Regression, iris_subset, leave_one_out, random_network, sklearn_softmax, softmax_regression

from fragile_lib.data.sets import Data, iris_splits
from fragile_lib.minimise import quasi_newton
from fragile_lib.minimise.descent import FLAT, accuracy, certify, descend, kinks, separable
from fragile_lib.minimise.near_optimum import approach, chord
from fragile_lib.minimise.newton import SHARPNESS, finish, newton
from fragile_lib.minimise.quasi_newton import LEAST, RANK, AbsoluteInverse, _Search, left_out_minimum, minimum
from fragile_lib.models.mlp import MLP
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.fused import FusedObjective, make_objective
from fragile_lib.solvers import ExactSolver
from fragile_lib.solvers.dense import DenseSolver

# -- descent and certificates ----------------------------------------------------------------------------------------


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


# -- Newton's method -------------------------------------------------------------------------------------------------


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


# -- chord steps and whitened descent --------------------------------------------------------------------------------


def iris_network(weight_decay: float = 0.01) -> Objective:
    return make_objective(MLP(1, 6, "tanh"), iris_splits([0])[0], weight_decay)


@pytest.fixture(scope="module")
def finished() -> tuple[Objective, torch.Tensor]:
    train = iris_network()
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


# -- BFGS with a dense inverse ---------------------------------------------------------------------------------------


def lowest(train: Objective, theta: torch.Tensor) -> float:
    return float(torch.linalg.eigvalsh(train.matrices(theta[None], train.uniform(1))[0])[0])


def test_the_minimum_from_a_random_start_is_certified_and_as_low_as_that_of_newton() -> None:
    train = iris_network()
    start = train.model.init(0)
    found = minimum(train, start, tolerance=1e-9)
    assert found.grad_norm <= 1e-9 and lowest(train, found.theta) >= -FLAT
    assert float(train.gradient(found.theta[None], train.uniform(1)).norm()) == pytest.approx(found.grad_norm)
    theta, norm, _ = newton(train, start[None], train.uniform(1), max_steps=300)
    assert norm[0] <= 1e-8
    values = [float(train.value(t[None], train.uniform(1))) for t in (found.theta, theta[0])]
    assert values[0] <= values[1] + 0.05  # each may be a minimum of its own


def test_a_saddle_with_no_gradient_is_left() -> None:
    train = iris_network(0.001)
    saddle = torch.zeros(len(train.model.init(0)), dtype=torch.float64)  # classes are balanced: grad J is zero here
    assert float(train.gradient(saddle[None], train.uniform(1)).norm()) < 1e-12 and lowest(train, saddle) < -0.01
    found = minimum(train, saddle, tolerance=1e-8)
    assert found.grad_norm <= 1e-8 and lowest(train, found.theta) >= -FLAT
    before, after = (float(train.value(t[None], train.uniform(1))) for t in (saddle, found.theta))
    assert after < 0.2 * before


def test_at_a_minimum_nothing_is_done() -> None:
    train = iris_network()
    theta = minimum(train, train.model.init(0), tolerance=1e-9).theta
    again = minimum(train, theta, tolerance=1e-8)
    assert torch.equal(again.theta, theta) and again.passes == 1


def test_the_minimum_without_an_example_of_much_leverage_is_one_of_the_others_alone() -> None:
    train = iris_network(0.001)
    theta = minimum(train, train.model.init(1), tolerance=1e-9).theta
    i = int(train.example_gradients(theta[None])[0].norm(dim=1).argmax())
    weights = train.uniform(1) + leave_one_out(torch.tensor([i]), train.n)
    both = train.matrices(theta.expand(2, -1), torch.cat([weights, train.uniform(1)]))
    inverse = AbsoluteInverse(DenseSolver(train, theta, 0.0), 1e-3).after((both[0] - both[1]).float())
    found = left_out_minimum(train, train, theta, weights[0], inverse, 1e-8, steps=500)
    assert found.grad_norm <= 1e-8 < float((found.theta - theta).norm())
    rest = torch.arange(train.n) != i
    others = make_objective(train.model, Data(train.data.x[:, rest], train.data.y[:, rest]), 0.001)
    weights = torch.full((1, train.n - 1), 1 / train.n, dtype=torch.float64)
    assert float(others.gradient(found.theta[None], weights).norm()) == pytest.approx(found.grad_norm, abs=1e-12)
    assert float(others.value(found.theta[None], weights)) < float(others.value(theta[None], weights))


class Spectrum:
    """Eigenvalues and eigenvectors of a matrix, in the place of its direct solver."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.spectrum, self.vectors = torch.linalg.eigh(matrix)


def symmetric(seed: int, eigenvalues: torch.Tensor) -> torch.Tensor:
    draw = torch.randn(len(eigenvalues), len(eigenvalues), generator=torch.Generator().manual_seed(seed)).double()
    q = torch.linalg.qr(draw)[0]
    return (q * eigenvalues) @ q.T


def test_the_absolute_inverse_of_a_changed_matrix_is_its_inverse_where_that_is_positive() -> None:
    matrix = symmetric(0, torch.linspace(0.5, 2, 150).double())
    change = symmetric(1, torch.cat([torch.linspace(-0.3, 0.5, RANK), torch.zeros(150 - RANK)]).double())
    assert torch.linalg.eigvalsh(matrix + change)[0] > 0.15
    found = AbsoluteInverse(Spectrum(matrix), 0.01).after(change.float())
    expected = torch.linalg.inv(matrix + change + 0.01 * torch.eye(150))
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_the_absolute_inverse_turns_round_what_a_change_made_negative() -> None:
    matrix = symmetric(2, torch.linspace(0.5, 2, 60).double())
    change = symmetric(3, torch.cat([torch.tensor([-4.0, -3.0, -2.5, 1.0]), torch.zeros(56)]).double())
    whole = matrix + change
    negative = int((torch.linalg.eigvalsh(whole) < 0).sum())
    found = AbsoluteInverse(Spectrum(matrix), 0.0).after(change.float()).double()
    assert negative >= 2 and torch.linalg.eigvalsh(found)[0] > 0
    signs = torch.linalg.eigvals(found @ whole).real.sort().values  # of 1 + mu, as far as that is above `LEAST`
    torch.testing.assert_close(signs[:negative], -torch.ones(negative).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(signs[negative:], torch.ones(60 - negative).double(), atol=1e-3, rtol=0)


def test_the_absolute_inverse_leaves_a_share_of_every_curvature() -> None:
    change = torch.zeros(5, 5)
    change[0, 0], change[1, 1] = -1.0, -0.9
    found = AbsoluteInverse(Spectrum(torch.eye(5).double()), 0.0).after(change)
    torch.testing.assert_close(found, torch.diag(torch.tensor([1 / LEAST, 1 / LEAST, 1, 1, 1])), atol=1e-5, rtol=0)


def test_the_absolute_inverse_of_a_saddle_takes_magnitudes() -> None:
    matrix = symmetric(4, torch.linspace(-1, 2, 30).double())
    found = AbsoluteInverse(Spectrum(matrix), 0.1).after(torch.zeros(30, 30)).double()
    spectrum, vectors = torch.linalg.eigh(matrix)
    torch.testing.assert_close(found @ vectors, vectors / (spectrum.abs() + 0.1), atol=1e-4, rtol=1e-3)


class Quadratic:
    """J = t^T A t / 2 - b^T t, in the place of a network."""

    def __init__(self, matrix: torch.Tensor, vector: torch.Tensor) -> None:
        self.matrix, self.vector = matrix, vector

    def uniform(self, count: int) -> torch.Tensor:
        return torch.ones(count, 1, dtype=torch.float64)

    def value_and_gradient(self, theta, weights, place):
        t = theta[0]
        return 0.5 * t @ self.matrix @ t - self.vector @ t, (self.matrix @ t - self.vector)[None]


def test_a_quadratic_is_solved_and_each_update_keeps_the_secant_equation() -> None:
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(8, 8, generator=rng, dtype=torch.float64)
    matrix, vector = root @ root.T + 0.1 * torch.eye(8), torch.randn(8, generator=rng, dtype=torch.float64)
    search, inverse = _Search(Quadratic(matrix, vector)), torch.eye(8, dtype=torch.float64)
    state = search.at(torch.zeros(8, dtype=torch.float64))
    for _ in range(5):
        before, state = state, search.descend(state, inverse, 1e-11, 1)
        torch.testing.assert_close(inverse @ (state.gradient - before.gradient), state.theta - before.theta)
        torch.testing.assert_close(inverse, inverse.T)
    state = search.descend(state, inverse, 1e-11, 200)
    torch.testing.assert_close(state.theta, torch.linalg.solve(matrix, vector))
    assert torch.linalg.eigvalsh(inverse)[0] > 0


class Rounded(Quadratic):
    """The same in float32, its values so large, and rounded up each time, that what the last steps gain is hidden."""

    calls = 0

    def uniform(self, count: int) -> torch.Tensor:
        return torch.ones(count, 1, dtype=torch.float32)

    def value_and_gradient(self, theta, weights, place):
        value, gradient = super().value_and_gradient(theta.double(), weights, place)
        self.calls += 1
        return (value + 100).float() * (1 + self.calls * torch.finfo(torch.float32).eps), gradient.float()


def test_where_values_are_rounded_away_slopes_lead_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(1)
    root = torch.randn(8, 8, generator=rng, dtype=torch.float64)
    matrix, vector = root @ root.T + torch.eye(8), torch.randn(8, generator=rng, dtype=torch.float64)

    def reached() -> float:
        search = _Search(Rounded(matrix, vector))
        start = search.at(torch.ones(8, dtype=torch.float64))
        return search.descend(start, torch.eye(8, dtype=torch.float64), 1e-5, 200).norm

    assert reached() <= 1e-5
    monkeypatch.setattr(quasi_newton, "NOISE", 0)
    assert reached() > 1e-4


def test_steps_and_rounds_bound_the_work() -> None:
    train = iris_network()
    few = minimum(train, train.model.init(0), tolerance=1e-12, rounds=1, steps=3)
    assert few.grad_norm > 1e-12 and few.passes < 3 * 30 + 2
    many = minimum(train, train.model.init(0), tolerance=1e-12, rounds=1, steps=30)
    assert float(train.value(many.theta[None], train.uniform(1))) < float(
        train.value(few.theta[None], train.uniform(1))
    )
