"""Retraining by minibatches without some examples: going on from the network, or anew.

Each repetition has batches in another order, and a control of its own on the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np
from torch import nn

from fragile_lib.choices import Chosen, Points, Removals, Truth, mean_of
from fragile_lib.minimise.modules import losses_of
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.models.module import _check as check_constant
from fragile_lib.network import Network
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.progress import progress
from fragile_lib.truths.stacked import AGAIN


def warm_minibatch(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    repeats: int = 1,
    *,
    schedule: Schedule | None = None,
    fraction: float | None = None,
) -> list[Truth]:
    """The paper's retraining: going on from the network by minibatches, the removal masked, beside a control.

    Every removal that any choice asks for is left out once for each order of the batches, for all test points. Whether
    the optimiser goes on with its memory is the network's trainer's: a torch.nn.Module's does, a stack's begins without
    one.

    Args:
        networks: each with a trainer.
        points: the examined test points of each.
        chosen: what is left out.
        repeats: R orders of batches, each with a control of its own; the truth is their mean.
        schedule: how to go on, or
        fraction: the share of its own training steps that each network goes on for, at the rate training ended with.
    """
    return [
        mean_of([_warm(network, some, one, order) for order in orders(network, repeats, schedule, fraction)])
        for network, some, one in zip(networks, points, chosen, strict=True)
    ]


def orders(network: Network, repeats: int, schedule: Schedule | None, fraction: float | None) -> list[Schedule]:
    """How a network is trained on in each of R repetitions: the same but for the order of the batches.

    Raises:
        InputError: a network without a trainer; neither a schedule nor a fraction of a training that is known.
    """
    if network.trainer is None:
        raise bad_input("trainer", None, "give a network that can be trained on")
    if schedule is None:
        if fraction is None or network.schedule is None:
            raise bad_input("schedule", schedule, "say how to go on, or for what fraction of a network's own schedule")
        schedule = network.schedule.continued(network.schedule.share(fraction), network.seed)
    return [replace(schedule, seed=schedule.seed + AGAIN * r) for r in range(repeats)]


def _warm(network: Network, points: Points, chosen: Chosen, schedule: Schedule) -> Truth:
    removals, test = chosen.all(), network.on_points(points)
    found = network.trainer.go_on(schedule, [np.array(group) for group in removals.members], test)
    return Truth(
        removals,
        _finite(found.removed - found.before),
        found.control - found.before,
        seconds=found.seconds,
        unseen=found.unseen.astype(float),
        images=found.images,
    )


def scratch_starts(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    repeats: int = 1,
    *,
    schedule: Schedule,
    seeds: Sequence[int],
) -> list[Truth]:
    """Trained anew without each removal, from starts of `seeds` and with their batches, each against its own control.

    The truth is the mean over the seeds; the seeds are its repetitions.
    """
    schedules = [(replace(schedule, seed=AGAIN + seed), AGAIN + seed) for seed in seeds]
    return [_anew(*part, schedules) for part in zip(networks, points, chosen, strict=True)]


def scratch_batches(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    repeats: int = 1,
    *,
    seeds: Sequence[int],
) -> list[Truth]:
    """Trained anew without each removal from the network's own start, with batches in the orders of `seeds`.

    The truth is the mean over the seeds, each against a control of the same batches; the seeds are its repetitions.
    """
    return [
        _anew(network, some, one, [(replace(network.schedule, seed=seed), network.seed) for seed in seeds])
        for network, some, one in zip(networks, points, chosen, strict=True)
    ]


def _anew(network: Network, points: Points, chosen: Chosen, schedules: Sequence[tuple[Schedule, int]]) -> Truth:
    removals, test, found = chosen.all(), network.on_points(points), []
    members = [np.array(group) for group in removals.members]
    for schedule, start in schedules:
        one = network.trainer.from_scratch(schedule, members, test, start)
        none = np.zeros(len(points))  # its own control is what it is compared with
        found.append(Truth(removals, one.removed - one.control, none, seconds=one.seconds, images=one.images))
    return mean_of(found)


def scratch_fit(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    repeats: int = 1,
    *,
    fit: Callable[[np.ndarray, int], nn.Module],
) -> list[Truth]:
    """Trained anew without each removal by the user's own `fit`, with seeds 0 .. R - 1, each against its own control.

    Args:
        networks, points, chosen: as above.
        repeats: R; the truth is the mean.
        fit: (rows (n',), seed) -> the module trained on these training examples, in evaluation mode. One seed must mean
            one start and one order of what is left.

    Raises:
        InputError: a `fit` that gives no module, or one with layers that are random or in training mode.
    """
    return [
        mean_of([_fitted(network, some, one.all(), fit, seed) for seed in range(repeats)])
        for network, some, one in zip(networks, points, chosen, strict=True)
    ]


def _fitted(
    network: Network, points: Points, removals: Removals, fit: Callable[[np.ndarray, int], nn.Module], seed: int
) -> Truth:
    began, test, everything = perf_counter(), network.on_points(points), np.arange(network.train.n)

    def measured(group: Sequence[int]) -> np.ndarray:
        module = fit(np.setdiff1d(everything, group), seed)
        if not isinstance(module, nn.Module):
            raise bad_input("fit(rows, seed)", type(module).__name__, "give the trained torch.nn.Module back")
        for name, part in module.named_modules():
            check_constant(name, part)
        return losses_of(module.to(network.theta), test)

    groups = progress([(), *removals.members], desc="training without")
    control, *removed = [measured(group) for group in groups]
    changes = np.array(removed).reshape(len(removals), len(points)) - control
    return Truth(removals, _finite(changes), np.zeros(len(points)), seconds=perf_counter() - began)


def _finite(changes: np.ndarray) -> np.ndarray:
    """nan for a network that diverged, at all test points."""
    return np.where(np.isfinite(changes).all(axis=1, keepdims=True), changes, np.nan)
