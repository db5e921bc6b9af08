"""Examine one network on many test points: which points, and the rows that lay estimates beside truths.

`comparison` does this for a stack of seeds with one test point of each choice. Here one network is examined on several
test points of each choice, each with its own selections of training points; retraining is done once for the union of
all that is left out and evaluated on every test point.

Letters: n training examples, m examined test points, c chosen training points for each, k left-out points in all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from fragile_lib import agreement as evaluation
from fragile_lib.tools.errors import bad_input

NAN = float("nan")


@dataclass(frozen=True)
class Points:
    """The examined test points (m,) and the choice that each stands for."""

    index: np.ndarray
    choice: list[str]


@dataclass(frozen=True)
class Estimated:
    """Estimated loss changes (n, m) by one solver, with its residual, cost and outcome."""

    changes: np.ndarray
    residual: float = NAN
    seconds: float = NAN
    products: float = NAN
    memory_mb: float = NAN
    status: str = "ok"


@dataclass(frozen=True)
class Retrained:
    """True loss changes (n, m), nan where nothing was retrained or no optimum was certified.

    control: change (m,) where nothing was removed. left_out: the training points that were really left out; None for
    all. repeats (R, n, m): repetitions of the truth, nan where it was not repeated, for its noise.
    """

    changes: np.ndarray
    seconds: float = NAN
    control: np.ndarray = field(default_factory=lambda: np.zeros(0))
    left_out: np.ndarray | None = None
    repeats: np.ndarray | None = None

    def covers(self, chosen: np.ndarray) -> bool:
        """Whether all chosen training points were left out."""
        return self.left_out is None or bool(np.isin(chosen, self.left_out).all())


def choose_test_points(losses: Tensor, choices: dict[str, int]) -> Points:
    """Test points by their losses (m,): {`max_loss`: count of largest, `p50_loss`: count nearest the median rank}.

    Raises:
        InputError: an unknown choice, or a count beyond the number of test points.
    """
    order = losses.double().cpu().numpy().argsort(kind="stable")
    index, names = [], []
    for choice, count in choices.items():
        if choice not in ("max_loss", "p50_loss"):
            raise bad_input("test_choice", choice, "choose max_loss or p50_loss")
        if not 1 <= count <= len(order):
            raise bad_input("test_count", count, f"give a whole number from 1 to {len(order)}")
        start = len(order) - count if choice == "max_loss" else (len(order) - count) // 2
        index += order[start : start + count].tolist()
        names += [choice] * count
    return Points(np.array(index), names)


def choose_training_points(scores: np.ndarray, choice: str, count: int) -> np.ndarray:
    """(count,) sorted indices by influence scores (n,): `top_influence`, or `p30_influence` and the like.

    `pQ_influence` are the points whose |score| ranks nearest the Q-th percentile.

    Raises:
        InputError: an unknown choice, or a count beyond n.
    """
    if not 3 <= count <= len(scores):
        raise bad_input("train_count", count, f"give a whole number from 3 to {len(scores)}")
    order = np.abs(np.nan_to_num(scores, nan=-1.0)).argsort(kind="stable")
    if choice == "top_influence":
        return np.sort(order[-count:])
    head, _, tail = choice.partition("_")
    if tail != "influence" or not head[1:].isdigit() or head[0] != "p" or int(head[1:]) > 100:
        raise bad_input("train_choice", choice, "choose top_influence, or p30_influence and the like")
    start = round(int(head[1:]) / 100 * len(scores)) - count // 2
    start = min(max(start, 0), len(scores) - count)
    return np.sort(order[start : start + count])


def union(chosen: Iterable[np.ndarray]) -> np.ndarray:
    """(k,) all points that any selection leaves out, sorted."""
    return np.unique(np.concatenate(list(chosen)))


def spread_over(indices: np.ndarray, changes: np.ndarray, n: int, kept: np.ndarray | None = None) -> np.ndarray:
    """(n, m) with changes (k, m) at rows `indices`, where `kept`, and nan elsewhere."""
    full = np.full((n, changes.shape[1]), np.nan)
    kept = np.ones(len(indices), bool) if kept is None else kept
    full[indices[kept]] = changes[kept]
    return full


def rows_of(
    points: Points,
    chosen: dict[str, list[np.ndarray]],
    estimates: dict[str, Estimated],
    truths: dict[str, Retrained],
    shared: dict,
) -> list[dict]:
    """One row for each test point, choice of training points, estimator, and ground truth that covers the choice.

    Args:
        points: the examined test points.
        chosen: for each choice of training points, their indices for each test point.
        estimates: by name.
        truths: by name.
        shared: what all rows carry (seed, fit, certificate).
    """
    rows = []
    for train_choice, indices in chosen.items():
        for j, (point, test_choice) in enumerate(zip(points.index, points.choice, strict=True)):
            place = {"test_point": int(point), "test_choice": test_choice, "train_choice": train_choice}
            for name, estimated in estimates.items():
                for truth_name, truth in truths.items():
                    if truth.covers(indices[j]):
                        named = {"estimator": name, "ground_truth": truth_name}
                        rows.append(shared | place | named | _row(j, indices[j], estimated, truth))
    return rows


def _row(j: int, chosen: np.ndarray, estimated: Estimated, truth: Retrained) -> dict:
    kept = chosen[np.isfinite(truth.changes[chosen, j])]
    agreement = evaluation.compare(estimated.changes[kept, j], truth.changes[kept, j])
    outcome = "not_certified" if len(kept) < 0.8 * len(chosen) else agreement.status
    return {
        "n_points": len(kept),
        "n_uncertified": len(chosen) - len(kept),
        "pearson": agreement.pearson,
        "spearman": agreement.spearman,
        "slope": agreement.slope,
        "control_change": truth.control[j] if len(truth.control) else NAN,
        "solver_residual": estimated.residual,
        "status": outcome if outcome != "ok" else estimated.status,
        "seconds_estimate": estimated.seconds,
        "seconds_retrain": truth.seconds,
        "products": estimated.products,
        "memory_mb": estimated.memory_mb,
        **ceiling(truth, kept, j),
    }


def ceiling(truth: Retrained, chosen: np.ndarray, j: int) -> dict[str, float]:
    """How well two repetitions of the truth agree on the chosen training points: no estimate can be asked for more."""
    if truth.repeats is None:
        return {"ceiling_pearson": NAN, "ceiling_spearman": NAN}
    repeated = chosen[np.isfinite(truth.repeats[:, chosen, j]).all(axis=0)]
    found = evaluation.noise_ceiling(truth.repeats[:, repeated, j])
    return {"ceiling_pearson": found.pearson, "ceiling_spearman": found.spearman}


def together(
    points: Points,
    chosen: dict[str, list[np.ndarray]],
    estimates: dict[str, Estimated],
    truths: dict[str, Retrained],
    shared: dict,
) -> list[dict]:
    """Rows over all pairs of the test points of one choice together, `max_loss_together` and so on (claim S5)."""
    rows = []
    for train_choice, indices in chosen.items():
        for test_choice in dict.fromkeys(points.choice):
            places = [j for j, choice in enumerate(points.choice) if choice == test_choice]
            place = {"test_point": None, "test_choice": f"{test_choice}_together", "train_choice": train_choice}
            for name, estimated in estimates.items():
                for truth_name, truth in truths.items():
                    if not all(truth.covers(indices[j]) for j in places):
                        continue
                    found = pooled(places, indices, estimated.changes, truth.changes)
                    rows.append(
                        shared
                        | place
                        | {"estimator": name, "ground_truth": truth_name, "n_points": found.n}
                        | {"pearson": found.pearson, "spearman": found.spearman, "slope": found.slope}
                        | {"solver_residual": estimated.residual}
                        | {"status": found.status if found.status != "ok" else estimated.status}
                    )
    return rows


def pooled(
    places: list[int], indices: list[np.ndarray], estimated: np.ndarray, true: np.ndarray
) -> evaluation.Agreement:
    """Agreement over the pairs of several test points, columns `places`, together."""
    pairs = [(estimated[i, j], true[i, j]) for j in places for i in indices[j] if np.isfinite(true[i, j])]
    left, right = np.array(pairs).reshape(-1, 2).T
    return evaluation.compare(left, right)


def scatter_points(
    points: Points,
    chosen: dict[str, list[np.ndarray]],
    estimates: dict[str, Estimated],
    truths: dict[str, Retrained],
    shared: dict,
) -> list[dict]:
    """The compared numbers themselves, for each test point and choice of training points: what scatter plots show."""
    found = []
    for train_choice, by_point in chosen.items():
        for j, (point, test_choice) in enumerate(zip(points.index, points.choice, strict=True)):
            index = by_point[j]
            place = {"test_point": int(point), "test_choice": test_choice, "train_choice": train_choice}
            true = {name: t.changes[index, j] for name, t in truths.items() if t.covers(index)}
            estimated = {name: e.changes[index, j] for name, e in estimates.items()}
            found.append(shared | place | {"index": index, "estimate": estimated, "truth": true})
    return found


def of_first(points: Points, truths: dict[str, Retrained], count: int) -> tuple[Points, dict[str, Retrained]]:
    """The first `count` test points with their truths, for comparisons too dear for all of them."""
    some = Points(points.index[:count], points.choice[:count])
    cut = {
        name: Retrained(t.changes[:, :count], t.seconds, t.control[:count], t.left_out) for name, t in truths.items()
    }
    return some, cut
