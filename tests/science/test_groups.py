"""Group removals: which, and their influence to second order against really refitted models."""

import numpy as np
import pytest
import torch

from fragile_lib.data.sets import iris_splits
from fragile_lib.groups import choose_groups, group_removals, second_order_influence
from fragile_lib.influence import influence, leave_one_out
from fragile_lib.minimise.newton import newton
from fragile_lib.minimise.retraining import loss_changes
from fragile_lib.models.mlp import MLP
from fragile_lib.objectives.base import make_objective
from fragile_lib.solvers import ExactSolver
from fragile_lib.tools.errors import InputError

LABELS = torch.arange(60) % 3
SCORES = torch.linspace(-1, 2, 60)


@pytest.mark.parametrize("choice", ["random", "same_class", "top_influence"])
def test_groups_are_of_one_size_without_repeats_and_seeded(choice: str) -> None:
    groups = choose_groups(choice, 7, 5, LABELS, SCORES, np.random.default_rng(3))
    assert groups.shape == (7, 5) and all(len(set(g)) == 5 for g in groups.tolist())
    assert torch.equal(groups, choose_groups(choice, 7, 5, LABELS, SCORES, np.random.default_rng(3)))
    if choice == "same_class":
        assert all(len(set(LABELS[g].tolist())) == 1 for g in groups)
        assert {int(LABELS[g[0]]) for g in groups} == {0, 1, 2}
    if choice == "top_influence":
        assert set(groups.flatten().tolist()) <= set(SCORES.abs().argsort(descending=True)[:10].tolist())


@pytest.mark.parametrize(("choice", "size"), [("best", 3), ("random", 61), ("same_class", 21), ("random", 0)])
def test_bad_choice_or_size(choice: str, size: int) -> None:
    with pytest.raises(InputError, match="group_"):
        choose_groups(choice, 2, size, LABELS, SCORES, np.random.default_rng(0))


def test_removal_of_a_group_is_the_sum_of_its_members() -> None:
    groups = torch.tensor([[0, 3, 5], [1, 2, 4]])
    expected = torch.stack([leave_one_out(g, 8).sum(0) for g in groups])
    torch.testing.assert_close(group_removals(groups, 8), expected)


def test_second_order_is_closer_to_the_refit_and_of_second_order() -> None:
    data, test_data = iris_splits([0])
    train = make_objective(MLP(1, 3, "tanh"), data, 0.05)
    test = train.on(test_data)
    theta, norm, _ = newton(train, train.model.init(0)[None], train.uniform(1), max_steps=300)
    assert norm[0] <= 1e-8
    solver, points = ExactSolver(train, theta[0], 0.0), torch.arange(30)
    groups = group_removals(torch.tensor([[4, 17, 33, 60, 71, 88], [1, 2, 3, 90, 91, 92]]), 120)
    errors = []
    for share in (1.0, 0.5):
        weights = train.uniform(2) + share * groups
        refit, norms, _ = newton(train, theta.expand(2, -1), weights)
        assert norms.max() <= 1e-8
        true = loss_changes(test, refit, theta[0], points, 0)
        first = influence(train, test, theta[0], share * groups, points, solver).changes
        second = second_order_influence(train, test, theta[0], share * groups, points, solver)
        errors.append([v.norm().item() for v in (first - true, second - true, second - first)])
    assert errors[0][1] < 0.7 * errors[0][0]
    assert errors[1][2] == pytest.approx(errors[0][2] / 4, rel=1e-9)
