"""Iris and its splits."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris

from fragile_lib.data import iris_splits
from fragile_lib.errors import InputError


def test_a_split_has_120_training_and_30_test_flowers_in_float64():
    train, test = iris_splits([0, 1, 2])
    assert train.x.shape == (3, 120, 4) and test.x.shape == (3, 30, 4)
    assert train.y.shape == (3, 120) and test.y.shape == (3, 30)
    assert (len(train), len(test)) == (120, 30)
    assert train.x.dtype == test.x.dtype == torch.float64
    assert train.y.dtype == test.y.dtype == torch.long


def test_every_split_is_stratified():
    for part, count in zip(iris_splits([0, 5, 9]), (40, 10), strict=True):
        for labels in part.y:
            assert torch.bincount(labels).tolist() == [count] * 3


def test_features_are_standardised_by_their_own_training_set():
    train, test = iris_splits([3, 4])
    torch.testing.assert_close(train.x.mean(1), torch.zeros(2, 4).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(train.x.std(1, correction=0), torch.ones(2, 4).double(), rtol=1e-12, atol=0)
    assert test.x.mean(1).abs().max() > 1e-3


def test_training_and_test_set_together_are_the_150_flowers_with_their_labels():
    train, test = iris_splits([7])
    flowers, labels = load_iris(return_X_y=True)
    both, both_labels = np.vstack([train.x[0], test.x[0]]), np.concatenate([train.y[0], test.y[0]])
    slope, offset = np.empty(4), np.empty(4)
    for c in range(4):  # undo the standardisation through the extremes of each feature
        slope[c] = np.ptp(flowers[:, c]) / np.ptp(both[:, c])
        offset[c] = flowers[:, c].min() - slope[c] * both[:, c].min()
    found = np.column_stack([(slope * both + offset).round(6), both_labels])
    expected = np.column_stack([flowers.round(6), labels])
    order = lambda rows: rows[np.lexsort(rows.T)]  # noqa: E731
    np.testing.assert_allclose(order(found), order(expected), atol=1e-5)


def test_seeds_give_different_splits_and_one_seed_always_the_same():
    train, test = iris_splits([0, 1, 0])
    assert not torch.equal(train.x[0], train.x[1])
    assert torch.equal(train.x[0], train.x[2]) and torch.equal(test.y[0], test.y[2])
    alone, _ = iris_splits([1])
    assert torch.equal(alone.x[0], train.x[1])


def test_another_fraction_gives_another_size():
    train, test = iris_splits([0], test_fraction=0.5)
    assert (len(train), len(test)) == (75, 75)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, 1.5, 0.01])
def test_a_fraction_that_leaves_no_flowers_is_refused(fraction):
    with pytest.raises(InputError, match="^test_fraction = "):
        iris_splits([0], fraction)


def test_no_seeds_are_refused():
    with pytest.raises(InputError, match="^seeds = "):
        iris_splits([])
