"""Influence after a finite time: what gradient flow along a fixed curvature has reached, rather than where it ends."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from fragile_lib.choices import Estimate, Points, Removals
from fragile_lib.estimates.influence import direction, from_direction
from fragile_lib.network import Network
from fragile_lib.solvers.base import Solution
from fragile_lib.solvers.dense import ExactSolver
from fragile_lib.tools.errors import bad_input


def source(
    network: Network, points: Points, removals: Removals | None = None, *, time: float, gauss_newton: bool = True
) -> Estimate:
    """SOURCE with the one segment that goes on from the network: the influence function after a finite time tau.

        -grad f^T (I - exp(-tau C)) C^-1 sum_i d_i grad loss_i,    tau = learning rate * steps / (1 - momentum)

    C is the curvature at the network without damping: short times damp directions of small curvature by themselves, and
    for tau -> infinity this is the undamped influence function. Bae, Lin, Lorraine and Grosse (2024, arXiv 2405.12186),
    equation 13, for a stretch of training over which curvature and gradients are taken as constant.

    Args:
        network: with a dense curvature.
        points: the examined test points (m,).
        removals: what is left out; every training example, one by one, where none are given.
        time: tau, above 0.
        gauss_newton: the Gauss-Newton matrix as C, else the Hessian, along whose negative curvature the flow grows.

    Raises:
        InputError: a time that is not above 0.
    """
    if not 0 < time < float("inf"):
        raise bad_input("time", time, "give a finite number above 0: learning rate times steps / (1 - momentum)")
    direct = network.gauss_newton if gauss_newton else network.hessian
    return from_direction(network, direction(network, points, lambda: _Reached(direct, time)), removals)


@dataclass(frozen=True)
class _Reached:
    """(I - exp(-tau C)) C^-1 by the eigenvectors of C. It solves no system, so it has no residual."""

    direct: ExactSolver
    time: float

    def __call__(self, v: Tensor) -> Solution:
        began, curved = perf_counter(), self.direct.spectrum
        flat = curved.abs() * self.time < 1e-12
        reached = torch.where(flat, self.time, -torch.expm1(-self.time * curved) / torch.where(flat, 1.0, curved))
        x = ((v @ self.direct.vectors) * reached) @ self.direct.vectors.T
        finite = bool(torch.isfinite(x).all())
        unmeasured = torch.full_like(v[:, 0], torch.nan)
        return Solution(
            x, unmeasured, self.direct.seconds + perf_counter() - began, "ok" if finite else "solver_diverged"
        )
