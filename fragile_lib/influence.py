"""Influence estimates: the derivative of a test loss along a change of example weights.

For weights w + d the optimum moves, to first order, by -H^-1 sum_i d_i grad loss_i, and a test loss f by

    -grad f^T H^-1 sum_i d_i grad loss_i.

Leave-one-out is d = -e_i / n. The scale is that of real leave-one-out: loss after the removal minus loss before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers import Solver


@dataclass(frozen=True)
class Estimate:
    """Estimated loss changes (k, m) of k removals on m test points, and how far the solver can be trusted.

    residual is the largest relative residual of the solves; status the solver's outcome.
    """

    changes: Tensor
    residual: float
    status: str
    seconds: float


def leave_one_out(indices: Tensor, n: int) -> Tensor:
    """The weight changes (k, n) of leaving out each of k training examples: -1/n at its place, all others kept."""
    return -torch.nn.functional.one_hot(torch.as_tensor(indices, dtype=torch.long), n).double() / n


def influence(
    train: Objective, test: Objective, theta: Tensor, removals: Tensor, points: Tensor, solver: Solver, dataset: int = 0
) -> Estimate:
    """-grad f^T H^-1 sum_i d_i grad loss_i for each removal d (k, n) and test point: (k, m).

    One solve for each test point, then one forward-mode pass over the training data for each: no per-example training
    gradients are formed. Koh and Liang (2017), equation 2, times -1/n for a removal.
    """
    place = torch.tensor([dataset])
    one_hot = torch.nn.functional.one_hot(torch.as_tensor(points), test.n).to(theta)
    gradients = test.gradient(theta.expand(len(one_hot), -1), one_hot, place.expand(len(one_hot)))
    solution = solver(gradients)
    slopes = train.directional(theta[None], solution.x[None], place)[0]
    return Estimate(-removals @ slopes.T, solution.residual.max().item(), solution.status, solution.seconds)


def parameter_change(train: Objective, theta: Tensor, removals: Tensor, solver: Solver, dataset: int = 0) -> Tensor:
    """-H^-1 sum_i d_i grad loss_i: the first-order move (k, P) of the optimum under each removal d (k, n)."""
    gradients = train.example_gradients(theta[None], torch.tensor([dataset]))[0]
    return -solver(removals @ gradients).x
