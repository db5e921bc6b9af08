"""Minima of networks of some thousand parameters by BFGS with a dense inverse Hessian.

On a tanh network of 2,616 parameters L-BFGS and Newton-CG spend thousands of passes among saddles whose curvature spans
six orders of magnitude, and do not get to a minimum. A dense inverse remembers every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fragile_lib.minimise.descent import FLAT
from fragile_lib.minimise.near_optimum import Optimum
from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.dense import DenseSolver
from fragile_lib.tools.checks import check_count, check_number
from fragile_lib.tools.numerics import flushed_denormals
from fragile_lib.tools.progress import progress

DECREASE, CURVATURE = 1e-4, 0.9  # of the weak Wolfe conditions
HALVINGS = 30  # of one line search
SHIFTS = 1e-5, 1e-2  # bounds of what is added to |H| before it is inverted: the gradient's norm, between these
ROUGH = 300  # times the tolerance: down to there float32 serves, and from there on a fresh Hessian saves many steps
BEYOND = 1e-3  # share of the tolerance at which the last round ends: some more steps, and left-out optima start clean
LEFT_OUT_SHIFT = 1e-3  # added to |H| of a left-out network; below it lie directions in which nothing is known
RANK, ITERATIONS = 100, 3  # of the subspace in which a change of curvature is seen
LEAST = 0.3  # share of a direction's curvature that a change leaves at least
NEAR = 30  # times the goal: a left-out network whose gradient is larger after float32 would not get there in float64
NOISE = 4  # rounding of J, in units of its type's precision
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
    objective: Objective, theta: Tensor, tolerance: float, single: Objective | None = None, rounds: int = 8,
    steps: int = 2_000,
) -> Optimum:  # fmt: skip
    """A local minimum of J near theta (P,): ||grad J|| <= tolerance and no eigenvalue of the Hessian below -`FLAT`.

    Each round computes the Hessian H = Q diag(lambda) Q^T and starts the inverse of BFGS (Nocedal and Wright 2006,
    equation 6.17) as Q diag(1 / (|lambda| + shift)) Q^T, which turns round the directions that lead up to a saddle.
    Steps satisfy the weak Wolfe conditions, by bisection (Lewis and Overton 2013), so that the inverse stays positive.
    A round ends after `steps`, at `ROUGH` times the tolerance, or at the tolerance. Where it ends at a saddle, the next
    begins a little down its lowest eigenvector. What was reached is returned, whether or not it is within the
    tolerance.

    Args:
        objective: J, in float64; its first data set is used. Memory: four matrices (P, P).
        theta: the start.
        tolerance: of ||grad J||.
        single: the same J in float32, for the Hessians, and for the steps down to `ROUGH` times the tolerance.
        rounds: Hessians at most.
        steps: BFGS steps of a round at most.

    Raises:
        InputError: a tolerance that is not above 0, or rounds or steps below 1.
    """
    check_number("tolerance", tolerance, above=0)
    check_count("rounds", rounds)
    check_count("steps", steps)
    search = _Search(objective)
    state = search.at(theta.double())
    with flushed_denormals(), progress(total=rounds, desc="to a minimum") as bar:
        for _ in range(rounds):
            curvature = DenseSolver(objective, state.theta, 0.0, single=single)
            if state.norm <= tolerance:
                if curvature.spectrum[0] >= -FLAT:
                    break
                state = search.off_the_saddle(state, curvature.vectors[:, 0])
            state = _one_round(search, state, curvature, tolerance, single, steps)
            bar.update(1)
            bar.set_postfix(J=f"{state.value:.5f}", gradient=f"{state.norm:.1e}")
    return Optimum(state.theta, state.norm, search.passes)


def _one_round(
    search: _Search, state: _State, curvature: DenseSolver, tolerance: float, single: Objective | None, steps: int
) -> _State:
    shift = min(max(state.norm, SHIFTS[0]), SHIFTS[1])
    inverse = curvature.absolute_inverse(shift)
    if not state.norm > ROUGH * tolerance:
        return search.descend(state, inverse, BEYOND * tolerance, steps)
    if single is not None:
        rough = _Search(single)
        reached = rough.descend(rough.at(state.theta), inverse, ROUGH * tolerance, steps)
        search.passes += rough.passes
        if reached.value < state.value:
            return search.at(reached.theta)
    return search.descend(state, inverse, ROUGH * tolerance, steps)


class AbsoluteInverse:
    """(|C| + shift)^-1 (P, P) of a dense curvature C, in float32, and what becomes of it when C changes a little.

    Examples with much leverage take more curvature with them than the others leave: the Hessian without them has
    negative eigenvalues, or others altogether. With B = |C| + shift, and a change T ~ U M U^T in the space U of its
    largest eigenvalues (randomized subspace iteration: Halko, Martinsson and Tropp 2011),

        B + T ~ B^1/2 (I + Y diag(mu) Y^T) B^1/2,    Y orthonormal, from the eigenvectors of B^-1/2 U M U^T B^-1/2,

    and the inverse has |1 + mu|, or `LEAST`, for 1 + mu, so that it turns round what has become negative. At 2,616
    parameters it costs a tenth of the eigendecomposition of C + T, and BFGS, which starts from it, about as many steps.

    Args:
        curvature: the direct solver of C.
        shift: added to |C|; above 0 where C has no inverse.
    """

    def __init__(self, curvature: DenseSolver, shift: float) -> None:
        vectors = curvature.vectors
        self._half = ((vectors / (curvature.spectrum.abs() + shift).sqrt()) @ vectors.T).float()
        self._whole = self._half @ self._half

    def after(self, change: Tensor) -> Tensor:
        """The inverse (P, P) for C + T, T (P, P) symmetric."""
        change = change.to(self._half)
        basis = torch.randn(len(change), min(RANK, len(change)), generator=torch.Generator().manual_seed(0)).to(change)
        for _ in range(ITERATIONS):
            basis = torch.linalg.qr(change @ basis)[0]
        outer, inner = torch.linalg.qr(self._half @ basis)
        mu, vectors = torch.linalg.eigh(inner @ (basis.T @ change @ basis) @ inner.T)
        turned = self._half @ (outer @ vectors)
        return self._whole + (turned * (1 / (1 + mu).abs().clamp(min=LEAST) - 1)) @ turned.T


def left_out_minimum(
    objective: Objective,
    single: Objective,
    start: Tensor,
    weights: Tensor,
    inverse: Tensor,
    goal: float,
    steps: int = 120,
    fine_steps: int = 20,
) -> Optimum:
    """A minimum of an objective under other weights (n,), near theta (P,), where Newton steps do not find it.

    BFGS from an inverse that is positive (`AbsoluteInverse`): in float32 as far as that gets, and from near the goal on
    in float64, in which the gradient is measured. What was reached is returned.

    Args:
        objective: what is minimised, in float64: J, or one of `proximal`'s around a network; single: the same in
            float32.
        start: where the search begins: the network, or a point beside it.
        weights: of the examples.
        inverse: of the curvature under these weights (P, P), in float32, since BFGS mends what is rounded; overwritten.
        goal: ||gradient|| at which it ends.
        steps: BFGS steps at most in float32, each of one or a few passes over the examples.
        fine_steps: the same in float64.
    """
    rough, fine = _Search(single, weights[None]), _Search(objective, weights[None])
    with flushed_denormals():
        state = rough.descend(rough.at(start), inverse, goal, steps)
        near = state.norm <= NEAR * goal
        state = fine.descend(fine.at(state.theta), inverse, goal, fine_steps if near else 0)
    return Optimum(state.theta, state.norm, rough.passes + fine.passes)


class _Search:
    """Values and gradients of J at single networks, counted, and the descent that asks for them."""

    def __init__(self, objective: Objective, weights: Tensor | None = None) -> None:
        self.objective, self.passes, self.place = objective, 0, torch.tensor([0])
        default = objective.uniform(1)
        self.weights = default if weights is None else weights.to(default)

    def at(self, theta: Tensor) -> _State:
        """The state at theta, in float64; J itself in the type of the objective's data."""
        self.passes += 1
        stack = theta[None].to(self.weights)
        value, gradient = self.objective.value_and_gradient(stack, self.weights, self.place)
        return _State(theta, float(value), gradient[0].double())

    def descend(self, state: _State, inverse: Tensor, goal: float, steps: int) -> _State:
        """BFGS from a state with a positive inverse (P, P), which is overwritten; it may be in float32."""

        def times(v: Tensor) -> Tensor:
            return (inverse @ v.to(inverse)).double()

        direction = -times(state.gradient)
        for _ in range(steps):
            if not state.norm > goal:
                break
            new = self.along(state, direction)
            if new is None:
                break
            s, y = new.theta - state.theta, new.gradient - state.gradient
            state, ahead = new, times(new.gradient)
            hy, curved = ahead + direction, float(s @ y)
            if curved > 0:
                u = (0.5 * (1 + float(y @ hy) / curved) * s - hy) / curved
                left, right = torch.stack([s, u], 1).to(inverse), torch.stack([u, s]).to(inverse)
                inverse.addmm_(left, right)
                ahead += s * (u @ state.gradient) + u * (s @ state.gradient)
            direction = -ahead
        return state

    def along(self, state: _State, direction: Tensor) -> _State | None:
        """A point with the weak Wolfe conditions, or one that only decreases J enough, or None.

        Where J falls by less than its rounding, a slope that has not turned as steep stands for the decrease (the
        approximate Wolfe conditions of Hager and Zhang 2005).
        """
        slope, low, high, length, best = float(state.gradient @ direction), 0.0, np.inf, 1.0, None
        if not slope < 0:
            return None
        rounding = NOISE * torch.finfo(self.weights.dtype).eps * abs(state.value)
        for _ in range(HALVINGS):
            new = self.at(state.theta + length * direction)
            ahead = float(new.gradient @ direction)
            level = new.value <= state.value + rounding and ahead <= (2 * DECREASE - 1) * slope
            if not (new.value <= state.value + DECREASE * length * slope or level):
                high = length
            elif ahead < CURVATURE * slope:
                low, best = length, new
            else:
                return new
            length = (low + high) / 2 if np.isfinite(high) else 2 * length
        return best

    def off_the_saddle(self, state: _State, lowest: Tensor) -> _State:
        """The lowest of some points on both sides along the eigenvector of the smallest eigenvalue."""
        tried = [self.at(state.theta + sign * length * lowest) for length in OFF for sign in (1, -1)]
        return min([state, *tried], key=lambda one: one.value)
