"""Estimates and ground truths of one examined ResNet-50, for the training photographs of a set of any size."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.deep.estimators import ESTIMATORS, TOLERANCE, selecting
from fragile_lib.examination import Estimated, Retrained, spread_over
from fragile_lib.imagenet.examined import Examined
from fragile_lib.imagenet.scores import Slopes
from fragile_lib.minimise.modules import Continued
from fragile_lib.solvers import BlockCGSolver, IdentitySolver, Solver
from fragile_lib.solvers.base import Solution
from fragile_lib.solvers.batch_lissa import BatchLissaSolver
from fragile_lib.solvers.kfac_modules import ModuleEkfacSolver
from fragile_lib.solvers.operator import nowhere
from fragile_lib.tools.checkpoint import Checkpoint, digest_of
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.measure import Peak


@dataclass(frozen=True)
class Direction:
    """The inverse-curvature-vector products (m, P) of one estimator, with residual, cost and outcome."""

    x: Tensor
    residual: float
    seconds: float
    products: float
    memory_mb: float
    status: str


def directions_by(examined: Examined, name: str, folder: Path | str = "", **options: float) -> Direction:
    """(curvature + damping)^-1 grad f for each test point by one estimator; kept in a folder where one is given.

    Raises:
        InputError: an unknown estimator, a bad option of its solver, or a folder of another run.
    """
    kept = Checkpoint(Path(folder) / f"directions-{name}", _facts(examined, options)) if str(folder) else None
    if kept is not None and kept.has("solution"):
        part = kept.load("solution")
        x = torch.from_numpy(part["x"]).to(examined.theta)
        return Direction(x, *(float(n) for n in part["numbers"]), status=str(part["status"]))
    began = perf_counter()
    with Peak() as peak:
        one_hot = torch.eye(examined.test.n, device=examined.theta.device, dtype=examined.theta.dtype)
        gradients = examined.test.gradient(examined.theta.expand(examined.test.n, -1), one_hot)
        solution = _solved(examined, name, gradients, options)
    numbers = (float(solution.residual.max()), perf_counter() - began, solution.products / len(gradients), peak.mb)
    if kept is not None:
        kept.save("solution", x=solution.x.cpu().numpy(), numbers=np.array(numbers), status=np.array(solution.status))
    return Direction(solution.x, *numbers, status=solution.status)


def _solved(examined: Examined, name: str, gradients: Tensor, options: Mapping[str, float]) -> Solution:
    """The solution, or one that says that a factor could not be decomposed: no other estimator is lost by it."""
    began = perf_counter()
    try:
        return solver_of(examined, name, **options)(gradients)
    except (torch.linalg.LinAlgError, np.linalg.LinAlgError) as error:
        warnings.warn(f"{name}: {error}", stacklevel=2)
        return Solution(*nowhere(gradients), perf_counter() - began, "solver_diverged", 0.0)


def solver_of(
    examined: Examined,
    name: str,
    lissa_depth: int = 100,
    lissa_batch: int = 10,
    lissa_scale: float = 0.0,
    cg_iterations: int = 10,
) -> Solver:
    """A solver on the damped curvature of the curvature images: the estimators of `deep.estimators`, by their names.

    Raises:
        InputError: an unknown name, or a bad option of the solver.
    """
    common = examined.curvature, examined.theta, examined.damping
    if name == "lissa":
        options = {"depth": lissa_depth, "batch": lissa_batch, "scale": lissa_scale or None}
        return BatchLissaSolver(*common, seed=examined.seed, **options)
    if name == "cg_ggn":
        return BlockCGSolver(*common, gauss_newton=True, tolerance=TOLERANCE, max_iterations=cg_iterations)
    if name == "ekfac":
        module, batch = examined.model.module(examined.theta), examined.curvature.chunk
        return ModuleEkfacSolver(*common, module=module, batch=batch, seed=examined.seed)
    if name == "identity":
        return IdentitySolver(*common)
    raise bad_input("estimator", name, f"choose one of {', '.join(ESTIMATORS)}")


def stacked(directions: Mapping[str, Direction]) -> Tensor:
    """All finite directions in one stack (K, P) for one pass over the images."""
    usable = [d.x for d in directions.values() if bool(torch.isfinite(d.x).all())]
    if not usable:
        raise bad_input("estimators", list(directions), "all diverged; add cg_ggn, or raise the damping")
    return torch.cat(usable)


def estimates_of(directions: Mapping[str, Direction], slopes: Slopes) -> dict[str, Estimated]:
    """Loss changes (n, m) of leaving out each image, by estimator: slope / n, n the images that can be read.

    nan for broken images, and everywhere for an estimator that diverged. Seconds are those of the solve, and its share
    of the scoring pass.
    """
    found, at = {}, 0
    for name, d in directions.items():
        m = len(d.x)
        values = np.full((len(slopes.values), m), np.nan)
        share = 0.0
        if bool(torch.isfinite(d.x).all()):
            values, at = slopes.values[:, at : at + m] / slopes.images, at + m
            share = slopes.seconds * m / slopes.values.shape[1]
        found[name] = Estimated(values, d.residual, d.seconds + share, d.products, d.memory_mb, d.status)
    return found


def usable_rows(slopes: Slopes) -> np.ndarray:
    """Rows of the images that could be read."""
    return np.setdiff1d(np.arange(len(slopes.values)), np.fromiter(slopes.notes.bad, dtype=int))


def selecting_on(estimates: Mapping[str, Estimated], wanted: str, rows: np.ndarray) -> str:
    """The estimator whose scores choose the training images: `wanted`, or the first whose are finite on these rows.

    Raises:
        InputError: `wanted` is none of them, or none is finite.
    """
    if wanted not in estimates:
        raise bad_input("select_by", wanted, f"choose one of the estimators, {', '.join(estimates)}")
    return selecting({name: replace(e, changes=e.changes[rows]) for name, e in estimates.items()}, wanted)


def chosen_rows(estimate: Estimated, count: int) -> list[np.ndarray]:
    """For each test point the `count` images of largest |influence|, sorted; broken ones have none.

    Raises:
        InputError: fewer readable images than that, or a count below 3.
    """
    readable = int(np.isfinite(estimate.changes[:, 0]).sum())
    if not 3 <= count <= readable:
        raise bad_input("train_count", count, f"give a whole number from 3 to {readable}, the images that can be read")
    sizes = np.where(np.isfinite(estimate.changes), np.abs(estimate.changes), -1.0)
    return [np.sort(column.argsort(kind="stable")[-count:]) for column in sizes.T]


def truths_of(examined: Examined, indices: np.ndarray, found: Continued, n: int) -> dict[str, Retrained]:
    """`loo_warm` and `loo_warm_minus_control` from what `leave_out` found for the rows `indices` of n photographs."""
    before = examined.losses
    changes, control = spread_over(indices, found.removed - before, n), found.control - before
    warm = Retrained(changes, found.seconds, control, left_out=indices)
    return {"loo_warm": warm, "loo_warm_minus_control": Retrained(changes - control, found.seconds, control, indices)}


def _facts(examined: Examined, options: Mapping[str, float]) -> dict:
    j = examined.curvature
    return {
        "weights": digest_of(examined.theta),
        "curvature images": digest_of(j.data.x, j.data.y),
        "test images": digest_of(*examined.test_images),
        "damping": examined.damping,
        "weight_decay": j.weight_decay,
        "seed": examined.seed,
        "options": dict(options),
    }
