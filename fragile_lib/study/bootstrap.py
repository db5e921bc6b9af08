"""Percentile bootstrap over seeds: the one interval of the report.

A seed is resampled as a whole: whatever was computed from it (a slope over depths, a difference of two settings) stays
together, so the callers first reduce each seed to one number and then ask for the interval of the mean.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
MIN_SEEDS = 3
_SEED = 20210502  # any fixed number: the same results give the same interval


def bootstrap_mean(values: np.ndarray) -> tuple[float, float]:
    """Return the 95% percentile interval of the mean of `values` (one finite number per seed, shape (E,)).

    Fewer than `MIN_SEEDS` values give `(nan, nan)`: an interval over one or two seeds would only look like one.
    """
    values = np.asarray(values, dtype=float)
    if values.size < MIN_SEEDS:
        return float("nan"), float("nan")
    tail = 50.0 * (1.0 - LEVEL)
    low, high = np.percentile(values[_draws(values.size)].mean(axis=1), [tail, 100.0 - tail])
    return float(low), float(high)


@lru_cache(maxsize=4)
def _draws(size: int) -> np.ndarray:
    """Which seeds each resample holds, shape (RESAMPLES, size): the same for every statistic."""
    return np.random.default_rng(_SEED).integers(0, size, (RESAMPLES, size))
