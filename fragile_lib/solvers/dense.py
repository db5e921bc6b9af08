"""The direct solvers: eigendecomposition of the dense curvature matrix, with or without iterative refinement."""

from __future__ import annotations

from copy import copy
from time import perf_counter

import torch
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.base import Solution, nowhere, outcome, relative
from fragile_lib.tools.checks import check_number

LOWEST = 4  # eigenvectors in which the smallest eigenvalue is computed again
REFINEMENTS = 10  # at most; with damping well above the matrix's error the first is enough
SOLVED = 1e-6  # relative residual at which refinement ends


class ExactSolver:
    """Direct inverse by the eigendecomposition of the dense curvature matrix; safe on an indefinite one.

    No eigenvalue is dropped: one at or below -damping gives the outcome `indefinite`, and the inverse is still exact.

    Args:
        objective: J on the training data.
        theta: one network (P,).
        damping: added to every eigenvalue; at least 0.
        gauss_newton: take the Gauss-Newton (GGN) part in the place of the Hessian.
        dataset: which of the objective's data sets the network sees.

    Raises:
        InputError: a bad damping.
    """

    unsolved = 1.0  # relative residual from which the answer is none

    def __init__(
        self, objective: Objective, theta: Tensor, damping: float, gauss_newton: bool = False, dataset: int = 0
    ) -> None:
        check_number("damping", damping)
        began = perf_counter()
        self.objective, self.theta, self.damping, self.gauss_newton = objective, theta, damping, gauss_newton
        self.place = torch.tensor([dataset])
        self.matrix = self._matrix()
        self.finite = bool(torch.isfinite(self.matrix).all())
        if self.finite:
            self.spectrum, self.vectors = torch.linalg.eigh(self.matrix)
        self.seconds = perf_counter() - began

    def _matrix(self) -> Tensor:
        """C (P, P)."""
        weights = self.objective.uniform(1)
        return self.objective.matrices(self.theta[None], weights, self.place, self.gauss_newton)[0]

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        began = perf_counter()
        if not self.finite:
            return Solution(*nowhere(v), self.seconds, "solver_diverged")
        x, residual, products = self._solved(v)
        status = "indefinite" if self.spectrum[0] + self.damping <= 0 else "ok"
        return outcome(x, residual, self.seconds + perf_counter() - began, status, products, self.unsolved)

    def _solved(self, v: Tensor) -> tuple[Tensor, Tensor, float]:
        """(x (K, P), relative residuals (K,), products spent)."""
        x = self.shifted(v, self.damping)
        return x, relative(x @ self.matrix + self.damping * x - v, v), 0.0

    def with_damping(self, damping: float) -> ExactSolver:
        """The same matrix with another damping.

        Raises:
            InputError: a bad damping.
        """
        check_number("damping", damping)
        other = copy(self)
        other.damping = damping
        return other

    def shifted(self, v: Tensor, shift: float) -> Tensor:
        """(C + shift)^-1 for rows v (K, P), of the matrix as it is: what chord steps take.

        A direction without any curvature has no place in the answer, as with conjugate gradients.
        """
        curved = self.spectrum + shift
        return ((v @ self.vectors) / curved.where(curved != 0, torch.inf)) @ self.vectors.T

    def absolute_inverse(self, shift: float) -> Tensor:
        """(|C| + shift)^-1 (P, P): |C| has C's eigenvectors and the magnitudes of its eigenvalues."""
        return (self.vectors / (self.spectrum.abs() + shift)) @ self.vectors.T


class DenseSolver(ExactSolver):
    """The same for networks whose Hessian costs minutes: a dense matrix in float32, refined in float64.

    With C~ the dense matrix, from `single` where that is given, and C's products in the objective's own precision:

        x_0 = (C~ + damping)^-1 v,    x_k+1 = x_k + (C~ + damping)^-1 (v - (C + damping) x_k).

    A Hessian in float32 costs half of one in float64 and is off by about 2e-7 of the largest eigenvalue; refinement
    takes that away, in one step where the damping is larger than that, and the residual is measured by products. One
    of `unsolved` or more gives the outcome `not_converged`.

    Args:
        objective, theta, damping, gauss_newton: as in `ExactSolver`.
        single: the same J in float32, to compute the matrix with.

    Raises:
        InputError: a bad damping.
    """

    unsolved = 1e-4

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        damping: float,
        gauss_newton: bool = False,
        single: Objective | None = None,
    ) -> None:
        self.single = single
        super().__init__(objective, theta, damping, gauss_newton)
        del self.matrix, self.single  # what is kept for each network: eigenvalues and eigenvectors

    def _matrix(self) -> Tensor:
        maker = self.single or self.objective
        theta, weights = self.theta[None].to(maker.data.x), maker.uniform(1)
        return maker.matrices(theta, weights, self.place, self.gauss_newton)[0].double()

    def _solved(self, v: Tensor) -> tuple[Tensor, Tensor, float]:
        """As above, refined: until solved, or no longer getting better."""
        x = self.shifted(v, self.damping)
        missing = v - self._product(x)
        residual = relative(missing, v)
        count = 0
        while count < REFINEMENTS:
            count += 1
            better = x + self.shifted(missing, self.damping)
            missing = v - self._product(better)
            new = relative(missing, v)
            if not new.max() < residual.max():
                break
            x, residual = better, new
            if residual.max() <= SOLVED:
                break
        return x, residual, (1.0 + count) * len(v)

    def lowest(self) -> float:
        """The smallest eigenvalue, by Rayleigh and Ritz with C itself in the space of the lowest eigenvectors of C~."""
        basis = self.vectors[:, :LOWEST].T
        small = self._product(basis) @ basis.T - self.damping * torch.eye(len(basis)).to(basis)
        return float(torch.linalg.eigvalsh((small + small.T) / 2)[0])

    def _product(self, v: Tensor) -> Tensor:
        weights, theta = self.objective.uniform(1), self.theta[None]
        found = self.objective.products(theta, v[None].contiguous(), weights, self.place, self.gauss_newton)[0]
        return found + self.damping * v
