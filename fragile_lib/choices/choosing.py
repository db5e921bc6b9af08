"""Choosing test points by their loss, and training examples and groups of them by their influence or at random.

Letters: n training examples, m examined test points.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from fragile_lib.choices.removals import Chosen, Points, Removals
from fragile_lib.tools.checks import check_count
from fragile_lib.tools.errors import bad_input

FEWEST = 3  # removals that give a correlation
SUBSETS = "removed_"  # with a share behind it: the choice of random subsets of that share of the examples


def choose_points(losses: Tensor, counts: dict[str, int]) -> Points:
    """Test points by their losses (n_test,): {`max_loss`: count of largest, `p50_loss`: count nearest the median rank}.

    Raises:
        InputError: an unknown choice, or a count beyond the number of test points.
    """
    order = losses.double().cpu().numpy().argsort(kind="stable")
    index, names = [], []
    for choice, count in counts.items():
        if choice not in ("max_loss", "p50_loss"):
            raise bad_input("test_choice", choice, "choose max_loss or p50_loss")
        check_count("test_count", count, most=len(order))
        start = len(order) - count if choice == "max_loss" else (len(order) - count) // 2
        index += order[start : start + count].tolist()
        names += [choice] * count
    return Points(np.array(index), names)


def share_of(fraction: float, n: int) -> int:
    """round(fraction n) training points, three at least, the fewest that give a correlation.

    Raises:
        InputError: a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise bad_input("top_fraction", fraction, "give a share in (0, 1]")
    return min(n, max(FEWEST, round(fraction * n)))


def choose_training(choice: str, count: int, scores: np.ndarray, losses: np.ndarray, seed: int = 0) -> np.ndarray:
    """Sorted indices of training examples to leave out, count of them.

    Args:
        choice: `top_influence`: of largest |score|; `pQ_influence` (p30_influence and the like): whose |score| ranks
            nearest the Q-th percentile; `top_loss`: of largest training loss; `random`: drawn from those that have a
            score, the control of choosing by influence; `all`: every one.
        count: how many; `all` needs none.
        scores: influence (n,) on the test point in question; nan for an example that cannot be left out.
        losses: training losses (n,), for `top_loss` alone.
        seed: of `random`.

    Raises:
        InputError: an unknown choice, or a count below 3 or beyond what there is.
    """
    if choice == "all":
        return np.arange(len(scores))
    usable = np.flatnonzero(np.isfinite(scores)) if np.isfinite(scores).any() else np.arange(len(scores))
    check_count("train_count", count, least=FEWEST, most=len(usable))
    if choice == "random":
        return np.sort(np.random.default_rng([seed, 13]).choice(len(scores), count, replace=False))
    key = np.nan_to_num(losses if choice == "top_loss" else np.abs(scores), nan=-1.0)
    if choice in ("top_loss", "top_influence"):
        return np.sort((-key).argsort(kind="stable")[:count])  # of equal ones the first
    head, _, tail = choice.partition("_")
    if tail != "influence" or not head[1:].isdigit() or head[0] != "p" or int(head[1:]) > 100:
        known = "top_influence, p30_influence and the like, top_loss, random or all"
        raise bad_input("train_choice", choice, f"choose {known}")
    start = round(int(head[1:]) / 100 * len(scores)) - count // 2
    start = min(max(start, 0), len(scores) - count)
    return np.sort(key.argsort(kind="stable")[start : start + count])


def most_influential(scores: np.ndarray, count: int) -> np.ndarray:
    """(count,) sorted indices of largest mean |score| over the test points of scores (n, m)."""
    return np.sort(np.abs(scores).mean(axis=1).argsort()[-count:])


def subset_choices(shares: Iterable[float], count: int) -> dict[str, int]:
    """The counts of `choose` for random subsets: `count` of each share of the examples, `removed_0.5` and so on."""
    return {f"{SUBSETS}{share:g}": count for share in shares}


def random_subsets(share: float, count: int, n: int, seed: int = 0) -> Removals:
    """`count` random subsets of n examples, each of round(share n) of them and of one at least, left out together.

    Spearman's correlation over such subsets of half of the examples is the linear datamodelling score (Park et al.
    2023, arXiv 2303.14186, equation 8): to rank what is left out is to rank what is kept. Single examples differ.

    Raises:
        InputError: a share outside [0, 1), or a count below 3 or of more single examples than there are.
    """
    if not 0 <= share < 1:
        raise bad_input("removed_shares", share, "give shares in [0, 1)")
    size = max(1, round(share * n))
    if count < FEWEST or (size == 1 and count > n):
        raise bad_input("subsets", count, f"give a whole number of {FEWEST} or more, and up to {n} of single examples")
    rng = np.random.default_rng([seed, 17])
    if size == 1:
        return Removals.single(rng.choice(n, count, replace=False), n)
    return Removals.groups([np.sort(rng.choice(n, size, replace=False)) for _ in range(count)], n)


def choose(
    scores: np.ndarray,
    counts: dict[str, int],
    losses: np.ndarray | None = None,
    selected_by: str = "",
    seed: int = 0,
) -> Chosen:
    """What is left out for each test point: each training example of each choice, one by one, or random subsets.

    Args:
        scores: influence (n, m) on the test points, by the estimator `selected_by`.
        counts: {choice: how many}, the choices as in `choose_training`, or `removed_0.5` and the like for
            `random_subsets` of that share.
        losses: training losses (n,), for `top_loss`.
        selected_by: recorded in the rows.
        seed: of `random` and of subsets, which are the same for all test points.
    """
    (n, m), removals = scores.shape, {}
    losses = np.full(n, np.nan) if losses is None else losses
    for choice, count in counts.items():
        if choice.startswith(SUBSETS):
            removals[choice] = [random_subsets(float(choice.removeprefix(SUBSETS)), count, n, seed)] * m
        else:
            each = [choose_training(choice, count, s, losses, seed) for s in scores.T]
            removals[choice] = [Removals.single(some, n) for some in each]
    return Chosen(removals, selected_by)


def choose_the_groups(
    scores: np.ndarray, labels: np.ndarray, count: int, size: int, seed: int, selected_by: str = ""
) -> Chosen:
    """Groups of each kind, `count` of `size` training examples, the same for all test points.

    * `random_groups`: drawn from all.
    * `same_class_groups`: from one class, the classes in turn.
    * `top_influence_groups`: from the 2 size examples of largest |score| on the first test point, where a group's
      effect is largest.

    Args:
        scores: influence (n, m) on the test points, by the estimator `selected_by`.
        labels: classes (n,).
        count: number of groups of each kind.
        size: examples in each.
        seed: of the draws.
        selected_by: recorded in the rows.

    Raises:
        InputError: a group larger than what it is drawn from.
    """
    check_count("group_count", count)
    rng, n, m = np.random.default_rng([seed, 11]), *scores.shape
    kinds = {
        "random": [np.arange(n)],
        "same_class": [np.flatnonzero(labels == c) for c in np.unique(labels)],
        "top_influence": [np.argsort(-np.abs(scores[:, 0]), kind="stable")[: 2 * size]],
    }
    found = {}
    for kind, pools in kinds.items():
        check_count("group_size", size, most=min(map(len, pools)))
        drawn = [rng.choice(pools[g % len(pools)], size, replace=False) for g in range(count)]
        found[f"{kind}_groups"] = [Removals.groups(np.sort(drawn, axis=1), n)] * m
    return Chosen(found, selected_by)
