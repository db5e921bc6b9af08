"""Ground truths of one large network: what happens when training images, or groups of them, are really left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fragile_lib.deep.network import Network
from fragile_lib.examination import Estimated, Points, Retrained, rows_of, spread_over, union
from fragile_lib.groups import GROUP_CHOICES, choose_groups
from fragile_lib.minimise.modules import Continued, Schedule, from_scratch_without, go_on_without, losses_of

AGAIN = 1_000  # added to a seed where a truth is repeated with other batches


def choose_at_random(n: int, count: int, seed: int) -> np.ndarray:
    """(count,) sorted indices drawn from all training images: the control of choosing by influence."""
    return np.sort(np.random.default_rng([seed, 13]).choice(n, count, replace=False))


def warm(
    network: Network, points: Points, schedule: Schedule, chosen: dict[str, list[np.ndarray]], repeat: bool
) -> tuple[dict[str, Retrained], Continued]:
    """`loo_warm`, the paper's retraining from the trained network, and `loo_warm_minus_control`; and what it cost.

    Every image that any choice asks for is left out once, for all test points. repeat: what the first choice asks for
    at the first test point is left out again with batches in another order, with a control of its own.
    """
    indices = union(i for by_point in chosen.values() for i in by_point)
    n, before = network.train.n, _before(network, points)
    found = _continued(network, points, schedule, indices[:, None])
    truth = Retrained(
        spread_over(indices, found.removed - before, n), found.seconds, found.control - before, left_out=indices
    )
    less = replace(truth, changes=truth.changes - truth.control)
    if repeat:
        again = next(iter(chosen.values()))[0]
        other = _continued(network, points, replace(schedule, seed=schedule.seed + AGAIN), again[:, None])
        second = spread_over(again, other.removed - before, n)
        truth = replace(truth, repeats=np.stack([truth.changes, second]))
        less = replace(less, repeats=np.stack([less.changes, second - (other.control - before)]))
    return {"loo_warm": truth, "loo_warm_minus_control": less}, found


def scratch(
    network: Network, points: Points, module: nn.Module, seeds: Sequence[int], indices: np.ndarray
) -> Retrained:
    """`loo_scratch`: trained anew without each image, for each seed of batches against a control of the same.

    The start is that of the network itself. The truth is the mean over the seeds; the seeds are its repetitions.
    """
    repeats, seconds = [], 0.0
    for seed in seeds:
        schedule = replace(network.schedule, seed=seed)
        data, some = network.train_images, _points_of(network, points)
        found = from_scratch_without(module, data, some, schedule, network.weight_decay, list(indices[:, None]))
        repeats.append(spread_over(indices, found.removed - found.control, network.train.n))
        seconds += found.seconds
    return Retrained(np.mean(repeats, axis=0), seconds, np.zeros(len(points.index)), indices, np.stack(repeats))


def scratch_rows(
    network: Network,
    points: Points,
    module: nn.Module,
    schedule: Schedule,
    seeds: Sequence[int],
    indices: np.ndarray,
    estimates: dict[str, Estimated],
    shared: dict,
) -> list[dict]:
    """Rows for the same images left out by warm start and from scratch, training points `scratch`.

    Estimates beside both truths, and the warm start, as the estimator `loo_warm`, beside training from scratch: how far
    the two truths agree with each other.
    """
    chosen = {"scratch": [indices] * len(points.index)}
    going_on = warm(network, points, schedule, chosen, repeat=False)[0]["loo_warm"]
    anew = scratch(network, points, module, seeds, indices)
    rows = rows_of(points, chosen, estimates, {"loo_warm": going_on, "loo_scratch": anew}, shared)
    as_estimate = {"loo_warm": Estimated(going_on.changes)}
    return rows + rows_of(points, chosen, as_estimate, {"loo_scratch": anew}, shared)


def longer_rows(
    network: Network,
    points: Points,
    fractions: Sequence[float],
    indices: list[np.ndarray],
    estimates: dict[str, Estimated],
    shared: dict,
) -> list[dict]:
    """Rows for the same images left out for longer: ground truth `loo_warm_F`, F the share of the training steps.

    Only the length of going on differs from `loo_warm`: network, rate, order of images and estimates are the same. The
    first test point's images are left out twice, as there. Of the test points, those of highest loss alone.

    Args:
        indices: the training points of largest |influence| on each test point.
    """
    places = [place for place, choice in enumerate(points.choice) if choice == "max_loss"]
    points = Points(points.index[places], [points.choice[place] for place in places])
    estimates = {name: replace(e, changes=e.changes[:, places]) for name, e in estimates.items()}
    chosen, rows = {"top_influence": [indices[place] for place in places]}, []
    for fraction in fractions:
        schedule = network.schedule.continued(fraction, network.seed)
        truth = warm(network, points, schedule, chosen, repeat=True)[0]["loo_warm"]
        rows += rows_of(points, chosen, estimates, {f"loo_warm_{fraction:g}": truth}, shared)
    return rows


def group_rows(
    network: Network,
    points: Points,
    schedule: Schedule,
    estimates: dict[str, Estimated],
    scores: np.ndarray,
    count: int,
    size: int,
    shared: dict,
) -> list[dict]:
    """Rows for groups left out, ground truth `group` (warm start), beside the sums of their members' estimates.

    Of each kind of `groups.GROUP_CHOICES`, `count` groups of `size` images, those of largest influence drawn by scores
    (n, m) for the first test point; all are evaluated on all test points.
    """
    rng, labels = np.random.default_rng([network.seed, 11]), network.train.data.y[0].cpu()
    before, rows = _before(network, points), []
    for choice in GROUP_CHOICES:
        groups = choose_groups(choice, count, size, labels, torch.from_numpy(scores[:, 0]), rng).numpy()
        found = _continued(network, points, schedule, groups)
        truth = {"group": Retrained(found.removed - before, found.seconds, found.control - before)}
        summed = {name: replace(e, changes=e.changes[groups].sum(axis=1)) for name, e in estimates.items()}
        chosen = {f"{choice}_groups": [np.arange(count)] * len(points.index)}
        rows += rows_of(points, chosen, summed, truth, shared)
    return rows


def _continued(network: Network, points: Points, schedule: Schedule, removals: np.ndarray) -> Continued:
    data, some = network.train_images, _points_of(network, points)
    return go_on_without(network.trained, data, some, schedule, network.weight_decay, list(removals))


def _points_of(network: Network, points: Points) -> tuple[Tensor, Tensor]:
    return network.test.data.x[0, points.index], network.test.data.y[0, points.index]


def _before(network: Network, points: Points) -> np.ndarray:
    return losses_of(network.trained.module, *_points_of(network, points))
