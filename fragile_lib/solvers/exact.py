"""The direct solver: eigendecomposition of the dense curvature matrix."""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.base import Solution, check_damping, relative


class ExactSolver:
    """Direct inverse by the eigendecomposition of the dense curvature matrix; safe on an indefinite one.

    No eigenvalue is dropped: one at or below -damping gives the outcome `indefinite`, and the inverse is still exact.

    Args:
        objective: J on the training data.
        theta: one network (P,).
        damping: added to every eigenvalue; at least 0.
        gauss_newton: take the Gauss-Newton (GGN) part in the place of the Hessian.
        dataset: which of the objective's data sets the network sees.
    """

    def __init__(
        self, objective: Objective, theta: Tensor, damping: float, gauss_newton: bool = False, dataset: int = 0
    ) -> None:
        check_damping(damping)
        began = perf_counter()
        place = torch.tensor([dataset])
        matrix = objective.matrices(theta[None], objective.uniform(1), place, gauss_newton)[0]
        self.damping, self.matrix = damping, matrix
        self.finite = bool(torch.isfinite(matrix).all())
        if self.finite:
            self.spectrum, self.vectors = torch.linalg.eigh(matrix)
        self.seconds = perf_counter() - began

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        began = perf_counter()
        if not self.finite:
            nowhere = torch.full_like(v, torch.nan)
            return Solution(nowhere, nowhere[:, 0], self.seconds, "solver_diverged")
        shifted = self.spectrum + self.damping
        x = ((v @ self.vectors) / shifted) @ self.vectors.T
        residual = relative(x @ self.matrix + self.damping * x - v, v)
        status = "indefinite" if shifted[0] <= 0 else "ok"
        return Solution(x, residual, self.seconds + perf_counter() - began, status)
