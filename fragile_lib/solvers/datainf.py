"""DataInf: the mean of the inverses of each example's own curvature, in the place of the inverse of their mean."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.base import AppliedInverse, DampedCurvature
from fragile_lib.tools.checks import check_number

HELD = 256e6  # bytes of per-example gradients at once


class DataInfSolver(AppliedInverse):
    """x = (1/n) sum_j (g_j g_j^T + damping I)^-1 v, g_j the gradient of loss j without L2, in closed form:

        x = (v - (1/n) sum_j g_j (g_j . v) / (damping + ||g_j||^2)) / damping

    (Sherman and Morrison; Kwon, Wu, Wu and Zou 2024, arXiv 2310.00902, equation 5). All parameters are one block. Each
    matrix is damping I but for one direction, so that x is nearly v / damping.

    Args:
        objective, theta, gauss_newton, dataset: as in `ExactSolver`; the curvature is for the residual alone.
        damping: above 0.

    Raises:
        InputError: a damping that is not above 0.
    """  # noqa: D205

    def __init__(
        self, objective: Objective, theta: Tensor, damping: float, gauss_newton: bool = False, dataset: int = 0
    ) -> None:
        check_number("damping", damping, above=0)
        self.operator = DampedCurvature(objective, theta, damping, gauss_newton, dataset)

    def apply(self, v: Tensor) -> Tensor:
        """The mean of inverses on each row of v (K, P); one pass of per-example gradients, `HELD` at once."""
        of, damping = self.operator, self.operator.damping
        n, taken = of.objective.n, torch.zeros_like(v)
        at_once = max(1, int(HELD / (v.element_size() * of.size)))
        for rows in np.split(np.arange(n), range(at_once, n, at_once)):
            gradients = of.objective.part(rows).example_gradients(of.theta[None], of.place)[0]
            shares = (v @ gradients.T) / (damping + gradients.square().sum(1))
            taken += shares @ gradients
        return (v - taken / n) / damping
