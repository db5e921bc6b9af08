"""What is examined and what is left out: test points, training examples and groups of them, and what is said of them.

The types that estimates and truths share stand here, below both registries. Letters: n training examples, m examined
test points, k removals, R repetitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from fragile_lib.tools.checks import check_count
from fragile_lib.tools.errors import bad_input

NAN = float("nan")
FEWEST = 3  # removals that give a correlation
SUBSETS = "removed_"  # with a share behind it: the choice of random subsets of that share of the examples


def rows_of(name: str, rows: Iterable[int], n: int) -> tuple[int, ...]:
    """Indices of some of n examples, or those that a mask (n,) of booleans marks.

    Raises:
        InputError: what is neither, or an index outside 0 .. n - 1.
    """
    held = rows.cpu() if isinstance(rows, Tensor) else rows if isinstance(rows, np.ndarray) else list(rows)
    given = np.asarray(held)
    if given.dtype == bool and given.shape == (n,):
        return tuple(np.flatnonzero(given).tolist())
    if given.size and (given.ndim != 1 or given.dtype.kind not in "iu"):
        remedy = f"give whole numbers, or a mask of {n} booleans"
        raise bad_input(name, f"{given.dtype} {given.shape}", remedy)
    if given.size and not 0 <= given.min() <= given.max() < n:
        raise bad_input(name, tuple(given.tolist()), f"give indices of examples, 0 to {n - 1}")
    return tuple(given.astype(int).tolist())


@dataclass(frozen=True)
class Points:
    """The examined test points (m,) of one network, and the choice that each stands for.

    names: what the results call them, where that is not their index in the network's test data.
    """

    index: np.ndarray
    choice: list[str]
    names: np.ndarray | None = None

    def __len__(self) -> int:
        """m."""
        return len(self.index)

    def places(self, choice: str) -> list[int]:
        """Where among the points those of one choice are."""
        return [j for j, name in enumerate(self.choice) if name == choice]

    def some(self, places: Sequence[int]) -> Points:
        """Some of the points."""
        names = None if self.names is None else self.names[list(places)]
        return Points(self.index[list(places)], [self.choice[j] for j in places], names)

    @property
    def called(self) -> list[int]:
        """What the results call each."""
        return (self.index if self.names is None else self.names).tolist()


@dataclass(frozen=True)
class Removals:
    """k changes of the example weights, each of them leaving out a few of n examples: weights 1/n become zero.

    Held as lists of indices; the dense changes d (k, n), -1/n at what is left out, are made on demand.
    """

    members: tuple[tuple[int, ...], ...]
    n: int

    @classmethod
    def single(cls, indices: Iterable[int], n: int) -> Removals:
        """Leave out each of some examples, one by one; of a mask (n,) of booleans those that it marks.

        Raises:
            InputError: what is no index, or none of 0 .. n - 1.
        """
        return cls(tuple((i,) for i in rows_of("removals", indices, n)), n)

    @classmethod
    def groups(cls, groups: Iterable[Iterable[int]], n: int) -> Removals:
        """Leave out each of some groups of examples; a group may be a mask (n,) of booleans.

        Raises:
            InputError: what is no index, or none of 0 .. n - 1, or one that is in a group twice.
        """
        members = tuple(rows_of("removals", group, n) for group in groups)
        for group in members:
            if len(set(group)) < len(group):
                raise bad_input("removals", group, "an example can be left out once")
        return cls(members, n)

    def none(self) -> Removals:
        """No removals of the same data set."""
        return Removals((), self.n)

    def __len__(self) -> int:
        """k."""
        return len(self.members)

    @property
    def are_single(self) -> bool:
        """Whether every removal is of one example."""
        return all(len(group) == 1 for group in self.members)

    @cached_property
    def indices(self) -> np.ndarray:
        """(k,) the examples of single removals; the numbers of the groups else."""
        return np.array([g[0] for g in self.members] if self.are_single else range(len(self)), dtype=int)

    def changes(self, rows: slice | Sequence[int] = slice(None)) -> Tensor:
        """d (k, n) in float64, or some of its rows: -1/n at what is left out, nothing is renormalised."""
        members = self.members[rows] if isinstance(rows, slice) else [self.members[r] for r in rows]
        found = torch.zeros(len(members), self.n, dtype=torch.float64)
        for row, group in zip(found, members, strict=True):
            row[list(group)] = -1.0 / self.n
        return found

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(k, ...) sums of values (n, ...) over the members of each removal."""
        if self.are_single:
            return values[self.indices]
        return np.stack([values[list(group)].sum(axis=0) for group in self.members])

    def places(self, others: Removals) -> np.ndarray:
        """(k',) where among these removals the others are; -1 for one that is not here."""
        return np.array([self._place.get(group, -1) for group in others.members], dtype=int)

    @cached_property
    def _place(self) -> dict[tuple[int, ...], int]:
        return {group: place for place, group in enumerate(self.members)}

    @staticmethod
    def union(parts: Iterable[Removals]) -> Removals:
        """Everything that is in any of some removals of one data set, once and in order."""
        parts = list(parts)
        return Removals(tuple(sorted({group for part in parts for group in part.members})), parts[0].n)


@dataclass(frozen=True)
class Chosen:
    """What is left out for each test point: removals by choice, one entry a test point, and whose scores chose them."""

    removals: dict[str, list[Removals]]
    selected_by: str = ""

    def all(self) -> Removals:
        """Everything that is to be left out, once."""
        return Removals.union(part for parts in self.removals.values() for part in parts)

    def at(self, places: Sequence[int]) -> Chosen:
        """For some of the test points alone."""
        return replace(self, removals={name: [parts[j] for j in places] for name, parts in self.removals.items()})

    def only(self, *choices: str) -> Chosen:
        """Some of the choices."""
        return replace(self, removals={name: self.removals[name] for name in choices})


@dataclass(frozen=True)
class Estimate:
    """Estimated loss changes (k, m) of removals by one estimator, with its residual, cost and outcome.

    Positive: the loss rises without the example, which was helpful. norms (k,): of the estimated parameter change,
    empty where none was asked for. indefinite (k,): removals without which the curvature is not positive definite,
    empty where that is not known. additive: a group's change is the sum of its members'.
    """

    removals: Removals
    changes: np.ndarray
    residual: float = NAN
    seconds: float = NAN
    products: float = NAN
    memory_mb: float = NAN
    status: str = "ok"
    norms: np.ndarray = field(default_factory=lambda: np.zeros(0))
    indefinite: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    additive: bool = True

    def covers(self, removals: Removals) -> bool:
        """Whether `on` can tell of all of them."""
        if not self.additive or len(self.removals) < self.removals.n or not self.removals.are_single:
            return bool((self.removals.places(removals) >= 0).all())
        return True

    def on(self, removals: Removals) -> np.ndarray:
        """(k', m) for some removals: as they were estimated, or the sums over members of an additive estimate."""
        places = self.removals.places(removals)
        if (places >= 0).all():
            return self.changes[places]
        return removals.sums(self.changes)

    def status_on(self, removals: Removals) -> str:
        """The outcome for some removals: `indefinite` where it is `ok` but one of them leaves such a curvature."""
        places = self.removals.places(removals)
        flagged = len(self.indefinite) and self.indefinite[places[places >= 0]].any()
        return "indefinite" if flagged and self.status == "ok" else self.status

    def norms_on(self, removals: Removals) -> np.ndarray:
        """(k',) norms of the estimated parameter change, nan where there are none."""
        return self.norms[self.removals.places(removals)] if len(self.norms) else np.full(len(removals), NAN)

    def at(self, places: Sequence[int]) -> Estimate:
        """For some of the test points alone."""
        return replace(self, changes=self.changes[:, list(places)])


@dataclass(frozen=True)
class Truth:
    """True loss changes (k, m) of removals, nan where nothing was reached or certified.

    Args:
        removals: what was left out.
        changes: loss after the removal minus loss before it.
        control: change (m,) where nothing was removed.
        repeats: repetitions (R, k, m); nan where none was made. repeat_controls: what each one's control did (R, m).
        norms: of the parameter change (k,), from the network; norms_from_control: from its control. Empty where they
            were not measured.
        averaged: whether `changes` is the mean of R repetitions of every removal at every test point; else repetitions
            are there for the truth's noise alone, and `changes` is the first of them.
        seconds: of all of it. images: that went through a training step. unseen (k,): the share of repetitions in which
            no batch held the removal, empty where there are no batches.
    """

    removals: Removals
    changes: np.ndarray
    control: np.ndarray = field(default_factory=lambda: np.zeros(0))
    repeats: np.ndarray | None = None
    repeat_controls: np.ndarray | None = None
    norms: np.ndarray = field(default_factory=lambda: np.zeros(0))
    norms_from_control: np.ndarray = field(default_factory=lambda: np.zeros(0))
    seconds: float = NAN
    averaged: bool = False
    images: int = 0
    unseen: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def covers(self, removals: Removals) -> bool:
        """Whether all of these removals were left out."""
        return bool((self.removals.places(removals) >= 0).all())

    def on(self, removals: Removals) -> np.ndarray:
        """(k', m) of some of the removals."""
        return self.changes[self.removals.places(removals)]

    def repeats_on(self, removals: Removals, point: int) -> np.ndarray:
        """(R, k') repetitions at one test point, of those removals that all repetitions reached; R = 0 for none."""
        if self.repeats is None:
            return np.zeros((0, 0))
        found = self.repeats[:, self.removals.places(removals), point]
        return found[:, np.isfinite(found).all(axis=0)]

    def errors_on(self, removals: Removals, point: int) -> np.ndarray:
        """(k',) standard errors at one test point, by the spread of repetitions; nan where there are fewer than two."""
        if self.repeats is None or len(self.repeats) < 2:
            return np.full(len(removals), NAN)
        found = self.repeats[:, self.removals.places(removals), point].std(axis=0, ddof=1)
        return found / np.sqrt(len(self.repeats)) if self.averaged else found

    def unseen_on(self, removals: Removals) -> float:
        """The share of some removals, and of their repetitions, that no batch held; nan where there are no batches."""
        return float(self.unseen[self.removals.places(removals)].mean()) if len(self.unseen) else NAN

    def norms_on(self, removals: Removals) -> np.ndarray:
        """(k',) norms of the parameter change, nan where there are none."""
        return self.norms[self.removals.places(removals)] if len(self.norms) else np.full(len(removals), NAN)

    def at(self, places: Sequence[int]) -> Truth:
        """For some of the test points alone, without repetitions."""
        control = self.control[list(places)] if len(self.control) else self.control
        return replace(self, changes=self.changes[:, list(places)], control=control, repeats=None)

    def minus_control(self) -> Truth:
        """The same less what its control does, and each repetition less what its own does."""
        repeats = self.repeats
        if repeats is not None and self.repeat_controls is not None:
            repeats = repeats - self.repeat_controls[:, None]
        return replace(self, changes=self.changes - self.control, repeats=repeats, norms=self.norms_from_control)


def mean_of(repetitions: Sequence[Truth]) -> Truth:
    """The truth that is the mean of R repetitions of the same removals, which it keeps; nan where one of them is."""
    first = repetitions[0]
    if len(repetitions) == 1:
        return first

    def mean(name: str) -> np.ndarray:
        return np.mean([getattr(one, name) for one in repetitions], axis=0)

    return Truth(
        first.removals,
        mean("changes"),
        mean("control"),
        repeats=np.stack([one.changes for one in repetitions]),
        repeat_controls=np.stack([one.control for one in repetitions]),
        norms=mean("norms"),
        norms_from_control=mean("norms_from_control"),
        seconds=sum(one.seconds for one in repetitions),
        averaged=True,
        images=sum(one.images for one in repetitions),
        unseen=mean("unseen"),
    )


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
        _check_share("test_count", count, 1, len(order))
        start = len(order) - count if choice == "max_loss" else (len(order) - count) // 2
        index += order[start : start + count].tolist()
        names += [choice] * count
    return Points(np.array(index), names)


def _check_share(name: str, count: int, least: int, most: int) -> None:
    if not isinstance(count, Integral) or not least <= count <= most:
        raise bad_input(name, count, f"give a whole number from {least} to {most}")


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
    _check_share("train_count", count, FEWEST, len(usable))
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
        if not isinstance(size, Integral) or not 1 <= size <= min(map(len, pools)):
            raise bad_input("group_size", size, f"give 1 to {min(map(len, pools))}, the examples to draw from ({kind})")
        drawn = [rng.choice(pools[g % len(pools)], size, replace=False) for g in range(count)]
        found[f"{kind}_groups"] = [Removals.groups(np.sort(drawn, axis=1), n)] * m
    return Chosen(found, selected_by)
