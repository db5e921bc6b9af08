"""Minima by BFGS with a dense inverse, against a closed form, the dense Newton method, and planted saddles."""

import pytest
import torch
from helpers import leave_one_out

from fragile_lib.data.sets import Data, iris_splits
from fragile_lib.minimise import quasi_newton
from fragile_lib.minimise.descent import FLAT
from fragile_lib.minimise.newton import newton
from fragile_lib.minimise.quasi_newton import LEAST, RANK, AbsoluteInverse, _Search, left_out_minimum, minimum
from fragile_lib.models.mlp import MLP
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.fused import make_objective
from fragile_lib.solvers.dense import DenseSolver


def objective(weight_decay: float = 0.01) -> Objective:
    data, _ = iris_splits([0])
    return make_objective(MLP(1, 6, "tanh"), data, weight_decay)


def lowest(train: Objective, theta: torch.Tensor) -> float:
    return float(torch.linalg.eigvalsh(train.matrices(theta[None], train.uniform(1))[0])[0])


def test_the_minimum_from_a_random_start_is_certified_and_as_low_as_that_of_newton() -> None:
    train = objective()
    start = train.model.init(0)
    found = minimum(train, start, tolerance=1e-9)
    assert found.grad_norm <= 1e-9 and lowest(train, found.theta) >= -FLAT
    assert float(train.gradient(found.theta[None], train.uniform(1)).norm()) == pytest.approx(found.grad_norm)
    theta, norm, _ = newton(train, start[None], train.uniform(1), max_steps=300)
    assert norm[0] <= 1e-8
    values = [float(train.value(t[None], train.uniform(1))) for t in (found.theta, theta[0])]
    assert values[0] <= values[1] + 0.05  # each may be a minimum of its own


def test_a_saddle_with_no_gradient_is_left() -> None:
    train = objective(0.001)
    saddle = torch.zeros(len(train.model.init(0)), dtype=torch.float64)  # classes are balanced: grad J is zero here
    assert float(train.gradient(saddle[None], train.uniform(1)).norm()) < 1e-12 and lowest(train, saddle) < -0.01
    found = minimum(train, saddle, tolerance=1e-8)
    assert found.grad_norm <= 1e-8 and lowest(train, found.theta) >= -FLAT
    before, after = (float(train.value(t[None], train.uniform(1))) for t in (saddle, found.theta))
    assert after < 0.2 * before


def test_at_a_minimum_nothing_is_done() -> None:
    train = objective()
    theta = minimum(train, train.model.init(0), tolerance=1e-9).theta
    again = minimum(train, theta, tolerance=1e-8)
    assert torch.equal(again.theta, theta) and again.passes == 1


def test_the_minimum_without_an_example_of_much_leverage_is_one_of_the_others_alone() -> None:
    train = objective(0.001)
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
    train = objective()
    few = minimum(train, train.model.init(0), tolerance=1e-12, rounds=1, steps=3)
    assert few.grad_norm > 1e-12 and few.passes < 3 * 30 + 2
    many = minimum(train, train.model.init(0), tolerance=1e-12, rounds=1, steps=30)
    assert float(train.value(many.theta[None], train.uniform(1))) < float(
        train.value(few.theta[None], train.uniform(1))
    )
