"""Ground truths of a prepared network: what really happens to test losses when training examples are left out.

Every truth says which examples were left out, what its control did, and, where asked, how a repetition of it came out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.examination import Points, Retrained, spread_over, union
from fragile_lib.influence import leave_one_out
from fragile_lib.minibatch import Protocol, train
from fragile_lib.optimum import chord
from fragile_lib.pbrf import ProximalObjective, TiltedObjective
from fragile_lib.prepared import Prepared
from fragile_lib.retraining import loss_changes

LEFT_OUT = 1e-2  # ||grad|| at a left-out minimum, as a share of what leaving out made it
NUDGE = 1e-6  # damping of undamped chord steps: a common shift of the output biases has no curvature at all
STEPS = 12  # gradients of each left-out network at most; one that needs more has left the network's neighbourhood
GROUP_STEPS = 40  # the same for a group, which moves the network further
DISPLACED = 1e-3  # length of the random displacement, as a share of ||theta||, from which a truth is repeated

# removals (k, n) and a start (P,) -> networks (k, P), whether each is what it should be (k,)
Respond = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def minima(prepared: Prepared, kind: str, max_steps: int = STEPS) -> Respond:
    """The minima that leaving out leads to, each certified by its own gradient on all examples.

    kind: `loo_certified`, of J itself, where theta is a certified optimum; `loo_tilted`, of J made stationary at theta
    (`pbrf.TiltedObjective`); `pbrf`, of the proximal Bregman objective.
    """
    damping = prepared.damping
    if kind == "loo_certified":
        objective, solver, shift = prepared.train, prepared.hessian, NUDGE
    elif kind == "loo_tilted":
        objective = TiltedObjective(prepared.train, prepared.theta, damping)
        solver, shift = prepared.hessian, damping
    else:
        objective = ProximalObjective(prepared.train, prepared.theta, damping)
        solver, shift = prepared.gauss_newton, damping

    gradients = prepared.train.example_gradients(prepared.theta[None])[0]
    resting = objective.gradient(prepared.theta[None], objective.uniform(1))

    def respond(removals: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        caused = removals.to(gradients) @ gradients
        goal = (LEFT_OUT * caused.norm(dim=1)).clamp(min=1e-4 * prepared.certificate["tolerance"])
        theta, norm, _ = chord(
            objective,
            start.expand(len(removals), -1),
            objective.uniform(len(removals)) + removals.to(gradients),
            solve=partial(solver.shifted, shift=shift),
            tolerance=goal,
            first=caused + resting if start is prepared.theta else None,
            max_steps=max_steps,
        )
        return theta, norm <= goal

    return respond


def left_out(
    prepared: Prepared, points: Points, kind: str, indices: np.ndarray, again: np.ndarray | None = None
) -> Retrained:
    """The truth `kind` of `minima` for leaving out each training example of `indices` (k,), on all test points.

    again: those for which it is repeated, from a start displaced at random.
    """
    began, respond, n = perf_counter(), minima(prepared, kind), prepared.train.n
    networks, kept = respond(leave_one_out(torch.from_numpy(indices), n), prepared.theta)
    changes = spread_over(indices, _changes(prepared, points, networks), n, kept.cpu().numpy())
    truth = Retrained(changes, perf_counter() - began, np.zeros(len(points.index)), indices)
    if again is None or not len(again):
        return truth
    networks, kept = respond(leave_one_out(torch.from_numpy(again), n), displaced(prepared))
    second = spread_over(again, _changes(prepared, points, networks), n, kept.cpu().numpy())
    return replace(truth, repeats=np.stack([changes, second]))


def displaced(prepared: Prepared) -> Tensor:
    """theta moved by `DISPLACED` of its length in a random direction."""
    rng = np.random.default_rng([prepared.seed, 7])
    direction = torch.from_numpy(rng.standard_normal(len(prepared.theta))).to(prepared.theta)
    return prepared.theta + DISPLACED * prepared.theta.norm() / direction.norm() * direction


def groups_left_out(
    prepared: Prepared, points: Points, kind: str, removals: Tensor, repeat: bool = False
) -> tuple[Retrained, float]:
    """The truth `kind` of `minima` for removals (k, n) of groups: changes (k, m), nan where no minimum was reached."""
    began, respond, outcomes = perf_counter(), minima(prepared, kind, GROUP_STEPS), []
    for start in (prepared.theta, displaced(prepared)) if repeat else (prepared.theta,):
        networks, kept = respond(removals, start)
        outcomes.append(np.where(kept.cpu().numpy()[:, None], _changes(prepared, points, networks), np.nan))
    repeats = np.stack(outcomes) if repeat else None
    control = np.zeros(len(points.index))
    seconds = perf_counter() - began
    return Retrained(outcomes[0], seconds, control, repeats=repeats), seconds


def by_minibatches(
    prepared: Prepared, points: Points, protocol: Protocol, indices: np.ndarray, again: np.ndarray | None = None
) -> dict[str, Retrained]:
    """`loo_warm`: the paper's retraining by minibatches from the network, and the same minus its control.

    All left-out networks and the control are one stack that sees the same batches. again: those for which it is
    repeated, with batches in another order and its own control.
    """
    began = perf_counter()
    control, changes = _trained_again(prepared, points, protocol, indices)
    warm = Retrained(changes, perf_counter() - began, control, indices)
    less = replace(warm, changes=changes - control)
    if again is None or not len(again):
        return {"loo_warm": warm, "loo_warm_minus_control": less}
    control_2, second = _trained_again(prepared, points, replace(protocol, seed=protocol.seed + 1_000), again)
    return {
        "loo_warm": replace(warm, repeats=np.stack([changes, second])),
        "loo_warm_minus_control": replace(less, repeats=np.stack([changes - control, second - control_2])),
    }


def _trained_again(
    prepared: Prepared, points: Points, protocol: Protocol, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(control (m,), changes (n, m)) of one stack of retrainings."""
    theta, weights = prepared.theta.float(), _with_control(prepared, indices)
    found = train(prepared.single, theta.expand(len(weights), -1), weights, protocol, label="leave-one-out").theta
    changes = _changes(prepared, points, found.double())
    kept = np.isfinite(changes[1:]).all(axis=1)
    return changes[0], spread_over(indices, changes[1:], prepared.train.n, kept)


def from_scratch(
    prepared: Prepared, points: Points, protocol: Protocol, indices: np.ndarray, seeds: list[int]
) -> Retrained:
    """`loo_scratch`: trained anew without each example, from `seeds` starts, each against a control of its own start.

    The truth is the mean over the starts; the starts are its repetitions.
    """
    began, model, weights = perf_counter(), prepared.train.model, _with_control(prepared, indices)
    repeats = []
    for seed in seeds:
        start = model.init(1_000 + seed).float().to(prepared.theta.device).expand(len(weights), -1)
        found = train(prepared.single, start, weights, replace(protocol, seed=1_000 + seed), label="from scratch").theta
        test = prepared.on_points(points)
        losses = test.losses(found.double())
        repeats.append(spread_over(indices, (losses[1:] - losses[:1]).cpu().numpy(), prepared.train.n))
    return Retrained(
        np.mean(repeats, axis=0),
        perf_counter() - began,
        np.zeros(len(points.index)),
        indices,
        np.stack(repeats),
    )


def _with_control(prepared: Prepared, indices: np.ndarray) -> Tensor:
    """Weights (1 + k, n): everything, and then without each of the indices."""
    n = prepared.train.n
    removed = leave_one_out(torch.from_numpy(indices), n).to(prepared.theta)
    return prepared.train.uniform(1 + len(indices)) + torch.cat([torch.zeros(1, n).to(removed), removed])


def _changes(prepared: Prepared, points: Points, networks: Tensor) -> np.ndarray:
    """Loss changes (k, m) on the examined test points, of networks (k, P) against theta."""
    test = prepared.on_points(points)
    return loss_changes(test, networks, prepared.theta, torch.arange(len(points.index)), 0).cpu().numpy()


def ground_truths(
    prepared: Prepared,
    points: Points,
    chosen: dict[str, list[np.ndarray]],
    kinds: list[str],
    protocol: Protocol,
    warm_choices: list[str],
    repeat: bool = False,
) -> dict[str, Retrained]:
    """The truths `kinds` by name, for what `chosen` (by choice, for each test point) asks to be left out.

    Each example is left out once and evaluated on all test points. `loo_certified` needs a certified network and is
    left out without one. `loo_warm` brings `loo_warm_minus_control`; being dear, it leaves out only the `warm_choices`
    of the test points of highest loss. repeat: all truths are repeated for the first choice at the first test point.
    """
    wanted = union(indices for by_point in chosen.values() for indices in by_point)
    again = next(iter(chosen.values()))[0] if repeat else None
    found: dict[str, Retrained] = {}
    for kind in kinds:
        if kind == "loo_warm":
            some = [chosen[c][j] for c in warm_choices for j, name in enumerate(points.choice) if name == "max_loss"]
            found |= by_minibatches(prepared, points, protocol, union(some), again)
        elif kind != "loo_certified" or prepared.certified:
            found[kind] = left_out(prepared, points, kind, wanted, again)
    return found
