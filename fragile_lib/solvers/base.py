"""Inverse-Hessian-vector products (iHVP): x = (C + damping I)^-1 v, C the Hessian of J or its Gauss-Newton part.

Every solver is made for one network and then called with vectors (K, P); it returns a `Solution` that carries the
relative residual ||(C + damping I) x - v|| / ||v|| of each vector, always measured on the full curvature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.tools.checks import check_number
from fragile_lib.tools.errors import bad_input


@dataclass(frozen=True)
class Solution:
    """x (K, P) with the relative residual (K,) of each row, the seconds and products spent, and a named outcome.

    products counts the vectors that the curvature of the whole training set was multiplied with, in parts of it for
    stochastic solvers; zero for a solver that works on the dense matrix. seconds include what was spent on setting up;
    measuring the residual may be left out of them. status is `ok`; `indefinite`: C + damping I has an eigenvalue at or
    below zero, so that x is the exact inverse but of no minimum; `not_converged`: an iteration ended above its
    tolerance; `solver_diverged`: x is not finite.
    """

    x: Tensor
    residual: Tensor
    seconds: float
    status: str
    products: float = 0.0


class Solver(Protocol):
    """What `influence` asks of a solver."""

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        ...


def relative(error: Tensor, v: Tensor) -> Tensor:
    """||error|| / ||v|| of each row: (K,)."""
    return error.norm(dim=1) / v.norm(dim=1).clamp(min=torch.finfo(v.dtype).tiny)


def nowhere(v: Tensor) -> tuple[Tensor, Tensor]:
    """Solution and residual of a solver that diverged, all NaN: (K, P) and (K,)."""
    return torch.full_like(v, torch.nan), torch.full_like(v[:, 0], torch.nan)


def outcome(
    x: Tensor, residual: Tensor, seconds: float, status: str, products: float = 0.0, unsolved: float = 1.0
) -> Solution:
    """The solution with this status; `solver_diverged`, and all NaN, where a residual is not finite.

    `ok` becomes `not_converged` where a residual is `unsolved` or more: at 1, x = 0 would do as well.
    """
    if not torch.isfinite(residual).all():
        return Solution(*nowhere(x), seconds, "solver_diverged", float(products))
    if status == "ok" and residual.max() >= unsolved:
        status = "not_converged"
    return Solution(x, residual, seconds, status, float(products))


class NotFiniteError(ArithmeticError):
    """A product with the curvature has a number that is not finite."""


class DampedCurvature:
    """v -> (C + damping I) v for the rows of v (K, P); C the Hessian of J, L2 included, or its Gauss-Newton part.

    Every solver that is not a direct one reaches the curvature through it, and so does the residual. `products` counts
    the vectors multiplied.

    Raises:
        InputError: theta that is not one vector (P,), or a bad damping.
    """

    def __init__(
        self, objective: Objective, theta: Tensor, damping: float, gauss_newton: bool = False, dataset: int = 0
    ) -> None:
        check_number("damping", damping)
        if theta.ndim != 1:
            raise bad_input("theta", tuple(theta.shape), "give the parameters (P,) of one network")
        self.objective, self.theta, self.damping = objective, theta, damping
        self.gauss_newton, self.place = gauss_newton, torch.tensor([dataset])
        self.products = 0

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return len(self.theta)

    def curvature(self, v: Tensor) -> Tensor:
        """C v for each row of v (K, P), in the floating type of v."""
        self.products += len(v)
        weights, theta = self.objective.uniform(1), self.theta[None]
        return self.objective.products(theta, v[None], weights, self.place, self.gauss_newton)[0].to(v)

    def __call__(self, v: Tensor) -> Tensor:
        """(C + damping I) v for each row of v (K, P)."""
        return self.curvature(v) + self.damping * v

    def residual(self, x: Tensor, v: Tensor) -> Tensor:
        """||(C + damping I) x - v|| / ||v|| of each row, not counted in `products`: (K,)."""
        counted = self.products
        found = relative(self(x) - v, v)
        self.products = counted
        return found

    def check(self, v: Tensor) -> None:
        """Raise InputError for right-hand sides that are not (K, P)."""
        if v.ndim != 2 or v.shape[1] != self.size or not len(v):
            raise bad_input("v", tuple(v.shape), f"give vectors (K, {self.size}), K at least 1")

    def for_scipy(self, product: Callable[[Tensor], Tensor]) -> LinearOperator:
        """A product with rows (K, P) as scipy's operator on one column; raises `NotFiniteError` in the place of NaN."""

        def column(u: np.ndarray) -> np.ndarray:
            found = product(torch.as_tensor(u).reshape(1, -1).to(self.theta))[0].double().cpu().numpy()
            if not np.isfinite(found).all():
                raise NotFiniteError
            return found

        return LinearOperator((self.size, self.size), matvec=column, dtype=np.float64)


class AppliedInverse:
    """A solver that applies an approximate inverse, which it has ready, and measures its residual besides.

    The residual, which the method does not need, counts neither in seconds nor in products; those are of the set-up.
    """

    operator: DampedCurvature
    seconds: float = 0.0
    status: str = "ok"

    def apply(self, v: Tensor) -> Tensor:
        """The approximate inverse on each row of v (K, P)."""
        raise NotImplementedError

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        self.operator.check(v)
        began = perf_counter()
        x = self.apply(v)
        seconds = self.seconds + perf_counter() - began
        return outcome(x, self.operator.residual(x, v), seconds, self.status, self.operator.products)
