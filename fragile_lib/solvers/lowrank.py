"""Inverses from a low-rank picture of the curvature: its leading eigenvectors, or a random sketch."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigsh
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.base import AppliedInverse, DampedCurvature, NotFiniteError
from fragile_lib.tools.checks import check_count, check_number


class LowRankSolver(AppliedInverse):
    """x = S (I - U Lambda (I + Lambda)^-1 U^T) S v, with U Lambda U^T for S C0 S from one of the two below.

    C0 is the curvature without its L2 term and S = (L2 + damping)^-1/2, a diagonal:

        (C0 + L2 + damping I)^-1 = S (S C0 S + I)^-1 S = S (I - U Lambda (I + Lambda)^-1 U^T) S,

    exact where U holds all eigenvectors. Without them L2 and damping are all the curvature that is left: they enter
    exactly.

    The memory is U, (P, rank), and what finding it takes.

    Raises:
        InputError: a damping that is not above 0, or a rank that is not a number from 1 to P.
    """

    scale: Tensor  # S (P,)
    vectors: Tensor  # U (P, rank)
    spectrum: Tensor  # Lambda (rank,)

    def __init__(
        self, objective: Objective, theta: Tensor, damping: float, rank: int, gauss_newton: bool, dataset: int
    ) -> None:
        check_count("rank", rank, most=len(theta))
        why = "what U does not span is divided by it where there is no weight decay"
        check_number("damping", damping, above=0, why=why)
        began = perf_counter()
        self.operator = DampedCurvature(objective, theta, damping, gauss_newton, dataset)
        self.scale = (objective.decay + damping).rsqrt().to(theta)
        try:
            self.spectrum, self.vectors, converged = self._eigenpairs(rank)
        except NotFiniteError:
            nothing = torch.full_like(theta[:, None].expand(-1, rank), torch.nan)
            self.spectrum, self.vectors, converged = nothing[0], nothing, False
        self.status = "ok" if converged else "not_converged"
        if bool((self.spectrum + 1 <= 0).any()):
            self.status = "indefinite"
        self.seconds = perf_counter() - began

    def _eigenpairs(self, rank: int) -> tuple[Tensor, Tensor, bool]:
        """(Lambda (R,), U (P, R), whether all converged), R <= rank.

        Raises:
            NotFiniteError: the curvature is not finite.
        """
        raise NotImplementedError

    def _scaled(self, u: Tensor) -> Tensor:
        """S C0 S u for each row of u (K, P)."""
        u = u * self.scale
        return (self.operator.curvature(u) - self.operator.objective.decay.to(u) * u) * self.scale

    def apply(self, v: Tensor) -> Tensor:
        """The approximate inverse on each row of v (K, P)."""
        v = v * self.scale
        shrunk = ((v @ self.vectors) * (self.spectrum / (1 + self.spectrum))) @ self.vectors.T
        return (v - shrunk) * self.scale


class ArnoldiSolver(LowRankSolver):
    """Inverse on the eigenvectors of largest |eigenvalue| (Schioppa, Zablotskaia, Vilar and Sokolov 2022, section 3.1).

    The curvature is symmetric, so Arnoldi's iteration is Lanczos': `scipy.sparse.linalg.eigsh`, restarted and
    reorthogonalised; from a rank of a third of P on the dense matrix is decomposed, which is cheaper then. No
    eigenvalue is dropped for its sign or size; one at or below -1 of S C0 S gives the outcome `indefinite`. Negative
    eigenvalues smaller in size than the leading ones stay unseen.

    The published method drops what the eigenvectors do not span, and with it the very directions that the inverse
    enlarges most: its residual is at least the share of v outside the span. Here the curvature there counts as L2 +
    damping, see `LowRankSolver`.

    Args:
        objective, theta, gauss_newton, dataset: as in `ExactSolver`.
        damping: above 0.
        rank: eigenvectors; at most P, where the answer is the direct solve.
        tolerance: relative error of the eigenvalues. Not reached in `max_restarts` gives the outcome `not_converged`,
            on those eigenvectors that have.
        seed: of the start vector.

    Raises:
        InputError: a bad damping, rank, tolerance or number of restarts, or right-hand sides that are not (K, P).
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        damping: float,
        rank: int = 100,
        gauss_newton: bool = False,
        tolerance: float = 1e-6,
        max_restarts: int = 100,
        seed: int = 0,
        dataset: int = 0,
    ) -> None:
        check_count("max_restarts", max_restarts)
        check_number("tolerance", tolerance, below=1, why="a relative error of the eigenvalues")
        start = np.random.default_rng([seed, 3]).standard_normal(len(theta))
        self._options = {"which": "LM", "v0": start, "tol": tolerance, "maxiter": max_restarts}
        super().__init__(objective, theta, damping, rank, gauss_newton, dataset)

    def _eigenpairs(self, rank: int) -> tuple[Tensor, Tensor, bool]:
        size, theta, converged = self.operator.size, self.operator.theta, True
        if 3 * rank >= size:
            matrix = self._scaled(torch.eye(size, dtype=theta.dtype, device=theta.device))
            if not torch.isfinite(matrix).all():
                raise NotFiniteError
            spectrum, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
            leading = spectrum.abs().argsort(descending=True)[:rank]
            return spectrum[leading], vectors[:, leading], True
        try:
            spectrum, vectors = eigsh(self.operator.for_scipy(self._scaled), k=rank, **self._options)
        except ArpackNoConvergence as error:
            spectrum, vectors, converged = error.eigenvalues, error.eigenvectors, False
        except ArpackError:  # no curvature along a random vector: there is none
            spectrum, vectors = np.zeros(rank), np.zeros((size, rank))
        return torch.as_tensor(spectrum).to(theta), torch.as_tensor(vectors).to(theta), converged


class NystroemSolver(LowRankSolver):
    """Randomised Nystroem inverse of the damped Gauss-Newton matrix (Frangella, Tropp and Udell 2023, algorithm 2.1).

    A sketch Y = A Omega with an orthonormalised Gaussian Omega (P, rank) gives A ~ Y (Omega^T Y)^-1 Y^T = U Lambda U^T,
    never above A = S C0 S, see `LowRankSolver`. All products are one stack. With rank P the answer is the direct solve.

    The method needs a matrix without negative eigenvalues: there is none for the Hessian.

    Args:
        objective, theta, dataset: as in `ExactSolver`.
        damping: above 0.
        rank: columns of the sketch, at most P.
        seed: of Omega.

    Raises:
        InputError: a bad damping or rank, or right-hand sides that are not (K, P).
    """

    def __init__(
        self, objective: Objective, theta: Tensor, damping: float, rank: int = 100, seed: int = 0, dataset: int = 0
    ) -> None:
        self._rng = np.random.default_rng([seed, 4])
        super().__init__(objective, theta, damping, rank, True, dataset)

    def _eigenpairs(self, rank: int) -> tuple[Tensor, Tensor, bool]:
        size, theta = self.operator.size, self.operator.theta
        omega = torch.linalg.qr(torch.as_tensor(self._rng.standard_normal((size, rank))).to(theta))[0]
        sketch = self._scaled(omega.T.contiguous()).T
        if not torch.isfinite(sketch).all():
            raise NotFiniteError
        # a shift keeps the Cholesky factor of Omega^T Y from breaking down on rounding, and is taken off again
        nu = torch.finfo(theta.dtype).eps * sketch.norm()
        sketch = sketch + nu * omega
        core = omega.T @ sketch
        factor, failed = torch.linalg.cholesky_ex((core + core.T) / 2)
        if failed:  # rounding of a matrix of low rank: the root by eigenvalues, the null part left out
            spectrum, vectors = torch.linalg.eigh((core + core.T) / 2)
            kept = spectrum > nu
            root = sketch @ (vectors[:, kept] / spectrum[kept].sqrt())
        else:
            root = torch.linalg.solve_triangular(factor, sketch.T, upper=False).T
        vectors, singular, _ = torch.linalg.svd(root, full_matrices=False)
        return (singular**2 - nu).clamp(min=0), vectors, True
