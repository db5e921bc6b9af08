"""The proximal Bregman response: what a damped Gauss-Newton influence estimate is the derivative of.

Bae, Ng, Lo, Ghassemi and Grosse (2022, "If influence functions are the answer, then what is the question?", section
4) replace the objective near a network theta_s, trained to whatever point, by

    Q(theta; d) = 1/n sum_i D(z_i(theta), z_i(theta_s)) + sum_i d_i loss_i(theta)
                  + 1/2 sum_p (decay_p + damping) (theta - theta_s)_p^2,

D the Bregman divergence of the loss in the logits z: for cross entropy the Kullback-Leibler divergence of the softmax
at theta from that at theta_s. Q(.; 0) has its minimum at theta_s, and its Hessian there is the damped Gauss-Newton
matrix, so the estimate -(G + decay + damping)^-1 sum_i d_i grad loss_i is its response to first order, whether or not
training had ended.

`TiltedObjective` is the same idea for the Hessian: J itself, made stationary at theta_s by a linear term.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.tools.errors import bad_input


class ProximalObjective:
    """Q around one network, in the form that `near_optimum.chord` and `quasi_newton.left_out_minimum` take.

    Weights are 1/n + d.

    grad Q = sum_i w_i grad loss_i - sum_i J_i^T r_i / n + (decay + damping)(theta - theta_s), r_i the derivative of
    loss_i in its logits at theta_s: the second sum turns the part 1/n of each loss into its Bregman divergence.

    Args:
        objective: J, whose losses, data and decay are taken.
        theta: theta_s (P,).
        damping: of the proximity, at least 0.
        dataset: which of the objective's data sets.

    Raises:
        InputError: a damping that is negative or not finite.
    """

    def __init__(self, objective: Objective, theta: Tensor, damping: float, dataset: int = 0) -> None:
        _check_damping(damping)
        self.objective, self.start, self.proximity = objective, theta, objective.decay + damping
        self.n, self.uniform, self.members = objective.n, objective.uniform, objective.members
        self._place = torch.tensor([dataset])
        self._constant = -objective.logit_gradients(theta, dataset) / objective.n

    def gradient(self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None) -> Tensor:
        """grad Q(theta_e; w_e - 1/n): (E, P); always on Q's own data set, whatever `dataset` says."""
        found = self.objective.gradient_with(theta, weights, self._constant, self._place.expand(len(theta)))
        return self._near(found, theta)

    def value_and_gradient(
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Q but for a constant (E,), and its gradient (E, P), as `gradient`."""
        places = self._place.expand(len(theta))
        value, found = self.objective.value_and_gradient_with(theta, weights, self._constant, places)
        moved, decay = theta - self.start, self.objective.decay
        value = value + (0.5 * (moved * moved) @ self.proximity - 0.5 * (theta * theta) @ decay).to(value)
        return value, self._near(found, theta)

    def _near(self, gradient: Tensor, theta: Tensor) -> Tensor:
        """The gradient with the proximity in the place of the decay."""
        return gradient - self.objective.decay * theta + self.proximity * (theta - self.start)


class TiltedObjective:
    """J made stationary at theta_s by a linear term, with the damping as a proximal term:

        T(theta; w) = J(theta; w) - grad J(theta_s; 1/n) . (theta - theta_s) + damping/2 ||theta - theta_s||^2.

    Its Hessian at theta_s is the damped Hessian of J, so that -(H + damping)^-1 sum_i d_i grad loss_i is the response
    of its minimum to first order, whether or not training had ended; at an optimum without damping T is J. What an
    estimate lacks against T is due to its linearisation alone.

    Args:
        objective: J.
        theta: theta_s (P,).
        damping: at least 0; T has a minimum near theta_s only where H + damping is positive.
        dataset: which of the objective's data sets.

    Raises:
        InputError: a damping that is negative or not finite.
    """

    def __init__(self, objective: Objective, theta: Tensor, damping: float, dataset: int = 0) -> None:
        _check_damping(damping)
        self.objective, self.start, self.damping = objective, theta, damping
        self.n, self.uniform, self.members = objective.n, objective.uniform, objective.members
        self._place = torch.tensor([dataset])
        self.slope = objective.gradient(theta[None], objective.uniform(1), self._place)[0]

    def gradient(self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None) -> Tensor:
        """grad T(theta_e; w_e): (E, P); always on T's own data set, whatever `dataset` says."""
        found = self.objective.gradient(theta, weights, self._place.expand(len(theta)))
        return self._near(found, theta)

    def value_and_gradient(
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """T (E,) and its gradient (E, P), as `gradient`."""
        value, found = self.objective.value_and_gradient(theta, weights, self._place.expand(len(theta)))
        moved = theta - self.start
        value = value + (0.5 * self.damping * (moved * moved).sum(1) - moved @ self.slope).to(value)
        return value, self._near(found, theta)

    def _near(self, gradient: Tensor, theta: Tensor) -> Tensor:
        """The gradient with the linear and the proximal term."""
        return gradient - self.slope + self.damping * (theta - self.start)


def _check_damping(damping: float) -> None:
    if not (np.isfinite(damping) and damping >= 0):
        raise bad_input("damping", damping, "give a finite number of at least 0")
