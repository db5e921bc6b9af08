"""The unrolled derivative: how losses after some training depend on the examples' weights, through its very steps.

Training is a map of theta, of the optimiser's memory and of the weights w, one step after the other. Its derivative in
w is what leaving out does to first order, at whatever point training has come to: no curvature is inverted, no minimum
is assumed, and nothing is noisy. By reverse mode (Ilyas and Engstrom 2025, arXiv 2504.16430) all n examples cost one
Hessian-vector product a step and test point:

    abar_t = (d step_t / d state_t)^T abar_(t+1),     d f / d w_i = sum_t (n / |B_t|) gbar_t . grad loss_i(theta_t)

over the batches B_t that hold i; gbar_t is the adjoint of the batch's gradient. Leaving an example out changes its
weight by -1/n.

Letters: E stack size, P parameters, n examples, m test points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from torch import Tensor

from fragile_lib.minimise.schedule import Schedule, State
from fragile_lib.minimise.stack import RMS, advance
from fragile_lib.objectives.base import Objective
from fragile_lib.tools.numerics import flushed_denormals
from fragile_lib.tools.progress import progress

Adjoint = tuple[Tensor, Tensor, Tensor]  # of theta and of the two parts of the optimiser's memory, each (E, m, P)


@dataclass(frozen=True)
class Kept:
    """One step as it was made: theta before it (E, P), its gradient, and the optimiser's memory after it."""

    theta: Tensor
    gradient: Tensor
    first: Tensor
    second: Tensor


def unrolled(
    objective: Objective,
    state: State,
    schedule: Schedule,
    ends: Callable[[Tensor], Tensor],
    dataset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(theta (E, P) after the schedule's steps, derivatives (E, m, n) of m numbers of it in the example weights).

    The steps are those of `stack.train` under the default weights. Of the states only every isqrt(steps)-th is held;
    the others are computed again on the way back, so that memory grows with the root of the steps.

    Args:
        objective: J on the training data.
        state: to go on from.
        schedule: steps, batches, optimiser.
        ends: gradients (E, m, P), in theta (E, P) as training leaves it, of the numbers that are asked for.
        dataset: (E,) which of the objective's data sets each member sees.

    Raises:
        InputError: a batch larger than the data.
    """
    batches, part = list(schedule.rows(objective.n)), objective.part
    if schedule.batch == objective.n:  # every batch is everything, whose order does not matter
        batches, whole = [np.arange(objective.n)] * schedule.steps, objective.on(objective.data)
        part = lambda _: whole  # noqa: E731
    every = max(1, isqrt(len(batches)))
    walk = _Walk(objective, part, schedule, state.count, dataset)
    starts, now = [], state
    with flushed_denormals(), progress(total=2 * len(batches), desc="unrolled derivative") as bar:
        for first in range(0, len(batches), every):
            starts.append(now)
            now = walk.forward(now, first, batches[first : first + every])[0]
            bar.update(len(batches[first : first + every]))
        end = ends(now.theta)
        adjoint = end, torch.zeros_like(end), torch.zeros_like(end)
        slopes = torch.zeros(*end.shape[:2], objective.n, dtype=end.dtype, device=end.device)
        for place in reversed(range(len(starts))):
            first = place * every
            some = batches[first : first + every]
            kept = walk.forward(starts[place], first, some)[1]
            for step in reversed(range(len(some))):
                adjoint = walk.back(kept[step], first + step, some[step], adjoint, slopes)
                bar.update()
    return now.theta, slopes


@dataclass(frozen=True)
class _Walk:
    """Steps forwards and backwards; `count`: the steps that the optimiser had made before.

    part: the losses of a batch, by its rows, without the L2 term.
    """

    objective: Objective
    part: Callable[[np.ndarray], Objective]
    schedule: Schedule
    count: int
    dataset: Tensor | None

    def forward(self, state: State, first: int, batches: list[np.ndarray]) -> tuple[State, list[Kept]]:
        """The state after the steps from the one of number `first` on, and each of these steps."""
        theta, memory, kept = state.theta, (state.first, state.second), []
        for step, rows in enumerate(batches, first):
            some = self.part(rows)
            gradient = some.gradient(theta, some.uniform(len(theta)), self.dataset) + self.objective.decay * theta
            before, theta = theta, theta.clone()
            memory = tuple(part.clone() for part in memory)
            advance(self.schedule, theta, gradient, *memory, step, self.count + step + 1)
            kept.append(Kept(before, gradient, *memory))
        return State(theta, *memory, self.count), kept

    def back(self, at: Kept, step: int, rows: np.ndarray, adjoint: Adjoint, slopes: Tensor) -> Adjoint:
        """The adjoint before a step, from that after it; what the batch's examples add goes into `slopes`."""
        pulled, (theta, first, second) = pulled_back(self.schedule, step, self.count + step + 1, at, adjoint)
        some, v = self.part(rows), pulled.contiguous()
        each = some.directional(at.theta, v, self.dataset)
        slopes[:, :, rows] += (self.objective.n / len(rows)) * each.to(slopes)
        curved = some.products(at.theta, v, some.uniform(len(at.theta)), self.dataset)
        return theta + curved + self.objective.decay * v, first, second


def pulled_back(schedule: Schedule, step: int, count: int, at: Kept, adjoint: Adjoint) -> tuple[Tensor, Adjoint]:
    """Adjoints of a step's gradient (E, m, P), and of theta and the memory before it but for what the gradient adds.

    The derivative of `stack.advance`, transposed. A second moment of zero, of a parameter that no example has moved,
    counts as constant.
    """
    theta, first, second = adjoint
    rate, gradient = schedule.rate(step), at.gradient[:, None]
    if schedule.optimiser == "sgd":
        if schedule.nesterov:
            first = first - rate * schedule.momentum * theta
            return first - rate * theta, (theta, schedule.momentum * first, second)
        first = first - rate * theta
        return first, (theta, schedule.momentum * first, second)
    if schedule.optimiser == "rmsprop":
        root = at.second[:, None].sqrt()
        below = root + schedule.epsilon
        second = second + _or_zero(rate * theta * (gradient / below) / below, 2 * root)
        return 2 * (1 - RMS) * gradient * second - rate * theta / below, (theta, first, RMS * second)
    beta, beta_square = schedule.betas
    mean, square = 1 - beta**count, 1 - beta_square**count
    root = (at.second[:, None] / square).sqrt()
    below = root + schedule.epsilon
    second = second + _or_zero(rate / mean * theta * (at.first[:, None] / below) / below, 2 * square * root)
    first = first - rate / mean * theta / below
    pulled = (1 - beta) * first + 2 * (1 - beta_square) * gradient * second
    return pulled, (theta, beta * first, beta_square * second)


def _or_zero(above: Tensor, below: Tensor) -> Tensor:
    """above / below, zero where below is."""
    return torch.where(below > 0, above / torch.where(below > 0, below, 1), 0)
