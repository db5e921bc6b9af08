"""Ground truths of a prepared network: what really happens to test losses when training examples are left out.

Every truth says which examples were left out, what its control did, and, where asked, how a repetition of it came out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.data.sets import Data
from fragile_lib.examination import Points, Retrained, spread_over, union
from fragile_lib.influence import leave_one_out
from fragile_lib.minimise.minibatch import Protocol, train_beside
from fragile_lib.minimise.near_optimum import chord
from fragile_lib.minimise.quasi_newton import LEFT_OUT_SHIFT, AbsoluteInverse, left_out_minimum
from fragile_lib.minimise.retraining import loss_changes
from fragile_lib.objectives.proximal import ProximalObjective, TiltedObjective
from fragile_lib.prepared import NUDGE, Prepared
from fragile_lib.tools.progress import progress

LEFT_OUT = 1e-2  # ||grad|| at a left-out minimum, as a share of what leaving out made it
STEPS = 12  # gradients of each left-out network at most; one that needs more has left the network's neighbourhood
CERTIFIED_STEPS = 2  # the same without damping: most need one or two, and those that need more need many more
REPEATED = 4  # one in so many minima is sought again where a truth is repeated
AT_ONCE = 256  # left-out networks held at once
# Displacement from which a truth is repeated, a share of ||theta||: more than most images at the 30th percentile cause.
DISPLACED = 3e-4
# What is minimised around the network by each kind of minimum; None: J itself.
AROUND = {"loo_certified": None, "loo_tilted": TiltedObjective, "pbrf": ProximalObjective}


class Minima:
    """The minima that leaving out leads to, each certified by its own gradient on all examples.

    kind: `loo_certified`, of J itself, where theta is a certified optimum; `loo_tilted`, of J made stationary at theta
    (`pbrf.TiltedObjective`); `pbrf`, of the proximal Bregman objective.
    """

    def __init__(self, prepared: Prepared, kind: str) -> None:
        around = AROUND[kind]
        self.prepared, self.objective, self.single = prepared, prepared.train, prepared.single
        self.shift = prepared.damping if around else NUDGE
        self.solver = prepared.gauss_newton if kind == "pbrf" else prepared.hessian
        if around:
            self.objective = around(prepared.train, prepared.theta, self.shift)
            self.single = around(prepared.single, prepared.theta.float(), self.shift)
        self.gradients = prepared.train.example_gradients(prepared.theta[None])[0]
        self.resting = self.objective.gradient(prepared.theta[None], self.objective.uniform(1))

    def __call__(
        self, removals: Tensor, start: Tensor, max_steps: int = STEPS, further: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """(networks (k, P), whether each is a certified minimum (k,)) for removals (k, n), from `start` (P,).

        By at most `max_steps` Newton steps with the one curvature; and for the rows `further`, where these do not end
        at a minimum, by BFGS (`quasi_newton.left_out_minimum`).
        """
        weights = self.objective.uniform(len(removals)) + removals.to(self.gradients)
        caused = removals.to(self.gradients) @ self.gradients  # what is added to the gradient at theta
        goals = self._goals(removals, caused)
        first = caused + self.resting if start is self.prepared.theta else None
        found = [
            chord(
                self.objective,
                start.expand(len(rows), -1),
                weights[rows],
                solve=partial(self.solver.shifted, shift=self.shift),
                tolerance=goals[rows],
                first=first[rows] if first is not None else None,
                max_steps=max_steps,
            )
            for rows in torch.arange(len(removals)).split(AT_ONCE)
        ]
        networks, norms = (torch.cat([part[i] for part in found]) for i in (0, 1))
        for r in progress([r for r in further if norms[r] > goals[r]], desc="left-out optima by BFGS"):
            inverse = self._inverse.after(self._taken(removals[r]))
            at = left_out_minimum(self.objective, self.single, start, weights[r], inverse, float(goals[r]))
            networks[r], norms[r] = at.theta, at.grad_norm
        return networks, norms <= goals

    def _goals(self, removals: Tensor, caused: Tensor) -> Tensor:
        """(k,) ||grad|| of a certified minimum; a control, an empty removal, is driven as far as the others."""
        goals = (LEFT_OUT * caused.norm(dim=1)).clamp(min=1e-4 * self.prepared.certificate["tolerance"])
        goals[~removals.any(dim=1)] = goals[removals.any(dim=1)].min()
        return goals

    @cached_property
    def _inverse(self) -> AbsoluteInverse:
        """That of the curvature at theta of what is minimised with nothing left out."""
        return AbsoluteInverse(self.solver, self.shift + LEFT_OUT_SHIFT)

    def _taken(self, removal: Tensor) -> Tensor:
        """sum_i d_i hess loss_i (P, P) of a removal d (n,), in float32: what leaving out does to that Hessian."""
        members, data = removal.nonzero()[:, 0].cpu(), self.prepared.single.data
        some = self.prepared.single.on(Data(data.x[:1, members], data.y[:1, members]))
        return some.matrices(self.prepared.theta[None].to(data.x), removal[members][None].to(data.x))[0]


def left_out(
    prepared: Prepared,
    points: Points,
    kind: str,
    indices: np.ndarray,
    again: np.ndarray | None = None,
    further: np.ndarray | None = None,
) -> Retrained:
    """The truth `kind` of `Minima` for leaving out each training example of `indices` (k,), on all test points.

    The control is the minimum with nothing left out, found in the same way.

    Args:
        prepared: the network.
        points: the examined test points (m,).
        kind: as in `Minima`.
        indices: training examples.
        again: those of the first test point. For one in `REPEATED` of them, and ten at least, the truth is found again,
            from a start displaced at random.
        further: those of `indices` for which the search goes on by BFGS where Newton steps did not end at a minimum;
            when the truth is found again it always does.
    """
    began, n, respond = perf_counter(), prepared.train.n, Minima(prepared, kind)

    def found_from(start: Tensor, examples: np.ndarray, on: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        removals = _nothing_and(leave_one_out(torch.from_numpy(examples), n))
        rows = np.flatnonzero(np.isin(examples, on)) + 1
        networks, kept = respond(removals, start, steps, rows.tolist())
        changes = _changes(prepared, points, networks)
        return changes[0], spread_over(examples, changes[1:], n, kept[1:].cpu().numpy())

    further, again = (np.zeros(0, int) if given is None else given for given in (further, again))
    steps = CERTIFIED_STEPS if kind == "loo_certified" else STEPS
    control, changes = found_from(prepared.theta, indices, further, steps)
    truth = Retrained(changes, perf_counter() - began, control, indices)
    again = np.intersect1d(again, indices)
    if not len(again):
        return truth
    some = again[:: max(1, min(REPEATED, len(again) // 10))]
    second = found_from(displaced(prepared), some, some, STEPS)[1]
    return replace(truth, repeats=_at_first_point(changes, second))


def _at_first_point(*changes: np.ndarray) -> np.ndarray:
    """Repetitions (R, n, m) for what is left out at the first test point; others share but a few examples with it."""
    repeats = np.stack(changes)
    repeats[:, :, 1:] = np.nan
    return repeats


def displaced(prepared: Prepared) -> Tensor:
    """theta moved by `DISPLACED` of its length in a random direction."""
    rng = np.random.default_rng([prepared.seed, 7])
    direction = torch.from_numpy(rng.standard_normal(len(prepared.theta))).to(prepared.theta)
    return prepared.theta + DISPLACED * prepared.theta.norm() / direction.norm() * direction


def groups_left_out(prepared: Prepared, points: Points, kind: str, removals: Tensor, repeat: bool = False) -> Retrained:
    """The truth `kind` of `Minima` for removals (k, n) of groups: changes (k, m), nan where no minimum was reached.

    The search goes on by BFGS where Newton steps do not arrive. repeat: and once more, from a displaced start. With a
    control as in `left_out`.
    """
    began, respond = perf_counter(), Minima(prepared, kind)
    removals = _nothing_and(removals)

    def found_from(start: Tensor) -> np.ndarray:
        networks, kept = respond(removals, start, further=range(1, len(removals)))
        return np.where(kept.cpu().numpy()[:, None], _changes(prepared, points, networks), np.nan)

    control, *changes = found_from(prepared.theta)
    truth = Retrained(np.stack(changes), perf_counter() - began, control)
    if not repeat:
        return truth
    second = found_from(displaced(prepared))[1:]
    return replace(truth, repeats=np.stack([truth.changes, second]))


def by_minibatches(
    prepared: Prepared, points: Points, protocol: Protocol, indices: np.ndarray, again: np.ndarray | None = None
) -> dict[str, Retrained]:
    """`loo_warm`: the paper's retraining by minibatches from the network, and the same minus its control.

    All left-out networks and the control are one stack that sees the same batches. again: those of the first test
    point, for which it is repeated, with batches in another order and its own control.
    """
    began = perf_counter()
    control, changes = _trained_again(prepared, points, protocol, indices)
    warm = Retrained(changes, perf_counter() - began, control, indices)
    less = replace(warm, changes=changes - control)
    if again is None or not len(again):
        return {"loo_warm": warm, "loo_warm_minus_control": less}
    control_2, second = _trained_again(prepared, points, replace(protocol, seed=protocol.seed + 1_000), again)
    return {
        "loo_warm": replace(warm, repeats=_at_first_point(changes, second)),
        "loo_warm_minus_control": replace(less, repeats=_at_first_point(changes - control, second - control_2)),
    }


def _trained_again(
    prepared: Prepared, points: Points, protocol: Protocol, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(control (m,), changes (n, m)) of one stack of retrainings."""
    weights = _with_control(prepared, indices)
    found = train_beside(prepared.single, prepared.theta.float(), weights, protocol, label="leave-one-out")
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
        start = model.init(1_000 + seed).float().to(prepared.theta.device)
        found = train_beside(prepared.single, start, weights, replace(protocol, seed=1_000 + seed), "from scratch")
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
    removals = _nothing_and(leave_one_out(torch.from_numpy(indices), prepared.train.n))
    return prepared.train.uniform(len(removals)) + removals.to(prepared.theta)


def _nothing_and(removals: Tensor) -> Tensor:
    """Removals (1 + k, n), the first of them empty: the control's."""
    return torch.cat([removals.new_zeros(1, removals.shape[1]), removals])


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
    repeat: bool = False,
    certified_points: int = 0,
) -> dict[str, Retrained]:
    """The truths `kinds` by name, for what `chosen` (by choice, for each test point) asks to be left out.

    Each example is left out once and evaluated on all test points. `loo_warm` brings `loo_warm_minus_control`. repeat:
    all truths are repeated for what is left out at the first test point. `loo_certified` needs a certified network.
    certified_points: first test points for whose first choice, the examples of largest influence, minima are sought by
    BFGS where Newton steps fail. `loo_certified`, where they mostly do, leaves that choice out for these points alone.
    """
    wanted = union(indices for by_point in chosen.values() for indices in by_point)
    again = union(by_point[0] for by_point in chosen.values()) if repeat else None
    first, *others = chosen.values()
    influential = [*first[:certified_points], np.zeros(0, int)]
    found: dict[str, Retrained] = {}
    for kind in kinds:
        if kind == "loo_warm":
            found |= by_minibatches(prepared, points, protocol, wanted, again)
        elif kind != "loo_certified":
            found[kind] = left_out(prepared, points, kind, wanted, again, further=union(influential))
        elif prepared.certified:
            sought = union([*influential, *(indices for by_point in others for indices in by_point)])
            found[kind] = left_out(prepared, points, kind, sought, again, further=union(influential))
    return found
