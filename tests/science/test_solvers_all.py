"""What holds for every solver: planted spectra, agreement, symmetry, invariance, named outcomes, bad input."""

import numpy as np
import pytest
import torch
from helpers import (
    SPECTRA,
    Planted,
    conv_problem,
    dense,
    influence_along,
    leave_one_out,
    linear_problem,
    mlp_problem,
    planted,
    right_hand_sides,
    shuffled,
)

from fragile_lib import solvers
from fragile_lib.data.sets import Data
from fragile_lib.objectives.base import Objective
from fragile_lib.solvers import (
    ArnoldiSolver,
    BlockCGSolver,
    EkfacSolver,
    ExactSolver,
    IdentitySolver,
    KfacSolver,
    MinresSolver,
    NystroemSolver,
)
from fragile_lib.tools.errors import InputError

STATUSES = {"ok", "indefinite", "not_converged", "solver_diverged"}

# each is a full inverse with these settings: name -> (objective, theta, damping, gauss_newton) -> solver
INVERSES = {
    "exact": lambda o, t, d, g, **k: ExactSolver(o, t, d, g, **k),
    "cg": lambda o, t, d, g, **k: BlockCGSolver(o, t, d, g, tolerance=1e-11, **k),
    "minres": lambda o, t, d, g, **k: MinresSolver(o, t, d, g, tolerance=1e-11, **k),
    "arnoldi": lambda o, t, d, g, **k: ArnoldiSolver(o, t, d, len(t), g, **k),
    "nystroem": lambda o, t, d, g, **k: NystroemSolver(o, t, d, len(t), **k),
}
KNOWS_SIGNS = [name for name in INVERSES if name != "nystroem"]
APPROXIMATE = {
    "arnoldi, low rank": lambda o, t, d, m, **k: ArnoldiSolver(o, t, d, 3, True, **k),
    "nystroem, low rank": lambda o, t, d, m, **k: NystroemSolver(o, t, d, 3, **k),
    "identity": lambda o, t, d, m, **k: IdentitySolver(o, t, d, True, **k),
    "kfac": lambda o, t, d, m, **k: KfacSolver(o, t, d, m, **k),
    "ekfac": lambda o, t, d, m, **k: EkfacSolver(o, t, d, m, **k),
}
every_solver = pytest.mark.parametrize("name", [*INVERSES, *APPROXIMATE])


def made(name, objective, theta, damping, module=None, **options):
    """One of all but the stochastic recursion, on the Gauss-Newton matrix, the approximate ones at low rank."""
    if name in INVERSES:
        return INVERSES[name](objective, theta, damping, True, **options)
    return APPROXIMATE[name](objective, theta, damping, module, **options)


# -- planted spectra -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spectrum"), [(n, s) for n in INVERSES for s in SPECTRA if n in KNOWS_SIGNS or SPECTRA[s].min() >= 0]
)
@pytest.mark.parametrize("damping", [1e-2, 0.5, 4.0])
def test_a_full_inverse_inverts_every_planted_spectrum_and_names_its_sign(name, spectrum, damping):
    objective = planted(spectrum)
    v = right_hand_sides(3, 12)
    solution = INVERSES[name](objective, objective.theta, damping, False)(v)
    expected, lowest = objective.solved(v, damping), SPECTRA[spectrum].min() + damping
    size = np.abs(SPECTRA[spectrum] + damping).min()
    np.testing.assert_allclose(solution.x, expected, rtol=1e-7, atol=1e-8 / size)
    assert solution.residual.shape == (3,) and solution.residual.max() < 1e-10
    assert solution.status == ("ok" if lowest > 0 else "indefinite")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 5e-3)])
@pytest.mark.parametrize("name", INVERSES)
def test_decay_on_some_parameters_and_damping_on_all_enter_in_either_precision(name, dtype, tolerance):
    decay = np.where(np.arange(12) < 8, 0.3, 0.0)
    exact = Planted(planted("rank deficient").matrix.numpy(), decay)
    objective = Planted(exact.matrix.numpy(), decay, dtype)
    if dtype == torch.float32 and name in ("cg", "minres"):
        solver = {"cg": BlockCGSolver, "minres": MinresSolver}[name](objective, objective.theta, 0.05, True)
    else:
        solver = INVERSES[name](objective, objective.theta, 0.05, True)
    v = right_hand_sides(3, 12).to(dtype)
    solution = solver(v)
    assert solution.x.dtype == dtype and solution.status == "ok"
    np.testing.assert_allclose(solution.x, exact.solved(v, 0.05), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in KNOWS_SIGNS if name != "arnoldi"])
def test_no_eigenvalue_is_dropped_however_small(name):
    spectrum = np.logspace(-7, 1, 12)
    objective = Planted(np.diag(spectrum))
    solution = INVERSES[name](objective, objective.theta, 0.0, False)(torch.eye(12).double())
    np.testing.assert_allclose(solution.x, np.diag(1 / spectrum), rtol=1e-6, atol=1e-6)
    assert solution.status == "ok" and solution.residual.max() < 1e-10


@pytest.mark.parametrize("name", KNOWS_SIGNS)
@pytest.mark.parametrize(
    ("lowest", "status"), [(-0.25 + 1e-6, "ok"), (-0.25 - 1e-6, "indefinite"), (-3.0, "indefinite")]
)
def test_indefinite_means_an_eigenvalue_at_or_below_minus_the_damping(name, lowest, status):
    objective = Planted(np.diag([lowest, *range(1, 12)]))
    assert INVERSES[name](objective, objective.theta, 0.25, False)(right_hand_sides(2, 12)).status == status


# -- on a network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gauss_newton"), [(name, True) for name in INVERSES] + [(name, False) for name in KNOWS_SIGNS]
)
def test_all_inverses_are_that_of_the_dense_matrix_of_the_data_set_that_they_are_told(name, gauss_newton):
    objective, theta, _ = mlp_problem()
    v, damping = right_hand_sides(2, len(theta)), 0.7
    damped = dense(objective, theta, gauss_newton) + damping * torch.eye(len(theta)).double()
    found = INVERSES[name](behind_another(objective), theta, damping, gauss_newton, dataset=1)(v)
    assert found.status == "ok"
    torch.testing.assert_close(found.x, torch.linalg.solve(damped, v.T).T, rtol=1e-8, atol=1e-8)


def behind_another(objective):
    """The objective with its data as the second of two sets."""
    other, data = mlp_problem(seed=5)[0].data, objective.data
    both = Data(torch.cat([other.x, data.x]), torch.cat([other.y, data.y]))
    return Objective(objective.model, both, objective.weight_decay)


@every_solver
def test_every_solver_states_the_residual_of_the_full_curvature_of_its_data_set(name):
    objective, theta, module = mlp_problem()
    v, damping = right_hand_sides(2, len(theta)), 0.3
    damped = dense(objective, theta, True) + damping * torch.eye(len(theta)).double()
    solution = made(name, behind_another(objective), theta, damping, module, dataset=1)(v)
    expected = (solution.x @ damped - v).norm(dim=1) / v.norm(dim=1)
    torch.testing.assert_close(solution.residual, expected, rtol=1e-6, atol=1e-12)
    assert solution.status in STATUSES and solution.seconds > 0
    assert solution.residual.max() < 1e-10 if name in INVERSES else solution.residual.max() > 1e-3
    alone = made(name, objective, theta, damping, module)(v)
    torch.testing.assert_close(solution.x, alone.x, rtol=1e-7, atol=1e-9)


@every_solver
def test_self_scores_of_all_pairs_are_symmetric(name):
    objective, _, theta, module = linear_problem(per_class=4)
    same, pairs = objective.on(objective.data), torch.arange(objective.n)
    solver = made(name, objective, theta, 0.1, module)
    found = influence_along(objective, same, theta, leave_one_out(pairs, objective.n), pairs, solver)
    torch.testing.assert_close(found, found.T, rtol=1e-8, atol=1e-12)
    assert (found.diagonal() > 0).all()  # an example helps itself where the inverse is positive


@every_solver
@pytest.mark.parametrize("build", [lambda: mlp_problem(n=9), lambda: (*conv_problem(n=5), None)], ids=["mlp", "conv"])
def test_neither_the_order_of_examples_nor_other_right_hand_sides_change_an_answer(name, build):
    objective, theta, module = build()
    v = right_hand_sides(2, len(theta))
    found = made(name, objective, theta, 0.1, module)(v).x
    again = made(name, shuffled(objective)[0], theta, 0.1, module)
    torch.testing.assert_close(torch.cat([again(row[None]).x for row in v]), found, rtol=1e-7, atol=1e-9)


# -- outcomes, products, bad input -----------------------------------------------------------------------------------


def test_the_outcomes_are_the_ones_that_the_package_names():
    named = {word.split("`")[1] for word in solvers.__doc__.splitlines() if word.startswith("* `")}
    assert named == STATUSES


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("name", [*INVERSES, "arnoldi, low rank", "nystroem, low rank"])
def test_curvature_that_is_not_finite_is_named(name, poison):
    matrix = np.eye(12) if np.isnan(poison) else np.full((12, 12), poison)
    matrix[2, 3] = matrix[3, 2] = poison
    objective = Planted(matrix)
    solution = made(name, objective, objective.theta, 0.1)(right_hand_sides(2, 12))
    assert solution.status == "solver_diverged"
    assert torch.isnan(solution.x).all() and torch.isnan(solution.residual).all()


@every_solver
def test_a_right_hand_side_that_is_not_finite_is_named_and_one_of_zeros_has_the_answer_zero(name):
    objective, theta, module = mlp_problem()
    v, solver = right_hand_sides(3, len(theta)), made(name, objective, theta, 0.1, module)
    for poison in (float("nan"), float("inf")):
        v[1] = poison
        assert solver(v).status == "solver_diverged" and torch.isnan(solver(v).x).all()
    v[1] = 0
    solution = solver(v)
    assert (solution.x[1] == 0).all() and solution.residual[1] == 0
    assert solution.status == "ok" and (solution.x[[0, 2]].norm(dim=1) > 0).all()
    assert (solver(torch.zeros_like(v)).x == 0).all()


@pytest.mark.parametrize("name", [name for name in INVERSES if name != "exact"])
def test_products_are_counted_as_they_are_used(name):
    objective = planted("well conditioned")
    solver = INVERSES[name](objective, objective.theta, 0.1, False)
    v, before = right_hand_sides(3, 12), objective.products_used
    first = solver(v)
    if name in ("arnoldi", "nystroem"):  # where measuring is no part of the method
        assert first.products == before == 12 and objective.products_used == before + 3
    else:
        assert before == 0 and first.products == objective.products_used > 0
    assert solver(v).products == first.products


@pytest.mark.parametrize("name", [name for name in (*INVERSES, *APPROXIMATE) if name != "exact"])
def test_bad_input_is_named(name):
    objective, theta, module = mlp_problem()
    for damping in (-1e-9, float("nan"), float("inf")):
        with pytest.raises(InputError, match="^damping = "):
            made(name, objective, theta, damping, module)
    with pytest.raises(InputError, match="^(theta|rank) = "):
        made(name, objective, theta[None], 0.1, module)  # a stack of networks
    solver = made(name, objective, theta, 0.1, module)
    for shape in [(len(theta),), (2, len(theta) - 1), (0, len(theta)), (1, 2, len(theta))]:
        with pytest.raises(InputError, match=r"^v = .*give vectors \(K, "):
            solver(torch.ones(shape).double())
