"""Leverage has a known cure: the curvature that an example takes with it when it is left out.

Influence inverts the curvature A = C + damping of all examples. Leaving out example i leaves A - C_i / n, C_i its own
curvature. With the Gauss-Newton part C_i = B_i^T B_i, B_i = L_i^T J_i of C - 1 rows (Lambda_i = L_i L_i^T the curvature
of the loss in the logits), and grad loss_i = B_i^T c_i, Woodbury's formula gives the change of a test loss f

    grad f^T (A - B_i^T B_i / n)^-1 grad loss_i / n = u_i^T (I - K_i / n)^-1 c_i / n,    u_i = B_i A^-1 grad f,
                                                                                        K_i = B_i A^-1 B_i^T:

`rescaled` (rescaled influence functions: Rubinstein and Hopkins 2025, arXiv 2506.06656) sums it over the members of a
removal. `newton_step` is one Newton step of the left-out objective: the removal as a whole, with its own Hessian where
A is dense. Both need a solve for each left-out example, so that they are asked for what is really left out.

`second_order` is the influence of a group to second order in the weights: the group's own curvature counts. With
H_U = sum_U hess loss_i / n and g_U = sum_U grad loss_i / n,

    delta = H^-1 g_U + H^-1 H_U H^-1 g_U

(Basu, You and Feizi 2020, "On second-order group influence functions", equation 8, without the renormalisation of the
weights that are left: here they stay 1/n; the third derivative of the loss is neglected as there).
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.choices import Estimate, Points, Removals
from fragile_lib.estimates.by_name import SOLVERS
from fragile_lib.network import Network
from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.dense import ExactSolver
from fragile_lib.solvers.gram import factors_of
from fragile_lib.tools.measure import Peak

AT_ONCE = 16  # examples whose factors are solved for together


def rescaled(
    network: Network, points: Points, removals: Removals, solver: str = "exact", **options: object
) -> Estimate:
    """Rescaled influence (k, m): the sum over a removal's members of their steps, each with its own curvature removed.

    Args:
        network: the network.
        points: the examined test points (m,).
        removals: what is left out.
        solver: whose A^-1 is taken, one of `by_name.SOLVERS`; options are its own.

    `indefinite`: where A - C_i / n is not positive definite for a member, so that its step leads to no minimum.
    """
    began = perf_counter()
    with Peak() as peak:
        solve = _Counted(SOLVERS[solver](network, **options))
        gradients = network.test_gradients(points)
        examples = Removals.single(sorted({i for group in removals.members for i in group}), removals.n)
        steps = [_steps(network, solve, gradients, part) for part in np.array_split(examples.indices, _parts(examples))]
    changes, bad = np.full((removals.n, len(points)), np.nan), np.zeros(removals.n, int)
    changes[examples.indices] = np.concatenate([found for found, _ in steps])
    bad[examples.indices] = ~np.concatenate([positive for _, positive in steps])
    told = solve.residual, perf_counter() - began, solve.products, peak.mb, solve.status
    return Estimate(removals, removals.sums(changes), *told, indefinite=removals.sums(bad) > 0)


def newton_step(
    network: Network, points: Points, removals: Removals, solver: str = "exact", **options: object
) -> Estimate:
    """One Newton step of the left-out objective from the network: changes (k, m) of whole removals.

        grad f^T (A + sum_i d_i C_i)^-1 (-sum_i d_i grad loss_i)

    With a direct solver C_i is the example's Hessian and the matrix is factored for each removal; otherwise it is the
    Gauss-Newton part, by Woodbury's formula over all of a removal's factors. Arguments and outcomes as for `rescaled`.
    """
    began = perf_counter()
    with Peak() as peak:
        made, gradients = SOLVERS[solver](network, **options), network.test_gradients(points)
        solve = _Counted(made)
        if isinstance(made, ExactSolver):
            matrix = (made.vectors * made.spectrum) @ made.vectors.T
            matrix.diagonal().add_(made.damping)
            steps = [_dense_step(network, matrix, gradients, group, made.gauss_newton) for group in removals.members]
        else:
            steps = [_whole_step(network, solve, gradients, group) for group in removals.members]
    changes = np.array([found for found, _ in steps]).reshape(len(removals), len(points))
    bad = np.array([not positive for _, positive in steps], dtype=bool)
    told = solve.residual, perf_counter() - began, solve.products, peak.mb, solve.status
    return Estimate(removals, changes, *told, indefinite=bad, additive=False)


def second_order(network: Network, points: Points, removals: Removals) -> Estimate:
    """Loss changes (k, m): grad f^T (delta_1 - G^-1 H_d delta_1), delta_1 = -G^-1 sum_i d_i grad loss_i.

    G is the damped Gauss-Newton matrix as it is, without refinement (with this many right-hand sides that would cost
    minutes), and H_d = sum_i d_i hess loss_i.
    """
    began, n = perf_counter(), network.train.n

    def solve(v: Tensor) -> Tensor:
        return network.gauss_newton.shifted(v, network.damping)

    def own_product(group: tuple[int, ...], v: Tensor) -> Tensor:
        some, weights = own_losses(network, group)
        return some.products(network.theta[None], v[None, None], weights)[0, 0]

    changes = removals.changes().to(network.theta)
    first = -solve(changes @ network.train.example_gradients(network.theta[None], network.dataset)[0])
    curved = [own_product(group, v) / -n for group, v in zip(removals.members, first, strict=True)]
    found = (first - solve(torch.stack(curved))) @ network.test_gradients(points).T
    seconds = perf_counter() - began
    return Estimate(removals, found.double().cpu().numpy(), seconds=seconds, additive=False)


class _Counted:
    """A solver's solutions, with the worst residual and outcome of all, and the products in all."""

    def __init__(self, solver: object) -> None:
        self.solver, self.residual, self.products, self.status = solver, float("nan"), 0.0, "ok"

    def __call__(self, v: Tensor) -> Tensor:
        found = self.solver(v)
        self.residual = float(np.nanmax([self.residual, float(found.residual.max())]))
        self.products += found.products
        self.status = found.status if self.status == "ok" else self.status
        return found.x


def _parts(examples: Removals) -> int:
    return max(1, -(-len(examples) // AT_ONCE))


def _steps(network: Network, solve: _Counted, gradients: Tensor, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(changes (k, m) of leaving out each of some examples, whether what is left is positive definite (k,))."""
    b, c = factors_of(network.train, network.theta, torch.from_numpy(rows), network.place)
    solved = solve(b.flatten(0, 1)).view(b.shape)
    left = torch.eye(b.shape[1]).to(b) - b @ solved.mT / network.train.n
    step = torch.linalg.solve(left, c[..., None])[..., 0]
    changes = torch.einsum("krp,mp,kr->km", solved, gradients, step) / network.train.n
    positive = (torch.linalg.eigvalsh((left + left.mT) / 2) > 0).all(dim=1)
    return changes.double().cpu().numpy(), positive.cpu().numpy()


def _whole_step(
    network: Network, solve: _Counted, gradients: Tensor, group: tuple[int, ...]
) -> tuple[np.ndarray, bool]:
    """The same for one removal as a whole, its members' factors stacked."""
    found = factors_of(network.train, network.theta, torch.tensor(group), network.place)
    b, c = (part.flatten(0, 1) for part in found)
    solved = solve(b)
    left = torch.eye(len(b)).to(b) - b @ solved.T / network.train.n
    changes = gradients @ solved.T @ torch.linalg.solve(left, c) / network.train.n
    positive = bool((torch.linalg.eigvalsh((left + left.T) / 2) > 0).all())
    return changes.double().cpu().numpy(), positive


def _dense_step(
    network: Network, matrix: Tensor, gradients: Tensor, group: tuple[int, ...], gauss_newton: bool
) -> tuple[np.ndarray, bool]:
    """The same with the removal's own Hessian, or its Gauss-Newton part, from the dense damped matrix (P, P)."""
    (some, weights), n = own_losses(network, group), network.train.n
    left = matrix - some.matrices(network.theta[None], weights, gauss_newton=gauss_newton)[0] / n
    pull = some.gradient(network.theta[None], weights)[0]
    factor, info = torch.linalg.cholesky_ex(left)
    step = torch.cholesky_solve(pull[:, None], factor) if int(info) == 0 else torch.linalg.solve(left, pull[:, None])
    return (gradients @ step[:, 0] / n).double().cpu().numpy(), int(info) == 0


def own_losses(network: Network, group: tuple[int, ...]) -> tuple[Objective, Tensor]:
    """The losses of a removal's members, without L2, and weights (1, size) of one for each."""
    some = network.members(group)
    return some, torch.ones(1, some.n, dtype=network.theta.dtype, device=network.theta.device)
