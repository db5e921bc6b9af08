"""`Network`: parameters, objectives, certificate. Everything that estimates and truths are asked of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fragile_lib.choices import Points, rows_of
from fragile_lib.data.sets import Data
from fragile_lib.minimise.schedule import Continued, Schedule, State
from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.dense import DenseSolver, ExactSolver

NUDGE = 1e-6  # damping of what is undamped: a common shift of the output biases has no curvature at all
# Facts of a certificate that every row of the results carries, where they were measured.
SHARED = ("grad_norm", "eig_min", "eig_max", "kinks", "train_accuracy", "test_accuracy", "top1", "top5")


class Trainer(Protocol):
    """How a network is trained on, or anew, without some examples: `minimise.stack`, `.modules`, `.photographs`."""

    def go_on(self, schedule: Schedule, members: Sequence[np.ndarray], test: Objective) -> Continued:
        """Losses on the examples of `test` after going on without each removal's members, and of a control."""
        ...

    def under(self, schedule: Schedule, weights: Tensor) -> Tensor:
        """Networks (K, P) after going on under each of some example weights (K, n); an InputError where it cannot."""
        ...

    def state(self, schedule: Schedule) -> State:
        """What going on begins with; an InputError where its steps cannot be differentiated."""
        ...


@dataclass(frozen=True)
class Network:
    """A network theta (P,) and what is asked of it.

    Args:
        theta: its parameters, in the floating type of its objectives' data.
        train: J on the training data; data set `place` of it is this network's.
        test: the losses of the test data, in the same way.
        damping: added to the curvature in estimates.
        seed: of start, batches and all draws.
        place: which of the objectives' data sets; networks of one stack share their objectives.
        fit: what the results call the end of its training: descent, certified, finished, trained, pretrained.
        certificate: what is known of it, `status` and ||grad J|| first of all.
        usable: whether an influence can be estimated at all (a diverged or constant network has none).
        single: J on the training data in float32; None where `train` is to be used.
        curved: J on the examples that the curvature is a mean over; None for `train`.
        trainer: how it is trained on without examples; schedule: how it was trained.
        checkpoints, rates: networks (T, P) along its training with the learning rates (T,) that followed.
        seconds: of the parts of its making.
    """

    theta: Tensor
    train: Objective
    test: Objective
    damping: float
    seed: int = 0
    place: int = 0
    fit: str = "trained"
    certificate: dict = field(default_factory=dict)
    usable: bool = True
    single: Objective | None = None
    curved: Objective | None = None
    trainer: Trainer | None = None
    schedule: Schedule | None = None
    checkpoints: Tensor | None = None
    rates: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def curvature(self) -> Objective:
        """J on the examples that the curvature is a mean over."""
        return self.train if self.curved is None else self.curved

    @property
    def certified(self) -> bool:
        """Whether theta is a minimum by its certificate."""
        return self.fit == "certified" and self.usable

    @property
    def dataset(self) -> Tensor:
        """(1,) the data set of this network, as objectives take it."""
        return torch.tensor([self.place])

    @property
    def labels(self) -> np.ndarray:
        """Labels (n,) of the training examples."""
        return self.train.data.y[self.place].cpu().numpy()

    @property
    def shared(self) -> dict:
        """What all rows of this network carry."""
        return {"seed": self.seed, "fit": self.fit} | {k: self.certificate[k] for k in SHARED if k in self.certificate}

    @cached_property
    def hessian(self) -> ExactSolver:
        """The direct solver of the damped Hessian, made when it is first asked for."""
        return self._direct(gauss_newton=False)

    @cached_property
    def gauss_newton(self) -> ExactSolver:
        """The same of the Gauss-Newton matrix."""
        return self._direct(gauss_newton=True)

    def _direct(self, gauss_newton: bool) -> ExactSolver:
        common = self.train, self.theta, self.damping, gauss_newton
        return ExactSolver(*common, self.place) if self.single is None else DenseSolver(*common, single=self.single)

    def with_damping(self, damping: float) -> Network:
        """The same network with another damping; dense matrices that are there are taken over."""
        other = replace(self, damping=damping)
        for name in ("hessian", "gauss_newton"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name].with_damping(damping)
        return other

    def alone(self) -> Network:
        """The same network with objectives on its own data set alone."""
        train = self.train
        if len(train.data.y) == 1:
            return self
        return replace(self, train=train.like(self._own(train)), test=self.test.like(self._own(self.test)), place=0)

    def _own(self, objective: Objective, rows: Sequence[int] | slice = slice(None)) -> Data:
        data, some = objective.data, slice(self.place, self.place + 1)
        return Data(data.x[some][:, rows], data.y[some][:, rows])

    def train_losses(self) -> np.ndarray:
        """(n,) of the training examples."""
        return self.train.losses(self.theta[None], self.dataset)[0].cpu().numpy()

    def test_losses(self) -> Tensor:
        """(n_test,) of all test examples."""
        return self.test.losses(self.theta[None], self.dataset)[0]

    def on_points(self, points: Points) -> Objective:
        """The losses of the examined test points alone, in one data set.

        Raises:
            InputError: an index outside the test data.
        """
        return self.test.on(self._own(self.test, rows_of("points", points.index, self.test.n)))

    def members(self, group: Sequence[int], single: bool = False) -> Objective:
        """The losses of some training examples, without L2; in float32 where `single` says so."""
        objective = self.single if single and self.single is not None else self.train
        return objective.on(self._own(objective, list(group)))

    def test_gradients(self, points: Points) -> Tensor:
        """grad f (m, P) of the losses of the examined test points."""
        test = self.on_points(points)
        one_hot = torch.eye(test.n, dtype=self.theta.dtype, device=self.theta.device)
        return test.gradient(self.theta.expand(test.n, -1), one_hot, torch.zeros(test.n, dtype=torch.long))

    def slopes(self, x: Tensor) -> Tensor:
        """x_k . grad loss_i (n, K) of all training examples along directions x (K, P), by forward mode."""
        return self.train.directional(self.theta[None], x[None], self.dataset)[0].T
