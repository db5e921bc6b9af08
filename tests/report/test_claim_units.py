"""Rules that count test points of seeds: intervals against a slow bootstrap, pairing, the kind `range`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from fragile_lib.study.claim_data import UNITS
from fragile_lib.study.claims import Claim, Part, PartVerdict, Verdict, counted, judge_part
from fragile_lib.study.report.tables import interval_words

RNG = np.random.default_rng(5)
SEED_EFFECT = RNG.normal(0.0, 0.1, 9)
NOISE = RNG.normal(0.0, 0.1, (9, 40))


def table(value: Callable[..., float], seeds=3, points=8, decays=(0.0,), choices=("top",), shared=True) -> pd.DataFrame:
    """One row for each seed, decay (a network of its own), test point and choice of training points.

    `points` may be a list, one number for each seed. With `shared` all networks have the same test points.
    """
    numbers = [points] * seeds if isinstance(points, int) else points
    return pd.DataFrame([
        {"run_id": f"wd{decay}-s{seed}", "profile": "quick", "seed": seed, "weight_decay": decay, "status": "ok",
         "test_point": point if shared else point + 100 * at, "test_choice": f"rank{point}", "train_choice": choice,
         "spearman": value(seed, point, decay, choice)}
        for seed in range(seeds) for at, decay in enumerate(decays) for point in range(numbers[seed])
        for choice in choices
    ])  # fmt: skip


def judge(results: pd.DataFrame, kind: str, unit: str = "test_point", **rule) -> PartVerdict:
    return judge_part(results, Part(kind, "a part", "spearman", unit=unit, **rule))


def slow_interval(seeds: list, statistic: Callable[[list], float], keep_seeds=False) -> np.ndarray:
    """Two-level bootstrap by loops; a seed is a list of arrays whose rows are resampled, each array on its own."""
    rng, found = np.random.default_rng(11), []
    for _ in range(4000):
        chosen = range(len(seeds)) if keep_seeds else rng.integers(0, len(seeds), len(seeds))
        found.append(statistic([[x[rng.integers(0, len(x), len(x))] for x in seeds[s]] for s in chosen]))
    return np.percentile(found, [2.5, 97.5])


def assert_near(part: PartVerdict, interval: np.ndarray, estimate: float | None = None) -> None:
    width = interval[1] - interval[0]
    assert np.abs(np.array(part.interval) - interval).max() < 0.07 * width and width > 0
    assert estimate is None or part.estimate == pytest.approx(estimate)


def noisy(seed, point, decay=0.0, choice="top"):
    return 0.6 + SEED_EFFECT[seed] + NOISE[seed, point] * (1 + 5 * decay) - decay


# -- intervals -------------------------------------------------------------------------------------------------------


def test_value_weights_every_test_point_equally():
    sizes = [3, 6, 4, 9]
    part = judge(table(noisy, 4, sizes), "value", paper=0.6)
    seeds = [[np.array([noisy(s, p) for p in range(n)])] for s, n in enumerate(sizes)]

    def mean(drawn):
        return np.concatenate([x for (x,) in drawn]).mean()

    assert (part.n_units, part.n_seeds) == (22, 4) and "22 test points of 4 seeds)" in part.sentence
    assert_near(part, slow_interval(seeds, mean), mean(seeds))


def test_interval_is_wider_than_over_all_test_points_as_if_independent():
    part = judge(table(lambda s, p, *_: float(s), 5, 20), "value", paper=2)
    assert part.interval[1] - part.interval[0] > 2  # all variation is between seeds
    assert judge(table(noisy), "value", paper=1).interval == judge(table(noisy), "value", paper=1).interval


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_are_kept_and_said_to_be(seeds):
    part = judge(table(noisy, seeds), "value", paper=0.6)
    drawn = [[np.array([noisy(s, p) for p in range(8)])] for s in range(seeds)]
    assert_near(part, slow_interval(drawn, lambda d: np.mean([x.mean() for (x,) in d]), keep_seeds=True))
    assert f"{8 * seeds} test points of {seeds} seed" in part.sentence and "covers test points only" in part.sentence


def test_a_figure_is_judged_by_the_mean_and_by_single_test_points():
    results = table(lambda s, p, *_: 0.9 - 0.4 * (p == 3))
    found = {paper: judge(results, "value", paper=paper) for paper in (0.55, 0.4, 0.85)}
    assert [found[p].outcome for p in found] == ["consistent", "differs: higher", "reproduced"]
    assert [found[p].before for p in found] == ["partly", "not", "reproduced"]


DECAYS = (0.0, 0.1, 0.4)


def slopes(drawn: list) -> float:
    means = [[x.mean() for x in networks] for networks in drawn]
    return np.mean([0.4 * np.polyfit(DECAYS, y, 1)[0] for y in means])


@pytest.mark.parametrize("shared", [True, False])
def test_trend_averages_test_points_and_resamples_each_network_on_its_own(shared):
    results = table(noisy, 4, 6, DECAYS, shared=shared)
    part = judge(results, "trend", axis="weight_decay", direction="falls")
    seeds = [[np.array([noisy(s, p, d) for p in range(6)]) for d in DECAYS] for s in range(4)]
    assert (part.outcome, part.n_seeds, part.n_units) == ("reproduced", 4, 72)
    assert_near(part, slow_interval(seeds, slopes), slopes(seeds))


def test_axis_within_one_network_keeps_its_test_points_together():
    # Test points differ by far more than the trend: only within a test point is it visible.
    results = table(noisy, 3, 8, DECAYS).assign(run_id=lambda t: t["seed"].astype(str))
    results["spearman"] = 100.0 * results["test_point"] - results["weight_decay"]
    part = judge(results, "trend", axis="weight_decay", direction="falls")
    assert part.interval == pytest.approx((-0.4, -0.4)) and part.n_units == 24
    # Each network is in every resample: one test point for each and the same numbers in all seeds, nothing can vary.
    results = table(lambda s, p, d, c: -(d**3), 3, 1, DECAYS, shared=False)
    part = judge(results, "trend", axis="weight_decay", direction="falls")
    assert part.interval == pytest.approx((part.estimate, part.estimate))


def test_one_seed_may_lack_an_axis_value_that_others_have():
    rows = table(noisy, 3, 6, (0.1, 0.2, 0.3))
    rows = rows[((rows.seed == 0) & (rows.weight_decay > 0.1)) | ((rows.seed > 0) & (rows.weight_decay == 0.1))]
    part = judge(rows, "step", axis="weight_decay", cut=0.2, direction="falls")
    beyond, before = (np.mean([noisy(0, p, decay) for p in range(6)]) for decay in (0.3, 0.2))
    assert part.estimate == pytest.approx(beyond - before)
    assert "of 1 seed; the interval covers test points only" in part.sentence


def test_step_uses_the_means_of_both_sides():
    part = judge(table(noisy, 4, 6, DECAYS), "step", axis="weight_decay", cut=0.2, direction="falls")
    seeds = [[np.array([noisy(s, p, d) for p in range(6)]) for d in DECAYS] for s in range(4)]

    def step(drawn):
        return np.mean([d.mean() - (a.mean() + b.mean()) / 2 for a, b, d in drawn])

    assert_near(part, slow_interval(seeds, step), step(seeds))


# -- pairing ---------------------------------------------------------------------------------------------------------

CHOICE = {"where": {"train_choice": "top"}, "minus": {"train_choice": "p30"}, "direction": "positive"}
NETWORKS = {"where": {"weight_decay": 0.4}, "minus": {"weight_decay": 0.0}, "direction": "negative"}


def test_difference_pairs_by_test_point():
    results = table(lambda s, p, d, c: 100 * noisy(s, p) + 0.3 * (c == "top"), choices=("top", "p30"))
    part = judge(results, "difference", **CHOICE)
    assert part.interval == pytest.approx((0.3, 0.3))
    assert (part.outcome, part.n_units) == ("reproduced", 24)


def test_test_points_without_partner_drop_out():
    results = table(lambda s, p, d, c: 0.5 + 0.3 * (c == "top"), choices=("top", "p30"))
    alone = (results["train_choice"] == "p30") & (results["test_point"] == 2)
    results.loc[(results["train_choice"] == "top") & (results["test_point"] == 2), "spearman"] = 99.0
    results.loc[(results["train_choice"] == "top") & (results["test_point"] == 5), "spearman"] = np.nan
    part = judge(results[~alone], "difference", **CHOICE)
    assert part.estimate == pytest.approx(0.3) and part.n_units == 18


@pytest.mark.parametrize("shared", [True, False])
def test_test_points_of_different_networks_are_not_paired(shared):
    results = table(noisy, decays=(0.0, 0.4), shared=shared)
    part = judge(results, "difference", **NETWORKS)
    assert part.outcome == "undecided" and "no test point of one network in common" in part.sentence


@pytest.mark.parametrize("seeds", [2, 4])
def test_paired_by_seed_resamples_both_networks_on_their_own(seeds):
    sizes = [5, 8, 6, 7][:seeds]
    part = judge(table(noisy, seeds, sizes, (0.0, 0.4)), "difference", **NETWORKS, paired="seed")
    both = [[np.array([noisy(s, p, d) for p in range(n)]) for d in (0.4, 0.0)] for s, n in enumerate(sizes)]

    def difference(drawn):
        return np.mean([a.mean() - b.mean() for a, b in drawn])

    assert (part.outcome, part.n_seeds, part.n_units) == ("reproduced", seeds, 2 * sum(sizes))
    assert_near(part, slow_interval(both, difference, keep_seeds=seeds < 3), difference(both))


def test_paired_by_seed_leaves_out_seeds_of_one_selection():
    results = table(noisy, 4, 8, (0.0, 0.4))
    part = judge(results[results["run_id"] != "wd0.0-s1"], "difference", **NETWORKS, paired="seed")
    assert (part.n_seeds, part.n_units) == (3, 48)


def test_difference_at_each_axis_value():
    def value(seed, point, decay, choice):
        return noisy(seed, point) + (choice == "top") * (0.5 if decay > 0 else -0.1)

    results = table(value, decays=DECAYS, choices=("top", "p30"), shared=False)
    rule = {**CHOICE, "axis": "weight_decay", "at_each": True}
    part = judge(results, "difference", **rule)
    assert part.outcome == "partly" and part.estimate == pytest.approx(0.3)
    assert "too few test points, at weight_decay 0." in part.sentence
    assert judge(results[results["weight_decay"] > 0], "difference", **rule).outcome == "reproduced"


# -- undecided -------------------------------------------------------------------------------------------------------


def test_too_few_test_points_are_undecided():
    part = judge(table(noisy, 1, 2), "value", paper=0.5)
    assert part.outcome == "undecided" and "2 test points have a finite" in part.sentence
    assert judge(table(noisy, 1, 3), "value", paper=0.5).outcome != "undecided"
    # Two seeds are kept, so each mean of the difference needs test points that can vary.
    assert judge(table(noisy, 2, 1, (0.0, 0.4)), "difference", **NETWORKS, paired="seed").outcome == "undecided"
    assert judge(table(noisy, 2, 1), "range", paper_high=1, paper_low=0).outcome == "undecided"


def test_differing_rows_of_one_test_point_are_undecided():
    results = pd.concat([table(noisy), table(lambda s, p, *_: noisy(s, p) + 0.01)])
    assert "differing rows" in judge(results, "value", paper=0.5).sentence
    assert judge(pd.concat([table(noisy)] * 2), "value", paper=0.5).n_units == 24


def test_several_networks_or_no_test_points_are_undecided():
    assert "several runs" in judge(table(noisy, decays=DECAYS), "value", paper=0.5).sentence
    assert "test_point" in judge(table(noisy).drop(columns="test_point"), "value", paper=0.5).sentence
    assert judge(table(lambda *_: np.nan), "value", paper=0.5).outcome == "undecided"
    disjoint = table(noisy, 2, 8, (0.0, 0.4))
    disjoint = disjoint[disjoint["run_id"].isin(["wd0.0-s0", "wd0.4-s1"])]
    assert judge(disjoint, "difference", **NETWORKS, paired="seed").outcome == "undecided"


def test_the_default_unit_is_the_seed():
    results = table(noisy, 5, 1)
    assert judge(results, "value", "seed", paper=0.6) == judge_part(
        results, Part("value", "a part", "spearman", paper=0.6)
    )
    assert judge(results, "value", "seed", paper=0.6).n_units == 0
    assert "5 seeds)" in judge(results, "value", "seed", paper=0.6).sentence
    assert "differing rows" in judge(table(noisy), "value", "seed", paper=0.6).sentence


# -- range -----------------------------------------------------------------------------------------------------------


def spread_over(low: float, high: float, seeds=3) -> pd.DataFrame:
    return table(lambda s, p, *_: low + (high - low) * p / 7 + 0.01 * s, seeds)


RANGE = {"paper_high": 0.92, "paper_low": 0.38}


def test_range_reproduced_partly_and_not():
    part = judge(spread_over(0.35, 0.95), "range", **RANGE)
    assert part.outcome == "reproduced" and part.estimate == pytest.approx(0.6)
    assert 0.3 < part.interval[0] < part.interval[1] <= 0.6 + 1e-9  # never above the true spread
    assert "24 test points of 3 seeds" in part.sentence
    assert "0.96 and 0.36, both within 0.1 of the paper’s 0.92 and 0.38." in part.sentence
    assert judge(spread_over(0.1, 0.9), "range", **RANGE).outcome == "partly"
    assert judge(spread_over(0.1, 0.9), "range", **RANGE, tolerance=0.3).outcome == "reproduced"
    assert judge(spread_over(0.85, 0.95), "range", **RANGE).outcome == "not"
    assert judge(spread_over(0.35, 0.95), "range", **RANGE, min_spread=0.55).outcome == "not"


def test_range_interval_against_loops_and_with_one_seed():
    part = judge(table(noisy, 4, 8), "range", **RANGE)
    seeds = [[np.array([noisy(s, p) for p in range(8)])] for s in range(4)]
    assert_near(part, slow_interval(seeds, lambda drawn: np.mean([np.ptp(x) for (x,) in drawn])))
    assert "covers test points only" in judge(spread_over(0.35, 0.95, seeds=1), "range", **RANGE).sentence


def test_steady_is_judged_on_the_deviation_of_the_seeds_means():
    narrow = table(lambda seed, point, *_: 0.5 + 0.01 * seed + 0.2 * (-1) ** point, seeds=4)
    part = judge(narrow, "steady", max_spread=0.1)
    assert part.outcome == "reproduced" and (part.n_seeds, part.n_units) == (4, 32)
    assert part.estimate == pytest.approx(np.std([0.5, 0.51, 0.52, 0.53], ddof=1))
    one_off = table(lambda seed, point, *_: 0.5 + 0.17 * (seed == 3) + 0.2 * (-1) ** point, seeds=4)
    assert judge(one_off, "steady", max_spread=0.09).outcome == "partly"
    assert judge(one_off, "steady", max_spread=0.05).outcome == "not"
    assert judge(table(noisy, seeds=2), "steady", max_spread=0.1).outcome == "undecided"
    assert judge(narrow[narrow["test_point"] == 0], "steady", unit="seed", max_spread=0.1).n_units == 0


def test_steady_interval_against_loops():
    seeds = [table(noisy, seeds=9).query("seed == @s")["spearman"].mean() for s in range(9)]
    rng = np.random.default_rng(0)
    draws = [np.std(np.array(seeds)[rng.integers(0, 9, 9)], ddof=1) for _ in range(4000)]
    assert_near(judge(table(noisy, seeds=9), "steady", max_spread=0.1), np.percentile(draws, [2.5, 97.5]))


def test_the_report_names_test_points_only_where_they_are_counted():
    claim = Claim("X", "text", "0.6", "A", "small_mnist")
    verdicts = [Verdict(claim, "reproduced", (judge(table(noisy), "value", unit, paper=0.6),)) for unit in UNITS]
    assert interval_words(verdicts[:1]) == "over seeds"
    assert "test points" in interval_words(verdicts)
    assert counted(3, 24) == "24 test points of 3 seeds" and counted(1, 0) == "1 seed"
