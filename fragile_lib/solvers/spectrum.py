"""Extreme eigenvalues, and the bound on single examples' curvature that the stochastic recursion needs."""

from __future__ import annotations

import torch
from torch import Tensor

from fragile_lib.objectives.base import Objective


def extreme_eigenvalues(matrix: Tensor) -> tuple[float, float]:
    """(lambda_min, lambda_max) of a symmetric matrix (P, P); (nan, nan) where it is not finite."""
    if not torch.isfinite(matrix).all():
        return float("nan"), float("nan")
    spectrum = torch.linalg.eigvalsh(matrix)
    return spectrum[0].item(), spectrum[-1].item()


def example_curvature_bound(objective: Objective, theta: Tensor, dataset: int = 0, steps: int = 30) -> float:
    """max_i of |lambda|_max of the Hessian of loss_i at one network theta (P,), by power iteration on all i at once.

    The stochastic recursion with single examples is stable where its scale exceeds this (Agarwal et al. 2016).
    """
    n = objective.n
    stack, one_hot = theta.expand(n, -1), torch.eye(n, dtype=theta.dtype, device=theta.device)
    place = torch.full((n,), dataset)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(n, 1, len(theta), generator=generator, dtype=theta.dtype).to(theta.device)
    norms = torch.zeros(n)
    for _ in range(steps):
        v = v / v.norm(dim=2, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
        v = objective.products(stack, v, one_hot, place) - objective.decay * v
        norms = v.norm(dim=2)[:, 0]
    return norms.max().item()
