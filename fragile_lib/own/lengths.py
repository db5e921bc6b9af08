"""The derivative of far longer retraining than can be made without each example, beside the same estimates."""

from __future__ import annotations

from collections.abc import Iterable

from fragile_lib.choices import Chosen, Estimate, Points
from fragile_lib.minimise import Schedule
from fragile_lib.network import Network
from fragile_lib.rows import compare
from fragile_lib.truths import leave_out


def over_lengths(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    estimates: list[dict[str, Estimate]],
    schedules: Iterable[Schedule],
) -> list[dict]:
    """Rows (`compare`) of the estimates beside the truth `unrolled_minibatch` of each schedule.

    The truth is called by its number of steps, such as `unrolled_minibatch_30000`. It costs one Hessian-vector product
    a step and test point for all removals together, where retraining itself would take the steps for each removal.

    Args:
        networks: with a trainer, and their test points, choices and estimates, one entry each.
        points: the examined test points.
        chosen: what is left out.
        estimates: as for `compare`.
        schedules: how networks go on; their numbers of steps differ.
    """
    rows: list[dict] = []
    for schedule in schedules:
        how = {"unrolled_minibatch": {"schedule": schedule}}
        found = leave_out(networks, points, chosen, how, options=how)
        named = [{f"unrolled_minibatch_{schedule.steps}": truths["unrolled_minibatch"]} for truths in found]
        rows += compare(networks, points, chosen, estimates, named)
    return rows
