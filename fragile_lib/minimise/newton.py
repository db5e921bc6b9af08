"""Drive a stack of fits on to certified stationary points by a second-order method, where such points exist.

A trained ReLU network as a rule has none: gradient descent carries it on to kinks, parameters at which some training
example's pre-activation is zero and J has no gradient (`training.kinks` counts them). `finish` therefore follows the
minimiser of the same network with softplus of growing sharpness, which ends within ln 2 / sharpness of ReLU at every
unit and is smooth, so that its gradient can be driven to zero and its Hessian says whether it is a minimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fragile_lib.minimise.descent import FLAT, STATIONARY, separable
from fragile_lib.objectives.base import Objective
from fragile_lib.tools.numerics import flushed_denormals

SHARPNESS = (10.0, 100.0, 1e3)  # of softplus, in the order in which `finish` follows them
ESCAPES = 5  # times that `finish` leaves a saddle
STACK_BYTES = 16e6  # dense Hessians held at once by `newton`


@dataclass(frozen=True)
class Finished:
    """A stack theta (S, P) driven on under `objective`, smoothed for ReLU, with its ||grad J|| and steps (S,)."""

    objective: Objective
    theta: Tensor
    grad_norm: Tensor
    steps: Tensor


def finish(objective: Objective, theta: Tensor, max_steps: int = 400) -> Finished:
    """Follow each fit theta (S, P) to a stationary point of J; for ReLU through softplus of growing sharpness."""
    stages = [objective]
    if objective.model.activation == "relu":
        stages = [objective.smoothed(sharpness) for sharpness in SHARPNESS]
    total = torch.zeros(len(theta), dtype=torch.long, device=theta.device)
    for stage in stages:
        limit = max_steps if stage is stages[-1] else max_steps // 2
        theta, norm, steps = newton(stage, theta, stage.uniform(len(theta)), max_steps=limit)
        total += steps
    for _ in range(ESCAPES):
        moved, saddles = _off_saddles(stages[-1], theta, norm)
        if not len(saddles):
            break
        weights = stages[-1].uniform(len(saddles))
        theta[saddles], norm[saddles], steps = newton(stages[-1], moved, weights, saddles, max_steps)
        total[saddles] += steps
    return Finished(stages[-1], theta, norm, total)


def _off_saddles(objective: Objective, theta: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """The networks that stand at a saddle, moved along their direction of most negative curvature, and their places.

    The length and sign of the move are those, of a fixed geometric range, at which J is least.
    """
    places, moved = [], []
    for s in (norm <= STATIONARY).nonzero()[:, 0].tolist():
        place, weights = torch.tensor([s]), objective.uniform(1)
        spectrum, vectors = torch.linalg.eigh(objective.matrices(theta[s : s + 1], weights, place)[0])
        if spectrum[0] < -FLAT:
            lengths = torch.logspace(-4, 0, 9, dtype=theta.dtype, device=theta.device)
            trials = theta[s] + torch.cat([lengths, -lengths])[:, None] * vectors[:, 0]
            values = objective.value(trials, weights.expand(len(trials), -1), place.expand(len(trials)))
            places.append(s), moved.append(trials[values.argmin()])
    return torch.stack(moved) if moved else theta[:0], torch.tensor(places, dtype=torch.long)


def newton(
    objective: Objective, theta: Tensor, weights: Tensor, dataset: Tensor | None = None, max_steps: int = 60
) -> tuple[Tensor, Tensor, Tensor]:
    """Levenberg-Marquardt on J(.; w_e) with the exact Hessian: (theta (E, P), ||grad J|| (E,), steps (E,)).

    Each step solves (H + mu I) s = -grad J by Cholesky factors, with mu raised until the shifted Hessian is positive
    definite and J falls, and lowered tenfold after a success: descent everywhere, quadratic convergence at a minimum
    (Nocedal and Wright 2006, section 10.3). A network stops at `STATIONARY`, when J cannot be lowered any more (a ReLU
    kink, say), when it is separated without weight decay (`separable`), or after `max_steps`.
    """
    dataset = objective.members(theta, dataset)
    at_once = max(1, int(STACK_BYTES / (8 * theta.shape[1] ** 2)))
    with flushed_denormals():
        parts = [
            _newton_chunk(objective, theta[rows], weights[rows], dataset[rows], max_steps)
            for rows in torch.arange(len(theta)).split(at_once)
        ]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _newton_chunk(
    objective: Objective, theta: Tensor, weights: Tensor, dataset: Tensor, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    theta = theta.clone()
    gradient, value = objective.gradient(theta, weights, dataset), objective.value(theta, weights, dataset)
    shift = torch.full_like(value, 1e-3)
    steps = torch.zeros(len(theta), dtype=torch.long, device=theta.device)
    for _ in range(max_steps):
        rows = (gradient.norm(dim=1) > STATIONARY) & (shift < 1e8) & torch.isfinite(value)
        rows &= ~separable(objective, theta, dataset)
        if not rows.any():
            break
        rows = rows.nonzero()[:, 0]
        w, d = weights[rows], dataset[rows]
        hessian = objective.matrices(theta[rows], w, d)
        step, mu = _shifted_step(hessian, gradient[rows], shift[rows])
        trial = theta[rows] + step
        new_value, new_gradient = objective.value(trial, w, d), objective.gradient(trial, w, d)
        better = _improves(value[rows], new_value, gradient[rows].norm(dim=1), new_gradient.norm(dim=1))
        kept = rows[better]
        theta[kept], value[kept], gradient[kept] = trial[better], new_value[better], new_gradient[better]
        shift[rows] = torch.where(better, mu / 10, mu.clamp(min=1e-12) * 10).clamp(min=1e-14)
        steps[rows] += 1
    return theta, gradient.norm(dim=1), steps


def _improves(value: Tensor, new_value: Tensor, norm: Tensor, new_norm: Tensor) -> Tensor:
    """Whether J fell, or, where it is equal to the last digits, the gradient did."""
    level = new_value <= value + 1e-13 * (1 + value.abs())
    return (new_value < value - 1e-13 * (1 + value.abs())) | (level & (new_norm < norm))


def _shifted_step(hessian: Tensor, gradient: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """-(H + mu I)^-1 grad with the least mu of shift, 10 shift, 100 shift ... that makes H + mu I positive definite."""
    shift = shift.clone()
    factors, info = torch.linalg.cholesky_ex(_shifted(hessian, shift))
    while (info > 0).any():
        bad = (info > 0).nonzero()[:, 0]
        shift[bad] = shift[bad].clamp(min=1e-9) * 10
        factors[bad], info[bad] = torch.linalg.cholesky_ex(_shifted(hessian[bad], shift[bad]))
    return -torch.cholesky_solve(gradient[..., None], factors)[..., 0], shift


def _shifted(matrices: Tensor, shift: Tensor) -> Tensor:
    """Add shift_e to the diagonal of each matrix (E, P, P)."""
    shifted = matrices.clone()
    shifted.diagonal(dim1=1, dim2=2).add_(shift[:, None])
    return shifted
