"""Removing groups of training examples from a prepared network: first- and second-order estimates beside the truth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fragile_lib.examination import Estimated, Points, rows_of
from fragile_lib.groups import GROUP_CHOICES, choose_groups, group_removals, second_order_influence
from fragile_lib.prepared import Prepared
from fragile_lib.solvers import Solution
from fragile_lib.truths import groups_left_out


def group_rows(
    prepared: Prepared, points: Points, scores: np.ndarray, count: int, size: int, repeat: bool, shared: dict
) -> list[dict]:
    """Rows for groups left out: ground truth `group`, estimators `exact_ggn` (first order) and `second_order`.

    Of each kind of `groups.GROUP_CHOICES`, `count` groups of `size` examples; groups of largest influence are drawn for
    the test point of highest loss, and all groups are evaluated on all test points. The truth is the proximal Bregman
    response (`truths.Minima`), whose curvature under the changed weights is that of the second-order estimate: the
    damped Gauss-Newton matrix less the group's own Hessian. Where `repeat` says so it is found again from a displaced
    start.

    Args:
        prepared: the network.
        points: the examined test points (m,).
        scores: Gauss-Newton estimates (n, m) for single examples.
        count: groups of each kind.
        size: examples in each group.
        repeat: measure the truth's own noise.
        shared: what all rows carry.
    """
    rng, labels = np.random.default_rng([prepared.seed, 11]), prepared.train.data.y[0]
    rows = []
    for choice in GROUP_CHOICES:
        groups = choose_groups(choice, count, size, labels, torch.from_numpy(scores[:, 0]), rng)
        removals = group_removals(groups, prepared.train.n)
        estimates = {
            "exact_ggn": -prepared.train.n * removals.numpy() @ scores,
            "second_order": _second_order(prepared, points, removals),
        }
        truth = groups_left_out(prepared, points, "pbrf", removals, repeat)
        everything = {f"{choice}_groups": [np.arange(count)] * len(points.index)}
        estimates = {name: Estimated(changes) for name, changes in estimates.items()}
        rows += rows_of(points, everything, estimates, {"group": truth}, shared)
    return rows


def _second_order(prepared: Prepared, points: Points, removals: Tensor) -> np.ndarray:
    """(k, m) by the dense matrix as it is: with this many right-hand sides a refinement would cost minutes."""

    def solve(v: Tensor) -> Solution:
        return Solution(prepared.gauss_newton.shifted(v, prepared.damping), v.new_zeros(len(v)), 0.0, "ok")

    test, places = prepared.on_points(points), torch.arange(len(points.index))
    return second_order_influence(prepared.train, test, prepared.theta, removals, places, solve).cpu().numpy()
