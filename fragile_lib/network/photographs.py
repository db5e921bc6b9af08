"""One ResNet-50, a folder of photographs of any size, and a few test photographs; and what they cost."""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter

import numpy as np
import pandas as pd
import psutil
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from fragile_lib.choices import Points
from fragile_lib.data.folder import Listing, find_sets
from fragile_lib.data.photographs import Loading, Notes, PhotoSet, batches_of, in_memory, stream
from fragile_lib.data.sets import Data
from fragile_lib.data.standin import is_whole, place_of
from fragile_lib.minimise.modules import Trained, make_optimiser, one_step
from fragile_lib.minimise.photographs import PhotoTrainer, train_streamed
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.models.module import ModuleModel
from fragile_lib.models.weights import NONE, OUTPUTS, TORCHVISION, load_state, make_network, read_state
from fragile_lib.network.base import Network
from fragile_lib.network.modules import as_it_is
from fragile_lib.objectives.base import Objective, resolve_device
from fragile_lib.objectives.photographs import PhotoObjective, Scoring
from fragile_lib.tools.checks import check_count
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.files import data_root
from fragile_lib.tools.measure import Peak

SHOWN = 112  # pixels a side of a photograph in a figure: the crop that the network sees, as fine as a page needs
IMAGES = 1_281_167  # of ImageNet's training set
SIZE = 224  # pixels a side of the published networks' images
HOUR = 3600.0


def network_with(
    weights: str,
    photos: PhotoSet,
    schedule: Schedule,
    weight_decay: float,
    loading: Loading,
    outputs: int = OUTPUTS,
    width_multiplier: float = 1.0,
) -> Trained:
    """ResNet-50 with weights from elsewhere, or, for `none`, trained here on the photographs by the schedule.

    Raises:
        InputError: more class folders than outputs; and what `pretrained` and `Schedule.rows` raise.
    """
    if weights != NONE:
        module = pretrained(weights, photos.listing, photos.size).to(loading.device)
        return Trained(module, make_optimiser(module, schedule, weight_decay), 0, 0.0)
    if len(photos.listing.classes) > outputs:
        raise bad_input("outputs", outputs, f"give at least {len(photos.listing.classes)}, the number of classes")
    module = make_network(outputs, photos.size, width_multiplier, schedule.seed).to(photos.dtype)
    return train_streamed(module, photos, np.arange(len(photos)), schedule, weight_decay, loading)


def pretrained(weights: str, listing: Listing, size: int = 224) -> nn.Module:
    """ResNet-50 with weights, in evaluation mode, whose outputs are the classes of the listing.

    Raises:
        InputError: what `read_state` and `load_state` raise; class folders that are not the weights' classes.
    """
    state, classes = read_state(weights)
    last = state.get("fc.weight")
    outputs = len(last) if last is not None and last.dim() == 2 else OUTPUTS
    network = load_state(make_network(max(outputs, 2), size), state, weights)
    listing.check_outputs(outputs, classes, imagenet=weights == TORCHVISION)
    return network


def further(schedule: Schedule, n: int, epochs: int, trained_here: bool) -> Schedule:
    """Going on for some passes over n images: at the rate that training ended with, or that the schedule begins with.

    Raises:
        InputError: fewer images than a batch.
    """
    check_count("batch", schedule.batch, most=n)
    steps = epochs * (n // schedule.batch)
    going_on = schedule.continued(steps, schedule.seed + 1)
    return going_on if trained_here else replace(going_on, learning_rate=schedule.learning_rate)


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
    check_count("curvature_images", curvature_images, most=len(train))
    rows = np.sort(np.random.default_rng([seed, 19]).choice(len(train), curvature_images, replace=False))
    data, _ = in_memory(train, rows, Notes(), loading)
    some, _ = in_memory(test, test_rows, Notes(), loading)
    module, place = trained.module, workplace(checkpoint)
    network = as_it_is(module, module.fc.out_features, data, some, weight_decay, damping, chunk, loading.device)
    how = chunk, shard, processes, bool(str(checkpoint))
    photos = PhotoObjective(module, train, loading, place / "scores", *how)
    network = replace(
        network,
        train=photos,
        curved=network.train,
        seed=seed,
        fit="pretrained" if pretrained else "trained",
        certificate={"seed": seed} | network.certificate | accuracies(module, test, chunk, loading),
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
    check_count("test_count", count, most=len(photos))
    order = np.random.default_rng([seed, 23]).permutation(len(photos))
    if prefer:
        first = [photos.listing.name(row).rpartition("/")[2].startswith(prefer) for row in order]
        order = order[np.argsort(~np.array(first), kind="stable")]
    batches = stream(photos, batches_of(order, 1), Notes(), Loading(on_bad=on_bad))
    found = list(islice((int(batch.rows[0]) for batch in batches if len(batch.rows)), count))
    if len(found) == count:
        return np.array(found)
    raise bad_input("test_count", count, f"only {len(found)} test images can be read")


@torch.no_grad()
def accuracies(module: nn.Module, photos: PhotoSet, batch: int, loading: Loading) -> dict[str, float]:
    """Shares of the photographs whose label has the largest logit, and one of the five largest; and the mean loss."""
    module, notes = module.to(loading.device).eval(), Notes()
    totals, batches = np.zeros(4), batches_of(np.arange(len(photos)), batch)
    for one in stream(photos, batches, notes, loading):
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


def memory_at_two_sizes(objective: PhotoObjective, part: int = 4) -> pd.DataFrame:
    """Peak memory (MB) while 1/`part` of the photographs, and while all of them, are scored along one direction.

    After a pass of the objective. On a CPU the process's resident memory, on a GPU what is allocated there. A first
    batch goes before, so that neither pays for what the first call of all keeps for good.

    Raises:
        InputError: fewer photographs than `part`.
    """
    n, whole = len(objective.photos), objective.scoring
    one = replace(whole, directions=whole.directions[:1])
    if n < part:
        raise bad_input("folder", str(objective.photos.listing.folder), f"needs {part} images or more to compare sizes")
    one.on_rows(np.arange(min(n, one.batch)), objective.loading)
    sizes = [max(1, n // part), n]
    peaks = [_peak_mb(one, np.arange(size), objective.loading) for size in sizes]
    return pd.DataFrame({"images": sizes, "peak_mb": peaks})


def _peak_mb(scoring: Scoring, rows: np.ndarray, loading: Loading) -> float:
    if loading.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        scoring.on_rows(rows, loading)
        return torch.cuda.max_memory_allocated() / 1e6
    before = psutil.Process().memory_info().rss / 1e6
    with Peak() as peak:
        scoring.on_rows(rows, loading)
    return before + peak.mb


def rates_at_full_size(
    module: torch.nn.Module, n_directions: int, images: int, weight_decay: float, device: str, size: int = SIZE
) -> dict[str, float]:
    """Images a second of the scoring pass and of a training step on images of the published size, by measurement.

    The images are noise, since no time depends on what they show; decoding is not in it. One batch goes before.
    """
    x = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))
    x = x.to(device=device, memory_format=torch.channels_last)
    y = torch.zeros(images, dtype=torch.int64, device=device)
    module = deepcopy(module).to(device).eval()
    model = ModuleModel(module, module.fc.out_features)
    theta = model.theta.detach()
    v = torch.randn(1, n_directions, len(theta), generator=torch.Generator().manual_seed(1)).to(theta)
    objective = Objective(model, Data(x[None], y[None]), device=device, chunk=images)
    schedule = Schedule.named("nesterov", steps=1, batch=images, learning_rate=1e-6)
    step = (module, make_optimiser(module, schedule, weight_decay), x, y, np.arange(images), schedule, 0, ())
    rates = {
        "scoring": _rate(lambda: objective.directional(theta[None], v), images, device),
        "retraining": _rate(lambda: one_step(*step), images, device),
    }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x[:1])
    return rates | {"flops_per_image": counter.get_total_flops(), "size": size}


def _rate(work: Callable[[], object], images: int, device: str) -> float:
    seconds = []
    for _ in range(2):
        began = perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(perf_counter() - began)
    return images / seconds[1]


def projection(
    rates: dict[str, float], n_directions: int, networks: int, epochs: float, tflops: float, images: int = IMAGES
) -> pd.DataFrame:
    """Images, images a second and hours of ImageNet's scoring pass and of its retraining, here and on one GPU.

    Here: by the measured rates. On one GPU by arithmetic: a training step costs three forward passes, and a pass along
    K directions 1 + 2 K, since a tangent goes through every layer twice, as its input's and as its weights'; divided
    by `tflops`, the 10^12 operations a second that the GPU sustains.

    Args:
        rates: of `rates_at_full_size`.
        n_directions: K, test points times estimators.
        networks: that are retrained, the control among them.
        epochs: of each.
        tflops: see above.
        images: of the set.
    """
    rows = {}
    passes = {"scoring": (images, 1 + 2 * n_directions), "retraining": (round(images * epochs * networks), 3)}
    for name, (count, forward) in passes.items():
        rate, cost = rates[name], rates["flops_per_image"] * forward
        rows[name] = {
            "images": count,
            "images_per_second": rate,
            "hours_here": count / rate / HOUR,
            "flops_per_image": cost,
            "gpu_hours": count * cost / (tflops * 1e12) / HOUR,
        }
    return pd.DataFrame.from_dict(rows, orient="index")
