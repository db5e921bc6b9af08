"""The direct solvers' residual, spectra, and the stochastic recursion: closed forms, named outcomes."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import SPECTRA, in_chunks, iris_subset, planted, random_network, right_hand_sides

from fragile_lib.data.sets import Data
from fragile_lib.minimise.newton import newton
from fragile_lib.models.mlp import MLP
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.fused import FusedObjective
from fragile_lib.solvers import DenseSolver, ExactSolver, LissaSolver, lissa_partition, lissa_random, lissa_single
from fragile_lib.solvers.spectrum import example_curvature_bound, extreme_eigenvalues


def eye(like):
    return torch.eye(len(like), dtype=torch.float64)


@pytest.mark.parametrize(("kind", "share"), [(ExactSolver, 1.001), (ExactSolver, 0.0), (DenseSolver, 0.0)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_residual_is_relative_and_what_is_no_solution_is_not_called_ok(kind, share, size):
    """Off by a thousandth of v, whether v is large or small, is a residual of a thousandth; x = 0 is one of 1."""
    objective = planted("well conditioned")
    solver, v = kind(objective, objective.theta, 0.5), right_hand_sides(3, 12)
    damped = objective.matrix + 0.5 * eye(objective.matrix)
    solver.shifted = lambda v, shift: share * torch.linalg.solve(damped, v.T).T
    found = solver(size * v)
    torch.testing.assert_close(found.residual, torch.full((3,), abs(1 - share)).double(), rtol=1e-6, atol=0.0)
    assert found.status == ("ok" if share else "not_converged")


def test_curvature_that_is_not_finite_has_no_spectrum_and_a_planted_one_has_its_ends():
    assert np.isnan(extreme_eigenvalues(torch.full((3, 3), torch.nan))).all()
    name = "negative eigenvalues"
    assert extreme_eigenvalues(planted(name).matrix) == pytest.approx((-2.0, 8.0))
    assert SPECTRA[name].min() == -2.0


# -- LiSSA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [2.5, 5.0])
@pytest.mark.parametrize(
    ("make", "n", "depth"), [(LissaSolver, 1, 5_000), (partial(lissa_partition, batch=7), 7, 1_000)]
)
def test_the_fixed_point_holds_the_damping_unscaled_whatever_the_scale(make, n, depth, damping):
    """On one example, or one batch of all, on which the recursion has no chance in it."""
    objective, _, (theta,), _ = random_network("tanh", 1, 3, n, size=1)
    hessian, v = objective.matrices(theta[None], objective.uniform(1))[0], right_hand_sides(2, len(theta))
    lowest, highest = extreme_eigenvalues(hessian)
    assert lowest + damping > 0
    expected = torch.linalg.solve(hessian + damping * eye(theta), v.T).T
    for scale in (highest + damping, 3 * (highest + damping), 40.0):
        solution = make(objective, theta, damping, depth=depth, scale=scale)(v)
        torch.testing.assert_close(solution.x, expected, rtol=1e-9, atol=1e-9)
        assert solution.status == "ok" and solution.residual.max() < 1e-9 and solution.products >= 2 * depth


@pytest.fixture(scope="module")
def small_optimum():
    objective = FusedObjective(MLP(1, 3, "tanh"), iris_subset(6)[0], 0.02)
    theta = newton(objective, objective.model.init(0)[None], objective.uniform(1), max_steps=200)[0][0]
    return objective, theta, right_hand_sides(2, len(theta))


def test_the_default_scale_is_the_largest_example_curvature_plus_decay_and_damping(small_optimum):
    objective, theta, _ = small_optimum
    one_hot = torch.eye(objective.n, dtype=torch.float64)
    place = torch.zeros(objective.n, dtype=torch.long)
    matrices = objective.matrices(theta.expand(objective.n, -1), one_hot, place) - torch.diag(objective.decay)
    largest = torch.linalg.eigvalsh(matrices).abs().max().item()
    assert example_curvature_bound(objective, theta, steps=300) == pytest.approx(largest, rel=1e-4)
    assert LissaSolver(objective, theta, 0.1).scale == pytest.approx(largest + 0.02 + 0.1, rel=0.02)


@pytest.mark.parametrize("seed", [3, 4])
def test_the_three_ways_to_draw_are_the_recursion_written_out(small_optimum, seed):
    """Each with its own stream of random numbers, on which the recorded numbers stand."""
    objective, theta, v = small_optimum
    n, damping, scale = objective.n, 0.5, 20.0

    def by_hand(draws):
        h = v
        for rows in draws:
            part = Objective(objective.model, Data(objective.data.x[:, rows], objective.data.y[:, rows]), 0.02)
            h = v + h - (part.products(theta[None], h[None], part.uniform(1))[0] + damping * h) / scale
        return h / scale

    def stream():
        return np.random.default_rng([seed, 2])

    single, random = stream().integers(n, size=(2, 5, 1)), stream().integers(n, size=(2, 5, 4))
    rng = stream()
    rows = rng.permutation(n)[:16].reshape(4, 4)  # two of eighteen are left over
    partition = []
    for _ in range(2):
        order = np.concatenate([rng.permutation(4)[::-1], rng.permutation(4)[::-1]])[:5]
        partition.append(rows[order])
    streamed = in_chunks(objective.model, objective.data, 0.02, chunk=5, vectors=1)
    damped = objective.matrices(theta[None], objective.uniform(1))[0] + damping * eye(theta)
    options = {"depth": 5, "repeats": 2, "seed": seed, "scale": scale}
    for j in (objective, Objective(objective.model, objective.data, 0.02), streamed):
        for make, draws in (
            (lissa_single, single),
            (partial(lissa_random, batch=4), random),
            (partial(lissa_partition, batch=4), partition),
        ):
            found = make(j, theta, damping, **options)(v)
            torch.testing.assert_close(found.x, (by_hand(draws[0]) + by_hand(draws[1])) / 2, rtol=1e-10, atol=1e-12)
            residual = (found.x @ damped - v).norm(dim=1) / v.norm(dim=1)
            torch.testing.assert_close(found.residual, residual, rtol=1e-8, atol=1e-8)


def test_too_small_a_scale_is_named_as_a_diverged_solver_and_a_residual_of_one_as_not_converged(small_optimum):
    objective, theta, v = small_optimum
    solution = LissaSolver(objective, theta, 0.1, depth=2000, scale=1e-3)(v)
    assert solution.status == "solver_diverged"
    assert torch.isnan(solution.x).all() and torch.isnan(solution.residual).all()
    for make in (lissa_single, partial(lissa_partition, batch=4)):
        solver = make(objective, theta, 3.0, depth=1, scale=1.0)
        solver.growth = None
        early, late = solver(v), make(objective, theta, 3.0, depth=60, scale=25.0)(v)
        assert early.status == "not_converged" and early.residual.max() >= 1
        assert late.status == "ok" and late.residual.max() < 1
