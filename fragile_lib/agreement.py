"""How well do influence estimates agree with retraining? Correlations, slopes, reliability, and every bootstrap.

Letters in shapes: k points (removals), R repeats of a ground truth, S splits of the repeats into halves, E seeds,
B resamples, A values of an axis.

A seed is resampled as a whole: whatever was computed from it (a slope over depths, a difference of two settings) stays
together, so callers first reduce each seed to one number and then ask for an interval (`bootstrap_interval`). Where a
seed has several test points, these are resampled within each drawn seed (`two_level`, `bootstrap_test_points`).

Data never make these functions raise: what cannot be computed gets a named `status` and NaN in place of numbers.
Arguments of the wrong shape raise `tools.errors.InputError`, since they can only come from a mistake in a call.
Nothing here takes the absolute value of a correlation: an estimate of the wrong sign must show as negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
from scipy import stats

from fragile_lib.tools.errors import bad_input

NAN = float("nan")
RELATIVE_RANGE = 1e-12  # values that differ by less than this share of their size are rounding, not a ranking
FEWEST_POINTS = 3  # two points always correlate perfectly
RESAMPLES = 10_000
LEVEL = 0.95
MIN_SEEDS = 3  # an interval over one or two seeds would only look like one
SEED = 20210502  # any fixed number: the same results give the same verdicts
Group = TypeVar("Group")
Reduce = Callable[[pd.DataFrame], pd.Series]  # seeds x axis values -> one number for each seed (none where unusable)


@dataclass(frozen=True)
class Agreement:
    """Agreement of one vector of estimates with one vector of true loss changes.

    `slope` is the ordinary least-squares slope of truth on estimate, with an intercept: truth ~ a + slope * estimate.
    A perfect estimate has slope 1; estimates twice too large have slope 1/2. `status` is "ok", "diverged" (a value is
    not finite), "too_few" (fewer than 3 points) or "constant" (one of the two does not vary); but for "ok" the
    three numbers are NaN.
    """

    n: int
    pearson: float
    spearman: float
    slope: float
    status: str


class NormAgreement(NamedTuple):
    """Agreement of parameter-change norms: Spearman over the points, and the median of estimated / true."""

    spearman: float
    ratio: float


@dataclass(frozen=True)
class Interval:
    """A statistic (`mean`, unless another was asked for) of n finite values and its bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


class Halves(NamedTuple):
    """Agreement of the means of two halves of a truth's repeats (`split_half`); NaN unless the status is "ok"."""

    pearson: float
    spearman: float
    status: str


def compare(estimate: np.ndarray, truth: np.ndarray) -> Agreement:
    """Compare estimated with true loss changes, both (k,): Pearson, Spearman (ties share their mean rank), slope."""
    estimate, truth = _pair("estimate", estimate, "truth", truth)
    n = estimate.size

    def unusable(status: str) -> Agreement:
        return Agreement(n, NAN, NAN, NAN, status)

    if not (np.isfinite(estimate).all() and np.isfinite(truth).all()):
        return unusable("diverged")
    if n < FEWEST_POINTS:
        return unusable("too_few")
    if _is_constant(estimate) or _is_constant(truth):
        return unusable("constant")
    slope = _slope(estimate, truth)
    if not np.isfinite(slope):  # truth larger than the estimate by more than a float can say
        return unusable("diverged")
    spearman = _pearson(stats.rankdata(estimate), stats.rankdata(truth))
    return Agreement(n, float(_pearson(estimate, truth)), float(spearman), slope, "ok")


def compare_norms(estimated: np.ndarray, true: np.ndarray) -> NormAgreement:
    """Compare estimated with true norms of the parameter change, both (k,) and not negative.

    The ratio is the median over points of estimated / true. A point where both norms are zero has no ratio and is left
    out of it; one where only the true norm is zero counts as infinitely overestimated, so that it moves the median
    towards overestimation. A median that is itself infinite, like any other number that is undefined, is NaN.
    """
    estimated, true = _pair("estimated", estimated, "true", true)
    if (estimated < 0).any() or (true < 0).any():
        worst = min(estimated.min(), true.min())
        raise bad_input("norm", float(worst), "a norm is not negative; pass norms, not signed changes")
    if not (np.isfinite(estimated).all() and np.isfinite(true).all()):
        return NormAgreement(NAN, NAN)
    moved = (estimated > 0) | (true > 0)
    with np.errstate(divide="ignore", over="ignore"):
        ratios = estimated[moved] / true[moved]
    ratio = float(np.median(ratios)) if ratios.size else NAN
    return NormAgreement(compare(estimated, true).spearman, ratio if np.isfinite(ratio) else NAN)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[..., float] = np.mean,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic of independent values (one per seed).

    Values that are not finite are ignored; with fewer than two left all three numbers are NaN. The percentile
    interval is too short on few values: simulated 95% intervals of the mean of normal values cover it 76% of the
    time at n = 3, 85% at 5, 90% at 10, 93% at 20, of skewed values bounded by 1 (Beta(8, 1)) 70, 82, 87 and 91% (BCa:
    no better), so n belongs beside every interval that is shown.

    `statistic` takes an `axis` argument if it is to be fast. The work is done by `scipy.stats.bootstrap`: 3 ms for the
    mean of ten values, 10,000 times; a hand-written version took 2 ms, which is not worth having.
    """
    if not 0 < level < 1:
        raise bad_input("level", level, "use a number between 0 and 1, like 0.95")
    values = np.asarray(values, dtype=float).ravel()
    values = values[np.isfinite(values)]
    if values.size < 2:
        return Interval(NAN, NAN, NAN, int(values.size))
    rng = np.random.default_rng(seed)
    result = stats.bootstrap(
        (values,), statistic, confidence_level=level, n_resamples=resamples, method="percentile", rng=rng
    )
    low, high = result.confidence_interval
    return Interval(float(statistic(values)), float(low), float(high), int(values.size))


def seed_interval(values: np.ndarray, statistic: Callable[..., float] = np.mean) -> tuple[float, float]:
    """95% percentile interval of a statistic of one finite number per seed, (E,); NaN for fewer than `MIN_SEEDS`.

    Of the standard deviation it lies low where seeds are few: a resample repeats values, and so deviates too little.
    """
    values = np.asarray(values, dtype=float)
    if values.size < MIN_SEEDS:
        return NAN, NAN
    interval = bootstrap_interval(values, statistic, seed=SEED)
    return interval.low, interval.high


def percentiles(resampled: np.ndarray) -> tuple[float, float]:
    """Ends of the 95% interval, from the statistic of each resample, (B,)."""
    tail = 50.0 * (1.0 - LEVEL)
    low, high = np.percentile(resampled, [tail, 100.0 - tail])
    return float(low), float(high)


def two_level(
    seeds: Sequence[Group], draw: Callable[[Group, int, np.random.Generator], np.ndarray], stream: int = 0
) -> np.ndarray:
    """Draw seeds with replacement, and within each drawn seed, whatever `draw` draws; shape (B, E, ...).

    `draw(seed, n, generator)` returns n independent resamples of one seed, shape (n, ...). A seed drawn twice is
    resampled twice. Fewer than `MIN_SEEDS` seeds are all kept: only what is within them varies. Calls with different
    `stream` draw the same seeds and resample within them independently.
    """
    size = len(seeds)
    chosen = np.broadcast_to(np.arange(size), (RESAMPLES, size))
    if size >= MIN_SEEDS:
        chosen = np.random.default_rng(SEED).integers(0, size, (RESAMPLES, size))
    generator = np.random.default_rng([SEED, stream])
    places = [chosen == i for i in range(size)]
    drawn = [draw(seed, int(place.sum()), generator) for seed, place in zip(seeds, places, strict=True)]
    out = np.empty(chosen.shape + drawn[0].shape[1:])
    for place, numbers in zip(places, drawn, strict=True):
        out[place] = numbers
    return out


def bootstrap_test_points(tables: Sequence[pd.DataFrame], reduce: Reduce, pooled: bool) -> tuple[float, float]:
    """95% interval of a mean over seeds, resampling seeds and, within each drawn seed, the test points of its networks.

    A resample gives sum_k w_k r_k / sum_k w_k over the drawn seeds k, where r_k is `reduce` of the means over the drawn
    test points, and w_k is 1, or with `pooled` the number of these test points.

    Args:
        tables: one, or two of which the second is subtracted: a row for each test point, with the levels `seed` and
            `run_id` in the index (those of one network are resampled together), and a column for each axis value.
        reduce: from the means, seeds x axis values, to one number for each seed.
        pooled: whether all test points weigh alike.
    """
    means, counts = zip(*(_drawn_means(table, stream) for stream, table in enumerate(tables)), strict=True)
    drawn = means[0] if len(means) == 1 else means[0] - means[1]
    flat = pd.DataFrame(drawn.reshape(-1, drawn.shape[2]), columns=tables[0].columns)
    numbers = reduce(flat).reindex(flat.index).to_numpy().reshape(drawn.shape[:2])
    usable = np.isfinite(numbers)
    weight = np.where(usable, counts[0][..., 0] if pooled else 1.0, 0.0)
    with np.errstate(invalid="ignore"):  # 0/0 where no drawn seed is usable
        resampled = (weight * np.where(usable, numbers, 0.0)).sum(axis=1) / weight.sum(axis=1)
    return percentiles(resampled[np.isfinite(resampled)])


def bootstrap_spread(seeds: Sequence[np.ndarray]) -> tuple[float, float]:
    """95% interval of the mean over seeds of largest minus smallest, from the numbers of each seed's test points.

    A resample of test points misses the ends it does not draw, so that its spread is never larger than the true one:
    the interval lies too low, and a spread that is found large enough is so with more certainty than stated.
    """
    return percentiles(two_level(seeds, _draw_spread).mean(axis=1))


def _drawn_means(table: pd.DataFrame, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and numbers of the test points of each drawn seed at each axis value, both (B, E, A)."""
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
        times = _times_drawn(len(numbers), n, generator)
        total[:, 0] += times @ np.nan_to_num(numbers)
        total[:, 1] += times @ np.isfinite(numbers).astype(float)
    return total


def _draw_spread(numbers: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """Largest minus smallest of n resamples of one seed's test points, shape (n,)."""
    drawn = _times_drawn(len(numbers), n, generator) > 0
    return np.where(drawn, numbers, -np.inf).max(axis=1) - np.where(drawn, numbers, np.inf).min(axis=1)


def _times_drawn(size: int, n: int, generator: np.random.Generator) -> np.ndarray:
    """How often each of `size` units occurs in each of n resamples of `size` draws, shape (n, size)."""
    return generator.multinomial(size, np.full(size, 1.0 / size), size=n).astype(float)


def split_half(repeats: np.ndarray, splits: int = 200, seed: int = 0) -> Halves:
    """Agreement of half-means of R noisy repeats of one ground truth, `repeats` of shape (R, k).

    The repeats are split at random into two halves of h = R // 2; the correlation over the k points of the two
    half-means, averaged over the splits, is `pearson` and `spearman`: the reliability of a mean of h repeats. The
    Spearman-Brown formula extends it to the mean of all R (`spearman_brown` with f = R / h), exactly for Pearson with
    equal independent noise, customarily for Spearman. The ceiling of an estimate without any error is the square root
    of that reliability: so well such an estimate correlates with the mean of all R. The agreement of two truths with
    each other is lower, since both are noisy there, and bounds no estimate.
    """
    repeats = np.asarray(repeats, dtype=float)
    if repeats.ndim != 2:
        raise bad_input("repeats.shape", repeats.shape, "pass one row per repeat and one column per point")
    if not np.isfinite(repeats).all():
        return Halves(NAN, NAN, "diverged")
    if len(repeats) < 2 or repeats.shape[1] < FEWEST_POINTS:
        return Halves(NAN, NAN, "too_few")
    half = len(repeats) // 2
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(len(repeats)), (splits, 1)), axis=1)
    first, second = (repeats[rows].mean(axis=1) for rows in (order[:, :half], order[:, half : 2 * half]))  # (S, k)
    varying = ~(_is_constant(first) | _is_constant(second))
    if not varying.any():
        return Halves(NAN, NAN, "constant")
    first, second = first[varying], second[varying]
    spearman = _pearson(stats.rankdata(first, axis=-1), stats.rankdata(second, axis=-1))
    return Halves(float(_pearson(first, second).mean()), float(spearman.mean()), "ok")


def beside_reliability(
    estimate: np.ndarray, repeats: np.ndarray, averaged: bool = True, resamples: int = 200, seed: int = 0
) -> dict[str, float]:
    """How an estimate (k,) agrees with R repetitions (R, k) of a truth, and what their noise leaves to be said.

    * `spearman_single`, `pearson_single`: the mean correlation with one repetition, as one measurement would give it.
    * `reliability_single`, `reliability`: of one repetition and of the truth, the mean of R if `averaged`, else one;
      by Spearman's correlations (Spearman and Brown, `split_half`). `reliability_pearson`: the truth's by Pearson's.
    * `spearman_corrected`, `pearson_corrected`: r / sqrt(reliability) with the truth; nan where it is not above 0. It
      may pass 1 by chance. The ceiling of an errorless estimate is sqrt(reliability).
    * `..._low`, `..._high`: 95% intervals of `spearman`, of `spearman_single`, `spearman_corrected` and `reliability`:
      percentiles over resampled points, the repetitions split into halves anew in each (C. Spearman, "The proof and
      measurement of association between two things", American Journal of Psychology 15, 1904, for the correction).
    * `ceiling_pearson`, `ceiling_spearman`: the agreement of two half-means (of two repetitions, where there are two).

    All is nan where there are fewer than two repetitions.
    """
    halves, count, half = split_half(repeats), len(repeats), len(repeats) // 2
    told = dict.fromkeys(("spearman_single", "pearson_single", "spearman_corrected", "pearson_corrected"), NAN)
    told |= {"repeats": count if count > 1 else NAN}
    told |= dict.fromkeys(("reliability_single", "reliability", "reliability_pearson"), NAN)
    names = ("spearman", "spearman_single", "spearman_corrected", "reliability")
    told |= {f"{name}_{end}": NAN for name in names for end in ("low", "high")}
    told |= {"ceiling_pearson": halves.pearson, "ceiling_spearman": halves.spearman}
    if halves.status != "ok" or not np.isfinite(estimate).all() or _is_constant(np.asarray(estimate, dtype=float)):
        return told
    factor = count if averaged else 1.0
    each = [compare(estimate, one) for one in repeats]
    found = compare(estimate, repeats.mean(axis=0) if averaged else repeats[0])
    told["spearman_single"], told["pearson_single"] = np.mean([(a.spearman, a.pearson) for a in each], axis=0).tolist()
    told["reliability_single"] = spearman_brown(halves.spearman, 1 / half)
    told["reliability"] = spearman_brown(halves.spearman, factor / half)
    told["reliability_pearson"] = spearman_brown(halves.pearson, factor / half)
    told["spearman_corrected"] = corrected(found.spearman, told["reliability"])
    told["pearson_corrected"] = corrected(found.pearson, told["reliability_pearson"])
    for name, values in _resampled(estimate, repeats, factor, resamples, seed).items():
        if np.isfinite(values).sum() > resamples / 2:
            told[f"{name}_low"], told[f"{name}_high"] = percentiles(values[np.isfinite(values)])
    return told


def _resampled(
    estimate: np.ndarray, repeats: np.ndarray, factor: float, resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """What `beside_reliability` gives intervals of, each (S,): in S draws of points and of halves of repetitions."""
    rng, half = np.random.default_rng([SEED, seed]), len(repeats) // 2
    draws = [(rng.integers(0, len(estimate), len(estimate)), rng.permutation(len(repeats))) for _ in range(resamples)]
    points, order = (np.stack(drawn) for drawn in zip(*draws, strict=True))  # (S, k), (S, R)
    shuffled = repeats[order[:, :, None], points[:, None]]  # (S, R, k)
    halves = shuffled[:, :half].mean(axis=1), shuffled[:, half : 2 * half].mean(axis=1)
    ranks = stats.rankdata(np.stack([estimate[points], *halves]), axis=-1)  # (3, S, k)
    ranks = ranks[:, ~_is_constant(ranks).any(axis=0)]
    first, second, between = (_pearson(ranks[i], ranks[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    of_half = np.where(between > 0, between, np.nan) ** 0.5
    r = (first + second) / 2 / of_half
    by_factor = {extent: spearman_brown(between, extent / half) for extent in (factor, 1)}
    return {
        "spearman": r * np.maximum(by_factor[factor], 0) ** 0.5,
        "spearman_single": r * np.maximum(by_factor[1], 0) ** 0.5,
        "spearman_corrected": r,
        "reliability": by_factor[factor],
    }


def corrected(r: float, reliability: float) -> float:
    """A correlation without the noise of one of its sides: r / sqrt(reliability), nan where that is not above 0."""
    return r / reliability**0.5 if reliability > 0 else NAN


def spearman_brown(r: float, factor: float = 2.0) -> float:
    """Reliability of f = `factor` times as many repeats as gave the reliability r, not below -1; of an array too.

        f r / (1 + (f - 1) r)

    (C. Spearman, "Correlation calculated from faulty data", and W. Brown, "Some experimental results in the correlation
    of mental abilities", both British Journal of Psychology 3, 1910).
    """
    denominator = np.asarray(1 + (factor - 1) * r)
    found = np.divide(factor * r, denominator, out=np.full(denominator.shape, -1.0), where=denominator > 0)
    return np.maximum(found, -1.0)[()]


def retrainings_for(reliability: float, single: float) -> float:
    """The R whose mean has a reliability, where one repetition has that of `single`: at least 1, nan for none.

    R r / (1 + (R - 1) r) solved for R (Spearman and Brown), rounded up.
    """
    if not 0 < single <= 1:
        return NAN
    return max(1.0, float(np.ceil(reliability / (1 - reliability) * (1 / single - 1) - 1e-9)))


def summarise(
    rows: pd.DataFrame,
    by: Sequence[str],
    statistic: str = "spearman",
    average: Callable[..., float] = np.mean,
    level: float = LEVEL,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean over seeds of the column `statistic`, with its bootstrap interval, for each group of the columns `by`.

    Returns one row per group, sorted: the columns `by`, then `mean, low, high, n, n_degenerate`. The seed is what is
    resampled: rows of one seed in one group (several test points, say) are averaged first. n counts the seeds with a
    number; n_degenerate the seeds with a row that has no number or whose `status` is other than "ok" (an indefinite
    Hessian leaves numbers, so a seed can count in both). One seed gives a mean without an interval. `average` may be
    np.median; the column keeps the name `mean`.
    """
    by = list(by)
    for name in [*by, statistic]:
        if name not in rows.columns:
            raise bad_input("column", name, f"the table has {', '.join(map(str, rows.columns)) or 'no columns'}")
    columns = [*by, "mean", "low", "high", "n", "n_degenerate"]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    table = rows[by].copy()
    value = pd.to_numeric(rows[statistic], errors="coerce").astype(float)
    table["_value"] = value.where(np.isfinite(value))
    status = rows["status"].astype(object) if "status" in rows.columns else pd.Series("ok", index=rows.index)
    flagged = status.notna() & status.ne("ok")
    table["_degenerate"] = table["_value"].isna() | flagged
    table["_seed"] = rows["seed"] if "seed" in rows.columns else np.arange(len(rows))
    units = table.groupby([*by, "_seed"], dropna=False, observed=True).agg({"_value": "mean", "_degenerate": "any"})
    units = units.reset_index()
    groups = units.groupby(by, dropna=False, observed=True) if by else [((), units)]
    lines = [(*key, *_summary(group, average, level, seed)) for key, group in groups]
    return pd.DataFrame(lines, columns=columns)


def _summary(units: pd.DataFrame, average: Callable[..., float], level: float, seed: int) -> tuple:
    values = units["_value"].dropna().to_numpy(dtype=float)
    interval = bootstrap_interval(values, average, level=level, seed=seed)
    centre = float(average(values)) if values.size else NAN
    return centre, interval.low, interval.high, int(values.size), int(units["_degenerate"].sum())


def _pair(name_a: str, a: np.ndarray, name_b: str, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != 1 or a.shape != b.shape:
        raise bad_input(f"shapes of {name_a} and {name_b}", (a.shape, b.shape), "pass two vectors of one length")
    return a, b


def _is_constant(x: np.ndarray) -> np.ndarray:
    """Whether the last axis varies by no more than rounding; x is finite."""
    size = np.abs(x).max(axis=-1)
    return x.max(axis=-1) / 2 - x.min(axis=-1) / 2 <= RELATIVE_RANGE * size / 2  # halves: the range may overflow


def _standardised(x: np.ndarray) -> np.ndarray:
    """Divide by the largest size, so that no square over- or underflows, and centre; along the last axis."""
    x = x / np.abs(x).max(axis=-1, keepdims=True)
    return x - x.mean(axis=-1, keepdims=True)


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = _standardised(a), _standardised(b)
    r = (a * b).sum(axis=-1) / np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return np.clip(r, -1.0, 1.0)


def _slope(estimate: np.ndarray, truth: np.ndarray) -> float:
    e, t = _standardised(estimate), _standardised(truth)
    with np.errstate(over="ignore"):
        return float((e @ t) / (e @ e) * (np.abs(truth).max() / np.abs(estimate).max()))
