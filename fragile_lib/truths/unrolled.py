"""The derivative of a retraining as a truth: linear, and without the noise of batches.

    change of f = grad f(theta_T) . d theta_T / d w,    theta_T the control's network at the end of the retraining.
"""

from __future__ import annotations

from time import perf_counter

import torch

from fragile_lib.choices import Chosen, Points, Truth
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.minimise.unrolled import Memory, unrolled_descent as descent, unrolled_minibatch as minibatch
from fragile_lib.network import Network


def unrolled_descent(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    repeat: bool = False,
    *,
    steps: int,
    learning_rate: float,
    momentum: float,
) -> list[Truth]:
    """Of `warm_descent`, with the same options. There is nothing that a repetition could vary."""
    found = []
    for network, some, one in zip(networks, points, chosen, strict=True):
        began, removals = perf_counter(), one.all()
        changes = removals.changes()[None]
        theta, tangents = descent(
            network.train, network.theta[None], changes, steps, learning_rate, momentum, network.dataset
        )
        found.append(_truth(network, some, one, theta[0], tangents[0], perf_counter() - began))
    return found


def unrolled_minibatch(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    repeat: bool = False,
    *,
    schedule: Schedule | None = None,
    fraction: float | None = None,
) -> list[Truth]:
    """Of `warm_minibatch`, with the same options: the same batches, the same optimiser with the same memory."""
    found = []
    for network, some, one in zip(networks, points, chosen, strict=True):
        began = perf_counter()
        how = schedule or network.schedule.continued(network.schedule.share(fraction), network.seed)
        memory = Memory(*network.trainer.memory) if network.trainer.memory else None
        members = [list(group) for group in one.all().members]
        theta, tangents = minibatch(network.train, network.theta, members, how, memory)
        found.append(_truth(network, some, one, theta, tangents, perf_counter() - began))
    return found


def _truth(
    network: Network, points: Points, chosen: Chosen, theta: torch.Tensor, tangents: torch.Tensor, seconds: float
) -> Truth:
    test = network.on_points(points)
    one_hot = torch.eye(test.n, dtype=theta.dtype, device=theta.device)
    slopes = test.gradient(theta.expand(test.n, -1), one_hot, torch.zeros(test.n, dtype=torch.long))
    control = (test.losses(theta[None]) - test.losses(network.theta[None]))[0].cpu().numpy()
    changes = (tangents @ slopes.T).double().cpu().numpy()
    return Truth(chosen.all(), changes, control, norms=tangents.norm(dim=1).cpu().numpy(), seconds=seconds)
