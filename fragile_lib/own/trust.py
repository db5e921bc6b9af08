"""What to believe of the scores of a network, and why: before anything is left out, and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fragile_lib.agreement import beside_reliability, compare, retrainings_for
from fragile_lib.choices import Estimate, Points, Removals, Truth, choose
from fragile_lib.network import Network
from fragile_lib.own.fitted import read_rules
from fragile_lib.own.signals import FACTOR, PAIRED, signals

SOME = 100  # training examples whose gradients tell what a removal changes
RELIABLE = 0.5  # below this a truth is too noisy to judge by
SOLVED = 0.1  # relative residual
ENOUGH = 0.8  # reliability that a number of retrainings is asked for


@dataclass(frozen=True)
class Light:
    """From where on a signal is green, and from where on red; what red means, and what to do about it.

    The remedy is a format of `trust`'s numbers: `damping`, that of the network, `more` and `less`, the two others that
    the signals tried, `upright`, -lambda_min, `best`, the estimator of least residual, and the signals themselves.
    """

    green: float
    red: float
    means: str
    remedy: str

    def of(self, value: float) -> str:
        """`green`, `amber` or `red`; `unknown` for what was not measured."""
        if not np.isfinite(value):
            return "unknown"
        sign = 1 if self.green < self.red else -1
        return "green" if sign * value <= sign * self.green else "red" if sign * value >= sign * self.red else "amber"


# Bounds follow from what each number means; they are not fitted. `rule` judges the signals beside truths.
LIGHTS = {
    "residual": Light(
        SOLVED,
        1,
        "the solver has not solved its equation",
        "more iterations, a direct solver, or a damping of {more:.2g} (now {damping:.2g})",
    ),
    "gradient_share": Light(
        1e-3, 0.1, "training has not ended, so that the network is no minimum", "train on, or ask what going on does"
    ),
    "eig_share": Light(
        -0.1,
        -1,
        "the damped curvature has a direction downwards",
        "the Gauss-Newton matrix, or a damping above {upright:.2g} (now {damping:.2g})",
    ),
    "trace_share": Light(
        0.1, 0.5, "few examples hold the curvature", "rescaled influence or the Newton step for these"
    ),
    "agreement": Light(0.9, 0.5, "estimators disagree on the order", "{best}, whose residual is the least"),
    "damping_rank": Light(
        0.95,
        0.8,
        "the order depends on the damping",
        "a damping of {less:.2g} (now {damping:.2g}) or less, with a solver that bears it",
    ),
    "test_curvature": Light(
        0.2, 1, "the test loss bends along the move", "the loss at the end of the estimated move itself"
    ),
    "left_out_gradient": Light(
        0.5,
        1,
        "the move does not lead to the optimum without the example",
        "a damping of {less:.2g} (now {damping:.2g}), or an exact solver",
    ),
    "derivative_size": Light(
        0.5,
        1,
        "the derivative of going on is no derivative of use: adaptive steps divide by gradients that are nearly zero",
        "go on by plain descent, or from a network that is at no minimum",
    ),
    "unrolled": Light(
        0.9, 0.5, "the derivative of going on has another order", "that derivative itself, if going on is what is asked"
    ),
    "retrainings": Light(
        1,
        10,
        "one retraining is mostly noise",
        "the mean of {retrainings:.0f} retrainings; random groups are no help: the noise of each example adds up too",
    ),
    "believable": Light(0.8, 0.2, "by a rule", "leave some examples out, and see"),
}


def trust(
    network: Network, points: Points, estimates: Mapping[str, Estimate], count: int = 20, derived: Truth | None = None
) -> pd.DataFrame:
    """What can be told of estimates before anything is left out: a light for each signal of each estimator.

    Of the `count` examples of largest |score| by the first estimator, at the first test point. It costs each estimator
    twice more, at other dampings, and a solve for a few removals. Beside `signals`:

    * `derivative_size`: the median change of the test loss by the derivative of going on, over that loss. From 1 on
      no such change can be linear, and the derivative is not used: where Adam goes on from a minimum it explodes.
    * `unrolled`: Spearman's correlation of the estimates with that derivative.
    * `retrainings`: how many one needs for a mean of reliability `ENOUGH`, by how far two orders of the batches agree
      on that derivative.
    * `believable`: the probability that the correlation with retraining, without its noise, is at least 0.8, by a rule
      fitted on this study (`fitted.read_rules`), on `unrolled` where that is known. Its held-out areas stand in `why`.

    Args:
        network: what was examined.
        points: the examined test points.
        estimates: by solvers (`estimates.by_name.SOLVERS`), of all training examples.
        count: see above.
        derived: `unrolled_minibatch` or `unrolled_descent` of all training examples, one by one, at these points.

    Raises:
        InputError: an estimate without a solver, or a count beyond the examples.
    """
    first, scores = Points(points.index[:1], [PAIRED["test_choice"]]), next(iter(estimates.values())).changes
    chosen = choose(scores[:, :1], {PAIRED["train_choice"]: count})
    told = pd.DataFrame(signals([network], [first], [chosen], [dict(estimates)], [{}], list(estimates)))
    if derived is not None:
        told = told.assign(**_going_on(network, first, estimates, chosen.all(), derived))
    used = "unrolled" if "unrolled" in told else "before"
    rule = read_rules()[used]
    told["believable"] = rule.probability(told)
    numbers = _numbers(network, told)
    found = []
    for row in told.to_dict("records"):
        for name, light in LIGHTS.items():
            value = float(row.get(name, np.nan))
            colour = light.of(value)
            lit = colour in ("red", "amber")
            why = (light.means, light.remedy.format(**numbers | row)) if lit else ("", "")
            why = (str(rule), why[1]) if name == "believable" else why
            found.append((row["estimator"], name, value, colour, *why))
    table = pd.DataFrame(found, columns=["estimator", "signal", "value", "light", "why", "remedy"])
    return table[table["light"] != "unknown"].reset_index(drop=True)


def _numbers(network: Network, told: pd.DataFrame) -> dict[str, object]:
    """What remedies name; see `Light`."""
    solved = told.sort_values("residual", key=lambda found: found.fillna(np.inf))
    return {
        "damping": network.damping,
        "more": FACTOR * network.damping,
        "less": network.damping / FACTOR,
        "upright": -network.certificate.get("eig_min", np.nan),
        "best": solved["estimator"].iloc[0],
    }


def _going_on(
    network: Network, first: Points, estimates: Mapping[str, Estimate], removals: Removals, derived: Truth
) -> dict[str, object]:
    """What the derivative of going on tells: its size, and where that is one of a derivative, the rest of `trust`."""
    true, repeats = derived.on(removals)[:, 0], derived.repeats_on(removals, 0)
    size = float(np.median(np.abs(true)) / network.test_losses()[first.index[0]])
    if not size < LIGHTS["derivative_size"].red:
        return {"derivative_size": size}
    return {
        "derivative_size": size,
        "unrolled": [compare(one.on(removals)[:, 0], true).spearman for one in estimates.values()],
        "retrainings": retrainings_for(ENOUGH, beside_reliability(true, repeats)["reliability_single"]),
    }


def beliefs(network: Network, estimate: Estimate, rows: pd.DataFrame) -> pd.DataFrame:
    """One line for each thing that a score rests on: what was asked, what was measured, and what follows.

    * Training has ended where ||grad J|| is below what leaving one example out adds to it, ||grad loss_i|| / n in the
      median: else the network moves by more than a removal moves it.
    * The equation is solved where the relative residual is below `SOLVED` and the curvature positive.
    * At each test point: a truth of reliability below `RELIABLE` says nothing; else the order agrees where the 95%
      interval of Spearman's correlation with the mean of R retrainings is above 0.

    Args:
        network: what was examined.
        estimate: with its residual and outcome.
        rows: of `rows.compare`, one a test point, of this estimate and one truth.
    """
    slope, added = network.certificate["grad_norm"], _added(network)
    told = [
        (
            "Has training ended?",
            f"slope of J {slope:.1e}, one example adds {added:.1e}",
            "yes" if slope < added else "no: scores are of a minimum that this network is not",
        ),
        (
            "Is the equation solved?",
            f"residual {estimate.residual:.1e}, {estimate.status}",
            "yes" if estimate.status == "ok" and estimate.residual < SOLVED else "no: an approximation, if that",
        ),
    ]
    for row in rows.to_dict("records"):
        low, high = row["spearman_low"], row["spearman_high"]
        measured = f"Spearman {row['spearman']:.2f} ({low:.2f} to {high:.2f}), slope {row['slope']:.2g}"
        asked = f"Do the scores agree with retraining at test point {row['test_point']}?"
        told.append((asked, f"{measured}, reliability {row['reliability']:.2f}", _agreed(row["reliability"], low)))
    return pd.DataFrame(told, columns=["asked", "measured", "so"])


def _agreed(reliability: float, low: float) -> str:
    if np.isnan(reliability):
        return "not known: no agreement of repetitions"
    if reliability < RELIABLE:
        return "not known: the retraining is too noisy"
    return "the order does" if low > 0 else "not shown"


def _added(network: Network) -> float:
    """The median of ||grad loss_i|| / n over some training examples."""
    n = network.train.n
    some = network.train.part(np.random.default_rng(0).permutation(n)[:SOME])
    return float(some.example_gradients(network.theta[None])[0].norm(dim=1).median()) / n
