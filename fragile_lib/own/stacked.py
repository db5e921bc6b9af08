"""Many perceptrons at once, each trained by minibatches without some of the examples: what public benchmarks retrain.

What their recipes leave open, and a truth hangs on, are the batches of a training from which examples are missing:
`masked`: their places stay empty; `shifted`: all that follows moves up, as in a loader made anew without them;
`redrawn`: every training has an order of its own.

Letters: n examples, E networks, B examples in a batch, R repetitions, k removals, m test points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from fragile_lib.choices import Removals, Truth, mean_of
from fragile_lib.objectives.losses import Loss
from fragile_lib.tools.checks import check_count, check_name, check_number

BATCHES = ("masked", "shifted", "redrawn")


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent of ReLU perceptrons, arithmetic of torch.optim.SGD.

    Args:
        widths: inputs, hidden layers, outputs.
        epochs, batch, learning_rate, momentum: of training.
        weight_decay: on all parameters.
        dropout: the share of hidden units that each step leaves out.
        batches: of `BATCHES`.
        shuffled: whether every epoch has a new order; else all have one.
        whole: whether what is left over of an epoch is dropped.
        scale: of the loss; 2 makes `SquaredError` torch's.

    Raises:
        InputError: a value outside its range.
    """

    widths: tuple[int, ...]
    epochs: int
    batch: int
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    dropout: float = 0.0
    batches: str = "masked"
    shuffled: bool = False
    whole: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_name("batches", self.batches, BATCHES)
        check_count("epochs", self.epochs)
        check_count("batch", self.batch)
        check_number("dropout", self.dropout, below=1)
        check_number("learning_rate", self.learning_rate, above=0)

    def start(self, seed: int) -> list[Tensor]:
        """Weights (in, out) and biases (1, out) of each layer in turn, drawn as torch.nn.Linear draws them."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = [nn.Linear(*pair) for pair in zip(self.widths, self.widths[1:], strict=False)]
        return [part for layer in layers for part in (layer.weight.detach().T, layer.bias.detach()[None])]

    def orders(self, n: int, groups: Sequence[Sequence[int]], seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each epoch the rows (E, n) of each network in its order, and whether they are there (E, n).

        With seed 0 and not `shuffled` the order is the data's own.
        """
        own = self.batches == "redrawn"
        draws = [np.random.default_rng([seed, place * own, 5]) for place in range(len(groups) if own else 1)]
        kept = None
        for _ in range(self.epochs):
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

    def train(self, x: Tensor, y: Tensor, loss: Loss, groups: Sequence[Sequence[int]], seed: int, start: int) -> list:
        """Train from one start without each of E groups of examples; parameters (E, ...) as in `start`.

        Dropout leaves out the same units in the same place of the same batch of every network, which is what a common
        seed gives. A batch's gradient is divided by its size with what is missing where that leaves its place empty, by
        what is there else; one of which nothing is left is a step with the gradient zero.
        """
        draw = torch.Generator().manual_seed(seed + 1)
        theta = [p.to(x).repeat(len(groups), 1, 1).requires_grad_() for p in self.start(start)]
        memory = [torch.zeros_like(p) for p in theta]
        ends = range(0, len(x) - self.batch * self.whole + 1 if self.whole else len(x), self.batch)
        for rows, there in self.orders(len(x), groups, seed):
            for first in ends:
                some = np.s_[:, first : first + self.batch]
                weights = torch.tensor(there[some], dtype=x.dtype)
                weights /= weights.shape[1] if self.batches == "masked" else weights.sum(1, keepdim=True).clamp(min=1)
                taken = torch.from_numpy(rows[some])
                values = self._values(theta, x, y, loss, taken, draw)
                gradients = torch.autograd.grad(self.scale * (weights * values).sum(), theta)
                with torch.no_grad():
                    for p, v, g in zip(theta, memory, gradients, strict=True):
                        v.mul_(self.momentum).add_(g).add_(p, alpha=self.weight_decay)
                        p.sub_(v, alpha=self.learning_rate)
        return [p.detach() for p in theta]

    def _values(self, theta: list, x: Tensor, y: Tensor, loss: Loss, rows: Tensor, draw: torch.Generator) -> Tensor:
        """Losses (E, B) of the rows (E, B), with dropout."""
        common = self.batches == "masked"  # one batch for all: one product in the place of E
        z = forward(theta, x[rows[0]][None] if common else x[rows], self.dropout, draw)
        return loss.values(z.flatten(0, 1), y[rows].flatten(0, 1)).view(rows.shape)

    def module(self, theta: Sequence[Tensor], place: int = 0) -> nn.Module:
        """One of the networks, as a torch.nn.Module in evaluation mode."""
        layers: list[nn.Module] = []
        for weight, bias in zip(theta[::2], theta[1::2], strict=True):
            layer = nn.Linear(*weight.shape[1:]).to(weight)
            layer.weight.data, layer.bias.data = weight[place].T.clone(), bias[place, 0].clone()
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers[:-1]).eval()


def forward(theta: Sequence[Tensor], x: Tensor, dropout: float = 0.0, draw: torch.Generator | None = None) -> Tensor:
    """Outputs (E, B, C) of x (E, B, d) or, common to all networks, (1, B, d)."""
    for place in range(0, len(theta), 2):
        weight, bias = theta[place : place + 2]
        if len(x) == 1 < len(weight):
            x = (x[0] @ weight.transpose(0, 1).flatten(1)).unflatten(1, (len(weight), -1)).transpose(0, 1) + bias
        else:
            x = torch.baddbmm(bias, x, weight)
        if place + 2 < len(theta):
            x = x.relu()
            if dropout:
                x = x * ((torch.rand(x.shape[1:], generator=draw) >= dropout).to(x) / (1 - dropout))
    return x


def retrain(
    recipe: Recipe,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    loss: Loss,
    removals: Removals,
    repeats: int,
    starts: bool = False,
) -> tuple[Truth, np.ndarray]:
    """The test losses after training without each removal minus those of a control beside it, R times.

    Args:
        recipe: of training.
        train, test: (x, y) of n and m examples.
        loss: of an example.
        removals: what is left out.
        repeats: R: orders of the batches and units left out, of seeds 0 .. R - 1; the truth is their mean.
        starts: whether each repetition has a start of its own too; else all have that of seed 0.

    Returns: the truth, and the losses of the controls (R, m).
    """
    check_count("repeats", repeats)
    found, controls, groups = [], [], [(), *removals.members]
    for seed in range(repeats):
        began = perf_counter()
        theta = recipe.train(*train, loss, groups, seed, seed * starts)
        z, m = forward(theta, test[0][None]).double(), len(test[0])
        losses = loss.values(z.flatten(0, 1), test[1].repeat(len(groups), *[1] * (test[1].ndim - 1)))
        losses = losses.view(len(groups), m).numpy()
        controls.append(losses[0])
        changes = np.where(np.isfinite(losses[1:]), losses[1:] - losses[0], np.nan)
        found.append(Truth(removals, changes, np.zeros(m), seconds=perf_counter() - began))
    return mean_of(found), np.array(controls)
