"""One ResNet-50 and a few test photographs made ready for examination."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fragile_lib.data.folder import find_sets
from fragile_lib.data.photographs import Notes, PhotoSet, batches_of, in_memory, stream
from fragile_lib.data.standin import is_whole, place_of
from fragile_lib.examination import Points
from fragile_lib.imagenet.scores import Loading
from fragile_lib.minimise.modules import Trained
from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.streamed import StreamedObjective
from fragile_lib.tools.errors import bad_input

SHOWN = 112  # pixels a side of a photograph in a figure: the crop that the network sees, as fine as a page needs


@dataclass(frozen=True)
class Examined:
    """A network in evaluation mode, a random part of the training set for its curvature, and the test points.

    curvature: J on `curvature_rows` of the training photographs, in memory: the Hessian is a mean over these, while
    every training photograph is scored. test: the losses of the m examined points.
    """

    trained: Trained
    model: ModuleModel
    theta: Tensor
    curvature: StreamedObjective
    curvature_rows: np.ndarray
    test: StreamedObjective
    points: Points
    damping: float
    seed: int

    @property
    def test_images(self) -> tuple[Tensor, Tensor]:
        """Images (m, 3, H, W) and labels (m,) of the examined test points."""
        return self.test.data.x[0], self.test.data.y[0]

    @property
    def losses(self) -> np.ndarray:
        """Test losses (m,) of the network as it is."""
        return self.test.losses(self.theta[None])[0].cpu().numpy()


def examine(
    trained: Trained,
    train: PhotoSet,
    test: PhotoSet,
    test_rows: np.ndarray,
    curvature_images: int,
    weight_decay: float,
    damping: float,
    seed: int,
    chunk: int,
    loading: Loading,
) -> Examined:
    """Decode the test points and the images of the curvature, drawn by the seed.

    Raises:
        InputError: more curvature images than there are, or a broken one where these are not skipped.
    """
    if not 1 <= curvature_images <= len(train):
        raise bad_input("curvature_images", curvature_images, f"give a whole number from 1 to {len(train)}")
    rows = np.sort(np.random.default_rng([seed, 19]).choice(len(train), curvature_images, replace=False))
    how = loading.on_bad, loading.workers, loading.device
    data, rows = in_memory(train, rows, Notes(), *how)
    some, _ = in_memory(test, test_rows, Notes(), *how)
    module = trained.module
    model = ModuleModel(module, outputs_of(module))
    objective = StreamedObjective(model, data, weight_decay, loading.device, chunk)
    points = Points(np.asarray(test_rows), ["random"] * len(test_rows))
    return Examined(trained, model, model.theta, objective, rows, objective.on(some), points, damping, seed)


def outputs_of(module: nn.Module) -> int:
    """The number of logits of a ResNet."""
    return module.fc.out_features


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


def gradient_norm(examined: Examined) -> float:
    """||grad J|| over the curvature images, L2 included: how far from a minimum training ended."""
    j = examined.curvature
    return float(j.gradient(examined.theta[None], j.uniform(1)).norm())


def pictures_of(point: Mapping, estimator: str, train: PhotoSet, test: PhotoSet, most: int = 50) -> dict[str, object]:
    """What `plots.influential_pictures` shows of one entry of `examination.scatter_points`: its left-out photographs.

    The `most` of largest |estimate|, with the test photograph and the names of all their classes.
    """
    rows, scores = np.asarray(point["index"]), np.asarray(point["estimate"][estimator], dtype=float)
    first = np.argsort(-np.abs(scores), kind="stable")[:most]
    named = train.listing.classes
    return {
        "test": pixels_of(PhotoSet(test.listing, SHOWN), [point["test_point"]])[0],
        "train": pixels_of(PhotoSet(train.listing, SHOWN), rows[first]),
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


def pixels_of(photos: PhotoSet, rows: Iterable[int]) -> list[np.ndarray]:
    """The crops (size, size, 3) that the network sees, as bytes."""
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (photos._prepare.mean, photos._prepare.std))
    crops = [photos[int(row)].pixels.float() * deviation + mean for row in rows]
    return [(255 * crop.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy() for crop in crops]
