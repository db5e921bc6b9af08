"""Parts of image sets: what is known of each set, what may be asked of it, and seeded, stratified choices.

All of it without a pixel: a choice is made by labels alone, so that only what is chosen need be converted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fragile_lib.tools.errors import bad_input


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


def image_set(dataset: str) -> ImageSet:
    """What is known of the set of images with this name; `InputError` where there is none."""
    if not isinstance(dataset, str) or dataset not in IMAGE_SETS:
        raise bad_input("dataset", dataset, f"choose one of {', '.join(IMAGE_SETS)}")
    return IMAGE_SETS[dataset]


def checked_subset(
    dataset: str, source: str, n_train: int, n_test: int, seed: int, classes: int | None
) -> tuple[ImageSet, int]:
    """What is known of the set, and how many classes are meant, for the arguments of `data.image_subset`.

    Raises:
        InputError: something that the set cannot give; found without reading it.
    """
    known = image_set(dataset)
    if source not in ("full", "digits"):
        raise bad_input("source", source, "choose full or digits")
    if source == "digits" and not known.digits:
        raise bad_input("source", source, f"the digits are images of mnist; choose full for {dataset}")
    if not _is_integer(seed) or not 0 <= seed < 2**32:
        raise bad_input("seed", seed, "choose an integer from 0 to 2**32 - 1")
    every = len(known.train)
    if classes is not None and (not _is_integer(classes) or not 2 <= classes <= every):
        raise bad_input("classes", classes, f"choose an integer from 2 to {every}, or None for all {every}")
    classes = every if classes is None else int(classes)
    stocks = (known.digits, known.digits) if source == "digits" else (known.train, known.test)
    for name, n, stock in (("n_train", n_train, stocks[0]), ("n_test", n_test, stocks[1])):
        most = sum(stock[:classes])
        if not _is_integer(n) or not classes <= n <= most:
            remedy = f"choose an integer from {classes}, one image a class, to {most:,}, all that {dataset} has there"
            raise bad_input(name, n, remedy)
    if source == "digits" and n_train + n_test > most:
        raise bad_input("n_train + n_test", n_train + n_test, f"there are {most:,} such digits: choose fewer")
    return known, classes


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


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
