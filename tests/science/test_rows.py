"""Rows of the results: which there are, their outcomes, and what they say of a truth's own noise."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import Regression
from PIL import Image

from fragile_lib.choices import Chosen, Estimate, Points, Removals, Truth, choose, mean_of, subset_choices
from fragile_lib.data import Data
from fragile_lib.estimates import estimate
from fragile_lib.own.dampings import over_dampings
from fragile_lib.rows import as_estimate, compare, recorded, scatter, together

N = 20


def network(usable=True, status="ok"):
    """What rows ask of a network."""
    return SimpleNamespace(
        usable=usable,
        certificate={"status": status},
        shared={"seed": 4, "fit": "certified"},
        seed=4,
        fit="certified",
        curvature=SimpleNamespace(weight_decay=0.1),
        test_losses=lambda: torch.arange(30.0),
    )


def singles(rows):
    return Removals.single(rows, N)


def examined():
    true = np.random.default_rng(0).standard_normal((N, 2))
    points = Points(np.array([7, 3]), ["max_loss", "p50_loss"])
    chosen = Chosen({"top_influence": [singles(range(8)), singles(range(4, 14))]}, selected_by="exact")
    everything, left_out = singles(range(N)), chosen.all()
    truth = Truth(left_out, true[left_out.indices], np.array([0.5, 0.25]))
    estimates = {"exact": Estimate(everything, 2 * true, 1e-9), "bad": Estimate(everything, -true, status="indefinite")}
    return points, chosen, estimates, {"minimum": truth}


def rows_of(points, chosen, estimates, truths, one=None):
    return compare([one or network()], [points], [chosen], [estimates], [truths])


def test_each_test_point_is_compared_on_its_own_training_points() -> None:
    rows = rows_of(*examined())
    assert len(rows) == 4
    assert {(row["seed"], row["fit"], row["selected_by"]) for row in rows} == {(4, "certified", "exact")}
    good = [row for row in rows if row["estimator"] == "exact"]
    told = [(row["test_point"], row["n_points"], row["control_change"], row["test_loss"]) for row in good]
    assert told == [(7, 8, 0.5, 7.0), (3, 10, 0.25, 3.0)]
    assert all(row["slope"] == pytest.approx(0.5) and row["spearman"] == pytest.approx(1) for row in good)
    assert all(row["sign_agreement"] == 1 and row["status"] == "ok" for row in good)
    bad = [row for row in rows if row["estimator"] == "bad"]
    assert all(row["spearman"] == pytest.approx(-1) and row["status"] == "indefinite" for row in bad)
    assert all(row["sign_agreement"] == 0 for row in bad)


def test_every_row_has_the_columns_of_the_results_table() -> None:
    contract = "seed test_point test_choice train_choice n_points estimator ground_truth pearson spearman slope status"
    contract += " solver_residual seconds_estimate seconds_retrain n_uncertified control_change sign_agreement"
    contract += " norm_spearman norm_ratio repeats spearman_single spearman_corrected pearson_corrected"
    contract += " reliability_single reliability unseen"
    rows = rows_of(*examined())
    assert all(set(contract.split()) <= set(row) and set(row) == set(rows[0]) for row in rows)


def test_a_truth_makes_no_rows_for_what_it_did_not_leave_out_nor_beside_itself() -> None:
    points, chosen, estimates, truths = examined()
    some = singles(range(10))
    truths["warm_minibatch"] = Truth(some, truths["minimum"].on(some), np.zeros(2))
    estimates["warm_minibatch"] = as_estimate(truths["warm_minibatch"])
    found = [(r["estimator"], r["ground_truth"], r["test_point"]) for r in rows_of(points, chosen, estimates, truths)]
    assert ("exact", "warm_minibatch", 7) in found and ("exact", "warm_minibatch", 3) not in found
    assert ("exact", "minimum", 3) in found and ("warm_minibatch", "minimum", 7) in found
    assert not [row for row in found if row[0] == row[1]]


def test_estimates_of_groups_are_sums() -> None:
    points, _, estimates, _ = examined()
    groups = Removals.groups([[0, 1], [2, 3], [4, 5], [6, 7]], N)
    changes = estimates["exact"].on(groups)
    truths = {"pbrf": Truth(groups, 3 * changes, np.zeros(2))}
    rows = rows_of(points, Chosen({"random_groups": [groups] * 2}), {"exact": estimates["exact"]}, truths)
    assert [(row["n_points"], row["slope"]) for row in rows] == [(4, pytest.approx(3))] * 2


def test_the_linear_datamodelling_score_of_a_derivative_is_one_where_removals_are_infinitesimal() -> None:
    problem, points = Regression(), Points(np.arange(6), ["max_loss"] * 6)
    fitted = problem.network()
    (estimates,) = estimate([fitted], [points], ["exact", "identity"])
    chosen = choose(estimates["exact"].changes, subset_choices([0, 0.1, 0.5], 20))
    left_out, ends = chosen.all(), []
    for step in (1e-5, -1e-5):
        weights = 1 / problem.n + step * left_out.changes().numpy()
        ends.append([problem.test_losses(problem.optimum(w)) for w in weights])
    truth = Truth(left_out, np.subtract(*ends) / 2e-5, np.zeros(6))
    rows = compare([fitted], [points], [chosen], [estimates], [{"derivative": truth}])
    sizes = {
        choice: {len(group) for part in parts for group in part.members} for choice, parts in chosen.removals.items()
    }
    assert sizes == {"removed_0": {1}, "removed_0.1": {2}, "removed_0.5": {12}}
    perfect = [row for row in rows if row["estimator"] == "exact"]
    assert {row["train_choice"] for row in perfect} == set(sizes) and {row["n_points"] for row in perfect} == {20}
    assert all((row["spearman"], row["slope"]) == pytest.approx((1, 1), abs=1e-6) for row in perfect)
    others = [row["spearman"] for row in rows if row["estimator"] == "identity"]
    assert max(others) < 1 and np.mean(others) > 0  # the score can fail


def test_over_dampings_each_estimate_is_the_closed_form_at_its_damping() -> None:
    problem, points = Regression(), Points(np.arange(6), ["max_loss"] * 6)
    fitted, everyone = problem.network(damping=0.7), Removals.single(range(problem.n), problem.n)
    chosen, truth = Chosen({"all": [everyone] * 6}), Truth(everyone, problem.exact_leave_one_out(), np.zeros(6))
    given = [fitted], [points], [chosen]
    rows, found = over_dampings(*given, ["exact"], [{"minimum": truth}], [1e-9, 0.5])
    residuals, test_residuals = (
        x @ problem.optimum() - y for x, y in ((problem.design, problem.y), (problem.design_test, problem.y_test))
    )
    for damping, name in ((1e-9, "exact, damping 1e-09"), (0.5, "exact, damping 0.5")):
        inverse = np.linalg.inv(problem.hessian() + damping * np.eye(4))
        right = (residuals[:, None] * problem.design) @ inverse @ (test_residuals[:, None] * problem.design_test).T
        assert np.allclose([p["estimate"][name] for p in found], right.T / problem.n, rtol=1e-6, atol=1e-12)
        told = [row["slope"] for row in rows if row["damping"] == damping]
        assert told == pytest.approx([np.polyfit(right[:, j] / problem.n, truth.changes[:, j], 1)[0] for j in range(6)])
    assert np.mean([row["slope"] for row in rows if row["damping"] == 0.5]) > 1.2  # damping makes estimates too small


# -- outcomes --------------------------------------------------------------------------------------------------------


def row_of(one=None, solver="ok", guessed=None, true=None):
    guessed = np.random.default_rng(0).standard_normal((10, 1)) if guessed is None else guessed
    true = guessed + 0.1 if true is None else true
    removals = Removals.single(range(10), 10)
    estimate = Estimate(removals, guessed, 0.0, status=solver, norms=np.abs(guessed[:, 0]))
    truth = Truth(removals, true, np.zeros(1), norms=np.abs(true[:, 0]))
    (row,) = rows_of(
        Points(np.array([3]), ["max_loss"]), Chosen({"all": [removals]}), {"e": estimate}, {"t": truth}, one
    )
    return row


def with_nan(count):
    true = np.random.default_rng(0).standard_normal((10, 1)) + 0.1
    true[:count] = np.nan
    return true


def test_an_estimate_that_is_a_shift_of_the_truth_is_perfect_but_for_signs() -> None:
    row = row_of()
    assert (row["pearson"], row["spearman"], row["slope"]) == pytest.approx((1, 1, 1))
    assert (row["status"], row["n_points"], row["test_point"]) == ("ok", 10, 3)


@pytest.mark.parametrize(("missing", "status"), [(0, "ok"), (2, "ok"), (3, "not_certified"), (10, "not_certified")])
def test_a_row_needs_four_fifths_of_its_left_out_networks(missing, status) -> None:
    row = row_of(true=with_nan(missing))
    assert (row["status"], row["n_points"], row["n_uncertified"]) == (status, 10 - missing, missing)


def test_the_first_outcome_that_is_not_ok_is_named() -> None:
    assert row_of(solver="indefinite")["status"] == "indefinite"
    assert row_of(solver="solver_diverged", true=with_nan(9))["status"] == "solver_diverged"
    assert row_of(solver="indefinite", true=with_nan(9))["status"] == "not_certified"
    assert row_of(solver="indefinite", true=np.ones((10, 1)))["status"] == "constant"
    assert row_of(solver="indefinite", guessed=np.full((10, 1), np.nan), true=with_nan(0))["status"] == "diverged"
    for status in ("diverged", "constant", "separable", "not_certified"):
        row = row_of(network(False, status), solver="solver_diverged", true=with_nan(10))
        assert (row["status"], row["n_uncertified"]) == (status, 0)


def test_signs_agree_by_their_share_and_norms_by_their_median_ratio() -> None:
    guessed = np.arange(1.0, 11.0)[:, None]
    true = guessed.copy()
    true[:3] *= -1
    row = row_of(guessed=guessed, true=true)
    assert row["sign_agreement"] == pytest.approx(0.7) and row["norm_ratio"] == 1 and row["norm_spearman"] == 1


# -- noise -----------------------------------------------------------------------------------------------------------


def noisy(count, seed=1):
    true = np.random.default_rng(0).standard_normal((N, 1))
    return true, true + 0.5 * np.random.default_rng(seed).standard_normal((count, N, 1))


def repeated(truth, guessed):
    points, removals = Points(np.array([2]), ["max_loss"]), singles(range(N))
    (row,) = rows_of(points, Chosen({"all": [removals]}), {"e": Estimate(removals, guessed)}, {"t": truth})
    return row


def test_two_repetitions_for_the_noise_alone_give_their_agreement_and_leave_the_correlation() -> None:
    true, repeats = noisy(2)
    repeats[1, 0] = np.nan  # not repeated
    row = repeated(Truth(singles(range(N)), repeats[0], np.zeros(1), repeats), true)
    assert row["ceiling_pearson"] == pytest.approx(np.corrcoef(repeats[:, 1:, 0])[0, 1])
    assert row["pearson"] == pytest.approx(np.corrcoef(true[:, 0], repeats[0, :, 0])[0, 1])
    assert row["reliability"] == row["reliability_single"] == pytest.approx(row["ceiling_spearman"])
    assert row["repeats"] == 2 and row["spearman_corrected"] > row["spearman"] - 0.1
    without = repeated(Truth(singles(range(N)), repeats[0], np.zeros(1)), true)
    assert np.isnan(without["ceiling_pearson"]) and np.isnan(without["ceiling_spearman"])


def test_the_mean_of_many_repetitions_is_more_reliable_than_one_and_the_correction_removes_the_noise() -> None:
    true, repeats = noisy(16)
    truth = Truth(
        singles(range(N)), repeats.mean(0), np.zeros(1), repeats, averaged=True, unseen=np.r_[np.ones(5), np.zeros(15)]
    )
    row = repeated(truth, true)
    assert row["repeats"] == 16 and row["unseen"] == pytest.approx(0.25)
    assert row["spearman_single"] < row["spearman"] <= row["spearman_corrected"]
    assert row["reliability_single"] < row["reliability"] < 1
    assert row["spearman_corrected"] == pytest.approx(row["spearman"] / np.sqrt(row["reliability"]), rel=1e-12)
    expected = true.var() / (true.var() + 0.25)  # of one repetition, by Pearson's correlation
    assert row["reliability_single"] == pytest.approx(expected, abs=0.15)
    assert row["pearson_corrected"] == pytest.approx(1, abs=0.05)
    brown = 16 * row["reliability_single"] / (1 + 15 * row["reliability_single"])
    assert row["reliability"] == pytest.approx(brown)


# -- together, scatter -----------------------------------------------------------------------------------------------


def test_pooling_takes_all_pairs_of_a_choice_together() -> None:
    points, chosen, estimates, truths = examined()
    both = Points(points.index, ["max_loss", "max_loss"])
    true = truths["minimum"]
    estimates["scaled"] = Estimate(singles(range(N)), estimates["exact"].changes / 2 * [1, 3])
    rows = together([network()], [both], [chosen], [estimates], [truths])
    by = {row["estimator"]: row for row in rows}
    assert {(r["test_choice"], r["n_points"], r["test_point"]) for r in rows} == {("max_loss_together", 18, None)}
    assert by["exact"]["spearman"] == pytest.approx(1) and by["bad"]["slope"] == pytest.approx(-1)
    pairs = np.concatenate([true.changes[:8, 0], true.changes[4:14, 1]])
    assert by["scaled"]["pearson"] == pytest.approx(np.corrcoef(pairs, np.r_[pairs[:8], 3 * pairs[8:]])[0, 1])
    assert by["bad"]["status"] == "indefinite" and by["exact"]["status"] == "ok"
    some = {"t": Truth(singles(range(10)), true.changes[:10], np.zeros(2))}
    assert not together([network()], [both], [chosen], [estimates], [some])


def test_scatter_points_are_the_compared_numbers() -> None:
    points, chosen, estimates, truths = examined()
    first, second = scatter([network()], [points], [chosen], [estimates], [truths])
    assert (first["test_point"], second["test_choice"], second["weight_decay"]) == (7, "p50_loss", 0.1)
    np.testing.assert_array_equal(second["index"], range(4, 14))
    np.testing.assert_array_equal(second["estimate"]["exact"], estimates["exact"].changes[4:14, 1])
    np.testing.assert_array_equal(second["truth"]["minimum"], truths["minimum"].changes[4:14, 1])


def test_a_scatter_point_has_the_standard_error_of_a_mean_of_repetitions() -> None:
    points, chosen, estimates, truths = examined()
    noise = np.random.default_rng(0).normal(0, 0.1, (4, N, 2))
    true = mean_of([Truth(singles(range(N)), truths["minimum"].changes[:1] + e, np.zeros(2)) for e in noise])
    first, _ = scatter([network()], [points], [chosen], [estimates], [{"t": true, "once": truths["minimum"]}])
    rows = first["index"]
    np.testing.assert_allclose(first["error"]["t"], noise[:, rows, 0].std(axis=0, ddof=1) / 2)
    assert np.isnan(first["error"]["once"]).all()


def test_a_record_keeps_influential_points_and_images_of_the_first() -> None:
    shared = {"test_choice": "max_loss", "index": np.array([2, 5, 9]), "estimate": {"e": np.array([0.3, -0.2, 0.1])}}
    compared = [shared | {"test_point": i, "train_choice": c} for i in (4, 1) for c in ("top_influence", "random")]
    train, test = (Data(torch.rand(1, 12, 1, 6, 5) * 3 - 1, torch.arange(12)[None] % 3) for _ in range(2))
    train.x[0, :2, :, 0, 0] = torch.tensor([[-1.0], [2.0]])  # the ends of the scale
    kept = recorded([*compared, shared | {"test_point": 7, "test_choice": "p50_loss"}], train, test)
    assert [(p["test_point"], p["train_choice"]) for p in kept] == [
        (4, "top_influence"), (4, "random"), (1, "top_influence")
    ]  # fmt: skip
    assert list(kept[0]["pictured"]) == [0, 1, 2] and [int(i) for i in kept[0]["labels"]] == [1, 2, 2, 0]
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(kept[0]["pixels"]))))
    expected = torch.cat([test.x[0, 4], *train.x[0, [2, 5, 9]]], dim=-1)[0]
    np.testing.assert_allclose(strip, (expected + 1) / 3 * 255, atol=0.51)
    assert recorded(compared) == [compared[0], compared[2]] and "pixels" not in kept[2]
