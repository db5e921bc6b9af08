"""The damped curvature as an operator on stacks of vectors, which counts what it multiplies.

Every solver of this package that is not the dense one reaches the curvature through it, and so does the residual.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.base import Solution, check_damping, outcome, relative
from fragile_lib.tools.checks import check_count
from fragile_lib.tools.errors import bad_input


class NotFiniteError(ArithmeticError):
    """A product with the curvature has a number that is not finite."""


class DampedCurvature:
    """v -> (C + damping I) v for the rows of v (K, P); C the Hessian of J, L2 included, or its Gauss-Newton part.

    `chunk` bounds how many vectors are in one call of `objective.products`, whose temporaries grow with it; the answer
    does not depend on it. `products` counts the vectors multiplied.

    Raises:
        InputError: theta that is not one vector (P,), a bad damping, or a chunk below 1.
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        damping: float,
        gauss_newton: bool = False,
        dataset: int = 0,
        chunk: int | None = None,
    ) -> None:
        check_damping(damping)
        check_count("chunk", chunk, optional=True)
        if theta.ndim != 1:
            raise bad_input("theta", tuple(theta.shape), "give the parameters (P,) of one network")
        self.objective, self.theta, self.damping = objective, theta, damping
        self.gauss_newton, self.place, self.chunk = gauss_newton, torch.tensor([dataset]), chunk
        self.products = 0

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return len(self.theta)

    def curvature(self, v: Tensor) -> Tensor:
        """C v for each row of v (K, P), in the floating type of v."""
        self.products += len(v)
        weights, parts = self.objective.uniform(1), v.split(self.chunk or max(len(v), 1))
        found = [
            self.objective.products(self.theta[None], part[None], weights, self.place, self.gauss_newton)[0].to(v)
            for part in parts
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

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

    def scaled(self, u: Tensor, scale: Tensor | None) -> Tensor:
        """C u for each row of u (K, P), or S C0 S u: S = diag(scale) and C0 = C without its L2 term."""
        if scale is None:
            return self.curvature(u)
        u = u * scale
        return (self.curvature(u) - self.objective.decay.to(u) * u) * scale


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

    def residual(self, x: Tensor, v: Tensor) -> Tensor:
        """||(C + damping I) x - v|| / ||v|| of each row: (K,)."""
        return self.operator.residual(x, v)

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        self.operator.check(v)
        began = perf_counter()
        x = self.apply(v)
        seconds = self.seconds + perf_counter() - began
        return outcome(x, self.residual(x, v), seconds, self.status, self.operator.products)


def check_tolerance(tolerance: float) -> None:
    """Raise InputError for a tolerance outside (0, 1)."""
    if not 0 < tolerance < 1:
        raise bad_input("tolerance", tolerance, "give a relative residual between 0 and 1")


def check_positive_damping(damping: float, why: str) -> None:
    """Raise InputError for a damping that is not above 0, where a method cannot do without."""
    check_damping(damping)
    if damping == 0:
        raise bad_input("damping", damping, f"give a number above 0: {why}")
