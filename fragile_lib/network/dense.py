"""Small MNIST: one network of some thousand parameters, trained as Koh and Liang do, driven on, its curvature dense."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from fragile_lib.data.sets import Data
from fragile_lib.minimise import kept
from fragile_lib.minimise.descent import FLAT, accuracy
from fragile_lib.minimise.kept import Made
from fragile_lib.minimise.near_optimum import approach
from fragile_lib.minimise.quasi_newton import minimum
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.minimise.stack import StackTrainer, train
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.network.base import Network
from fragile_lib.objectives.base import Objective, resolve_device
from fragile_lib.objectives.conv import ConvObjective
from fragile_lib.tools.errors import InputError

RELATIVE = 1e-6  # ||grad J|| of a certified optimum, as a share of that at the start of training


def cnn_objective(model: SmallCNN, data: Data, weight_decay: float, device: str = "auto") -> Objective:
    """The fastest objective of a convolutional network on this device."""
    device = resolve_device(device)
    return (ConvObjective if device == "cpu" else Objective)(model, data, weight_decay, device)


def prepare(
    model: SmallCNN,
    train_data: Data,
    test_data: Data,
    weight_decay: float,
    damping: float,
    schedule: Schedule,
    rounds: int,
    minimum_rounds: int = 0,
    checkpoints: int = 5,
    device: str = "auto",
    networks: Path | str = "",
) -> Network:
    """Train a network from init(schedule.seed), drive it on towards its optimum, and compute its Hessian.

    Minibatches in float32 as `schedule` says; then `rounds` rounds of whitened L-BFGS in float32
    (`near_optimum.approach`) and `minimum_rounds` of BFGS with a dense inverse (`quasi_newton.minimum`). The optimum is
    certified (`ok`) where ||grad J|| is at most `RELATIVE` times that at the start and no eigenvalue of the Hessian is
    below -`FLAT`; else the outcome is `not_certified`, or `separable` without weight decay, and the network is where
    the descent stopped.

    networks: a folder in which a network with `minimum_rounds`, dear as it is, is looked for and kept (`kept`); empty:
    it is always computed. The certificate is computed for a kept network as for any other.

    Raises:
        InputError: a folder that cannot be written to, or a kept network that cannot be read.
    """
    torch.backends.cudnn.allow_tf32 = False  # TF32 leaves the Hessian off by 1e-3, too much for a left-out minimum
    single_data = Data(train_data.x.float(), train_data.y)
    objective = cnn_objective(model, train_data, weight_decay, device)
    single = cnn_objective(model, single_data, weight_decay, device)
    start, laps = model.init(schedule.seed).to(objective.device), {"": perf_counter()}
    tolerance = RELATIVE * float(objective.gradient(start[None], objective.uniform(1)).norm())
    further = {"rounds": rounds, "minimum_rounds": minimum_rounds, "checkpoints": checkpoints}
    made_with = kept.settings(model, train_data, weight_decay, schedule, **further)
    stored = networks and minimum_rounds > 0
    made = kept.load(networks, made_with) if stored else None
    if made is None:
        if stored:
            kept.check_folder(networks)
        places = np.unique(np.linspace(0, schedule.steps, checkpoints + 1).astype(int)[1:]).tolist()
        trained = train(single, start[None].float(), single.uniform(1), schedule, checkpoints=places)
        laps["minibatch"] = perf_counter()
        reached = approach(single, trained.theta[0].double(), tolerance, rounds)
        if minimum_rounds:
            lowest = minimum(objective, reached.theta, tolerance, single, rounds=minimum_rounds)
            reached = replace(lowest, passes=reached.passes + lowest.passes)
        laps["optimum"] = perf_counter()
        made = Made(reached.theta, trained.checkpoints[:, 0].double(), trained.rates, reached.passes)
        if stored:
            try:
                kept.keep(networks, made_with, made)
            except InputError as error:  # a disk that filled up meanwhile must not take the network with it
                warnings.warn(f"the network is not kept: {error}", stacklevel=2)
    theta = made.theta.to(objective.device)
    network = Network(
        theta,
        objective,
        objective.on(test_data),
        damping,
        schedule.seed,
        single=single,
        trainer=StackTrainer(single, theta),
        schedule=schedule,
        checkpoints=made.checkpoints.to(objective.device),
        rates=made.rates,
    )
    certificate = _certificate(network, tolerance, made.passes)
    laps["hessian"] = perf_counter()
    seconds = dict(zip(list(laps)[1:], np.diff(list(laps.values())).tolist(), strict=True))
    certified = replace(network, fit=certificate["fit"], certificate=certificate, seconds=seconds)
    certified.__dict__["hessian"] = network.hessian  # the same network: its curvature is not computed again
    return certified


def _certificate(network: Network, tolerance: float, passes: int) -> dict:
    objective, theta, weights = network.train, network.theta[None], network.train.uniform(1)
    norm, share = float(objective.gradient(theta, weights).norm()), float(accuracy(objective, theta)[0])
    low, high = network.hessian.lowest(), float(network.hessian.spectrum[-1])
    status = "ok" if norm <= tolerance and low >= -FLAT else "not_certified"
    if objective.weight_decay == 0 and share == 1:
        status = "separable"
    return {
        "seed": network.seed,
        "fit": "certified" if status == "ok" else "finished",
        "status": status,
        "grad_norm": norm,
        "tolerance": tolerance,
        "steps": passes,
        "objective": float(objective.value(theta, weights)),
        "train_accuracy": share,
        "eig_min": low,
        "eig_max": high,
    }
