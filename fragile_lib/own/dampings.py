"""The same estimators at other dampings, beside the same truths: what damping does to order and to size."""

from __future__ import annotations

from collections.abc import Iterable

from fragile_lib.choices import Chosen, Estimate, Points, Truth
from fragile_lib.estimates import estimate
from fragile_lib.network import Network
from fragile_lib.rows import compare, scatter


def over_dampings(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    names: Iterable[str],
    truths: list[dict[str, Truth]],
    dampings: Iterable[float],
) -> tuple[list[dict], list[dict]]:
    """Rows (`compare`, with `damping`) and points (`scatter`) of estimators at each damping, beside the same truths.

    In the points an estimate is called by its name and damping, such as `exact, damping 0.01`.

    Args:
        networks: with their test points, choices and truths, one entry each.
        points: the examined test points.
        chosen: what is left out, the same at every damping.
        names: of estimators that have the network's damping (`estimates.ESTIMATORS`).
        truths: as for `compare`.
        dampings: added to the curvature's diagonal, above 0.

    Raises:
        InputError: an unknown estimator.
    """
    rows: list[dict] = []
    called: list[dict[str, Estimate]] = [{} for _ in networks]
    for damping in dampings:
        found = estimate([network.with_damping(damping) for network in networks], points, names)
        rows += [row | {"damping": damping} for row in compare(networks, points, chosen, found, truths)]
        for by, of in zip(called, found, strict=True):
            by |= {f"{name}, damping {damping:g}": one for name, one in of.items()}
    return rows, scatter(networks, points, chosen, called, truths)
