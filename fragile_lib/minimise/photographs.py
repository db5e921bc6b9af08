"""Training on streamed photographs, and going on without some of them: each image is decoded once for many networks.

The steps are those of `modules`, on the same batches: an image that is left out is dropped from its batch, while the
batch counts as whole. What is streamed is the data; the numbers are those of data in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from fragile_lib.data.photographs import Batch, Loading, Notes, PhotoSet, stream
from fragile_lib.minimise.modules import Trained, copied, losses_of, make_optimiser, one_step
from fragile_lib.minimise.schedule import Continued, Schedule, State
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.photographs import PhotoObjective
from fragile_lib.tools.checkpoint import Checkpoint, digest_of
from fragile_lib.tools.checks import check_count
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
    steps = stream(photos, batches, notes, loading)
    for step, batch in enumerate(progress(steps, total=len(batches), desc="training")):
        _one(module, optimiser, batch, schedule, step)
    whole = rows[: len(rows) - len(rows) % schedule.batch].reshape(-1, schedule.batch)  # batches that count alike
    inputs = (b.x for b in stream(photos, list(whole), notes, loading))
    update_bn(inputs, module)
    return Trained(module.eval(), optimiser, schedule.steps * schedule.batch, perf_counter() - began)


@dataclass(frozen=True)
class PhotoTrainer:
    """Going on from a trained network without single photographs, streamed.

    Removals go in groups of `at_once` networks that share one pass over the images, so that none is decoded more than
    once for them all. Until its image comes up, a removal's network is the control; there it branches off with a copy
    of the optimiser's memory. The numbers are those of `modules.ModuleTrainer`. A finished group is a part of the
    checkpoint in `folder`, one for each order of the batches, and not computed again.

    Args:
        start: the network, in evaluation mode, and the optimiser's memory to go on with; left as they are.
        objective: the training photographs; the schedule's places count in those of them that can be read.
        weight_decay: of J.
        at_once: networks of a group; each holds its parameters and the optimiser's memory.
        folder: where finished groups are kept; empty: nowhere.
    """

    start: Trained
    objective: PhotoObjective
    weight_decay: float
    at_once: int = 8
    folder: Path | str = ""

    def go_on(self, schedule: Schedule, members: Sequence[np.ndarray], test: Objective) -> Continued:
        """Losses on the examples of `test` after going on without each removal's members, rows of the photographs.

        Raises:
            InputError: a batch larger than n, `at_once` below 1, a broken image, or a folder of another run.
        """
        check_count("at_once", self.at_once)
        place = Path(self.folder) / f"order-{schedule.seed}"
        checkpoint = Checkpoint(place, self._facts(schedule, members)) if str(self.folder) else None
        rows = self.objective.usable
        batches = [rows[places] for places in schedule.rows(len(rows))]
        first = schedule.first_use(len(rows), [np.searchsorted(rows, group) for group in members])
        order = np.argsort(first, kind="stable")  # late ones share much of the way
        losses, control = np.full((len(members), test.n), np.nan), None
        images, seconds = 0, 0.0
        for number, start_at in enumerate(range(0, max(len(order), 1), self.at_once)):
            group, name = order[start_at : start_at + self.at_once], f"left-out-{number:04d}"
            if checkpoint is None or not checkpoint.has(name):
                part = self._group(batches, test, schedule, members, first, group)
                if checkpoint is not None:
                    checkpoint.save(name, **part)
            else:
                part = checkpoint.load(name)
            losses[group], control = part["losses"], part["control"]
            images, seconds = images + int(part["images"]), seconds + float(part["seconds"])
        before = losses_of(self.start.module, test)
        return Continued(before, control, losses, images, seconds, first == schedule.steps)

    def state(self, schedule: Schedule) -> State:
        """None is given: no pass over photographs is differentiated.

        Raises:
            InputError: always.
        """
        remedy = "give a network whose training can be differentiated: of a stack or a torch.nn.Module"
        raise bad_input("trainer", type(self).__name__, remedy)

    def under(self, schedule: Schedule, weights: Tensor) -> Tensor:
        """None is given either, as by `state`."""
        return self.state(schedule).theta

    def _facts(self, schedule: Schedule, members: Sequence[np.ndarray]) -> dict:
        """What left-out losses follow from, for their checkpoint."""
        state = self.start.module.state_dict()
        told = ("steps", "batch", "learning_rate", "optimiser", "momentum", "nesterov", "seed")
        return {
            "images": self.objective.photos.listing.digest,
            "image_size": self.objective.photos.size,
            "rows": digest_of(self.objective.usable),
            "weights": digest_of(*(state[name] for name in sorted(state))),
            "schedule": {name: getattr(schedule, name) for name in told},
            "weight_decay": self.weight_decay,
            "left out": [[int(row) for row in group] for group in members],
        }

    def _group(
        self,
        batches: list[np.ndarray],
        test: Objective,
        schedule: Schedule,
        members: Sequence[np.ndarray],
        first: np.ndarray,
        group: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Losses of some removals (g, m) and of the control (m,), from one pass over the images."""
        began, branches, images = perf_counter(), {}, 0
        module, optimiser = copied(self.start.module, self.start.optimiser, schedule, self.weight_decay)
        steps: Iterator[Batch] = stream(self.objective.photos, batches, Notes(), self.objective.loading)
        for step, batch in enumerate(progress(steps, total=len(batches), desc=f"leave-one-out, {len(group)} networks")):
            for place in group[first[group] == step]:
                branches[place] = copied(module, optimiser, schedule, self.weight_decay)
            for place, branch in branches.items():
                _one(*branch, batch, schedule, step, members[place])
            _one(module, optimiser, batch, schedule, step)
            images += (1 + len(branches)) * len(batch.rows)
        control = losses_of(module, test)
        losses = [losses_of(branches[place][0], test) if place in branches else control for place in group]
        found = {"losses": np.array(losses).reshape(len(group), len(control)), "control": control}
        return found | {"images": np.array(images), "seconds": np.array(perf_counter() - began)}


def _one(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    schedule: Schedule,
    step: int,
    removed: Sequence[int] = (),
) -> None:
    """One step; gradients are then dropped, since many networks wait side by side."""
    places = np.flatnonzero(np.isin(batch.rows, removed)) if len(removed) else ()
    one_step(module, optimiser, batch.x, batch.y, np.arange(len(batch.rows)), schedule, step, places)
    optimiser.zero_grad(set_to_none=True)
