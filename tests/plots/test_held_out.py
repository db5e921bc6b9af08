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
        area = np.trapezoid(named[name].get_ydata(), named[name].get_xdata())
        assert area == pytest.approx(roc_auc_score(GOOD[kept], score[kept]))
    given, true = right.lines[0].get_xdata(), right.lines[0].get_ydata()
    assert np.mean(given) == pytest.approx(SCORES.mean()) and np.mean(true) == pytest.approx(GOOD.mean())
    assert "60 cases of 3 networks" in made.caption and made.rows["run_id"].nunique() == 3


def test_without_both_kinds_nothing_is_drawn():
    assert held_out_curves(CASES.assign(good=True), {"one": SCORES}, "runs").figure is None
    assert held_out_curves(CASES, {"short": np.full(60, np.nan)}, "runs").figure is None


def test_reliabilities_foretold_are_told_with_their_error():
    told = pd.DataFrame({
        "run_id": "a", "network": ["small", "small", "large"], "n_train": 500, "test_point": [1, 2, 3],
        "ground_truth": ["warm_minibatch", "warm_minibatch", "warm_descent"], "train_choice": "random",
        "foretold": [0.5, 0.9, 1.0], "measured": [0.4, 0.7, 1.0],
    })  # fmt: skip
    made = foretold(told)
    assert "within 0.15 in the median" in made.alt and len(made.rows) == 2  # full batches have no order
    assert foretold(told.assign(foretold=np.nan)).figure is None
