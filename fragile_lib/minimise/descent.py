"""Minimise J for a stack of (theta_0, w), and certify what was reached.

`descend` is the paper's protocol: full-batch gradient descent for a stated number of steps. It serves training, seeds,
leave-one-out and controls alike, since all of these differ only in (theta_0, w). So does `newton.newton`, which
drives a stack on to points whose gradient vanishes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.spectrum import extreme_eigenvalues
from fragile_lib.tools.checks import check_count, check_number
from fragile_lib.tools.numerics import flushed_denormals
from fragile_lib.tools.progress import progress

STATIONARY = 1e-8  # ||grad J|| of a certified stationary point; starts have about 1
FLAT = 1e-6  # a Hessian eigenvalue above -FLAT counts as not negative; the usual damping is a thousand times this
PROGRESS_CHUNKS = 20


@dataclass(frozen=True)
class Certificate:
    """What is known of one fit: outcome, gradient norm ||grad J||, steps, objective, accuracy, Hessian extremes, kinks.

    status is `ok`; `diverged`: not finite; `constant`: all training examples get the same logits;
    `separable`: no decay and every example on its right side, so that J has no minimiser; `not_certified`: `newton`
    stopped above `STATIONARY`, or at a point where the Hessian has an eigenvalue below -`FLAT`.
    """

    status: str
    grad_norm: float
    steps: int
    loss: float
    objective: float
    train_accuracy: float
    eig_min: float
    eig_max: float
    kinks: int


def descend(
    objective: Objective,
    theta: Tensor,
    weights: Tensor,
    steps: int,
    learning_rate: float,
    momentum: float,
    dataset: Tensor | None = None,
    label: str = "descent",
) -> Tensor:
    """Gradient descent with heavy-ball momentum on J(.; w_e) from theta (E, P); returns theta (E, P).

    velocity <- momentum velocity + grad J;  theta <- theta - learning_rate velocity  (torch.optim.SGD's form).

    Raises:
        InputError: negative steps, a learning rate that is not positive, or a momentum outside [0, 1).
    """
    check_count("steps", steps, least=0)
    check_number("learning_rate", learning_rate, above=0)
    check_number("momentum", momentum, below=1)
    dataset, velocity = objective.members(theta, dataset), torch.zeros_like(theta)
    with flushed_denormals(), progress(total=steps, desc=label) as bar:
        for chunk in np.diff(np.linspace(0, steps, PROGRESS_CHUNKS + 1).astype(int)):
            if chunk:
                theta, velocity = objective.descend(
                    theta, velocity, weights, dataset, learning_rate, momentum, int(chunk)
                )
                bar.update(int(chunk))
                bar.set_postfix(J=f"{objective.value(theta, weights, dataset).mean():.4g}")
    return theta


def separable(objective: Objective, theta: Tensor, dataset: Tensor | None = None) -> Tensor:
    """(E,) whether J has no minimiser along the ray of growing logits: no weight decay, all examples classified."""
    if objective.weight_decay > 0:
        return torch.zeros(len(theta), dtype=torch.bool, device=theta.device)
    return accuracy(objective, theta, dataset) == 1


def accuracy(objective: Objective, theta: Tensor, dataset: Tensor | None = None) -> Tensor:
    """(E,) share of examples whose largest logit is their label's."""
    labels = objective.data.y[objective.members(theta, dataset)]
    return (objective.logits(theta, dataset).argmax(2) == labels).double().mean(1)


def certify(objective: Objective, theta: Tensor, steps: Tensor | int, finished: bool) -> list[Certificate]:
    """A certificate for each network theta (E, P) under the default weights; `finished`: it must be stationary."""
    weights = objective.uniform(len(theta))
    steps = torch.as_tensor(steps).expand(len(theta))
    columns = {
        "grad_norm": objective.gradient(theta, weights).norm(dim=1),
        "steps": steps,
        "loss": objective.losses(theta).mean(1),
        "objective": objective.value(theta, weights),
        "train_accuracy": accuracy(objective, theta),
        "kinks": kinks(objective, theta),
    }
    spread = objective.logits(theta).std(1).amax(1)
    unbounded = separable(objective, theta)
    certificates = []
    for e in range(len(theta)):  # one dense Hessian at a time
        facts = {name: column[e].item() for name, column in columns.items()}
        finite = bool(torch.isfinite(theta[e]).all())
        hessian = objective.matrices(theta[e : e + 1], weights[:1], torch.tensor([e]))[0]
        facts["eig_min"], facts["eig_max"] = extreme_eigenvalues(hessian)
        certificates.append(
            Certificate(_outcome(facts, finite, spread[e].item(), bool(unbounded[e]), finished), **facts)
        )
    return certificates


def _outcome(facts: dict, finite: bool, spread: float, unbounded: bool, finished: bool) -> str:
    if not finite or not np.isfinite(facts["loss"]):
        return "diverged"
    if spread < 1e-8:
        return "constant"
    if finished and unbounded:
        return "separable"
    if finished and not (facts["grad_norm"] <= STATIONARY and facts["eig_min"] >= -FLAT):
        return "not_certified"
    return "ok"


def kinks(objective: Objective, theta: Tensor, near: float = 1e-5) -> Tensor:
    """(S,) pairs of a training example and a live ReLU unit whose pre-activation lies within `near` of zero."""
    if objective.model.activation != "relu":
        return torch.zeros(len(theta), dtype=torch.long)
    place = objective.members(theta)
    found = [objective.model.preactivations(theta[s], objective.data.x[place[s]]) for s in range(len(theta))]
    live = [z[:, (z > 0).any(0)] for z in found]
    return torch.tensor([int((z.abs() < near).sum()) for z in live])
