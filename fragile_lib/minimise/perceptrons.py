"""Perceptrons in a stack, each trained by minibatches from which examples are missing, with dropout or without.

`minimise.stack` masks what is missing. Public benchmarks leave it open, and a truth hangs on it: `masked`: its places
stay empty; `shifted`: all that follows moves up, as in a loader made anew without it; `redrawn`: every training has an
order of its own.

Letters: n examples, E networks, P parameters, B examples in a batch, m test points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from time import perf_counter
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from fragile_lib.minimise.schedule import Continued, Schedule
from fragile_lib.minimise.stack import advance
from fragile_lib.objectives.base import Objective
from fragile_lib.tools.checks import check_count, check_name, check_number
from fragile_lib.tools.errors import bad_input

BATCHES = ("masked", "shifted", "redrawn")


@dataclass(frozen=True)
class Loader:
    """How examples come in batches, and what becomes of those from which some are missing.

    Args:
        batches: of `BATCHES`.
        shuffled: whether every epoch has a new order; else all have one, with seed 0 the data's own.
        whole: whether what is left over of an epoch is dropped.
        dropout: the share of hidden units that each step leaves out.

    Raises:
        InputError: an unknown kind of batches, or a share outside 0 .. 1.
    """

    batches: str = "masked"
    shuffled: bool = False
    whole: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_name("batches", self.batches, BATCHES)
        check_number("dropout", self.dropout, below=1)

    def steps(self, n: int, batch: int, epochs: int) -> int:
        """How many batches some epochs are."""
        check_count("epochs", epochs)
        check_count("batch", batch, most=n)
        return epochs * (n // batch if self.whole else ceil(n / batch))

    def orders(self, n: int, groups: Sequence[Sequence[int]], seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each epoch the rows (E, n) of each network in its order, and whether they are there (E, n)."""
        own = self.batches == "redrawn"
        draws = [np.random.default_rng([seed, place * own, 5]) for place in range(len(groups) if own else 1)]
        kept = None
        while True:
            if self.shuffled or kept is None:
                first = not (seed or own or self.shuffled)
                orders = [np.arange(n) if first else draw.permutation(n) for draw in draws]
                rows = np.array(orders if own else orders * len(groups))
                there = np.array([~np.isin(row, group) for row, group in zip(rows, groups, strict=True)])
                if self.batches != "masked":  # what is missing goes to the end, the order of the others stays
                    last = np.argsort(~there, axis=1, kind="stable")
                    rows, there = np.take_along_axis(rows, last, 1), np.take_along_axis(there, last, 1)
                kept = rows, there
            yield kept

    def weighted(self, n: int, groups: Sequence[Sequence[int]], schedule: Schedule) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows (E, B) of each step and their weights (E, B).

        A batch is divided by its size with what is missing where that leaves its place empty, by what is there else;
        one of which nothing is left is a step with the gradient zero.
        """
        size, made = schedule.batch, 0
        firsts = range(0, self.steps(n, size, 1) * size, size)
        for rows, there in self.orders(n, groups, schedule.seed):
            for first in firsts[: schedule.steps - made]:
                some = np.s_[:, first : first + size]
                weights = torch.from_numpy(there[some]).double()
                whole = weights.shape[1] if self.batches == "masked" else weights.sum(1, keepdim=True).clamp(min=1)
                yield torch.from_numpy(rows[some]), weights / whole
            made += len(firsts)
            if made >= schedule.steps:
                return


@dataclass(frozen=True)
class PerceptronTrainer:
    """Retraining of a perceptron without some examples as its loader has it, beside a control, as one stack.

    train: J on the training data, in the floating type of the training; its model a row of torch's Linear, with ReLU
    between. Dropout leaves out the same units in the same place of the same batch of every network, which is what a
    common seed gives.
    """

    train: Objective
    loader: Loader

    def from_scratch(self, schedule: Schedule, members: Sequence[np.ndarray], test: Objective, start: int) -> Continued:
        """Losses on the examples of `test` after training from start `start` without each removal's members."""
        began, groups = perf_counter(), [(), *members]
        control, *removed = self._losses(self.trained(self.start(start), groups, schedule), test)
        removed, unknown = np.array(removed).reshape(len(members), test.n), np.full_like(control, np.nan)
        images, unseen = schedule.steps * schedule.batch * len(groups), np.zeros(len(members), bool)
        return Continued(unknown, control, removed, images, perf_counter() - began, unseen)

    def _refused(self, schedule: Schedule, *_: object) -> NoReturn:
        """Raise InputError: it does not go on."""
        raise bad_input("trainer", type(self).__name__, "ask for a truth that trains anew (scratch_...)")

    go_on = under = state = _refused

    def start(self, seed: int) -> Tensor:
        """theta (P,) as torch.nn.Linear draws it, layer by layer."""
        weights = self.train.model.tensors[::2]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = [nn.Linear(inputs, outputs) for outputs, inputs in weights]
        parts = [part.detach().flatten() for layer in layers for part in (layer.weight, layer.bias)]
        return torch.cat(parts).to(self.train.decay)

    def trained(self, theta: Tensor, groups: Sequence[Sequence[int]], schedule: Schedule) -> Tensor:
        """Networks (E, P) after training from one theta (P,) without each of E groups of examples."""
        theta, draw = theta.repeat(len(groups), 1), torch.Generator().manual_seed(schedule.seed + 1)
        first, second = torch.zeros_like(theta), torch.zeros_like(theta)
        for step, (rows, weights) in enumerate(self.loader.weighted(self.train.n, groups, schedule)):
            gradient = self._gradient(theta, rows, weights.to(theta), draw)
            advance(schedule, theta, gradient, first, second, step, step + 1)
        return theta

    def _gradient(self, theta: Tensor, rows: Tensor, weights: Tensor, draw: torch.Generator) -> Tensor:
        """(E, P): of sum_i w_i loss_i over the rows (E, B), plus L2."""
        (x, y), train = (part[0] for part in (self.train.data.x, self.train.data.y)), self.train
        common = self.loader.batches == "masked"  # one batch for all: one product in the place of E
        parts = [part.detach().requires_grad_() for part in self._parts(theta)]
        z = forward(parts, x[rows[0]][None] if common else x[rows], self.loader.dropout, draw)
        values = train.loss.values(z.flatten(0, 1), y[rows].flatten(0, 1)).view(rows.shape)
        found = torch.autograd.grad((weights * values).sum(), parts)
        return torch.cat([part.flatten(1) for part in found], 1) + train.decay * theta

    def _parts(self, theta: Tensor) -> list[Tensor]:
        """Weights (E, out, in) and biases (E, out) of each layer in turn."""
        shapes = self.train.model.tensors
        pieces = theta.split([shape.numel() for shape in shapes], 1)
        return [piece.unflatten(1, shape) for piece, shape in zip(pieces, shapes, strict=True)]

    @torch.no_grad()
    def _losses(self, theta: Tensor, test: Objective) -> np.ndarray:
        """Losses (E, m) on the examples of `test`, in float64 from the outputs on."""
        x, y = test.data.x[0], test.data.y[0]
        z = forward(self._parts(theta), x[None]).double()
        labels = y.repeat(len(theta), *[1] * (y.ndim - 1))
        return test.loss.values(z.flatten(0, 1), labels).view(len(theta), -1).numpy()


def forward(parts: Sequence[Tensor], x: Tensor, dropout: float = 0.0, draw: torch.Generator | None = None) -> Tensor:
    """Outputs (E, B, C) of x (E, B, d) or, common to all networks, (1, B, d), with dropout of hidden units."""
    for place in range(0, len(parts), 2):
        weight, bias = parts[place].mT, parts[place + 1][:, None]
        if len(x) == 1 < len(weight):
            x = (x[0] @ weight.transpose(0, 1).flatten(1)).unflatten(1, (len(weight), -1)).transpose(0, 1) + bias
        else:
            x = torch.baddbmm(bias, x, weight)
        if place + 2 < len(parts):
            x = x.relu()
            if dropout:
                x = x * ((torch.rand(x.shape[1:], generator=draw) >= dropout).to(x) / (1 - dropout))
    return x
