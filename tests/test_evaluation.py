"""Agreement of estimates with truths: closed forms, scipy as a second opinion, named outcomes, coverage."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fragile_lib.agreement import (
    Interval,
    beside_reliability,
    bootstrap_interval,
    compare,
    compare_norms,
    spearman_brown,
    split_half,
    summarise,
)
from fragile_lib.tools.errors import InputError


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# -- compare -----------------------------------------------------------------------------------------------------------


def test_sign_is_kept_and_slope_is_truth_on_estimate():
    truth = np.array([-1.0, 0.5, 2.0, 3.0])
    assert compare(2 * truth + 5, truth).slope == pytest.approx(0.5)  # twice too large
    wrong_sign = compare(-truth, truth)
    assert [wrong_sign.pearson, wrong_sign.spearman, wrong_sign.slope] == pytest.approx([-1, -1, -1])


@pytest.mark.parametrize("k", [3, 20, 120])
def test_agrees_with_scipy_with_ties(rng, k):
    estimate = rng.normal(size=k).round(1)
    truth = (estimate + rng.normal(size=k)).round(0)
    agreement = compare(estimate, truth)
    assert agreement.pearson == pytest.approx(stats.pearsonr(estimate, truth).statistic, abs=1e-12)
    assert agreement.spearman == pytest.approx(stats.spearmanr(estimate, truth).statistic, abs=1e-12)
    assert agreement.slope == pytest.approx(stats.linregress(estimate, truth).slope, abs=1e-12)


def test_spearman_with_ties_by_hand_and_under_a_monotone_change(rng):
    # ranks of the truth: 1.5, 1.5, 3; of the estimate: 1, 2, 3; correlation = 1.5 / sqrt(2 * 1.5)
    assert compare([1, 2, 3], [5, 5, 6]).spearman == pytest.approx(1.5 / np.sqrt(3))
    x = rng.normal(size=50)
    agreement = compare(np.exp(5 * x), x)
    assert agreement.spearman == pytest.approx(1) and agreement.pearson < 0.8


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1.0, 1e200, 1e308])
def test_size_of_the_numbers_does_not_matter(rng, scale):
    estimate, truth = rng.uniform(-1, 1, size=(2, 20))
    plain, scaled = compare(estimate, truth), compare(scale * estimate, scale * truth)
    assert scaled.status == "ok"
    tolerance = {"abs": 1e-9} if scale > 1e-300 else {"abs": 1e-3}
    assert scaled.pearson == pytest.approx(plain.pearson, **tolerance)
    assert scaled.slope == pytest.approx(plain.slope, **tolerance)


@pytest.mark.parametrize(
    ("estimate", "truth", "status"),
    [
        ([1, 2, np.nan], [1, 2, 3], "diverged"),
        ([1, 2, 3], [1, -np.inf, 3], "diverged"),
        ([np.nan], [1], "diverged"),
        ([], [], "too_few"),
        ([1, 2], [1, 2], "too_few"),
        ([0, 0, 0], [1, 2, 3], "constant"),
        ([1, 2, 3], [4, 4, 4], "constant"),
        ([1, 1 + 1e-14, 1 - 1e-14], [1, 2, 3], "constant"),
        ([1e-300, 2e-300, 3e-300], [1e300, 2e300, 4e300], "diverged"),
    ],
)
def test_what_cannot_be_compared_is_named(estimate, truth, status):
    agreement = compare(estimate, truth)
    assert (agreement.status, agreement.n) == (status, len(estimate))
    assert np.isnan([agreement.pearson, agreement.spearman, agreement.slope]).all()


def test_small_changes_about_zero_are_not_constant():
    assert compare([1e-15, -1e-15, 3e-15], [1e-14, -1e-14, 2e-14]).status == "ok"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: compare(np.zeros(3), np.zeros(4)), "shapes of estimate and truth"),
        (lambda: compare(np.zeros((2, 2)), np.zeros((2, 2))), "shapes of estimate and truth"),
        (lambda: compare(1.0, 1.0), "shapes of estimate and truth"),
        (lambda: compare_norms([1, 2, -1], [1, 1, 1]), "norm = -1.0"),
        (lambda: bootstrap_interval([1.0, 2.0], level=95), "level = 95"),
        (lambda: split_half(np.ones(5)), "repeats.shape"),
        (lambda: summarise(table(), ["depht"]), "column = 'depht'"),
    ],
)
def test_what_only_a_mistake_can_give_is_refused(call, named):
    with pytest.raises(InputError, match=named):
        call()


def test_norms(rng):
    true = rng.uniform(1, 2, size=11)
    assert list(compare_norms(2 * true, true)) == pytest.approx([1, 2])
    assert compare_norms([0, 1, 2, 3], [0, 1, 2, 3]).ratio == 1  # nothing moved: no ratio
    assert compare_norms([5, 1, 2, 3], [0, 1, 1, 1]).ratio == pytest.approx(2.5)  # infinite ratio: counts as large
    assert np.isnan(compare_norms([1, 1, 1], [0, 0, 0]).ratio)
    for estimated, true in (([0, 0, 0], [0, 0, 0]), ([], []), ([1, np.inf, 1], [1, 1, 2])):
        assert np.isnan(compare_norms(estimated, true)).all()
    assert compare_norms([1, 4], [2, 2]) == (pytest.approx(np.nan, nan_ok=True), 1.25)


# -- bootstrap ---------------------------------------------------------------------------------------------------------


def test_bootstrap_by_enumeration_and_of_other_statistics():
    # all 27 resamples of 3 values: the 2.5% and 97.5% points of their means are those of (0, 0, 0) and (3, 3, 3)
    assert bootstrap_interval([0.0, 1.0, 3.0]) == Interval(mean=pytest.approx(4 / 3), low=0.0, high=3.0, n=3)
    assert bootstrap_interval([2.0] * 5) == Interval(2.0, 2.0, 2.0, 5)
    median = bootstrap_interval([1.0, 2.0, 100.0], np.median)
    assert (median.mean, median.low, median.high) == (2.0, 1.0, 100.0)
    slow = bootstrap_interval([1.0, 2.0, 4.0], lambda x: x.max(), resamples=200)  # no axis argument
    assert (slow.mean, slow.high) == (4.0, 4.0)


def test_bootstrap_agrees_with_the_normal_interval_on_many_values(rng):
    values = rng.normal(3, 2, size=400)
    interval = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(400)
    ends = [values.mean() - half, values.mean() + half]
    assert [interval.low, interval.high] == pytest.approx(ends, abs=0.02)
    wide, narrow = bootstrap_interval(values[:20], level=0.99), bootstrap_interval(values[:20], level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_bootstrap_ignores_what_is_not_finite_and_is_deterministic(rng):
    assert bootstrap_interval([0.1, 0.5, 0.9]) == bootstrap_interval(np.array([0.1, np.nan, 0.5, np.inf, 0.9]))
    many = rng.normal(size=30)
    assert bootstrap_interval(many, seed=1) != bootstrap_interval(many, seed=2)
    for values in ([], [1.0], [np.nan, np.nan, 2.0]):
        interval = bootstrap_interval(values)
        assert np.isnan([interval.mean, interval.low, interval.high]).all()
        assert interval.n == np.isfinite(values).sum()


@pytest.mark.parametrize(("n", "expected"), [(3, 0.76), (10, 0.90), (20, 0.93)])
def test_bootstrap_coverage_is_as_documented(rng, n, expected):
    intervals = [bootstrap_interval(row, resamples=500) for row in rng.normal(size=(600, n))]
    assert np.mean([i.low <= 0 <= i.high for i in intervals]) == pytest.approx(expected, abs=0.04)


# -- reliability -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [2, 5, 10])
def test_half_means_with_known_noise_and_what_follows_for_the_whole(rng, repeats):
    # signal variance 1, noise variance 4 a repeat: a mean of h repeats has reliability 1 / (1 + 4 / h)
    signal = rng.normal(size=20_000)
    data, half = signal + 2 * rng.normal(size=(repeats, 20_000)), repeats // 2
    found = split_half(data, splits=20)
    assert found.pearson == pytest.approx(1 / (1 + 4 / half), abs=0.02) and found.status == "ok"
    assert found.spearman == pytest.approx(found.pearson, abs=0.03)
    whole = spearman_brown(found.pearson, repeats / half)
    assert whole == pytest.approx(1 / (1 + 4 / repeats), abs=0.02)
    # A perfect estimate reaches the root of the reliability.
    assert compare(signal, data.mean(axis=0)).pearson == pytest.approx(np.sqrt(whole), abs=0.015)


def test_half_means_without_noise_of_pure_noise_and_of_two_repeats(rng):
    assert split_half(np.tile(rng.normal(size=30), (6, 1))) == (pytest.approx(1), pytest.approx(1), "ok")
    assert split_half(rng.normal(size=(10, 2000))).pearson == pytest.approx(0, abs=0.05)
    two = rng.normal(size=(2, 30))
    assert split_half(two).spearman == pytest.approx(stats.spearmanr(*two).statistic)


@pytest.mark.parametrize(
    ("shape", "value", "status"),
    [((4, 5), 1, "constant"), ((1, 5), 1, "too_few"), ((4, 2), 1, "too_few"), ((4, 5), np.nan, "diverged")],
)
def test_half_means_name_what_it_cannot_compute(shape, value, status):
    assert split_half(np.full(shape, value)).status == status


def test_spearman_brown():
    assert spearman_brown(0.5) == pytest.approx(2 / 3)
    assert spearman_brown(0.5, 1) == 0.5
    assert spearman_brown(-1.0) == spearman_brown(-0.9) == -1


# -- summarise ---------------------------------------------------------------------------------------------------------


def table() -> pd.DataFrame:
    return pd.DataFrame({
        "depth": [1, 1, 1, 8, 8, 8, 8],
        "seed": [0, 1, 2, 0, 1, 2, 2],
        "spearman": [0.9, 0.8, 1.0, 0.2, np.nan, -0.4, 0.0],
        "status": ["ok", "ok", "indefinite", "ok", "constant", "ok", None],
    })  # fmt: skip


def test_summary_over_seeds():
    summary = summarise(table(), ["depth"])
    assert list(summary.columns) == ["depth", "mean", "low", "high", "n", "n_degenerate"]
    shallow, deep = summary.to_dict("records")
    expected = bootstrap_interval([0.9, 0.8, 1.0])
    assert shallow["mean"] == pytest.approx(0.9) and (shallow["low"], shallow["high"]) == (expected.low, expected.high)
    assert (shallow["n"], shallow["n_degenerate"]) == (3, 1)
    assert deep["mean"] == pytest.approx(0.0)  # seeds 0.2 and mean(-0.4, 0.0), not the mean of three rows
    assert (deep["n"], deep["n_degenerate"]) == (2, 1)
    shuffled = table().sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(summary, summarise(shuffled, ["depth"]))


def test_summary_of_one_seed_none_and_no_rows():
    one = summarise(table().iloc[:1], ["depth"]).iloc[0]
    assert one["mean"] == 0.9 and np.isnan(one["low"]) and one["n"] == 1
    none = summarise(table().iloc[4:5], ["depth"]).iloc[0]
    assert np.isnan(none["mean"]) and (none["n"], none["n_degenerate"]) == (0, 1)
    empty = summarise(table().iloc[:0], ["depth"])
    assert len(empty) == 0 and "n_degenerate" in empty.columns


def test_summary_by_nothing_by_several_of_medians_and_without_seeds():
    whole = summarise(table(), [])
    assert len(whole) == 1 and whole["n"].item() == 3  # three seeds
    assert len(summarise(table(), ["depth", "status"])) == 5  # a missing status is a group too
    assert summarise(table().iloc[:3], ["depth"], average=np.median)["mean"].item() == 0.9
    rows = pd.DataFrame({"depth": [1, 1], "slope": [1.0, 3.0]})
    assert summarise(rows, ["depth"], "slope").loc[0, ["mean", "n", "n_degenerate"]].tolist() == [2.0, 2, 0]


# -- an estimate beside repetitions ------------------------------------------------------------------------------------


def planted(seed: int, k: int = 40, count: int = 8, noise: float = 1.5) -> tuple[np.ndarray, np.ndarray, float]:
    """An estimate that correlates with a truth at 0.8, its repetitions, and their rank correlation without noise."""
    rng = np.random.default_rng(seed)
    true = rng.standard_normal(k)
    estimate = 0.8 * true + 0.6 * rng.standard_normal(k)
    return estimate, true + noise * rng.standard_normal((count, k)), stats.spearmanr(estimate, true).statistic


def test_one_repetition_says_less_than_the_mean_and_the_corrected_number_is_that_without_noise():
    found = [(beside_reliability(*planted(seed)[:2]), planted(seed)[2]) for seed in range(40)]
    mean = {name: np.mean([told[name] for told, _ in found]) for name in found[0][0]}
    whole = np.mean([r for _, r in found])
    assert mean["spearman_single"] == pytest.approx(whole / np.sqrt(1 + 1.5**2), abs=0.04)
    assert mean["reliability_single"] == pytest.approx(1 / (1 + 1.5**2), abs=0.05)
    assert mean["reliability"] == pytest.approx(1 / (1 + 1.5**2 / 8), abs=0.05)
    assert mean["spearman_corrected"] == pytest.approx(whole, abs=0.04)
    assert mean["pearson_corrected"] == pytest.approx(0.8, abs=0.05) and mean["repeats"] == 8
    for name in ("spearman", "spearman_single", "spearman_corrected", "reliability"):
        assert all(told[f"{name}_low"] < told[f"{name}_high"] for told, _ in found)
    covered = [told["spearman_corrected_low"] < r < told["spearman_corrected_high"] for told, r in found]
    assert np.mean(covered) > 0.8


def test_a_truth_that_is_one_of_its_repetitions_has_the_reliability_of_one():
    estimate, repeats, _ = planted(0)
    of_mean, of_one = (beside_reliability(estimate, repeats, averaged) for averaged in (True, False))
    assert (
        of_one["reliability"] == of_one["reliability_single"] == of_mean["reliability_single"] < of_mean["reliability"]
    )
    first = compare(estimate, repeats[0]).spearman
    assert of_one["spearman_corrected"] == pytest.approx(first / np.sqrt(of_one["reliability"]))


def test_what_has_no_repetitions_or_no_noise_to_measure_is_nan():
    estimate, repeats, _ = planted(1)
    for bad in (repeats[:1], np.zeros((0, 0)), np.ones((4, 40)), np.full((4, 40), np.nan)):
        told = beside_reliability(estimate[: bad.shape[1]], bad)
        assert np.isnan([v for name, v in told.items() if name != "repeats"]).all()
    for estimate in (np.full(40, np.nan), np.ones(40)):
        told = beside_reliability(estimate, repeats)
        assert np.isnan(told["spearman_corrected"]) and np.isnan(told["spearman_single"])
    noise = np.random.default_rng(0).standard_normal((2, 40))
    noise[1] = -noise[0]
    assert np.isnan(beside_reliability(planted(2)[0], noise)["spearman_corrected"]), "no root of what is not above zero"
