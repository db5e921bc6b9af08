"""Photographs from disk to batches of tensors: in a fixed order, by worker processes, broken files told by name."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.models import ResNet50_Weights

from fragile_lib.data.folder import Listing
from fragile_lib.data.sets import Data
from fragile_lib.tools.checks import check_count, check_name
from fragile_lib.tools.errors import bad_input

ON_BAD = ("error", "skip")
COLOURED = ("RGB", "L", "1", "P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error, zlib.error)
MOST_PIXELS = 89_478_485  # of one photograph: Pillow's limit, a quarter of a gigabyte once it is decoded
MARGIN = 256 / 224  # the shorter side before the crop, as the weights' own preparation has it


@dataclass(frozen=True)
class Loading:
    """How images are read in a pass; no number depends on it.

    workers: processes that decode images. on_bad: `error`, or `skip` to leave broken files out. device: `cpu`, `cuda`.

    Raises:
        InputError: an unknown `on_bad`, or a negative number of workers.
    """

    workers: int = 0
    on_bad: str = "error"
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_name("on_bad_image", self.on_bad, ON_BAD)
        check_count("workers", self.workers, least=0)


class Photo(NamedTuple):
    """One decoded photograph; pixels (3, size, size), or None with the reason in `note`."""

    row: int
    pixels: Tensor | None
    label: int
    note: str


class Batch(NamedTuple):
    """Photographs of the rows (b,): x (b, 3, size, size) and labels y (b,); broken ones are not among them."""

    rows: np.ndarray
    x: Tensor
    y: Tensor


@dataclass
class Notes:
    """What there was to tell of a set's files: row -> why it cannot be read, row -> the mode it was converted from."""

    bad: dict[int, str] = field(default_factory=dict)
    converted: dict[int, str] = field(default_factory=dict)

    def add(self, photos: Iterable[Photo]) -> None:
        """Take over what the photographs of a batch say."""
        for photo in photos:
            if photo.note:
                (self.bad if photo.pixels is None else self.converted)[photo.row] = photo.note


class PhotoSet(Dataset):
    """The photographs of a listing, prepared as torchvision's ImageNet weights want them.

    Decoded, made RGB (grey, palette, alpha and CMYK images as torchvision makes them), the shorter side brought to
    size * 256 / 224 by bilinear interpolation with antialiasing, cropped to the centre, normalised by ImageNet's
    channel means and deviations. No augmentation: J is on these images.

    As in torchvision's own evaluation of the weights, a camera's note of orientation (EXIF) is not applied. Colour of
    16 bits counts by its upper eight, as Pillow reads it; grey of 16 bits is refused. A file that is cut short is told,
    as is one of more than `MOST_PIXELS`; a JPEG damaged in its middle is not, since libjpeg decodes it to something.

    Args:
        listing: the photographs.
        size: pixels a side of the crop.
        dtype: floating type of the pixels.

    Raises:
        InputError: a size below 1.
    """

    def __init__(self, listing: Listing, size: int = 224, dtype: torch.dtype = torch.float32) -> None:
        check_count("image_size", size)
        self.listing, self.size, self.dtype = listing, size, dtype
        self._prepare = ResNet50_Weights.IMAGENET1K_V1.transforms(crop_size=size, resize_size=round(size * MARGIN))

    def __len__(self) -> int:
        """n, the number of photographs."""
        return len(self.listing)

    def __getitem__(self, row: int) -> Photo:
        """Decode one; a broken file is told in the note, since an exception would lose its words between processes."""
        label = int(self.listing.labels[row])
        try:
            quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)  # told below
            with quiet, Image.open(self.listing.path(row)) as image:
                if image.width * image.height > MOST_PIXELS:
                    return Photo(row, None, label, f"has {image.width} x {image.height} pixels; {MOST_PIXELS} at most")
                image.load()
                mode = image.mode
                if mode not in COLOURED:
                    return Photo(row, None, label, f"mode {mode} is no photograph's: 8 bits a channel are needed")
                pixels = self._prepare(image if mode == "RGB" else image.convert("RGB")).to(self.dtype)
        except (*UNREADABLE, Image.DecompressionBombError) as error:
            return Photo(row, None, label, f"cannot be decoded ({type(error).__name__}: {error})")
        return Photo(row, pixels, label, "" if mode == "RGB" else mode)


def batches_of(rows: np.ndarray | Sequence[int], batch: int) -> list[np.ndarray]:
    """Consecutive batches of the rows, the last one smaller where they do not divide."""
    rows = np.asarray(rows, dtype=np.int64)
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


def stream(
    photos: PhotoSet, batches: Sequence[np.ndarray], notes: Notes, loading: Loading = Loading()
) -> Iterator[Batch]:
    """The batches in their order, each image decoded once; memory is that of a few batches, however many there are.

    Order and content do not depend on the number of workers. A broken file ends the stream, or is noted and left out
    of its batch where on_bad is `skip`; a batch may so be empty.

    Raises:
        InputError: a broken file where on_bad is `error`.
    """
    on_gpu = torch.device(loading.device).type == "cuda"
    nothing = torch.empty(0, 3, photos.size, photos.size, dtype=photos.dtype)
    loader = DataLoader(
        photos,
        batch_sampler=[rows.tolist() for rows in batches],
        num_workers=loading.workers,
        collate_fn=list,
        generator=torch.Generator(),  # the loader draws a seed for its workers: not from the global generator
    )
    for loaded in loader:
        notes.add(loaded)
        good = [photo for photo in loaded if photo.pixels is not None]
        if len(good) < len(loaded) and loading.on_bad == "error":
            broken = next(photo for photo in loaded if photo.pixels is None)
            remedy = f"{broken.note}; repair or remove the file, or have such files left out: on_bad_image = 'skip'"
            raise bad_input("image", str(photos.listing.path(broken.row)), remedy)
        x = torch.stack([photo.pixels for photo in good]) if good else nothing
        x = x.pin_memory() if on_gpu else x
        x = x.to(device=loading.device, memory_format=torch.channels_last, non_blocking=True)
        y = torch.tensor([photo.label for photo in good], dtype=torch.int64).to(loading.device)
        yield Batch(np.array([photo.row for photo in good], dtype=np.int64), x, y)


def in_memory(
    photos: PhotoSet, rows: np.ndarray, notes: Notes, loading: Loading = Loading()
) -> tuple[Data, np.ndarray]:
    """Some photographs as one data set, x (1, k, 3, size, size), and the rows (k,) that could be read."""
    found = list(stream(photos, batches_of(rows, 64), notes, loading))
    x, y = torch.cat([batch.x for batch in found]), torch.cat([batch.y for batch in found])
    if not len(y):
        raise bad_input("folder", str(photos.listing.folder), f"none of the {len(rows)} images asked for can be read")
    return Data(x[None], y[None]), np.concatenate([batch.rows for batch in found])
