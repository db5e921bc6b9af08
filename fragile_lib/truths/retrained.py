"""Retraining by minibatches without some examples: going on from the network, or anew.

Each repetition has batches in another order, and a control of its own on the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fragile_lib.choices import Chosen, Points, Removals, Truth
from fragile_lib.minimise.schedule import Continued, Schedule
from fragile_lib.network import Network
from fragile_lib.tools.checks import check_count

AGAIN = 1_000  # added to a seed where a truth is repeated with other batches


def warm_minibatch(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    repeat: bool = False,
    *,
    schedule: Schedule | None = None,
    fraction: float | None = None,
    repeats: int = 1,
) -> list[Truth]:
    """The paper's retraining: going on from the network by minibatches, the removal masked, beside a control.

    Every removal that any choice asks for is left out once, for all test points. Whether the optimiser goes on with its
    memory is the network's trainer's: a torch.nn.Module's does, a stack's begins without one.

    Args:
        networks: each with a trainer.
        points: the examined test points of each.
        chosen: what is left out.
        repeat: what is asked for at the first test point is left out again with batches in another order.
        schedule: how to go on, or
        fraction: the share of its own training steps that each network goes on for, at the rate training ended with.
        repeats: R orders of batches for everything, each with a control of its own; the truth is then their mean.
    """
    found = []
    for network, some, one in zip(networks, points, chosen, strict=True):
        how = schedule or network.schedule.continued(network.schedule.share(fraction), network.seed)
        found.append(
            _warm(network, some, one, how, repeat) if repeats == 1 else _mean(network, some, one, how, repeats)
        )
    return found


def _warm(network: Network, points: Points, chosen: Chosen, schedule: Schedule, repeat: bool) -> Truth:
    removals = chosen.all()
    found = _gone_on(network, points, removals, schedule)
    changes, control = _finite(found.removed - found.before), found.control - found.before
    truth = Truth(
        removals, changes, control, seconds=found.seconds, unseen=found.unseen.astype(float), images=found.images
    )
    if not repeat:
        return truth
    again = chosen.first()
    other = _gone_on(network, points, again, replace(schedule, seed=schedule.seed + AGAIN))
    repeats = np.full((2, *changes.shape), np.nan)  # at the first point: others share but a few removals with it
    repeats[0, :, 0] = changes[:, 0]
    repeats[1, removals.places(again), 0] = _finite(other.removed - other.before)[:, 0]
    return replace(truth, repeats=repeats, repeat_controls=np.stack([control, other.control - other.before]))


def _mean(network: Network, points: Points, chosen: Chosen, schedule: Schedule, repeats: int) -> Truth:
    """The mean over `repeats` orders of batches, of everything at every test point."""
    check_count("repeats", repeats)
    removals = chosen.all()
    orders = [replace(schedule, seed=schedule.seed + AGAIN * r) for r in range(repeats)]
    found = [_gone_on(network, points, removals, order) for order in orders]
    changes = np.stack([_finite(one.removed - one.before) for one in found])
    controls = np.stack([one.control - one.before for one in found])
    return Truth(
        removals,
        changes.mean(axis=0),
        controls.mean(axis=0),
        changes,
        controls,
        averaged=True,
        seconds=sum(one.seconds for one in found),
        images=sum(one.images for one in found),
        unseen=np.mean([one.unseen for one in found], axis=0),
    )


def _gone_on(network: Network, points: Points, removals: Removals, schedule: Schedule) -> Continued:
    return network.trainer.go_on(schedule, [np.array(group) for group in removals.members], network.on_points(points))


def scratch_starts(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    repeat: bool = True,
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
    repeat: bool = True,
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
    removals, repeats, seconds, test = chosen.all(), [], 0.0, network.on_points(points)
    members = [np.array(group) for group in removals.members]
    for schedule, start in schedules:
        found = network.trainer.from_scratch(schedule, members, test, start)
        repeats.append(found.removed - found.control)
        seconds += found.seconds
    none, averaged = np.zeros(len(points)), len(repeats) > 1
    return Truth(removals, np.mean(repeats, axis=0), none, np.stack(repeats), averaged=averaged, seconds=seconds)


def _finite(changes: np.ndarray) -> np.ndarray:
    """nan for a network that diverged, at all test points."""
    return np.where(np.isfinite(changes).all(axis=1, keepdims=True), changes, np.nan)
