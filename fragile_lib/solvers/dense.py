"""The direct solver for networks whose Hessian costs minutes: a dense matrix in float32, refined in float64."""

from __future__ import annotations

from copy import copy
from time import perf_counter

import torch
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.base import Solution, check_damping, relative

LOWEST = 4  # eigenvectors in which the smallest eigenvalue is computed again
REFINEMENTS = 10  # at most; with damping well above the matrix's error the first is enough
SOLVED, UNSOLVED = 1e-6, 1e-4  # relative residuals: at which refinement ends, above which it has failed


class DenseSolver:
    """Direct inverse by eigendecomposition, as `ExactSolver`, its error removed by iterative refinement.

    With C~ the dense matrix, from `single` where that is given, and C's products in the objective's own precision:

        x_0 = (C~ + damping)^-1 v,    x_k+1 = x_k + (C~ + damping)^-1 (v - (C + damping) x_k).

    A Hessian in float32 costs half of one in float64 and is off by about 2e-7 of the largest eigenvalue; refinement
    takes that away, in one step where the damping is larger than that, and the residual is measured by products. No
    eigenvalue is dropped: one at or below -damping gives the outcome `indefinite`.

    Args:
        objective: J on the training data.
        theta: one network (P,).
        damping: added to every eigenvalue; at least 0.
        gauss_newton: take the Gauss-Newton (GGN) part in the place of the Hessian.
        single: the same J in float32, to compute the matrix with; None: in the objective's own precision, where no
            refinement is needed and the residual is measured with the matrix itself.
        dataset: which of the objective's data sets the network sees.

    Raises:
        InputError: a bad damping.
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        damping: float,
        gauss_newton: bool = False,
        single: Objective | None = None,
        dataset: int = 0,
    ) -> None:
        check_damping(damping)
        began = perf_counter()
        self.objective, self.theta, self.damping, self.gauss_newton = objective, theta, damping, gauss_newton
        maker, self._place = single or objective, torch.tensor([dataset])
        kind = theta[None].to(maker.data.x)
        matrix = maker.matrices(kind, maker.uniform(1), self._place, gauss_newton)[0].to(theta)
        self._matrix = matrix if single is None else None
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
        x, residual, refinements = self._refined(v)
        status = "ok" if residual.max() <= UNSOLVED else "not_converged"
        if self.spectrum[0] + self.damping <= 0:
            status = "indefinite"
        products = 0.0 if self._matrix is not None else (1.0 + refinements) * len(v)
        return Solution(x, residual, self.seconds + perf_counter() - began, status, products=products)

    def _refined(self, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """(x (K, P), relative residuals (K,), refinements made): until solved, or no longer getting better."""
        x = self.shifted(v, self.damping)
        missing = v - self._product(x)
        residual = relative(missing, v)
        if self._matrix is not None:
            return x, residual, 0
        for count in range(1, REFINEMENTS + 1):
            better = x + self.shifted(missing, self.damping)
            missing = v - self._product(better)
            new = relative(missing, v)
            if not new.max() < residual.max():
                return x, residual, count
            x, residual = better, new
            if residual.max() <= SOLVED:
                break
        return x, residual, count

    def with_damping(self, damping: float) -> DenseSolver:
        """The same matrix with another damping.

        Raises:
            InputError: a bad damping.
        """
        check_damping(damping)
        other = copy(self)
        other.damping = damping
        return other

    @property
    def matrix(self) -> Tensor:
        """C~ (P, P), without damping; a new copy."""
        return (self.vectors * self.spectrum) @ self.vectors.T

    def shifted(self, v: Tensor, shift: float) -> Tensor:
        """(C~ + shift)^-1 for rows v (K, P): what chord steps take."""
        return ((v @ self.vectors) / (self.spectrum + shift)) @ self.vectors.T

    def absolute_inverse(self, shift: float) -> Tensor:
        """(|C~| + shift)^-1 (P, P): |C~| has C~'s eigenvectors and the magnitudes of its eigenvalues."""
        return (self.vectors / (self.spectrum.abs() + shift)) @ self.vectors.T

    def lowest(self) -> float:
        """The smallest eigenvalue, by Rayleigh and Ritz with C itself in the space of the lowest eigenvectors of C~."""
        basis = self.vectors[:, :LOWEST].T
        small = self._product(basis) @ basis.T - self.damping * torch.eye(len(basis)).to(basis)
        return float(torch.linalg.eigvalsh((small + small.T) / 2)[0])

    def _product(self, v: Tensor) -> Tensor:
        if self._matrix is not None:
            return v @ self._matrix + self.damping * v
        weights, theta = self.objective.uniform(1), self.theta[None]
        found = self.objective.products(theta, v[None].contiguous(), weights, self._place, self.gauss_newton)[0]
        return found + self.damping * v
