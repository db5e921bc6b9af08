"""Influence estimates of one large network by name, for all training images at once and without their gradients."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.deep.network import Network
from fragile_lib.examination import Estimated, Points
from fragile_lib.solvers import BlockCGSolver, IdentitySolver, Solver
from fragile_lib.solvers.batch_lissa import BatchLissaSolver
from fragile_lib.solvers.kfac_modules import ModuleEkfacSolver
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.measure import Peak

ESTIMATORS = ("lissa", "cg_ggn", "ekfac", "identity")
TOLERANCE = 1e-2  # relative residual at which conjugate gradients may stop


def make_solver(
    network: Network,
    name: str,
    lissa_depth: int = 100,
    lissa_batch: int = 10,
    lissa_scale: float = 0.0,
    cg_iterations: int = 10,
) -> Solver:
    """A solver on the network's damped curvature, by its name in the results table.

    lissa: stochastic recursion on the Hessian, as in the paper; a scale of 0 has it find one. cg_ggn: block conjugate
    gradients on the Gauss-Newton matrix, all test points together. ekfac: Kronecker factors with corrected eigenvalues.
    identity: v / damping, no curvature at all.

    Raises:
        InputError: an unknown name, or a bad option of the solver.
    """
    common = network.train, network.theta, network.damping
    if name == "lissa":
        options = {"depth": lissa_depth, "batch": lissa_batch, "scale": lissa_scale or None}
        return BatchLissaSolver(*common, seed=network.seed, **options)
    if name == "cg_ggn":
        options = {"tolerance": TOLERANCE, "max_iterations": cg_iterations}
        return BlockCGSolver(*common, gauss_newton=True, **options)
    if name == "ekfac":
        return ModuleEkfacSolver(*common, module=network.model.module(network.theta), seed=network.seed)
    if name == "identity":
        return IdentitySolver(*common)
    raise bad_input("estimator", name, f"choose one of {', '.join(ESTIMATORS)}")


def estimate_by(network: Network, points: Points, name: str, **options: float) -> Estimated:
    """Loss changes (n, m) of leaving out each training image by `name`, with residual, cost and outcome."""
    began = perf_counter()
    with Peak() as peak:
        gradients = test_gradients(network, points)
        solution = make_solver(network, name, **options)(gradients)
        changes = leave_one_out_changes(network, solution.x)
    seconds = perf_counter() - began
    residual, products = float(solution.residual.max()), solution.products / len(gradients)
    return Estimated(changes, residual, seconds, products, peak.mb, solution.status)


def test_gradients(network: Network, points: Points) -> Tensor:
    """grad f (m, P) of the losses of the examined test points."""
    some = network.on_points(points)
    one_hot = torch.eye(some.n, device=some.device)
    return some.gradient(network.theta.expand(some.n, -1), one_hot)


def leave_one_out_changes(network: Network, x: Tensor) -> np.ndarray:
    """Loss changes (n, m): x_j . grad loss_i / n for each left-out image i, x_j (m, P) the solved test gradients.

    One forward-mode pass over the training images for all test points.
    """
    slopes = network.train.directional(network.theta[None], x[None])[0]
    return slopes.T.double().cpu().numpy() / network.train.n


def selecting(estimates: dict[str, Estimated], wanted: str) -> str:
    """The estimator whose scores choose the training points: `wanted`, or the first finite one where it diverged.

    Raises:
        InputError: none is finite.
    """
    for name in (wanted, *estimates):
        if name in estimates and np.isfinite(estimates[name].changes).all():
            return name
    raise bad_input("estimators", list(estimates), "all diverged; add cg_ggn, or raise the damping")
