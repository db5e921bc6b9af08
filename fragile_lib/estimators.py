"""Influence estimates of a prepared network by name: every inverse-HVP solver, and the methods that have none."""

from __future__ import annotations

from functools import partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib import solvers
from fragile_lib.examination import Estimated, Points
from fragile_lib.influence import influence, leave_one_out
from fragile_lib.objectives.base import Objective
from fragile_lib.prepared import NUDGE, Prepared
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.measure import Peak

# The network's dense matrix that a direct solver takes, and its damping where that is not the network's own.
DENSE = {"exact": ("hessian", None), "exact_ggn": ("gauss_newton", None), "exact_undamped": ("hessian", NUDGE)}
SOLVERS = (*DENSE, "cg", "cg_ggn", "minres", "lissa", "arnoldi", "nystroem", "kfac", "ekfac", "identity")
LISSA_BATCH = 100
TRAK_DAMPING = 1e-3


def estimate_by(prepared: Prepared, points: Points, name: str, **options: object) -> Estimated:
    """Loss changes (n, m) of leaving out each training example by `name`, with residual, cost and outcome.

    Seconds are those of all of it, from the solver's making to the scores of all n examples; the direct solvers' dense
    matrix, which is there already, is counted in. options go to the solver (see `make_solver`).

    Raises:
        InputError: a name that is not in `ESTIMATORS`.
    """
    objective, test, m = prepared.train, prepared.on_points(points), len(points.index)
    removals = leave_one_out(torch.arange(objective.n), objective.n).to(prepared.theta)
    ready = getattr(prepared, DENSE[name][0]).seconds if name in DENSE else 0.0
    began = perf_counter()
    with Peak() as peak:
        if name in BY_CHECKPOINTS:
            changes = BY_CHECKPOINTS[name](prepared, test, removals, torch.arange(m))
            residual, status, products = np.nan, "ok", np.nan
        else:
            kept = _Kept(make_solver(prepared, name, **options))
            found = influence(objective, test, prepared.theta, removals, torch.arange(m), kept)
            changes, residual, status = found.changes, found.residual, found.status
            products = kept.solution.products / m
    seconds = perf_counter() - began + ready
    return Estimated(changes.double().cpu().numpy(), residual, seconds, products, peak.mb, status)


def budgets(products: int, n: int) -> dict[str, dict[str, object]]:
    """Options by which each iterative solver spends about `products` products with the whole curvature a test point.

    LiSSA works on minibatches of `LISSA_BATCH` of the n examples, so it may take n / `LISSA_BATCH` times as many steps.
    Arnoldi's Lanczos runs keep a third of their vectors.
    """
    return {
        "cg": {"max_iterations": products},
        "cg_ggn": {"max_iterations": products},
        "minres": {"max_iterations": products},
        "lissa": {"depth": max(1, products * n // LISSA_BATCH)},
        "arnoldi": {"rank": max(1, products // 3), "tolerance": 1e-2},
        "nystroem": {"rank": products},
    }


class _Kept:
    """A solver that keeps its last solution."""

    def __init__(self, solver: solvers.Solver) -> None:
        self.solver, self.solution = solver, None

    def __call__(self, v: Tensor) -> solvers.Solution:
        self.solution = self.solver(v)
        return self.solution


def make_solver(prepared: Prepared, name: str, **options: object) -> solvers.Solver:
    """A solver for the prepared network, by its name in the results table; options are its own arguments.

    exact, exact_ggn: direct, on Hessian and Gauss-Newton matrix. exact_undamped: as exact, with damping `NUDGE`: what
    leaving out does to a certified minimum to first order. cg, cg_ggn, minres, arnoldi, nystroem (Gauss-Newton),
    kfac, ekfac (Gauss-Newton), identity: as in `solvers`. lissa: minibatches of `LISSA_BATCH`, scale = twice the
    largest eigenvalue of the Hessian plus damping, for the spread of the batches' own.

    Raises:
        InputError: an unknown name.
    """
    if name in DENSE:
        matrix, damping = DENSE[name]
        solver = getattr(prepared, matrix)
        return solver if damping is None else solver.with_damping(damping)
    common = prepared.train, prepared.theta, prepared.damping
    if name == "lissa":
        scale = 2 * (float(prepared.hessian.spectrum[-1]) + prepared.damping)
        return solvers.LissaSolver(*common, **{"batch": LISSA_BATCH, "scale": scale, "seed": prepared.seed, **options})
    if name in ("kfac", "ekfac"):
        kind = solvers.KfacSolver if name == "kfac" else solvers.EkfacSolver
        return kind(*common, module=prepared.train.model.module(prepared.theta), **options)
    kinds = {
        "cg": solvers.BlockCGSolver,
        "cg_ggn": partial(solvers.BlockCGSolver, gauss_newton=True),
        "minres": solvers.MinresSolver,
        "arnoldi": partial(solvers.ArnoldiSolver, remainder="diagonal"),
        "arnoldi_drop": partial(solvers.ArnoldiSolver, remainder="drop"),
        "nystroem": solvers.NystroemSolver,
        "identity": solvers.IdentitySolver,
    }
    if name not in kinds:
        raise bad_input("estimator", name, f"choose one of {', '.join(ESTIMATORS)}")
    return kinds[name](*common, **options)


def _by_tracin(prepared: Prepared, test: Objective, removals: Tensor, points: Tensor) -> Tensor:
    """Each checkpoint stands for the steps up to the next; step sizes are the learning rates, as for plain descent."""
    return solvers.tracin(prepared.train, test, prepared.checkpoints, prepared.rates, removals, points)


def _by_trak(prepared: Prepared, test: Objective, removals: Tensor, points: Tensor) -> Tensor:
    thetas = prepared.theta[None]
    return solvers.trak(prepared.train, test, thetas, removals, points, damping=TRAK_DAMPING, seed=prepared.seed)


BY_CHECKPOINTS = {"tracin": _by_tracin, "trak": _by_trak}
ESTIMATORS = (*SOLVERS, *BY_CHECKPOINTS)
