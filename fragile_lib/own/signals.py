"""What can be known of an estimate before anything is left out: the candidates for a rule of when to believe it.

None of them retrains a network without a removal. Of a truth only its controls are used: going on with nothing left
out, in several orders of the batches or from several starts.

Letters: n training examples, m examined test points, k removals, R controls, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fragile_lib.agreement import compare
from fragile_lib.choices import NAN, Chosen, Estimate, Points, Removals, Truth
from fragile_lib.estimates.by_name import SOLVERS, by_solver
from fragile_lib.estimates.rescaled import own_losses
from fragile_lib.minimise.descent import descend
from fragile_lib.network import Network
from fragile_lib.solvers.gram import factors_of
from fragile_lib.tools.checks import check_name
from fragile_lib.truths.retrained import orders

FACTOR = 3.0  # by which the damping is raised and lowered
FOLLOWED = 5  # removals of largest |estimate| whose estimated move is followed
SAMPLE = 1_000  # examples at most on which the spread of curvature over examples is measured
TOP = 0.01  # share of the examples that counts as few
STEP = 0.05  # h of the metasmoothness, a share of the example weights
AT_ONCE = 16  # examples whose Gauss-Newton factors are held at once
FOLLOWING = ("test_curvature", "left_out_gradient")
PAIRED = {"test_choice": "max_loss", "train_choice": "top_influence"}  # the rows that keep what is known of each pair


def signals(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    estimates: list[dict[str, Estimate]],
    truths: list[dict[str, Truth]],
    names: Iterable[str],
    options: Mapping[str, Mapping[str, object]] | None = None,
    further: Mapping[str, object] | None = None,
) -> list[dict]:
    """One row for each network, estimator of `names`, choice of removals and test point. Columns:

    * `residual`, `status`: the estimator's.
    * `gradient_share`: ||grad J|| over that at the start of training.
    * `eig_share`: the Hessian's smallest eigenvalue over the damping, where it was computed.
    * `trace_share`: the share of the Gauss-Newton matrix's trace that 1% of the examples hold (leverage).
    * `metasmoothness`: of going on (`metasmoothness`).
    * `control_spread`: the standard deviation of what R controls do to the test loss.
    * `estimate_spread`: that of the estimates over the removals; `signal`: their median size over the control's spread.
    * `agreement`: the mean of Spearman's correlation with the other estimators of `names`.
    * `damping_rank`: the lesser of Spearman's correlations with the estimates at `FACTOR` times the damping and at the
      damping over `FACTOR`; `damping_ratio`: the median size at the first over that at the second.
    * `test_curvature`: |f(theta + delta) - f(theta) - grad f . delta| / |grad f . delta|, delta the estimated move, the
      median of the `FOLLOWED` removals of largest |estimate|; `left_out_gradient`: the median of
      ||grad J(theta + delta; w + d) - grad J(theta; w)|| / ||sum_i d_i grad loss_i||, 0 for a move to the minimum of a
      quadratic and 1 for none at all. Both at the first test point of each choice, where the largest are left out.
    * `pairs`, for `PAIRED` alone: of each removal the estimate, the one at either other damping, and the trace of its
      Gauss-Newton part over the mean of all examples'.

    Args:
        networks: with their test points, choices, estimates and truths, one entry each.
        points: the examined test points.
        chosen: what is left out.
        estimates: those of `names` among them.
        truths: whose controls are taken: the first's that has several.
        names: of solvers (`estimates.by_name.SOLVERS`).
        options: of each estimator, by its name, as in `estimate`.
        further: how the network is trained on, options of `warm_descent` or `warm_minibatch`; None for no
            metasmoothness.

    Raises:
        InputError: a name without a solver.
    """  # noqa: D205
    names, options = list(names), options or {}
    for name in names:
        check_name("signals", name, tuple(SOLVERS))
    found = []
    for network, some, one, by, of in zip(networks, points, chosen, estimates, truths, strict=True):
        if network.usable:
            probe = Probe(network, some, further or {})
            at = {name: _Solved(probe, name, by[name], options.get(name, {})) for name in names if name in by}
            found += [row for name in at for row in _rows(probe, name, at, one, control_spread(of, len(some)))]
    return found


@dataclass(frozen=True)
class Probe:
    """One network with its test points, and what is known of it whatever the estimator."""

    network: Network
    points: Points
    further: Mapping[str, object]

    @cached_property
    def told(self) -> dict:
        """The columns that all rows of the network share."""
        network, certificate = self.network, self.network.certificate
        norm, start = certificate.get("grad_norm", NAN), certificate.get("grad_norm_start") or _start_norm(network)
        return {
            "seed": network.seed,
            "fit": network.fit,
            "gradient_share": norm / start,
            "eig_share": certificate.get("eig_min", NAN) / network.damping if network.damping else NAN,
            "trace_share": self.trace_share,
            "metasmoothness": metasmoothness(network, self.further) if self.further else NAN,
        }

    @cached_property
    def sampled(self) -> np.ndarray:
        """Traces of the Gauss-Newton parts of some examples drawn at random, all of them where they are few."""
        n, rng = self.network.train.n, np.random.default_rng([self.network.seed, 29])
        return traces(self.network, np.sort(rng.choice(n, min(n, SAMPLE), replace=False)))

    @property
    def trace_share(self) -> float:
        """See `signals`."""
        few = max(1, round(TOP * len(self.sampled)))
        return float(np.sort(self.sampled)[-few:].sum() / self.sampled.sum())

    @cached_property
    def gradients(self) -> Tensor:
        """grad f (m, P)."""
        return self.network.test_gradients(self.points)


@dataclass(frozen=True)
class _Solved:
    """An estimator at the network's damping, and at `FACTOR` times and 1 / `FACTOR` of it."""

    probe: Probe
    name: str
    estimate: Estimate
    options: Mapping[str, object]

    @cached_property
    def more(self) -> Estimate:
        return self._at(FACTOR)

    @cached_property
    def less(self) -> Estimate:
        return self._at(1 / FACTOR)

    def _at(self, factor: float) -> Estimate:
        other = self.probe.network.with_damping(factor * self.probe.network.damping)
        return by_solver(self.name, other, self.probe.points, None, **self._own)

    @property
    def _own(self) -> dict[str, object]:
        return {name: value for name, value in self.options.items() if name != "norms"}

    def moves(self, removals: Removals) -> tuple[Tensor, Tensor]:
        """(-A^-1 p (k, P), p (k, P)), p = sum_i d_i grad loss_i of each removal."""
        network = self.probe.network
        pulls = torch.cat([_pull(network, group) for group in removals.members])
        return -SOLVERS[self.name](network, **self._own)(pulls).x, pulls


def _rows(probe: Probe, name: str, at: Mapping[str, _Solved], chosen: Chosen, spread: np.ndarray) -> Iterable[dict]:
    mine, points = at[name], probe.points
    for train_choice, parts in chosen.removals.items():
        for j, removals in enumerate(parts):
            if not mine.estimate.covers(removals):
                continue
            place = {"test_point": points.called[j], "test_choice": points.choice[j], "train_choice": train_choice}
            own = mine.estimate.on(removals)[:, j]
            others = [one.estimate.on(removals)[:, j] for other, one in at.items() if other != name]
            more, less = (one.on(removals)[:, j] for one in (mine.more, mine.less))
            row = probe.told | place | {"estimator": name, "n_points": len(removals)}
            row |= {"residual": mine.estimate.residual, "status": mine.estimate.status}
            row |= {"control_spread": spread[j], "estimate_spread": float(own.std()), "signal": _over(own, spread[j])}
            row |= {
                "agreement": float(np.mean([compare(own, other).spearman for other in others])) if others else NAN,
                "damping_rank": float(np.min([compare(own, other).spearman for other in (more, less)])),
                "damping_ratio": _over(more, float(np.median(np.abs(less)))),
            }
            first = train_choice == PAIRED["train_choice"] and j == points.places(points.choice[j])[0]
            row |= followed(mine, removals, j, own) if first else dict.fromkeys(FOLLOWING, NAN)
            if PAIRED.items() <= place.items():
                size = np.array([traces(probe.network, np.array(group)).sum() for group in removals.members])
                told = {"index": removals.indices, "estimate": own, "more": more, "less": less}
                row["pairs"] = told | {"trace": size / probe.sampled.mean()}
            yield row


def followed(solved: _Solved, removals: Removals, j: int, estimate: np.ndarray) -> dict[str, float]:
    """`test_curvature` and `left_out_gradient` of `signals`, at one test point."""
    network, points = solved.probe.network, solved.probe.points
    if not np.isfinite(estimate).all():
        return dict.fromkeys(FOLLOWING, NAN)
    first = np.sort(np.argsort(-np.abs(estimate), kind="stable")[:FOLLOWED])
    some = Removals(tuple(removals.members[i] for i in first), removals.n)
    moves, pulls = solved.moves(some)
    ends, test = network.theta + moves, network.on_points(points.some([j]))
    changes = (test.losses(ends) - test.losses(network.theta[None]))[:, 0].double()
    linear = (moves @ solved.probe.gradients[j]).double()
    weights = network.train.uniform(len(some)) + some.changes().to(network.theta)
    place = torch.full((len(some),), network.place)
    left = network.train.gradient(ends, weights, place)
    resting = network.train.gradient(network.theta[None], network.train.uniform(1), network.dataset)
    bent = ((changes - linear).abs() / linear.abs()).median()
    remains = ((left - resting).norm(dim=1) / pulls.norm(dim=1)).median()
    return dict(zip(FOLLOWING, (float(bent), float(remains)), strict=True))


def control_spread(truths: Mapping[str, Truth], m: int) -> np.ndarray:
    """(m,) standard deviation of what the controls of the first truth with several of them do; nan where none has."""
    for truth in truths.values():
        if truth.repeat_controls is not None and len(truth.repeat_controls) > 1:
            return truth.repeat_controls.std(axis=0, ddof=1)
    return np.full(m, NAN)


def traces(network: Network, rows: np.ndarray) -> np.ndarray:
    """(k,) traces of the Gauss-Newton parts of some training examples."""
    parts = np.array_split(rows, max(1, -(-len(rows) // AT_ONCE)))
    found = [factors_of(network.train, network.theta, torch.from_numpy(part), network.place)[0] for part in parts]
    return np.concatenate([part.square().sum((1, 2)).double().cpu().numpy() for part in found])


def metasmoothness(network: Network, further: Mapping[str, object]) -> float:
    """How far training answers changes of the example weights evenly, from -1 to 1 (arXiv 2503.13751, definition 2).

        sum_p |D1_p| sign(D1_p) sign(D2_p) / sum_p |D1_p|,  D1 = theta(w + h v) - theta(w),  D2 = theta(w + 2 h v) -
        theta(w + h v)

    theta(w) is where going on from the network under the weights w leads, always on the same batches; v is a random
    sign for each example, over n, and h is `STEP`.

    Args:
        network: with a trainer, or of a stack.
        further: options of `warm_descent` (steps, learning_rate, momentum) or of `warm_minibatch`.
    """
    signs = np.random.default_rng([network.seed, 31]).choice([-1.0, 1.0], network.train.n)
    weights = (1 + torch.arange(3)[:, None] * STEP * torch.from_numpy(signs)) / network.train.n
    ends = _going_on(network, further)(weights)
    first, second = ends[1] - ends[0], ends[2] - ends[1]
    return float((first.abs() * first.sign() * second.sign()).sum() / first.abs().sum())


def _going_on(network: Network, further: Mapping[str, object]) -> Callable[[Tensor], Tensor]:
    """Weights (K, n) -> where going on from the network under each of them leads (K, P)."""
    if network.trainer is not None:
        (schedule,) = orders(network, 1, further.get("schedule"), further.get("fraction"))
        return lambda weights: network.trainer.under(schedule, weights)
    train = network.train

    def descended(weights: Tensor) -> Tensor:
        start, place = network.theta.expand(len(weights), -1), torch.full((len(weights),), network.place)
        return descend(train, start.clone(), weights.to(start), dataset=place, label="metasmoothness", **further)

    return descended


def _pull(network: Network, group: tuple[int, ...]) -> Tensor:
    """sum_i d_i grad loss_i (1, P), without L2."""
    members, ones = own_losses(network, group)
    return members.gradient(network.theta[None], -ones / network.train.n)


def _start_norm(network: Network) -> float:
    """||grad J|| at the model's own start of the seed; nan where that is not known."""
    start = getattr(network.train.model, "init", None)
    if start is None:
        return NAN
    theta = start(network.seed).to(network.theta)[None]
    return float(network.train.gradient(theta, network.train.uniform(1), network.dataset).norm())


def _over(changes: np.ndarray, size: float) -> float:
    """The median size of changes over another size."""
    return float(np.median(np.abs(changes)) / size) if size > 0 else NAN
