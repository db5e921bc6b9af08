"""The damped Gauss-Newton matrix inverted in the space of examples: exact for large networks on few examples.

With B_i = L_i^T J_i (Lambda_i = L_i L_i^T the curvature of cross entropy in the logits) the Gauss-Newton matrix is
G = sum_i B_i^T B_i / n + L2, so that with D = L2 + damping, a diagonal, and B (N, P), N = n (C - 1), all rows together

    (G + damping I)^-1 v = D^-1 v - D^-1 B^T (n I + B D^-1 B^T)^-1 B D^-1 v        (Woodbury).
"""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.base import Solution, check_positive_damping, relative
from fragile_lib.tools.errors import bad_input

LARGEST = 12_000  # rows N: the square of it in float64 and N times P numbers are held
AT_ONCE = 16  # examples whose Jacobians are held at once


class GramSolver:
    """(G + damping I)^-1 v by the Gram matrix of the examples' Gauss-Newton factors.

    Args:
        objective: J on the training data, cross entropy.
        theta: one network (P,).
        damping: above 0.
        dataset: which of the objective's data sets the network sees.

    Raises:
        InputError: a damping that is not above 0, or more than `LARGEST` rows n (C - 1).
    """

    def __init__(self, objective: Objective, theta: Tensor, damping: float, dataset: int = 0) -> None:
        check_positive_damping(damping, "the Gram matrix stands for what the damping leaves of the inverse")
        n_rows = objective.n * (objective.model.n_classes - 1)
        if n_rows > LARGEST:
            remedy = f"gram_ggn holds a matrix of n (C - 1) = {n_rows} rows, {LARGEST} at most; take cg_ggn or ekfac"
            raise bad_input("n_train", objective.n, remedy)
        began, self.n = perf_counter(), objective.n
        parts = torch.arange(objective.n).split(AT_ONCE)
        self.factors = torch.cat([factors_of(objective, theta, rows, dataset)[0].flatten(0, 1) for rows in parts])
        self.diagonal = (objective.decay + damping).to(theta)
        gram = ((self.factors / self.diagonal) @ self.factors.T).double()
        gram.diagonal().add_(self.n)
        self.cholesky = torch.linalg.cholesky(gram)
        self.seconds = perf_counter() - began

    def __call__(self, v: Tensor) -> Solution:
        """Solve for each row of v (K, P)."""
        began, scaled = perf_counter(), v / self.diagonal
        inner = torch.cholesky_solve((self.factors @ scaled.T).double(), self.cholesky).to(v)
        x = scaled - (inner.T @ self.factors) / self.diagonal
        curved = (x @ self.factors.T) @ self.factors / self.n + self.diagonal * x
        residual = relative(curved - v, v)
        return Solution(x, residual, self.seconds + perf_counter() - began, "ok")


def factors_of(objective: Objective, theta: Tensor, rows: Tensor, dataset: int = 0) -> tuple[Tensor, Tensor]:
    """B (k, C - 1, P), c (k, C - 1) of some examples: B_i^T B_i is the Gauss-Newton part, B_i^T c_i the gradient."""
    data, model = objective.data, objective.model
    x, y = data.x[dataset][rows], data.y[dataset][rows]

    def logits(t: Tensor, one: Tensor) -> Tensor:
        return model(t, one[None])[0]

    jacobians = vmap(jacrev(logits), in_dims=(None, 0))(theta, x)
    p = vmap(logits, in_dims=(None, 0))(theta, x).softmax(1)
    factor = softmax_factor(p)
    residual = p - torch.nn.functional.one_hot(y, p.shape[1])
    c = torch.linalg.lstsq(factor, residual[..., None]).solution[..., 0]
    return factor.mT @ jacobians, c


def softmax_factor(p: Tensor) -> Tensor:
    """L (..., C, C - 1) with L L^T = diag(p) - p p^T (Tanabe and Sagae 1992), for probabilities p (..., C).

    With q_c the probability beyond class c, column c is sqrt(p_c q_c / q_{c-1}) times
    (0, ..., 1, -p_k / q_c for k > c).
    """
    beyond = p.flip(-1).cumsum(-1).flip(-1)  # q_{c-1} at place c
    tiny = torch.finfo(p.dtype).tiny
    here, after = beyond[..., :-1].clamp(min=tiny), beyond[..., 1:].clamp(min=tiny)
    scale = (p[..., :-1] * after / here).sqrt()
    below = -p[..., :, None] / after[..., None, :]
    classes = p.shape[-1]
    ones = torch.eye(classes, classes - 1, dtype=p.dtype, device=p.device)
    return (below.tril(-1)[..., :, : classes - 1] + ones) * scale[..., None, :]
