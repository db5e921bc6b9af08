"""Minima of networks of some thousand parameters by BFGS with a dense inverse Hessian.

On a tanh network of 2,616 parameters L-BFGS and Newton-CG (`optimum`) spend thousands of passes among saddles whose
curvature spans six orders of magnitude. A dense inverse remembers every step: the same method, tried in a script on a
GPU, reached minima to a relative gradient of 1e-6, with no negative eigenvalue (one network at each of two weight
decays). The study does not use it yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fragile_lib.errors import bad_input
from fragile_lib.objective import Objective
from fragile_lib.optimum import Optimum, _value_and_gradient
from fragile_lib.progress import progress
from fragile_lib.training import FLAT, flushed_denormals

DECREASE, CURVATURE = 1e-4, 0.9  # of the weak Wolfe conditions
HALVINGS = 30  # of one line search
SHIFTS = 1e-5, 1e-2  # bounds of what is added to |H| before it is inverted: the gradient's norm, between these
BEYOND = 0.3  # share of the tolerance at which a round ends, so that the next look finds it well below
OFF = (0.01, 0.03, 0.1, 0.3, 1.0)  # lengths that are tried along the lowest eigenvector of a saddle


@dataclass
class _State:
    theta: Tensor
    value: float
    gradient: Tensor

    @property
    def norm(self) -> float:
        return float(self.gradient.norm())


def minimum(
    objective: Objective, theta: Tensor, tolerance: float, single: Objective | None = None, rounds: int = 6,
    steps: int = 4_000,
) -> Optimum:  # fmt: skip
    """A local minimum of J near theta (P,): ||grad J|| <= tolerance and no eigenvalue of the Hessian below -`FLAT`.

    Each round computes the Hessian H = Q diag(lambda) Q^T and starts the inverse of BFGS (Nocedal and Wright 2006,
    equation 6.17) as Q diag(1 / (|lambda| + shift)) Q^T, which turns round the directions that lead up to a saddle.
    Steps satisfy the weak Wolfe conditions, by bisection (Lewis and Overton 2013), so that the inverse stays positive.
    Where a round ends at a saddle, the next begins a little down its lowest eigenvector. What was reached is returned,
    whether or not it is within the tolerance.

    Args:
        objective: J, in float64; its first data set is used. Memory: four matrices (P, P).
        theta: the start.
        tolerance: of ||grad J||.
        single: the same J in float32, for the Hessians.
        rounds: Hessians at most.
        steps: BFGS steps of a round at most.

    Raises:
        InputError: a tolerance that is not above 0, or rounds or steps below 1.
    """
    if not tolerance > 0:
        raise bad_input("tolerance", tolerance, "give a number above 0")
    for name, count in (("rounds", rounds), ("steps", steps)):
        if count < 1:
            raise bad_input(name, count, "give a whole number of at least 1")
    search = _Search(objective)
    state = search.at(theta.double())
    with flushed_denormals(), progress(total=rounds, desc="to a minimum") as bar:
        for _ in range(rounds):
            values, vectors = _eigen(single or objective, state.theta)
            if state.norm <= tolerance and values[0] >= -FLAT:
                break
            if state.norm <= tolerance:
                state = search.off_the_saddle(state, vectors[:, 0])
            shift = min(max(state.norm, SHIFTS[0]), SHIFTS[1])
            state = search.descend(state, (vectors / (values.abs() + shift)) @ vectors.T, BEYOND * tolerance, steps)
            bar.update(1)
            bar.set_postfix(gradient=f"{state.norm:.1e}")
    return Optimum(state.theta, state.norm, search.passes)


class _Search:
    """Values and gradients of J at single networks, counted, and the descent that asks for them."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.weights, self.passes = objective, objective.uniform(1), 0
        self.place = torch.tensor([0])

    def at(self, theta: Tensor) -> _State:
        self.passes += 1
        value, gradient = _value_and_gradient(self.objective, theta[None], self.weights, self.place)
        return _State(theta, float(value), gradient[0])

    def descend(self, state: _State, inverse: Tensor, goal: float, steps: int) -> _State:
        """BFGS from a state with a positive inverse (P, P), which is overwritten."""
        for _ in range(steps):
            if not state.norm > goal:
                break
            new = self.along(state, -(inverse @ state.gradient))
            if new is None:
                break
            s, y = new.theta - state.theta, new.gradient - state.gradient
            state = new
            if (curved := float(s @ y)) > 0:
                hy = inverse @ y
                u = (0.5 * (1 + float(y @ hy) / curved) * s - hy) / curved
                inverse.addr_(s, u).addr_(u, s)
        return state

    def along(self, state: _State, direction: Tensor) -> _State | None:
        """A point with the weak Wolfe conditions, or one that only decreases J enough, or None."""
        slope, low, high, length, best = float(state.gradient @ direction), 0.0, np.inf, 1.0, None
        if not slope < 0:
            return None
        for _ in range(HALVINGS):
            new = self.at(state.theta + length * direction)
            if not new.value <= state.value + DECREASE * length * slope:
                high = length
            elif float(new.gradient @ direction) < CURVATURE * slope:
                low, best = length, new
            else:
                return new
            length = (low + high) / 2 if np.isfinite(high) else 2 * length
        return best

    def off_the_saddle(self, state: _State, lowest: Tensor) -> _State:
        """The lowest of some points on both sides along the eigenvector of the smallest eigenvalue."""
        tried = [self.at(state.theta + sign * length * lowest) for length in OFF for sign in (1, -1)]
        return min([state, *tried], key=lambda one: one.value)


def _eigen(objective: Objective, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (P,), rising, and eigenvectors (P, P) of the Hessian of J, in float64."""
    kind = theta[None].to(objective.data.x)
    return torch.linalg.eigh(objective.matrices(kind, objective.uniform(1))[0].double())
