"""Inverse-Hessian-vector products: planted spectra, closed forms of the recursion, named outcomes."""

import numpy as np
import pytest
import torch
from helpers import PlantedObjective, Regression, iris_subset, random_network, rotated, softmax_regression

from fragile_lib.data.sets import Data
from fragile_lib.minimise.newton import newton
from fragile_lib.models.mlp import MLP
from fragile_lib.objectives.fused import FusedObjective
from fragile_lib.solvers import ExactSolver, LissaSolver
from fragile_lib.solvers.spectrum import example_curvature_bound, extreme_eigenvalues
from fragile_lib.tools.errors import InputError

ONE = torch.zeros(6, dtype=torch.float64)
V = torch.tensor(np.random.default_rng(1).standard_normal((3, 6)))


def eye(like):
    return torch.eye(len(like), dtype=torch.float64)


SPECTRA = {
    "well conditioned": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "condition number 1e8": [1e-7, 1e-5, 1e-3, 0.1, 1.0, 10.0],
    "negative eigenvalues": [-2.0, -0.3, 0.4, 1.0, 3.0, 8.0],
    "rank deficient": [0.0, 0.0, 0.0, 1.0, 2.0, 5.0],
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("damping", [1e-2, 0.5, 4.0])
def test_the_exact_solver_inverts_every_planted_spectrum(name, damping):
    matrix = rotated(SPECTRA[name])
    solution = ExactSolver(PlantedObjective(matrix), ONE, damping)(V)
    expected = np.linalg.solve(matrix + damping * np.eye(6), V.numpy().T).T
    np.testing.assert_allclose(solution.x, expected, rtol=1e-9, atol=1e-9)
    assert solution.residual.shape == (3,) and solution.residual.max() < 1e-12
    assert solution.status == ("ok" if min(SPECTRA[name]) + damping > 0 else "indefinite")


def test_the_exact_solver_drops_no_eigenvalue_however_small():
    spectrum = np.array(SPECTRA["condition number 1e8"])
    solution = ExactSolver(PlantedObjective(np.diag(spectrum)), ONE, 0.0)(torch.eye(6).double())
    np.testing.assert_allclose(solution.x, np.diag(1 / spectrum), rtol=1e-12)
    assert solution.status == "ok" and solution.residual.max() < 1e-12


@pytest.mark.parametrize(
    ("lowest", "damping", "status"),
    [
        (1e-3, 0.0, "ok"),
        (-1.0, 1.0 + 1e-9, "ok"),
        (-1.0, 1.0, "indefinite"),
        (-1.0, 0.999, "indefinite"),
        (0.0, 0.0, "indefinite"),
        (0.0, 1e-9, "ok"),
    ],
)
def test_indefinite_means_an_eigenvalue_at_or_below_minus_the_damping(lowest, damping, status):
    matrix = np.diag([lowest, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert ExactSolver(PlantedObjective(matrix), ONE, damping)(V).status == status


def test_a_negative_eigenvalue_keeps_its_sign_in_the_inverse():
    solution = ExactSolver(PlantedObjective(np.diag([-2.0, 1, 1, 1, 1, 1])), ONE, 0.0)(torch.eye(6)[:1].double())
    assert solution.x[0, 0].item() == pytest.approx(-0.5)


def test_curvature_that_is_not_finite_is_named():
    matrix = np.eye(6)
    matrix[2, 3] = np.nan
    solution = ExactSolver(PlantedObjective(matrix), ONE, 0.1)(V)
    assert solution.status == "solver_diverged"
    assert torch.isnan(solution.x).all() and torch.isnan(solution.residual).all()
    assert np.isnan(extreme_eigenvalues(torch.tensor(matrix))).all()


def test_extreme_eigenvalues_of_a_planted_spectrum():
    found = extreme_eigenvalues(torch.tensor(rotated(SPECTRA["negative eigenvalues"])))
    assert found == pytest.approx((-2.0, 8.0))


def test_linear_regression_is_solved_by_the_closed_form_and_gauss_newton_is_the_same():
    problem = Regression()
    v = torch.tensor(np.random.default_rng(0).standard_normal((2, 4)))
    expected = np.linalg.solve(problem.hessian() + 0.1 * np.eye(4), v.numpy().T).T
    for gauss_newton in (False, True):
        solution = ExactSolver(problem.train, problem.fitted(), 0.1, gauss_newton)(v)
        np.testing.assert_allclose(solution.x, expected, rtol=1e-10)


def test_the_exact_solver_takes_hessian_or_gauss_newton_and_the_data_set_it_is_told():
    fused, _, theta, _ = random_network("tanh", 2, 3, 11)
    v = torch.randn(2, theta.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for gauss_newton in (False, True):
        solution = ExactSolver(fused, theta[0], 0.7, gauss_newton, dataset=2)(v)
        matrix = fused.matrices(theta[:1], fused.uniform(1), torch.tensor([2]), gauss_newton)[0]
        expected = torch.linalg.solve(matrix + 0.7 * eye(matrix), v.T).T
        torch.testing.assert_close(solution.x, expected, rtol=1e-9, atol=1e-9)


# -- LiSSA -----------------------------------------------------------------------------------------------------------


def single_example(kind):
    """An objective on one example, on which the recursion has no chance in it, and its dense Hessian."""
    if kind == "reference":
        data = iris_subset(1)[0]
        objective = softmax_regression(Data(data.x[:, :1], data.y[:, :1]), 0.02)
        theta = torch.linspace(-0.5, 0.5, 15, dtype=torch.float64)
    else:
        objective, _, theta, _ = random_network("tanh", 1, 3, 1, size=1)
        theta = theta[0]
    hessian = objective.matrices(theta[None], objective.uniform(1))[0]
    v = torch.randn(2, len(theta), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return objective, theta, hessian, v


@pytest.mark.parametrize("kind", ["fused", "reference"])
@pytest.mark.parametrize("depth", [1, 2, 25])
def test_on_one_example_the_recursion_is_a_geometric_sum(kind, depth):
    objective, theta, hessian, v = single_example(kind)
    damping, scale = 0.3, 12.0
    factor = eye(theta) - (hessian + damping * eye(theta)) / scale
    h = sum(v @ torch.linalg.matrix_power(factor, t) for t in range(depth + 1))
    solution = LissaSolver(objective, theta, damping, depth=depth, scale=scale)(v)
    torch.testing.assert_close(solution.x, h / scale, rtol=1e-11, atol=1e-11)
    residual = ((h / scale) @ hessian + damping * h / scale - v).norm(dim=1) / v.norm(dim=1)
    torch.testing.assert_close(solution.residual, residual, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("damping", [2.5, 5.0])
def test_the_fixed_point_holds_the_damping_unscaled_whatever_the_scale(damping):
    objective, theta, hessian, v = single_example("fused")
    lowest, highest = extreme_eigenvalues(hessian)
    assert lowest + damping > 0
    expected = torch.linalg.solve(hessian + damping * eye(theta), v.T).T
    for scale in (highest + damping, 3 * (highest + damping), 40.0):
        solution = LissaSolver(objective, theta, damping, depth=20_000, scale=scale)(v)
        torch.testing.assert_close(solution.x, expected, rtol=1e-9, atol=1e-9)
        assert solution.status == "ok" and solution.residual.max() < 1e-9


@pytest.fixture(scope="module")
def small_optimum():
    objective = FusedObjective(MLP(1, 3, "tanh"), iris_subset(6)[0], 0.02)
    theta = newton(objective, objective.model.init(0)[None], objective.uniform(1), max_steps=200)[0][0]
    v = torch.randn(2, len(theta), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return objective, theta, v


def test_lissa_with_many_repeats_comes_to_the_exact_answer(small_optimum):
    objective, theta, v = small_optimum
    exact = ExactSolver(objective, theta, 0.1)(v)
    assert exact.status == "ok"
    errors = []
    for repeats in (4, 400):
        solution = LissaSolver(objective, theta, 0.1, depth=1000, repeats=repeats)(v)
        errors.append(((solution.x - exact.x).norm() / exact.x.norm()).item())
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 3  # its noise falls as the root of the repeats, here to a tenth


def test_lissa_repeats_itself_for_one_seed_and_differs_for_another(small_optimum):
    objective, theta, v = small_optimum
    first, again, other = (LissaSolver(objective, theta, 0.1, depth=50, seed=seed)(v).x for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_default_scale_is_the_largest_example_curvature_plus_decay_and_damping(small_optimum):
    objective, theta, _ = small_optimum
    one_hot = torch.eye(objective.n, dtype=torch.float64)
    place = torch.zeros(objective.n, dtype=torch.long)
    matrices = objective.matrices(theta.expand(objective.n, -1), one_hot, place) - torch.diag(objective.decay)
    largest = torch.linalg.eigvalsh(matrices).abs().max().item()
    assert example_curvature_bound(objective, theta, steps=300) == pytest.approx(largest, rel=1e-4)
    assert LissaSolver(objective, theta, 0.1).scale == pytest.approx(largest + 0.02 + 0.1, rel=0.02)


def test_too_small_a_scale_is_named_as_a_diverged_solver(small_optimum):
    objective, theta, v = small_optimum
    solution = LissaSolver(objective, theta, 0.1, depth=2000, scale=1e-3)(v)
    assert solution.status == "solver_diverged"
    assert torch.isnan(solution.x).all() and torch.isnan(solution.residual).all()


@pytest.mark.parametrize("damping", [-1e-9, float("nan"), float("inf")])
def test_a_bad_damping_is_named(small_optimum, damping):
    objective, theta, _ = small_optimum
    for kind in (ExactSolver, LissaSolver):
        with pytest.raises(InputError, match="^damping = "):
            kind(objective, theta, damping)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("lissa_depth", {"depth": 0}),
        ("lissa_repeats", {"repeats": 0}),
        ("scale", {"scale": 0.0}),
        ("scale", {"scale": -1.0}),
        ("scale", {"scale": float("nan")}),
    ],
)
def test_a_bad_setting_of_lissa_is_named(small_optimum, name, setting):
    objective, theta, _ = small_optimum
    with pytest.raises(InputError, match=name):
        LissaSolver(objective, theta, 0.1, **setting)
