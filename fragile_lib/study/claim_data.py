"""From the results table to the numbers of one part of a claim: rows selected, one number for each cell, their sample.

Nothing here knows what a column means. A part counts seeds, each reduced to one number, or the test points of seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from fragile_lib.agreement import MIN_SEEDS, Reduce, bootstrap_spread, bootstrap_test_points, seed_interval

TRANSFORMS: dict[str | None, Callable[[np.ndarray], np.ndarray]] = {
    None: lambda x: x,
    "log": np.log,
    "abs_log": lambda x: np.abs(np.log(x)),
}
SAME = 1e-5  # relative spread below which repeated rows of one network are one number (records round)
MIN_UNITS = 3
INDEX = {"seed": ("seed",), "test_point": ("seed", "run_id", "test_point")}  # what one number of a part is of
NOUN = {"seed": "seeds", "test_point": "test points"}
UNITS = tuple(INDEX)


class Undecidable(Exception):
    """The rows do not answer the question; the message says why."""


@dataclass(frozen=True)
class Sample:
    """What a part is judged on: the mean, its interval, and the single numbers behind it."""

    mean: float
    interval: tuple[float, float]
    singles: np.ndarray
    n_seeds: int
    n_units: int = 0  # test points, where these are counted


def select(results: pd.DataFrame, where: dict) -> pd.DataFrame:
    """Rows whose columns equal the wanted value, one of a list, or lie in `{min: a, max: b}` (both ends included).

    None asks for the rows of runs in which the column is empty throughout, or absent. Of the rows that all else leaves,
    `largest` takes those with the largest number that as many runs have as a verdict needs (`MIN_SEEDS`; else the
    largest), and `most_runs` those with the number that most runs have (of several the smallest).
    """
    keep = np.full(len(results), True)
    for column, wanted in where.items():
        if str(wanted) in _OF_THE_REST:
            continue
        if column not in results:
            keep &= wanted is None
        elif wanted is None:
            keep &= (results.groupby("run_id")[column].transform("count") == 0).to_numpy()
        else:
            kept = np.flatnonzero(keep)
            keep[kept] = _matches(results[column].iloc[kept], wanted)
    rows = results[keep]
    for column, wanted in where.items():
        if str(wanted) in _OF_THE_REST and column in rows and rows[column].notna().any():
            rows = rows[_matches(rows[column], float(_OF_THE_REST[wanted](rows, column)))]
    return rows


_OF_THE_REST: dict[str, Callable[[pd.DataFrame, str], float]] = {
    "largest": lambda rows, column: _enough(_runs_of(rows, column)).index.max(),
    "most_runs": lambda rows, column: _runs_of(rows, column).sort_index().idxmax(),
}


def _runs_of(rows: pd.DataFrame, column: str) -> pd.Series:
    """How many runs have each number of a column."""
    return rows.drop_duplicates(["run_id", column])[column].value_counts()


def _enough(runs: pd.Series) -> pd.Series:
    """Those of as many runs as a verdict needs, or all where there are none."""
    return runs[runs >= MIN_SEEDS] if (runs >= MIN_SEEDS).any() else runs


def _matches(column: pd.Series, wanted: object) -> np.ndarray:
    if isinstance(wanted, dict):
        return column.between(wanted.get("min", -np.inf), wanted.get("max", np.inf)).to_numpy()
    if isinstance(wanted, list):
        return np.logical_or.reduce([_matches(column, each) for each in wanted])
    if isinstance(wanted, bool) or not isinstance(wanted, int | float):
        return (column == wanted).to_numpy()
    return np.isclose(pd.to_numeric(column, errors="coerce").to_numpy(float), wanted, rtol=1e-9, atol=0.0)


def cell_table(rows: pd.DataFrame, statistic: str, transform: str | None, axis: str | None, unit: str) -> pd.DataFrame:
    """Return the transformed statistic, units x axis values (one column `0` without an axis).

    NaN stands where it is not finite. Raises `Undecidable` where one cell would mix differing numbers, or one seed
    several runs: the rule does not say which is meant.
    """
    by = INDEX[unit]
    whole = statistic.removesuffix("_single")
    if statistic not in rows and whole in rows:
        statistic = whole
    for column in (statistic, *by):
        if column not in rows:
            raise Undecidable(f"The results have no column “{column}”.")
    numbers = pd.to_numeric(rows[statistic], errors="coerce").to_numpy(float)
    if statistic.endswith("_single"):  # of a truth that was measured once, the only one
        once = pd.to_numeric(rows[whole], errors="coerce").to_numpy(float)
        numbers = np.where(np.isfinite(numbers), numbers, once)
    with np.errstate(all="ignore"):
        numbers = TRANSFORMS[transform](numbers)
    long = rows[list(dict.fromkeys(["seed", "run_id", *by]))].reset_index(drop=True)
    long = long.assign(at=0 if axis is None else rows[axis].to_numpy(), x=numbers)
    if (long.groupby(["seed", "at"])["run_id"].nunique() > 1).any():
        some = ", ".join(str(name) for name in sorted(long["run_id"].unique())[:3])
        raise Undecidable(f"The rule selects several runs for one seed: {some}.")
    long = long[np.isfinite(long["x"])].dropna(subset=list(by))
    if long.empty:
        raise Undecidable(f"No finite value of “{statistic}”.")
    spread = long.groupby([*by, "at"])["x"].agg(["min", "max"])
    if ((spread["max"] - spread["min"]) > SAME * spread.abs().max(axis=1)).any():
        raise Undecidable("The rule selects several differing rows of one network.")
    return spread["max"].unstack("at").sort_index(axis=1)


class Numbers:
    """The numbers of a part: one table for the selection, or two (the second is subtracted, seed by seed).

    A table has one row for each unit (see `INDEX`) and one column for each axis value. A network that stands at several
    axis values keeps its test points together when they are resampled; different networks, and the two tables, are
    resampled independently.
    """

    def __init__(self, tables: list[pd.DataFrame], statistic: str, unit: str, paired: str | None = None):
        if len(tables) > 1 and unit == "seed":
            tables = [subtract(*tables)]
        elif len(tables) > 1 and paired != "seed":
            tables = [pair_test_points(*tables)]
        self.tables, self.statistic, self.unit, self.noun = tables, statistic, unit, NOUN[unit]

    @cached_property
    def means(self) -> pd.DataFrame:
        """Mean over the units of each seed and axis value (or the difference of two such means)."""
        means = [table.groupby(level="seed").mean() for table in self.tables]
        return means[0] if len(means) == 1 else subtract(*means)

    def enough_at(self) -> pd.Series:
        """Whether enough units (of both tables) have a number at each axis value."""
        fewest = pd.DataFrame([table.notna().sum() for table in self.tables]).min()
        return fewest[self.means.columns] >= (MIN_SEEDS if self.unit == "seed" else MIN_UNITS)

    def sample(self, reduce: Reduce) -> Sample:
        """Mean over seeds of what `reduce` gives; over all test points alike where they are not averaged before."""
        values = reduce(self.means).dropna()
        if self.unit == "seed":
            self._ask_for(MIN_SEEDS, len(values))
            return Sample(float(values.mean()), seed_interval(values), values.to_numpy(), len(values))
        kept = [table.loc[table.index.isin(values.index, level="seed"), self.means.columns] for table in self.tables]
        kept = [table.dropna(how="all") for table in kept]
        self._ask_for(MIN_UNITS, sum(len(table) for table in kept))
        if len(values) < MIN_SEEDS:  # the seeds are kept, so that nothing else varies than what is behind each mean
            counts = [count for table in kept for count in table.notna().sum() if count]  # an axis value may be empty
            self._ask_for(MIN_UNITS, int(min(counts, default=0)))
        pooled = len(kept) == 1 and kept[0].shape[1] == 1
        singles = kept[0].iloc[:, 0].dropna().to_numpy() if pooled else values.to_numpy()
        interval = bootstrap_test_points(kept, reduce, pooled)
        return Sample(float(singles.mean()), interval, singles, len(values), sum(len(table) for table in kept))

    def spread(self) -> tuple[Sample, float, float]:
        """Sample the spread, largest minus smallest within each seed, and the means of both ends."""
        points = self.tables[0].iloc[:, 0].dropna()
        seeds = [x.to_numpy() for _, x in points.groupby(level="seed") if len(x) > 1]  # one alone has no spread
        n_units = sum(len(x) for x in seeds)
        self._ask_for(MIN_UNITS, n_units)
        high, low = np.array([x.max() for x in seeds]), np.array([x.min() for x in seeds])
        sample = Sample(float((high - low).mean()), bootstrap_spread(seeds), high - low, len(seeds), n_units)
        return sample, float(high.mean()), float(low.mean())

    def deviation(self) -> Sample:
        """Sample the standard deviation over seeds of the seeds' means; the interval resamples seeds."""
        values = self.means.iloc[:, 0].dropna().to_numpy()
        self._ask_for(MIN_SEEDS, len(values), "seeds")
        n_units = 0 if self.unit == "seed" else sum(len(table) for table in self.tables)
        interval = seed_interval(values, lambda x, axis=-1: np.std(x, axis=axis, ddof=1))
        return Sample(float(values.std(ddof=1)), interval, values, len(values), n_units)

    def _ask_for(self, needed: int, found: int, noun: str = "") -> None:
        if found < needed:
            what = f"{found} {noun or self.noun} have a finite “{self.statistic}” here"
            raise Undecidable(f"{what}; a judgement needs {needed}.")


def subtract(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """First minus second, paired by row and axis value; what has no partner drops out."""
    first, second = first.align(second, join="inner")
    return first - second


def pair_test_points(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Subtract test point by test point, within one network: those of two networks are not the same choice."""
    difference = subtract(first, second).dropna(how="all").dropna(axis=1, how="all")
    if difference.empty:
        raise Undecidable("The two selections have no test point of one network in common; pair them by seed.")
    return difference
