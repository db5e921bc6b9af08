"""Training on streamed photographs, and going on without some of them: each image is decoded once for many networks.

The steps are those of `deep.training`, on the same batches: an image that is left out is dropped from its batch, while
the batch counts as whole. What is streamed is the data; the numbers are those of data in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from fragile_lib.data.folder import OUTPUTS
from fragile_lib.data.photographs import Batch, Notes, PhotoSet, stream
from fragile_lib.imagenet.scores import Loading
from fragile_lib.minimise.modules import (
    NEVER,
    Continued,
    Schedule,
    Trained,
    _first_use,
    _step,
    copied,
    losses_of,
    make_optimiser,
)
from fragile_lib.models.weights import NONE, make_network, pretrained
from fragile_lib.solvers.operator import check_count
from fragile_lib.tools.checkpoint import Checkpoint, digest_of
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.progress import progress


def train_streamed(
    module: nn.Module, photos: PhotoSet, rows: np.ndarray, schedule: Schedule, weight_decay: float, loading: Loading
) -> Trained:
    """Train a copy of the module on the photographs `rows`; its batch statistics are then frozen.

    In training every batch has its own statistics; at the end they become the averages over one more pass.
    """
    began, module = perf_counter(), deepcopy(module).to(loading.device).train()
    optimiser = make_optimiser(module, schedule, weight_decay)
    batches, notes = [rows[places] for places in schedule.rows(len(rows))], Notes()
    steps = stream(photos, batches, notes, loading.on_bad, loading.workers, loading.device)
    for step, batch in enumerate(progress(steps, total=len(batches), desc="training")):
        _one(module, optimiser, batch, schedule, step)
    whole = rows[: len(rows) - len(rows) % schedule.batch].reshape(-1, schedule.batch)  # batches that count alike
    inputs = (b.x for b in stream(photos, list(whole), notes, loading.on_bad, loading.workers, loading.device))
    update_bn(inputs, module)
    return Trained(module.eval(), optimiser, schedule.steps * schedule.batch, perf_counter() - began)


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
        InputError: more class folders than outputs; and what `weights.pretrained` and `Schedule.rows` raise.
    """
    if weights != NONE:
        return fresh(pretrained(weights, photos.listing, photos.size).to(loading.device), schedule, weight_decay)
    if len(photos.listing.classes) > outputs:
        raise bad_input("outputs", outputs, f"give at least {len(photos.listing.classes)}, the number of classes")
    module = make_network(outputs, photos.size, width_multiplier, schedule.seed).to(photos.dtype)
    return train_streamed(module, photos, np.arange(len(photos)), schedule, weight_decay, loading)


def further(schedule: Schedule, n: int, epochs: int, trained_here: bool) -> Schedule:
    """Going on for some passes over n images: at the rate that training ended with, or that the schedule begins with.

    Raises:
        InputError: fewer images than a batch.
    """
    if n < schedule.batch:
        raise bad_input("batch", schedule.batch, f"give at most the number of images that can be read, {n}")
    rate = schedule.rate(schedule.steps) if trained_here else schedule.learning_rate
    steps = epochs * (n // schedule.batch)
    return replace(schedule, steps=steps, learning_rate=rate, drop_after=1.0, seed=schedule.seed + 1)


def fresh(module: nn.Module, schedule: Schedule, weight_decay: float) -> Trained:
    """A network with weights from elsewhere, and an optimiser that remembers nothing."""
    return Trained(module, make_optimiser(module, schedule, weight_decay), 0, 0.0)


def go_on_without_streamed(
    start: Trained,
    photos: PhotoSet,
    rows: np.ndarray,
    test: tuple[Tensor, Tensor],
    schedule: Schedule,
    weight_decay: float,
    removals: Sequence[int],
    loading: Loading,
    at_once: int = 8,
    checkpoint: Checkpoint | None = None,
) -> Continued:
    """Go on from a trained network, with all images and without each removal, on the same batches, streamed.

    Removals go in groups of `at_once` networks that share one pass over the images, so that none is decoded more than
    once for them all. Until its image comes up, a removal's network is the control; there it branches off with a copy
    of the optimiser's memory. The numbers are those of `deep.training.go_on_without`. A finished group is a part of
    the checkpoint, and not computed again.

    Args:
        start: the network, in evaluation mode, and the optimiser's memory to go on with; left as they are.
        photos, rows: the training images (n,) among all photographs; the schedule's places count in them.
        test: the examined test images and labels (m,).
        schedule: how to go on.
        weight_decay: of J.
        removals: (k,) which photographs are left out, one by one.
        loading: how images are read.
        at_once: networks of a group; each holds its parameters and the optimiser's memory.
        checkpoint: where finished groups are kept; None for nowhere.

    Raises:
        InputError: a batch larger than n, `at_once` below 1, or a broken image.
    """
    check_count("at_once", at_once)
    batches = [rows[places] for places in schedule.rows(len(rows))]
    first = np.array([_first_use(batches, np.array([row])) for row in removals], dtype=int)
    order = np.argsort(np.where(first == NEVER, len(batches), first), kind="stable")  # late ones share much of the way
    losses, control = np.full((len(removals), len(test[1])), np.nan), None
    images, seconds = 0, 0.0
    for number, start_at in enumerate(range(0, max(len(order), 1), at_once)):
        group, name = order[start_at : start_at + at_once], f"left-out-{number:04d}"
        if checkpoint is None or not checkpoint.has(name):
            part = _group(start, photos, batches, test, schedule, weight_decay, removals, first, group, loading)
            if checkpoint is not None:
                checkpoint.save(name, **part)
        else:
            part = checkpoint.load(name)
        losses[group], control = part["losses"], part["control"]
        images, seconds = images + int(part["images"]), seconds + float(part["seconds"])
    return Continued(control, losses, images, seconds, int((first == NEVER).sum()))


def retraining_facts(
    start: Trained, photos: PhotoSet, rows: np.ndarray, schedule: Schedule, weight_decay: float, removals: Sequence[int]
) -> dict:
    """What left-out losses follow from, for their checkpoint."""
    state = start.module.state_dict()
    return {
        "images": photos.listing.digest,
        "image_size": photos.size,
        "rows": digest_of(np.asarray(rows)),
        "weights": digest_of(*(state[name] for name in sorted(state))),
        "schedule": {
            name: getattr(schedule, name) for name in ("steps", "batch", "learning_rate", "optimiser", "seed")
        },
        "weight_decay": weight_decay,
        "left out": [int(row) for row in removals],
    }


def _group(
    start: Trained,
    photos: PhotoSet,
    batches: list[np.ndarray],
    test: tuple[Tensor, Tensor],
    schedule: Schedule,
    weight_decay: float,
    removals: Sequence[int],
    first: np.ndarray,
    group: np.ndarray,
    loading: Loading,
) -> dict[str, np.ndarray]:
    """Losses of some removals (g, m) and of the control (m,), from one pass over the images."""
    began, branches, images = perf_counter(), {}, 0
    module, optimiser = copied(start.module, start.optimiser, schedule, weight_decay)
    steps: Iterator[Batch] = stream(photos, batches, Notes(), loading.on_bad, loading.workers, loading.device)
    for step, batch in enumerate(progress(steps, total=len(batches), desc=f"leave-one-out, {len(group)} networks")):
        for place in group[first[group] == step]:
            branches[place] = copied(module, optimiser, schedule, weight_decay)
        for place, branch in branches.items():
            _one(*branch, batch, schedule, step, removals[place])
        _one(module, optimiser, batch, schedule, step)
        images += (1 + len(branches)) * len(batch.rows)
    control = losses_of(module, *test)
    losses = [losses_of(branches[place][0], *test) if place in branches else control for place in group]
    found = {"losses": np.array(losses).reshape(len(group), len(control)), "control": control}
    return found | {"images": np.array(images), "seconds": np.array(perf_counter() - began)}


def _one(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    schedule: Schedule,
    step: int,
    removed: int | None = None,
) -> None:
    """One step; gradients are then dropped, since many networks wait side by side."""
    places = np.flatnonzero(batch.rows == removed) if removed is not None else ()
    _step(module, optimiser, batch.x, batch.y, np.arange(len(batch.rows)), schedule, step, places)
    optimiser.zero_grad(set_to_none=True)
