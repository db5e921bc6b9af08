"""The proximal Bregman response: what a damped Gauss-Newton influence estimate is the derivative of.

Bae, Ng, Lo, Ghassemi and Grosse (2022, "If influence functions are the answer, then what is the question?", section
4) replace the objective near a network theta_s, trained to whatever point, by

    Q(theta; d) = 1/n sum_i D(z_i(theta), z_i(theta_s)) + sum_i d_i loss_i(theta)
                  + 1/2 sum_p (decay_p + damping) (theta - theta_s)_p^2,

D the Bregman divergence of the loss in the outputs z: for cross entropy the Kullback-Leibler divergence of the softmax
at theta from that at theta_s. Q(.; 0) has its minimum at theta_s, and its Hessian there is the damped Gauss-Newton
matrix, so the estimate -(G + decay + damping)^-1 sum_i d_i grad loss_i is its response to first order, whether or not
training had ended.

`TiltedObjective` is the same idea for the Hessian: J itself, made stationary at theta_s by a linear term.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.tools.checks import check_number


class Around:
    """J(theta; w) + sum_i <c_i, z_i(theta)> - t . (theta - theta_s) + damping/2 ||theta - theta_s||^2 near theta_s.

    In the form that `near_optimum.chord` and `quasi_newton.left_out_minimum` take. Those below say what c, constants of
    the outputs (n, classes), and the tilt t (P,) are.

    Args:
        objective: J, whose losses, data and decay are taken.
        theta: theta_s (P,).
        damping: of the proximity, at least 0.
        dataset: which of the objective's data sets.

    Raises:
        InputError: a damping that is negative or not finite.
    """

    tilt: Tensor
    constant: Tensor | None = None

    def __init__(self, objective: Objective, theta: Tensor, damping: float, dataset: int = 0) -> None:
        check_number("damping", damping)
        self.objective, self.start, self.damping = objective, theta, damping
        self.n, self.uniform, self.members = objective.n, objective.uniform, objective.members
        self._place = torch.tensor([dataset])

    def gradient(self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None) -> Tensor:
        """The gradient at theta_e for weights w_e: (E, P); on the own data set, whatever `dataset` says."""
        found = self.objective.gradient(theta, weights, self._place.expand(len(theta)), self.constant)
        return self._near(found, theta)

    def value_and_gradient(
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The value (E,), but for a constant, and the gradient (E, P), as `gradient`."""
        places, moved = self._place.expand(len(theta)), theta - self.start
        value, found = self.objective.value_and_gradient(theta, weights, places, self.constant)
        added = 0.5 * self.damping * (moved * moved).sum(1) - moved @ self.tilt
        return value + added.to(value), self._near(found, theta)

    def _near(self, gradient: Tensor, theta: Tensor) -> Tensor:
        return gradient - self.tilt + self.damping * (theta - self.start)


class ProximalObjective(Around):
    """Q around one network, with weights 1/n + d; arguments as in `Around`.

    grad Q = sum_i w_i grad loss_i - sum_i J_i^T r_i / n + (decay + damping)(theta - theta_s), r_i the derivative of
    loss_i in its logits at theta_s: the second sum turns the part 1/n of each loss into its Bregman divergence. The
    tilt decay theta_s turns J's L2 term into one of theta - theta_s.
    """

    def __init__(self, objective: Objective, theta: Tensor, damping: float, dataset: int = 0) -> None:
        super().__init__(objective, theta, damping, dataset)
        self.tilt = objective.decay * theta
        self.constant = -objective.logit_gradients(theta, dataset) / objective.n


class TiltedObjective(Around):
    """J made stationary at theta_s by a linear term, with the damping as a proximal term:

        T(theta; w) = J(theta; w) - grad J(theta_s; 1/n) . (theta - theta_s) + damping/2 ||theta - theta_s||^2.

    Its Hessian at theta_s is the damped Hessian of J, so that -(H + damping)^-1 sum_i d_i grad loss_i is the response
    of its minimum to first order, whether or not training had ended; at an optimum without damping T is J. What an
    estimate lacks against T is due to its linearisation alone. T has a minimum near theta_s only where H + damping is
    positive. Arguments as in `Around`.
    """

    def __init__(self, objective: Objective, theta: Tensor, damping: float, dataset: int = 0) -> None:
        super().__init__(objective, theta, damping, dataset)
        self.tilt = objective.gradient(theta[None], objective.uniform(1), self._place)[0]
