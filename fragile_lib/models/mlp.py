"""Networks as pure functions of one flat parameter vector."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite, sqrt

import numpy as np
import torch
from torch import Tensor

from fragile_lib.tools.errors import bad_input

ACTIVATIONS = ("relu", "tanh", "softplus")


@dataclass(frozen=True)
class MLP:
    """Multilayer perceptron: `depth` hidden layers of `width` units, then a linear layer to `n_classes` logits.

    Activations: relu, tanh, and softplus of the given sharpness beta, log(1 + exp(beta z)) / beta, which differs from
    ReLU by at most ln 2 / beta.

    Parameters lie in one vector (P,): for each layer the weight (out, in) row by row, then the bias, as in
    `torch.nn.Linear`. P = sum over layers of out * (in + 1).

    Raises:
        InputError: depth or width below 1, or an activation that is not in `ACTIVATIONS`.
    """

    depth: int
    width: int
    activation: str = "relu"
    n_features: int = 4
    n_classes: int = 3
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        for name in ("depth", "width", "n_features", "n_classes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise bad_input(name, value, "give a whole number of at least 1")
        if self.activation not in ACTIVATIONS:
            raise bad_input("activation", self.activation, f"choose one of {', '.join(ACTIVATIONS)}")
        if not (isfinite(self.sharpness) and self.sharpness > 0):
            raise bad_input("sharpness", self.sharpness, "give a finite number above 0")

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Units of each layer, from the features to the logits."""
        return (self.n_features, *[self.width] * self.depth, self.n_classes)

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """(in, out) of each layer."""
        return list(zip(self.sizes[:-1], self.sizes[1:], strict=True))

    @property
    def n_params(self) -> int:
        """P, the length of the parameter vector."""
        return sum((n_in + 1) * n_out for n_in, n_out in self.shapes)

    @cached_property
    def is_weight(self) -> Tensor:
        """(P,) one for weights and zero for biases: what the L2 term acts on (Koh and Liang 2017)."""
        parts = [torch.cat([torch.ones(i * o), torch.zeros(o)]) for i, o in self.shapes]
        return torch.cat(parts).double()

    def init(self, seed: int) -> Tensor:
        """A start (P,) in float64: He normal for ReLU and softplus, Glorot normal for tanh, zero biases.

        Weights have standard deviation sqrt(2 / in) (He et al. 2015) or sqrt(2 / (in + out)) (Glorot and Bengio 2010),
        so that signals keep their scale with depth and depth is not confounded with a vanished start.
        """
        rng = np.random.default_rng([seed, 1])
        parts = []
        for n_in, n_out in self.shapes:
            scale = sqrt(2 / (n_in + n_out)) if self.activation == "tanh" else sqrt(2 / n_in)
            parts += [scale * rng.standard_normal(n_in * n_out), np.zeros(n_out)]
        return torch.from_numpy(np.concatenate(parts))

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (n, classes) of one network theta (P,) on x (n, features)."""
        at, last = 0, len(self.shapes) - 1
        for layer, (n_in, n_out) in enumerate(self.shapes):
            weight = theta[at : at + n_in * n_out].view(n_out, n_in)
            x = x @ weight.T + theta[at + n_in * n_out : at + n_in * n_out + n_out]
            x = self._activate(x) if layer < last else x
            at += n_in * n_out + n_out
        return x

    def module(self, theta: Tensor) -> torch.nn.Sequential:
        """The same network as torch.nn modules that own copies of theta, in its floating type and order."""
        kinds = {"relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh(), "softplus": torch.nn.Softplus(self.sharpness, 40.0)}
        layers: list[torch.nn.Module] = []
        for n_in, n_out in self.shapes:
            layers += [torch.nn.Linear(n_in, n_out), kinds[self.activation]]
        network = torch.nn.Sequential(*layers[:-1]).to(theta)
        torch.nn.utils.vector_to_parameters(theta.detach().clone(), network.parameters())
        return network

    def smoothed(self, sharpness: float) -> MLP:
        """The same network with softplus of this sharpness in the place of ReLU."""
        return replace(self, activation="softplus", sharpness=sharpness)

    def _activate(self, z: Tensor) -> Tensor:
        if self.activation == "softplus":
            return torch.nn.functional.softplus(z, beta=self.sharpness, threshold=40.0)
        return torch.relu(z) if self.activation == "relu" else torch.tanh(z)

    def preactivations(self, theta: Tensor, x: Tensor) -> Tensor:
        """Pre-activations of all hidden units: (n, depth * width)."""
        at, found = 0, []
        for n_in, n_out in self.shapes[:-1]:
            weight = theta[at : at + n_in * n_out].view(n_out, n_in)
            found.append(x @ weight.T + theta[at + n_in * n_out : at + n_in * n_out + n_out])
            x = self._activate(found[-1])
            at += n_in * n_out + n_out
        return torch.cat(found, dim=1)
