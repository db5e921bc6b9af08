"""What holds for every solver: planted spectra, agreement, symmetry, invariance, named outcomes, bad input."""

import numpy as np
import pytest
import torch
from helpers import influence_along, leave_one_out
from planted import (
    SPECTRA,
    Planted,
    conv_problem,
    dense,
    linear_problem,
    mlp_problem,
    planted,
    right_hand_sides,
    shuffled,
)

from fragile_lib import solvers
from fragile_lib.data.sets import Data
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
    "exact": lambda o, t, d, g: ExactSolver(o, t, d, g),
    "cg": lambda o, t, d, g: BlockCGSolver(o, t, d, g, tolerance=1e-11),
    "minres": lambda o, t, d, g: MinresSolver(o, t, d, g, tolerance=1e-11),
    "arnoldi": lambda o, t, d, g: ArnoldiSolver(o, t, d, len(t), g),
    "nystroem": lambda o, t, d, g: NystroemSolver(o, t, d, len(t)),
}
KNOWS_SIGNS = [name for name in INVERSES if name != "nystroem"]


def every_solver(objective, theta, damping, module=None, gauss_newton=True):
    """All but the stochastic recursion, the approximate ones at low rank."""
    return {
        **{name: make(objective, theta, damping, gauss_newton) for name, make in INVERSES.items()},
        "arnoldi, low rank": ArnoldiSolver(objective, theta, damping, 3, gauss_newton),
        "nystroem, low rank": NystroemSolver(objective, theta, damping, 3),
        "identity": IdentitySolver(objective, theta, damping, gauss_newton),
        "kfac": KfacSolver(objective, theta, damping, module),
        "ekfac": EkfacSolver(objective, theta, damping, module),
    }


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


@pytest.mark.parametrize("name", INVERSES)
def test_decay_on_some_parameters_and_damping_on_all_enter_exactly(name):
    decay = np.where(np.arange(12) < 8, 0.3, 0.0)
    objective = Planted(planted("rank deficient").matrix.numpy(), decay)
    v = right_hand_sides(3, 12)
    solution = INVERSES[name](objective, objective.theta, 0.05, True)(v)
    np.testing.assert_allclose(solution.x, objective.solved(v, 0.05), rtol=1e-8, atol=1e-9)


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


# -- agreement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gauss_newton"), [(name, True) for name in INVERSES] + [(name, False) for name in KNOWS_SIGNS]
)
def test_all_inverses_agree_with_the_exact_one_on_a_network(name, gauss_newton):
    objective, theta, _ = mlp_problem()
    v, damping = right_hand_sides(4, len(theta)), 0.7
    exact = ExactSolver(objective, theta, damping, gauss_newton)(v)
    found = INVERSES[name](objective, theta, damping, gauss_newton)(v)
    assert exact.status == found.status == "ok"
    torch.testing.assert_close(found.x, exact.x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("kind", [BlockCGSolver, MinresSolver])
def test_iterative_and_exact_answers_differ_by_no_more_than_the_residual_allows(kind, tolerance):
    objective, theta, _ = mlp_problem()
    v, damping = right_hand_sides(5, len(theta)), 0.05
    exact = ExactSolver(objective, theta, damping, True)
    found = kind(objective, theta, damping, True, tolerance=tolerance)(v)
    assert found.status == "ok" and (found.residual <= tolerance).all()
    lowest = exact.spectrum[0] + damping  # ||x - x*|| <= ||A^-1|| ||A x - v||
    assert ((found.x - exact(v).x).norm(dim=1) <= 1.001 * found.residual * v.norm(dim=1) / lowest).all()


def test_every_solver_states_the_residual_of_the_full_curvature():
    objective, theta, module = mlp_problem()
    v, damping = right_hand_sides(4, len(theta)), 0.3
    damped = dense(objective, theta, True) + damping * torch.eye(len(theta)).double()
    residuals = {}
    for name, solver in every_solver(objective, theta, damping, module).items():
        solution = solver(v)
        expected = (solution.x @ damped - v).norm(dim=1) / v.norm(dim=1)
        torch.testing.assert_close(solution.residual, expected, rtol=1e-6, atol=1e-12, msg=name)
        assert solution.status in STATUSES and solution.seconds > 0
        residuals[name] = solution.residual.max().item()
    assert all(residuals[name] < 1e-10 for name in INVERSES)
    assert all(residuals[name] > 1e-3 for name in residuals if name not in INVERSES)


# -- influences ------------------------------------------------------------------------------------------------------


def test_self_scores_of_all_pairs_are_symmetric_for_every_solver():
    objective, _, theta, module = linear_problem(per_class=4)
    same = objective.on(objective.data)
    pairs = torch.arange(objective.n)
    for name, solver in every_solver(objective, theta, 0.1, module).items():
        found = influence_along(objective, same, theta, leave_one_out(pairs, objective.n), pairs, solver)
        torch.testing.assert_close(found, found.T, rtol=1e-8, atol=1e-12, msg=name)
        assert (found.diagonal() > 0).all(), name  # an example helps itself where the inverse is positive


def test_the_order_of_examples_changes_no_solver():
    for objective, theta, module in (mlp_problem(n=9), (*conv_problem(n=5), None)):
        other, _ = shuffled(objective)
        v = right_hand_sides(2, len(theta))
        again = every_solver(other, theta, 0.1, module)
        for name, solver in every_solver(objective, theta, 0.1, module).items():
            torch.testing.assert_close(again[name](v).x, solver(v).x, rtol=1e-7, atol=1e-9, msg=name)


def test_every_right_hand_side_is_solved_as_if_alone():
    objective, theta, module = mlp_problem(n=9)
    v = right_hand_sides(3, len(theta))
    for name, solver in every_solver(objective, theta, 0.1, module).items():
        together, alone = solver(v).x, torch.cat([solver(row[None]).x for row in v])
        torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-9, msg=name)


def test_every_solver_sees_the_data_set_it_is_told():
    objective, theta, module = mlp_problem()
    other = mlp_problem(seed=5)[0]
    both = type(objective)(
        objective.model,
        Data(torch.cat([other.data.x, objective.data.x]), torch.cat([other.data.y, objective.data.y])),
        objective.weight_decay,
    )
    v = right_hand_sides(2, len(theta))
    for kind, options in [
        (BlockCGSolver, {"tolerance": 1e-10}),
        (MinresSolver, {"tolerance": 1e-10}),
        (ArnoldiSolver, {"rank": 5}),
        (NystroemSolver, {"rank": 5}),
        (IdentitySolver, {}),
        (KfacSolver, {"module": module}),
        (EkfacSolver, {"module": module}),
    ]:
        alone, found = kind(objective, theta, 0.4, **options)(v), kind(both, theta, 0.4, dataset=1, **options)(v)
        torch.testing.assert_close(found.x, alone.x, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.residual, alone.residual, rtol=1e-6, atol=1e-12)


# -- outcomes, products, bad input -----------------------------------------------------------------------------------


def test_the_outcomes_are_the_ones_that_the_package_names():
    named = {word.split("`")[1] for word in solvers.__doc__.splitlines() if word.startswith("* `")}
    assert named == STATUSES


@pytest.mark.parametrize("name", INVERSES)
def test_curvature_that_is_not_finite_is_named(name):
    matrix = np.eye(12)
    matrix[2, 3] = matrix[3, 2] = np.nan
    objective = Planted(matrix)
    solution = INVERSES[name](objective, objective.theta, 0.1, False)(right_hand_sides(2, 12))
    assert solution.status == "solver_diverged"
    assert torch.isnan(solution.x).all() and torch.isnan(solution.residual).all()


@pytest.mark.parametrize("rank", [2, 12])
def test_low_rank_curvature_that_is_not_finite_is_named(rank):
    objective = Planted(np.full((12, 12), np.inf))
    for kind in (ArnoldiSolver, NystroemSolver):
        solution = kind(objective, objective.theta, 0.1, rank)(right_hand_sides(2, 12))
        assert solution.status == "solver_diverged" and torch.isnan(solution.x).all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_right_hand_side_that_is_not_finite_is_named(poison):
    objective, theta, module = mlp_problem()
    v = right_hand_sides(2, len(theta))
    v[1, 3] = poison
    for name, solver in every_solver(objective, theta, 0.1, module).items():
        solution = solver(v)
        assert solution.status == "solver_diverged" and torch.isnan(solution.x).all(), name


def test_a_right_hand_side_of_zeros_has_the_answer_zero():
    objective, theta, module = mlp_problem()
    v = right_hand_sides(3, len(theta))
    v[1] = 0
    for name, solver in every_solver(objective, theta, 0.1, module).items():
        solution = solver(v)
        assert (solution.x[1] == 0).all() and solution.residual[1] == 0, name
        assert solution.status == "ok" and (solution.x[[0, 2]].norm(dim=1) > 0).all(), name
        assert (solver(torch.zeros_like(v)).x == 0).all(), name


@pytest.mark.parametrize("name", [name for name in INVERSES if name != "exact"])
def test_products_are_counted_as_they_are_used(name):
    objective = planted("well conditioned")
    solver = INVERSES[name](objective, objective.theta, 0.1, False)
    v = right_hand_sides(3, 12)
    objective_before = objective.products_used
    first = solver(v)
    measured = 3 if name.startswith(("arnoldi", "nystroem")) else 0  # where measuring is no part of the method
    if measured:
        assert first.products == objective_before == 12
        assert objective.products_used == objective_before + measured
    else:
        assert objective_before == 0 and first.products == objective.products_used > 0
    assert solver(v).products == first.products


def makers():
    objective, theta, module = mlp_problem()
    return theta, [
        lambda theta, damping: BlockCGSolver(objective, theta, damping),
        lambda theta, damping: MinresSolver(objective, theta, damping),
        lambda theta, damping: ArnoldiSolver(objective, theta, damping, 3),
        lambda theta, damping: NystroemSolver(objective, theta, damping, 3),
        lambda theta, damping: KfacSolver(objective, theta, damping, module),
        lambda theta, damping: EkfacSolver(objective, theta, damping, module),
        lambda theta, damping: IdentitySolver(objective, theta, damping),
    ]


def test_bad_input_is_named_by_every_solver():
    theta, kinds = makers()
    for make in kinds:
        for damping in (-1e-9, float("nan"), float("inf")):
            with pytest.raises(InputError, match="^damping = "):
                make(theta, damping)
        with pytest.raises(InputError, match="^(theta|rank) = "):
            make(theta[None], 0.1)  # a stack of networks
        solver = make(theta, 0.1)
        for shape in [(len(theta),), (2, len(theta) - 1), (0, len(theta)), (1, 2, len(theta))]:
            with pytest.raises(InputError, match=r"^v = .*give vectors \(K, "):
                solver(torch.ones(shape).double())
