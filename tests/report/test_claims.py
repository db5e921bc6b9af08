"""Verdicts on made-up results for which the right verdict is known: rules of seeds or test points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from fragile_lib.study.claim_data import UNITS, select
from fragile_lib.study.claims import (
    Claim,
    Part,
    PartVerdict,
    Verdict,
    combine,
    counted,
    evaluate_claims,
    judge_part,
    load_claims,
)  # fmt: skip
from fragile_lib.study.report.tables import interval_words
from fragile_lib.tools.errors import InputError

CLAIMS = Path(__file__).parents[2] / "params" / "claims.yaml"
NOISE = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])
FALLS = {"axis": "depth", "direction": "falls", "min_change": 0.1}
STEP = {"axis": "depth", "direction": "falls", "cut": 5, "min_change": 0.1}
DECAY = {"where": {"weight_decay": 0.005}, "minus": {"weight_decay": 0.0}, "direction": "positive"}
AT_EACH = {**DECAY, "axis": "depth", "at_each": True}


def table(value, depths=(1, 2, 4, 8), decays=(0.005,), seeds=5, **columns) -> pd.DataFrame:
    """Results of one row for each depth, decay and seed; `value(depth, decay, seed)` is the statistic."""
    return pd.DataFrame([
        {"run_id": f"d{depth}-wd{decay}", "profile": "quick", "depth": depth, "weight_decay": decay, "seed": seed,
         "spearman": value(depth, decay, seed), "status": "ok", **columns}
        for depth in depths for decay in decays for seed in range(seeds)
    ])  # fmt: skip


def both(value, depths=(1, 2, 4, 8)) -> pd.DataFrame:
    """Results with and without decay."""
    return table(value, depths, (0.005, 0.0))


def of_seeds(*values: float) -> pd.DataFrame:
    """Results of one network for each seed."""
    return table(lambda depth, decay, seed: values[seed], [1], seeds=len(values))


RNG = np.random.default_rng(5)
SEED_EFFECT = RNG.normal(0.0, 0.1, 9)
POINT_NOISE = RNG.normal(0.0, 0.1, (9, 40))
DECAYS = (0.0, 0.1, 0.4)
FALLS_IN_DECAY = {"axis": "weight_decay", "direction": "falls"}
CHOICE = {"where": {"train_choice": "top"}, "minus": {"train_choice": "p30"}, "direction": "positive"}
CHOICES = ("top", "p30")
NETWORKS = {"where": {"weight_decay": 0.4}, "minus": {"weight_decay": 0.0}, "direction": "negative"}
BY_SEED = {**NETWORKS, "paired": "seed"}
RANGE = {"paper_high": 0.92, "paper_low": 0.38}


def noisy(seed: int, point: int, decay: float = 0.0, choice: str = "top") -> float:
    """A value with an effect of the seed, and noise of the test point that grows with decay."""
    return 0.6 + SEED_EFFECT[seed] + POINT_NOISE[seed, point] * (1 + 5 * decay) - decay


def nets(value: Callable[..., float], seeds=3, points=8, decays=(0.0,), choices=("top",), shared=True) -> pd.DataFrame:
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


def judge(results: pd.DataFrame, kind: str, **rule) -> PartVerdict:
    return judge_part(results, Part(kind, "a part", "spearman", **rule))


def judged(results: pd.DataFrame, kind: str, **rule) -> PartVerdict:
    return judge(results, kind, **{"unit": "test_point", **rule})


# -- made-up results, the rule, and what is to be found: outcome, words of the sentence, other attributes -------------


def lacking(depth, decay, seed):
    """Seed 4 has one depth of four, seed 3 three of them."""
    return np.nan if (seed == 4 and depth > 1) or (seed == 3 and depth == 8) else 1 - 0.05 * depth


def degenerate() -> pd.DataFrame:
    """The networks of seed 0 are constant, those of seed 1 indefinite, whose numbers stand."""
    results = table(lambda d, w, s: np.nan if s == 0 else 1 - 0.05 * d)
    return results.assign(status=results["seed"].map({0: "constant", 1: "indefinite"}).fillna("ok"))


def twice(results: pd.DataFrame, by: float = 0.0) -> pd.DataFrame:
    return pd.concat([results, results.assign(spearman=results["spearman"] + by)])


FLAT, ONE = table(lambda *_: 0.5), table(lambda *_: 0.9, [1])
HALF = table(lambda d, w, s: np.nan if w == 0 and s > 2 else 1 + w * 20, [1], (0.005, 0.0))
PAIRED = both(lambda d, w, s: 100 * s + (0.1 if w else 0), [1])
FAR = table(lambda depth, decay, seed: (0.9 if depth <= 5 else 0.5) + seed)
GROWN = table(lambda depth, decay, seed: float(np.exp(0.3 * depth)))
SPREAD = [0.45, 0.9, 0.92, 0.94, 0.95, 0.96, 0.96, 0.97]
OF_SEEDS = {
    "a figure near": (of_seeds(*0.93 + NOISE), "value", {"where": {"depth": 1}, "paper": 0.97}, "reproduced",
                      "0.93 (95% interval", {"n_seeds": 5, "estimate": 0.93, "before": "reproduced", "p": None}),
    "among single runs": (of_seeds(*SPREAD), "value", {"paper": 0.55}, "consistent", "", {"before": "partly"}),
    "a wide interval confirms nothing": (of_seeds(0.2, 0.5, 0.9, 0.95, 0.6), "value", {"paper": 0.62}, "consistent",
                                         "", {"before": "reproduced"}),
    "lower": (of_seeds(*0.6 + NOISE), "value", {"paper": 0.97}, "differs: lower", "", {"before": "not"}),
    "higher": (of_seeds(*0.6 + NOISE), "value", {"paper": 0.2}, "differs: higher", "", {}),
    "two seeds": (of_seeds(0.9, 0.95), "value", {"paper": 0.9}, "undecided", "needs 3", {}),
    "two finite seeds": (of_seeds(0.9, 0.95, np.nan, np.inf), "value", {"paper": 0.9}, "undecided", "needs 3", {}),
    "noisy truth": (ONE.assign(reliability=0.49), "value", {"paper": 0.9}, "truth too noisy", "",
                    {"before": "reproduced"}),
    "good truth": (ONE.assign(reliability=0.51), "value", {"paper": 0.9}, "reproduced", "", {}),
    "unknown truth": (ONE.assign(reliability=np.nan), "value", {"paper": 0.9}, "reproduced", "", {}),
    "noisy and unfinished": (ONE.assign(reliability=0.1, grad_norm=1.0), "value", {"paper": 0.9}, None,
                             "reliability is 0.10", {}),
    "too few images": (ONE.assign(n_train=4999), "value", {"paper": 0.9, "at_least": {"n_train": 5000}},
                       "not tested at this scale", "", {"before": "reproduced"}),
    "enough images": (ONE.assign(n_train=5000), "value", {"paper": 0.9, "at_least": {"n_train": 5000}}, "reproduced",
                      "", {}),
    "no such depth": (FLAT, "value", {"where": {"depth": 99}, "paper": 1}, "not run", "", {}),
    "no such column": (FLAT, "value", {"where": {"fit": "descent"}, "paper": 1}, "not run", "", {}),
    "no statistic": (ONE.drop(columns="spearman"), "value", {"paper": 1}, "undecided", "", {}),
    "rows that differ": (twice(ONE, 0.1), "value", {"paper": 0.5}, "undecided", "differing rows", {}),
    "several runs": (FLAT, "value", {"paper": 0.5}, "undecided", "several runs", {}),
    "trend is slope times range": (table(lambda d, w, s: 1 - 0.05 * d + NOISE[s]), "trend", FALLS, "reproduced",
                                   "from depth 1 to 8", {"estimate": -0.35}),
    "trend of the claimed sign, but small": (table(lambda d, w, s: -0.01 * d + NOISE[s] * d / 10), "trend", FALLS,
                                             "partly", "", {}),
    "trend upwards": (table(lambda d, w, s: 0.05 * d + NOISE[s]), "trend", FALLS, "not", "", {}),
    "trend in noise": (table(lambda d, w, s: 10 * NOISE[s] * d), "trend", FALLS, "not", "", {}),
    "trend of one depth": (table(lambda d, w, s: -0.1 * d, [1]), "trend", FALLS, "undecided", "", {}),
    "trend of two depths": (table(lambda d, w, s: -0.1 * d, [1, 5]), "trend", FALLS, "reproduced", "", {}),
    "trend pairs seeds": (table(lambda d, w, s: 100 * s - 0.05 * d), "trend", FALLS, "reproduced", "",
                          {"interval": (-0.35, -0.35)}),
    "trend with missing depths": (table(lacking), "trend", FALLS, None, "", {"n_seeds": 4, "estimate": -0.35}),
    "trend of degenerate networks": (degenerate(), "trend", FALLS, None, "",
                                     {"degenerate": {"constant": 4}, "n_networks": 20, "n_seeds": 4}),
    "logarithms, rows repeated": (pd.concat([GROWN.assign(estimator=e) for e in "ab"]), "trend",
                                  {"axis": "depth", "direction": "grows", "transform": "log", "min_change": 0.405},
                                  "reproduced", "", {"n_networks": 20, "estimate": 2.1}),
    "distance from one": (of_seeds(0.5, 2.0, 0.5, 2.0, 0.5), "value", {"transform": "abs_log", "paper": 0.693}, None,
                          "", {"estimate": np.log(2)}),
    "difference pairs seeds": (PAIRED, "difference", DECAY, "reproduced", "", {"interval": (0.1, 0.1)}),
    "difference of the other sign": (PAIRED, "difference", {**DECAY, "direction": "negative"}, "not", "", {}),
    "difference too small": (PAIRED, "difference", {**DECAY, "min_change": 0.2}, "partly", "", {}),
    "difference without a partner": (table(lambda *_: 1.0, [1]), "difference", DECAY, "not run", "", {}),
    "difference of lone seeds": (HALF, "difference", DECAY, None, "", {"n_seeds": 3}),
    "difference everywhere": (both(lambda d, w, s: 0.1 * d * (w > 0) + s), "difference", AT_EACH, "reproduced", "",
                              {}),
    "difference but at one": (both(lambda d, w, s: (0.5 if d > 1 else -0.1) * (w > 0) + s), "difference", AT_EACH,
                              "partly", "at depth 1.", {}),
    "step": (FAR, "step", STEP, "reproduced", "", {"estimate": -0.4}),
    "step without its far side": (FAR[FAR["depth"] < 5], "step", STEP, "undecided", "far side", {}),
}  # fmt: skip


def within() -> pd.DataFrame:
    """Test points of one network differ by far more than the trend."""
    results = nets(noisy, 3, 8, DECAYS).assign(run_id=lambda t: t["seed"].astype(str))
    return results.assign(spearman=100.0 * results["test_point"] - results["weight_decay"])


def without_partners() -> pd.DataFrame:
    """A difference of 0.3 where a test point has both choices and both are numbers."""
    results = nets(lambda s, p, d, c: 0.5 + 0.3 * (c == "top"), choices=CHOICES)
    top, point = results["train_choice"] == "top", results["test_point"]
    results.loc[top & (point == 2), "spearman"] = 99.0
    results.loc[top & (point == 5), "spearman"] = np.nan
    return results[top | (point != 2)]


def one_seed_beyond() -> pd.DataFrame:
    """Seed 0 has all values of the axis, the others the first alone."""
    rows = nets(noisy, 3, 6, (0.1, 0.2, 0.3))
    return rows[(rows.seed == 0) & (rows.weight_decay > 0.1) | (rows.seed > 0) & (rows.weight_decay == 0.1)]


def spread_over(low: float, high: float, seeds=3) -> pd.DataFrame:
    return nets(lambda s, p, *_: low + (high - low) * p / 7 + 0.01 * s, seeds)


def ups(width: float, only: int | None = None, seeds: int = 4) -> pd.DataFrame:
    """Means of seeds that differ by `width` (or one of them does), among test points that differ by more."""
    return nets(lambda s, p, *_: 0.5 + width * (s if only is None else s == only) + 0.2 * (-1) ** p, seeds)


TWO = nets(noisy, decays=(0.0, 0.4))
NOISY = {"paper": 0.6}
UPPER = nets(lambda s, p, *_: 0.9 - 0.4 * (p == 3))
LARGE = nets(lambda s, p, d, c: 100 * noisy(s, p) + 0.3 * (c == "top"), choices=CHOICES)
EACH = nets(lambda s, p, d, c: noisy(s, p) + (c == "top") * (0.5 if d > 0 else -0.1),
            decays=DECAYS, choices=CHOICES, shared=False)  # fmt: skip
AT_DECAYS = {**CHOICE, "axis": "weight_decay", "at_each": True}
FEWER = nets(noisy, 4, 8, (0.0, 0.4)).query("run_id != 'wd0.0-s1'")
DISJOINT = nets(noisy, 2, 8, (0.0, 0.4)).query("run_id in ['wd0.0-s0', 'wd0.4-s1']")
CUBES = nets(lambda s, p, d, c: -(d**3), 3, 1, DECAYS, shared=False)
WIDE, WIDER = spread_over(0.35, 0.95), spread_over(0.1, 0.9)
OF_TEST_POINTS = {
    "within the paper's single figures": (UPPER, "value", {"paper": 0.55}, "consistent", "", {"before": "partly"}),
    "higher": (UPPER, "value", {"paper": 0.4}, "differs: higher", "", {"before": "not"}),
    "near": (UPPER, "value", {"paper": 0.85}, "reproduced", "", {"before": "reproduced"}),
    "two test points": (nets(noisy, 1, 2), "value", NOISY, "undecided", "2 test points have a finite", {}),
    "no finite one": (nets(lambda *_: np.nan), "value", NOISY, "undecided", "", {}),
    "rows that differ": (twice(nets(noisy), 0.01), "value", NOISY, "undecided", "differing rows", {}),
    "rows twice": (twice(nets(noisy)), "value", NOISY, None, "", {"n_units": 24}),
    "several runs": (nets(noisy, decays=DECAYS), "value", NOISY, "undecided", "several runs", {}),
    "no test points": (nets(noisy).drop(columns="test_point"), "value", NOISY, "undecided", "test_point", {}),
    "by seed, rows differ": (nets(noisy), "value", {"unit": "seed", **NOISY}, "undecided", "differing rows", {}),
    "by seed": (nets(noisy, 5, 1), "value", {"unit": "seed", **NOISY}, None, "5 seeds)", {"n_units": 0}),
    # An axis within one network keeps its test points together: only within a test point is the trend visible.
    "trend within networks": (within(), "trend", FALLS_IN_DECAY, None, "",
                              {"interval": (-0.4, -0.4), "n_units": 24}),
    "step that one seed has": (one_seed_beyond(), "step", {**FALLS_IN_DECAY, "cut": 0.2}, None,
                               "of 1 seed; the interval covers test points only",
                               {"estimate": np.mean([noisy(0, p, 0.3) - noisy(0, p, 0.2) for p in range(6)])}),
    "difference pairs test points": (LARGE, "difference", CHOICE, "reproduced", "",
                                     {"interval": (0.3, 0.3), "n_units": 24}),
    "test points without partner drop out": (without_partners(), "difference", CHOICE, None, "",
                                             {"estimate": 0.3, "n_units": 18}),
    "networks are not paired": (TWO, "difference", NETWORKS, "undecided", "no test point of one network in common",
                                {}),
    "nor with other test points": (nets(noisy, decays=(0.0, 0.4), shared=False), "difference", NETWORKS, "undecided",
                                   "no test point of one network in common", {}),
    "paired by seed, one lacks a network": (FEWER, "difference", BY_SEED, None, "", {"n_seeds": 3, "n_units": 48}),
    "paired by seed, one test point": (nets(noisy, 2, 1, (0.0, 0.4)), "difference", BY_SEED, "undecided", "", {}),
    "paired by seed, disjoint": (DISJOINT, "difference", BY_SEED, "undecided", "", {}),
    "difference but at one decay": (EACH, "difference", AT_DECAYS, "partly",
                                    "too few test points, at weight_decay 0.", {"estimate": 0.3}),
    "difference at each decay": (EACH.query("weight_decay > 0"), "difference", AT_DECAYS, "reproduced", "", {}),
    "range": (WIDE, "range", RANGE, "reproduced",
              "0.96 and 0.36, both within 0.1 of the paper’s 0.92 and 0.38.", {"estimate": 0.6}),
    "range counts": (WIDE, "range", RANGE, "reproduced", "24 test points of 3 seeds", {}),
    "range of one seed": (spread_over(0.35, 0.95, 1), "range", RANGE, None, "covers test points only", {}),
    "range, both ends apart": (WIDER, "range", RANGE, "partly", "", {}),
    "range with more tolerance": (WIDER, "range", {**RANGE, "tolerance": 0.3}, "reproduced", "", {}),
    "no range": (spread_over(0.85, 0.95), "range", RANGE, "not", "", {}),
    "range of one test point": (nets(noisy, 2, 1), "range", {"paper_high": 1, "paper_low": 0}, "undecided", "", {}),
    "steady": (ups(0.01), "steady", {"max_spread": 0.1}, "reproduced", "",
               {"n_seeds": 4, "n_units": 32, "estimate": np.std([0.5, 0.51, 0.52, 0.53], ddof=1)}),
    "steady but for one": (ups(0.17, 3), "steady", {"max_spread": 0.09}, "partly", "", {}),
    "not steady": (ups(0.17, 3), "steady", {"max_spread": 0.05}, "not", "", {}),
    "steady of two": (nets(noisy, 2), "steady", {"max_spread": 0.1}, "undecided", "", {}),
    "steady by seed": (ups(0.01).query("test_point == 0"), "steady", {"unit": "seed", "max_spread": 0.1}, None, "",
                       {"n_units": 0}),
}  # fmt: skip
CASES = {name: (judge, *case) for name, case in OF_SEEDS.items()}
CASES |= {f"points: {name}": (judged, *case) for name, case in OF_TEST_POINTS.items()}


@pytest.mark.parametrize("case", CASES)
def test_what_is_found_is_what_was_made(case):
    by, results, kind, rule, outcome, says, others = CASES[case]
    part = by(results, kind, **rule)
    assert outcome in (None, part.outcome) and says in part.sentence
    for name, value in others.items():
        assert getattr(part, name) == pytest.approx(value), name


def test_intervals_hold_what_varies_alone():
    part = judge(of_seeds(*0.93 + NOISE), "value", paper=0.97)
    assert 0.91 < part.interval[0] < 0.93 < part.interval[1] < 0.95
    wide = judged(nets(lambda s, p, *_: float(s), 5, 20), "value", paper=2)
    assert wide.interval[1] - wide.interval[0] > 2, "all variation is between seeds"
    assert judged(nets(noisy), "value", paper=1).interval == judged(nets(noisy), "value", paper=1).interval
    # Each network is in every resample: one test point for each and the same numbers in all seeds, nothing can vary.
    still = judged(CUBES, "trend", **FALLS_IN_DECAY)
    assert still.interval == pytest.approx((still.estimate, still.estimate))
    spread = judged(WIDE, "range", **RANGE).interval
    assert 0.3 < spread[0] < spread[1] <= 0.6 + 1e-9, "never above the true spread"
    assert judged(nets(noisy, 1, 3), "value", paper=0.5).outcome != "undecided"
    assert judged(nets(noisy, 5, 1), "value", unit="seed", **NOISY) == judge(nets(noisy, 5, 1), "value", **NOISY)


def slow_interval(seeds: list, statistic: Callable[[list], float], keep_seeds=False) -> np.ndarray:
    """Two-level bootstrap by loops; a seed is a list of arrays whose rows are resampled, each array on its own."""
    rng, found = np.random.default_rng(11), []
    for _ in range(4000):
        chosen = range(len(seeds)) if keep_seeds else rng.integers(0, len(seeds), len(seeds))
        found.append(statistic([[x[rng.integers(0, len(x), len(x))] for x in seeds[s]] for s in chosen]))
    return np.percentile(found, [2.5, 97.5])


def assert_near(part: PartVerdict, interval: np.ndarray) -> None:
    width = interval[1] - interval[0]
    assert np.abs(np.array(part.interval) - interval).max() < 0.07 * width and width > 0


def slopes(drawn: list) -> float:
    means = [[x.mean() for x in networks] for networks in drawn]
    return np.mean([0.4 * np.polyfit(DECAYS, y, 1)[0] for y in means])


def all_points(drawn: list) -> float:
    return np.concatenate([x for networks in drawn for x in networks]).mean()


def step_of(drawn: list) -> float:
    return np.mean([d.mean() - (a.mean() + b.mean()) / 2 for a, b, d in drawn])


def difference_of(drawn: list) -> float:
    return np.mean([b.mean() - a.mean() for a, b in drawn])


# kind, rule, test points of each seed, decays, with the same test points or not, and the statistic of resampled points
RESAMPLED = [
    ("value", NOISY, [3, 6, 4, 9], (0.0,), True, all_points),  # every test point has the same weight
    ("value", NOISY, [8], (0.0,), True, all_points),
    ("value", NOISY, [8, 8], (0.0,), True, all_points),
    ("trend", FALLS_IN_DECAY, [6] * 4, DECAYS, True, slopes),
    ("trend", FALLS_IN_DECAY, [6] * 4, DECAYS, False, slopes),
    ("step", {**FALLS_IN_DECAY, "cut": 0.2}, [6] * 4, DECAYS, True, step_of),
    ("difference", BY_SEED, [5, 8], (0.0, 0.4), True, difference_of),
    ("difference", BY_SEED, [5, 8, 6, 7], (0.0, 0.4), True, difference_of),
    ("range", RANGE, [8] * 4, (0.0,), True, lambda drawn: np.mean([np.ptp(x) for (x,) in drawn])),
]


@pytest.mark.parametrize(("kind", "rule", "sizes", "decays", "shared", "statistic"), RESAMPLED)
def test_intervals_and_estimates_are_those_of_a_bootstrap_by_loops(kind, rule, sizes, decays, shared, statistic):
    """Seeds are resampled and the test points of each network on their own; one or two seeds are kept."""
    part = judged(nets(noisy, len(sizes), sizes, decays, shared=shared), kind, **rule)
    seeds = [[np.array([noisy(s, p, d) for p in range(n)]) for d in decays] for s, n in enumerate(sizes)]
    few = len(sizes) < 3
    assert_near(part, slow_interval(seeds, statistic, keep_seeds=few))
    if kind != "range":
        assert part.estimate == pytest.approx(statistic(seeds))
    assert kind not in ("trend", "difference") or part.outcome == "reproduced"
    assert (part.n_units, part.n_seeds) == (len(decays) * sum(sizes), len(sizes))
    assert f"{part.n_units} test points of {len(sizes)} seed" in part.sentence
    assert ("covers test points only" in part.sentence) is few


def test_the_interval_of_what_is_steady_is_that_of_loops():
    seeds = [nets(noisy, seeds=9).query("seed == @s")["spearman"].mean() for s in range(9)]
    rng = np.random.default_rng(0)
    draws = [np.std(np.array(seeds)[rng.integers(0, 9, 9)], ddof=1) for _ in range(4000)]
    assert_near(judged(nets(noisy, seeds=9), "steady", max_spread=0.1), np.percentile(draws, [2.5, 97.5]))


def test_one_retraining_is_what_a_single_statistic_is_of():
    rule = Part("value", "one", "spearman_single", paper=0.5)
    assert judge_part(ONE, rule).estimate == pytest.approx(0.9), "of a truth measured once, the only one"
    assert judge_part(ONE.assign(spearman_single=0.5), rule).estimate == pytest.approx(0.5)
    some = ONE.assign(spearman_single=np.where(ONE["seed"] == 0, np.nan, 0.5))
    assert judge_part(some, rule).estimate == pytest.approx(0.58)


def test_sizes_are_chosen_among_the_rows_that_all_else_leaves():
    results = pd.concat([
        table(lambda *_: 0.3, [1]).assign(n_train=500, run_id="a"),
        table(lambda *_: 0.4, [1]).assign(n_train=500, run_id="b", grad_norm=2.0),
        table(lambda *_: 0.7, [1]).assign(n_train=2000, run_id="c"),
        table(lambda *_: 0.9, [2]).assign(n_train=9000, run_id="d"),
    ])  # fmt: skip
    more = table(lambda *_: 0.5, [1]).assign(n_train=500, run_id="e")

    def chosen(name, rows):
        return set(select(rows, {"n_train": name, "depth": 1})["run_id"])

    assert chosen("largest", results) == {"c"}
    assert chosen("largest", pd.concat([results, more])) == {"a", "b", "e"}, "three runs are what a verdict needs"
    assert chosen("most_runs", results) == {"a", "b"}
    assert len(select(results.drop(columns="n_train"), {"n_train": "largest", "depth": 1})) == 15


def test_null_asks_for_runs_in_which_a_column_is_empty():
    once = table(lambda *_: 0.3, [1]).assign(run_id="a")
    again = pd.concat([once.assign(damping=np.nan), once.assign(damping=0.1, spearman=0.9)]).assign(run_id="b")
    wanted = {"damping": None, "depth": 1}
    assert set(select(pd.concat([once, again]), wanted)["run_id"]) == {"a"} == set(select(once, wanted)["run_id"])
    part = Part("value", "x", "spearman", {"damping": None}, paper=0.3)
    assert judge_part(pd.concat([once, again]), part).estimate == pytest.approx(0.3)


COMBINED = {
    "reproduced": [["reproduced", "reproduced"]],
    "partly": [["reproduced", "partly"], ["reproduced", "not"], ["partly", "not", "undecided"],
               ["consistent", "partly"], ["differs: higher", "consistent"]],
    "not": [["not", "not"], ["not", "undecided"], ["differs: higher", "differs: lower"]],
    "undecided": [["reproduced", "undecided"], ["reproduced", "not run"], ["not run", "undecided"]],
    "not run": [["not run", "not run"], []],
    "consistent": [["reproduced", "consistent"]],
    "differs: higher": [["differs: higher", "differs: higher"]],
    "differs: lower": [["differs: lower", "truth too noisy"]],
    "truth too noisy": [["reproduced", "truth too noisy"]],
    "not tested at this scale": [["not tested at this scale", "undecided"]],
}  # fmt: skip


@pytest.mark.parametrize("verdict", COMBINED)
def test_parts_combine(verdict):
    for outcomes in COMBINED[verdict]:
        assert combine(outcomes) == verdict, outcomes


def test_claims_of_the_paper_are_all_listed_and_carry_their_parts_and_profiles():
    claims = load_claims(CLAIMS)
    wanted = [f"I{i}" for i in range(1, 9)] + [f"S{i}" for i in range(1, 6)] + [f"T{i}" for i in range(1, 12)]
    assert [claim.id for claim in claims] == [*wanted, "N1", "N2"]
    assert all(claim.rule for claim in claims if claim.id.startswith("I"))
    assert {v.verdict for v in evaluate_claims(pd.DataFrame(), claims)} == {"not run"}
    part = Part("value", "a part", "spearman", {"depth": 1}, paper=0.9)
    verdict = evaluate_claims(table(lambda *_: 0.9), [Claim("X", "text", "0.9", "A", "iris", (part,))])[0]
    assert (verdict.verdict, verdict.profiles, len(verdict.parts)) == ("reproduced", ("quick",), 1)


def test_signs_that_must_hold_together_are_adjusted_by_holm():
    shifts = [0.2, 0.3, 3.0]
    results = table(lambda d, w, s: -w * d * (1 + 20 * NOISE[s]) / 7 + NOISE[s] * d, decays=shifts)
    results["run_id"] = "one"  # the decays stand for three claims
    signs = [Part("trend", f"by {shift}", "spearman", {"weight_decay": shift}, **FALLS) for shift in shifts]
    claims = [Claim(part.label, "text", "falls", "A", "iris", (part,)) for part in signs]
    parts = [verdict.parts[0] for verdict in evaluate_claims(results, claims)]
    raw = [2 * norm.sf(abs(p.estimate) / (np.ptp(p.interval) / 2 / 1.959964)) for p in parts]
    held = np.maximum.accumulate(np.sort(raw) * [3, 2, 1])
    np.testing.assert_allclose([p.p for p in parts], held[np.argsort(np.argsort(raw))].clip(max=1), rtol=1e-5)
    together = [replace(parts[0], outcome="reproduced", p=p) for p in (0.04, 0.06)]
    assert [part.corrected for part in together] == ["reproduced", "not"]
    assert Verdict(claims[0], "reproduced", tuple(together)).corrected == "partly"


def test_the_report_names_test_points_only_where_they_are_counted():
    claim = Claim("X", "text", "0.6", "A", "small_mnist")
    verdicts = [Verdict(claim, "reproduced", (judged(nets(noisy), "value", unit=unit, paper=0.6),)) for unit in UNITS]
    assert interval_words(verdicts[:1]) == "over seeds"
    assert "test points" in interval_words(verdicts)
    assert counted(3, 24) == "24 test points of 3 seeds" and counted(1, 0) == "1 seed"


# -- rules as written ------------------------------------------------------------------------------------------------

ENTRY = "id: X, text: t, paper: p, source: A"
POINTS = "unit: test_point"


def load(folder, *entries: str) -> list[Claim]:
    (folder / "claims.yaml").write_text("claims:\n" + "".join(f"- {{{entry}}}\n" for entry in entries))
    return load_claims(folder / "claims.yaml")


def rule(text: str) -> str:
    return f"{ENTRY}, notebook: n, rule: [{{label: l, statistic: s, {text}}}]"


OF_TWO = f"kind: difference, minus: {{a: 1}}, direction: positive, {POINTS}, paired: "


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (ENTRY, "notebook"),
        (f"{ENTRY}, notebook: n, colour: red", "colour"),
        (f"{ENTRY}, notebook: n}}\n- {{{ENTRY}, notebook: n", "twice"),
        (rule("kind: guess"), "guess"),
        (rule("kind: value"), "paper"),
        (rule("kind: value, paper: 1, size: 2"), "size"),
        (
            rule("kind: value, paper: 1, transform: exp"),
            "transform = 'exp': is not a choice: .*; give a str, one of log, abs_log",
        ),
        (rule("kind: trend, axis: a, direction: up"), "up"),
        (
            rule("kind: value, paper: 1, unit: network"),
            "unit = 'network': is not a choice: .*; give a str, one of seed, test_point",
        ),
        (rule(f"kind: range, {POINTS}, paper_low: 1"), r"paper_high = \(missing\)"),
        (rule("kind: steady"), r"max_spread = \(missing\)"),
        (rule(f"kind: range, {POINTS}"), r"paper_\w+ = \(missing\)"),
        (rule("kind: range, paper_high: 1, paper_low: 0"), "unit = 'seed': a part of kind range needs"),
        (rule(f"kind: value, paper: 1, {POINTS}, paired: seed"), "paired = 'seed': only for kind difference"),
        (rule(f"{OF_TWO}point"), "paired = 'point'"),
    ],
)
def test_malformed_claims_are_named_and_good_ones_are_read(tmp_path, entry, named):
    with pytest.raises(InputError, match=named):
        load(tmp_path, entry)
    assert load(tmp_path, rule(f"kind: range, {POINTS}, paper_high: 0.9, paper_low: 0.4"))[0].rule[0].margin == 0.1
    part = load(tmp_path, rule(f"{OF_TWO}seed"))[0].rule[0]
    assert (part.unit, part.paired, part.margin) == ("test_point", "seed", 0.05)
