"""The stochastic recursion (LiSSA) for large networks: minibatches of a fixed partition, and a scale that fits them."""

from __future__ import annotations

import warnings
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.objectives.streamed import StreamedObjective, gauss_newton_product, hessian_product
from fragile_lib.solvers.base import Solution, check_damping, relative
from fragile_lib.solvers.operator import check_count, nowhere
from fragile_lib.tools.errors import bad_input

POWER_STEPS = 5  # of each minibatch's power iteration
MARGIN = 1.5  # on the largest eigenvalue that so few steps find
GROWTH = 2.0  # a recursion that is this many times larger than contractions can make it has diverged


class DivergedWarning(UserWarning):
    """A recursion was ended because it grew; the text names the scale to use."""


class BatchLissaSolver:
    """h <- v + h - (H_t + L2 + damping I) h / scale, `depth` times; x = h / scale, averaged over `repeats`.

    Agarwal, Bullins and Hazan (2016), as Koh and Liang (2017) use it on deep networks; H_t is the Hessian of one
    minibatch. The scale divides the damping too, so that the fixed point in the mean is (H + damping I)^-1 v whatever
    the scale.

    Few examples carry most of a trained network's curvature, so that the mean curvature says little about a
    minibatch's, and a scale made from it lets the recursion grow wherever such an example is drawn. So the minibatches
    are those of one partition of the examples, taken in random order, and the default scale is `MARGIN` times the
    largest Gauss-Newton eigenvalue of any of them, found by power iteration, plus damping and L2.

    While every factor I - (H_t + ...) / scale contracts, |h| after t steps is at most (t + 1) |v|. A recursion beyond
    `GROWTH` times that is ended at once with the outcome `solver_diverged` and a `DivergedWarning` that names a scale.
    Where a minibatch's Hessian has curvature below minus the damping a larger scale only slows the growth.

    Args:
        objective: J on the training data.
        theta: one network (P,).
        damping: added to the curvature's diagonal.
        depth: steps.
        batch: examples in each.
        repeats: recursions, in other orders, that are averaged.
        seed: of partition and order.
        scale: see above.

    Raises:
        InputError: a bad damping, count or scale, or a batch larger than the data.
    """

    def __init__(
        self,
        objective: StreamedObjective,
        theta: Tensor,
        damping: float,
        depth: int = 100,
        batch: int = 10,
        repeats: int = 1,
        seed: int = 0,
        scale: float | None = None,
    ) -> None:
        check_damping(damping)
        for name, value in (("lissa_depth", depth), ("lissa_batch", batch), ("lissa_repeats", repeats)):
            check_count(name, value)
        if batch > objective.n:
            raise bad_input("lissa_batch", batch, f"give at most the {objective.n} training examples")
        if scale is not None and not (np.isfinite(scale) and scale > 0):
            raise bad_input("lissa_scale", scale, "give a finite number above 0, or leave it out")
        self.objective, self.theta, self.damping = objective, theta, damping
        self.depth, self.repeats, self.rng = depth, repeats, np.random.default_rng([seed, 2])
        rows = self.rng.permutation(objective.n)
        self.parts = list(rows[: len(rows) - len(rows) % batch].reshape(-1, batch))
        began = perf_counter()
        self.products = 0.0
        self.scale = self._fitting_scale() if scale is None else scale
        self.seconds = perf_counter() - began

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        began, spent = perf_counter(), self.products
        runs = [self._recursion(v) for _ in range(self.repeats)]
        spent += len(v) * self.repeats * self.depth * len(self.parts[0]) / self.objective.n
        seconds = self.seconds + perf_counter() - began
        if any(run is None for run in runs):
            return Solution(*nowhere(v), seconds, "solver_diverged", spent)
        x = torch.stack(runs).mean(0)
        weights = self.objective.uniform(1)
        curved = self.objective.products(self.theta[None], x[None], weights)[0]
        return Solution(x, relative(curved + self.damping * x - v, v), seconds, "ok", spent)

    def _recursion(self, v: Tensor) -> Tensor | None:
        """x (K, P), or None where it grew."""
        decay = self.objective.decay + self.damping
        size, h, order = v.norm(dim=1), v, []
        for step in range(1, self.depth + 1):
            order = order or self.rng.permutation(len(self.parts)).tolist()
            h = v + h - (self._curved(h, self.parts[order.pop()], gauss_newton=False) + decay * h) / self.scale
            if not bool((h.norm(dim=1) <= GROWTH * (step + 1) * size).all()):
                better = max(self._fitting_scale(), 2 * self.scale)
                text = f"LiSSA diverged after {step} of {self.depth} steps at lissa_scale = {self.scale:.3g}"
                text += f"; give {better:.3g} or leave it out, or raise the damping above the most negative curvature"
                warnings.warn(text, DivergedWarning, stacklevel=3)
                return None
        return h / self.scale

    def _curved(self, v: Tensor, rows: np.ndarray, gauss_newton: bool) -> Tensor:
        """The mean Hessian of some examples, or its Gauss-Newton part, times each v (K, P), without L2."""
        j = self.objective
        x, y = j.data.x[0, rows], j.data.y[0, rows]
        mean = torch.full_like(y, 1 / len(rows), dtype=v.dtype)
        product = gauss_newton_product if gauss_newton else hessian_product
        return torch.cat([product(j.model, self.theta, u, mean, x, y) for u in v.split(j.vectors)])

    def _fitting_scale(self) -> float:
        start = np.random.default_rng(0).standard_normal(len(self.theta))
        largest = 0.0
        for rows in self.parts:
            v = torch.from_numpy(start).to(self.theta)[None]
            for _ in range(POWER_STEPS):
                v = self._curved(v / v.norm(), rows, gauss_newton=True)
            largest = max(largest, float(v.norm()))
            self.products += POWER_STEPS * len(rows) / self.objective.n
        return MARGIN * largest + self.objective.weight_decay + self.damping
