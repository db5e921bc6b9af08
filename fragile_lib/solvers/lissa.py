"""The stochastic recursion (LiSSA)."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.base import Solution, check_damping, relative
from fragile_lib.solvers.spectrum import example_curvature_bound
from fragile_lib.tools.errors import bad_input


class LissaSolver:
    """Stochastic recursion of Agarwal, Bullins and Hazan (2016), as Koh and Liang (2017) use it.

    h <- v + h - (H_t + L2 + damping I) h / scale, `depth` times, H_t the mean Hessian of `batch` randomly drawn
    examples; x = h / scale, averaged over `repeats`. Its fixed point in the mean is (H + damping I)^-1 v: the scale
    divides the damping too, so that it changes the speed and not the answer. Default scale: the largest curvature of
    any single example, plus L2 and damping, which makes every factor a contraction where the examples' Hessians are
    positive. A recursion that overflows ends early, with the outcome `solver_diverged`.
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
    ) -> None:
        check_damping(damping)
        if depth < 1 or repeats < 1:
            raise bad_input("lissa_depth, lissa_repeats", (depth, repeats), "give whole numbers of at least 1")
        if not 1 <= batch <= objective.n:
            raise bad_input("batch", batch, f"give a whole number from 1 to the {objective.n} training examples")
        if scale is not None and not (np.isfinite(scale) and scale > 0):
            raise bad_input("scale", scale, "give a finite number above 0, or leave it out")
        self.objective, self.theta, self.damping, self.dataset = objective, theta, damping, torch.tensor([dataset])
        self.repeats, self.seed = repeats, seed
        self.shape = (depth,) if batch == 1 else (depth, batch)
        if scale is None:
            scale = example_curvature_bound(objective, theta, dataset) + objective.weight_decay + damping
        self.scale = scale

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        began = perf_counter()
        rng = np.random.default_rng([self.seed, 2])
        runs = [
            self.objective.stochastic_recursion(
                self.theta, v, rng.integers(self.objective.n, size=self.shape), self.dataset, self.damping, self.scale
            )
            for _ in range(self.repeats)
        ]
        x = torch.stack(runs).mean(0)
        if not torch.isfinite(x).all() or x.abs().max() > 1e100:
            nowhere = torch.full_like(v, torch.nan)
            return Solution(nowhere, nowhere[:, 0], perf_counter() - began, "solver_diverged")
        curved = self.objective.products(self.theta[None], x[None], self.objective.uniform(1), self.dataset)[0]
        products = len(v) * (1 + self.repeats * np.prod(self.shape) / self.objective.n)
        return Solution(x, relative(curved + self.damping * x - v, v), perf_counter() - began, "ok", float(products))
