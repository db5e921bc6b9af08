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

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp
from torch.nn.functional import one_hot

from fragile_lib.minimise.near_optimum import value_and_gradient
from fragile_lib.objectives.base import Objective
from fragile_lib.tools.errors import bad_input


class ProximalObjective:
    """Q around one network, in the form that `retraining.retrain` and `optimum.chord` take: weights are 1/n + d.

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
        self._constant = -logit_gradients(objective, theta, dataset) / objective.n

    def gradient(self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None) -> Tensor:
        """grad Q(theta_e; w_e - 1/n): (E, P); always on Q's own data set, whatever `dataset` says."""
        found = gradient_with(self.objective, theta, weights, self._constant, int(self._place))
        return self._near(found, theta)

    def value_and_gradient(
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Q but for a constant (E,), and its gradient (E, P), as `gradient`."""
        value, found = value_and_gradient_with(self.objective, theta, weights, self._constant, int(self._place))
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
        value, found = value_and_gradient(self.objective, theta, weights, self._place.expand(len(theta)))
        moved = theta - self.start
        value = value + (0.5 * self.damping * (moved * moved).sum(1) - moved @ self.slope).to(value)
        return value, self._near(found, theta)

    def _near(self, gradient: Tensor, theta: Tensor) -> Tensor:
        """The gradient with the linear and the proximal term."""
        return gradient - self.slope + self.damping * (theta - self.start)


def _check_damping(damping: float) -> None:
    if not (np.isfinite(damping) and damping >= 0):
        raise bad_input("damping", damping, "give a finite number of at least 0")


def logit_gradients(objective: Objective, theta: Tensor, dataset: int = 0) -> Tensor:
    """(n, C) the derivative of each loss in its logits at theta (P,); softmax minus label for cross entropy."""
    if hasattr(objective, "logit_gradients"):
        return objective.logit_gradients(theta, dataset)
    p = objective.logits(theta[None], torch.tensor([dataset]))[0].softmax(1)
    return p - one_hot(objective.data.y[dataset], objective.model.n_classes)


def gradient_with(objective: Objective, theta: Tensor, weights: Tensor, cotangent: Tensor, dataset: int = 0) -> Tensor:
    """(E, P) grad J(theta_e; w_e) + sum_i J_ei^T c_i for c (n, C); in one pass where the objective can do that."""
    places = torch.full((len(theta),), dataset)
    if _takes_cotangents(objective):
        return objective.gradient(theta, weights, places, cotangent)
    pulled = torch.stack([pull_back(objective, t, cotangent, dataset) for t in theta])
    return objective.gradient(theta, weights, places) + pulled


def value_and_gradient_with(
    objective: Objective, theta: Tensor, weights: Tensor, cotangent: Tensor, dataset: int = 0
) -> tuple[Tensor, Tensor]:
    """J(theta_e; w_e) + sum_i <c_i, logits_i> (E,) for c (n, C), and its gradient, as `gradient_with`."""
    places = torch.full((len(theta),), dataset)
    if _takes_cotangents(objective):
        return objective.value_and_gradient(theta, weights, places, cotangent)
    paired = (cotangent * objective.logits(theta, places)).sum((1, 2))
    gradient = gradient_with(objective, theta, weights, cotangent, dataset)
    return objective.value(theta, weights, places) + paired, gradient


def _takes_cotangents(objective: Objective) -> bool:
    return hasattr(objective, "value_and_gradient")  # `conv_objective.ConvObjective`


def pull_back(objective: Objective, theta: Tensor, cotangent: Tensor, dataset: int = 0) -> Tensor:
    """(P,) sum_i J_i^T c_i, J_i the Jacobian of the logits of example i at theta (P,), for c (n, C)."""
    return vjp(partial(objective.model, x=objective.data.x[dataset]), theta)[1](cotangent)[0]
