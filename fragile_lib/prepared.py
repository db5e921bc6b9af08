"""One network made ready for examination: trained as Koh and Liang do, driven on, its curvature in hand.

`estimators` then gives its influence estimates by any solver, `truths` what really happens when examples are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.conv import SmallCNN
from fragile_lib.conv_objective import ConvObjective
from fragile_lib.data import Data
from fragile_lib.examination import Points
from fragile_lib.minibatch import Protocol, train
from fragile_lib.objective import Objective, resolve_device
from fragile_lib.optimum import approach, finish_one
from fragile_lib.solvers.dense import DenseSolver
from fragile_lib.training import FLAT, accuracy

RELATIVE = 1e-6  # ||grad J|| of a certified optimum, as a share of that at the start of training


@dataclass(frozen=True)
class Prepared:
    """A network theta (P,) with its objectives, the direct solvers of both curvatures, and its certificate.

    train, test: J in float64; single: J on the training data in float32. checkpoints (T, P) with rates (T,) are those
    of minibatch training. seconds: of the parts of its making.
    """

    seed: int
    train: Objective
    single: Objective
    test: Objective
    theta: Tensor
    checkpoints: Tensor
    rates: Tensor
    damping: float
    hessian: DenseSolver
    gauss_newton: DenseSolver
    certificate: dict
    seconds: dict

    @property
    def certified(self) -> bool:
        """Whether theta is an optimum by the certificate."""
        return self.certificate["status"] == "ok"

    @property
    def fit(self) -> str:
        """What the results table calls this network: `certified`, or `finished` where no optimum was reached."""
        return "certified" if self.certified else "finished"

    def on_points(self, points: Points) -> Objective:
        """The losses of the examined test points alone."""
        data, index = self.test.data, torch.from_numpy(points.index)
        return self.test.on(Data(data.x[:, index], data.y[:, index]))


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
    protocol: Protocol,
    rounds: int,
    newton_rounds: int = 0,
    checkpoints: int = 5,
    device: str = "auto",
) -> Prepared:
    """Train a network from init(protocol.seed), drive it on towards its optimum, and compute its curvatures.

    Minibatches in float32 as `protocol` says; then `rounds` rounds of whitened L-BFGS in float32 and `newton_rounds`
    of Newton-CG in float64 (`optimum.approach`, `optimum.finish_one`). The optimum is certified (`ok`) where ||grad J||
    is at most `RELATIVE` times that at the start and no eigenvalue of the Hessian is below -`FLAT`; else the outcome is
    `not_certified`, or `separable` without weight decay, and the network is where the descent stopped.
    """
    single_data = Data(train_data.x.float(), train_data.y)
    objective = cnn_objective(model, train_data, weight_decay, device)
    single = cnn_objective(model, single_data, weight_decay, device)
    start, clock = model.init(protocol.seed).to(objective.device), _Clock()
    tolerance = RELATIVE * float(objective.gradient(start[None], objective.uniform(1)).norm())
    places = np.unique(np.linspace(0, protocol.steps, checkpoints + 1).astype(int)[1:]).tolist()
    trained = train(single, start[None].float(), single.uniform(1), protocol, checkpoints=places)
    clock.lap("minibatch")
    reached = approach(single, trained.theta[0].double(), tolerance, rounds)
    passes = reached.passes
    if newton_rounds:
        reached = finish_one(objective, reached.theta, tolerance, rounds=newton_rounds)
        passes += reached.passes
    clock.lap("optimum")
    theta = reached.theta
    hessian = DenseSolver(objective, theta, damping, single=single)
    clock.lap("hessian")
    ggn = DenseSolver(objective, theta, damping, gauss_newton=True, single=single)
    clock.lap("gauss_newton")
    certificate = {"seed": protocol.seed} | _certificate(objective, theta, tolerance, hessian, passes)
    kept = trained.checkpoints[:, 0].double(), trained.rates
    test = objective.on(test_data)
    return Prepared(
        protocol.seed, objective, single, test, theta, *kept, damping, hessian, ggn, certificate, clock.seconds
    )


class _Clock:
    """Seconds from lap to lap, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = perf_counter()

    def lap(self, name: str) -> None:
        now = perf_counter()
        self.seconds[name], self._began = now - self._began, now


def _certificate(objective: Objective, theta: Tensor, tolerance: float, hessian: DenseSolver, passes: int) -> dict:
    weights = objective.uniform(1)
    norm, share = float(objective.gradient(theta[None], weights).norm()), float(accuracy(objective, theta[None])[0])
    low, high = hessian.lowest(), float(hessian.spectrum[-1])
    status = "ok" if norm <= tolerance and low >= -FLAT else "not_certified"
    if objective.weight_decay == 0 and share == 1:
        status = "separable"
    return {
        "fit": "certified" if status == "ok" else "finished",
        "status": status,
        "grad_norm": norm,
        "tolerance": tolerance,
        "steps": passes,
        "objective": float(objective.value(theta[None], weights)),
        "train_accuracy": share,
        "eig_min": low,
        "eig_max": high,
    }
