"""Minibatch training of one large network by torch.optim, and its retraining without some of the examples.

The gradient of J on a batch B is (1/|B|) sum_(i in B) grad loss_i + L2, the L2 term on weights and not on biases or
normalisation; an example that is left out is dropped from its batches while |B| stays as it was, which is weight zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import isfinite
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fragile_lib.models.architectures import frozen_statistics
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.progress import progress

OPTIMISERS = ("adam", "sgd", "nesterov", "rmsprop")
MOMENTUM = 0.9  # of nesterov
NEVER = -1


@dataclass(frozen=True)
class Schedule:
    """How one network is trained: steps, images a step, optimiser, learning rate, its drop, and the order of images.

    The rate falls to a tenth after `drop_after` of the steps. sgd is plain gradient descent on minibatches, nesterov
    the same with Nesterov's momentum of 0.9; adam and rmsprop have the defaults of torch.optim.

    Raises:
        InputError: a value outside its range.
    """

    steps: int
    batch: int
    learning_rate: float
    optimiser: str = "adam"
    drop_after: float = 2 / 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise bad_input(name, value, f"give a whole number of at least {least}")
        if not (isfinite(self.learning_rate) and self.learning_rate > 0):
            raise bad_input("learning_rate", self.learning_rate, "give a finite number above 0")
        if not 0 <= self.drop_after <= 1:
            raise bad_input("drop_after", self.drop_after, "give a share of the steps, 0 to 1")
        if self.optimiser not in OPTIMISERS:
            raise bad_input("optimiser", self.optimiser, f"choose one of {', '.join(OPTIMISERS)}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.learning_rate * (0.1 if step >= self.drop_after * self.steps else 1.0)

    def continued(self, fraction: float, seed: int) -> Schedule:
        """Going on for a fraction of the steps (at least one) at the rate that training ended with."""
        if not (isfinite(fraction) and fraction > 0):
            raise bad_input("retrain_fraction", fraction, "give a share of the training steps above 0")
        steps = max(1, round(fraction * self.steps))
        return replace(self, steps=steps, learning_rate=self.rate(self.steps), drop_after=1.0, seed=seed)

    def rows(self, n: int) -> Iterator[np.ndarray]:
        """Rows (batch,) of each step: a new permutation each epoch, what is left over dropped.

        Raises:
            InputError: a batch larger than the n examples.
        """
        if self.batch > n:
            raise bad_input("batch", self.batch, f"give at most the number of training images, {n}")
        rng, left = np.random.default_rng([self.seed, 3]), []
        for _ in range(self.steps):
            left = left or list(rng.permutation(n)[: n - n % self.batch].reshape(-1, self.batch))
            yield left.pop(0)


@dataclass(frozen=True)
class Trained:
    """A network as training left it (in train mode) with its optimiser, and what the training cost."""

    module: nn.Module
    optimiser: torch.optim.Optimizer
    images: int
    seconds: float


def make_optimiser(module: nn.Module, schedule: Schedule, weight_decay: float) -> torch.optim.Optimizer:
    """The optimiser of torch.optim, its L2 term on parameters of two dimensions or more."""
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    rate = schedule.learning_rate
    if schedule.optimiser == "adam":
        return torch.optim.Adam(groups, lr=rate, fused=True)  # one pass over the parameters
    if schedule.optimiser == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate)
    nesterov = schedule.optimiser == "nesterov"
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM if nesterov else 0.0, nesterov=nesterov)


def train(
    module: nn.Module, x: Tensor, y: Tensor, schedule: Schedule, weight_decay: float, removed: Sequence[int] = ()
) -> Trained:
    """Train a copy of the module on images x (n, C, H, W) with labels y (n,), without the `removed` ones.

    The module's own mode holds: in train mode batch normalisation uses the statistics of each batch.
    """
    began, module = perf_counter(), deepcopy(module)
    optimiser = make_optimiser(module, schedule, weight_decay)
    steps = progress(enumerate(schedule.rows(len(x))), total=schedule.steps, desc="training")
    for step, rows in steps:
        _step(module, optimiser, x, y, rows, schedule, step, removed)
    return Trained(module, optimiser, schedule.steps * schedule.batch, perf_counter() - began)


def _step(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    rows: np.ndarray,
    schedule: Schedule,
    step: int,
    removed: Sequence[int],
) -> None:
    kept = rows[~np.isin(rows, removed)] if len(removed) else rows
    for group in optimiser.param_groups:
        group["lr"] = schedule.rate(step)
    optimiser.zero_grad()
    if len(kept):
        (cross_entropy(module(x[kept]), y[kept], reduction="sum") / len(rows)).backward()
    else:  # the L2 term is left
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
    optimiser.step()


@dataclass(frozen=True)
class Continued:
    """Losses after going on: of the control (m,) and of each removal (k, m), and what it cost.

    images: those that went through a training step. unseen: the removals that no batch contained.
    """

    control: np.ndarray
    removed: np.ndarray
    images: int
    seconds: float
    unseen: int


def go_on_without(
    start: Trained,
    data: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    schedule: Schedule,
    weight_decay: float,
    removals: Sequence[np.ndarray],
) -> Continued:
    """Go on from a trained network, once with all examples and once without those of each removal, on the same batches.

    Up to the first batch that holds one of its examples, a removal's run is the control's own: it branches off there,
    with a copy of the network and of the optimiser's memory, and what came before is not computed again. The numbers
    are those of full runs, bit for bit.

    Args:
        start: the network (its mode holds) and the optimiser's memory to go on with; left as they are.
        data: training images (n, C, H, W) and labels (n,).
        test: the examined test images and labels (m,).
        schedule: how to go on.
        weight_decay: of J.
        removals: the training examples of each removal.
    """
    began, (x, y) = perf_counter(), data
    batches = list(schedule.rows(len(x)))
    first = np.array([_first_use(batches, removal) for removal in removals], dtype=int)
    module, optimiser = copied(start.module, start.optimiser, schedule, weight_decay)
    losses, images = np.full((len(removals), len(test[1])), np.nan), 0
    with progress(total=len(removals), desc="leave-one-out") as bar:
        for step, rows in enumerate(batches):
            for place in np.flatnonzero(first == step):
                branch = copied(module, optimiser, schedule, weight_decay)
                for later in range(step, len(batches)):
                    _step(*branch, x, y, batches[later], schedule, later, removals[place])
                losses[place] = losses_of(branch[0], *test)
                images += (len(batches) - step) * schedule.batch
                bar.update()
            _step(module, optimiser, x, y, rows, schedule, step, ())
    control = losses_of(module, *test)
    losses[first == NEVER] = control
    images += len(batches) * schedule.batch
    return Continued(control, losses, images, perf_counter() - began, int((first == NEVER).sum()))


def _first_use(batches: list[np.ndarray], removal: np.ndarray) -> int:
    """The first batch that holds one of the removal's examples, or NEVER."""
    return next((step for step, rows in enumerate(batches) if np.isin(removal, rows).any()), NEVER)


def copied(
    module: nn.Module, optimiser: torch.optim.Optimizer, schedule: Schedule, weight_decay: float
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network and its optimiser's memory, copied."""
    module = deepcopy(module)
    fresh = make_optimiser(module, schedule, weight_decay)
    fresh.load_state_dict(deepcopy(optimiser.state_dict()))
    return module, fresh


@torch.no_grad()
def losses_of(module: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """Losses (m,) in eval mode, in float64 from the logits on."""
    module.eval()
    return cross_entropy(module(x).double(), y, reduction="none").cpu().numpy()


def from_scratch_without(
    module: nn.Module,
    data: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    schedule: Schedule,
    weight_decay: float,
    removals: Sequence[np.ndarray],
) -> Continued:
    """Train anew from one start, with all examples and without those of each removal, on the same batches.

    Batch-norm statistics are frozen at the end on all examples that are left, taken as one batch.
    """
    began, (x, y), found = perf_counter(), data, []
    for removal in progress([np.array([], int), *removals], desc="from scratch"):
        trained = train(module, x, y, schedule, weight_decay, removal).module
        left = np.setdiff1d(np.arange(len(x)), removal)
        found.append(losses_of(frozen_statistics(trained, x[left], len(left)), *test))
    images = len(found) * schedule.steps * schedule.batch
    return Continued(found[0], np.array(found[1:]), images, perf_counter() - began, 0)
