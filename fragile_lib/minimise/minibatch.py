"""Minibatch training of a stack of networks: the same batches for all members, their example weights their own.

J's gradient is estimated on a batch B, drawn from a seeded permutation of the examples, by

    (n / |B|) sum_(i in B) w_i grad loss_i + L2,     w_i = 1/n by default,

so that an example of weight zero is masked and the others keep 1 / |B|. The L2 term is part of J, not of the optimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite, sqrt

import numpy as np
import torch
from torch import Tensor

from fragile_lib.data.sets import Data
from fragile_lib.minimise.descent import flushed_denormals
from fragile_lib.objectives.base import Objective
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.progress import progress

OPTIMISERS = ("adam", "sgd")


@dataclass(frozen=True)
class Protocol:
    """How to train: steps, batch size, learning rate and its drops, optimiser, and the seed of the batches' order.

    drops: (fraction of the steps, factor on the rate from there on), in order; each factor is on the rate at the start.
    The defaults but `steps` are those of Koh and Liang (2017): Adam with 1e-4, a tenth after 110,000 of 500,000 steps
    and a hundredth after 220,000. momentum and nesterov are those of SGD; betas and epsilon those of Adam (Kingma and
    Ba 2015). Both optimisers do what those of torch.optim do.

    Raises:
        InputError: a value outside its range.
    """

    steps: int
    batch: int = 500
    learning_rate: float = 1e-4
    drops: tuple[tuple[float, float], ...] = ((0.22, 0.1), (0.44, 0.01))
    optimiser: str = "adam"
    seed: int = 0
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise bad_input(name, value, f"give a whole number of at least {least}")
        for name in ("learning_rate", "epsilon"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise bad_input(name, value, "give a finite number above 0")
        starts = [start for start, _ in self.drops]
        if not all(0 <= start <= 1 and isfinite(by) and by > 0 for start, by in self.drops) or starts != sorted(starts):
            raise bad_input("drops", self.drops, "give (fraction of the steps, positive factor) in rising order")
        if self.optimiser not in OPTIMISERS:
            raise bad_input("optimiser", self.optimiser, f"choose one of {', '.join(OPTIMISERS)}")
        for name, values in (("momentum", (self.momentum,)), ("betas", self.betas)):
            if not all(0 <= value < 1 for value in values):
                raise bad_input(name, getattr(self, name), "give numbers in [0, 1)")
        if self.nesterov and not (self.optimiser == "sgd" and self.momentum > 0):
            raise bad_input("nesterov", self.nesterov, "it needs the optimiser sgd with a momentum above 0")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        factors = [1.0] + [by for start, by in self.drops if step >= round(start * self.steps)]
        return self.learning_rate * factors[-1]


@dataclass(frozen=True)
class State:
    """An optimiser's memory: Adam's means of gradients and of their squares, or SGD's velocity (E, P); steps made."""

    first: Tensor
    second: Tensor
    steps: int = 0

    @classmethod
    def fresh(cls, theta: Tensor) -> State:
        """No steps made yet."""
        return cls(torch.zeros_like(theta), torch.zeros_like(theta))

    def of(self, members: Tensor | Sequence[int]) -> State:
        """The memory of a stack made of these members; a member may be taken several times."""
        return State(self.first[members], self.second[members], self.steps)


@dataclass(frozen=True)
class Trained:
    """What training ends with: theta (E, P), the optimiser's state, and theta (T, E, P) and rate (T,) at checkpoints.

    A checkpoint at step t is theta after t steps; its rate is that of the step that leaves it (TracIn's eta).
    """

    theta: Tensor
    state: State
    checkpoints: Tensor
    rates: Tensor


def batches(n: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Rows (size,) of one batch after the other, without end: a new permutation each epoch, what is left over dropped.

    Raises:
        InputError: a batch larger than the n examples.
    """
    if size > n:
        raise bad_input("batch", size, f"give at most the number of examples, {n}")
    rng = np.random.default_rng([seed, 3])
    while True:
        order = rng.permutation(n)
        yield from order[: n - n % size].reshape(-1, size)


def train(
    objective: Objective,
    theta: Tensor,
    weights: Tensor,
    protocol: Protocol,
    dataset: Tensor | None = None,
    state: State | None = None,
    checkpoints: Sequence[int] = (),
    label: str = "minibatch training",
) -> Trained:
    """Train the stack theta (E, P) on J(.; w_e), weights (E, n), all members on the same batches.

    Args:
        objective: J on the training data; its data's floating type is that of the training.
        theta: the starts; left as they are.
        weights: a removal is a zero in a row, a control a row of 1/n.
        protocol: steps, batches, optimiser.
        dataset: (E,) which of the objective's data sets each member sees.
        state: the optimiser's memory to go on from; `State.fresh` by default.
        checkpoints: after how many steps to keep a copy of theta, in rising order; 0 is the start.
        label: what the progress bar says.

    Raises:
        InputError: a batch larger than the data, or checkpoints outside 0 .. steps or not in rising order.
    """
    steps, wanted = protocol.steps, list(checkpoints)
    if wanted != sorted(set(wanted)) or (wanted and not 0 <= wanted[0] <= wanted[-1] <= steps):
        raise bad_input("checkpoints", checkpoints, f"give rising numbers of steps from 0 to {steps}")
    kind = objective.data.x.dtype
    theta = theta.to(kind, copy=True)
    state = State.fresh(theta) if state is None else state
    first, second = state.first.to(kind, copy=True), state.second.to(kind, copy=True)
    kept = []
    for step, gradient in _steps(objective, weights, protocol, dataset, label):
        if step in wanted:
            kept.append(theta.clone())
        _advance(protocol, theta, gradient(theta), first, second, step, state.steps + step + 1)
    if steps in wanted:
        kept.append(theta.clone())
    copies = torch.stack(kept) if kept else theta.new_empty(0, *theta.shape)
    rates = torch.tensor([protocol.rate(step) for step in wanted], dtype=torch.float64)
    return Trained(theta, State(first, second, state.steps + steps), copies, rates)


def train_beside(
    objective: Objective, theta: Tensor, weights: Tensor, protocol: Protocol, label: str = "minibatch training"
) -> Tensor:
    """Networks (E, P) trained as by `train` from one theta (P,), the first of them a control: the same numbers sooner.

    Until a batch holds an example whose weight differs from the control's, a member is the control. It joins the stack
    when that happens, with a copy of the control and of its optimiser's memory.

    Args:
        objective: J on the training data; its data's floating type is that of the training.
        theta: the common start.
        weights: (E, n), the control's first.
        protocol: steps, batches, optimiser.
        label: what the progress bar says.

    Raises:
        InputError: a batch larger than the data.
    """
    joins = _first_difference(weights.cpu().numpy(), objective.n, protocol)
    order = joins.argsort(kind="stable")
    stack = theta.to(objective.data.x.dtype).repeat(len(weights), 1)
    first, second, awake = torch.zeros_like(stack), torch.zeros_like(stack), 1
    for step, gradient in _steps(objective, weights[order], protocol, None, label):
        joined = int(np.searchsorted(joins[order], step, side="right"))
        for part in (stack, first, second):
            part[awake:joined] = part[0]
        awake = joined
        now = [part[:awake] for part in (stack, first, second)]
        _advance(protocol, now[0], gradient(now[0]), *now[1:], step, step + 1)
    stack[awake:] = stack[0]
    found = torch.empty_like(stack)
    found[order] = stack
    return found


def _steps(
    objective: Objective, weights: Tensor, protocol: Protocol, dataset: Tensor | None, label: str
) -> Iterator[tuple[int, Callable[[Tensor], Tensor]]]:
    """Each step with the gradient on its batch, theta (E, P) -> (E, P), under the weights of the first E members."""
    gradient = _batch_gradient(objective, _on_batches(objective, weights, protocol), dataset)
    drawn = batches(objective.n, protocol.batch, protocol.seed)
    with flushed_denormals(), progress(total=protocol.steps, desc=label) as bar:
        for step in range(protocol.steps):
            yield step, partial(gradient, rows=next(drawn))
            bar.update()


def _first_difference(weights: np.ndarray, n: int, protocol: Protocol) -> np.ndarray:
    """(E,) the step whose batch is the first to hold an example with another weight than the first member's has."""
    joins, others = np.full(len(weights), protocol.steps), weights != weights[0]
    rows = batches(n, protocol.batch, protocol.seed)
    joins[0] = 0
    for step in range(protocol.steps):
        waiting = np.flatnonzero(joins == protocol.steps)
        joins[waiting[others[np.ix_(waiting, next(rows))].any(axis=1)]] = step
        if len(waiting) == 0:
            break
    return joins


def _on_batches(objective: Objective, weights: Tensor, protocol: Protocol) -> Tensor:
    """The weights of examples in a batch, which stands for all of them."""
    return (weights * (objective.n / protocol.batch)).to(objective.data.x.dtype)


def _batch_gradient(
    objective: Objective, weights: Tensor, dataset: Tensor | None
) -> Callable[[Tensor, np.ndarray], Tensor]:
    """(theta (E, P), rows) -> the gradient (E, P) on these rows under the weights of the first E members."""
    if hasattr(objective, "batch_gradient"):
        return lambda theta, rows: objective.batch_gradient(theta, weights[: len(theta)], rows, dataset)

    def gradient(theta: Tensor, rows: np.ndarray) -> Tensor:
        some = Data(objective.data.x[:, rows], objective.data.y[:, rows])
        part = type(objective)(objective.model, some, objective.weight_decay, str(objective.device))
        return part.gradient(theta, weights[: len(theta), rows], dataset).to(theta.dtype)

    return gradient


def _advance(
    protocol: Protocol, theta: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int, count: int
) -> None:
    """One step of the optimiser, in place: the arithmetic of torch.optim.Adam or SGD, in its order."""
    rate = protocol.rate(step)
    if protocol.optimiser == "sgd":
        first.mul_(protocol.momentum).add_(gradient)
        move = gradient.add(first, alpha=protocol.momentum) if protocol.nesterov else first
        theta.add_(move, alpha=-rate)
        return
    beta, beta_square = protocol.betas
    first.lerp_(gradient, 1 - beta)
    second.mul_(beta_square).addcmul_(gradient, gradient, value=1 - beta_square)
    scale = (_root(second) / sqrt(1 - beta_square**count)).add_(protocol.epsilon)
    theta.addcdiv_(first, scale, value=-rate / (1 - beta**count))


def _root(x: Tensor) -> Tensor:
    """Square roots. On a CPU torch's own wakes the OpenMP threads, however small x is, and leaves them spinning."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()
