"""Which points are examined, what is left out, and what estimates and truths can tell of it."""

import numpy as np
import pytest
import torch

from fragile_lib.choices import (
    Chosen,
    Estimate,
    Points,
    Removals,
    Truth,
    choose,
    choose_points,
    choose_the_groups,
    choose_training,
    most_influential,
    random_subsets,
    share_of,
    subset_choices,
)
from fragile_lib.tools.errors import InputError

LOSSES = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0, 0.0, 6.0])
LABELS, SCORES = np.arange(60) % 3, np.linspace(-1, 2, 60)
NAN = float("nan")


# -- removals --------------------------------------------------------------------------------------------------------


def test_a_removal_takes_one_nth_from_its_members_and_nothing_from_the_others() -> None:
    single = Removals.single([2, 0], 4)
    assert torch.equal(single.changes(), torch.tensor([[0, 0, -0.25, 0], [-0.25, 0, 0, 0]]).double())
    groups = Removals.groups([[0, 3], [1, 2]], 4)
    expected = torch.stack([Removals.single(group, 4).changes().sum(0) for group in groups.members])
    torch.testing.assert_close(groups.changes(), expected)
    assert torch.equal(groups.changes(slice(1, 2)), expected[1:]) and torch.equal(groups.changes([1]), expected[1:])
    assert torch.equal(Removals(((), (1,)), 4).changes()[0], torch.zeros(4).double())  # a control


def test_sums_places_and_unions() -> None:
    values = np.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(Removals.single([4, 1], 6).sums(values), values[[4, 1]])
    groups = Removals.groups([[0, 5], [2, 3]], 6)
    np.testing.assert_array_equal(groups.sums(values), [values[0] + values[5], values[2] + values[3]])
    assert Removals.single([4, 1, 3], 6).places(Removals.single([3, 2, 4], 6)).tolist() == [2, -1, 0]
    union = Removals.union([Removals.single([4, 1], 6), Removals.single([1, 0], 6)])
    assert union.indices.tolist() == [0, 1, 4] and union.are_single
    assert groups.indices.tolist() == [0, 1] and not groups.are_single and len(groups.none()) == 0


def test_an_additive_estimate_tells_of_groups_and_another_of_its_own_removals_alone() -> None:
    changes = np.arange(8.0).reshape(4, 2)
    everything = Estimate(Removals.single(range(4), 4), changes)
    group = Removals.groups([[0, 3], [1, 2]], 4)
    assert everything.covers(group)
    np.testing.assert_array_equal(everything.on(group), [changes[0] + changes[3], changes[1] + changes[2]])
    own = Estimate(group, changes[:2], additive=False)
    assert own.covers(group) and not own.covers(Removals.single([0], 4))
    np.testing.assert_array_equal(own.on(Removals.groups([[1, 2]], 4)), changes[1:2])
    some = Estimate(Removals.single([1, 2], 4), changes[:2])
    assert some.covers(Removals.single([2], 4)) and not some.covers(group)
    np.testing.assert_array_equal(everything.at([1]).changes, changes[:, 1:])
    assert np.isnan(everything.norms_on(group)).all()


def test_an_indefinite_removal_flags_the_rows_that_it_is_in() -> None:
    removals = Removals.single([0, 1, 2], 3)
    estimate = Estimate(removals, np.zeros((3, 1)), indefinite=np.array([False, True, False]))
    assert estimate.status_on(Removals.single([0, 2], 3)) == "ok"
    assert estimate.status_on(Removals.single([0, 1], 3)) == "indefinite"
    assert Estimate(removals, np.zeros((3, 1)), status="not_converged").status_on(removals) == "not_converged"


def test_a_truth_less_its_control_takes_each_repetitions_own() -> None:
    changes, control = np.arange(6.0).reshape(3, 2), np.array([1.0, 2.0])
    repeats, controls = np.stack([changes, changes + 5]), np.array([[1.0, 2.0], [3.0, 4.0]])
    norms, others = np.arange(3.0), np.arange(3.0) + 7
    truth = Truth(Removals.single([0, 2, 5], 6), changes, control, repeats, controls, norms, others)
    less = truth.minus_control()
    np.testing.assert_array_equal(less.changes, changes - control)
    np.testing.assert_array_equal(less.repeats, [changes - [1, 2], changes + 5 - [3, 4]])
    np.testing.assert_array_equal(less.norms_on(Removals.single([5], 6)), [9])
    np.testing.assert_array_equal(truth.on(Removals.single([5, 0], 6)), changes[[2, 0]])
    assert truth.covers(Removals.single([2], 6)) and not truth.covers(Removals.single([1], 6))
    assert truth.at([1]).changes.shape == (3, 1) and truth.at([1]).repeats is None


# -- test points -----------------------------------------------------------------------------------------------------


def test_points_of_highest_and_of_median_loss() -> None:
    points = choose_points(LOSSES, {"max_loss": 2, "p50_loss": 3})
    assert points.choice == ["max_loss"] * 2 + ["p50_loss"] * 3
    assert sorted(points.index[:2]) == [0, 6] and sorted(points.index[2:]) == [2, 3, 4]
    assert points.places("p50_loss") == [2, 3, 4] and points.some([0, 2]).choice == ["max_loss", "p50_loss"]
    assert Points(np.array([0, 1]), ["random"] * 2, np.array([66, 7])).called == [66, 7]


@pytest.mark.parametrize(
    ("choice", "losses", "expected"),
    [
        ("max_loss", [0.1, 5.0, 0.3, 2.0], 1),
        ("p50_loss", [0.1, 5.0, 0.3], 2),
        ("p50_loss", [0.1, 5.0, 0.3, 2.0], 2),  # the lower of two
        ("p50_loss", [4.0], 0),
        ("p50_loss", [1.0, 1.0, 1.0], 1),  # equal losses always give the same point
        ("max_loss", [1.0, 1.0, 1.0], 2),
    ],
)
def test_one_point_of_a_choice(choice: str, losses: list, expected: int) -> None:
    assert choose_points(torch.tensor(losses), {choice: 1}).index.tolist() == [expected]


# -- training points -------------------------------------------------------------------------------------------------


def training(choice: str, count: int, scores: list, losses: list | None = None) -> list:
    losses = np.full(len(scores), np.nan) if losses is None else np.array(losses)
    return choose_training(choice, count, np.array(scores, dtype=float), losses, seed=3).tolist()


def test_training_points_are_ranked_by_absolute_influence_and_come_sorted() -> None:
    scores = [0.1, -9.0, 0.3, 5.0, -0.2, 0.0, 0.4, -0.6, 0.5, 7.0]
    assert training("top_influence", 3, scores) == [1, 3, 9]
    # |scores| in rising order are those of 5, 0, 4, 2, 6, ...: the 30th percentile lies at rank 3 of 10
    assert training("p30_influence", 3, scores) == [2, 4, 6]
    assert training("p0_influence", 3, scores) == [0, 4, 5]
    assert training("p100_influence", 3, scores) == [1, 3, 9]
    losses = [0.5, 9.0, 0.1, 3.0, 7.0, 0.2, 0.3, 0.0]
    assert training("top_loss", 3, [0] * 8, losses) == [1, 3, 4]
    assert training("all", 1, [0.0] * 5) == [0, 1, 2, 3, 4]
    assert training("top_influence", 3, [1.0] * 6) == [0, 1, 2]  # of equal ones the first


def test_examples_without_a_score_are_not_chosen() -> None:
    assert training("top_influence", 3, [NAN, 0.0, 2.0, NAN, 1.0, 5.0]) == [2, 4, 5]
    assert len(training("top_influence", 3, [NAN] * 6)) == 3
    with pytest.raises(InputError, match="from 3 to 4"):
        training("top_influence", 5, [NAN, 0.0, 2.0, NAN, 1.0, 5.0])


def test_random_points_are_the_same_for_a_seed_and_for_all_test_points() -> None:
    chosen = choose(np.random.default_rng(0).standard_normal((30, 2)), {"random": 5}, selected_by="cg", seed=3)
    first, second = chosen.removals["random"]
    assert first.members == second.members and first.indices.tolist() == training("random", 5, [0.0] * 30)
    assert chosen.selected_by == "cg" and chosen.all().members == first.members


def test_a_share_is_of_all_points_three_at_least_and_never_more_than_there_are() -> None:
    asked = {(0.4, 120): 48, (0.166, 120): 20, (0.01, 10): 3, (0.01, 2): 2, (1.0, 10): 10}
    assert {pair: share_of(*pair) for pair in asked} == asked


def test_what_is_chosen_for_some_points_or_choices() -> None:
    scores = np.random.default_rng(1).standard_normal((20, 3))
    chosen = choose(scores, {"top_influence": 4, "p30_influence": 4})
    assert set(chosen.only("p30_influence").removals) == {"p30_influence"}
    assert len(chosen.at([0, 2]).removals["top_influence"]) == 2
    expected = Removals.union(part for parts in chosen.removals.values() for part in parts)
    assert chosen.all() == expected
    assert most_influential(scores, 2).tolist() == sorted(np.abs(scores).mean(1).argsort()[-2:].tolist())
    assert isinstance(chosen, Chosen)


# -- groups ----------------------------------------------------------------------------------------------------------


def test_groups_of_all_kinds_are_of_one_size_without_repeats_seeded_and_the_same_for_all_test_points() -> None:
    scores = np.stack([SCORES, -SCORES[::-1]], 1)
    chosen = choose_the_groups(scores, LABELS, 7, 5, seed=0)
    assert set(chosen.removals) == {"random_groups", "same_class_groups", "top_influence_groups"}
    for parts in chosen.removals.values():
        assert len(parts) == 2 and parts[0] is parts[1]
        assert [len(set(group)) for group in parts[0].members] == [5] * 7
    groups = {kind: parts[0].members for kind, parts in chosen.removals.items()}
    assert all(len(set(LABELS[list(g)])) == 1 for g in groups["same_class_groups"])
    assert {LABELS[g[0]] for g in groups["same_class_groups"]} == {0, 1, 2}
    top = {i for group in groups["top_influence_groups"] for i in group}
    assert top <= set(np.argsort(-np.abs(SCORES))[:10].tolist())
    assert choose_the_groups(scores, LABELS, 7, 5, seed=0).all() == chosen.all()
    assert choose_the_groups(scores, LABELS, 7, 5, seed=1).all() != chosen.all()


# -- random subsets --------------------------------------------------------------------------------------------------


def test_random_subsets_leave_out_a_share_and_are_the_same_for_all_test_points() -> None:
    scores = np.random.default_rng(1).standard_normal((60, 2))
    chosen = choose(scores, subset_choices([0, 0.05, 0.5], 40), seed=3)
    assert {choice: len(parts[0].members[0]) for choice, parts in chosen.removals.items()} == {
        "removed_0": 1,
        "removed_0.05": 3,
        "removed_0.5": 30,
    }
    for parts in chosen.removals.values():
        assert parts[0] is parts[1] and len(parts[0]) == 40 and len(set(parts[0].members)) > 35
    assert len(set(chosen.removals["removed_0"][0].members)) == 40
    left_out = -60 * chosen.removals["removed_0.5"][0].changes().numpy()
    assert (left_out.sum(axis=1) == 30).all() and abs(left_out.mean(axis=0) - 0.5).max() < 0.3
    assert choose(scores, subset_choices([0.5], 40), seed=3).removals["removed_0.5"][0].members == (
        chosen.removals["removed_0.5"][0].members
    )
    assert random_subsets(0.5, 40, 60, seed=4).members != random_subsets(0.5, 40, 60, seed=3).members
    assert subset_choices([], 40) == {}


# -- bad input -------------------------------------------------------------------------------------------------------

REFUSED = [
    *((Removals.groups, (groups, 4), "removals") for groups in ([[4]], [[-1, 2]], [[1, 1]])),
    *((choose_points, (LOSSES, {name: count}), "test_") for name, count in (("min_loss", 1), ("max_loss", 0))),
    (choose_points, (LOSSES, {"p50_loss": 8}), "test_"),
    *(
        (training, (name, 3, range(5)), "train_choice")
        for name in ("best", "p_influence", "p101_influence", "p30_loss")
    ),
    *((training, ("top_influence", count, range(5)), "train_count") for count in (2, 6)),
    *((choose_the_groups, (SCORES[:, None], LABELS, 2, size, 0), "group_size") for size in (61, 21, 0)),
    *((random_subsets, (share, 10, 60), "removed_shares") for share in (1.0, -0.1, NAN)),
    *((random_subsets, pair, "subsets") for pair in ((0.5, 2, 60), (0.0, 61, 60))),
    *((share_of, (fraction, 10), "top_fraction") for fraction in (0.0, -0.5, 1.01, NAN)),
]


@pytest.mark.parametrize(("call", "given", "named"), REFUSED)
def test_a_choice_that_cannot_be_made_is_named(call, given: tuple, named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}.* = "):
        call(*given)
