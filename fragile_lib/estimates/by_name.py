"""Every estimator whose name stands in the results: which solver or method it is, with which options.

An estimator takes (network, points, removals, **options) and gives an `Estimate`; removals None are all training
examples, one by one. Those that solve for the test gradients (`SOLVERS`) have their scores by `influence`; what they
need of a network is its objectives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from fragile_lib import solvers
from fragile_lib.choices import Estimate, Points, Removals
from fragile_lib.estimates.influence import direction, from_direction, parameter_change
from fragile_lib.network import NUDGE, Network
from fragile_lib.solvers import Solver
from fragile_lib.solvers.gram import GramSolver
from fragile_lib.tools.measure import Peak

RANDOM_BATCH = 100  # examples of a step of `lissa_random`
TRAK_DAMPING = 1e-3
Make = Callable[..., Solver]


def _made(kind: Callable[..., Solver], seeded: bool = False, **fixed: object) -> Make:
    """A solver of the network's damped curvature on its own data set, with its seed where the solver draws."""

    def make(network: Network, **options: object) -> Solver:
        own = {"dataset": network.place} | ({"seed": network.seed} if seeded else {})
        return kind(network.curvature, network.theta, network.damping, **{**own, **fixed, **options})

    return make


def _lissa_random(network: Network, **options: object) -> Solver:
    """Minibatches drawn at random; scale: twice the Hessian's largest eigenvalue plus damping, for their spread."""
    scale = 2 * (float(network.hessian.spectrum[-1]) + network.damping)
    return _made(solvers.lissa_random, seeded=True, scale=scale)(network, **options)


def _lissa_partition(network: Network, scale: float = 0.0, **options: object) -> Solver:
    """Minibatches of a fixed partition; scale: from the largest curvature of any of them, or as given above 0."""
    return _made(solvers.lissa_partition, seeded=True, scale=scale or None)(network, **options)


# The direct ones are the network's own, refined where the matrix is in float32; without damping stands for the damping
# `NUDGE`: what leaving out does to a certified minimum to first order.
SOLVERS: dict[str, Make] = {
    "exact": lambda network: network.hessian,
    "exact_ggn": lambda network: network.gauss_newton,
    "exact_undamped": lambda network: network.hessian.with_damping(NUDGE),
    "cg": _made(solvers.BlockCGSolver),
    "cg_ggn": _made(solvers.BlockCGSolver, gauss_newton=True),
    "gram_ggn": _made(GramSolver),
    "minres": _made(solvers.MinresSolver),
    "lissa_single": _made(solvers.lissa_single, seeded=True),
    "lissa_random": _lissa_random,
    "lissa_partition": _lissa_partition,
    "arnoldi": _made(solvers.ArnoldiSolver),
    "nystroem": _made(solvers.NystroemSolver),
    "kfac": _made(solvers.KfacSolver, seeded=True),
    "ekfac": _made(solvers.EkfacSolver, seeded=True),
    "identity": _made(solvers.IdentitySolver),
    "datainf": _made(solvers.DataInfSolver),
}


def by_solver(
    name: str,
    network: Network,
    points: Points,
    removals: Removals | None = None,
    norms: bool = False,
    **options: object,
) -> Estimate:
    """Influence by the solver of a name; norms: of the parameter change too, which takes a solve for each removal."""
    found = direction(network, points, partial(SOLVERS[name], network, **options))
    estimate = from_direction(network, found, removals)
    if norms:
        moved = parameter_change(network, estimate.removals, SOLVERS[name](network, **options))
        estimate = replace(estimate, norms=moved.norm(dim=1).cpu().numpy())
    return estimate


def tracin(network: Network, points: Points, removals: Removals | None = None) -> Estimate:
    """TracIn: each checkpoint stands for the steps up to the next, step sizes are the learning rates."""

    def run(test: object, changes: Tensor, places: Tensor) -> Tensor:
        return solvers.tracin(network.alone().train, test, network.checkpoints, network.rates, changes, places)

    return _without_solver(run, network, points, removals)


def trak(network: Network, points: Points, removals: Removals | None = None) -> Estimate:
    """TRAK at the network alone."""

    def run(test: object, changes: Tensor, places: Tensor) -> Tensor:
        thetas, fixed = network.theta[None], {"damping": TRAK_DAMPING, "seed": network.seed}
        return solvers.trak(network.alone().train, test, thetas, changes, places, **fixed)

    return _without_solver(run, network, points, removals)


def _without_solver(
    run: Callable[..., Tensor], network: Network, points: Points, removals: Removals | None
) -> Estimate:
    removals = Removals.single(range(network.train.n), network.train.n) if removals is None else removals
    began = perf_counter()
    with Peak() as peak:
        found = run(network.on_points(points), removals.changes().to(network.theta), torch.arange(len(points)))
    changes = found.double().cpu().numpy()
    status = "ok" if bool(torch.isfinite(found).all()) else "solver_diverged"
    return Estimate(removals, changes, seconds=perf_counter() - began, memory_mb=peak.mb, status=status)


def budgets(products: int, n: int) -> dict[str, dict[str, object]]:
    """Options by which each iterative solver spends about `products` products with the whole curvature a test point.

    LiSSA works on minibatches of `RANDOM_BATCH` of the n examples, so it may take n / `RANDOM_BATCH` times as many
    steps. Arnoldi's Lanczos runs keep a third of their vectors.
    """
    return {
        "cg": {"max_iterations": products},
        "cg_ggn": {"max_iterations": products},
        "minres": {"max_iterations": products},
        "lissa_random": {"depth": max(1, products * n // RANDOM_BATCH)},
        "arnoldi": {"rank": max(1, products // 3), "tolerance": 1e-2},
        "nystroem": {"rank": products},
    }
