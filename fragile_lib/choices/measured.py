"""What is said of removals: estimated by a formula, or measured by retraining.

Letters: k removals, m examined test points, R repetitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fragile_lib.choices.removals import Removals

NAN = float("nan")


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
