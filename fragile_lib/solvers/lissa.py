"""The stochastic recursion (LiSSA): one loop, three ways to draw its examples.

    h <- v + h - (H_t + L2 + damping I) h / scale,    x = h / scale,    averaged over `repeats`

Agarwal, Bullins and Hazan (2016), as Koh and Liang (2017) use it; H_t is the mean Hessian of the examples drawn for
step t. The fixed point in the mean is (H + damping I)^-1 v: the scale divides the damping too, so that it changes the
speed and not the answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.objectives.base import GrownError, Objective
from fragile_lib.solvers.base import DampedCurvature, Solution, nowhere, outcome
from fragile_lib.solvers.spectrum import example_curvature_bound
from fragile_lib.tools.checks import check_count, check_name, check_number

POWER_STEPS = 5  # of each minibatch's power iteration
MARGIN = 1.5  # on the largest eigenvalue that so few steps find
GROWTH = 2.0  # a recursion that is this many times larger than contractions can make it has diverged
OVERFLOWN = 1e100
DRAWS = ("random", "partition")


class DivergedWarning(UserWarning):
    """A recursion was ended because it grew; the text names the scale to use."""


class LissaSolver:
    """The recursion with one of two ways to draw its examples, each with a scale that fits it.

    `random`: each step draws `batch` examples anew, with replacement. Default scale: the largest curvature of any
    single example, plus L2 and damping, which makes every factor a contraction where the examples' Hessians are
    positive. A recursion that overflows ends early, with the outcome `solver_diverged`.

    `partition`, for large networks: the minibatches are those of one partition of the examples, taken in random order.
    Few examples carry most of a trained network's curvature, so that the mean curvature says little about a
    minibatch's, and a scale made from it lets the recursion grow wherever such an example is drawn. So the default
    scale is `MARGIN` times the largest Gauss-Newton eigenvalue of any of them, found by power iteration, plus damping
    and L2. While every factor I - (H_t + ...) / scale contracts, |h| after t steps is at most (t + 1) |v|. A recursion
    beyond `GROWTH` times that is ended at once with the outcome `solver_diverged` and a `DivergedWarning` that names a
    scale. Where a minibatch's Hessian has curvature below minus the damping a larger scale only slows the growth.

    A residual of 1 or more gives the outcome `not_converged`.

    Args:
        objective: J on the training data.
        theta: one network (P,).
        damping: added to the curvature's diagonal.
        depth: steps.
        repeats: recursions, with other draws, that are averaged.
        seed: of the draws.
        scale: see above.
        dataset: which of the objective's data sets the network sees.
        batch: examples in each step.
        draws: `random` or `partition`.

    Raises:
        InputError: a bad damping, count, scale or way to draw, or a batch larger than the data.
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        damping: float,
        depth: int = 10_000,
        repeats: int = 1,
        seed: int = 0,
        scale: float | None = None,
        dataset: int = 0,
        batch: int = 1,
        draws: str = "random",
    ) -> None:
        self.operator = DampedCurvature(objective, theta, damping, dataset=dataset)
        check_count("lissa_depth", depth)
        check_count("lissa_repeats", repeats)
        check_count("lissa_batch", batch, most=objective.n)
        if scale is not None:
            check_number("lissa_scale", scale, above=0, why="or leave it out")
        check_name("draws", draws, DRAWS)
        began = perf_counter()
        self.objective, self.theta = objective, theta
        self.depth, self.repeats, self.seed, self.batch = depth, repeats, seed, batch
        self.parts: list[np.ndarray] = []
        self.products, self.growth = 0.0, None
        if draws == "partition":
            self.rng, self.growth = self._generator(), GROWTH
            rows = self.rng.permutation(objective.n)
            self.parts = list(rows[: len(rows) - len(rows) % batch].reshape(-1, batch))
        self.scale = (self._fitting_scale() or 1.0) if scale is None else scale  # 0: without any curvature
        self.seconds = perf_counter() - began

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        began, objective = perf_counter(), self.objective
        settings = self.operator.place, self.operator.damping, self.scale, self.growth
        each = self.repeats * self.depth * self.batch / objective.n
        products = self.products + len(v) * (each if self.parts else 1 + each)  # random draws count the residual's too
        rng = self.rng if self.parts else self._generator()
        try:
            runs = [
                objective.stochastic_recursion(self.theta, v, self._draws(rng), *settings) for _ in range(self.repeats)
            ]
        except GrownError as grown:
            self._warn(*grown.args)
            return Solution(*nowhere(v), self.seconds + perf_counter() - began, "solver_diverged", products)
        x = torch.stack(runs).mean(0)
        seconds = self.seconds + perf_counter() - began
        if not x.abs().max() <= OVERFLOWN:
            return Solution(*nowhere(v), seconds, "solver_diverged", products)
        residual = self.operator.residual(x, v)
        return outcome(x, residual, seconds, "ok", products)

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, 2])

    def _draws(self, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """The examples of each step of one recursion: (depth,), or (depth, batch)."""
        if self.parts:
            return self._in_random_order(rng)
        return rng.integers(self.objective.n, size=(self.depth,) if self.batch == 1 else (self.depth, self.batch))

    def _in_random_order(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        order: list[int] = []
        for _ in range(self.depth):
            order = order or rng.permutation(len(self.parts)).tolist()
            yield self.parts[order.pop()]

    def _fitting_scale(self) -> float:
        place, others = int(self.operator.place), self.objective.weight_decay + self.operator.damping
        if not self.parts:
            return example_curvature_bound(self.objective, self.theta, place) + others
        start = np.random.default_rng(0).standard_normal(len(self.theta))
        largest = 0.0
        for rows in self.parts:
            v = torch.from_numpy(start).to(self.theta)[None]
            for _ in range(POWER_STEPS):
                v = v / v.norm().clamp(min=torch.finfo(v.dtype).tiny)
                v = self.objective.batch_products(self.theta, v, rows, place, gauss_newton=True)
            largest = max(largest, float(v.norm()))
            self.products += POWER_STEPS * len(rows) / self.objective.n
        return MARGIN * largest + others

    def _warn(self, steps: int) -> None:
        better = max(self._fitting_scale(), 2 * self.scale)
        text = f"LiSSA diverged after {steps} of {self.depth} steps at lissa_scale = {self.scale:.3g}"
        text += f"; give {better:.3g} or leave it out, or raise the damping above the most negative curvature"
        warnings.warn(text, DivergedWarning, stacklevel=3)


lissa_single = partial(LissaSolver, batch=1)
lissa_random = partial(LissaSolver, batch=100)
lissa_partition = partial(LissaSolver, depth=100, batch=10, draws="partition")
