"""Block conjugate gradients, minimum residuals, leading eigenvectors and sketches: limits and optimality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import Planted, right_hand_sides, rotated

from fragile_lib.solvers import ArnoldiSolver, BlockCGSolver, MinresSolver, NystroemSolver
from fragile_lib.solvers.krylov import orthonormal

# -- iteration -------------------------------------------------------------------------------------------------------


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


def test_an_orthonormal_basis_spans_its_rows_and_has_their_rank():
    rows = right_hand_sides(3, 10)
    stacked = torch.cat([1e-9 * rows, 1e6 * (rows[:1] + rows[1:2]), torch.zeros(2, 10).double()])
    basis = orthonormal(stacked)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(rows @ basis.T @ basis, rows, rtol=1e-10, atol=1e-10)
    assert orthonormal(torch.zeros(2, 10).double()).shape == (0, 10)


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


# -- low rank --------------------------------------------------------------------------------------------------------


SIGNED = np.array([-6.0, -3.0, -0.01, *np.linspace(0.1, 2, 30), 4.0, 9.0])
by_low_rank = pytest.mark.parametrize("kind", [ArnoldiSolver, NystroemSolver])


# -- Arnoldi ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 4, 11, 12, 20, 35])  # ARPACK, from 12 on dense
def test_eigenvalues_of_both_signs_are_taken_by_magnitude(rank):
    objective = Planted(rotated(list(SIGNED)))
    solver = ArnoldiSolver(objective, objective.theta, 10.0, rank, tolerance=1e-10)
    largest = sorted(SIGNED, key=abs, reverse=True)[:rank]
    np.testing.assert_allclose(sorted(10 * solver.spectrum), sorted(largest), rtol=1e-8, atol=1e-9)
    gram = solver.vectors.T @ solver.vectors
    torch.testing.assert_close(gram, torch.eye(rank).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("rank", [3, 20])
def test_the_diagonal_remainder_takes_decay_and_damping_for_the_curvature_outside(rank):
    decay = np.where(np.arange(35) < 25, 0.2, 0.0)
    objective = Planted(spread(-3, 1, 35).matrix.numpy(), decay)
    root = 1 / np.sqrt(decay + 0.1)
    spectrum, vectors = np.linalg.eigh(root[:, None] * objective.matrix.numpy() * root)
    leading = np.argsort(-spectrum)[:rank]
    low = (vectors[:, leading] * spectrum[leading]) @ vectors[:, leading].T
    matrix = low / np.outer(root, root) + np.diag(decay + 0.1)
    v = right_hand_sides(3, 35)
    solution = ArnoldiSolver(objective, objective.theta, 0.1, rank, True, tolerance=1e-12)(v)
    np.testing.assert_allclose(solution.x, np.linalg.solve(matrix, v.numpy().T).T, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("damping", "status"), [(5.9, "indefinite"), (6.1, "ok")])
@pytest.mark.parametrize("rank", [4, 20])
def test_an_eigenvalue_at_or_below_minus_the_damping_is_named(damping, status, rank):
    decay = np.full(35, 0.05)  # takes part in the sign
    objective = Planted(rotated(list(SIGNED)) - np.diag(decay), decay)
    solver = ArnoldiSolver(objective, objective.theta, damping, rank)
    assert solver(right_hand_sides(1, 35)).status == status


def test_small_negative_eigenvalues_behind_the_leading_ones_stay_unseen_as_documented():
    objective = Planted(np.diag([-0.5, *np.linspace(1, 9, 34)]))
    v = right_hand_sides(1, 35)
    assert ArnoldiSolver(objective, objective.theta, 0.1, 5)(v).status != "indefinite"
    assert ArnoldiSolver(objective, objective.theta, 0.1, 35)(v).status == "indefinite"


def test_an_eigenproblem_that_does_not_converge_is_named():
    objective, v = Planted(rotated(list(np.linspace(1, 1.001, 200)))), right_hand_sides(2, 200)
    solution = ArnoldiSolver(objective, objective.theta, 0.1, 5, max_restarts=1, tolerance=1e-14)(v)
    assert solution.status == "not_converged" and torch.isfinite(solution.residual).all()


# -- both ------------------------------------------------------------------------------------------------------------


@by_low_rank
def test_a_seed_repeats_itself(kind):
    objective, v = spread(-3, 1, 60), right_hand_sides(2, 60)
    options = {"tolerance": 1e-12} if kind is ArnoldiSolver else {}
    first, again, other = (kind(objective, objective.theta, 0.1, 5, seed=s, **options)(v).x for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    if kind is ArnoldiSolver:  # its seed moves eigenvectors by rounding alone
        torch.testing.assert_close(first, other, rtol=1e-7, atol=1e-9)


@by_low_rank
@pytest.mark.parametrize("rank", [6, 9, 40])
def test_a_matrix_of_low_rank_is_caught_whole(kind, rank):
    objective = Planted(rotated([*np.zeros(34), *np.linspace(1, 5, 6)]))
    v = right_hand_sides(3, 40)
    solution = kind(objective, objective.theta, 1e-2, rank)(v)
    np.testing.assert_allclose(solution.x, objective.solved(v, 1e-2), rtol=1e-6, atol=1e-6)
    assert solution.status == "ok" and solution.residual.max() < 1e-7


# -- the sketch ------------------------------------------------------------------------------------------------------


def sketched(objective, theta, damping, rank, seed=0):
    """The matrix that the sketch inverts, without damping and decay."""
    solver = NystroemSolver(objective, theta, damping, rank, seed)
    found = (solver.vectors * solver.spectrum) @ solver.vectors.T
    return found / torch.outer(solver.scale, solver.scale)


@pytest.mark.parametrize("rank", [1, 5, 20, 40])
def test_the_sketch_is_the_nystroem_formula_for_its_random_vectors(rank):
    objective = spread(-3, 1, 40)
    omega = np.linalg.qr(np.random.default_rng([7, 4]).standard_normal((40, rank)))[0]
    a = objective.matrix.numpy()
    expected = a @ omega @ np.linalg.solve(omega.T @ a @ omega, omega.T @ a)
    found = sketched(objective, objective.theta, 0.1, rank, seed=7)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
