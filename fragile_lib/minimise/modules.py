"""Minibatch training of one large network by torch.optim, and its retraining without some of the examples.

The gradient of J on a batch B is (1/|B|) sum_(i in B) grad loss_i + L2, the L2 term on weights and not on biases or
normalisation; an example that is left out is dropped from its batches while |B| stays as it was, which is weight zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fragile_lib.minimise.captured import PRECISIONS, SMALL_NETWORK, WAYS, Start, Steps, arithmetic
from fragile_lib.minimise.schedule import Continued, Schedule, State
from fragile_lib.models.architectures import frozen_statistics
from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.losses import CROSS_ENTROPY, Loss, check_plain, is_plain
from fragile_lib.tools.checks import check_name
from fragile_lib.tools.progress import progress

CHECKED = 20  # steps after which another way is compared with the loop


@dataclass(frozen=True)
class Trained:
    """A network as training left it (in train mode) with its optimiser, and what the training cost."""

    module: nn.Module
    optimiser: torch.optim.Optimizer
    images: int
    seconds: float


def make_optimiser(module: nn.Module, schedule: Schedule, weight_decay: float) -> torch.optim.Optimizer:
    """The optimiser of torch.optim, its L2 term on parameters of two dimensions or more."""
    parameters, rate = list(module.parameters()), schedule.learning_rate
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if schedule.optimiser == "adam":
        betas, epsilon = schedule.betas, schedule.epsilon
        return torch.optim.Adam(groups, lr=rate, betas=betas, eps=epsilon, fused=True)  # one pass over the parameters
    if schedule.optimiser == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, eps=schedule.epsilon)
    return torch.optim.SGD(groups, lr=rate, momentum=schedule.momentum, nesterov=schedule.nesterov)


def train(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    schedule: Schedule,
    weight_decay: float,
    removed: Sequence[int] = (),
    loss: Loss = CROSS_ENTROPY,
) -> Trained:
    """Train a copy of the module on images x (n, C, H, W) with labels y (n,), without the `removed` ones.

    The module's own mode holds: in train mode batch normalisation uses the statistics of each batch.
    """
    began, module = perf_counter(), deepcopy(module)
    optimiser = make_optimiser(module, schedule, weight_decay)
    steps = progress(enumerate(schedule.rows(len(x))), total=schedule.steps, desc="training")
    for step, rows in steps:
        one_step(module, optimiser, x, y, rows, schedule, step, removed, loss)
    return Trained(module, optimiser, schedule.steps * schedule.batch, perf_counter() - began)


def one_step(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    rows: np.ndarray,
    schedule: Schedule,
    step: int,
    removed: Sequence[int],
    loss: Loss = CROSS_ENTROPY,
    times: Tensor | None = None,
) -> None:
    """One step of the optimiser on the rows of a batch, without those that are removed.

    times: factors on the weights (n,) of all examples, none for 1.
    """
    kept = rows[~np.isin(rows, removed)] if len(removed) else rows
    for group in optimiser.param_groups:
        group["lr"] = schedule.rate(step)
    optimiser.zero_grad()
    if len(kept):
        values = loss.values(outputs(module, x[kept]), y[kept])
        ((values if times is None else values * times[kept]).sum() / len(rows)).backward()
    else:  # the L2 term is left
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
    optimiser.step()


def copied(
    module: nn.Module, optimiser: torch.optim.Optimizer, schedule: Schedule, weight_decay: float
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network and its optimiser's memory, copied."""
    module = deepcopy(module)
    fresh = make_optimiser(module, schedule, weight_decay)
    fresh.load_state_dict(deepcopy(optimiser.state_dict()))
    return module, fresh


@torch.no_grad()
def losses_of(module: nn.Module, test: Objective) -> np.ndarray:
    """Losses (m,) on the examples of `test`, in eval mode, in float64 from the outputs on."""
    module.eval()
    return test.loss.values(outputs(module, test.data.x[0].clone()).double(), test.data.y[0]).cpu().numpy()


def outputs(module: nn.Module, x: Tensor) -> Tensor:
    """(n, ..., C) of the module; a single output (n,) with a dimension of its own."""
    out = module(x)
    return out[:, None] if out.ndim == 1 else out


@dataclass(frozen=True)
class ModuleTrainer:
    """Retraining of a large network without some examples, each branching off a control on the same batches.

    start: the trained network (its mode holds) with the optimiser's memory to go on with. data: training images
    (n, C, H, W) and labels (n,). fresh: the network before training, for training from scratch. way: `loop` by
    torch.optim, all at once (`stack`) or one by one (`single`) by `minimise.captured`; `auto` is the loop on a CPU, and
    on a GPU the stack up to `SMALL_NETWORK` parameters. precision: of `captured.PRECISIONS`; `auto` is `tf32` for
    `single`, and else `full`. loss: of an example; the loop alone knows others than the plain cross entropy.

    Raises:
        InputError: an unknown way or precision.
    """

    start: Trained
    data: tuple[Tensor, Tensor]
    weight_decay: float
    fresh: nn.Module
    way: str = "auto"
    precision: str = "auto"
    loss: Loss = CROSS_ENTROPY

    def __post_init__(self) -> None:
        check_name("way", self.way, ("auto", "loop", *WAYS))
        check_name("precision", self.precision, ("auto", *PRECISIONS))
        if self.chosen[0] != "loop":
            check_plain(self.loss, self.data[1])

    @property
    def chosen(self) -> tuple[str, str]:
        """The way and the precision, with `auto` resolved."""
        way, size = self.way, sum(parameter.numel() for parameter in self.fresh.parameters())
        if way == "auto" and self.data[0].device.type == "cuda" and is_plain(self.loss, self.data[1]):
            way = "stack" if size <= SMALL_NETWORK else "single"
        way = "loop" if way == "auto" else way
        return way, ("tf32" if way == "single" else "full") if self.precision == "auto" else self.precision

    def go_on(self, schedule: Schedule, members: Sequence[np.ndarray], test: Objective) -> Continued:
        """Losses on the examples of `test` after going on without each removal's members, and of the control.

        Up to the first batch that holds one of its examples, a removal's run is the control's own: it branches off
        there, with a copy of the network and of the optimiser's memory, and what came before is not computed again. The
        numbers are those of full runs, bit for bit.
        """
        way = self.chosen[0]
        if way != "loop":
            return WAYS[way](self._begin(self.start.module, self.state(schedule)), schedule, members, test)
        began, (x, y) = perf_counter(), self.data
        batches, first = list(schedule.rows(len(x))), schedule.first_use(len(x), list(members))
        module, optimiser = copied(self.start.module, self.start.optimiser, schedule, self.weight_decay)
        before = losses_of(module, test)
        module.train(self.start.module.training)
        losses, images = np.full((len(members), test.n), np.nan), 0
        with progress(total=len(members), desc="leave-one-out") as bar:
            for step, rows in enumerate(batches):
                for place in np.flatnonzero(first == step):
                    branch = copied(module, optimiser, schedule, self.weight_decay)
                    for later in range(step, len(batches)):
                        one_step(*branch, x, y, batches[later], schedule, later, members[place], self.loss)
                    losses[place] = losses_of(branch[0], test)
                    images += (len(batches) - step) * schedule.batch
                    bar.update()
                one_step(module, optimiser, x, y, rows, schedule, step, (), self.loss)
        control = losses_of(module, test)
        unseen = first == schedule.steps
        losses[unseen] = control
        images += len(batches) * schedule.batch
        return Continued(before, control, losses, images, perf_counter() - began, unseen)

    def under(self, schedule: Schedule, weights: Tensor) -> Tensor:
        """Networks (K, P) after going on under each of some example weights (K, n), by the loop."""
        (x, y), found = self.data, []
        for times in (weights * len(x)).to(x):
            module, optimiser = copied(self.start.module, self.start.optimiser, schedule, self.weight_decay)
            for step, rows in enumerate(schedule.rows(len(x))):
                one_step(module, optimiser, x, y, rows, schedule, step, (), self.loss, times)
            found.append(_vector(module))
        return torch.stack(found)

    def state(self, schedule: Schedule) -> State:
        """What `go_on` begins with, as vectors in the order of theta: the trained network, its optimiser's memory."""
        module, optimiser = copied(self.start.module, self.start.optimiser, schedule, self.weight_decay)
        parameters = list(module.parameters())
        memory = [optimiser.state.get(parameter, {}) for parameter in parameters]

        def vector(*names: str) -> Tensor:
            held = [next((m[n] for n in names if m.get(n) is not None), None) for m in memory]
            pairs = zip(parameters, held, strict=True)
            return torch.cat([torch.zeros_like(p).flatten() if h is None else h.flatten() for p, h in pairs])[None]

        theta = _vector(module)[None]
        steps = max(int(m.get("step", 0)) for m in memory)
        return State(theta, vector("exp_avg", "momentum_buffer"), vector("exp_avg_sq", "square_avg"), steps)

    def from_scratch(
        self, schedule: Schedule, members: Sequence[np.ndarray], test: Objective, start: int | None = None
    ) -> Continued:
        """The same from the network before training; `start` has no meaning here: all seeds begin there.

        Batch-norm statistics are frozen at the end on all examples that are left, taken as one batch; such networks
        are always trained by the loop, since the statistics change on the way.
        """
        if self.chosen[0] != "loop" and not any(isinstance(part, _BatchNorm) for part in self.fresh.modules()):
            return self._anew(schedule, members, test)
        began, (x, y), found = perf_counter(), self.data, []
        for group in progress([np.array([], int), *members], desc="from scratch"):
            trained = train(self.fresh, x, y, schedule, self.weight_decay, group, self.loss).module
            left = np.setdiff1d(np.arange(len(x)), group)
            found.append(losses_of(frozen_statistics(trained, x[left], len(left)), test))
        images = len(found) * schedule.steps * schedule.batch
        before = losses_of(self.start.module, test)
        return Continued(
            before, found[0], np.array(found[1:]), images, perf_counter() - began, np.zeros(len(members), bool)
        )

    def _anew(self, schedule: Schedule, members: Sequence[np.ndarray], test: Objective) -> Continued:
        begin = self._begin(self.fresh, State.at(_vector(self.fresh)[None]))
        found = WAYS[self.chosen[0]](begin, schedule, members, test)
        return replace(found, before=losses_of(self.start.module, test), unseen=np.zeros(len(members), bool))

    def _begin(self, module: nn.Module, state: State) -> Start:
        x, y = self.data
        with torch.no_grad():
            classes = module(x[:1]).shape[1]
        return Start(ModuleModel(module, classes), x, y, self.weight_decay, state, self.chosen[1])

    def told(self, schedule: Schedule) -> dict[str, object]:
        """How it is retrained where not by the loop, and how far that leads from it; nothing for the loop itself.

        retraining_error: ||theta - theta_loop|| / ||theta_loop - theta_0|| after `CHECKED` steps of `schedule`, the
        loop in the floating type of theta.
        """
        (way, precision), schedule = self.chosen, replace(schedule, steps=CHECKED)
        if way == "loop":
            return {}
        size = 2 if way == "stack" else 1  # a stack of one would be the network by itself
        steps = Steps(self._begin(self.start.module, self.state(schedule)), schedule, size)
        steps.run(0, CHECKED)
        module, optimiser = copied(self.start.module, self.start.optimiser, schedule, self.weight_decay)
        with arithmetic("full"):
            for step, rows in enumerate(schedule.rows(len(self.data[0]))):
                one_step(module, optimiser, *self.data, rows, schedule, step, ())
        moved, other = (theta - _vector(self.start.module) for theta in (_vector(module), steps.held[0][0]))
        error = float((other - moved).norm() / moved.norm())
        told = {"retraining": way, "retraining_in_graph": steps.in_graph, "retraining_precision": precision}
        return told | {"retraining_error": error}


def _vector(module: nn.Module) -> Tensor:
    """theta (P,)."""
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
