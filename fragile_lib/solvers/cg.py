"""Conjugate gradients for all right-hand sides at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.base import Solution, outcome
from fragile_lib.solvers.operator import DampedCurvature, check_tolerance
from fragile_lib.tools.checks import check_count

DEPENDENT = 1e-12  # a direction of the block with less than this share of the largest singular value is rounding
STALLED = 1e-2  # a residual this far down that 4 P directions have not halved is held up by rounding: a new run is due
MAX_ROUNDS = 20  # rounds of refinement on the measured residual


class BlockCGSolver:
    """Block conjugate gradients (O'Leary 1980) in the breakdown-free form of Ji and Li (2017).

    All right-hand sides search the sum of their Krylov spaces, one stacked product an iteration:

        a = (Q^T A Q)^-1 Q^T R,  X += Q a,  R -= A Q a,  Q <- orth(Z - Q (Q^T A Q)^-1 (A Q)^T Z),  Z = M^-1 R,

    A = C + damping I. The directions Q are kept orthonormal by a rank-revealing factorisation, so that right-hand sides
    which are, or become, dependent make the block narrower in the place of a breakdown. Columns that have reached the
    tolerance stay until all have: their directions serve the others. Then the residual is measured, and what misses
    the tolerance goes another round on it (refinement), so that `ok` holds for the measured residual; so does a run
    that rounding holds up.

    Against conjugate gradients on each column by itself (residual 1e-4, 600 parameters, eigenvalues spread evenly in
    logarithm), 10 right-hand sides took 0.75 of the products at condition number 1e2, 0.34 at 1e4 and less than 0.18 at
    1e6, where single columns had not converged in 3000 iterations; 100 right-hand sides 0.12 and 0.016. 50 test
    gradients of Koh and Liang's network (2,616 parameters, 500 images, Gauss-Newton, damping 0.01) took 500 products,
    and by themselves 68 each. Very many columns or iterations cost more than the dense matrix: K times the iterations
    against P products.

    The eigenvalues of Q^T A Q bound A's from above: one at or below zero gives the outcome `indefinite`; the recursion
    goes on, and x is A's inverse as far as the residual says. `ok` says that none was met, not that there is none: a
    negative eigenvalue whose vector v does not touch stays unseen. `not_converged` is a residual above the tolerance.

    Args:
        objective, theta, damping, gauss_newton, dataset: as in `ExactSolver`.
        tolerance: relative residual that each column has to reach.
        max_iterations: stacked products for one block, over all rounds.
        preconditioner: M^-1, symmetric and positive, on the rows of (K, P); `NystroemSolver(...).apply`, for example.
        block: right-hand sides solved together; the memory is about six of these blocks (block, P). Default: all.
        chunk: vectors in one call of `objective.products`. Default: all.

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
        max_iterations: int = 1000,
        preconditioner: Callable[[Tensor], Tensor] | None = None,
        dataset: int = 0,
        block: int | None = None,
        chunk: int | None = None,
    ) -> None:
        check_tolerance(tolerance)
        check_count("max_iterations", max_iterations)
        check_count("block", block, optional=True)
        self.operator = DampedCurvature(objective, theta, damping, gauss_newton, dataset, chunk)
        self.tolerance, self.max_iterations, self.block = tolerance, max_iterations, block
        self.preconditioner = preconditioner or (lambda r: r)

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        began = perf_counter()
        self.operator.check(v)
        self.operator.products = 0
        parts = [self._solve(part) for part in v.split(self.block or len(v))]
        x, residual = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        status = "ok" if residual.max() <= self.tolerance else "not_converged"
        status = "indefinite" if any(part[2] for part in parts) else status
        return outcome(x, residual, perf_counter() - began, status, self.operator.products)

    def _solve(self, v: Tensor) -> tuple[Tensor, Tensor, bool]:
        """(x, measured relative residual, whether non-positive curvature was met) for one block v (K, P)."""
        norms = v.norm(dim=1, keepdim=True)
        rest = v / norms.clamp(min=torch.finfo(v.dtype).tiny)
        x, missing, best = torch.zeros_like(v), rest.norm(dim=1), np.inf
        left, indefinite = self.max_iterations, False
        for _ in range(MAX_ROUNDS):
            rows = (missing > self.tolerance).nonzero()[:, 0]
            worst = missing.max().item()
            # another round has to halve the residual, or it is rounding that it works on
            if not len(rows) or left < 1 or not worst < best / 2:
                break
            best, run = worst, block_cg(self.operator, rest[rows], self.tolerance, left, self.preconditioner)
            left, indefinite = left - run.iterations, indefinite or run.indefinite
            x[rows] += run.x
            rest[rows] = v[rows] / norms[rows] - self.operator(x[rows])
            missing = rest.norm(dim=1)
        return x * norms, missing, indefinite


@dataclass(frozen=True)
class Run:
    """x (K, P) of one run from zero, the iterations it took, and whether non-positive curvature was met."""

    x: Tensor
    iterations: int
    indefinite: bool


def block_cg(
    operator: Callable[[Tensor], Tensor], v: Tensor, tolerance: float, steps: int, precondition: Callable
) -> Run:
    """Solve operator(x) = v for rows v (K, P) until ||v - operator(x)|| <= tolerance for each, or for so many steps.

    The unknowns are an orthonormal basis of the rows, b = operator(y), and x the same combinations of y as v is of b.
    """
    r, indefinite = orthonormal(v), False
    combine = v @ r.T
    x, q = torch.zeros_like(r), orthonormal(precondition(r))
    start = best = v.norm(dim=1).max()
    fruitless = 0
    for step in range(steps):
        aq = operator(q)
        inverse, positive = _inverse(q @ aq.T)
        if inverse is None:
            return Run(torch.full_like(v, torch.nan), step + 1, indefinite)
        indefinite |= not positive
        a = (r @ q.T) @ inverse
        x += a @ q
        r = r - a @ aq
        worst = (combine @ r).norm(dim=1).max()
        best, fruitless = (worst, 0) if worst < best / 2 else (best, fruitless + len(q))
        if worst <= tolerance or (best < STALLED * start and fruitless > 4 * v.shape[1]):
            return Run(combine @ x, step + 1, indefinite)
        z = precondition(r)
        q = orthonormal(z - ((z @ aq.T) @ inverse) @ q)
        if not len(q):
            return Run(combine @ x, step + 1, indefinite)
    return Run(combine @ x, steps, indefinite)


def orthonormal(z: Tensor) -> Tensor:
    """An orthonormal basis (R, P) of the span of the rows of z (K, P), R its numerical rank."""
    norms = z.norm(dim=1, keepdim=True)
    if not torch.isfinite(norms).all():
        return z
    z = z[norms[:, 0] > 0] / norms[norms[:, 0] > 0]  # each at its own scale: columns converge at different rates
    if not len(z):
        return z
    q, upper = torch.linalg.qr(z.T)
    left, spectrum, _ = torch.linalg.svd(upper, full_matrices=False)
    floor = max(DEPENDENT, 10 * torch.finfo(z.dtype).eps)
    return (q @ left[:, spectrum > floor * spectrum[0]]).T.contiguous()


def _inverse(matrix: Tensor) -> tuple[Tensor | None, bool]:
    """The inverse of a small symmetric matrix and whether it is positive; None where it is not finite.

    A direction without curvature has no place in the step; it counts as not positive, so that the outcome tells.
    """
    if not torch.isfinite(matrix).all():
        return None, False
    spectrum, vectors = torch.linalg.eigh((matrix + matrix.T).double() / 2)
    flat = spectrum.abs() <= torch.finfo(matrix.dtype).eps * spectrum.abs().max()
    inverse = (vectors * torch.where(flat, 0.0, 1 / spectrum)) @ vectors.T
    return inverse.to(matrix), bool((spectrum > 0).all() and not flat.any())
