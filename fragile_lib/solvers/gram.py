"""The damped Gauss-Newton matrix inverted in the space of examples: exact for large networks on few examples.

With B_i = L_i^T J_i (Lambda_i = L_i L_i^T the curvature of the loss in the outputs) the Gauss-Newton matrix is
G = sum_i B_i^T B_i / n + L2, so that with D = L2 + damping, a diagonal, and B (N, P) all rows together, N = n (C - 1)
for cross entropy and n C else,

    (G + damping I)^-1 v = D^-1 v - D^-1 B^T (n I + B D^-1 B^T)^-1 B D^-1 v        (Woodbury).
"""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.base import Solution, outcome, relative
from fragile_lib.tools.checks import check_number
from fragile_lib.tools.errors import bad_input

LARGEST = 12_000  # rows N: the square of it in float64 and N times P numbers are held
AT_ONCE = 16  # examples whose Jacobians are held at once


class GramSolver:
    """(G + damping I)^-1 v by the Gram matrix of the examples' Gauss-Newton factors.

    Args:
        objective: J on the training data.
        theta: one network (P,).
        damping: above 0.
        dataset: which of the objective's data sets the network sees.

    Raises:
        InputError: a damping that is not above 0, or more than `LARGEST` rows n (C - 1).
    """

    def __init__(self, objective: Objective, theta: Tensor, damping: float, dataset: int = 0) -> None:
        why = "the Gram matrix stands for what the damping leaves of the inverse"
        check_number("damping", damping, above=0, why=why)
        n_rows = objective.n * max(1, objective.model.n_classes - 1)
        if n_rows > LARGEST:
            remedy = f"gram_ggn holds a matrix of n (C - 1) = {n_rows} rows, {LARGEST} at most; take cg_ggn or ekfac"
            raise bad_input("n_train", objective.n, remedy)
        began, self.n = perf_counter(), objective.n
        parts = torch.arange(objective.n).split(AT_ONCE)
        self.factors = torch.cat([factors_of(objective, theta, rows, dataset)[0].flatten(0, 1) for rows in parts])
        self.diagonal = (objective.decay + damping).to(theta)
        gram = ((self.factors / self.diagonal) @ self.factors.T).double()
        gram.diagonal().add_(self.n)
        self.cholesky, failed = torch.linalg.cholesky_ex(gram)
        if failed:  # something is not finite: a Gram matrix plus n is positive
            self.cholesky.fill_(torch.nan)
        self.seconds = perf_counter() - began

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        began, scaled = perf_counter(), v / self.diagonal
        inner = torch.cholesky_solve((self.factors @ scaled.T).double(), self.cholesky).to(v)
        x = scaled - (inner.T @ self.factors) / self.diagonal
        curved = (x @ self.factors.T) @ self.factors / self.n + self.diagonal * x
        residual = relative(curved - v, v)
        return outcome(x, residual, self.seconds + perf_counter() - began, "ok")


def factors_of(objective: Objective, theta: Tensor, rows: Tensor, dataset: int = 0) -> tuple[Tensor, Tensor]:
    """B (k, r, P), c (k, r) of some examples, r = C - 1 for cross entropy: B_i^T B_i is the Gauss-Newton part of loss_i
    and B_i^T c_i its gradient.

    Raises:
        InputError: a loss whose gradient in the outputs is not along its curvature there (Huber's beyond delta).
    """  # noqa: D205
    out, jacobians = objective.jacobians(theta, rows, dataset)
    y = objective.data.y[dataset][rows]
    factor, slope = objective.loss.roots(out, y).flatten(1, -2), objective.loss.gradients(out, y).flatten(1)
    if not bool(torch.isfinite(factor).all()):
        return factor.mT @ jacobians, torch.full_like(factor[:, 0], torch.nan)
    c = torch.linalg.lstsq(factor, slope[..., None]).solution[..., 0]
    missing = ((factor @ c[..., None])[..., 0] - slope).norm(dim=1)
    if bool((missing > 1e-3 * slope.norm(dim=1) + 1e-6).any()):
        remedy = "its gradient has a part without curvature, which these factors do not reach; take cg_ggn or exact_ggn"
        raise bad_input("loss", type(objective.loss).__name__, remedy)
    return factor.mT @ jacobians, c
