"""Verdicts on made-up results for which the right verdict is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fragile_lib.agreement import seed_interval as bootstrap_mean
from fragile_lib.study.claim_parts import Part, judge_part
from fragile_lib.study.claims import Claim, combine, evaluate_claims, load_claims
from fragile_lib.tools.errors import InputError

CLAIMS = Path(__file__).parents[2] / "params" / "claims.yaml"
NOISE = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])


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


def test_value_reproduced_within_the_widened_interval():
    part = value_part(0.93 + NOISE, paper=0.97)
    assert part.outcome == "reproduced"
    assert part.estimate == pytest.approx(0.93)
    assert part.n_seeds == 5
    assert 0.91 < part.interval[0] < 0.93 < part.interval[1] < 0.95
    assert "0.93 (95% interval" in part.sentence


def test_value_partly_within_the_range_of_the_seeds():
    assert value_part([0.45, 0.9, 0.92, 0.94, 0.95, 0.96, 0.96, 0.97], paper=0.5).outcome == "partly"


def test_value_not_outside_all_seeds():
    assert value_part(0.6 + NOISE, paper=0.97).outcome == "not"


@pytest.mark.parametrize("values", [[0.9, 0.95], [0.9, 0.95, np.nan, np.inf]])
def test_fewer_than_three_finite_seeds_are_undecided(values):
    part = value_part(values, paper=0.9)
    assert part.outcome == "undecided"
    assert "needs 3" in part.sentence


def test_no_rows_is_not_run():
    assert judge(table(lambda *_: 1.0), "value", where={"depth": 99}, paper=1).outcome == "not run"
    assert judge(table(lambda *_: 1.0), "value", where={"fit": "descent"}, paper=1).outcome == "not run"


def test_missing_statistic_is_undecided():
    results = table(lambda *_: 1.0, depths=[1]).drop(columns="spearman")
    assert judge(results, "value", paper=1).outcome == "undecided"


FALLS = {"axis": "depth", "direction": "falls", "min_change": 0.1}


def test_trend_is_slope_times_range():
    part = judge(table(lambda depth, decay, seed: 1 - 0.05 * depth + NOISE[seed]), "trend", **FALLS)
    assert part.outcome == "reproduced"
    assert part.estimate == pytest.approx(-0.35)
    assert "from depth 1 to 8" in part.sentence


def test_trend_partly_when_small_and_not_when_reversed_or_noisy():
    assert judge(table(lambda d, w, s: -0.01 * d + NOISE[s] * d / 10), "trend", **FALLS).outcome == "partly"
    assert judge(table(lambda d, w, s: +0.05 * d + NOISE[s]), "trend", **FALLS).outcome == "not"
    assert judge(table(lambda d, w, s: 10 * NOISE[s] * d), "trend", **FALLS).outcome == "not"


def test_trend_pairs_seeds_across_depths():
    # Seeds differ by far more than the trend: only within a seed is it visible.
    part = judge(table(lambda depth, decay, seed: 100 * seed - 0.05 * depth), "trend", **FALLS)
    assert part.outcome == "reproduced"
    assert part.interval == pytest.approx((-0.35, -0.35))


def test_trend_with_missing_depths_uses_what_the_seed_has():
    def value(depth, decay, seed):
        return np.nan if (seed == 4 and depth > 1) or (seed == 3 and depth == 8) else 1 - 0.05 * depth

    part = judge(table(value), "trend", **FALLS)
    assert part.n_seeds == 4  # seed 4 has one depth of four, seed 3 three of them
    assert part.estimate == pytest.approx(-0.35)


def test_trend_needs_two_axis_values_and_takes_two():
    assert judge(table(lambda d, w, s: -0.1 * d, depths=[1]), "trend", **FALLS).outcome == "undecided"
    assert judge(table(lambda d, w, s: -0.1 * d, depths=[1, 5]), "trend", **FALLS).outcome == "reproduced"


def test_trend_of_a_logarithm_and_repeated_rows():
    results = table(lambda depth, decay, seed: float(np.exp(0.3 * depth)))
    results = pd.concat([results.assign(estimator=name) for name in ("exact", "lissa")])
    part = judge(results, "trend", axis="depth", direction="grows", transform="log", min_change=0.405)
    assert part.outcome == "reproduced"
    assert part.estimate == pytest.approx(2.1)
    assert part.n_networks == 20


def test_rows_that_the_rule_mixes_up_are_undecided():
    results = pd.concat([table(lambda *_: 0.5, depths=[1]), table(lambda *_: 0.6, depths=[1])])
    assert "differing rows" in judge(results, "value", paper=0.5).sentence
    several = judge(table(lambda *_: 0.5), "value", paper=0.5)
    assert several.outcome == "undecided"
    assert "several runs" in several.sentence


def test_absolute_logarithm_measures_distance_from_one():
    results = table(lambda depth, decay, seed: [0.5, 2.0, 0.5, 2.0, 0.5][seed], depths=[1])
    assert judge(results, "value", transform="abs_log", paper=0.693).estimate == pytest.approx(np.log(2))


DECAY = {"where": {"weight_decay": 0.005}, "minus": {"weight_decay": 0.0}, "direction": "positive"}


def test_difference_pairs_by_seed():
    results = table(lambda d, w, s: 100 * s + (0.1 if w else 0), depths=[1], decays=(0.005, 0.0))
    part = judge(results, "difference", **DECAY)
    assert part.outcome == "reproduced"
    assert part.interval == pytest.approx((0.1, 0.1))
    assert judge(results, "difference", **{**DECAY, "direction": "negative"}).outcome == "not"
    assert judge(results, "difference", **DECAY, min_change=0.2).outcome == "partly"


def test_difference_without_partner_is_not_run_and_drops_lone_seeds():
    assert judge(table(lambda *_: 1.0, depths=[1]), "difference", **DECAY).outcome == "not run"
    results = table(lambda d, w, s: np.nan if w == 0 and s > 2 else 1 + w * 20, depths=[1], decays=(0.005, 0.0))
    assert judge(results, "difference", **DECAY).n_seeds == 3


def test_difference_at_each_depth():
    def everywhere(depth, decay, seed):
        return 0.1 * depth * (decay > 0) + seed

    def mostly(depth, decay, seed):
        return (0.5 if depth > 1 else -0.1) * (decay > 0) + seed

    rule = {**DECAY, "axis": "depth", "at_each": True}
    assert judge(table(everywhere, decays=(0.005, 0.0)), "difference", **rule).outcome == "reproduced"
    part = judge(table(mostly, decays=(0.005, 0.0)), "difference", **rule)
    assert part.outcome == "partly"
    assert "at depth 1." in part.sentence


def test_step_beyond_a_cut():
    step = {"axis": "depth", "direction": "falls", "cut": 5, "min_change": 0.1}
    results = table(lambda depth, decay, seed: (0.9 if depth <= 5 else 0.5) + seed)
    part = judge(results, "step", **step)
    assert part.outcome == "reproduced"
    assert part.estimate == pytest.approx(-0.4)
    shallow = judge(results[results["depth"] < 5], "step", **step)
    assert shallow.outcome == "undecided"
    assert "far side" in shallow.sentence


def test_degenerate_networks_are_counted_by_name():
    results = table(lambda d, w, s: np.nan if s == 0 else 1 - 0.05 * d)
    results.loc[results["seed"] == 0, "status"] = "constant"
    results.loc[results["seed"] == 1, "status"] = "indefinite"  # its numbers stand
    part = judge(results, "trend", **FALLS)
    assert part.degenerate == {"constant": 4}
    assert part.n_networks == 20
    assert part.n_seeds == 4


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
    ],
)
def test_parts_combine(outcomes, verdict):
    assert combine(outcomes) == verdict


def test_interval_is_repeatable_and_covers():
    rng = np.random.default_rng(3)
    assert bootstrap_mean(NOISE) == bootstrap_mean(NOISE)
    covered = [low < 0 < high for low, high in (bootstrap_mean(rng.normal(size=20)) for _ in range(200))]
    assert 0.88 < np.mean(covered) < 0.98


def test_all_claims_of_the_paper_are_listed():
    claims = load_claims(CLAIMS)
    wanted = [f"I{i}" for i in range(1, 9)] + [f"S{i}" for i in range(1, 6)] + [f"T{i}" for i in range(1, 12)]
    assert [claim.id for claim in claims] == [*wanted, "N1", "N2"]
    assert all(claim.rule for claim in claims if claim.id.startswith("I"))


def test_claims_on_an_empty_table_are_not_run():
    assert {v.verdict for v in evaluate_claims(pd.DataFrame(), load_claims(CLAIMS))} == {"not run"}


def test_claim_carries_its_parts_and_profiles():
    part = Part("value", "a part", "spearman", {"depth": 1}, paper=0.9)
    results = table(lambda *_: 0.9)
    verdict = evaluate_claims(results, [Claim("X", "text", "0.9", "A", "iris", (part,))])[0]
    assert (verdict.verdict, verdict.profiles, len(verdict.parts)) == ("reproduced", ("quick",), 1)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("{id: X, text: t, paper: p, source: A}", "notebook"),
        ("{id: X, text: t, paper: p, source: A, notebook: n, colour: red}", "colour"),
        ("{id: X, text: t, paper: p, source: A, notebook: n, rule: [{kind: guess, label: l}]}", "guess"),
        ("{id: X, text: t, paper: p, source: A, notebook: n, rule: [{kind: value, label: l, statistic: s}]}", "paper"),
        (
            "{id: X, text: t, paper: p, source: A, notebook: n, rule: "
            "[{kind: trend, label: l, statistic: s, axis: a, direction: up}]}",
            "up",
        ),
    ],
)
def test_malformed_claims_are_named(tmp_path, entry, named):
    path = tmp_path / "claims.yaml"
    path.write_text(f"claims:\n- {entry}\n")
    with pytest.raises(InputError, match=named):
        load_claims(path)


def test_claims_given_twice_are_refused(tmp_path):
    entry = "- {id: X, text: t, paper: p, source: A, notebook: n}\n"
    (tmp_path / "claims.yaml").write_text("claims:\n" + entry * 2)
    with pytest.raises(InputError, match="twice"):
        load_claims(tmp_path / "claims.yaml")
