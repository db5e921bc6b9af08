"""Retraining of a stack of small networks, one for each seed, with all that each leaves out, as one computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.choices import Chosen, Points, Truth, mean_of
from fragile_lib.minimise.descent import descend
from fragile_lib.network import Network
from fragile_lib.tools.errors import bad_input

# (theta (E, P), weights (E, n), dataset (E,)) -> theta (E, P), or (theta, ||grad J|| (E,), steps (E,))
Minimise = Callable[..., Tensor | tuple[Tensor, Tensor, Tensor]]
Start = Callable[[Network, int], Tensor]  # a network and the number of a repetition -> where it starts (P,)

# Displacement from which a truth is repeated, a share of ||theta||: more than most images at the 30th percentile cause.
DISPLACED = 3e-4
AGAIN = 1_000  # added to a seed where a truth is repeated with other batches, or trained from another start


def warm_descent(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    repeats: int = 1,
    *,
    steps: int,
    learning_rate: float,
    momentum: float,
) -> list[Truth]:
    """The paper's retraining on Iris: further full-batch gradient descent from the network, the example masked.

    Without batches, repetitions differ by their starts (`stacked`).
    """
    fixed = {"steps": steps, "learning_rate": learning_rate, "momentum": momentum, "label": "leave-one-out"}
    return stacked(networks, points, chosen, partial(descend, networks[0].train, **fixed), repeats)


def scratch_descent(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    repeats: int = 1,
    *,
    seeds: Sequence[int],
    steps: int,
    learning_rate: float,
    momentum: float,
) -> list[Truth]:
    """Trained anew by full-batch descent without each removal, from starts of `seeds`, each against its own control.

    The truth is the mean over the seeds; the seeds are its repetitions.

    Raises:
        InputError: a network whose model has no starts of its own.
    """
    if not hasattr(networks[0].train.model, "init"):
        raise bad_input("scratch_descent", type(networks[0].train.model).__name__, "its starts are not known")

    def start(network: Network, repetition: int) -> Tensor:
        return network.train.model.init(AGAIN + seeds[repetition]).to(network.theta)

    fixed = {"steps": steps, "learning_rate": learning_rate, "momentum": momentum, "label": "from scratch"}
    minimise = partial(descend, networks[0].train, **fixed)
    found = stacked(networks, points, chosen, minimise, len(seeds), start=start)
    return [replace(truth.minus_control(), control=np.zeros_like(truth.control)) for truth in found]


def stacked(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    minimise: Minimise,
    repeats: int = 1,
    tolerance: float | None = None,
    start: Start | None = None,
) -> list[Truth]:
    """Minimise J(.; 1/n + d) from each network for everything it leaves out, all in one stack.

    The first member of each network's part is its control, d = 0: it tells what mere continuation does. A left-out
    network whose gradient norm stays above the tolerance, or is not finite, counts as not there (nan). The truth is the
    mean of `repeats` repetitions: the first from the network itself, the others from starts displaced at random, or all
    from where `start` says, each with a control, and a loss before, of its own.

    Raises:
        InputError: networks that do not share their objective.
    """
    check_one_stack(networks)
    starts = [[(start or displaced)(network, r) for network in networks] for r in range(repeats)]
    found = [_once(networks, points, chosen, minimise, torch.stack(some), tolerance) for some in starts]
    return [mean_of(repetitions) for repetitions in zip(*found, strict=True)]


def check_one_stack(networks: list[Network]) -> None:
    """Raise InputError for networks that do not share their objective."""
    if any(network.train is not networks[0].train for network in networks):
        raise bad_input("networks", [network.seed for network in networks], "give networks of one stack")


def displaced(network: Network, repetition: int) -> Tensor:
    """theta of a repetition's start: the network's own for the first, else moved by `DISPLACED` of its length."""
    if repetition == 0:
        return network.theta
    rng = np.random.default_rng([network.seed, 6 + repetition])
    direction = torch.from_numpy(rng.standard_normal(len(network.theta))).to(network.theta)
    return network.theta + DISPLACED * network.theta.norm() / direction.norm() * direction


def _once(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    minimise: Minimise,
    start: Tensor,
    tolerance: float | None,
) -> list[Truth]:
    began, train = perf_counter(), networks[0].train
    union = [one.all() if network.usable else one.all().none() for network, one in zip(networks, chosen, strict=True)]
    sizes = [1 + len(removals) for removals in union]
    place = torch.repeat_interleave(torch.arange(len(networks)), torch.tensor(sizes)).to(start.device)
    dataset = torch.tensor([network.place for network in networks], device=start.device)[place]
    changes = torch.cat([torch.cat([torch.zeros(1, train.n), r.changes()]) for r in union]).to(start)
    weights = train.uniform(len(place)) + changes
    found = minimise(start[place], weights, dataset=dataset)
    theta = found[0] if isinstance(found, tuple) else found
    norms = train.gradient(theta, weights, dataset).norm(dim=1)
    kept = torch.isfinite(norms) if tolerance is None else norms <= tolerance
    seconds = (perf_counter() - began) / len(networks)
    parts = zip(networks, points, chosen, start, theta.split(sizes), kept.split(sizes), strict=True)
    return [_truth(*part, seconds) for part in parts]


def _truth(
    network: Network, points: Points, chosen: Chosen, start: Tensor, theta: Tensor, kept: Tensor, seconds: float
) -> Truth:
    removals, test, kept = chosen.all(), network.on_points(points), kept[1:].cpu().numpy()
    lost = (test.losses(theta) - test.losses(start[None])).cpu().numpy()
    if not network.usable:  # nothing was left out; it keeps its rows, under its own outcome
        return Truth(removals, np.full((len(removals), len(points)), np.nan), lost[0], seconds=seconds)
    norms = [(theta[1:] - base).norm(dim=1).cpu().numpy() for base in (start, theta[0])]
    return Truth(
        removals,
        np.where(kept[:, None], lost[1:], np.nan),
        lost[0],
        norms=np.where(kept, norms[0], np.nan),
        norms_from_control=np.where(kept, norms[1], np.nan),
        seconds=seconds,
    )
