"""What a part counts: seeds, or the test points of seeds. Both give the mean of a part, its interval and its counts.

`Seeds` reduces each seed to one number and resamples seeds. `TestPoints` keeps every test point of every network, and
resamples seeds and, within each drawn seed, the test points of each of its networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from fragile_lib.study.bootstrap import (
    MIN_SEEDS,
    bootstrap_deviation,
    bootstrap_mean,
    percentiles,
    times_drawn,
    two_level,
)
from fragile_lib.study.claim_rows import Undecidable

MIN_UNITS = 3
UNIT = ("seed", "run_id", "test_point")  # one test point of one trained network
Reduce = Callable[[pd.DataFrame], pd.Series]  # seeds x axis values -> one number for each seed (none where unusable)


@dataclass(frozen=True)
class Sample:
    """What a part is judged on: the mean, its interval, and the single numbers behind it."""

    mean: float
    interval: tuple[float, float]
    singles: np.ndarray
    n_seeds: int
    n_units: int = 0  # test points, where these are counted


def counted(n_seeds: int, n_units: int) -> str:
    """Say what an interval is over, in the words of the report."""
    seeds = f"{n_seeds} seed" if n_seeds == 1 else f"{n_seeds} seeds"
    if not n_units:
        return seeds
    few = "; the interval covers test points only" if n_seeds < MIN_SEEDS else ""
    return f"{n_units} test points of {seeds}{few}"


class Seeds:
    """One number for each seed and axis value; `means` has shape seeds x axis values."""

    noun = "seeds"

    def __init__(self, means: pd.DataFrame, statistic: str):
        self.means, self.statistic = means, statistic

    def enough_at(self) -> pd.Series:
        """Whether enough seeds have a number at each axis value."""
        return self.means.notna().sum() >= MIN_SEEDS

    def sample(self, reduce: Reduce) -> Sample:
        """Mean over seeds of what `reduce` gives."""
        values = reduce(self.means).dropna().to_numpy()
        _enough(len(values), MIN_SEEDS, self.noun, self.statistic)
        return Sample(float(values.mean()), bootstrap_mean(values), values, len(values))


class TestPoints:
    """Numbers of single test points: one table for the selection, or two (the second is subtracted, seed by seed).

    A table has one row for each test point of each network (index `UNIT`) and one column for each axis value. A
    network that stands at several axis values keeps its test points together when they are resampled; different
    networks, and the two tables, are resampled independently.
    """

    noun = "test points"
    __test__ = False  # not a test, in spite of its name

    def __init__(self, tables: list[pd.DataFrame], statistic: str):
        self.tables, self.statistic = tables, statistic

    @cached_property
    def means(self) -> pd.DataFrame:
        """Mean over the test points of each seed and axis value (or the difference of two such means)."""
        means = [table.groupby(level="seed").mean() for table in self.tables]
        return means[0] if len(means) == 1 else subtract(*means)

    def enough_at(self) -> pd.Series:
        """Whether enough test points (of both tables) have a number at each axis value."""
        fewest = pd.DataFrame([table.notna().sum() for table in self.tables]).min()
        return fewest[self.means.columns] >= MIN_UNITS

    def sample(self, reduce: Reduce) -> Sample:
        """Mean over seeds of what `reduce` gives; over all test points alike where they are not averaged before.

        The interval takes the same mean of resamples: sum_k w_k r_k / sum_k w_k over the drawn seeds k, where r_k is
        `reduce` of the means over the drawn test points, and w_k their number, or 1 where they were averaged before.
        """
        values = reduce(self.means).dropna()
        kept = [table.loc[table.index.isin(values.index, level="seed"), self.means.columns] for table in self.tables]
        kept = [table.dropna(how="all") for table in kept]
        _check_units(kept, len(values), self.statistic)
        pooled = len(kept) == 1 and kept[0].shape[1] == 1
        singles = kept[0].iloc[:, 0].dropna().to_numpy() if pooled else values.to_numpy()
        drawn, weight = _resampled(kept, reduce, pooled)
        with np.errstate(invalid="ignore"):  # 0/0 where no drawn seed is usable
            means = (weight * drawn).sum(axis=1) / weight.sum(axis=1)
        interval = percentiles(means[np.isfinite(means)])
        return Sample(float(singles.mean()), interval, singles, len(values), sum(len(table) for table in kept))

    def spread(self) -> tuple[Sample, float, float]:
        """Sample the spread, largest minus smallest within each seed; also the means of the largest and the smallest.

        A resample of test points misses the ends it does not draw, so that its spread is never larger than the true
        one: the interval lies too low, and a spread that is found large enough is so with more certainty than stated.
        """
        points = self.tables[0].iloc[:, 0].dropna()
        seeds = [x.to_numpy() for _, x in points.groupby(level="seed") if len(x) > 1]  # one alone has no spread
        n_units = sum(len(x) for x in seeds)
        _enough(n_units, MIN_UNITS, self.noun, self.statistic)
        high, low = np.array([x.max() for x in seeds]), np.array([x.min() for x in seeds])
        interval = percentiles(two_level(seeds, _draw_spread).mean(axis=1))
        sample = Sample(float((high - low).mean()), interval, high - low, len(seeds), n_units)
        return sample, float(high.mean()), float(low.mean())


def deviation(data: Seeds | TestPoints) -> Sample:
    """Sample the standard deviation over seeds of the seeds' means; the interval resamples seeds."""
    values = data.means.iloc[:, 0].dropna().to_numpy()
    _enough(len(values), MIN_SEEDS, Seeds.noun, data.statistic)
    n_units = sum(len(table) for table in data.tables) if isinstance(data, TestPoints) else 0
    return Sample(float(values.std(ddof=1)), bootstrap_deviation(values), values, len(values), n_units)


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


def _enough(found: int, needed: int, noun: str, statistic: str) -> None:
    if found < needed:
        raise Undecidable(f"{found} {noun} have a finite “{statistic}” here; a judgement needs {needed}.")


def _check_units(tables: list[pd.DataFrame], n_seeds: int, statistic: str) -> None:
    """Ask for `MIN_UNITS` test points; behind each mean where the seeds are kept, as nothing else varies then."""
    _enough(sum(len(table) for table in tables), MIN_UNITS, TestPoints.noun, statistic)
    if n_seeds < MIN_SEEDS:
        counts = [count for table in tables for count in table.notna().sum() if count]  # an axis value may have no run
        fewest = int(min(counts, default=0))
        _enough(fewest, MIN_UNITS, TestPoints.noun, statistic)


def _resampled(tables: list[pd.DataFrame], reduce: Reduce, pooled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Reduce each drawn seed of each resample; return the numbers (0 where unusable) and their weights, (B, E)."""
    means, counts = zip(*(_drawn_means(table, stream) for stream, table in enumerate(tables)), strict=True)
    drawn = means[0] if len(means) == 1 else means[0] - means[1]
    shape = drawn.shape[:2]
    flat = pd.DataFrame(drawn.reshape(-1, drawn.shape[2]), columns=tables[0].columns)
    numbers = reduce(flat).reindex(flat.index).to_numpy().reshape(shape)
    usable = np.isfinite(numbers)
    return np.where(usable, numbers, 0.0), np.where(usable, counts[0][..., 0] if pooled else 1.0, 0.0)


def _drawn_means(table: pd.DataFrame, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and numbers of the test points of each drawn seed at each axis value, both (RESAMPLES, E, A)."""
    seeds = [
        [network.to_numpy(float) for _, network in seed.groupby(level="run_id")]
        for _, seed in table.groupby(level="seed")
    ]
    sums, counts = np.moveaxis(two_level(seeds, _draw_sums, stream), 2, 0)
    with np.errstate(invalid="ignore"):  # 0/0 where no finite number was drawn
        return sums / counts, counts


def _draw_sums(networks: list[np.ndarray], n: int, generator: np.random.Generator) -> np.ndarray:
    """Sums and counts over resampled test points of one seed's networks, (test points, A) each; shape (n, 2, A)."""
    total = np.zeros((n, 2, networks[0].shape[1]))
    for numbers in networks:
        times = times_drawn(len(numbers), n, generator)
        total[:, 0] += times @ np.nan_to_num(numbers)
        total[:, 1] += times @ np.isfinite(numbers).astype(float)
    return total


def _draw_spread(numbers: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """Largest minus smallest of n resamples of one seed's test points, shape (n,)."""
    drawn = times_drawn(len(numbers), n, generator) > 0
    return np.where(drawn, numbers, -np.inf).max(axis=1) - np.where(drawn, numbers, np.inf).min(axis=1)
