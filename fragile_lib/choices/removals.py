"""Which test points are examined, and which training examples or groups of them are left out.

Letters: n training examples, m examined test points, k removals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fragile_lib.tools.errors import bad_input


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
