"""What the tests of the solvers share: planted curvature, networks as nn.Module, and small fitted problems."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from helpers import Linear, iris_subset, rotated, with_examples
from torch import Tensor, nn

from fragile_lib.data.sets import Data
from fragile_lib.minimise.newton import newton
from fragile_lib.models.mlp import MLP
from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.base import Objective

SPECTRA = {
    "well conditioned": np.linspace(1, 6, 12),
    "condition number 1e8": np.logspace(-7, 1, 12),
    "negative eigenvalues": np.array([-2.0, -0.3, *np.linspace(0.4, 8, 10)]),
    "rank deficient": np.array([*np.zeros(7), *np.linspace(1, 5, 5)]),
    "repeated": np.array([*[0.5] * 6, *[3.0] * 6]),
}


class Planted:
    """Stands in for an objective: its curvature is a given matrix, products and dense alike; it counts its products."""

    n = 1

    def __init__(self, matrix: np.ndarray, decay: np.ndarray | None = None, dtype: torch.dtype = torch.float64) -> None:
        self.matrix = torch.tensor(matrix, dtype=dtype)
        self.decay = torch.zeros(len(matrix), dtype=dtype) if decay is None else torch.tensor(decay, dtype=dtype)
        self.data = Data(self.matrix, self.matrix)
        self.products_used, self.largest_stack = 0, 0

    @property
    def theta(self) -> Tensor:
        return torch.zeros(len(self.matrix), dtype=self.matrix.dtype)

    def uniform(self, size: int) -> Tensor:
        return torch.ones(size, 1, dtype=torch.float64)

    def matrices(self, theta: Tensor, weights: Tensor, dataset: Tensor, gauss_newton: bool = False) -> Tensor:
        return (self.matrix + torch.diag(self.decay))[None]

    def products(
        self, theta: Tensor, v: Tensor, weights: Tensor, dataset: Tensor, gauss_newton: bool = False
    ) -> Tensor:
        self.products_used += v.shape[1]
        self.largest_stack = max(self.largest_stack, v.shape[1])
        return v @ self.matrix + self.decay * v

    def solved(self, v: Tensor, damping: float) -> np.ndarray:
        damped = self.matrices(None, None, None)[0].double().numpy() + damping * np.eye(len(self.matrix))
        return np.linalg.solve(damped, v.double().numpy().T).T


def planted(name: str) -> Planted:
    return Planted(rotated(list(SPECTRA[name])))


def right_hand_sides(k: int, size: int, seed: int = 1) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal((k, size)))


def filled(module: nn.Module, theta: Tensor) -> nn.Module:
    module = module.to(theta)
    nn.utils.vector_to_parameters(theta, module.parameters())
    return module


def conv_net(**options: object) -> nn.Sequential:
    """Two convolutions with stride, padding and dilation as told, and a linear layer without a bias."""
    settings = {"stride": 2, "padding": 1} | options
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, **settings), nn.Tanh(), nn.Conv2d(3, 4, 2), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3, bias=False),
    )  # fmt: skip


def conv_problem(
    n: int = 13, weight_decay: float = 0.02, seed: int = 0, build: Callable[[], nn.Module] = conv_net
) -> tuple[Objective, Tensor]:
    rng = np.random.default_rng([seed, 9])
    model = ModuleModel(build().double(), 3)
    data = Data(torch.tensor(rng.standard_normal((1, n, 2, 7, 7))), torch.tensor(rng.integers(0, 3, (1, n))))
    theta = torch.tensor(0.5 * rng.standard_normal(model.n_params))
    return Objective(model, data, weight_decay), theta


def mlp_problem(
    n: int = 21, weight_decay: float = 0.02, seed: int = 0, activation: str = "tanh"
) -> tuple[Objective, Tensor, nn.Sequential]:
    """A random network, not at an optimum: objective, theta (P,) and the same network as nn.Module."""
    rng = np.random.default_rng([seed, 10])
    model = MLP(2, 5, activation)
    data = Data(torch.tensor(rng.standard_normal((1, n, 4))), torch.tensor(rng.integers(0, 3, (1, n))))
    theta = torch.tensor(0.7 * rng.standard_normal(model.n_params))
    return Objective(model, data, weight_decay), theta, model.module(theta)


def linear_problem(weight_decay: float = 0.02, per_class: int = 10) -> tuple[Objective, Objective, Tensor, nn.Module]:
    """Softmax regression on Iris at its optimum: training and test objective, theta (15,), the network as nn.Module."""
    train, test = iris_subset(per_class)
    objective = Objective(Linear(4, 3), train, weight_decay)
    theta = newton(objective, torch.zeros(1, 15).double(), objective.uniform(1))[0][0]
    return objective, objective.on(test), theta, filled(nn.Sequential(nn.Linear(4, 3)), theta)


def shuffled(objective: Objective, seed: int = 0) -> tuple[Objective, Tensor]:
    """The same objective with its examples in another order, and the order."""
    order = torch.randperm(objective.n, generator=torch.Generator().manual_seed(seed))
    return with_examples(objective, order), order


def dense(objective: Objective, theta: Tensor, gauss_newton: bool) -> Tensor:
    return objective.matrices(theta[None], objective.uniform(1), torch.tensor([0]), gauss_newton)[0]
