"""The influence of a group to second order in the weights: the group's own curvature counts.

With H_U = sum_U hess loss_i / n and g_U = sum_U grad loss_i / n,

    delta = H^-1 g_U + H^-1 H_U H^-1 g_U

(Basu, You and Feizi 2020, "On second-order group influence functions", equation 8, without the renormalisation of the
weights that are left: here they stay 1/n; the third derivative of the loss is neglected as there).
"""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from fragile_lib.choices import Estimate, Points, Removals
from fragile_lib.network import Network


def second_order(network: Network, points: Points, removals: Removals) -> Estimate:
    """Loss changes (k, m): grad f^T (delta_1 - G^-1 H_d delta_1), delta_1 = -G^-1 sum_i d_i grad loss_i.

    G is the damped Gauss-Newton matrix as it is, without refinement (with this many right-hand sides that would cost
    minutes), and H_d = sum_i d_i hess loss_i.
    """
    began, n = perf_counter(), network.train.n

    def solve(v: Tensor) -> Tensor:
        return network.gauss_newton.shifted(v, network.damping)

    changes = removals.changes().to(network.theta)
    first = -solve(changes @ network.train.example_gradients(network.theta[None], network.dataset)[0])
    curved = [_own_product(network, group, v) / -n for group, v in zip(removals.members, first, strict=True)]
    found = (first - solve(torch.stack(curved))) @ network.test_gradients(points).T
    seconds = perf_counter() - began
    return Estimate(removals, found.double().cpu().numpy(), seconds=seconds, additive=False)


def _own_product(network: Network, group: tuple[int, ...], v: Tensor) -> Tensor:
    """sum_U hess loss_i times v (P,), over the group's own examples."""
    some = network.members(group)
    weights = torch.ones(1, some.n, dtype=network.theta.dtype, device=network.theta.device)
    return some.products(network.theta[None], v[None, None], weights)[0, 0]
