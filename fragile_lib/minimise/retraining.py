"""Ground truths: the loss change after really minimising J(.; w + d), with a control in which nothing is removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from fragile_lib.objectives.base import Objective

# (theta (E, P), weights (E, n), dataset (E,)) -> theta (E, P), or (theta, ||grad J|| (E,), steps (E,))
Minimise = Callable[..., Tensor | tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Retrained:
    """For each of S fits: the networks (k_s, P) after each removal, the control (S, P), and ||grad J|| of each."""

    theta: list[Tensor]
    control: Tensor
    grad_norm: list[Tensor]
    seconds: float


def retrain(train: Objective, start: Tensor, removals: list[Tensor], minimise: Minimise) -> Retrained:
    """Minimise J(.; 1/n + d) from start (S, P) for every removal d of removals[s] (k_s, n), all in one stack.

    The first member of each fit's stack is its control, d = 0: it tells what mere continuation does.
    """
    began = perf_counter()
    sizes = [1 + len(d) for d in removals]
    dataset = torch.repeat_interleave(torch.arange(len(start)), torch.tensor(sizes)).to(start.device)
    changes = torch.cat([torch.cat([torch.zeros(1, train.n), d.cpu()]) for d in removals]).to(start)
    weights = train.uniform(len(dataset)) + changes
    found = minimise(start[dataset], weights, dataset=dataset)
    theta = found[0] if isinstance(found, tuple) else found
    norms = train.gradient(theta, weights, dataset).norm(dim=1)
    parts, norm_parts = theta.split(sizes), norms.split(sizes)
    return Retrained(
        [part[1:] for part in parts],
        torch.stack([part[0] for part in parts]),
        [part[1:] for part in norm_parts],
        perf_counter() - began,
    )


def loss_changes(test: Objective, after: Tensor, before: Tensor, points: Tensor, dataset: int) -> Tensor:
    """Loss after minus loss before on the test points (m,): (k, m) for after (k, P) and before (P,)."""
    place = torch.tensor([dataset])
    lost = test.losses(after, place.expand(len(after)))[:, points]
    return lost - test.losses(before[None], place)[:, points]
