"""Retraining of torch.nn modules on a GPU: a stack of small ones at once, large ones one by one, a step in one graph.

On a GPU a step is captured in a CUDA graph and replayed, so that launching its kernels costs nothing; on a CPU the same
code runs without the graph. What a step reads and writes therefore stands in tensors that stay where they are: theta
(E, P), the optimiser's memory, the mask of examples, the batch's rows and the step's factors.

A stack is one vmap of the network over theta, and plain autograd takes its gradient. The parameters are one vector, so
that each operation of the optimiser is one kernel for all of them, which is what foreach optimisers are for. Buffers
are constants, shared by all members: going on has its batch statistics frozen, and networks whose statistics change as
they train are refused (`models.ModuleModel`).

Letters: E stack size, P parameters, n examples, B examples of a batch, m test points, k removals.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, sqrt
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import cross_entropy, one_hot

from fragile_lib.minimise.schedule import Continued, Schedule, State
from fragile_lib.minimise.stack import RMS
from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.base import Objective, slope
from fragile_lib.tools.progress import progress

SMALL_NETWORK = 250_000  # parameters up to which a GPU takes a stack; a larger network fills it alone
MEMBERS = 128  # networks of a stack, its control included
WARM_UP = 3  # steps before a capture, in which libraries choose and load their kernels
PRECISIONS = ("full", "tf32", "bfloat16")


@dataclass(frozen=True)
class Start:
    """What is gone on from: the network, its training images x (n, C, H, W) and labels y (n,), and its state (1, P).

    precision: of a step's products. `full`: the floating type of theta; `tf32`: float32 with factors rounded to 10 bits
    by the GPU; `bfloat16`: parameters and activations with 8 bits, theta and the optimiser's memory as they are.
    """

    model: ModuleModel
    x: Tensor
    y: Tensor
    weight_decay: float
    state: State
    precision: str = "full"


class Steps:
    """E networks from one start, each without examples of its own, that make the steps of a schedule together."""

    def __init__(self, start: Start, schedule: Schedule, size: int) -> None:
        self.start, self.schedule = start, schedule
        theta, n = start.state.theta, len(start.x)
        self._hot = one_hot(start.y, start.model.n_classes).to(theta.dtype)
        self._decay = (start.weight_decay * start.model.is_weight).to(theta)
        self.kept = theta.new_ones(size, n)
        self.held = tuple(theta.new_zeros(size, theta.shape[1]) for _ in range(3))  # theta and the optimiser's memory
        batches = np.array(list(schedule.rows(n)), dtype=np.int64).reshape(-1, schedule.batch)
        counted = range(schedule.steps)
        factors = [factors_of(schedule, step, start.state.count + step + 1) for step in counted]
        self._batches = torch.from_numpy(batches).to(theta.device)
        self._factors = torch.tensor(factors, dtype=torch.float64).reshape(-1, 2).to(theta)
        self._rows, self._now = self._batches.new_zeros(schedule.batch), theta.new_ones(2)
        self._make, self.in_graph = self._step, False
        if theta.device.type == "cuda":
            with arithmetic(start.precision):
                self._make, self.in_graph = captured(self._step)
        self.load((start.state.theta, start.state.first, start.state.second))

    def load(self, held: Sequence[Tensor]) -> None:
        """Take over theta and the optimiser's memory, (E, P) or (1, P) each."""
        for own, given in zip(self.held, held, strict=True):
            own.copy_(given)

    def run(self, first: int, last: int) -> None:
        """Make the steps `first` up to but not `last`."""
        with arithmetic(self.start.precision):
            for step in range(first, last):
                self._rows.copy_(self._batches[step])
                self._now.copy_(self._factors[step])
                self._make()

    @torch.no_grad()
    def losses(self, test: Objective) -> np.ndarray:
        """Losses (E, m) on the examples of `test`, in float64 from the logits on."""
        x, y = test.data.x[0], test.data.y[0]
        with arithmetic("full"):
            out = logits(self.start.model, self.held[0], x).double()
        return cross_entropy(out.flatten(0, 1), y.repeat(len(out)), reduction="none").view(-1, len(y)).cpu().numpy()

    def _step(self) -> None:
        x, hot = (of.index_select(0, self._rows) for of in (self.start.x, self._hot))
        weights = self.kept.index_select(1, self._rows) / len(self._rows)
        theta, *memory = self.held
        gradient = slope(lambda t: self._weighted(t, weights, x, hot), theta) + self._decay * theta
        advance_by(self.schedule, theta, gradient, *memory, *self._now)

    def _weighted(self, theta: Tensor, weights: Tensor, x: Tensor, hot: Tensor) -> Tensor:
        """sum_ei w_ei loss_ei, for weights (E, B) and labels (B, classes) that are one in one place."""
        low = torch.bfloat16 if self.start.precision == "bfloat16" else theta.dtype
        out = logits(self.start.model, theta.to(low), x.to(low)).to(theta.dtype)
        return -(weights * (hot * out.log_softmax(2)).sum(2)).sum()


def logits(model: ModuleModel, theta: Tensor, x: Tensor) -> Tensor:
    """(E, n, classes); a single network without the cost of batching."""
    return model(theta[0], x)[None] if len(theta) == 1 else vmap(model, in_dims=(0, None))(theta, x)


def factors_of(schedule: Schedule, step: int, count: int) -> tuple[float, float]:
    """What changes from step to step in an optimiser: the rate, and the root that divides Adam's second moment's."""
    rate = schedule.rate(step)
    if schedule.optimiser != "adam":
        return rate, 1.0
    beta, beta_square = schedule.betas
    return rate / (1 - beta**count), sqrt(1 - beta_square**count)


def advance_by(
    schedule: Schedule, theta: Tensor, gradient: Tensor, first: Tensor, second: Tensor, rate: Tensor, root: Tensor
) -> None:
    """`stack.advance` with its factors in tensors, in place: a graph that is replayed would not see other numbers."""
    if schedule.optimiser == "sgd":
        first.mul_(schedule.momentum).add_(gradient)
        move = gradient.add(first, alpha=schedule.momentum) if schedule.nesterov else first
    else:
        adam = schedule.optimiser == "adam"
        beta_square = schedule.betas[1] if adam else RMS
        second.mul_(beta_square).addcmul_(gradient, gradient, value=1 - beta_square)
        if adam:
            first.lerp_(gradient, 1 - schedule.betas[0])
        move = (first if adam else gradient) / (second.sqrt() / root + schedule.epsilon)
    theta.sub_(move * rate)


def stacked(start: Start, schedule: Schedule, members: Sequence[np.ndarray], test: Objective) -> Continued:
    """Losses after going on without each removal's members, all at once, beside a control in each stack.

    A removal that no batch holds is the control, and costs nothing. Where one stack is not enough, each network is
    compared with the control of its own.
    """
    began, first = perf_counter(), schedule.first_use(len(start.x), list(members))
    seen, losses, controls = np.flatnonzero(first < schedule.steps), np.full((len(members), test.n), np.nan), []
    parts = np.array_split(seen, max(1, ceil(len(seen) / (MEMBERS - 1))))
    for part in progress(parts, desc="leave-one-out"):
        steps = Steps(start, schedule, 1 + len(part))
        before = steps.losses(test)[0]
        for row, place in enumerate(part, start=1):
            steps.kept[row, torch.from_numpy(np.asarray(members[place], dtype=int)).to(steps.kept.device)] = 0
        steps.run(0, schedule.steps)
        control, *found = steps.losses(test)
        controls.append(control)
        for place, lost in zip(part, found, strict=True):
            losses[place] = controls[0] + (lost - control)
    return _continued(began, schedule, first, before, controls[0], losses, schedule.steps * (len(seen) + len(parts)))


def one_by_one(start: Start, schedule: Schedule, members: Sequence[np.ndarray], test: Objective) -> Continued:
    """The same for one large network after the other, each branching off the control at its first batch."""
    began, first = perf_counter(), schedule.first_use(len(start.x), list(members))
    losses, made, at = np.full((len(members), test.n), np.nan), schedule.steps, 0
    steps = Steps(start, schedule, 1)
    before, saved = steps.losses(test)[0], [part.clone() for part in steps.held]
    order = first.argsort(kind="stable")
    for place in progress(order[first[order] < schedule.steps], desc="leave-one-out"):
        steps.run(at, first[place])
        at = int(first[place])
        for copy, part in zip(saved, steps.held, strict=True):
            copy.copy_(part)
        left_out = torch.from_numpy(np.asarray(members[place], dtype=int)).to(steps.kept.device)
        steps.kept[0, left_out] = 0
        steps.run(at, schedule.steps)
        losses[place] = steps.losses(test)[0]
        made += schedule.steps - at
        steps.kept.fill_(1)
        steps.load(saved)
    steps.run(at, schedule.steps)
    return _continued(began, schedule, first, before, steps.losses(test)[0], losses, made)


def _continued(
    began: float,
    schedule: Schedule,
    first: np.ndarray,
    before: np.ndarray,
    control: np.ndarray,
    losses: np.ndarray,
    made: int,
) -> Continued:
    """What came of it; `made`: steps of all networks together."""
    unseen = first == schedule.steps
    losses[unseen] = control
    return Continued(before, control, losses, made * schedule.batch, perf_counter() - began, unseen)


WAYS = {"stack": stacked, "single": one_by_one}


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Within: a GPU's matrix products and convolutions in TF32 or in float32, by kernels whose sums keep their order.

    Nothing changes on a CPU.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32, convolutions.deterministic
    convolutions.allow_tf32 = products.allow_tf32 = precision == "tf32"
    convolutions.deterministic = True
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32, convolutions.deterministic = before


def captured(step: Callable[[], None]) -> tuple[Callable[[], None], bool]:
    """A step as a CUDA graph, to be replayed, and True; the step itself where it cannot be captured, with a warning.

    It is made a few times before, on a stream of its own, which changes what it writes to.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:  # the same numbers, more slowly
        warnings.warn(f"a step could not be captured in a CUDA graph ({error}); it runs without", stacklevel=2)
        return step, False
    return graph.replay, True
