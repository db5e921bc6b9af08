"""A user's module, loss and data as the `Network` that estimates and truths are asked of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

from fragile_lib.minimise.modules import ModuleTrainer, Trained, make_optimiser
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.models.module import ModuleModel
from fragile_lib.network import Network
from fragile_lib.network.modules import of_objectives
from fragile_lib.objectives.base import Objective, resolve_device
from fragile_lib.objectives.losses import Loss, as_loss
from fragile_lib.own.examples import Examples, first_of, objective_of
from fragile_lib.own.modules import check_module, model_of, outputs_of
from fragile_lib.tools.checks import check_count, check_name
from fragile_lib.tools.errors import bad_input


def logit(z: Tensor, y: Tensor) -> Tensor:
    """The label's own output (n,) of z (n, C)."""
    return z.gather(1, y.long()[:, None])[:, 0]


def margin(z: Tensor, y: Tensor) -> Tensor:
    """log p / (1 - p) of the label (n,), p the softmax of z (n, C)."""
    others = torch.arange(z.shape[1], device=z.device) != y.long()[:, None]
    return logit(z, y) - torch.where(others, z, -torch.inf).logsumexp(1)


class Certificate(Mapping):
    """What is known of a network, by name, measured when it is first read: that takes passes over all examples.

    Like a dict, but that it cannot be changed; `|` gives a dict.

    Args:
        measure: -> all of it.
    """

    def __init__(self, measure: Callable[[], dict]) -> None:
        self._measure = measure

    @cached_property
    def told(self) -> dict:
        """All of it."""
        return self._measure()

    def __getitem__(self, name: str) -> object:
        return self.told[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.told)

    def __len__(self) -> int:
        return len(self.told)

    def __or__(self, other: Mapping) -> dict:
        return self.told | dict(other)

    def __ror__(self, other: Mapping) -> dict:
        return dict(other) | self.told

    def __repr__(self) -> str:
        return repr(self.told)


MEASUREMENTS = {"margin": margin, "logit": logit}  # the higher, the better; of losses and functions the lower


def network_of(
    module: nn.Module,
    loss: Loss | Callable[[Tensor, Tensor], Tensor],
    train: Examples,
    test: Examples,
    *,
    weight_decay: float = 0.0,
    decayed: str | Sequence[str] = "all",
    parameters: str | Sequence[str] = "all",
    measurement: str | Callable[[Tensor, Tensor], Tensor] = "loss",
    damping: float = 0.01,
    schedule: Schedule | None = None,
    seed: int = 0,
    chunk: int = 50,
    device: str = "auto",
) -> Network:
    """A module that was trained elsewhere, as it is, for the calls of the notebooks.

    J = mean loss + (weight_decay / 2) ||theta||^2. Training examples of a Dataset or DataLoader are streamed, by their
    index in the dataset; K-FAC and Gram solvers hold all of them.

    Args:
        module: trained, in evaluation mode, in float32 or float64; a copy is taken.
        loss: of one example: one of `objectives.losses`, or a function (outputs, targets) -> (n,).
        train, test: (x, y) tensors of n and m examples, a Dataset of pairs, or a DataLoader over one.
        weight_decay: as in torch.optim's SGD, on the parameters that `decayed` names: `all`, `weights` (of two
            dimensions or more), or names.
        parameters: with respect to which: `all`, `last` (of the last layer), or names or beginnings of names.
        measurement: on test examples: `loss`, `margin`, `logit`, or a function (outputs, targets) -> (m,), the lower
            the better.
        damping: added to the curvature.
        schedule: how it is trained on without examples (`warm_minibatch`); its optimiser begins without a memory.
        seed: of the network, as the results tell it, and of solvers that draw.
        chunk: examples whose activations are held at once.
        device: auto, cpu or cuda.

    Raises:
        InputError: what cannot be taken, by its name, with a remedy; before anything expensive.
    """
    loss = as_loss(loss)
    check_count("chunk", chunk)
    if not callable(measurement):
        check_name("measurement", measurement, ("loss", *MEASUREMENTS))
    check_module(module)
    module = deepcopy(module).to(resolve_device(device))
    x = first_of(train, next(module.parameters(), torch.zeros(())))
    model = model_of(module, 1, parameters, decayed)
    outputs = outputs_of(module, x)
    model.n_classes = outputs.shape[-1]
    objective = objective_of(model, train, weight_decay, chunk, loss)
    measured = objective_of(model, test, 0.0, chunk, loss, streamed=False)
    y, classes = measured.data.y, model.n_classes
    if measurement in MEASUREMENTS and not (classes > 1 and y.ndim == 2 and bool(((y >= 0) & (y < classes)).all())):
        raise bad_input("measurement", measurement, "is of examples with one label of several classes; give a function")
    if measurement != "loss":
        measured = measured.like(measured.data, loss=as_loss(MEASUREMENTS.get(measurement, measurement)))
    loss.values(outputs, objective.examples(np.arange(len(outputs))).y[0])  # what is no loss is refused here
    certificate = Certificate(partial(_certificate, objective, measured, damping))
    network = Network(model.theta, objective, measured, damping, seed, certificate=certificate)
    return network if schedule is None else trained_on(network, schedule)


def _certificate(train: Objective, test: Objective, damping: float) -> dict:
    return of_objectives(train, test, damping).certificate


def trained_on(network: Network, schedule: Schedule) -> Network:
    """The same with a way of going on by minibatches, whose optimiser begins without a memory.

    Raises:
        InputError: weight decay on other parameters than those of two dimensions or more, which is what training here
            decays.
    """
    train, module = network.train, network.train.model.bare()
    of_weights = ModuleModel(module, train.model.n_classes).is_weight
    if train.weight_decay and not torch.equal(train.model.is_weight, of_weights):
        raise bad_input("decayed", "not the weights", "give decayed='weights', or your own fit in the schedule's place")
    start = Trained(module, make_optimiser(module, schedule, train.weight_decay), 0, 0.0)
    data = train.data.x[0], train.data.y[0]
    trainer = ModuleTrainer(start, data, train.weight_decay, module, loss=train.loss)
    return replace(network, trainer=trainer, schedule=schedule)
