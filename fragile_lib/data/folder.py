"""Photographs in folders, one folder a class: torchvision's ImageNet layout, or any tree of `ImageFolder`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from fragile_lib.tools.checkpoint import digest_of
from fragile_lib.tools.errors import bad_input, listed

MARK = "standin.json"  # in a folder that `standin` made
CLASSES = 1000  # of ImageNet
FIRST, LAST = "n01440764", "n15075141"  # of its class folders, whose sorted order is that of a network's outputs
LAYOUT = "put the images of each class into a folder of its own, as torchvision.datasets.ImageFolder has them"


@dataclass(frozen=True)
class Listing:
    """n photographs by class and by name, so in the same order on every machine; nothing is opened.

    Names lie in one array, with about 40 bytes an image for all that is kept: a list of 1.28 million paths would take
    several times that, and once more in every process that loads images.

    folder: the root. classes: (c,) folder names, sorted. labels: (n,) int64. names: (n,) bytes, within class folders.
    """

    folder: Path
    classes: tuple[str, ...]
    labels: np.ndarray
    names: np.ndarray

    def __len__(self) -> int:
        """n, the number of photographs."""
        return len(self.labels)

    def name(self, row: int) -> str:
        """Class folder and file name of one photograph."""
        return f"{self.classes[self.labels[row]]}/{os.fsdecode(self.names[row])}"

    def path(self, row: int) -> Path:
        """Where one photograph lies."""
        return self.folder / self.name(row)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the names and labels in their order; not of the images."""
        return digest_of(self.names, self.labels)

    @property
    def is_standin(self) -> bool:
        """Whether the folder was made by `standin`: photographs that are not ImageNet's."""
        return any((place / MARK).is_file() for place in (self.folder, self.folder.parent))

    @property
    def dataset(self) -> str:
        """Its name in the results: `imagenet_standin`, `imagenet` by its classes, or `imagefolder` for another."""
        if self.is_standin:
            return "imagenet_standin"
        ends = len(self.classes), self.classes[0], self.classes[-1]
        return "imagenet" if ends == (CLASSES, FIRST, LAST) else "imagefolder"

    def check_outputs(self, outputs: int, classes: tuple[str, ...] = (), imagenet: bool = False) -> None:
        """Whether a network's outputs can stand for the class folders, in their sorted order.

        Raises:
            InputError: another number of them, other names than `classes`, or, for ImageNet's weights, names that are
                not its WordNet ids: sorted otherwise, they would stand for other outputs.
        """
        folder, found = str(self.folder), self.classes
        if len(found) != outputs:
            remedy = (
                f"has {len(found)} class folders, and the weights {outputs} outputs; give the folder that fits them"
            )
            raise bad_input("folder", folder, remedy)
        if classes and tuple(classes) != found:
            odd = next((a, b) for a, b in zip(found, classes, strict=True) if a != b)
            raise bad_input("folder", folder, f"class folder {odd[0]} stands where the weights have {odd[1]}")
        if imagenet and (found[0], found[-1]) != (FIRST, LAST):
            remedy = f"its class folders run from {found[0]} to {found[-1]}, and not from {FIRST} to {LAST}"
            raise bad_input(
                "folder", folder, f"{remedy}; name them by their WordNet ids, which the weights' order is of"
            )

    def labelled_by(self, classes: Sequence[str]) -> Listing:
        """The same photographs with the labels of another set's classes.

        Raises:
            InputError: class folders that the other set does not have.
        """
        places = {name: place for place, name in enumerate(classes)}
        strange = [name for name in self.classes if name not in places]
        if strange:
            remedy = (
                f"holds class folders that the training set lacks, such as {listed(strange, 3)}; both need the same"
            )
            raise bad_input("test_folder", str(self.folder), remedy)
        new = np.array([places[name] for name in self.classes], dtype=np.int64)
        return replace(self, classes=tuple(classes), labels=new[self.labels])


def list_folder(folder: Path | str, name: str = "folder") -> Listing:
    """List the photographs of a folder with one folder a class; links are followed, hidden names left out.

    Links that lead nowhere or in a circle, and fifos or devices with an image's name, are passed over unopened, and
    named in a warning.

    Args:
        folder: the root.
        name: of the parameter, for messages.

    Raises:
        InputError: no folder, an empty one, images that lie directly in it, or class folders without an image.
    """
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise bad_input(name, str(folder), "is no folder; give the one that holds the images")
    entries = _entries(root)
    folders = [entry for entry in entries if os.path.isdir(entry.path)]
    if not folders:
        flat = any(_is_image(entry.name) for entry in entries)
        if flat and root.name == "val":
            remedy = "images lie directly in it, without classes, as ImageNet's archive has them"
            remedy += f"; let torchvision.datasets.ImageNet(root, split='val') sort them, or {LAYOUT}"
        else:
            remedy = f"images lie directly in it: {LAYOUT}" if flat else f"holds no images: {LAYOUT}"
        raise bad_input(name, str(folder), remedy)
    odd = [entry.path for entry in entries if not os.path.exists(entry.path)]
    by_class = [[os.fsencode(path) for path in _images(entry.path, {_identity(root)}, odd)] for entry in folders]
    counts, names = [len(inside) for inside in by_class], [one for inside in by_class for one in inside]
    empty = [entry.name for entry, count in zip(folders, counts, strict=True) if not count]
    if empty:
        remedy = (
            f"class folders without an image: {listed(empty, 3)}; fill or remove them ({', '.join(IMG_EXTENSIONS)})"
        )
        raise bad_input(name, str(folder), remedy)
    if odd:
        told = listed((os.path.relpath(path, root) for path in odd), 10)
        warnings.warn(f"{name}: passed over as links to nowhere, circles or no files: {told}", stacklevel=2)
    labels = np.repeat(np.arange(len(folders)), counts).astype(np.int64)
    return Listing(root, tuple(entry.name for entry in folders), labels, np.array(names))


def find_sets(folder: Path | str, test_folder: Path | str = "") -> tuple[Listing, Listing]:
    """(training set, test set) of a folder with `train/` and `val/`, or of two folders; labels are the first's.

    Raises:
        InputError: no folder is given; no test set is there; and what `list_folder` and `labelled_by` raise.
    """
    if not str(folder):
        raise bad_input("folder", str(folder), "give ImageNet's folder, with train/ and val/ in it")
    root = Path(folder).expanduser().absolute()
    inner = root / "train"
    place = Path(test_folder).expanduser().absolute() if str(test_folder) else root / "val"
    if inner.is_dir() and not place.is_dir():
        raise bad_input("test_folder", str(place), "is no folder; give the one that holds the test images")
    classes_alone = root.is_dir() and not inner.is_dir() and any(os.path.isdir(entry.path) for entry in _entries(root))
    if classes_alone and not str(test_folder):
        remedy = "has no train/ and val/ folders; give them, or a folder of classes here and another as test_folder"
        raise bad_input("folder", str(folder), remedy)
    train = list_folder(inner if inner.is_dir() else root)
    return train, list_folder(place, "test_folder").labelled_by(train.classes)


def _entries(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as found:
        return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _images(folder: str, seen: set[tuple[int, int]], odd: list[str], inside: str = "") -> Iterator[str]:
    """Names of the images of a class folder and of the folders in it, sorted; what is passed over goes to `odd`.

    `seen` are the folders that this class has been in, or lies in: a link to one of them would never end, or be found
    again along every other way.
    """
    seen.add(_identity(folder))
    for entry in _entries(Path(folder)):
        path, name = entry.path, inside + entry.name
        again = os.path.isdir(path) and _identity(path) in seen
        if os.path.isdir(path) and not again:
            yield from _images(path, seen, odd, f"{name}/")
        elif os.path.isfile(path) and _is_image(name):
            yield name
        elif again or not os.path.exists(path) or _is_image(name):
            odd.append(path)


def _identity(folder: Path | str) -> tuple[int, int]:
    """What tells a folder from every other, by whatever links it was come to."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)
