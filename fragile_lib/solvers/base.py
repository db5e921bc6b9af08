"""Inverse-Hessian-vector products (iHVP): x = (C + damping I)^-1 v, C the Hessian of J or its Gauss-Newton part.

Every solver is made for one network and then called with vectors (K, P); it returns a `Solution` that carries the
relative residual ||(C + damping I) x - v|| / ||v|| of each vector, always measured on the full curvature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

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


def check_damping(damping: float) -> None:
    """Raise InputError for a damping that is negative or not finite."""
    if not (np.isfinite(damping) and damping >= 0):
        raise bad_input("damping", damping, "give a finite number of at least 0")


def nowhere(v: Tensor) -> tuple[Tensor, Tensor]:
    """Solution and residual of a solver that diverged, all NaN: (K, P) and (K,)."""
    return torch.full_like(v, torch.nan), torch.full_like(v[:, 0], torch.nan)


def outcome(x: Tensor, residual: Tensor, seconds: float, status: str, products: float = 0.0) -> Solution:
    """The solution with this status; `solver_diverged`, and all NaN, where a residual is not finite."""
    if not torch.isfinite(residual).all():
        return Solution(*nowhere(x), seconds, "solver_diverged", float(products))
    return Solution(x, residual, seconds, status, float(products))
