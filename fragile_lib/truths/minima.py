"""The minima that leaving out leads to: of J itself, and of two objectives around a network that is at no minimum.

* `minimum`: of J without the removal, near the network. It exists only where the network is a minimum itself.
* `tilted_minimum`: of J made stationary at the network by a linear term, the damping as a proximal term.
* `pbrf`: the proximal Bregman response, the same idea for the Gauss-Newton matrix.

Each is certified by its own gradient on all examples; what was not reached is nan.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.choices import Chosen, Points, Removals, Truth
from fragile_lib.minimise.descent import STATIONARY
from fragile_lib.minimise.near_optimum import chord
from fragile_lib.minimise.newton import newton
from fragile_lib.minimise.quasi_newton import LEFT_OUT_SHIFT, AbsoluteInverse, left_out_minimum
from fragile_lib.network import NUDGE, Network
from fragile_lib.objectives.proximal import ProximalObjective, TiltedObjective
from fragile_lib.tools.progress import progress
from fragile_lib.truths.stacked import displaced, stacked

LEFT_OUT = 1e-2  # ||grad|| at a left-out minimum, as a share of what leaving out made it
STEPS = 12  # gradients of each left-out network at most; one that needs more has left the network's neighbourhood
CERTIFIED_STEPS = 2  # the same without damping: most need one or two, and those that need more need many more
REPEATED = 4  # one in so many minima is sought again where a truth is repeated
AT_ONCE = 256  # left-out networks held at once
# What is minimised around the network by each kind of minimum; None: J itself.
AROUND = {"minimum": None, "tilted_minimum": TiltedObjective, "pbrf": ProximalObjective}


def minimum_by_newton(
    networks: list[Network], points: list[Points], chosen: list[Chosen], repeats: int = 1
) -> list[Truth]:
    """`minimum` for a stack of small networks: Levenberg-Marquardt steps, each with a new Hessian, to ||grad J|| <=
    `STATIONARY`, in each repetition but the first from a start displaced at random (`stacked.stacked`).
    """  # noqa: D205
    minimise = partial(newton, networks[0].train, max_steps=250)
    return stacked(networks, points, chosen, minimise, repeats, tolerance=STATIONARY)


def near(
    kind: str,
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    repeats: int = 1,
    bfgs_points: int | None = None,
) -> list[Truth]:
    """The minimum `kind` of `AROUND` by Newton steps with the network's one curvature, and by BFGS where they fail.

    The control is the minimum with nothing left out, found in the same way.

    Args:
        kind: as above.
        networks: of some thousand parameters.
        points: the examined test points of each.
        chosen: what is left out.
        repeats: R - 1 further times, for one in `REPEATED` of what is left out at the first test point, and ten at
            least, the minimum is sought again from a start displaced at random, by BFGS too: a certified minimum hardly
            depends on the start, and a few tell.
        bfgs_points: the first test points for whose first choice, what has most influence, the search goes on by BFGS;
            None: for everything. `minimum`, where Newton steps mostly fail for these, leaves that choice out for these
            points alone. A network that is at no minimum has none: then nothing is reached.
    """
    return [
        _near(kind, network, some, one, repeats, bfgs_points)
        for network, some, one in zip(networks, points, chosen, strict=True)
    ]


def _near(kind: str, network: Network, points: Points, chosen: Chosen, repeats: int, bfgs_points: int | None) -> Truth:
    began = perf_counter()
    removals, further = _sought(kind, chosen, bfgs_points)
    if not len(removals) or (kind == "minimum" and not network.certified):
        return Truth(Removals((), removals.n), np.zeros((0, len(points))), np.zeros(len(points)))
    network = network.alone()
    respond = Minima(network, kind)

    def found_from(start: Tensor, left_out: Removals, on: Removals, steps: int) -> np.ndarray:
        """Changes (1 + k, m), the control's first."""
        networks, kept = respond(left_out, start, steps, on)
        kept[0] = True  # a control is told of wherever it is
        changes = respond.changes(points, networks)
        return np.where(kept[:, None], changes, np.nan)

    control, *changes = found_from(network.theta, removals, further, CERTIFIED_STEPS if kind == "minimum" else STEPS)
    changes = np.array(changes).reshape(len(removals), len(points))
    truth = Truth(removals, changes, control, seconds=perf_counter() - began)
    of_first = Removals.union(parts[0] for parts in chosen.removals.values())
    again = [group for group in of_first.members if group in set(removals.members)]
    if repeats == 1 or not again:
        return truth
    some = Removals(tuple(again[:: max(1, min(REPEATED, len(again) // 10))]), removals.n)
    found = np.full((repeats, *changes.shape), np.nan)
    found[0, :, 0] = changes[:, 0]  # other points share but a few removals with the first
    for r in range(1, repeats):
        found[r, removals.places(some), 0] = found_from(displaced(network, r), some, some, STEPS)[1:, 0]
    return replace(truth, repeats=found, seconds=perf_counter() - began)


def _sought(kind: str, chosen: Chosen, bfgs_points: int | None) -> tuple[Removals, Removals]:
    """What is left out, and what of it is sought by BFGS where Newton steps fail."""
    everything = chosen.all()
    if bfgs_points is None:
        return everything, everything
    first, *others = chosen.removals.values()
    influential = Removals.union([Removals((), everything.n), *first[:bfgs_points]])
    if kind != "minimum":
        return everything, influential
    return Removals.union([influential, *(part for parts in others for part in parts)]), influential


class Minima:
    """The minima of one kind around a network, for any removals."""

    def __init__(self, network: Network, kind: str) -> None:
        around = AROUND[kind]
        self.network, self.objective, self.single = network, network.train, network.single or network.train
        self.shift = network.damping if around else NUDGE
        self.solver = network.gauss_newton if kind == "pbrf" else network.hessian
        if around:
            self.objective = around(network.train, network.theta, self.shift)
            self.single = around(self.single, network.theta.to(self.single.data.x), self.shift)
        self.gradients = network.train.example_gradients(network.theta[None])[0]
        self.resting = self.objective.gradient(network.theta[None], self.objective.uniform(1))

    def __call__(
        self, removals: Removals, start: Tensor, max_steps: int, further: Removals
    ) -> tuple[Tensor, np.ndarray]:
        """(networks (1 + k, P), whether each is a certified minimum), the control's first, from `start` (P,).

        By at most `max_steps` Newton steps with the one curvature; and for the removals `further`, where these do not
        end at a minimum, by BFGS (`quasi_newton.left_out_minimum`).
        """
        left = Removals(((), *removals.members), removals.n)
        changes = left.changes().to(self.gradients)
        weights = self.objective.uniform(len(left)) + changes
        caused = changes @ self.gradients  # what is added to the gradient at theta
        goals = self._goals(changes, caused)
        first = caused + self.resting if start is self.network.theta else None
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
            for rows in torch.arange(len(left)).split(AT_ONCE)
        ]
        networks, norms = (torch.cat([part[i] for part in found]) for i in (0, 1))
        wanted = [r for r in (left.places(further)).tolist() if r > 0 and norms[r] > goals[r]]
        for r in progress(sorted(wanted), desc="left-out optima by BFGS"):
            inverse = self._inverse.after(self._taken(left.members[r]))
            at = left_out_minimum(self.objective, self.single, start, weights[r], inverse, float(goals[r]))
            networks[r], norms[r] = at.theta, at.grad_norm
        return networks, (norms <= goals).cpu().numpy()

    def changes(self, points: Points, networks: Tensor) -> np.ndarray:
        """Loss changes (k, m) on the examined test points, of networks (k, P) against theta."""
        test = self.network.on_points(points)
        return (test.losses(networks) - test.losses(self.network.theta[None])).cpu().numpy()

    def _goals(self, changes: Tensor, caused: Tensor) -> Tensor:
        """(k,) ||grad|| of a certified minimum; a control, an empty removal, is driven as far as the others."""
        least = 1e-4 * self.network.certificate.get("tolerance", 0.0)
        goals = (LEFT_OUT * caused.norm(dim=1)).clamp(min=least)
        goals[~changes.any(dim=1)] = goals[changes.any(dim=1)].min()
        return goals

    @cached_property
    def _inverse(self) -> AbsoluteInverse:
        """That of the curvature at theta of what is minimised with nothing left out."""
        return AbsoluteInverse(self.solver, self.shift + LEFT_OUT_SHIFT)

    def _taken(self, group: tuple[int, ...]) -> Tensor:
        """sum_i d_i hess loss_i (P, P) of a removal, in float32: what leaving out does to that Hessian."""
        some = self.network.members(group, single=True)
        weights = torch.full((1, some.n), -1.0 / self.network.train.n, dtype=torch.float64).to(some.data.x)
        return some.matrices(self.network.theta[None].to(some.data.x), weights)[0]
