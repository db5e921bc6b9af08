"""Krylov methods: conjugate gradients for all right-hand sides at once, and minimum residuals where signs are mixed."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal
from scipy.sparse.linalg import LinearOperator, minres
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.base import DampedCurvature, NotFiniteError, Solution, outcome
from fragile_lib.tools.checks import check_count, check_number

DEPENDENT = 1e-12  # a direction of the block with less than this share of the largest singular value is rounding
STALLED = 1e-2  # a residual this far down that 4 P directions have not halved is held up by rounding: a new run is due
MAX_ROUNDS = 20  # rounds of refinement on the measured residual
EVERY = 0.1  # share of MINRES' iterations between two looks at the residual: the products that this costs on top


class KrylovSolver:
    """An iteration on the damped curvature until the measured residual of each vector has reached a tolerance.

    Where it ends above the tolerance, another round works on what is left (refinement).

    An eigenvalue at or below zero in the Krylov spaces that were searched proves the outcome `indefinite`; x is A's
    inverse all the same, as far as the residual says. `ok` says that none was met, not that there is none: a negative
    eigenvalue whose vector v does not touch stays unseen. `not_converged` is a residual above the tolerance.

    Args:
        objective, theta, damping, gauss_newton, dataset: as in `ExactSolver`.
        tolerance: relative residual that each vector has to reach.
        max_iterations: products with one block or vector, over all rounds; by default the class's `most`.

    Raises:
        InputError: a bad damping, tolerance or count, or right-hand sides that are not (K, P).
    """

    most = 1000

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        damping: float,
        gauss_newton: bool = False,
        tolerance: float = 1e-4,
        max_iterations: int | None = None,
        dataset: int = 0,
    ) -> None:
        check_number("tolerance", tolerance, above=0, below=1, why="a relative residual")
        check_count("max_iterations", max_iterations, optional=True)
        self.operator = DampedCurvature(objective, theta, damping, gauss_newton, dataset)
        self.tolerance, self.max_iterations = tolerance, max_iterations or self.most

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        began = perf_counter()
        self.operator.check(v)
        self.operator.products = 0
        x, residual, indefinite = self._solve(v)
        status = "ok" if residual.max() <= self.tolerance else "not_converged"
        status = "indefinite" if indefinite else status
        return outcome(x, residual, perf_counter() - began, status, self.operator.products)

    def _solve(self, v: Tensor) -> tuple[Tensor, Tensor, bool]:
        """(x (K, P), measured relative residual (K,), whether non-positive curvature was met) for v (K, P)."""
        raise NotImplementedError


class BlockCGSolver(KrylovSolver):
    """Block conjugate gradients (O'Leary 1980) in the breakdown-free form of Ji and Li (2017).

    All right-hand sides search the sum of their Krylov spaces, one stacked product an iteration:

        a = (Q^T A Q)^-1 Q^T R,  X += Q a,  R -= A Q a,  Q <- orth(R - Q (Q^T A Q)^-1 (A Q)^T R),

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

    The eigenvalues of Q^T A Q bound A's from above: one at or below zero is `indefinite`, and the recursion goes on.
    `max_iterations` counts stacked products. The memory is about six stacks like v.
    """

    def _solve(self, v: Tensor) -> tuple[Tensor, Tensor, bool]:
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
            best = worst
            found, steps, met = block_cg(self.operator, rest[rows], self.tolerance, left)
            left, indefinite = left - steps, indefinite or met
            x[rows] += found
            rest[rows] = v[rows] / norms[rows] - self.operator(x[rows])
            missing = rest.norm(dim=1)
        return x * norms, missing, indefinite


def block_cg(operator: Callable[[Tensor], Tensor], v: Tensor, tolerance: float, steps: int) -> tuple[Tensor, int, bool]:
    """Solve operator(x) = v for rows v (K, P) until ||v - operator(x)|| <= tolerance for each, or for so many steps.

    x, the iterations that one run from zero took, and whether non-positive curvature was met.
    The unknowns are an orthonormal basis of the rows, b = operator(y), and x the same combinations of y as v is of b.
    """
    r, indefinite = orthonormal(v), False
    combine = v @ r.T
    x, q = torch.zeros_like(r), orthonormal(r)
    start = best = v.norm(dim=1).max()
    fruitless = 0
    for step in range(steps):
        aq = operator(q)
        inverse, positive = _inverse(q @ aq.T)
        if inverse is None:
            return torch.full_like(v, torch.nan), step + 1, indefinite
        indefinite |= not positive
        a = (r @ q.T) @ inverse
        x += a @ q
        r = r - a @ aq
        worst = (combine @ r).norm(dim=1).max()
        best, fruitless = (worst, 0) if worst < best / 2 else (best, fruitless + len(q))
        if worst <= tolerance or (best < STALLED * start and fruitless > 4 * v.shape[1]):
            return combine @ x, step + 1, indefinite
        q = orthonormal(r - ((r @ aq.T) @ inverse) @ q)
        if not len(q):
            return combine @ x, step + 1, indefinite
    return combine @ x, steps, indefinite


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


class MinresSolver(KrylovSolver):
    """MINRES (Paige and Saunders 1975) by `scipy.sparse.linalg.minres`, one right-hand side after the other.

    Among all of the Krylov space it takes the x of least ||(C + damping I) x - v||: no step can break down or raise the
    residual, whatever the signs of the eigenvalues. scipy's own test compares the residual with ||A|| ||x||, its
    estimate of ||A|| grows with the iterations, and it reports success where it gives up on a condition number; so the
    residual is measured here, after each tenth of the iterations, and ends the run once it has reached the tolerance.
    Where scipy gives up above it, another run works on what is left (refinement).

    The Lanczos process inside also gives Ritz values, at no further product. Each lies above A's smallest eigenvalue.
    `max_iterations` counts Lanczos steps for one vector, besides the looks at the residual.
    """

    most = 2000

    def _solve(self, v: Tensor) -> tuple[Tensor, Tensor, bool]:
        runs = [_Minres(self.operator, row, self.tolerance, self.max_iterations) for row in v]
        x, residual = torch.stack([run.x for run in runs]), torch.stack([run.residual for run in runs])
        return x, residual, min(run.lowest for run in runs) <= 0


class _Reached(Exception):
    """Ends scipy's loop."""


class _Minres:
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
