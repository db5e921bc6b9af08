"""Estimates on photographs: a solve for each estimator, kept where a folder is given, then one pass for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from fragile_lib.choices import NAN, Estimate, Points, Removals
from fragile_lib.estimates.by_name import SOLVERS
from fragile_lib.estimates.influence import Direction, direction, from_slopes
from fragile_lib.network import Network
from fragile_lib.tools.checkpoint import Checkpoint, digest_of
from fragile_lib.tools.checks import check_name
from fragile_lib.tools.errors import bad_input


def estimate_streamed(
    network: Network, points: Points, names: Iterable[str], options: Mapping[str, Mapping[str, object]]
) -> dict[str, Estimate]:
    """Loss changes (n, m) of leaving out each photograph, nan for broken ones and for an estimator that diverged.

    All finite directions go through the set in one pass, each photograph decoded once. Seconds are those of the solve,
    and its share of the pass.

    Raises:
        InputError: an estimator without a solver, a folder of another run, or all diverged.
    """
    directions = {name: direction_of(network, points, name, **options.get(name, {})) for name in names}
    usable = [d.x for d in directions.values() if d.finite]
    if not usable:
        raise bad_input("estimators", list(directions), "all diverged; add cg_ggn, or raise the damping")
    began = perf_counter()
    slopes = network.slopes(torch.cat(usable)).numpy()
    seconds, m, at, found = perf_counter() - began, len(points), 0, {}
    everything = Removals.single(range(len(slopes)), len(slopes))
    for name, d in directions.items():
        if d.finite:
            part, at = slopes[:, at : at + m], at + m
            found[name] = from_slopes(network, d, part, everything, seconds * m / slopes.shape[1])
        else:
            nothing = np.full((len(slopes), m), np.nan)
            found[name] = Estimate(everything, nothing, NAN, d.seconds, d.products, d.memory_mb, d.status)
    return found


def direction_of(network: Network, points: Points, name: str, **options: object) -> Direction:
    """(curvature + damping)^-1 grad f for each test point by one estimator, kept in the folder of the network's scores.

    Raises:
        InputError: an estimator without a solver, a bad option of it, or a folder of another run.
    """
    check_name("estimator", name, tuple(SOLVERS))
    folder = Path(network.train.folder).parent / f"directions-{name}"
    kept = Checkpoint(folder, _facts(network, points, options))
    if kept.has("solution"):
        part = kept.load("solution")
        x = torch.from_numpy(part["x"]).to(network.theta)
        return Direction(x, *(float(n) for n in part["numbers"]), status=str(part["status"]))
    found = direction(network, points, lambda: SOLVERS[name](network, **options))
    numbers = np.array([found.residual, found.seconds, found.products, found.memory_mb])
    kept.save("solution", x=found.x.cpu().numpy(), numbers=numbers, status=np.array(found.status))
    return found


def _facts(network: Network, points: Points, options: Mapping[str, object]) -> dict:
    j, test = network.curvature, network.on_points(points)
    return {
        "weights": digest_of(network.theta),
        "curvature images": digest_of(j.data.x, j.data.y),
        "test images": digest_of(test.data.x, test.data.y),
        "damping": network.damping,
        "weight_decay": j.weight_decay,
        "seed": network.seed,
        "options": dict(options),
    }
