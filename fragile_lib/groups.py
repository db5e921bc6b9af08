"""Removing groups of training examples: which groups, and their influence to first and second order.

To first order a group's influence is the sum of its members' (`influence.influence` with a removal d that has several
entries). To second order the group's own curvature counts: with H_U = sum_U hess loss_i / n,

    delta = H^-1 g_U + H^-1 H_U H^-1 g_U,        g_U = sum_U grad loss_i / n

(Basu, You and Feizi 2020, "On second-order group influence functions", equation 8, without the renormalisation of the
weights that are left: here they stay 1/n; the third derivative of the loss is neglected as there).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fragile_lib.data.sets import Data
from fragile_lib.objectives.base import Objective
from fragile_lib.solvers import Solver
from fragile_lib.tools.errors import bad_input

GROUP_CHOICES = ("random", "same_class", "top_influence")


def choose_groups(
    choice: str, count: int, size: int, labels: Tensor, scores: Tensor, rng: np.random.Generator
) -> Tensor:
    """(count, size) indices of training examples: groups to be removed.

    `random`: drawn from all; `same_class`: from one class, the classes in turn; `top_influence`: from the 2 size
    examples of largest |score|, where a group's effect is largest.

    Args:
        choice: one of GROUP_CHOICES.
        count: number of groups.
        size: examples in each.
        labels: classes (n,).
        scores: influence (n,) on the examined test point.
        rng: source of the draws.

    Raises:
        InputError: an unknown choice, or a group larger than what it is drawn from.
    """
    if choice not in GROUP_CHOICES:
        raise bad_input("group_choice", choice, f"choose one of {', '.join(GROUP_CHOICES)}")
    pools = _pools(choice, size, labels.cpu().numpy(), scores.abs().cpu().numpy())
    if size < 1 or min(map(len, pools)) < size:
        raise bad_input("group_size", size, f"give 1 to {min(map(len, pools))}, the examples to draw from ({choice})")
    drawn = [rng.choice(pools[g % len(pools)], size, replace=False) for g in range(count)]
    return torch.from_numpy(np.sort(np.stack(drawn), axis=1))


def _pools(choice: str, size: int, labels: np.ndarray, scores: np.ndarray) -> list[np.ndarray]:
    if choice == "same_class":
        return [np.flatnonzero(labels == c) for c in np.unique(labels)]
    if choice == "top_influence":
        return [np.argsort(-scores, kind="stable")[: 2 * size]]
    return [np.arange(len(labels))]


def group_removals(groups: Tensor, n: int) -> Tensor:
    """The weight changes (k, n) of leaving out each group (k, size): -1/n at its members."""
    changes = torch.zeros(len(groups), n, dtype=torch.float64)
    return changes.scatter_(1, groups, -1.0 / n)


def second_order_influence(
    train: Objective, test: Objective, theta: Tensor, removals: Tensor, points: Tensor, solver: Solver, dataset: int = 0
) -> Tensor:
    """Loss changes (k, m) of group removals d (k, n) on test points (m,), to second order in the weights.

    grad f^T (delta_1 - H^-1 H_d delta_1) with delta_1 = -H^-1 sum_i d_i grad loss_i and H_d = sum_i d_i hess loss_i.
    """
    place = torch.tensor([dataset])
    one_hot = torch.nn.functional.one_hot(torch.as_tensor(points), test.n).to(theta)
    gradients = test.gradient(theta.expand(len(one_hot), -1), one_hot, place.expand(len(one_hot)))
    examples = train.example_gradients(theta[None], place)[0]
    first = -solver(removals.to(theta) @ examples).x
    curved = torch.stack([_group_product(train, theta, d, v, place) for d, v in zip(removals, first, strict=True)])
    return (first - solver(curved).x) @ gradients.T


def _group_product(train: Objective, theta: Tensor, removal: Tensor, v: Tensor, place: Tensor) -> Tensor:
    """H_d v over the group's own examples; the L2 term, which a removal leaves as it is, taken out."""
    members = removal.nonzero()[:, 0]
    data = Data(train.data.x[place][:, members], train.data.y[place][:, members])
    part = type(train)(train.model, data, train.weight_decay, str(train.device))
    weights = removal[members].to(theta)[None]
    return part.products(theta[None], v[None, None], weights)[0, 0] - train.decay * v
