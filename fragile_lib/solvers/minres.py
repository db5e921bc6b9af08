"""Minimum residuals, for curvature that may be indefinite."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal
from scipy.sparse.linalg import LinearOperator, minres
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.base import Solution, outcome
from fragile_lib.solvers.operator import DampedCurvature, NotFiniteError, check_tolerance
from fragile_lib.tools.checks import check_count

EVERY = 0.1  # share of the iterations between two looks at the residual: the products that this costs on top


class MinresSolver:
    """MINRES (Paige and Saunders 1975) by `scipy.sparse.linalg.minres`, one right-hand side after the other.

    Among all of the Krylov space it takes the x of least ||(C + damping I) x - v||: no step can break down or raise the
    residual, whatever the signs of the eigenvalues. scipy's own test compares the residual with ||A|| ||x||, its
    estimate of ||A|| grows with the iterations, and it reports success where it gives up on a condition number; so the
    residual is measured here, after each tenth of the iterations, and ends the run once it has reached the tolerance.
    Where scipy gives up above it, another run works on what is left (refinement).

    The Lanczos process inside also gives Ritz values, at no further product. Each lies above A's smallest eigenvalue,
    so one at or below zero proves the outcome `indefinite` (x is still A's inverse as far as the residual says). `ok`
    says that none was met in the Krylov spaces of these v, not that there is none. `not_converged` is a residual above
    the tolerance.

    Args:
        objective, theta, damping, gauss_newton, dataset: as in `ExactSolver`.
        tolerance: relative residual that each vector has to reach.
        max_iterations: Lanczos steps for one vector over all runs, a product each, besides the looks at the residual.

    Raises:
        InputError: a bad damping, tolerance or count, or right-hand sides that are not (K, P).
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        damping: float,
        gauss_newton: bool = False,
        tolerance: float = 1e-4,
        max_iterations: int = 2000,
        dataset: int = 0,
    ) -> None:
        check_tolerance(tolerance)
        check_count("max_iterations", max_iterations)
        self.operator = DampedCurvature(objective, theta, damping, gauss_newton, dataset)
        self.tolerance, self.max_iterations = tolerance, max_iterations

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        began = perf_counter()
        self.operator.check(v)
        self.operator.products = 0
        runs = [_Run(self.operator, row, self.tolerance, self.max_iterations) for row in v]
        x, residual = torch.stack([run.x for run in runs]), torch.stack([run.residual for run in runs])
        status = "ok" if residual.max() <= self.tolerance else "not_converged"
        status = "indefinite" if min(run.lowest for run in runs) <= 0 else status
        return outcome(x, residual, perf_counter() - began, status, self.operator.products)


class _Reached(Exception):
    """Ends scipy's loop."""


class _Run:
    """One right-hand side v (P,): x (P,), its measured residual (0-dim) and the lowest Ritz value met."""

    def __init__(self, operator: DampedCurvature, v: Tensor, tolerance: float, max_iterations: int) -> None:
        self.operator, self.v, self.tolerance = operator, v, tolerance
        self.curved = operator.for_scipy(operator)
        self.norm, self.lowest, self.iterations = v.norm(), np.inf, 0
        self.x, self.rest, self.residual = torch.zeros_like(v), v, torch.ones_like(v[0])
        if self.norm == 0:
            self.residual = torch.zeros_like(self.norm)
        best = np.inf
        # another round has to halve the residual, or it is rounding that it works on
        while self.tolerance < self.residual < best / 2 and self.iterations < max_iterations:
            best = self.residual.item()
            self._round(max_iterations - self.iterations)

    def _round(self, iterations: int) -> None:
        """Solve for what is left of v, from zero."""
        self.base, self.scale, self.next_look = self.x, self.rest.norm(), 1
        self.diagonal: list[float] = []
        self.beside: list[float] = []
        self.image: np.ndarray | None = None
        product = LinearOperator(self.curved.shape, matvec=self._product, dtype=np.float64)
        target = (self.rest / self.scale).double().cpu().numpy()
        try:
            # scipy's tolerance is out of the way; a breakdown or its limit on the condition number still ends it
            found, _ = minres(product, target, rtol=1e-300, maxiter=iterations, callback=self._look)
            self._measure(found)
        except _Reached:
            pass
        except NotFiniteError:
            self.residual = torch.full_like(self.norm, torch.nan)
        self.iterations += len(self.diagonal)
        self.lowest = min(self.lowest, self._lowest_ritz_value())

    def _product(self, u: np.ndarray) -> np.ndarray:
        """A u; u is a Lanczos vector, so that (u, A u) and (u, A u_before) are the entries of the tridiagonal."""
        u = u.ravel()
        image = self.curved.matvec(u)
        if self.image is not None:
            self.beside.append(float(u @ self.image))
        self.diagonal.append(float(u @ image))
        self.image = image
        return image

    def _look(self, x: np.ndarray) -> None:
        if len(self.diagonal) >= self.next_look:
            self._measure(x)
            if self.residual <= self.tolerance:
                raise _Reached
            self.next_look = len(self.diagonal) + max(3, round(EVERY * len(self.diagonal)))

    def _measure(self, x: np.ndarray) -> None:
        self.x = self.base + torch.as_tensor(x).to(self.v) * self.scale
        self.rest = self.v - self.operator(self.x[None])[0]
        self.residual = self.rest.norm() / self.norm

    def _lowest_ritz_value(self) -> float:
        if len(self.diagonal) < 2:
            return min(self.diagonal, default=np.inf)
        return float(eigvalsh_tridiagonal(self.diagonal, self.beside, select="i", select_range=(0, 0))[0])
