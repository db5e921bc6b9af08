"""Leading eigenvectors and random sketches: against dense formulas, signs, what is dropped and what is not."""

import numpy as np
import pytest
import torch
from helpers import rotated
from planted import Planted, right_hand_sides

from fragile_lib.solvers import ArnoldiSolver, NystroemSolver

SIGNED = np.array([-6.0, -3.0, -0.01, *np.linspace(0.1, 2, 30), 4.0, 9.0])
by_kind = pytest.mark.parametrize("kind", [ArnoldiSolver, NystroemSolver])


def spread(size):
    return Planted(rotated(list(np.logspace(-3, 1, size))))


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
    objective = Planted(spread(35).matrix.numpy(), decay)
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


@by_kind
def test_a_seed_repeats_itself(kind):
    objective, v = spread(60), right_hand_sides(2, 60)
    options = {"tolerance": 1e-12} if kind is ArnoldiSolver else {}
    first, again, other = (kind(objective, objective.theta, 0.1, 5, seed=s, **options)(v).x for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    if kind is ArnoldiSolver:  # its seed moves eigenvectors by rounding alone
        torch.testing.assert_close(first, other, rtol=1e-7, atol=1e-9)


@by_kind
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
    objective = spread(40)
    omega = np.linalg.qr(np.random.default_rng([7, 4]).standard_normal((40, rank)))[0]
    a = objective.matrix.numpy()
    expected = a @ omega @ np.linalg.solve(omega.T @ a @ omega, omega.T @ a)
    found = sketched(objective, objective.theta, 0.1, rank, seed=7)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
