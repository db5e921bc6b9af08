"""Block conjugate gradients and minimum residuals: optimality, tolerance, dependence, breakdown, indefiniteness."""

import numpy as np
import pytest
import torch
from helpers import rotated
from planted import Planted, dense, mlp_problem, right_hand_sides

from fragile_lib.solvers import BlockCGSolver, MinresSolver
from fragile_lib.solvers.krylov import orthonormal

KINDS = [BlockCGSolver, MinresSolver]


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
    objective = spread(-1, 1, 30)
    v = right_hand_sides(k, 30)
    solution = BlockCGSolver(objective, objective.theta, 0.2, max_iterations=steps, tolerance=1e-13)(v)
    matrix = objective.matrix.numpy() + 0.2 * np.eye(30)
    basis = krylov_basis(matrix, v.numpy(), steps)
    expected = basis @ np.linalg.solve(basis.T @ matrix @ basis, basis.T @ v.numpy().T)
    np.testing.assert_allclose(solution.x, expected.T, rtol=1e-7, atol=1e-9)
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spectrum", [(-1, 1), (-3, 1), (-5, 1)])
def test_the_tolerance_is_applied_to_the_measured_residual(kind, spectrum):
    objective = spread(*spectrum)
    v, products = right_hand_sides(4, 60), []
    for tolerance in (1e-2, 1e-5, 1e-9):
        solution = kind(objective, objective.theta, 0.0, tolerance=tolerance, max_iterations=5000)(v)
        measured = (solution.x @ objective.matrix - v).norm(dim=1) / v.norm(dim=1)
        assert solution.status == "ok" and (measured <= tolerance).all()
        torch.testing.assert_close(solution.residual, measured, rtol=1e-2, atol=1e-11)
        products.append(solution.products)
    assert products[0] < products[1] < products[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loose_tolerance_ends_early_however_many_iterations_are_allowed(kind):
    objective = spread(-2, 1)
    v = right_hand_sides(3, 60)
    few, many = (kind(objective, objective.theta, 0.1, tolerance=1e-3, max_iterations=i)(v) for i in (100, 100_000))
    assert torch.equal(few.x, many.x) and few.products == many.products


@pytest.mark.parametrize("kind", KINDS)
def test_a_tolerance_below_rounding_ends_with_finite_numbers_and_says_so(kind):
    objective = spread(-6, 1)
    v = right_hand_sides(3, 60)
    solution = kind(objective, objective.theta, 0.0, tolerance=1e-30, max_iterations=20_000)(v)
    assert solution.status == "not_converged"
    assert torch.isfinite(solution.x).all() and solution.residual.max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_iterations_are_named_and_the_residual_is_that_of_the_last_iterate(kind):
    objective = spread(-3, 1)
    v = right_hand_sides(3, 60)
    solution = kind(objective, objective.theta, 0.1, max_iterations=4)(v)
    expected = (solution.x @ objective.matrix + 0.1 * solution.x - v).norm(dim=1) / v.norm(dim=1)
    assert solution.status == "not_converged"
    torch.testing.assert_close(solution.residual, expected)
    assert expected.max() > 1e-4
    torch.testing.assert_close(solution.x.norm(dim=1) > 0, torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_reaches_the_default_tolerance(kind):
    exact = spread(-2, 1)
    objective = Planted(exact.matrix.numpy(), dtype=torch.float32)
    v = right_hand_sides(3, 60).float()
    solution = kind(objective, objective.theta, 0.1)(v)
    assert solution.x.dtype == torch.float32 and solution.status == "ok"
    np.testing.assert_allclose(solution.x, exact.solved(v, 0.1), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2.0**-40, 2.0**40])  # powers of two round nothing
def test_the_size_of_a_right_hand_side_does_not_matter(kind, size):
    objective = spread(-2, 1)
    v = right_hand_sides(3, 60)
    plain = kind(objective, objective.theta, 0.1, tolerance=1e-8)(v)
    mixed = v * torch.tensor([[1.0], [size], [1.0]])
    scaled = kind(objective, objective.theta, 0.1, tolerance=1e-8)(mixed)
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
    objective = spread(-3, 1)
    v = right_hand_sides(3, 60)
    dependent = torch.cat([v, v[:1], v[1:2] - 2 * v[2:3], torch.zeros(1, 60).double(), v])
    plain, found = (BlockCGSolver(objective, objective.theta, 0.01, tolerance=1e-9)(b) for b in (v, dependent))
    assert found.status == "ok"
    np.testing.assert_allclose(found.x, objective.solved(dependent, 0.01), rtol=1e-5, atol=1e-5)
    solve, plain_solve = found.products - 8, plain.products - 3  # 8 of the 9 are not zero; each is measured once
    assert solve <= plain_solve + 3  # three directions an iteration, and at most one iteration more


def test_nearly_dependent_right_hand_sides_are_told_apart():
    objective = spread(-3, 1)
    v = right_hand_sides(1, 60)
    near = torch.cat([v, v + 1e-7 * right_hand_sides(1, 60, seed=5)])
    solution = BlockCGSolver(objective, objective.theta, 0.01, tolerance=1e-10)(near)
    assert solution.status == "ok" and solution.residual.max() <= 1e-10
    np.testing.assert_allclose(solution.x, objective.solved(near, 0.01), rtol=1e-6, atol=1e-6)


def test_a_block_takes_fewer_products_than_its_columns_alone_and_ends_in_p_over_k_iterations():
    objective = spread(-3, 1)
    v = right_hand_sides(20, 60)
    solver = BlockCGSolver(objective, objective.theta, 0.0, tolerance=1e-6)
    together, alone = solver(v), [solver(row[None]) for row in v]
    torch.testing.assert_close(together.x, torch.cat([one.x for one in alone]), rtol=1e-3, atol=1e-2)
    assert {together.status, *(one.status for one in alone)} == {"ok"}
    assert together.products == 60 + 20
    assert together.products < sum(one.products for one in alone) / 10


def test_an_orthonormal_basis_spans_its_rows_and_has_their_rank():
    rows = right_hand_sides(3, 10)
    stacked = torch.cat([1e-9 * rows, 1e6 * (rows[:1] + rows[1:2]), torch.zeros(2, 10).double()])
    basis = orthonormal(stacked)
    assert basis.shape == (3, 10)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(rows @ basis.T @ basis, rows, rtol=1e-10, atol=1e-10)
    assert orthonormal(torch.zeros(2, 10).double()).shape == (0, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_singular_matrix_is_solved_where_it_can_be(kind):
    objective = Planted(np.diag([*np.zeros(5), *np.linspace(1, 4, 10)]))
    v = right_hand_sides(2, 15)
    v[:, :5] = 0
    solution = kind(objective, objective.theta, 0.0, tolerance=1e-10)(v)
    expected = np.concatenate([np.zeros((2, 5)), v[:, 5:].numpy() / np.linspace(1, 4, 10)], axis=1)
    np.testing.assert_allclose(solution.x, expected, rtol=1e-8, atol=1e-9)
    assert solution.status == "ok"  # what no vector touches is not known


@pytest.mark.parametrize("kind", KINDS)
def test_a_singular_matrix_is_never_called_solved_where_it_cannot_be(kind):
    objective = Planted(np.diag([*np.zeros(5), *np.linspace(1, 4, 10)]))
    solution = kind(objective, objective.theta, 0.0, max_iterations=200)(right_hand_sides(2, 15))
    assert solution.status != "ok"
    assert not solution.residual.max() < 0.1


# -- negative curvature ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_indefinite_goes_before_not_converged(kind):
    objective = Planted(rotated([-5.0, *np.logspace(-3, 1, 50)]))
    solution = kind(objective, objective.theta, 0.0, tolerance=1e-10, max_iterations=12)(right_hand_sides(2, 51))
    assert solution.status == "indefinite" and solution.residual.max() > 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_a_negative_eigenvalue_that_no_vector_touches_stays_unseen_as_documented(kind):
    objective = Planted(np.diag([-1.0, *np.linspace(1, 4, 10)]))
    v = right_hand_sides(2, 11)
    unseen = v.clone()
    unseen[:, 0] = 0
    assert kind(objective, objective.theta, 0.0)(unseen).status == "ok"
    assert kind(objective, objective.theta, 0.0)(v).status == "indefinite"


@pytest.mark.parametrize("kind", KINDS)
def test_a_direction_without_curvature_along_v_is_named(kind):
    objective = Planted(np.diag([0.0, 1.0, 2.0]))
    solution = kind(objective, objective.theta, 0.0)(torch.tensor([[1.0, 0.0, 0.0]]).double())
    assert solution.status == "indefinite" and solution.residual.item() == pytest.approx(1)


def test_the_hessian_of_a_network_far_from_an_optimum_is_named():
    objective, theta, _ = mlp_problem()
    lowest = torch.linalg.eigvalsh(dense(objective, theta, False))[0].item()
    v = right_hand_sides(1, len(theta))
    for kind in KINDS:
        assert kind(objective, theta, 0.5 * -lowest, tolerance=1e-6)(v).status == "indefinite"
        assert kind(objective, theta, 1.5 * -lowest, tolerance=1e-6)(v).status == "ok"
