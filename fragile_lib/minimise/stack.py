"""Minibatch training of a stack of networks: the same batches for all members, their example weights their own.

J's gradient is estimated on a batch B, drawn from a seeded permutation of the examples, by

    (n / |B|) sum_(i in B) w_i grad loss_i + L2,     w_i = 1/n by default,

so that an example of weight zero is masked and the others keep 1 / |B|. The L2 term is part of J, not of the optimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.minimise.schedule import Continued, Schedule, State
from fragile_lib.objectives.base import Objective
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.numerics import flushed_denormals
from fragile_lib.tools.progress import progress

RMS = 0.99  # of RMSProp, as in torch.optim


@dataclass(frozen=True)
class Trained:
    """What training ends with: theta (E, P), and theta (T, E, P) and rate (T,) at checkpoints.

    A checkpoint at step t is theta after t steps; its rate is that of the step that leaves it (TracIn's eta).
    """

    theta: Tensor
    checkpoints: Tensor
    rates: Tensor


def train(
    objective: Objective,
    theta: Tensor,
    weights: Tensor,
    schedule: Schedule,
    dataset: Tensor | None = None,
    checkpoints: Sequence[int] = (),
    label: str = "minibatch training",
) -> Trained:
    """Train the stack theta (E, P) on J(.; w_e), weights (E, n), all members on the same batches.

    Args:
        objective: J on the training data; its data's floating type is that of the training.
        theta: the starts; left as they are.
        weights: a removal is a zero in a row, a control a row of 1/n.
        schedule: steps, batches, optimiser.
        dataset: (E,) which of the objective's data sets each member sees.
        checkpoints: after how many steps to keep a copy of theta, in rising order; 0 is the start.
        label: what the progress bar says.

    Raises:
        InputError: a batch larger than the data, or checkpoints outside 0 .. steps or not in rising order.
    """
    steps, wanted = schedule.steps, list(checkpoints)
    if wanted != sorted(set(wanted)) or (wanted and not 0 <= wanted[0] <= wanted[-1] <= steps):
        raise bad_input("checkpoints", checkpoints, f"give rising numbers of steps from 0 to {steps}")
    kind = objective.data.x.dtype
    theta = theta.to(kind, copy=True)
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    kept = []
    for step, gradient in _steps(objective, weights, schedule, dataset, label):
        if step in wanted:
            kept.append(theta.clone())
        advance(schedule, theta, gradient(theta), first, second, step, step + 1)
    if steps in wanted:
        kept.append(theta.clone())
    copies = torch.stack(kept) if kept else theta.new_empty(0, *theta.shape)
    rates = torch.tensor([schedule.rate(step) for step in wanted], dtype=torch.float64)
    return Trained(theta, copies, rates)


def train_beside(
    objective: Objective,
    theta: Tensor,
    members: Sequence[np.ndarray],
    schedule: Schedule,
    label: str = "minibatch training",
) -> Tensor:
    """Networks (1 + k, P) trained as by `train` from one theta (P,), the first of them a control: the same sooner.

    Until a batch holds an example that a member leaves out, it is the control. It joins the stack when that happens,
    with a copy of the control and of its optimiser's memory.

    Args:
        objective: J on the training data; its data's floating type is that of the training.
        theta: the common start.
        members: the examples that each of k networks leaves out.
        schedule: steps, batches, optimiser.
        label: what the progress bar says.

    Raises:
        InputError: a batch larger than the data.
    """
    joins = np.concatenate([[0], schedule.first_use(objective.n, list(members))])
    weights = torch.full((len(joins), objective.n), 1 / objective.n, dtype=torch.float64, device=objective.device)
    for row, group in zip(weights[1:], members, strict=True):
        row[torch.as_tensor(np.asarray(group, dtype=int))] -= 1 / objective.n
    order = joins.argsort(kind="stable")
    stack = theta.to(objective.data.x.dtype).repeat(len(weights), 1)
    first, second, awake = torch.zeros_like(stack), torch.zeros_like(stack), 1
    for step, gradient in _steps(objective, weights[order], schedule, None, label):
        joined = int(np.searchsorted(joins[order], step, side="right"))
        for part in (stack, first, second):
            part[awake:joined] = part[0]
        awake = joined
        now = [part[:awake] for part in (stack, first, second)]
        advance(schedule, now[0], gradient(now[0]), *now[1:], step, step + 1)
    stack[awake:] = stack[0]
    found = torch.empty_like(stack)
    found[order] = stack
    return found


@dataclass(frozen=True)
class StackTrainer:
    """Retraining of a small network without some examples: all left-out networks and a control as one stack.

    single: J on the training data, in the floating type of the training. theta: the network (P,). The optimiser begins
    without a memory.
    """

    single: Objective
    theta: Tensor

    def go_on(self, schedule: Schedule, members: Sequence[np.ndarray], test: Objective) -> Continued:
        """Losses on the examples of `test` after going on from the network without each removal's members."""
        return self._from(self.theta.float(), schedule, members, test, "leave-one-out")

    def from_scratch(self, schedule: Schedule, members: Sequence[np.ndarray], test: Objective, start: int) -> Continued:
        """The same from the model's start of a seed."""
        theta = self.single.model.init(start).float().to(self.theta.device)
        return self._from(theta, schedule, members, test, "from scratch")

    def under(self, schedule: Schedule, weights: Tensor) -> Tensor:
        """Networks (K, P) after going on from the network under each of some example weights (K, n)."""
        start = self.theta.float().expand(len(weights), -1)
        return train(self.single, start, weights, schedule, label="under weights").theta

    def state(self, schedule: Schedule) -> State:
        """What `go_on` begins with: the network, and an optimiser without a memory."""
        return State.at(self.theta[None])

    def _from(
        self, theta: Tensor, schedule: Schedule, members: Sequence[np.ndarray], test: Objective, label: str
    ) -> Continued:
        began, found = perf_counter(), train_beside(self.single, theta, members, schedule, label)
        losses = test.losses(found.to(self.theta)).cpu().numpy()
        before = test.losses(self.theta[None])[0].cpu().numpy()
        first = schedule.first_use(self.single.n, list(members))
        images = schedule.batch * int(schedule.steps + (schedule.steps - first).sum())
        return Continued(before, losses[0], losses[1:], images, perf_counter() - began, first == schedule.steps)


def _steps(
    objective: Objective, weights: Tensor, schedule: Schedule, dataset: Tensor | None, label: str
) -> Iterator[tuple[int, Callable[[Tensor], Tensor]]]:
    """Each step with the gradient on its batch, theta (E, P) -> (E, P), under the weights of the first E members."""
    of_batch = _on_batches(objective, weights, schedule)

    def gradient(theta: Tensor, rows: np.ndarray) -> Tensor:
        return objective.batch_gradient(theta, of_batch[: len(theta)], rows, dataset)

    drawn = schedule.rows(objective.n)
    with flushed_denormals(), progress(total=schedule.steps, desc=label) as bar:
        for step, rows in enumerate(drawn):
            yield step, partial(gradient, rows=rows)
            bar.update()


def _on_batches(objective: Objective, weights: Tensor, schedule: Schedule) -> Tensor:
    """The weights of examples in a batch, which stands for all of them."""
    return (weights * (objective.n / schedule.batch)).to(objective.data.x.dtype)


def advance(
    schedule: Schedule, theta: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int, count: int
) -> None:
    """Step `step` of a schedule, in place: the arithmetic of torch.optim, in its order.

    first, second: the optimiser's memory; count: the steps that it has made with this one (Adam's bias correction).
    """
    rate = schedule.rate(step)
    if schedule.optimiser == "sgd":
        first.mul_(schedule.momentum).add_(gradient)
        move = gradient.add(first, alpha=schedule.momentum) if schedule.nesterov else first
        theta.add_(move, alpha=-rate)
        return
    if schedule.optimiser == "rmsprop":
        second.mul_(RMS).addcmul_(gradient, gradient, value=1 - RMS)
        theta.addcdiv_(gradient, _root(second).add_(schedule.epsilon), value=-rate)
        return
    beta, beta_square = schedule.betas
    first.lerp_(gradient, 1 - beta)
    second.mul_(beta_square).addcmul_(gradient, gradient, value=1 - beta_square)
    scale = (_root(second) / sqrt(1 - beta_square**count)).add_(schedule.epsilon)
    theta.addcdiv_(first, scale, value=-rate / (1 - beta**count))


def _root(x: Tensor) -> Tensor:
    """Square roots. On a CPU torch's own wakes the OpenMP threads, however small x is, and leaves them spinning."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()
