"""One ResNet-50, a folder of photographs of any size, and a few test photographs."""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fragile_lib.choices import Points
from fragile_lib.data.folder import find_sets
from fragile_lib.data.photographs import Loading, Notes, PhotoSet, batches_of, in_memory, stream
from fragile_lib.data.standin import is_whole, place_of
from fragile_lib.minimise.modules import Trained
from fragile_lib.minimise.photographs import PhotoTrainer, further, network_with
from fragile_lib.models.module import ModuleModel
from fragile_lib.network.base import Network
from fragile_lib.network.photograph_costs import SIZE, memory_at_two_sizes, projection, rates_at_full_size
from fragile_lib.objectives.base import resolve_device
from fragile_lib.objectives.photographs import PhotoObjective
from fragile_lib.objectives.streamed import StreamedObjective
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.files import data_root

__all__ = [
    "SIZE",
    "accuracies",
    "further",
    "loading",
    "memory_at_two_sizes",
    "network_with",
    "pictures_of",
    "prepare",
    "projection",
    "random_points",
    "rates_at_full_size",
    "recorded_sets",
    "workplace",
]
SHOWN = 112  # pixels a side of a photograph in a figure: the crop that the network sees, as fine as a page needs


def prepare(
    trained: Trained,
    train: PhotoSet,
    test: PhotoSet,
    test_rows: np.ndarray,
    weight_decay: float,
    damping: float,
    seed: int,
    loading: Loading,
    curvature_images: int,
    chunk: int = 50,
    shard: int = 1000,
    at_once: int = 8,
    processes: int = 1,
    checkpoint: Path | str = "",
    pretrained: bool = False,
) -> tuple[Network, Points]:
    """A network whose curvature is a mean over some random training photographs, while every one of them is scored.

    Decodes the test photographs `test_rows` and the images of the curvature, drawn by the seed. Scores and retraining
    are kept in the folder `checkpoint` where one is given (see `workplace`).

    Raises:
        InputError: more curvature images than there are, or a broken one where these are not skipped.
    """
    if not 1 <= curvature_images <= len(train):
        raise bad_input("curvature_images", curvature_images, f"give a whole number from 1 to {len(train)}")
    rows = np.sort(np.random.default_rng([seed, 19]).choice(len(train), curvature_images, replace=False))
    how = loading.on_bad, loading.workers, loading.device
    data, _ = in_memory(train, rows, Notes(), *how)
    some, _ = in_memory(test, test_rows, Notes(), *how)
    model = ModuleModel(trained.module, trained.module.fc.out_features)
    curved = StreamedObjective(model, data, weight_decay, loading.device, chunk)
    place = workplace(checkpoint)
    photos = PhotoObjective(
        trained.module, train, loading, place / "scores", chunk, shard, processes, joinable=bool(str(checkpoint))
    )
    norm = float(curved.gradient(model.theta[None], curved.uniform(1)).norm())
    certificate = {"seed": seed, "status": "not_certified", "grad_norm": norm}
    certificate |= accuracies(trained.module, test, chunk, loading)
    network = Network(
        model.theta,
        photos,
        curved.on(some),
        damping,
        seed,
        fit="pretrained" if pretrained else "trained",
        certificate=certificate,
        curved=curved,
        trainer=PhotoTrainer(trained, photos, weight_decay, at_once, place / "retraining"),
    )
    return network, Points(np.arange(len(test_rows)), ["random"] * len(test_rows), np.asarray(test_rows))


def loading(workers: int, on_bad: str, device: str) -> Loading:
    """How photographs are read, on a device that `auto` chooses."""
    return Loading(workers, on_bad, resolve_device(device))


def workplace(checkpoint: Path | str) -> Path:
    """The folder of a run's checkpoints: as given, from the data root on where it is relative; "" for a temporary one.

    A temporary folder goes with the process.
    """
    if str(checkpoint):
        return data_root() / Path(checkpoint).expanduser()
    folder = mkdtemp(prefix="fragile-imagenet-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def random_points(photos: PhotoSet, count: int, seed: int, prefer: str = "", on_bad: str = "error") -> np.ndarray:
    """(count,) rows of test photographs drawn at random, in the order of the draw.

    prefer: photographs whose file name begins so are drawn first; broken ones are passed over where on_bad is `skip`.

    Raises:
        InputError: a count below 1 or beyond the number of photographs, or a broken one that is not to be skipped.
    """
    if not 1 <= count <= len(photos):
        raise bad_input("test_count", count, f"give a whole number from 1 to {len(photos)}")
    order = np.random.default_rng([seed, 23]).permutation(len(photos))
    if prefer:
        first = [photos.listing.name(row).rpartition("/")[2].startswith(prefer) for row in order]
        order = order[np.argsort(~np.array(first), kind="stable")]
    found = []
    for row in order:
        photo = photos[int(row)]
        if photo.pixels is None and on_bad == "error":
            raise bad_input("image", str(photos.listing.path(row)), f"{photo.note}; or give on_bad_image = 'skip'")
        found += [int(row)] if photo.pixels is not None else []
        if len(found) == count:
            return np.array(found)
    raise bad_input("test_count", count, f"only {len(found)} test images can be read")


@torch.no_grad()
def accuracies(module: nn.Module, photos: PhotoSet, batch: int, loading: Loading) -> dict[str, float]:
    """Shares of the photographs whose label has the largest logit, and one of the five largest; and the mean loss."""
    module, notes = module.to(loading.device).eval(), Notes()
    totals, batches = np.zeros(4), batches_of(np.arange(len(photos)), batch)
    for one in stream(photos, batches, notes, loading.on_bad, loading.workers, loading.device):
        if not len(one.rows):
            continue
        logits = module(one.x).double()
        best = logits.topk(min(5, logits.shape[1])).indices == one.y[:, None]
        loss = cross_entropy(logits, one.y, reduction="sum")
        totals += [float(best[:, 0].sum()), float(best.sum()), float(loss), len(one.y)]
    top1, top5, loss = totals[:3] / totals[3]
    return {"top1": top1, "top5": top5, "loss": loss, "images": int(totals[3]), "unreadable": len(notes.bad)}


def pictures_of(point: Mapping, estimator: str, train: PhotoSet, test: PhotoSet, most: int = 50) -> dict[str, object]:
    """What `plots` shows of one entry of `rows.scatter`: its left-out photographs.

    The `most` of largest |estimate|, with the test photograph and the names of all their classes.
    """
    rows, scores = np.asarray(point["index"]), np.asarray(point["estimate"][estimator], dtype=float)
    first = np.argsort(-np.abs(scores), kind="stable")[:most]
    named = train.listing.classes
    return {
        "test": _pixels(test, [point["test_point"]])[0],
        "train": _pixels(train, rows[first]),
        "scores": scores[first],
        "test_class": named[test.listing.labels[point["test_point"]]],
        "train_classes": [named[train.listing.labels[row]] for row in rows[first]],
        "dataset": train.listing.dataset,
        "estimator": estimator,
    }


def recorded_sets(point: Mapping) -> tuple[PhotoSet, PhotoSet] | None:
    """(training, test) photographs of a recorded point whose stand-in is in the data root; None where it is not."""
    if point.get("dataset") != "imagenet_standin":
        return None
    place = place_of(point["standin"], int(point["standin_train"]), int(point["standin_test"]))
    return tuple(PhotoSet(one, int(point["image_size"])) for one in find_sets(place)) if is_whole(place) else None


def _pixels(photos: PhotoSet, rows: Iterable[int]) -> list[np.ndarray]:
    """The crops (size, size, 3) that the network sees, as bytes."""
    photos = PhotoSet(photos.listing, SHOWN)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (photos._prepare.mean, photos._prepare.std))
    crops = [photos[int(row)].pixels.float() * deviation + mean for row in rows]
    return [(255 * crop.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy() for crop in crops]
