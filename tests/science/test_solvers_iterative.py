"""Block conjugate gradients and minimum residuals: optimality, tolerance, dependence, breakdown, indefiniteness."""

import numpy as np
import pytest
import torch
from helpers import rotated
from planted import Planted, right_hand_sides

from fragile_lib.solvers import BlockCGSolver, MinresSolver

by_kind = pytest.mark.parametrize("kind", [BlockCGSolver, MinresSolver])


def spread(low, high, size=60, seed=0):
    """Eigenvalues spread evenly in logarithm, the hard case of Krylov methods."""
    return Planted(rotated(list(np.logspace(low, high, size)), seed))


def krylov_basis(matrix, v, steps):
    """An orthonormal basis (P, r) of span{V, A V, ..., A^(steps-1) V}."""
    columns, power = [], v.T
    for _ in range(steps):
        columns.append(power)
        power = matrix @ (power / np.linalg.norm(power, axis=0))
    return np.linalg.qr(np.concatenate(columns, axis=1))[0]


# -- what the recursions are optimal in ------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_block_cg_takes_the_least_energy_of_the_whole_block_krylov_space(k, steps):
    objective, v = spread(-1, 1, 30), right_hand_sides(k, 30)
    solution = BlockCGSolver(objective, objective.theta, 0.2, max_iterations=steps, tolerance=1e-13)(v)
    matrix = objective.matrix.numpy() + 0.2 * np.eye(30)
    basis = krylov_basis(matrix, v.numpy(), steps)
    expected = basis @ np.linalg.solve(basis.T @ matrix @ basis, basis.T @ v.numpy().T)
    np.testing.assert_allclose(solution.x, expected.T, rtol=1e-7, atol=1e-9)
    left = np.linalg.norm(matrix @ expected - v.numpy().T, axis=0) / v.norm(dim=1).numpy()
    np.testing.assert_allclose(solution.residual, left, rtol=1e-6)
    assert solution.status == "not_converged"


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_minres_takes_the_least_residual_of_the_krylov_space_of_an_indefinite_matrix(steps):
    objective = Planted(rotated([*np.linspace(-3, -0.5, 10), *np.linspace(0.5, 8, 20)]))
    v = right_hand_sides(2, 30)
    solution = MinresSolver(objective, objective.theta, 0.2, max_iterations=steps, tolerance=1e-13)(v)
    matrix = objective.matrix.numpy() + 0.2 * np.eye(30)
    for row, x, residual in zip(v.numpy(), solution.x.numpy(), solution.residual, strict=True):
        basis = krylov_basis(matrix, row[None], steps)
        best = basis @ np.linalg.lstsq(matrix @ basis, row, rcond=None)[0]
        np.testing.assert_allclose(x, best, rtol=1e-7, atol=1e-9)
        assert residual == pytest.approx(np.linalg.norm(matrix @ best - row) / np.linalg.norm(row), rel=1e-9)


# -- tolerance -------------------------------------------------------------------------------------------------------


@by_kind
@pytest.mark.parametrize("low", [-1, -3, -5])
def test_the_tolerance_is_applied_to_the_measured_residual_and_ends_early(kind, low):
    objective, v, products = spread(low, 1), right_hand_sides(4, 60), []
    for tolerance in (1e-2, 1e-5, 1e-9):
        solution = kind(objective, objective.theta, 0.0, tolerance=tolerance, max_iterations=5000)(v)
        measured = (solution.x @ objective.matrix - v).norm(dim=1) / v.norm(dim=1)
        assert solution.status == "ok" and (measured <= tolerance).all()
        torch.testing.assert_close(solution.residual, measured, rtol=1e-2, atol=1e-11)
        products.append(solution.products)
    assert products[0] < products[1] < products[2]


@by_kind
def test_a_tolerance_below_rounding_ends_with_finite_numbers_and_says_so(kind):
    objective = spread(-6, 1)
    solution = kind(objective, objective.theta, 0.0, tolerance=1e-30, max_iterations=3000)(right_hand_sides(1, 60))
    assert solution.status == "not_converged"
    assert torch.isfinite(solution.x).all() and solution.residual.max() < 1e-6


@by_kind
@pytest.mark.parametrize("size", [2.0**-40, 2.0**40])  # powers of two round nothing
def test_the_size_of_a_right_hand_side_does_not_matter(kind, size):
    objective, v = spread(-2, 1), right_hand_sides(3, 60)
    solver = kind(objective, objective.theta, 0.1, tolerance=1e-8)
    plain, scaled = solver(v), solver(v * torch.tensor([[1.0], [size], [1.0]]))
    torch.testing.assert_close(scaled.x[1] / size, plain.x[1], rtol=1e-6, atol=1e-7)
    assert scaled.products == plain.products and scaled.status == "ok"


def test_a_block_that_rounding_holds_up_starts_anew_from_the_measured_residual():
    objective = spread(-6, 1)
    v = right_hand_sides(10, 60)  # six iterations search the whole space; on from there, without a new run: 18,000
    solution = BlockCGSolver(objective, objective.theta, 0.0, tolerance=1e-9, max_iterations=20_000)(v)
    assert solution.status == "ok" and solution.residual.max() <= 1e-9
    assert solution.products < 2_000


# -- dependence and breakdown ----------------------------------------------------------------------------------------


def test_equal_and_dependent_right_hand_sides_make_the_block_narrower_and_not_break_down():
    objective, v = spread(-3, 1), right_hand_sides(3, 60)
    dependent = torch.cat([v, v[:1], v[1:2] - 2 * v[2:3], torch.zeros(1, 60).double(), v])
    plain, found = (BlockCGSolver(objective, objective.theta, 0.01, tolerance=1e-9)(b) for b in (v, dependent))
    assert found.status == "ok"
    np.testing.assert_allclose(found.x, objective.solved(dependent, 0.01), rtol=1e-5, atol=1e-5)
    solve, plain_solve = found.products - 8, plain.products - 3  # 8 of the 9 are not zero; each is measured once
    assert solve <= plain_solve + 3  # three directions an iteration, and at most one iteration more
    near = torch.cat([v[:1], v[:1] + 1e-7 * v[1:2]])  # are told apart
    solution = BlockCGSolver(objective, objective.theta, 0.01, tolerance=1e-10)(near)
    assert solution.status == "ok" and solution.residual.max() <= 1e-10
    np.testing.assert_allclose(solution.x, objective.solved(near, 0.01), rtol=1e-6, atol=1e-6)


def test_a_block_takes_fewer_products_than_its_columns_alone_and_ends_in_p_over_k_iterations():
    objective, v = spread(-3, 1), right_hand_sides(20, 60)
    solver = BlockCGSolver(objective, objective.theta, 0.0, tolerance=1e-6)
    together, alone = solver(v), [solver(row[None]) for row in v[:3]]
    torch.testing.assert_close(together.x[:3], torch.cat([one.x for one in alone]), rtol=1e-3, atol=1e-2)
    assert {together.status, *(one.status for one in alone)} == {"ok"}
    assert together.products == 60 + 20
    assert together.products < 20 / 3 * sum(one.products for one in alone) / 10


@by_kind
def test_a_singular_matrix_is_solved_where_it_can_be_and_never_called_solved_where_it_cannot(kind):
    objective, v = Planted(np.diag([*np.zeros(5), *np.linspace(1, 4, 10)])), right_hand_sides(2, 15)
    solution = kind(objective, objective.theta, 0.0, max_iterations=200)(v)
    assert solution.status != "ok" and not solution.residual.max() < 0.1
    v[:, :5] = 0
    solution = kind(objective, objective.theta, 0.0, tolerance=1e-10)(v)
    expected = np.concatenate([np.zeros((2, 5)), v[:, 5:].numpy() / np.linspace(1, 4, 10)], axis=1)
    np.testing.assert_allclose(solution.x, expected, rtol=1e-8, atol=1e-9)
    assert solution.status == "ok"  # what no vector touches is not known
    solution = kind(objective, objective.theta, 0.0)(torch.eye(15)[:1].double())  # no curvature along v
    assert solution.status == "indefinite" and solution.residual.item() == pytest.approx(1)


# -- negative curvature ----------------------------------------------------------------------------------------------


@by_kind
def test_indefinite_goes_before_not_converged(kind):
    objective = Planted(rotated([-5.0, *np.logspace(-3, 1, 50)]))
    solution = kind(objective, objective.theta, 0.0, tolerance=1e-10, max_iterations=12)(right_hand_sides(2, 51))
    assert solution.status == "indefinite" and solution.residual.max() > 1e-10


@by_kind
def test_a_negative_eigenvalue_that_no_vector_touches_stays_unseen_as_documented(kind):
    objective, v = Planted(np.diag([-1.0, *np.linspace(1, 4, 10)])), right_hand_sides(2, 11)
    unseen = v.clone()
    unseen[:, 0] = 0
    assert kind(objective, objective.theta, 0.0)(unseen).status == "ok"
    assert kind(objective, objective.theta, 0.0)(v).status == "indefinite"
