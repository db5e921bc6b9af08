"""Iris: a stack of multilayer perceptrons, one for each seed, by full-batch descent and driven on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from time import perf_counter

import torch
from torch import Tensor

from fragile_lib.data.sets import Data
from fragile_lib.minimise.descent import Certificate, certify, descend
from fragile_lib.minimise.newton import finish
from fragile_lib.models.mlp import MLP
from fragile_lib.network.base import Network
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.fused import make_objective

UNUSABLE = ("diverged", "constant", "separable", "not_certified")  # fits at which no influence is estimated


def descended(
    model: MLP,
    train_data: Data,
    test_data: Data,
    weight_decay: float,
    damping: float,
    seeds: Sequence[int],
    steps: int,
    learning_rate: float,
    momentum: float,
    device: str = "auto",
) -> list[Network]:
    """The paper's fit, `descent`: one network for each seed after a stated number of steps, all trained as one stack.

    Data set s is that of seed s (`data.iris_splits`); the start is the model's own of each seed.
    """
    began = perf_counter()
    train = make_objective(model, train_data, weight_decay, device)
    start = torch.stack([model.init(seed) for seed in seeds]).to(train.device)
    theta = descend(train, start, train.uniform(len(start)), steps, learning_rate, momentum, label="training")
    certificates, seconds = certify(train, theta, steps, finished=False), perf_counter() - began
    test = train.on(test_data)
    return [
        _network("descent", theta[s], train, test, damping, seed, s, certificates[s], seconds)
        for s, seed in enumerate(seeds)
    ]


def driven_on(networks: list[Network]) -> list[Network]:
    """The same networks, `certified`: driven on to stationary points; ReLU is smoothed for it (`newton.finish`).

    A network that is diverged or constant keeps its outcome, and one without a stationary point has that for outcome.
    """
    began, first = perf_counter(), networks[0]
    finished = finish(first.train, torch.stack([network.theta for network in networks]))
    train, theta = finished.objective, finished.theta
    certificates, seconds = certify(train, theta, finished.steps, finished=True), perf_counter() - began
    test, found = train.on(first.test.data), []
    for s, start in enumerate(networks):
        made = _network("certified", theta[s], train, test, start.damping, start.seed, s, certificates[s], seconds)
        kept = {"theta": start.theta, "certificate": start.certificate | {"fit": "certified"}, "usable": False}
        found.append(made if start.usable else replace(made, **kept))
    return found


def _network(
    fit: str,
    theta: Tensor,
    train: Objective,
    test: Objective,
    damping: float,
    seed: int,
    place: int,
    certificate: Certificate,
    seconds: float,
) -> Network:
    told = {"seed": seed, "fit": fit} | asdict(certificate)
    usable = certificate.status not in UNUSABLE
    return Network(theta, train, test, damping, seed, place, fit, told, usable, seconds={"train": seconds})
