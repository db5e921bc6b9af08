"""Percentile bootstrap: the intervals of the report, over seeds or over seeds and the test points within them.

A seed is resampled as a whole: whatever was computed from it (a slope over depths, a difference of two settings) stays
together, so the callers first reduce each seed to one number and then ask for the interval of the mean. Where a seed
has several test points, these are resampled within each drawn seed (`two_level`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
MIN_SEEDS = 3
_SEED = 20210502  # any fixed number: the same results give the same interval
Group = TypeVar("Group")


def bootstrap_mean(values: np.ndarray) -> tuple[float, float]:
    """Return the 95% percentile interval of the mean of `values` (one finite number per seed, shape (E,)).

    Fewer than `MIN_SEEDS` values give `(nan, nan)`: an interval over one or two seeds would only look like one.
    """
    values = np.asarray(values, dtype=float)
    if values.size < MIN_SEEDS:
        return float("nan"), float("nan")
    return percentiles(values[_draws(values.size)].mean(axis=1))


def bootstrap_deviation(values: np.ndarray) -> tuple[float, float]:
    """Return the 95% percentile interval of the standard deviation (ddof 1) of `values`, one finite number per seed.

    A resample repeats values, so that its deviation is too small on average: the interval lies low where seeds are few.
    """
    return percentiles(np.asarray(values, dtype=float)[_draws(len(values))].std(axis=1, ddof=1))


def percentiles(resampled: np.ndarray) -> tuple[float, float]:
    """Return the ends of the 95% interval from the statistic of each resample, shape (RESAMPLES,)."""
    tail = 50.0 * (1.0 - LEVEL)
    low, high = np.percentile(resampled, [tail, 100.0 - tail])
    return float(low), float(high)


def two_level(
    seeds: Sequence[Group], draw: Callable[[Group, int, np.random.Generator], np.ndarray], stream: int = 0
) -> np.ndarray:
    """Draw seeds with replacement, and within each drawn seed, whatever `draw` draws; shape (RESAMPLES, E, ...).

    `draw(seed, n, generator)` returns n independent resamples of one seed, shape (n, ...). A seed drawn twice is
    resampled twice. Fewer than `MIN_SEEDS` seeds are all kept: only what is within them varies. Calls with different
    `stream` draw the same seeds and resample within them independently.
    """
    size = len(seeds)
    chosen = _draws(size) if size >= MIN_SEEDS else np.broadcast_to(np.arange(size), (RESAMPLES, size))
    generator = np.random.default_rng([_SEED, stream])
    places = [chosen == i for i in range(size)]
    drawn = [draw(seed, int(place.sum()), generator) for seed, place in zip(seeds, places, strict=True)]
    out = np.empty(chosen.shape + drawn[0].shape[1:])
    for place, numbers in zip(places, drawn, strict=True):
        out[place] = numbers
    return out


def times_drawn(size: int, n: int, generator: np.random.Generator) -> np.ndarray:
    """How often each of `size` units occurs in each of n resamples of `size` draws, shape (n, size)."""
    return generator.multinomial(size, np.full(size, 1.0 / size), size=n).astype(float)


@lru_cache(maxsize=4)
def _draws(size: int) -> np.ndarray:
    """Which seeds each resample holds, shape (RESAMPLES, size): the same for every statistic."""
    return np.random.default_rng(_SEED).integers(0, size, (RESAMPLES, size))
