"""The derivative of the retrained test losses in the examples' weights, through the very steps of the retraining.

What leaving out does to first order in the share that is left out, 1/n of the weight: linear in the removals and
without noise of its own. Beside the retraining itself it tells what finite removals add; beside an estimate, what
curvature, damping, solver and length do.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.choices import Chosen, Points, Truth, mean_of
from fragile_lib.minimise.schedule import Schedule, State
from fragile_lib.minimise.unrolled import unrolled
from fragile_lib.network import Network
from fragile_lib.objectives.base import Objective
from fragile_lib.truths.retrained import orders
from fragile_lib.truths.stacked import check_one_stack, displaced


def unrolled_minibatch(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    repeats: int = 1,
    *,
    schedule: Schedule | None = None,
    fraction: float | None = None,
) -> list[Truth]:
    """The derivative of `warm_minibatch`: the same steps, memory and orders of batches, and the mean over these.

    A removal's change is the sum over its members of -1/n times the derivative in their weights; what the control does
    is not in it. One backward pass for each order serves all removals.

    Args:
        networks: each with a trainer.
        points: the examined test points of each.
        chosen: what is left out.
        repeats: R orders of batches.
        schedule, fraction: as in `warm_minibatch`.
    """
    found = []
    for network, some, one in zip(networks, points, chosen, strict=True):
        alone = network.alone()
        parts = []
        for order in orders(network, repeats, schedule, fraction):
            truth = _derived(alone.train, network.trainer.state(order), order, [alone], [some], [one])[0]
            never = order.first_use(alone.train.n, [np.array(group) for group in truth.removals.members])
            parts.append(replace(truth, unseen=(never == order.steps).astype(float)))
        found.append(mean_of(parts))
    return found


def unrolled_descent(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    repeats: int = 1,
    *,
    steps: int,
    learning_rate: float,
    momentum: float,
) -> list[Truth]:
    """The derivative of `warm_descent`, for all networks of a stack together, from the same displaced starts."""
    check_one_stack(networks)
    train = networks[0].train
    schedule = Schedule(steps, train.n, learning_rate, drops=(), optimiser="sgd", momentum=momentum)
    found = []
    for r in range(repeats):
        start = torch.stack([displaced(network, r) for network in networks])
        found.append(_derived(train, State.at(start), schedule, networks, points, chosen))
    return [mean_of(repetitions) for repetitions in zip(*found, strict=True)]


def _derived(
    train: Objective,
    state: State,
    schedule: Schedule,
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
) -> list[Truth]:
    began = perf_counter()
    theta = state.theta.to(train.data.x)
    state = State(theta, state.first.to(theta), state.second.to(theta), state.count)
    places = torch.tensor([network.place for network in networks])

    def gradients(reached: Tensor) -> Tensor:
        """(E, m, P) of the losses of each network's test points."""
        ends = (replace(network, theta=one) for network, one in zip(networks, reached, strict=True))
        return torch.stack([network.test_gradients(some) for network, some in zip(ends, points, strict=True)])

    end, slopes = unrolled(train, state, schedule, gradients, places)
    seconds, found = (perf_counter() - began) / len(networks), []
    for e, (network, some, one) in enumerate(zip(networks, points, chosen, strict=True)):
        removals, each, test = one.all(), slopes[e].T.double().cpu().numpy(), network.on_points(some)
        changes = removals.sums(-each / train.n)
        changes = np.where(np.isfinite(changes) & network.usable, changes, np.nan)
        control = (test.losses(end[e : e + 1]) - test.losses(theta[e : e + 1]))[0].cpu().numpy()
        images = schedule.steps * schedule.batch
        found.append(Truth(removals, changes, control, seconds=seconds, images=images))
    return found
