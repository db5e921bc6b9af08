"""Influence: the derivative of a test loss along a change of example weights.

For weights w + d the optimum moves, to first order, by -H^-1 sum_i d_i grad loss_i, and a test loss f by

    -grad f^T H^-1 sum_i d_i grad loss_i.

Leave-one-out is d = -e_i / n. The scale is that of real leave-one-out: loss after the removal minus loss before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.choices import NAN, Estimate, Points, Removals
from fragile_lib.network import Network
from fragile_lib.solvers.base import Solution, Solver
from fragile_lib.tools.measure import Peak


def influence(network: Network, points: Points, solver: Solver, removals: Removals | None = None) -> Estimate:
    """-grad f^T H^-1 sum_i d_i grad loss_i for each removal d and test point: changes (k, m).

    One solve for each test point, then one forward-mode pass over the training data for all of them: no per-example
    training gradients are formed. Koh and Liang (2017), equation 2, times -1/n for a removal.

    Args:
        network: the network.
        points: the examined test points (m,).
        solver: of the damped curvature.
        removals: what is left out; every training example, one by one, where none are given.
    """
    return from_direction(network, direction(network, points, lambda: solver), removals)


def parameter_change(network: Network, removals: Removals, solver: Solver) -> Tensor:
    """-H^-1 sum_i d_i grad loss_i: the first-order move (k, P) of the optimum under each removal d."""
    gradients = network.train.example_gradients(network.theta[None], network.dataset)[0]
    return -solver(removals.changes().to(gradients) @ gradients).x


@dataclass(frozen=True)
class Direction:
    """The inverse-Hessian-vector products x (m, P) of one solver for the test gradients, and what they cost."""

    x: Tensor
    residual: float
    seconds: float
    products: float
    memory_mb: float
    status: str

    @property
    def finite(self) -> bool:
        """Whether x is a number everywhere."""
        return bool(torch.isfinite(self.x).all())


def direction(network: Network, points: Points, make: Callable[[], Solver]) -> Direction:
    """(C + damping I)^-1 grad f for each test point; seconds count the solver's making, also where it was there."""
    began = perf_counter()
    with Peak() as peak:
        gradients = network.test_gradients(points)
        solver = make()
        solution: Solution = solver(gradients)
    elapsed = perf_counter() - began
    seconds = max(elapsed, solution.seconds)
    products = solution.products / len(gradients)
    return Direction(solution.x, float(solution.residual.max()), seconds, products, peak.mb, solution.status)


def from_direction(network: Network, found: Direction, removals: Removals | None = None) -> Estimate:
    """Loss changes along a direction, by one pass over the training data."""
    began = perf_counter()
    with Peak() as peak:
        slopes = network.slopes(found.x).double().cpu().numpy()
    return from_slopes(network, found, slopes, removals, perf_counter() - began, peak.mb)


def from_slopes(
    network: Network, found: Direction, slopes: np.ndarray, removals: Removals | None, seconds: float, mb: float = NAN
) -> Estimate:
    """Loss changes from the slopes x_j . grad loss_i (n, m) of all training examples along a direction."""
    removals = Removals.single(range(len(slopes)), len(slopes)) if removals is None else removals
    changes = removals.sums(slopes / network.train.n)
    memory = max(found.memory_mb, mb) if np.isfinite(mb) else found.memory_mb
    return Estimate(removals, changes, found.residual, found.seconds + seconds, found.products, memory, found.status)
