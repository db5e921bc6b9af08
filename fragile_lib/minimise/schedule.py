"""How a network is trained by minibatches: steps, batches, optimiser, learning rate, and the order of examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from fragile_lib.tools.checks import check_count, check_number
from fragile_lib.tools.errors import bad_input

OPTIMISERS = ("adam", "sgd", "rmsprop")
NAMED = {"nesterov": {"optimiser": "sgd", "momentum": 0.9, "nesterov": True}}  # optimisers that are others with options
TENTH_AFTER_TWO_THIRDS = ((2 / 3, 0.1),)


@dataclass(frozen=True)
class Schedule:
    """Steps, batch size, learning rate and its drops, optimiser, and the seed of the batches' order.

    drops: (fraction of the steps, factor on the rate from there on), in order; each factor is on the rate at the start.
    The defaults but `steps` are those of Koh and Liang (2017): Adam with 1e-4, a tenth after 110,000 of 500,000 steps
    and a hundredth after 220,000. momentum and nesterov are those of SGD; betas and epsilon those of Adam (Kingma and
    Ba 2015); RMSProp has the defaults of torch.optim, whose arithmetic all three have. Kept networks are found by these
    fields (`kept.settings`).

    Raises:
        InputError: a value outside its range.
    """

    steps: int
    batch: int = 500
    learning_rate: float = 1e-4
    drops: tuple[tuple[float, float], ...] = ((0.22, 0.1), (0.44, 0.01))
    optimiser: str = "adam"
    seed: int = 0
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch", 1), ("seed", 0)):
            check_count(name, getattr(self, name), least=least)
        for name in ("learning_rate", "epsilon"):
            check_number(name, getattr(self, name), above=0)
        starts = [start for start, _ in self.drops]
        if not all(0 <= start <= 1 and isfinite(by) and by > 0 for start, by in self.drops) or starts != sorted(starts):
            raise bad_input("drops", self.drops, "give (fraction of the steps, positive factor) in rising order")
        if self.optimiser not in OPTIMISERS:  # `named` knows more
            raise bad_input("optimiser", self.optimiser, f"choose one of {', '.join((*OPTIMISERS, *NAMED))}")
        for name, value in (("momentum", self.momentum), *(("betas", beta) for beta in self.betas)):
            check_number(name, value, below=1)
        if self.nesterov and not (self.optimiser == "sgd" and self.momentum > 0):
            raise bad_input("nesterov", self.nesterov, "it needs the optimiser sgd with a momentum above 0")

    @classmethod
    def named(cls, optimiser: str, **fields: object) -> Schedule:
        """A schedule by the name of its optimiser: `OPTIMISERS`, or `nesterov`, SGD with Nesterov's momentum of 0.9."""
        return cls(**{"optimiser": optimiser, **NAMED.get(optimiser, {}), **fields})

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        factors = [1.0] + [by for start, by in self.drops if step >= start * self.steps]
        return self.learning_rate * factors[-1]

    def continued(self, steps: int, seed: int) -> Schedule:
        """Going on for some steps at the rate that training ended with, with the batches in another order."""
        return replace(self, steps=steps, learning_rate=self.rate(self.steps), drops=(), seed=seed)

    def share(self, fraction: float) -> int:
        """A share of the steps, at least one.

        Raises:
            InputError: a fraction that is not above 0.
        """
        check_number("retrain_fraction", fraction, above=0, why="a share of the training steps")
        return max(1, round(fraction * self.steps))

    def rows(self, n: int) -> Iterator[np.ndarray]:
        """Rows (batch,) of each step: a new permutation of the n examples each epoch, what is left over dropped.

        Raises:
            InputError: a batch larger than n.
        """
        check_count("batch", self.batch, most=n)
        rng, left = np.random.default_rng([self.seed, 3]), []
        for _ in range(self.steps):
            left = left or list(rng.permutation(n)[: n - n % self.batch].reshape(-1, self.batch))
            yield left.pop(0)

    def first_use(self, n: int, members: list[np.ndarray]) -> np.ndarray:
        """(k,) the step whose batch is the first to hold any of the examples of each removal; `steps` for none."""
        holds = np.zeros((len(members), n), bool)
        for row, group in zip(holds, members, strict=True):
            row[np.asarray(group, dtype=int)] = True
        first = np.full(len(members), self.steps)
        for step, rows in enumerate(self.rows(n)):
            waiting = np.flatnonzero(first == self.steps)
            if not len(waiting):
                break
            first[waiting[holds[np.ix_(waiting, rows)].any(axis=1)]] = step
        return first


@dataclass(frozen=True)
class State:
    """What training goes on from: theta (E, P), the optimiser's memory (E, P) twice, and the steps it has made.

    first: Adam's mean of gradients, or SGD's momentum; second: the mean of their squares.
    """

    theta: Tensor
    first: Tensor
    second: Tensor
    count: int = 0

    @classmethod
    def at(cls, theta: Tensor) -> State:
        """Networks theta (E, P) and an optimiser without a memory."""
        return cls(theta, torch.zeros_like(theta), torch.zeros_like(theta))


@dataclass(frozen=True)
class Continued:
    """Losses (m,) before, of the control (m,) and of each removal (k, m) after retraining, and what it cost.

    images: that went through a training step. unseen (k,): whether no batch contained the removal.
    """

    before: np.ndarray
    control: np.ndarray
    removed: np.ndarray
    images: int
    seconds: float
    unseen: np.ndarray
