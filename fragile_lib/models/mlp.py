"""Multilayer perceptrons as pure functions of one flat parameter vector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import isfinite, prod, sqrt

from torch import Tensor, nn

from fragile_lib.models.flat import Layered
from fragile_lib.tools.checks import check_count, check_name
from fragile_lib.tools.errors import bad_input

ACTIVATIONS = ("relu", "tanh", "softplus")


@dataclass(frozen=True)
class MLP(Layered):
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
            check_count(name, getattr(self, name))
        check_name("activation", self.activation, ACTIVATIONS)
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

    def bare(self) -> nn.Sequential:
        """torch.nn's linear layers with the activation between them."""
        layers = [part for shape in self.shapes for part in (nn.Linear(*shape), self._activation())]
        return nn.Sequential(*layers[:-1])

    def init(self, seed: int) -> Tensor:
        """A start (P,) in float64: He normal for ReLU and softplus, Glorot normal for tanh, zero biases.

        Weights have standard deviation sqrt(2 / in) (He et al. 2015) or sqrt(2 / (in + out)) (Glorot and Bengio 2010),
        so that signals keep their scale with depth and depth is not confounded with a vanished start.
        """
        to = self.activation == "tanh"  # whether units that a layer leads to count
        return self.start(
            seed, lambda rng, shape: sqrt(2 / (shape[1] + to * shape[0])) * rng.standard_normal(prod(shape))
        )

    def units(self, theta: Tensor, x: Tensor) -> Iterator[Tensor]:
        """Pre-activations (n, units) of one layer after another on x (n, features), at last the logits."""
        parts, activate = self.parts(theta), self._activation()
        for weight, bias in zip(parts[::2], parts[1::2], strict=True):
            z = x @ weight.T + bias
            yield z
            x = activate(z)

    def _activation(self) -> nn.Module:
        kinds = {"relu": nn.ReLU, "tanh": nn.Tanh, "softplus": partial(nn.Softplus, self.sharpness, 40.0)}
        return kinds[self.activation]()

    def smoothed(self, sharpness: float) -> MLP:
        """The same network with softplus of this sharpness in the place of ReLU."""
        return replace(self, activation="softplus", sharpness=sharpness)
