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


def _exact(network: Network) -> Solver:
    """The inverse of the dense damped Hessian, refined where the matrix is in float32."""
    return network.hessian


def _exact_ggn(network: Network) -> Solver:
    return network.gauss_newton


def _exact_undamped(network: Network) -> Solver:
    """As exact, with damping `NUDGE`: what leaving out does to a certified minimum to first order."""
    return network.hessian.with_damping(NUDGE)


def _common(network: Network) -> tuple:
    return network.curvature, network.theta, network.damping


def _iterative(kind: Callable[..., Solver], **fixed: object) -> Make:
    def make(network: Network, **options: object) -> Solver:
        return kind(*_common(network), **{"dataset": network.place, **fixed, **options})

    return make


def _lissa_random(network: Network, **options: object) -> Solver:
    """Minibatches drawn at random; scale: twice the Hessian's largest eigenvalue plus damping, for their spread."""
    scale = 2 * (float(network.hessian.spectrum[-1]) + network.damping)
    given = {"dataset": network.place, "seed": network.seed, "scale": scale, **options}
    return solvers.lissa_random(*_common(network), **given)


def _lissa_partition(network: Network, scale: float = 0.0, **options: object) -> Solver:
    """Minibatches of a fixed partition; scale: from the largest curvature of any of them, or as given above 0."""
    given = {"dataset": network.place, "seed": network.seed, "scale": scale or None, **options}
    return solvers.lissa_partition(*_common(network), **given)


def _lissa_single(network: Network, **options: object) -> Solver:
    """Single examples drawn at random; scale: the largest curvature of any example."""
    return solvers.lissa_single(*_common(network), **{"dataset": network.place, "seed": network.seed, **options})


def _kronecker(kind: Callable[..., Solver]) -> Make:
    def make(network: Network, **options: object) -> Solver:
        module = network.curvature.model.module(network.theta)
        return kind(*_common(network), module=module, **{"dataset": network.place, "seed": network.seed, **options})

    return make


SOLVERS: dict[str, Make] = {
    "exact": _exact,
    "exact_ggn": _exact_ggn,
    "exact_undamped": _exact_undamped,
    "cg": _iterative(solvers.BlockCGSolver),
    "cg_ggn": _iterative(solvers.BlockCGSolver, gauss_newton=True),
    "gram_ggn": _iterative(GramSolver),
    "minres": _iterative(solvers.MinresSolver),
    "lissa_single": _lissa_single,
    "lissa_random": _lissa_random,
    "lissa_partition": _lissa_partition,
    "arnoldi": _iterative(solvers.ArnoldiSolver),
    "nystroem": _iterative(solvers.NystroemSolver),
    "kfac": _kronecker(solvers.KfacSolver),
    "ekfac": _kronecker(solvers.EkfacSolver),
    "identity": _iterative(solvers.IdentitySolver),
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
    return Estimate(removals, changes, seconds=perf_counter() - began, memory_mb=peak.mb)


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
