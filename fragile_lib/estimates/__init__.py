"""Influence estimates by name: ESTIMATORS[name](network, points, removals, **options) -> Estimate.

A name means one algorithm, whatever the data set; `params/methods.yaml` documents each with its formula and options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np

from fragile_lib.choices import Chosen, Estimate, Points, Removals
from fragile_lib.estimates.by_name import SOLVERS, budgets, by_solver, tracin, trak
from fragile_lib.estimates.influence import influence, parameter_change
from fragile_lib.estimates.rescaled import newton_step, rescaled, second_order
from fragile_lib.estimates.source import source
from fragile_lib.estimates.streamed import estimate_streamed
from fragile_lib.network import Network
from fragile_lib.objectives.photographs import PhotoObjective
from fragile_lib.tools.checks import check_name
from fragile_lib.tools.errors import bad_input

ESTIMATORS: dict[str, Callable[..., Estimate]] = {
    **{name: partial(by_solver, name) for name in SOLVERS},
    "tracin": tracin,
    "trak": trak,
    "source": source,
    "second_order": second_order,
    "rescaled": rescaled,
    "newton_step": newton_step,
}


def estimate(
    networks: list[Network],
    points: list[Points],
    names: Iterable[str],
    chosen: list[Chosen] | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
    into: list[dict[str, Estimate]] | None = None,
) -> list[dict[str, Estimate]]:
    """By each estimator, for each network: changes (k, m) of what is left out on its test points.

    Args:
        networks: with their test points, one entry each.
        points: of each network.
        names: of `ESTIMATORS`.
        chosen: what is left out of each network; None for all training examples, one by one.
        options: of each estimator, by its name.
        into: estimates to which these are added, in new dictionaries.

    Raises:
        InputError: an unknown name, or a bad option.
    """
    names, options = list(names), options or {}
    for name in names:
        check_name("estimator", name, tuple(ESTIMATORS))
    found = [dict(by) for by in into] if into is not None else [{} for _ in networks]
    for at, (network, some) in enumerate(zip(networks, points, strict=True)):
        if isinstance(network.train, PhotoObjective):
            found[at] |= estimate_streamed(network, some, names, options)
            continue
        removals = None if chosen is None else chosen[at].all()
        found[at] |= {name: _one(network, some, name, removals, options.get(name, {})) for name in names}
    return found


def _one(
    network: Network, points: Points, name: str, removals: Removals | None, options: Mapping[str, object]
) -> Estimate:
    if network.usable:
        return ESTIMATORS[name](network, points, removals, **options)
    n = network.train.n
    removals = Removals.single(range(n), n) if removals is None else removals
    nothing = np.full((len(removals), len(points)), np.nan)
    return Estimate(removals, nothing, seconds=0.0, status=network.certificate["status"])


def selecting(estimates: Mapping[str, Estimate], wanted: str) -> str:
    """The estimator whose scores choose what is left out: `wanted`, or the first finite one where it diverged.

    Examples for which no estimator has a score (a broken image) do not count.

    Raises:
        InputError: `wanted` is none of them, or none is finite.
    """
    check_name("select_by", wanted, tuple(estimates))
    scored = np.any([np.isfinite(e.changes).all(axis=1) for e in estimates.values()], axis=0)
    for name in (wanted, *estimates):
        if scored.any() and np.isfinite(estimates[name].changes[scored]).all():
            return name
    raise bad_input("estimators", list(estimates), "all diverged; add cg_ggn, or raise the damping")


__all__ = ["ESTIMATORS", "budgets", "estimate", "influence", "parameter_change", "selecting"]
