"""A stand-in for ImageNet, in its layout, from real photographs: for machines that have no ImageNet.

    python -m fragile_lib.data.standin

CIFAR-10's images, enlarged, are the training and test set, one folder a class; seven of ImageNet's own photographs,
which the package foolbox carries, are further test images of the classes that they show. The folder says what it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from fragile_lib.data.folder import MARK
from fragile_lib.data.raw import cifar10_raw
from fragile_lib.data.sets import stratified
from fragile_lib.data.sources import RawSet, by_pip, raw_files, workspace
from fragile_lib.tools.checks import check_count, check_name
from fragile_lib.tools.errors import InputError, bad_input
from fragile_lib.tools.files import data_root

SOURCES = ("cifar10", "crops")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 256  # pixels of the enlarged images: those of ImageNet before they are cropped
CROP = 128  # pixels of a crop of the two sample photographs
PREFIX = "photo-"  # of the names of ImageNet's own photographs
SHOWN = {  # foolbox's files whose ImageNet class is a kind of one of the ten (bull mastiff, jeep, ...), with their MD5
    "imagenet_00_243.jpg": ("dog", "49f3e9a234d30bd343f471a2951aadbd"),
    "imagenet_06_609.jpg": ("automobile", "51dbbc21e753eb5db75667b414203fdb"),
    "imagenet_07_609.jpg": ("automobile", "1c7c7b6e5b16b47eb37ba7fa40f4a6c3"),
    "imagenet_14_129.jpg": ("bird", "5662f1302d46404d6ad293db1c88349e"),
    "imagenet_15_99.jpg": ("bird", "6c29ae4bbef53956e86c64fc5b4c0a83"),
    "imagenet_16_251.jpg": ("dog", "47a211ff97f50e86de46b9e180062fde"),
    "imagenet_17_22.jpg": ("bird", "906bd567d8c8fb81d4b3271fcc28b9e4"),
}
PHOTOGRAPHS = RawSet(
    name="seven of ImageNet's photographs",
    folder="imagenet-photographs",
    md5={name: md5 for name, (_, md5) in SHOWN.items()},
    routes=(by_pip("foolbox", "3.3.4", "foolbox/data", 1.7e6),),
)


def standin_folder(source: str = "cifar10", train_per_class: int = 20, test_per_class: int = 10, seed: int = 0) -> Path:
    """The folder of a stand-in with train/ and val/ in it; made in the data root where it is not there or not whole.

    It is written beside its place and renamed. `standin.json` in it has the checksum of each file, and says that this
    is not ImageNet.

    Args:
        source: `cifar10`, as above; or `crops`, of the two photographs that come with scikit-learn (a temple, a
            flower: two classes), for which nothing is fetched.
        train_per_class, test_per_class: images drawn from CIFAR-10's training and test set, or crops.
        seed: of the draw.

    Raises:
        InputError: an unknown source, a count below 1 or beyond CIFAR-10's; CIFAR-10 cannot be had; or the root cannot
            be written to. ImageNet's seven photographs are left out with a warning where they cannot be had.
    """
    check_name("standin", source, SOURCES)
    check_count("train_per_class", train_per_class, most=5000)  # as many as CIFAR-10 has of a class
    check_count("test_per_class", test_per_class, most=1000)
    root, place = data_root(), place_of(source, train_per_class, test_per_class, seed)
    if is_whole(place):
        return place
    draw = _cifar_images if source == "cifar10" else _crops
    try:
        with workspace(root) as work:
            draw(work / "whole", train_per_class, test_per_class, seed)
            about = {"what": "stand-in, not ImageNet", "source": source, "seed": seed, "sha256": _sums(work / "whole")}
            (work / "whole" / MARK).write_text(json.dumps(about, indent=1) + "\n")
            if place.exists():  # not whole
                shutil.rmtree(place)
            place.parent.mkdir(exist_ok=True)
            os.replace(work / "whole", place)
    except OSError as error:
        if not is_whole(place):  # another process may have come first
            raise bad_input("root", str(root), f"the stand-in cannot be stored there ({error})") from error
    return place


def place_of(source: str, train_per_class: int, test_per_class: int, seed: int = 0) -> Path:
    """Where a stand-in lies or would lie."""
    return data_root() / "imagenet-standin" / f"{source}-{train_per_class}-{test_per_class}-s{seed}"


def is_whole(folder: Path) -> bool:
    """Whether a stand-in is there with all its files, each with its checksum, and no others."""
    try:
        return json.loads((folder / MARK).read_text())["sha256"] == _sums(folder)
    except (OSError, ValueError, KeyError):
        return False


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each image, by its name in the folder."""
    images = {path.relative_to(folder).as_posix(): path for path in folder.glob("*/*/*")}
    return {name: hashlib.sha256(images[name].read_bytes()).hexdigest() for name in sorted(images)}


def _cifar_images(folder: Path, train: int, test: int, seed: int) -> None:
    raw = cifar10_raw()
    for part, pixels, labels, count in (
        ("train", raw.train_images, raw.train_labels, train),
        ("val", raw.test_images, raw.test_labels, test),
    ):
        for row in np.sort(stratified(labels, count * len(CLASSES), len(CLASSES), [seed, int(part == "val")])):
            image = Image.fromarray(pixels[row].transpose(1, 2, 0)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            _save(image, folder / part / CLASSES[labels[row]] / f"cifar-{row:05d}.jpg")
    try:
        own = raw_files(PHOTOGRAPHS)
    except InputError as error:
        warnings.warn(f"the stand-in has none of ImageNet's own photographs: {error}", stacklevel=3)
        own = {}
    for name, content in own.items():
        (folder / "val" / SHOWN[name][0] / f"{PREFIX}{name}").write_bytes(content)


def _crops(folder: Path, train: int, test: int, seed: int) -> None:
    rng, samples = np.random.default_rng([seed, 17]), load_sample_images()
    for name, pixels in zip(("temple", "flower"), samples.images, strict=True):
        for part, count in (("train", train), ("val", test)):
            for number in range(count):
                top, left = (int(rng.integers(extent - CROP)) for extent in pixels.shape[:2])
                crop = Image.fromarray(pixels[top : top + CROP, left : left + CROP])
                _save(crop, folder / part / name / f"crop-{number:04d}.jpg")


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="JPEG", quality=95)


def main(arguments: list[str] | None = None) -> int:
    """Make the stand-in of the study of record, or one of another size, and say where it lies."""
    parser = argparse.ArgumentParser(prog="python -m fragile_lib.data.standin", description=__doc__.split("\n")[0])
    parser.add_argument("--source", default="cifar10", choices=SOURCES, help="which photographs")
    parser.add_argument("--train", type=int, default=20, help="training images of each class")
    parser.add_argument("--test", type=int, default=10, help="test images of each class")
    given = parser.parse_args(arguments)
    try:
        print(standin_folder(given.source, given.train, given.test))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
