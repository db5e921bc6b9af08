"""Inverses from a low-rank picture of the curvature: its leading eigenvectors, or a random sketch."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.base import check_damping
from fragile_lib.solvers.operator import AppliedInverse, DampedCurvature, NotFiniteError, check_positive_damping
from fragile_lib.tools.checks import check_count
from fragile_lib.tools.errors import bad_input

REMAINDERS = ("drop", "diagonal")


class LowRankSolver(AppliedInverse):
    """x = S (I + U f(Lambda) U^T) S v, or x = U (Lambda + damping)^-1 U^T v; the parts come from the two below.

    With `scale` S = (L2 + damping)^-1/2, a diagonal, U Lambda U^T stands for S C0 S, C0 the curvature without its L2:

        (C0 + L2 + damping I)^-1 = S (S C0 S + I)^-1 S = S (I - U Lambda (I + Lambda)^-1 U^T) S,

    exact where U holds all eigenvectors. Without it, U Lambda U^T stands for C itself, and what U does not span is
    dropped.

    The memory is U, (P, rank), and what finding it takes.
    """

    scale: Tensor | None
    vectors: Tensor  # U (P, rank)
    spectrum: Tensor  # Lambda (rank,)

    def apply(self, v: Tensor) -> Tensor:
        """The approximate inverse on each row of v (K, P); a preconditioner with `scale` if none is negative."""
        if self.scale is None:
            return ((v @ self.vectors) / (self.spectrum + self.operator.damping)) @ self.vectors.T
        v = v * self.scale
        shrunk = ((v @ self.vectors) * (self.spectrum / (1 + self.spectrum))) @ self.vectors.T
        return (v - shrunk) * self.scale

    def _outcome(self, converged: bool) -> str:
        floor = 0.0 if self.scale is None else 1 - self.operator.damping
        if bool((self.spectrum + self.operator.damping + floor <= 0).any()):
            return "indefinite"
        return "ok" if converged else "not_converged"


class ArnoldiSolver(LowRankSolver):
    """Inverse on the eigenvectors of largest |eigenvalue| (Schioppa, Zablotskaia, Vilar and Sokolov 2022, section 3.1).

    The curvature is symmetric, so Arnoldi's iteration is Lanczos': `scipy.sparse.linalg.eigsh`, restarted and
    reorthogonalised. No eigenvalue is dropped for its sign or size; one at or below -damping gives the outcome
    `indefinite`. Negative eigenvalues smaller in size than the leading ones stay unseen.

    The published method drops what the eigenvectors do not span (`remainder="drop"`, the default), and with it the very
    directions that the inverse enlarges most: its residual is at least the share of v outside the span. With
    `remainder="diagonal"` the curvature there counts as L2 + damping, see `LowRankSolver`.

    Args:
        objective, theta, damping, gauss_newton, dataset: as in `ExactSolver`.
        rank: eigenvectors; at most P, where the answer is the direct solve.
        remainder: `drop` or `diagonal`; the latter needs a damping above 0.
        tolerance: relative error of the eigenvalues. Not reached in `max_restarts` gives the outcome `not_converged`,
            on those eigenvectors that have.
        seed: of the start vector.
        chunk: vectors in one call of `objective.products`, where it takes several.

    Raises:
        InputError: a bad damping, rank, remainder or tolerance, or right-hand sides that are not (K, P).
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        damping: float,
        rank: int = 100,
        gauss_newton: bool = False,
        remainder: str = "drop",
        tolerance: float = 1e-6,
        max_restarts: int = 100,
        seed: int = 0,
        dataset: int = 0,
        chunk: int | None = None,
    ) -> None:
        _check_rank(rank, len(theta))
        check_count("max_restarts", max_restarts)
        if remainder not in REMAINDERS:
            raise bad_input("remainder", remainder, f"choose one of {', '.join(REMAINDERS)}")
        if not 0 <= tolerance < 1:
            raise bad_input("tolerance", tolerance, "give a relative error of the eigenvalues between 0 and 1")
        check_damping(damping)
        if remainder == "diagonal":
            check_positive_damping(damping, "it is what the remainder is divided by where there is no weight decay")
        began = perf_counter()
        self.operator = DampedCurvature(objective, theta, damping, gauss_newton, dataset, chunk)
        self.scale = _scale(self.operator) if remainder == "diagonal" else None
        pairs = leading_eigenpairs(self.operator, self.scale, rank, tolerance, max_restarts, seed)
        self.spectrum, self.vectors, converged = pairs
        self.seconds = perf_counter() - began
        self.status = self._outcome(converged)


class NystroemSolver(LowRankSolver):
    """Randomised Nystroem inverse of the damped Gauss-Newton matrix (Frangella, Tropp and Udell 2023, algorithm 2.1).

    A sketch Y = A Omega with an orthonormalised Gaussian Omega (P, rank) gives A ~ Y (Omega^T Y)^-1 Y^T = U Lambda U^T,
    never above A. Here A = S C0 S, see `LowRankSolver`: the Gauss-Newton part without its L2 term, scaled by
    (L2 + damping)^-1/2 on both sides, so that L2 and damping enter exactly. All products are one stack. With rank P the
    answer is the direct solve. `apply` is positive: a preconditioner for `BlockCGSolver`.

    The method needs a matrix without negative eigenvalues: the Hessian is refused.

    Args:
        objective, theta, dataset: as in `ExactSolver`.
        damping: above 0.
        rank: columns of the sketch, at most P.
        seed: of Omega.
        gauss_newton: True, here only so that the Hessian can be refused.
        chunk: vectors in one call of `objective.products`.

    Raises:
        InputError: a bad damping or rank, `gauss_newton=False`, or right-hand sides that are not (K, P).
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        damping: float,
        rank: int = 100,
        seed: int = 0,
        gauss_newton: bool = True,
        dataset: int = 0,
        chunk: int | None = None,
    ) -> None:
        _check_rank(rank, len(theta))
        check_positive_damping(damping, "what the sketch misses is divided by it where there is no weight decay")
        if not gauss_newton:
            remedy = "a sketch needs a matrix without negative eigenvalues; take ArnoldiSolver or MinresSolver"
            raise bad_input("gauss_newton", gauss_newton, remedy)
        began = perf_counter()
        self.operator = DampedCurvature(objective, theta, damping, True, dataset, chunk)
        self.scale = _scale(self.operator)
        self.spectrum, self.vectors = nystroem(self.operator, self.scale, rank, seed)
        self.seconds = perf_counter() - began
        self.status = self._outcome(True)


def leading_eigenpairs(
    operator: DampedCurvature, scale: Tensor | None, rank: int, tolerance: float, max_restarts: int, seed: int
) -> tuple[Tensor, Tensor, bool]:
    """(eigenvalues (R,), eigenvectors (P, R), whether all converged), the R <= rank of largest |eigenvalue|.

    Of the curvature, or of S C0 S with a scale. From a third of P on they come from the dense matrix, then cheaper.
    """
    size, theta = operator.size, operator.theta
    if 3 * rank >= size:
        matrix = operator.scaled(torch.eye(size, dtype=theta.dtype, device=theta.device), scale)
        if not torch.isfinite(matrix).all():
            return torch.full_like(theta[:rank], torch.nan), torch.full_like(matrix[:, :rank], torch.nan), False
        spectrum, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        leading = spectrum.abs().argsort(descending=True)[:rank]
        return spectrum[leading], vectors[:, leading], True
    rng = np.random.default_rng([seed, 3])
    options = {"k": rank, "which": "LM", "v0": rng.standard_normal(size), "tol": tolerance, "maxiter": max_restarts}
    converged = True
    try:
        spectrum, vectors = eigsh(operator.for_scipy(lambda u: operator.scaled(u, scale)), **options)
    except ArpackNoConvergence as error:
        spectrum, vectors, converged = error.eigenvalues, error.eigenvectors, False
    except NotFiniteError:
        spectrum, vectors, converged = np.full(rank, np.nan), np.full((size, rank), np.nan), False
    return torch.as_tensor(spectrum).to(theta), torch.as_tensor(vectors).to(theta), converged


def nystroem(operator: DampedCurvature, scale: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """(eigenvalues (rank,), eigenvectors (P, rank)) of the Nystroem approximation of S C0 S.

    The shift nu keeps the Cholesky factor of Omega^T Y from breaking down on rounding, and is taken off again.
    """
    theta, rng = operator.theta, np.random.default_rng([seed, 4])
    gaussian = torch.as_tensor(rng.standard_normal((operator.size, rank))).to(theta)
    omega = torch.linalg.qr(gaussian)[0]
    sketch = operator.scaled(omega.T.contiguous(), scale).T
    if not torch.isfinite(sketch).all():
        return torch.full_like(sketch[0], torch.nan), torch.full_like(sketch, torch.nan)
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
    return (singular**2 - nu).clamp(min=0), vectors


def _scale(operator: DampedCurvature) -> Tensor:
    """S (P,) = (L2 + damping)^-1/2."""
    return (operator.objective.decay + operator.damping).rsqrt().to(operator.theta)


def _check_rank(rank: int, size: int) -> None:
    check_count("rank", rank)
    if rank > size:
        raise bad_input("rank", rank, f"give at most the number of parameters, {size}")
