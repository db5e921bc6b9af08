"""Which test points are examined and which training points are left out."""

from __future__ import annotations

import torch
from torch import Tensor

from fragile_lib.tools.errors import bad_input

TEST_CHOICES = ("max_loss", "p50_loss")
TRAIN_CHOICES = ("top_loss", "top_influence", "all")


def test_point(losses: Tensor, choice: str) -> int:
    """The index of the test point of largest loss (`max_loss`) or of the (lower) median loss (`p50_loss`)."""
    if choice not in TEST_CHOICES:
        raise bad_input("test_choice", choice, f"choose one of {', '.join(TEST_CHOICES)}")
    order = losses.argsort(stable=True)
    return int(order[-1] if choice == "max_loss" else order[(len(order) - 1) // 2])


def train_points(choice: str, fraction: float, losses: Tensor, scores: Tensor) -> Tensor:
    """Indices of the training points to leave out, sorted.

    `top_loss`: the share `fraction` of largest training loss; `top_influence`: of largest |score|; `all`: every one.

    Args:
        choice: one of TRAIN_CHOICES.
        fraction: in (0, 1]; round(fraction n) points, at least three, the fewest that give a correlation.
        losses: training losses (n,).
        scores: influence estimates (n,) on the test point in question.
    """
    if choice not in TRAIN_CHOICES:
        raise bad_input("train_choice", choice, f"choose one of {', '.join(TRAIN_CHOICES)}")
    if not 0 < fraction <= 1:
        raise bad_input("top_fraction", fraction, "give a share in (0, 1]")
    if choice == "all":
        return torch.arange(len(losses))
    key = losses if choice == "top_loss" else scores.abs()
    count = min(len(losses), max(3, round(fraction * len(losses))))
    return key.nan_to_num(-1.0).argsort(descending=True, stable=True)[:count].sort().values
