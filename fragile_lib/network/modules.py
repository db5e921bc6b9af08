"""One torch.nn.Module: trained by minibatches, its batch statistics frozen, its certificate in hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fragile_lib.data.sets import Data
from fragile_lib.minimise.descent import accuracy
from fragile_lib.minimise.modules import ModuleTrainer, train
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.models.architectures import check_batch, frozen_statistics
from fragile_lib.models.module import ModuleModel
from fragile_lib.network.base import Network
from fragile_lib.objectives.base import Objective, resolve_device

POWER_STEPS = 8
MANY, SOME = 20_000, 5_000  # of more images than MANY the curvature's size is measured on SOME


def prepare(
    module: nn.Module,
    n_classes: int,
    train_data: Data,
    test_data: Data,
    weight_decay: float,
    damping: float,
    schedule: Schedule,
    norm: str,
    chunk: int = 50,
    device: str = "auto",
    precision: str = "auto",
) -> Network:
    """Train the module, freeze its batch statistics on the training set, and measure how far training came.

    Training uses the statistics of each batch; afterwards every example's loss depends on that example alone, in
    estimates and in retraining alike. The certificate holds ||grad J|| there and at the start of training, both with
    statistics frozen, the largest eigenvalue of the Gauss-Newton matrix by power iteration, and where it is retrained
    by another way than the loop, how (`ModuleTrainer.told`). Without weight decay a
    network that has every training label right has no optimum: `separable`; else `not_certified`.
    """
    device = resolve_device(device)
    check_batch(norm, schedule.batch)
    train_data, test_data = (_placed(data, device) for data in (train_data, test_data))
    x, y = train_data.x[0], train_data.y[0]
    module = module.to(device=device, memory_format=torch.channels_last)
    trained = train(module, x, y, schedule, weight_decay)
    frozen, at_start = (frozen_statistics(one, x, schedule.batch) for one in (trained.module, module))
    how = n_classes, train_data, test_data, weight_decay, damping, chunk, device
    network, start = as_it_is(frozen, *how), as_it_is(at_start, *how)
    theta, objective = network.theta[None], network.train
    train_accuracy, test_accuracy = (float(accuracy(one, theta)[0]) for one in (objective, network.test))
    certificate = {
        "seed": schedule.seed,
        "fit": "trained",
        "status": "separable" if weight_decay == 0 and train_accuracy == 1 else "not_certified",
        "grad_norm": network.certificate["grad_norm"],
        "grad_norm_start": start.certificate["grad_norm"],
        "steps": schedule.steps,
        "objective": float(objective.value(theta, objective.uniform(1))),
        "train_accuracy": train_accuracy,
        "test_accuracy": test_accuracy,
        "eig_max": _largest_eigenvalue(network),
    }
    trainer = ModuleTrainer(replace(trained, module=frozen), (x, y), weight_decay, module, precision=precision)
    certificate |= trainer.told(schedule.continued(0, schedule.seed))
    told = {"seed": schedule.seed, "certificate": certificate, "seconds": {"train": trained.seconds}}
    return replace(network, trainer=trainer, schedule=schedule, **told)


def as_it_is(
    module: nn.Module,
    n_classes: int,
    train_data: Data,
    test_data: Data,
    weight_decay: float,
    damping: float,
    chunk: int,
    device: str,
) -> Network:
    """A module of images (n, C, H, W) in evaluation mode, with the plain cross entropy; no way of training it on."""
    device = resolve_device(device)
    objective = Objective(ModuleModel(module.to(device), n_classes), train_data, weight_decay, chunk=chunk)
    return of_objectives(objective, objective.on(test_data), damping)


def of_objectives(train: Objective, test: Objective, damping: float) -> Network:
    """The network that an objective's model holds, its certificate ||grad J|| there."""
    theta, weights = train.model.theta, train.uniform(1)
    certificate = {"status": "not_certified", "grad_norm": float(train.gradient(theta[None], weights).norm())}
    return Network(theta, train, test, damping, certificate=certificate)


def _placed(data: Data, device: str) -> Data:
    """The same images with channels last, which convolutions on CPUs and GPUs alike are fastest with."""
    x = data.x[0].to(device=device, memory_format=torch.channels_last)
    return Data(x[None], data.y.to(device))


def _largest_eigenvalue(network: Network) -> float:
    """Of the Gauss-Newton matrix with L2, from below: `POWER_STEPS` of power iteration."""
    train = network.train
    if train.n > MANY:
        some = Data(train.data.x[:, :SOME], train.data.y[:, :SOME])
        train = train.like(some)
    theta, weights = network.theta[None], train.uniform(1)
    v = torch.from_numpy(np.random.default_rng(0).standard_normal(theta.shape[1])).to(theta)[None]
    for _ in range(POWER_STEPS):
        v = train.products(theta, (v / v.norm())[None], weights, gauss_newton=True)[0]
    return float(v.norm())
