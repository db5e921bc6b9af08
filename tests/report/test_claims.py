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
DECAY = {"where": {"weight_decay": 0.005}, "minus": {"weight_decay": 0.0}, "direction": "positive"}
BOTH = {"decays": (0.005, 0.0)}


def table(value, depths=(1, 2, 4, 8), decays=(0.005,), seeds=5, **columns) -> pd.DataFrame:
    """Results of one row for each depth, decay and seed; `value(depth, decay, seed)` is the statistic."""
    return pd.DataFrame([
        {"run_id": f"d{depth}-wd{decay}", "profile": "quick", "depth": depth, "weight_decay": decay, "seed": seed,
         "spearman": value(depth, decay, seed), "status": "ok", **columns}
        for depth in depths for decay in decays for seed in range(seeds)
    ])  # fmt: skip


def judge(results: pd.DataFrame, kind: str, **rule):
    return judge_part(results, Part(kind, "a part", "spearman", **rule))


def value_part(values, paper: float):
    results = table(lambda depth, decay, seed: values[seed], depths=[1], seeds=len(values))
    return judge(results, "value", where={"depth": 1}, paper=paper)


def test_a_figure_is_reproduced_by_an_interval_near_it_and_consistent_among_single_runs():
    part = value_part(0.93 + NOISE, paper=0.97)
    assert (part.outcome, part.n_seeds) == ("reproduced", 5) and part.estimate == pytest.approx(0.93)
    assert 0.91 < part.interval[0] < 0.93 < part.interval[1] < 0.95 and "0.93 (95% interval" in part.sentence
    assert part.before == "reproduced"
    wide = value_part([0.45, 0.9, 0.92, 0.94, 0.95, 0.96, 0.96, 0.97], paper=0.55)
    assert (wide.outcome, wide.before) == ("consistent", "partly")
    both = value_part([0.2, 0.5, 0.9, 0.95, 0.6], paper=0.62)
    assert (both.outcome, both.before) == ("consistent", "reproduced"), "a wide interval confirms nothing"
    low, high = value_part(0.6 + NOISE, paper=0.97), value_part(0.6 + NOISE, paper=0.2)
    assert (low.outcome, low.before) == ("differs: lower", "not") and high.outcome == "differs: higher"


def test_what_noise_or_scale_hides_is_not_judged():
    results = table(lambda *_: 0.9, depths=[1])
    for reliability, outcome in ((0.49, "truth too noisy"), (0.51, "reproduced"), (np.nan, "reproduced")):
        part = judge(results.assign(reliability=reliability), "value", paper=0.9)
        assert (part.outcome, part.before) == (outcome, "reproduced")
    grown = judge(results.assign(reliability=0.1, grad_norm=1.0), "value", paper=0.9)
    assert "reliability is 0.10" in grown.sentence
    for n_train, outcome in ((4999, "not tested at this scale"), (5000, "reproduced")):
        part = judge(results.assign(n_train=n_train), "value", paper=0.9, at_least={"n_train": 5000})
        assert (part.outcome, part.before) == (outcome, "reproduced")


def test_one_retraining_is_what_a_single_statistic_is_of():
    results = table(lambda *_: 0.9, depths=[1])
    rule = Part("value", "one", "spearman_single", paper=0.5)
    assert judge_part(results, rule).estimate == pytest.approx(0.9), "of a truth measured once, the only one"
    assert judge_part(results.assign(spearman_single=0.5), rule).estimate == pytest.approx(0.5)
    some = results.assign(spearman_single=np.where(results["seed"] == 0, np.nan, 0.5))
    assert judge_part(some, rule).estimate == pytest.approx(0.58)


def test_sizes_are_chosen_among_the_rows_that_all_else_leaves():
    results = pd.concat([
        table(lambda *_: 0.3, depths=[1]).assign(n_train=500, run_id="a"),
        table(lambda *_: 0.4, depths=[1]).assign(n_train=500, run_id="b", grad_norm=2.0),
        table(lambda *_: 0.7, depths=[1]).assign(n_train=2000, run_id="c"),
        table(lambda *_: 0.9, depths=[2]).assign(n_train=9000, run_id="d"),
    ])  # fmt: skip
    found = {name: set(select(results, {"n_train": name, "depth": 1})["run_id"]) for name in ("largest", "most_runs")}
    assert found == {"largest": {"c"}, "most_runs": {"a", "b"}}
    assert len(select(results.drop(columns="n_train"), {"n_train": "largest", "depth": 1})) == 15


@pytest.mark.parametrize("values", [[0.9, 0.95], [0.9, 0.95, np.nan, np.inf]])
def test_fewer_than_three_finite_seeds_are_undecided(values):
    part = value_part(values, paper=0.9)
    assert part.outcome == "undecided" and "needs 3" in part.sentence


def test_what_was_not_run_or_mixed_up_is_said():
    results = table(lambda *_: 0.5)
    assert judge(results, "value", where={"depth": 99}, paper=1).outcome == "not run"
    assert judge(results, "value", where={"fit": "descent"}, paper=1).outcome == "not run"
    one = table(lambda *_: 0.5, depths=[1])
    assert judge(one.drop(columns="spearman"), "value", paper=1).outcome == "undecided"
    assert "differing rows" in judge(pd.concat([one, one.assign(spearman=0.6)]), "value", paper=0.5).sentence
    several = judge(results, "value", paper=0.5)
    assert several.outcome == "undecided" and "several runs" in several.sentence


def test_trend_is_slope_times_range():
    part = judge(table(lambda depth, decay, seed: 1 - 0.05 * depth + NOISE[seed]), "trend", **FALLS)
    assert part.outcome == "reproduced" and part.estimate == pytest.approx(-0.35)
    assert "from depth 1 to 8" in part.sentence


@pytest.mark.parametrize(
    ("value", "depths", "outcome"),
    [
        (lambda d, w, s: -0.01 * d + NOISE[s] * d / 10, (1, 2, 4, 8), "partly"),  # of the claimed sign, but small
        (lambda d, w, s: +0.05 * d + NOISE[s], (1, 2, 4, 8), "not"),
        (lambda d, w, s: 10 * NOISE[s] * d, (1, 2, 4, 8), "not"),
        (lambda d, w, s: -0.1 * d, [1], "undecided"),
        (lambda d, w, s: -0.1 * d, [1, 5], "reproduced"),
    ],
)
def test_trends(value, depths, outcome):
    assert judge(table(value, depths=depths), "trend", **FALLS).outcome == outcome


def test_trend_pairs_seeds_across_depths():
    # Seeds differ by far more than the trend: only within a seed is it visible.
    part = judge(table(lambda depth, decay, seed: 100 * seed - 0.05 * depth), "trend", **FALLS)
    assert part.outcome == "reproduced" and part.interval == pytest.approx((-0.35, -0.35))


def test_trend_with_missing_depths_uses_what_the_seed_has():
    def value(depth, decay, seed):
        return np.nan if (seed == 4 and depth > 1) or (seed == 3 and depth == 8) else 1 - 0.05 * depth

    part = judge(table(value), "trend", **FALLS)
    assert part.n_seeds == 4  # seed 4 has one depth of four, seed 3 three of them
    assert part.estimate == pytest.approx(-0.35)


def test_logarithms_and_repeated_rows():
    results = table(lambda depth, decay, seed: float(np.exp(0.3 * depth)))
    results = pd.concat([results.assign(estimator=name) for name in ("exact", "lissa_single")])
    part = judge(results, "trend", axis="depth", direction="grows", transform="log", min_change=0.405)
    assert (part.outcome, part.n_networks) == ("reproduced", 20) and part.estimate == pytest.approx(2.1)
    halves = table(lambda depth, decay, seed: [0.5, 2.0, 0.5, 2.0, 0.5][seed], depths=[1])
    part = judge(halves, "value", transform="abs_log", paper=0.693)  # distance from one
    assert part.estimate == pytest.approx(np.log(2))


def test_difference_pairs_by_seed():
    results = table(lambda d, w, s: 100 * s + (0.1 if w else 0), depths=[1], **BOTH)
    part = judge(results, "difference", **DECAY)
    assert part.outcome == "reproduced" and part.interval == pytest.approx((0.1, 0.1))
    assert judge(results, "difference", **{**DECAY, "direction": "negative"}).outcome == "not"
    assert judge(results, "difference", **DECAY, min_change=0.2).outcome == "partly"
    # Without a partner it is not run, and lone seeds drop out.
    assert judge(table(lambda *_: 1.0, depths=[1]), "difference", **DECAY).outcome == "not run"
    results = table(lambda d, w, s: np.nan if w == 0 and s > 2 else 1 + w * 20, depths=[1], **BOTH)
    assert judge(results, "difference", **DECAY).n_seeds == 3


def test_difference_at_each_depth():
    rule = {**DECAY, "axis": "depth", "at_each": True}
    everywhere = table(lambda depth, decay, seed: 0.1 * depth * (decay > 0) + seed, **BOTH)
    assert judge(everywhere, "difference", **rule).outcome == "reproduced"
    mostly = table(lambda depth, decay, seed: (0.5 if depth > 1 else -0.1) * (decay > 0) + seed, **BOTH)
    part = judge(mostly, "difference", **rule)
    assert part.outcome == "partly" and "at depth 1." in part.sentence


def test_step_beyond_a_cut():
    step = {"axis": "depth", "direction": "falls", "cut": 5, "min_change": 0.1}
    results = table(lambda depth, decay, seed: (0.9 if depth <= 5 else 0.5) + seed)
    part = judge(results, "step", **step)
    assert part.outcome == "reproduced" and part.estimate == pytest.approx(-0.4)
    shallow = judge(results[results["depth"] < 5], "step", **step)
    assert shallow.outcome == "undecided" and "far side" in shallow.sentence


def test_degenerate_networks_are_counted_by_name():
    results = table(lambda d, w, s: np.nan if s == 0 else 1 - 0.05 * d)
    results.loc[results["seed"] == 0, "status"] = "constant"
    results.loc[results["seed"] == 1, "status"] = "indefinite"  # its numbers stand
    part = judge(results, "trend", **FALLS)
    assert part.degenerate == {"constant": 4} and (part.n_networks, part.n_seeds) == (20, 4)


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        (["reproduced", "reproduced"], "reproduced"),
        (["reproduced", "partly"], "partly"),
        (["reproduced", "not"], "partly"),
        (["not", "not"], "not"),
        (["not", "undecided"], "not"),
        (["partly", "not", "undecided"], "partly"),
        (["reproduced", "undecided"], "undecided"),
        (["reproduced", "not run"], "undecided"),
        (["not run", "undecided"], "undecided"),
        (["not run", "not run"], "not run"),
        ([], "not run"),
        (["reproduced", "consistent"], "consistent"),
        (["consistent", "partly"], "partly"),
        (["differs: higher", "differs: higher"], "differs: higher"),
        (["differs: higher", "differs: lower"], "not"),
        (["differs: higher", "consistent"], "partly"),
        (["reproduced", "truth too noisy"], "truth too noisy"),
        (["not tested at this scale", "undecided"], "not tested at this scale"),
        (["differs: lower", "truth too noisy"], "differs: lower"),
    ],
)
def test_parts_combine(outcomes, verdict):
    assert combine(outcomes) == verdict


def test_all_claims_of_the_paper_are_listed():
    claims = load_claims(CLAIMS)
    wanted = [f"I{i}" for i in range(1, 9)] + [f"S{i}" for i in range(1, 6)] + [f"T{i}" for i in range(1, 12)]
    assert [claim.id for claim in claims] == [*wanted, "N1", "N2"]
    assert all(claim.rule for claim in claims if claim.id.startswith("I"))
    assert {v.verdict for v in evaluate_claims(pd.DataFrame(), claims)} == {"not run"}


def test_claim_carries_its_parts_and_profiles():
    part = Part("value", "a part", "spearman", {"depth": 1}, paper=0.9)
    verdict = evaluate_claims(table(lambda *_: 0.9), [Claim("X", "text", "0.9", "A", "iris", (part,))])[0]
    assert (verdict.verdict, verdict.profiles, len(verdict.parts)) == ("reproduced", ("quick",), 1)


def test_signs_that_must_hold_together_are_adjusted_by_holm():
    def sign(shift: float) -> Part:
        return Part("trend", f"by {shift}", "spearman", {"weight_decay": shift}, **FALLS)

    shifts = [0.2, 0.3, 3.0]
    results = table(
        lambda depth, decay, seed: -decay * depth * (1 + 20 * NOISE[seed]) / 7 + NOISE[seed] * depth, decays=shifts
    )
    results["run_id"] = "one"  # the decays stand for three claims
    claims = [Claim(f"X{shift}", "text", "falls", "A", "iris", (sign(shift),)) for shift in shifts]
    parts = [verdict.parts[0] for verdict in evaluate_claims(results, claims)]
    raw = [2 * norm.sf(abs(p.estimate) / (np.ptp(p.interval) / 2 / 1.959964)) for p in parts]
    held = np.maximum.accumulate(np.sort(raw) * [3, 2, 1])
    np.testing.assert_allclose([p.p for p in parts], held[np.argsort(np.argsort(raw))].clip(max=1), rtol=1e-5)
    together = [replace(parts[0], outcome="reproduced", p=p) for p in (0.04, 0.06)]
    assert [part.corrected for part in together] == ["reproduced", "not"]
    assert Verdict(claims[0], "reproduced", tuple(together)).corrected == "partly"
    assert value_part([0.9] * 5, 0.9).p is None


# -- rules that count test points of seeds: intervals against a slow bootstrap, pairing, the kind `range` -------------

RNG = np.random.default_rng(5)
SEED_EFFECT = RNG.normal(0.0, 0.1, 9)
POINT_NOISE = RNG.normal(0.0, 0.1, (9, 40))


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


def judged(results: pd.DataFrame, kind: str, **rule) -> PartVerdict:
    return judge(results, kind, **{"unit": "test_point", **rule})


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
    return 0.6 + SEED_EFFECT[seed] + POINT_NOISE[seed, point] * (1 + 5 * decay) - decay


# -- intervals -------------------------------------------------------------------------------------------------------


def test_value_weights_every_test_point_equally():
    sizes = [3, 6, 4, 9]
    part = judged(nets(noisy, 4, sizes), "value", paper=0.6)
    seeds = [[np.array([noisy(s, p) for p in range(n)])] for s, n in enumerate(sizes)]

    def mean(drawn):
        return np.concatenate([x for (x,) in drawn]).mean()

    assert (part.n_units, part.n_seeds) == (22, 4) and "22 test points of 4 seeds)" in part.sentence
    assert_near(part, slow_interval(seeds, mean), mean(seeds))


def test_interval_is_wider_than_over_all_test_points_as_if_independent():
    part = judged(nets(lambda s, p, *_: float(s), 5, 20), "value", paper=2)
    assert part.interval[1] - part.interval[0] > 2  # all variation is between seeds
    assert judged(nets(noisy), "value", paper=1).interval == judged(nets(noisy), "value", paper=1).interval


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_are_kept_and_said_to_be(seeds):
    part = judged(nets(noisy, seeds), "value", paper=0.6)
    drawn = [[np.array([noisy(s, p) for p in range(8)])] for s in range(seeds)]
    assert_near(part, slow_interval(drawn, lambda d: np.mean([x.mean() for (x,) in d]), keep_seeds=True))
    assert f"{8 * seeds} test points of {seeds} seed" in part.sentence and "covers test points only" in part.sentence


def test_a_figure_is_judged_by_the_mean_and_by_single_test_points():
    results = nets(lambda s, p, *_: 0.9 - 0.4 * (p == 3))
    found = {paper: judged(results, "value", paper=paper) for paper in (0.55, 0.4, 0.85)}
    assert [found[p].outcome for p in found] == ["consistent", "differs: higher", "reproduced"]
    assert [found[p].before for p in found] == ["partly", "not", "reproduced"]


DECAYS = (0.0, 0.1, 0.4)


def slopes(drawn: list) -> float:
    means = [[x.mean() for x in networks] for networks in drawn]
    return np.mean([0.4 * np.polyfit(DECAYS, y, 1)[0] for y in means])


@pytest.mark.parametrize("shared", [True, False])
def test_trend_averages_test_points_and_resamples_each_network_on_its_own(shared):
    results = nets(noisy, 4, 6, DECAYS, shared=shared)
    part = judged(results, "trend", axis="weight_decay", direction="falls")
    seeds = [[np.array([noisy(s, p, d) for p in range(6)]) for d in DECAYS] for s in range(4)]
    assert (part.outcome, part.n_seeds, part.n_units) == ("reproduced", 4, 72)
    assert_near(part, slow_interval(seeds, slopes), slopes(seeds))


def test_axis_within_one_network_keeps_its_test_points_together():
    # Test points differ by far more than the trend: only within a test point is it visible.
    results = nets(noisy, 3, 8, DECAYS).assign(run_id=lambda t: t["seed"].astype(str))
    results["spearman"] = 100.0 * results["test_point"] - results["weight_decay"]
    part = judged(results, "trend", axis="weight_decay", direction="falls")
    assert part.interval == pytest.approx((-0.4, -0.4)) and part.n_units == 24
    # Each network is in every resample: one test point for each and the same numbers in all seeds, nothing can vary.
    results = nets(lambda s, p, d, c: -(d**3), 3, 1, DECAYS, shared=False)
    part = judged(results, "trend", axis="weight_decay", direction="falls")
    assert part.interval == pytest.approx((part.estimate, part.estimate))


def test_one_seed_may_lack_an_axis_value_that_others_have():
    rows = nets(noisy, 3, 6, (0.1, 0.2, 0.3))
    rows = rows[((rows.seed == 0) & (rows.weight_decay > 0.1)) | ((rows.seed > 0) & (rows.weight_decay == 0.1))]
    part = judged(rows, "step", axis="weight_decay", cut=0.2, direction="falls")
    beyond, before = (np.mean([noisy(0, p, decay) for p in range(6)]) for decay in (0.3, 0.2))
    assert part.estimate == pytest.approx(beyond - before)
    assert "of 1 seed; the interval covers test points only" in part.sentence


def test_step_uses_the_means_of_both_sides():
    part = judged(nets(noisy, 4, 6, DECAYS), "step", axis="weight_decay", cut=0.2, direction="falls")
    seeds = [[np.array([noisy(s, p, d) for p in range(6)]) for d in DECAYS] for s in range(4)]

    def step(drawn):
        return np.mean([d.mean() - (a.mean() + b.mean()) / 2 for a, b, d in drawn])

    assert_near(part, slow_interval(seeds, step), step(seeds))


# -- pairing ---------------------------------------------------------------------------------------------------------

CHOICE = {"where": {"train_choice": "top"}, "minus": {"train_choice": "p30"}, "direction": "positive"}
NETWORKS = {"where": {"weight_decay": 0.4}, "minus": {"weight_decay": 0.0}, "direction": "negative"}


def test_difference_pairs_by_test_point():
    results = nets(lambda s, p, d, c: 100 * noisy(s, p) + 0.3 * (c == "top"), choices=("top", "p30"))
    part = judged(results, "difference", **CHOICE)
    assert part.interval == pytest.approx((0.3, 0.3))
    assert (part.outcome, part.n_units) == ("reproduced", 24)


def test_test_points_without_partner_drop_out():
    results = nets(lambda s, p, d, c: 0.5 + 0.3 * (c == "top"), choices=("top", "p30"))
    alone = (results["train_choice"] == "p30") & (results["test_point"] == 2)
    results.loc[(results["train_choice"] == "top") & (results["test_point"] == 2), "spearman"] = 99.0
    results.loc[(results["train_choice"] == "top") & (results["test_point"] == 5), "spearman"] = np.nan
    part = judged(results[~alone], "difference", **CHOICE)
    assert part.estimate == pytest.approx(0.3) and part.n_units == 18


@pytest.mark.parametrize("shared", [True, False])
def test_test_points_of_different_networks_are_not_paired(shared):
    results = nets(noisy, decays=(0.0, 0.4), shared=shared)
    part = judged(results, "difference", **NETWORKS)
    assert part.outcome == "undecided" and "no test point of one network in common" in part.sentence


@pytest.mark.parametrize("seeds", [2, 4])
def test_paired_by_seed_resamples_both_networks_on_their_own(seeds):
    sizes = [5, 8, 6, 7][:seeds]
    part = judged(nets(noisy, seeds, sizes, (0.0, 0.4)), "difference", **NETWORKS, paired="seed")
    both = [[np.array([noisy(s, p, d) for p in range(n)]) for d in (0.4, 0.0)] for s, n in enumerate(sizes)]

    def difference(drawn):
        return np.mean([a.mean() - b.mean() for a, b in drawn])

    assert (part.outcome, part.n_seeds, part.n_units) == ("reproduced", seeds, 2 * sum(sizes))
    assert_near(part, slow_interval(both, difference, keep_seeds=seeds < 3), difference(both))


def test_paired_by_seed_leaves_out_seeds_of_one_selection():
    results = nets(noisy, 4, 8, (0.0, 0.4))
    part = judged(results[results["run_id"] != "wd0.0-s1"], "difference", **NETWORKS, paired="seed")
    assert (part.n_seeds, part.n_units) == (3, 48)


def test_difference_at_each_axis_value():
    def value(seed, point, decay, choice):
        return noisy(seed, point) + (choice == "top") * (0.5 if decay > 0 else -0.1)

    results = nets(value, decays=DECAYS, choices=("top", "p30"), shared=False)
    rule = {**CHOICE, "axis": "weight_decay", "at_each": True}
    part = judged(results, "difference", **rule)
    assert part.outcome == "partly" and part.estimate == pytest.approx(0.3)
    assert "too few test points, at weight_decay 0." in part.sentence
    assert judged(results[results["weight_decay"] > 0], "difference", **rule).outcome == "reproduced"


# -- undecided -------------------------------------------------------------------------------------------------------


def test_too_few_test_points_are_undecided():
    part = judged(nets(noisy, 1, 2), "value", paper=0.5)
    assert part.outcome == "undecided" and "2 test points have a finite" in part.sentence
    assert judged(nets(noisy, 1, 3), "value", paper=0.5).outcome != "undecided"
    # Two seeds are kept, so each mean of the difference needs test points that can vary.
    assert judged(nets(noisy, 2, 1, (0.0, 0.4)), "difference", **NETWORKS, paired="seed").outcome == "undecided"
    assert judged(nets(noisy, 2, 1), "range", paper_high=1, paper_low=0).outcome == "undecided"


def test_differing_rows_of_one_test_point_are_undecided():
    results = pd.concat([nets(noisy), nets(lambda s, p, *_: noisy(s, p) + 0.01)])
    assert "differing rows" in judged(results, "value", paper=0.5).sentence
    assert judged(pd.concat([nets(noisy)] * 2), "value", paper=0.5).n_units == 24


def test_several_networks_or_no_test_points_are_undecided():
    assert "several runs" in judged(nets(noisy, decays=DECAYS), "value", paper=0.5).sentence
    assert "test_point" in judged(nets(noisy).drop(columns="test_point"), "value", paper=0.5).sentence
    assert judged(nets(lambda *_: np.nan), "value", paper=0.5).outcome == "undecided"
    disjoint = nets(noisy, 2, 8, (0.0, 0.4))
    disjoint = disjoint[disjoint["run_id"].isin(["wd0.0-s0", "wd0.4-s1"])]
    assert judged(disjoint, "difference", **NETWORKS, paired="seed").outcome == "undecided"


def test_the_default_unit_is_the_seed():
    results = nets(noisy, 5, 1)
    assert judged(results, "value", unit="seed", paper=0.6) == judge_part(
        results, Part("value", "a part", "spearman", paper=0.6)
    )
    assert judged(results, "value", unit="seed", paper=0.6).n_units == 0
    assert "5 seeds)" in judged(results, "value", unit="seed", paper=0.6).sentence
    assert "differing rows" in judged(nets(noisy), "value", unit="seed", paper=0.6).sentence


# -- range -----------------------------------------------------------------------------------------------------------


def spread_over(low: float, high: float, seeds=3) -> pd.DataFrame:
    return nets(lambda s, p, *_: low + (high - low) * p / 7 + 0.01 * s, seeds)


RANGE = {"paper_high": 0.92, "paper_low": 0.38}


def test_range_reproduced_partly_and_not():
    part = judged(spread_over(0.35, 0.95), "range", **RANGE)
    assert part.outcome == "reproduced" and part.estimate == pytest.approx(0.6)
    assert 0.3 < part.interval[0] < part.interval[1] <= 0.6 + 1e-9  # never above the true spread
    assert "24 test points of 3 seeds" in part.sentence
    assert "0.96 and 0.36, both within 0.1 of the paper’s 0.92 and 0.38." in part.sentence
    assert judged(spread_over(0.1, 0.9), "range", **RANGE).outcome == "partly"
    assert judged(spread_over(0.1, 0.9), "range", **RANGE, tolerance=0.3).outcome == "reproduced"
    assert judged(spread_over(0.85, 0.95), "range", **RANGE).outcome == "not"
    assert judged(spread_over(0.35, 0.95), "range", **RANGE, min_spread=0.55).outcome == "not"


def test_range_interval_against_loops_and_with_one_seed():
    part = judged(nets(noisy, 4, 8), "range", **RANGE)
    seeds = [[np.array([noisy(s, p) for p in range(8)])] for s in range(4)]
    assert_near(part, slow_interval(seeds, lambda drawn: np.mean([np.ptp(x) for (x,) in drawn])))
    assert "covers test points only" in judged(spread_over(0.35, 0.95, seeds=1), "range", **RANGE).sentence


def test_steady_is_judged_on_the_deviation_of_the_seeds_means():
    narrow = nets(lambda seed, point, *_: 0.5 + 0.01 * seed + 0.2 * (-1) ** point, seeds=4)
    part = judged(narrow, "steady", max_spread=0.1)
    assert part.outcome == "reproduced" and (part.n_seeds, part.n_units) == (4, 32)
    assert part.estimate == pytest.approx(np.std([0.5, 0.51, 0.52, 0.53], ddof=1))
    one_off = nets(lambda seed, point, *_: 0.5 + 0.17 * (seed == 3) + 0.2 * (-1) ** point, seeds=4)
    assert judged(one_off, "steady", max_spread=0.09).outcome == "partly"
    assert judged(one_off, "steady", max_spread=0.05).outcome == "not"
    assert judged(nets(noisy, seeds=2), "steady", max_spread=0.1).outcome == "undecided"
    assert judged(narrow[narrow["test_point"] == 0], "steady", unit="seed", max_spread=0.1).n_units == 0


def test_steady_interval_against_loops():
    seeds = [nets(noisy, seeds=9).query("seed == @s")["spearman"].mean() for s in range(9)]
    rng = np.random.default_rng(0)
    draws = [np.std(np.array(seeds)[rng.integers(0, 9, 9)], ddof=1) for _ in range(4000)]
    assert_near(judged(nets(noisy, seeds=9), "steady", max_spread=0.1), np.percentile(draws, [2.5, 97.5]))


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


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (ENTRY, "notebook"),
        (f"{ENTRY}, notebook: n, colour: red", "colour"),
        (rule("kind: guess"), "guess"),
        (rule("kind: value"), "paper"),
        (rule("kind: value, paper: 1, size: 2"), "size"),
        (rule("kind: value, paper: 1, transform: exp"), "transform = 'exp': choose one of log, abs_log"),
        (rule("kind: trend, axis: a, direction: up"), "up"),
        (rule("kind: value, paper: 1, unit: network"), "unit = 'network': choose one of seed, test_point"),
        (rule(f"kind: range, {POINTS}, paper_low: 1"), r"\['paper_high'\]: a part of kind range needs these keys"),
        (rule("kind: steady"), r"\['max_spread'\]: a part of kind steady needs these keys"),
        (rule(f"kind: range, {POINTS}"), r"\['paper_high', 'paper_low'\]"),
        (
            rule("kind: range, paper_high: 1, paper_low: 0"),
            "unit = 'seed': a part of kind range needs",
        ),
        (
            rule(f"kind: value, paper: 1, {POINTS}, paired: seed"),
            "paired = 'seed': only for kind difference",
        ),
        (rule(f"kind: difference, minus: {{a: 1}}, direction: positive, {POINTS}, paired: point"), "paired = 'point'"),
    ],
)
def test_malformed_claims_are_named(tmp_path, entry, named):
    with pytest.raises(InputError, match=named):
        load(tmp_path, entry)


def test_claims_given_twice_are_refused_and_good_rules_are_read(tmp_path):
    with pytest.raises(InputError, match="twice"):
        load(tmp_path, f"{ENTRY}, notebook: n", f"{ENTRY}, notebook: n")
    assert load(tmp_path, rule(f"kind: range, {POINTS}, paper_high: 0.9, paper_low: 0.4"))[0].rule[0].margin == 0.1
    given = rule(f"kind: difference, minus: {{a: 1}}, direction: positive, {POINTS}, paired: seed")
    part = load(tmp_path, given)[0].rule[0]
    assert (part.unit, part.paired, part.margin) == ("test_point", "seed", 0.05)
