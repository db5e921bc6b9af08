"""The curves of rules on held-out cases."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fragile_lib.plots import foretold, held_out_curves

RNG = np.random.default_rng(0)
GOOD = RNG.random(60) < 0.4
CASES = pd.DataFrame(
    {"good": GOOD, "network": np.repeat(["a", "b", "c"], 20), "run_id": np.repeat(["r", "s", "t"], 20)}
)
SCORES = np.round(GOOD * 0.3 + 0.7 * RNG.random(60), 1)  # with ties


def test_the_curve_encloses_the_area_and_the_groups_have_what_came_true():
    gaps = SCORES.copy()
    gaps[:20] = np.nan
    made = held_out_curves(CASES, {"one": SCORES, "gaps": gaps, "short": np.full(60, np.nan)}, "runs")
    left, right = made.figure.axes
    named = {line.get_label(): line for line in left.lines}
    assert set(named) >= {"one", "gaps"} and "short" not in named
    for name, score in (("one", SCORES), ("gaps", gaps)):
        kept = np.isfinite(score)
        assert area_of(named[name]) == pytest.approx(roc_auc_score(GOOD[kept], score[kept]))
    given, true = right.lines[0].get_xdata(), right.lines[0].get_ydata()
    assert np.mean(given) == pytest.approx(SCORES.mean()) and np.mean(true) == pytest.approx(GOOD.mean())
    assert "60 cases of 3 networks" in made.caption and made.told["runs"] == ["r", "s", "t"]
    assert f"each case alike: {area_of(named['one']):.2f} (one)" in made.alt
    drawn = made.rows[made.rows["panel"] == "curve"].groupby("rule")[["x", "y"]]
    for name, line in drawn:
        np.testing.assert_allclose(line, named[name].get_xydata())


def area_of(line) -> float:
    return np.trapezoid(line.get_ydata(), line.get_xdata())


def test_curves_of_many_cases_have_few_corners_and_the_same_area():
    good = RNG.random(20_000) < 0.3
    score = good * 0.2 + RNG.random(20_000)
    cases = pd.DataFrame({"good": good, "network": "a", "run_id": "r", "dataset": "iris", "n_train": 120})
    made = held_out_curves(cases, {"one": score}, "pairs")
    curve = made.rows[made.rows["panel"] == "curve"]
    assert len(curve) <= 201 and curve[["x", "y"]].iloc[-1].tolist() == [1.0, 1.0]
    assert np.trapezoid(curve["y"], curve["x"]) == pytest.approx(roc_auc_score(good, score), abs=1e-3)
    assert "Iris, 120 training examples, 1 run" in made.caption and len(made.told["rows"]) < 20_000


def test_without_both_kinds_nothing_is_drawn():
    assert held_out_curves(CASES.assign(good=True), {"one": SCORES}, "runs").figure is None
    assert held_out_curves(CASES, {"short": np.full(60, np.nan)}, "runs").figure is None


def test_reliabilities_foretold_are_told_with_their_error():
    told = pd.DataFrame({
        "run_id": "a", "dataset": "mnist", "network": ["small", "small", "large"], "n_train": 500,
        "test_point": [1, 2, 3],
        "ground_truth": ["warm_minibatch", "warm_minibatch", "warm_descent"], "train_choice": "random",
        "foretold": [0.5, 0.9, 1.0], "measured": [0.4, 0.7, 1.0],
    })  # fmt: skip
    made = foretold(told)
    assert "within 0.15 in the median" in made.alt and len(made.rows) == 2  # full batches have no order
    assert foretold(told.assign(foretold=np.nan)).figure is None
