"""Inverse-Hessian-vector products (iHVP): x = (C + damping I)^-1 v, C the Hessian of J or its Gauss-Newton part.

Every solver is made for one network and then called with vectors (K, P); it returns a `Solution` that carries the
relative residual ||(C + damping I) x - v|| / ||v|| of each vector, always measured on the full curvature.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fragile_lib.curvature import example_curvature_bound
from fragile_lib.errors import bad_input
from fragile_lib.objective import Objective


@dataclass(frozen=True)
class Solution:
    """x (K, P) with the relative residual (K,) of each row, the seconds spent and a named outcome.

    status is `ok`; `indefinite`: C + damping I has an eigenvalue at or below zero, so that x is the exact inverse but
    of no minimum; `solver_diverged`: x is not finite.
    """

    x: Tensor
    residual: Tensor
    seconds: float
    status: str


class Solver(Protocol):
    """What `influence` asks of a solver."""

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        ...


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
        _check_damping(damping)
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
        residual = _relative(x @ self.matrix + self.damping * x - v, v)
        status = "indefinite" if shifted[0] <= 0 else "ok"
        return Solution(x, residual, self.seconds + perf_counter() - began, status)


class LissaSolver:
    """Stochastic recursion of Agarwal, Bullins and Hazan (2016), as Koh and Liang (2017) use it.

    h <- v + h - (H_i + L2 + damping I) h / scale over randomly drawn single examples i, `depth` times; x = h / scale,
    averaged over `repeats`. Its fixed point in the mean is (H + damping I)^-1 v: the scale divides the damping too, so
    that it changes the speed and not the answer. Default scale: the largest curvature of any single example, plus
    L2 and damping, which makes every factor a contraction where the examples' Hessians are positive.
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        damping: float,
        depth: int = 10_000,
        repeats: int = 1,
        seed: int = 0,
        scale: float | None = None,
        dataset: int = 0,
    ) -> None:
        _check_damping(damping)
        if depth < 1 or repeats < 1:
            raise bad_input("lissa_depth, lissa_repeats", (depth, repeats), "give whole numbers of at least 1")
        if scale is not None and not (np.isfinite(scale) and scale > 0):
            raise bad_input("scale", scale, "give a finite number above 0, or leave it out")
        self.objective, self.theta, self.damping, self.dataset = objective, theta, damping, torch.tensor([dataset])
        self.depth, self.repeats, self.seed = depth, repeats, seed
        if scale is None:
            scale = example_curvature_bound(objective, theta, dataset) + objective.weight_decay + damping
        self.scale = scale

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        began = perf_counter()
        rng = np.random.default_rng([self.seed, 2])
        runs = [
            self.objective.stochastic_recursion(
                self.theta, v, rng.integers(self.objective.n, size=self.depth), self.dataset, self.damping, self.scale
            )
            for _ in range(self.repeats)
        ]
        x = torch.stack(runs).mean(0)
        if not torch.isfinite(x).all() or x.abs().max() > 1e100:
            nowhere = torch.full_like(v, torch.nan)
            return Solution(nowhere, nowhere[:, 0], perf_counter() - began, "solver_diverged")
        curved = self.objective.products(self.theta[None], x[None], self.objective.uniform(1), self.dataset)[0]
        return Solution(x, _relative(curved + self.damping * x - v, v), perf_counter() - began, "ok")


def _relative(error: Tensor, v: Tensor) -> Tensor:
    return error.norm(dim=1) / v.norm(dim=1).clamp(min=torch.finfo(v.dtype).tiny)


def _check_damping(damping: float) -> None:
    if not (np.isfinite(damping) and damping >= 0):
        raise bad_input("damping", damping, "give a finite number of at least 0")
