"""The rows of the results table, and the compared numbers themselves, from estimates and truths of any data set.

Letters: m examined test points, k removals of a choice.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fragile_lib import agreement
from fragile_lib.choices import NAN, Chosen, Estimate, Points, Removals, Truth
from fragile_lib.data import Data, image_strip
from fragile_lib.network import Network

PICTURED = 20  # training images to either side that a record keeps
REACHED_SHARE = 0.8  # of a choice's left-out networks that must be there for a row to be `ok`


def compare(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    estimates: list[dict[str, Estimate]],
    truths: list[dict[str, Truth]],
) -> list[dict]:
    """One row for each network, test point, choice of removals, estimator that covers it, and truth that does.

    A truth is itself an estimator, by its own name, where one of `truths` is among `estimates` (`as_estimate`).
    """
    rows = []
    for network, some, one, by, of in zip(networks, points, chosen, estimates, truths, strict=True):
        losses = network.test_losses()[some.index].tolist() if len(some) else []
        for train_choice, removals in one.removals.items():
            for j, left_out in enumerate(removals):
                place = _place(some, j, train_choice) | {"test_loss": losses[j]}
                for named, estimated, truth in _pairs(by, of, [left_out]):
                    told = network.shared | _selected(one) | place | named
                    rows.append(told | _row(network, j, left_out, estimated, truth))
    return rows


def _selected(chosen: Chosen) -> dict:
    return {"selected_by": chosen.selected_by} if chosen.selected_by else {}


def _place(points: Points, j: int, train_choice: str) -> dict:
    return {"test_point": points.called[j], "test_choice": points.choice[j], "train_choice": train_choice}


def _pairs(
    estimates: dict[str, Estimate], truths: dict[str, Truth], removals: list[Removals]
) -> Iterator[tuple[dict, Estimate, Truth]]:
    """Each estimate and truth that tell of all these removals, with their names; no truth stands against itself."""
    for name, estimated in estimates.items():
        for truth_name, truth in truths.items():
            if name != truth_name and all(estimated.covers(left) and truth.covers(left) for left in removals):
                yield {"estimator": name, "ground_truth": truth_name}, estimated, truth


def _row(network: Network, j: int, removals: Removals, estimate: Estimate, truth: Truth) -> dict:
    true, estimated = truth.on(removals)[:, j], estimate.on(removals)[:, j]
    kept = np.isfinite(true)
    found = agreement.compare(estimated[kept], true[kept])
    norms = agreement.compare_norms(estimate.norms_on(removals)[kept], truth.norms_on(removals)[kept])
    return {
        "n_points": int(kept.sum()),
        "n_uncertified": int((~kept).sum()) if network.usable else 0,
        "pearson": found.pearson,
        "spearman": found.spearman,
        "slope": found.slope,
        "sign_agreement": _sign_agreement(estimated[kept], true[kept]),
        "norm_spearman": norms.spearman,
        "norm_ratio": norms.ratio,
        "control_change": truth.control[j],
        "solver_residual": estimate.residual,
        "status": outcome(network, estimate.status_on(removals), found.status, kept),
        "seconds_estimate": estimate.seconds,
        "seconds_retrain": truth.seconds,
        "products": estimate.products,
        "memory_mb": estimate.memory_mb,
        "unseen": truth.unseen_on(removals),
        **_with_itself(estimate, truth, removals, j),
    }


def outcome(network: Network, solver: str, agreed: str, kept: np.ndarray) -> str:
    """The first outcome that is not ok, from the network over solver and truth to the comparison.

    `not_certified`: fewer than `REACHED_SHARE` of the left-out networks are there.
    """
    if not network.usable:
        return network.certificate["status"]
    if solver == "solver_diverged":
        return solver
    if kept.sum() < REACHED_SHARE * len(kept):
        return "not_certified"
    return agreed if agreed != "ok" else solver


def _sign_agreement(estimated: np.ndarray, true: np.ndarray) -> float:
    """Share of removals whose estimated and true change have one sign; unlike a correlation it feels the control."""
    if not len(true) or not np.isfinite(estimated).all():
        return NAN
    return float(np.mean(np.sign(estimated) == np.sign(true)))


def _with_itself(estimate: Estimate, truth: Truth, removals: Removals, j: int) -> dict[str, float]:
    """What a truth's repetitions say of it and of the estimate, on the removals that all of them reached."""
    repeats, estimated = truth.repeats_on(removals, j), np.zeros(0)
    if len(repeats):
        kept = np.isfinite(truth.repeats[:, truth.removals.places(removals), j]).all(axis=0)
        estimated = estimate.on(removals)[kept, j]
    return agreement.beside_reliability(estimated, repeats, truth.averaged)


def together(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    estimates: list[dict[str, Estimate]],
    truths: list[dict[str, Truth]],
) -> list[dict]:
    """Rows over all pairs of the test points of one choice together, `max_loss_together` and so on (claim S5)."""
    rows = []
    for network, some, one, by, of in zip(networks, points, chosen, estimates, truths, strict=True):
        for train_choice, removals in one.removals.items():
            for test_choice in dict.fromkeys(some.choice):
                pairs = [(j, removals[j]) for j in some.places(test_choice)]
                place = {"test_point": None, "test_choice": f"{test_choice}_together", "train_choice": train_choice}
                for named, estimated, truth in _pairs(by, of, [left for _, left in pairs]):
                    told = network.shared | _selected(one) | place | named
                    rows.append(told | _pooled(network, pairs, estimated, truth))
    return rows


def _pooled(network: Network, pairs: list[tuple[int, Removals]], estimate: Estimate, truth: Truth) -> dict:
    true = np.concatenate([truth.on(removals)[:, j] for j, removals in pairs])
    estimated = np.concatenate([estimate.on(removals)[:, j] for j, removals in pairs])
    kept = np.isfinite(true)
    found = agreement.compare(estimated[kept], true[kept])
    worst = next((s for _, r in pairs if (s := estimate.status_on(r)) != "ok"), "ok")
    return {
        "n_points": found.n,
        "pearson": found.pearson,
        "spearman": found.spearman,
        "slope": found.slope,
        "solver_residual": estimate.residual,
        "status": outcome(network, worst, found.status, kept[kept]),
    }


def scatter(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    estimates: list[dict[str, Estimate]],
    truths: list[dict[str, Truth]],
) -> list[dict]:
    """The compared numbers themselves, for each test point and choice of removals: what scatter plots show."""
    found = []
    for network, some, one, by, of in zip(networks, points, chosen, estimates, truths, strict=True):
        shared = {"seed": network.seed, "fit": network.fit, "weight_decay": network.curvature.weight_decay}
        for train_choice, removals in one.removals.items():
            for j, left in enumerate(removals):
                place = _selected(one) | _place(some, j, train_choice)
                true = {name: t.on(left)[:, j] for name, t in of.items() if t.covers(left)}
                estimated = {name: e.on(left)[:, j] for name, e in by.items() if e.covers(left)}
                errors = {name: of[name].errors_on(left, j) for name in true}
                found.append(
                    shared | place | {"index": left.indices, "estimate": estimated, "truth": true, "error": errors}
                )
    return found


def recorded(compared: list[dict], train: Data | None = None, test: Data | None = None) -> list[dict]:
    """What a record keeps of `scatter`: the training points of largest |influence| on the test points of highest loss.

    Of the first of these test points also the other training points, and, where the data are given and are images, the
    images themselves: `labels`, the test image's first, and `pixels` (`data.image_strip`), both for the test image and
    then for the `PICTURED` of largest estimate to either side, whose places in the point's lists are `pictured`.
    """
    highest = [p for p in compared if p["test_choice"] == "max_loss"]
    kept = [p for p in highest if p["train_choice"] == "top_influence"]
    if not kept or train is None or test is None:
        return kept
    first = kept[0]["test_point"]
    pictured = [_with_images(p, train, test) for p in highest if p["test_point"] == first]
    return pictured + [p for p in kept if p["test_point"] != first]


def _with_images(point: dict, train: Data, test: Data) -> dict:
    by = point.get("selected_by") or next(iter(point["estimate"]))
    order = np.argsort(point["estimate"][by], kind="stable")
    places = np.unique(np.concatenate([order[:PICTURED], order[-PICTURED:]]))
    rows, one = point["index"][places], point["test_point"]
    strip = image_strip(train.x, [test.x[0, one], *train.x[0, rows]])
    return point | {"pictured": places, "labels": [test.y[0, one], *train.y[0, rows]], "pixels": strip}


def with_truths(
    estimates: list[dict[str, Estimate]], truths: list[dict[str, Truth]], *names: str
) -> list[dict[str, Estimate]]:
    """The estimates, and beside them those truths of these names that there are, in the place of estimates."""
    pairs = zip(estimates, truths, strict=True)
    return [by | {name: as_estimate(of[name]) for name in names if name in of} for by, of in pairs]


def as_estimate(truth: Truth) -> Estimate:
    """A truth in the place of an estimate, to be compared with another truth: how far the two agree."""
    return Estimate(truth.removals, truth.changes, additive=False)
