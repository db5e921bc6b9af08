"""Which points are examined, and what the rows say about them."""

import numpy as np
import pytest
import torch

from fragile_lib.examination import (
    Estimated,
    Points,
    Retrained,
    choose_test_points,
    choose_training_points,
    pooled,
    rows_of,
    spread_over,
    together,
    union,
)
from fragile_lib.tools.errors import InputError

LOSSES = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0, 0.0, 6.0])


def test_points_of_highest_and_of_median_loss() -> None:
    points = choose_test_points(LOSSES, {"max_loss": 2, "p50_loss": 3})
    assert points.choice == ["max_loss"] * 2 + ["p50_loss"] * 3
    assert sorted(points.index[:2]) == [0, 6] and sorted(points.index[2:]) == [2, 3, 4]


@pytest.mark.parametrize("choices", [{"min_loss": 1}, {"max_loss": 0}, {"p50_loss": 8}])
def test_bad_test_choice(choices: dict) -> None:
    with pytest.raises(InputError, match="test_"):
        choose_test_points(LOSSES, choices)


def test_training_points_are_ranked_by_absolute_influence() -> None:
    scores = np.array([0.1, -9.0, 0.3, 5.0, -0.2, 0.0, 0.4, -0.6, 0.5, 7.0])
    assert choose_training_points(scores, "top_influence", 3).tolist() == [1, 3, 9]
    # |scores| in rising order are those of 5, 0, 4, 2, 6, ...: the 30th percentile lies at rank 3 of 10
    assert choose_training_points(scores, "p30_influence", 3).tolist() == [2, 4, 6]
    assert choose_training_points(scores, "p0_influence", 3).tolist() == [0, 4, 5]
    assert choose_training_points(scores, "p100_influence", 3).tolist() == [1, 3, 9]


@pytest.mark.parametrize(("choice", "count"), [("best", 3), ("p_influence", 3), ("p101_influence", 3), ("p30_loss", 3)])
def test_bad_training_choice(choice: str, count: int) -> None:
    with pytest.raises(InputError, match="train_choice"):
        choose_training_points(np.arange(5.0), choice, count)


@pytest.mark.parametrize("count", [2, 6])
def test_bad_training_count(count: int) -> None:
    with pytest.raises(InputError, match="train_count"):
        choose_training_points(np.arange(5.0), "top_influence", count)


def examined() -> tuple[Points, dict, dict, dict]:
    rng = np.random.default_rng(0)
    true = rng.standard_normal((20, 2))
    points = Points(np.array([7, 3]), ["max_loss", "p50_loss"])
    chosen = {"top_influence": [np.arange(0, 8), np.arange(4, 14)]}
    left_out = union(chosen["top_influence"])
    truth = spread_over(left_out, true[left_out], 20)
    estimates = {"exact": Estimated(2 * true, residual=1e-9), "bad": Estimated(-true, status="indefinite")}
    return points, chosen, estimates, {"loo_certified": Retrained(truth, control=np.array([0.5, 0.25]))}


def test_rows_compare_each_test_point_on_its_own_training_points() -> None:
    points, chosen, estimates, truths = examined()
    rows = rows_of(points, chosen, estimates, truths, {"seed": 4})
    assert len(rows) == 4 and {row["seed"] for row in rows} == {4}
    good = [row for row in rows if row["estimator"] == "exact"]
    assert [(row["test_point"], row["n_points"], row["control_change"]) for row in good] == [(7, 8, 0.5), (3, 10, 0.25)]
    assert all(row["slope"] == pytest.approx(0.5) and row["spearman"] == pytest.approx(1) for row in good)
    bad = [row for row in rows if row["estimator"] == "bad"]
    assert all(row["spearman"] == pytest.approx(-1) and row["status"] == "indefinite" for row in bad)


def test_a_row_with_too_few_certified_truths_says_so() -> None:
    points, chosen, estimates, truths = examined()
    truths["loo_certified"].changes[:4] = np.nan
    row = rows_of(points, chosen, estimates, truths, {})[0]
    assert (row["n_points"], row["n_uncertified"], row["status"]) == (4, 4, "not_certified")


def test_pooling_takes_all_pairs_of_a_choice_together() -> None:
    points, chosen, estimates, truths = examined()
    true = truths["loo_certified"].changes
    found = pooled([0, 1], chosen["top_influence"], true * [1, 3], true)
    pairs = np.concatenate([true[:8, 0], true[4:14, 1]]), np.concatenate([true[:8, 0], 3 * true[4:14, 1]])
    assert found.pearson == pytest.approx(np.corrcoef(*pairs)[0, 1])
    assert pooled([0, 1], chosen["top_influence"], true, true).pearson == pytest.approx(1)
    both = Points(points.index, ["max_loss", "max_loss"])
    rows = together(both, chosen, estimates, truths, {"seed": 4})
    assert [(r["estimator"], r["test_choice"], r["n_points"]) for r in rows] == [
        ("exact", "max_loss_together", 18),
        ("bad", "max_loss_together", 18),
    ]
    assert rows[0]["spearman"] == pytest.approx(1) and rows[1]["slope"] == pytest.approx(-1)


def test_a_truth_makes_no_rows_for_what_it_did_not_leave_out() -> None:
    points, chosen, estimates, truths = examined()
    truths["loo_warm"] = Retrained(truths["loo_certified"].changes, left_out=np.arange(0, 10))
    found = [(r["ground_truth"], r["test_point"]) for r in rows_of(points, chosen, estimates, truths, {})]
    assert ("loo_warm", 7) in found and ("loo_warm", 3) not in found and ("loo_certified", 3) in found
    assert all(r["ground_truth"] == "loo_certified" for r in together(points, chosen, estimates, truths, {})[-1:])


def test_the_ceiling_is_the_agreement_of_two_repetitions() -> None:
    points, chosen, estimates, truths = examined()
    true = truths["loo_certified"].changes
    again = true + 0.5 * np.random.default_rng(1).standard_normal(true.shape)
    again[0] = np.nan  # not repeated
    truth = Retrained(true, repeats=np.stack([true, again]))
    row = rows_of(points, chosen, estimates, {"loo_certified": truth}, {})[0]
    assert row["ceiling_pearson"] == pytest.approx(np.corrcoef(true[1:8, 0], again[1:8, 0])[0, 1])
    without = rows_of(points, chosen, estimates, truths, {})[0]
    assert np.isnan(without["ceiling_pearson"]) and np.isnan(without["ceiling_spearman"])
