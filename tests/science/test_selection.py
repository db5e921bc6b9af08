"""Choices of test and training points."""

import pytest
import torch

from fragile_lib import selection
from fragile_lib.selection import TRAIN_CHOICES, train_points
from fragile_lib.tools.errors import InputError

NAN = float("nan")


def choose(choice, losses):
    return selection.test_point(torch.tensor(losses), choice)


def test_the_test_point_of_largest_loss():
    assert choose("max_loss", [0.1, 5.0, 0.3, 2.0]) == 1


def test_the_test_point_of_median_loss_is_the_lower_of_two():
    assert choose("p50_loss", [0.1, 5.0, 0.3]) == 2
    assert choose("p50_loss", [0.1, 5.0, 0.3, 2.0]) == 2
    assert choose("p50_loss", [4.0]) == 0


def test_equal_losses_always_give_the_same_point():
    assert choose("p50_loss", [1.0, 1.0, 1.0]) == 1
    assert choose("max_loss", [1.0, 1.0, 1.0]) == 2


def test_training_points_of_largest_loss_come_sorted():
    losses = torch.tensor([0.5, 9.0, 0.1, 3.0, 7.0, 0.2, 0.3, 0.0])
    assert train_points("top_loss", 0.4, losses, -losses).tolist() == [1, 3, 4]
    assert train_points("top_loss", 0.5, losses, -losses).tolist() == [0, 1, 3, 4]


def test_influence_is_ranked_by_its_size_whatever_its_sign():
    scores = torch.tensor([0.1, -9.0, 3.0, -0.2, 5.0, 0.0])
    assert train_points("top_influence", 0.5, torch.zeros(6), scores).tolist() == [1, 2, 4]


def test_at_least_three_points_are_left_out_and_never_more_than_there_are():
    scores = torch.arange(10.0)
    assert train_points("top_influence", 0.01, scores, scores).tolist() == [7, 8, 9]
    assert train_points("top_loss", 0.01, scores[:2], scores[:2]).tolist() == [0, 1]
    assert train_points("top_loss", 1.0, scores, scores).tolist() == list(range(10))


def test_the_share_is_of_all_training_points():
    scores = torch.arange(120.0)
    assert len(train_points("top_influence", 0.4, scores, scores)) == 48


def test_all_is_every_point_whatever_the_share():
    assert train_points("all", 0.1, torch.zeros(5), torch.zeros(5)).tolist() == [0, 1, 2, 3, 4]


def test_scores_that_are_no_numbers_come_last():
    scores = torch.tensor([NAN, 0.0, 2.0, NAN, 1.0, float("inf")])
    assert train_points("top_influence", 0.5, torch.zeros(6), scores).tolist() == [2, 4, 5]
    assert len(train_points("top_influence", 0.5, torch.zeros(6), torch.full((6,), NAN))) == 3


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, NAN])
@pytest.mark.parametrize("choice", TRAIN_CHOICES)
def test_a_bad_share_is_named(choice, fraction):
    with pytest.raises(InputError, match="^top_fraction = "):
        train_points(choice, fraction, torch.zeros(5), torch.zeros(5))


def test_unknown_choices_are_named():
    with pytest.raises(InputError, match="^test_choice = 'min_loss'"):
        choose("min_loss", [1.0])
    with pytest.raises(InputError, match="^train_choice = 'bottom'"):
        train_points("bottom", 0.5, torch.zeros(5), torch.zeros(5))
