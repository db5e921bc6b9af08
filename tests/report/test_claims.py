"""Verdicts on made-up results for which the right verdict is known: rules that count seeds, and rules as written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from fragile_lib.agreement import MIN_SEEDS, seed_interval
from fragile_lib.study.claim_data import select
from fragile_lib.study.claims import Claim, Part, Verdict, combine, evaluate_claims, judge_part, load_claims
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


def test_interval_is_repeatable_and_covers():
    rng = np.random.default_rng(3)
    assert seed_interval(NOISE) == seed_interval(NOISE) and np.isnan(seed_interval(NOISE[: MIN_SEEDS - 1])).all()
    covered = [low < 0 < high for low, high in (seed_interval(rng.normal(size=20)) for _ in range(200))]
    assert 0.88 < np.mean(covered) < 0.98


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
