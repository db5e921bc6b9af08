"""Networks of some thousand parameters: one network towards its optimum, then its left-out optima.

`newton.newton` factors a new Hessian at every step of every network. Here that is too dear, and not needed: the
optimum is approached by L-BFGS in coordinates in which the Gauss-Newton matrix is the identity (`approach`; from there
`quasi_newton.minimum` goes on), and the left-out optima, which lie close to it, by steps with the one Hessian of the
optimum (`chord`: Newton's method with a fixed matrix). Each left-out optimum is certified by its own gradient on all
examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.tools.checks import check_number
from fragile_lib.tools.numerics import flushed_denormals
from fragile_lib.tools.progress import progress

Solve = Callable[[Tensor], Tensor]  # (K, P) -> (K, P), the inverse curvature times each row

SHIFT = 1e-2  # mu as a share of the GGN's mean diagonal: enough for directions that only the rest of H curves
MEMORY = 60  # pairs that L-BFGS keeps
SHORTEST = 0.25  # of chord steps: shorter ones lower a gradient too slowly to be worth their passes


@dataclass(frozen=True)
class Optimum:
    """One network theta (P,) with ||grad J||, and how many gradients its finishing took."""

    theta: Tensor
    grad_norm: float
    passes: int


def approach(
    objective: Objective, theta: Tensor, tolerance: float, rounds: int, steps: int = 60, dataset: int = 0
) -> Optimum:
    """Lower J from theta (P,) by L-BFGS in coordinates whitened by the Gauss-Newton matrix, renewed every round.

    With G + mu I = L L^T and theta = theta_0 + L^-T u, the curvature in u is the identity but for what G leaves out. In
    the floating type of the objective's data, float32 as a rule. It may end at a saddle.

    Args:
        objective: J.
        theta: the start.
        tolerance: of ||grad J||, at which it ends early.
        rounds: Gauss-Newton matrices at most.
        steps: L-BFGS iterations a round.
        dataset: which of the objective's data sets.

    Raises:
        InputError: a tolerance that is not above 0.
    """
    check_number("tolerance", tolerance, above=0)
    place = torch.tensor([dataset])
    passes, norm = 0, float(objective.gradient(theta[None].to(objective.data.x), objective.uniform(1), place).norm())
    with progress(total=rounds * steps, desc="towards the optimum") as bar:
        for _ in range(rounds):
            if not norm > tolerance:  # reached, or not finite
                break
            whitened = _Whitened(objective, theta, place, tolerance)
            theta, norm = whitened.minimised(steps)
            passes += whitened.passes
            bar.update(steps)
            bar.set_postfix(gradient=f"{norm:.1e}")
    return Optimum(theta, norm, passes)


class _Whitened:
    """J as a function of u, theta = theta_0 + L^-T u, for scipy; counts passes.

    Coordinates are in float64, J in the type of the objective's data.
    """

    def __init__(self, objective: Objective, theta: Tensor, place: Tensor, tolerance: float) -> None:
        self.objective, self.start, self.place, self.tolerance = objective, theta.double(), place, tolerance
        self.weights, self.passes, self.norm = objective.uniform(1), 0, np.inf
        kind = theta[None].to(objective.data.x)
        matrix = objective.matrices(kind, self.weights, place, gauss_newton=True)[0].double()
        matrix.diagonal().add_(SHIFT * matrix.diagonal().mean())
        self.factor = torch.linalg.cholesky(matrix)

    def minimised(self, steps: int) -> tuple[Tensor, float]:
        """(theta (P,), ||grad J||) after one run of `scipy.optimize.minimize`."""
        options = {"maxiter": steps, "maxcor": MEMORY, "ftol": 0, "gtol": 0}
        start = np.zeros(len(self.start))
        with flushed_denormals():
            found = minimize(self.value, start, jac=True, callback=self.stop, method="L-BFGS-B", options=options)
        theta = self.start + self.unwhitened(found.x)
        return theta, float(self.objective.gradient(self.kind(theta), self.weights, self.place).norm())

    def kind(self, theta: Tensor) -> Tensor:
        """A stack of one network in the objective's floating type."""
        return theta[None].to(self.objective.data.x)

    def value(self, u: np.ndarray) -> tuple[float, np.ndarray]:
        theta = self.kind(self.start + self.unwhitened(u))
        value, gradient = self.objective.value_and_gradient(theta, self.weights, self.place)
        self.passes += 1
        self.norm = float(gradient.norm())
        return float(value), self.whitened(gradient[0])

    def unwhitened(self, u: np.ndarray) -> Tensor:
        column = torch.from_numpy(u).to(self.start)[:, None]
        return torch.linalg.solve_triangular(self.factor.mT, column, upper=True)[:, 0]

    def whitened(self, gradient: Tensor) -> np.ndarray:
        column = gradient.double()[:, None]
        return torch.linalg.solve_triangular(self.factor, column, upper=False)[:, 0].cpu().numpy()

    def stop(self, _: np.ndarray) -> None:
        if self.norm <= self.tolerance:
            raise StopIteration


def chord(
    objective: Objective,
    theta: Tensor,
    weights: Tensor,
    dataset: Tensor | None = None,
    *,
    solve: Solve,
    tolerance: float | Tensor,
    first: Tensor | None = None,
    max_steps: int = 25,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise J(.; w_e) near theta (E, P) by theta <- theta - t C^-1 grad J: (theta, ||grad J|| (E,), steps (E,)).

    C is one fixed curvature, given as its `solve`; t = 1, halved for a network whose gradient norm did not fall. A
    network stops at its tolerance, after `max_steps`, or when t falls below `SHORTEST`.

    Args:
        objective: J.
        theta: starts (E, P); weights (E, n); dataset (E,) as in `Objective`.
        weights: of the examples, one row a network.
        dataset: each network's data set.
        solve: C^-1 for rows (K, P); slightly damped, since a common shift of the output biases changes no loss.
        tolerance: of ||grad J||, one for all or one a network (E,).
        first: the gradients (E, P) at the starts where they are known: for networks that differ only in their weights
            they are one product with the per-example gradients.
        max_steps: at most so many gradients of each network.
    """
    dataset = objective.members(theta, dataset)
    theta, gradient = theta.clone(), objective.gradient(theta, weights, dataset) if first is None else first.clone()
    norm = gradient.norm(dim=1)
    goal = torch.zeros_like(norm) + tolerance
    length, steps = torch.ones_like(norm), torch.zeros(len(norm), dtype=torch.long, device=norm.device)
    with progress(total=len(theta), desc="left-out optima") as bar:
        for _ in range(max_steps):
            rows = ((norm > goal) & (length >= SHORTEST)).nonzero()[:, 0]
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
