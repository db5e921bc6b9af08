"""Optima of networks of some thousand parameters: one network to its optimum, then its left-out optima.

`stationary.newton` factors a new Hessian at every step of every network. Here that is too dear, and not needed: the
optimum is found by Newton-CG in coordinates in which the Gauss-Newton matrix is the identity, and the left-out optima,
which lie close to it, by steps with the one Hessian of the optimum (the chord method: Newton's with a fixed matrix).
Each left-out optimum is certified by its own gradient on all examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from fragile_lib.errors import bad_input
from fragile_lib.objective import Objective
from fragile_lib.progress import progress
from fragile_lib.training import flushed_denormals

Solve = Callable[[Tensor], Tensor]  # (K, P) -> (K, P), the inverse curvature times each row

ROUNDS = 10  # Gauss-Newton matrices that `finish_one` computes at most
SHIFT = 1e-2  # mu as a share of the GGN's mean diagonal: enough for directions that only the rest of H curves
TRUST = {"initial_trust_radius": 0.3, "max_trust_radius": 10.0, "gtol": 0.0}  # in whitened coordinates


@dataclass(frozen=True)
class Optimum:
    """One network theta (P,) with ||grad J||, and how many gradients and Hessian-vector products its finishing took."""

    theta: Tensor
    grad_norm: float
    passes: int


def finish_one(objective: Objective, theta: Tensor, tolerance: float, steps: int = 40, dataset: int = 0) -> Optimum:
    """Minimise J from theta (P,) until ||grad J|| <= tolerance, by Newton-CG in coordinates whitened by the GGN.

    With G + mu I = L L^T and theta = theta_0 + L^-T u, the curvature in u is the identity but for what the Gauss-Newton
    matrix G leaves out. The trust-region Newton method with truncated conjugate gradients (Nocedal and Wright 2006,
    algorithms 4.1 and 7.2; scipy's `trust-ncg`) needs few Hessian-vector products there, and follows negative
    curvature off saddles. G is renewed every `steps` steps, `ROUNDS` times at most; the result says what was reached,
    whether or not it is within the tolerance.

    Raises:
        InputError: a tolerance that is not above 0.
    """
    if not tolerance > 0:
        raise bad_input("tolerance", tolerance, "give a number above 0")
    place = torch.tensor([dataset])
    passes, norm = 0, float(objective.gradient(theta[None], objective.uniform(1), place).norm())
    with progress(total=ROUNDS * steps, desc="to the optimum") as bar:
        for _ in range(ROUNDS):
            if not norm > tolerance:  # reached, or not finite
                break
            whitened = _Whitened(objective, theta, place, tolerance)
            theta, norm = whitened.minimised(steps)
            passes += whitened.passes
            bar.update(steps)
            bar.set_postfix(gradient=f"{norm:.1e}")
    return Optimum(theta, norm, passes)


class _Whitened:
    """J as a function of u, theta = theta_0 + L^-T u, for scipy; counts passes."""

    def __init__(self, objective: Objective, theta: Tensor, place: Tensor, tolerance: float) -> None:
        self.objective, self.start, self.place, self.tolerance = objective, theta, place, tolerance
        self.weights, self.passes = objective.uniform(1), 0
        matrix = objective.matrices(theta[None], self.weights, place, gauss_newton=True)[0]
        matrix.diagonal().add_(SHIFT * matrix.diagonal().mean())
        self.factor = torch.linalg.cholesky(matrix)
        self.norm = np.inf

    def minimised(self, steps: int) -> tuple[Tensor, float]:
        """(theta (P,), ||grad J||) after up to `steps` steps."""
        functions = {"fun": self.value, "jac": True, "hessp": self.product, "callback": self.stop}
        options = {"maxiter": steps, **TRUST}
        with flushed_denormals():
            found = minimize(x0=np.zeros(len(self.start)), method="trust-ncg", options=options, **functions)
        theta = self.start + self.unwhitened(found.x)
        return theta, float(self.objective.gradient(theta[None], self.weights, self.place).norm())

    def value(self, u: np.ndarray) -> tuple[float, np.ndarray]:
        theta = self.start + self.unwhitened(u)
        value, gradient = _value_and_gradient(self.objective, theta[None], self.weights, self.place)
        self.passes += 1
        self.norm = float(gradient.norm())
        return float(value), self.whitened(gradient[0])

    def product(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        theta, direction = self.start + self.unwhitened(u), self.unwhitened(v)
        self.passes += 1
        return self.whitened(
            self.objective.products(theta[None], direction[None, None], self.weights, self.place)[0, 0]
        )

    def unwhitened(self, u: np.ndarray) -> Tensor:
        column = torch.from_numpy(u).to(self.start)[:, None]
        return torch.linalg.solve_triangular(self.factor.mT, column, upper=True)[:, 0]

    def whitened(self, gradient: Tensor) -> np.ndarray:
        return torch.linalg.solve_triangular(self.factor, gradient[:, None], upper=False)[:, 0].double().cpu().numpy()

    def stop(self, _: np.ndarray) -> None:
        if self.norm <= self.tolerance:
            raise StopIteration


def _value_and_gradient(objective: Objective, theta: Tensor, weights: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """In one pass over the data where the objective can do that."""
    if hasattr(objective, "value_and_gradient"):
        return objective.value_and_gradient(theta, weights, place)
    return objective.value(theta, weights, place), objective.gradient(theta, weights, place)


def chord(
    objective: Objective,
    theta: Tensor,
    weights: Tensor,
    dataset: Tensor | None = None,
    *,
    solve: Solve,
    tolerance: float,
    relative: float = 0.0,
    max_steps: int = 25,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise J(.; w_e) near theta (E, P) by theta <- theta - t C^-1 grad J: (theta, ||grad J|| (E,), steps (E,)).

    C is one fixed curvature, given as its `solve`; t = 1, halved for a network whose gradient norm did not fall. Where
    all networks start from one theta, the first gradients are one product with the per-example gradients, since grad J
    is linear in the weights. A network stops at `tolerance`, or, if that is less, at `relative` times its first
    gradient norm (but not below a ten-thousandth of `tolerance`); after `max_steps`; or when t falls below 1e-3.

    Args:
        objective: J.
        theta: starts (E, P); weights (E, n); dataset (E,) as in `Objective`.
        weights: of the examples, one row a network.
        dataset: each network's data set.
        solve: C^-1 for rows (K, P); slightly damped, since a common shift of the output biases changes no loss.
        tolerance: of ||grad J||, absolute.
        relative: a removal of small effect needs a smaller gradient than one of large effect; 0 leaves it at that.
        max_steps: at most so many gradients of each network.
    """
    dataset = objective.members(theta, dataset)
    theta, gradient = theta.clone(), _first_gradients(objective, theta, weights, dataset)
    norm = gradient.norm(dim=1)
    goal = torch.full_like(norm, tolerance)
    if relative > 0:
        goal = (relative * norm).clamp(min=1e-4 * tolerance, max=tolerance)
    length, steps = torch.ones_like(norm), torch.zeros(len(norm), dtype=torch.long, device=norm.device)
    with progress(total=len(theta), desc="left-out optima") as bar:
        for _ in range(max_steps):
            rows = ((norm > goal) & (length > 1e-3)).nonzero()[:, 0]
            bar.update(len(theta) - len(rows) - bar.n)
            if not len(rows):
                break
            trial = theta[rows] - length[rows, None] * solve(gradient[rows])
            new = objective.gradient(trial, weights[rows], dataset[rows])
            better = new.norm(dim=1) < norm[rows]
            kept = rows[better]
            theta[kept], gradient[kept], norm[kept] = trial[better], new[better], new[better].norm(dim=1)
            length[rows[~better]] /= 2
            steps[rows] += 1
    return theta, norm, steps


def _first_gradients(objective: Objective, theta: Tensor, weights: Tensor, dataset: Tensor) -> Tensor:
    if hasattr(objective, "start_gradients"):
        return objective.start_gradients(theta, weights, dataset)
    same = bool((theta == theta[:1]).all()) and bool((dataset == dataset[:1]).all())
    if not same or len(theta) < 3:
        return objective.gradient(theta, weights, dataset)
    return weights @ objective.example_gradients(theta[:1], dataset[:1])[0] + objective.decay * theta
