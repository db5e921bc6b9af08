"""Koh and Liang's small convolutional network as a pure function of one flat parameter vector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from fragile_lib.models.flat import Layered
from fragile_lib.tools.checks import check_count, check_name
from fragile_lib.tools.errors import bad_input

STRIDES = (1, 2, 1, 2, 1)  # of the five 3x3 convolutions
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


@dataclass(frozen=True)
class Stage:
    """One layer with parameters: square kernel, weight (n_out, n_in, kernel, kernel), then bias (n_out,), at `start`.

    side_in and side_out are those of its square maps; `pooled`: its input is the mean over space of the stage below.
    """

    n_in: int
    n_out: int
    kernel: int
    stride: int
    side_in: int
    side_out: int
    start: int
    pooled: bool = False

    @property
    def n_weights(self) -> int:
        """Number of weights, biases not counted."""
        return self.n_out * self.n_in * self.kernel**2


@dataclass(frozen=True)
class SmallCNN(Layered):
    """The network of Koh and Liang (2017) for MNIST: images (n, 1, side, side) -> logits (n, n_classes).

    Five 3x3 valid convolutions of `channels` maps with strides 1, 2, 1, 2, 1, a 1x1 convolution to n_classes maps, the
    activation after each of the six, the mean over space, and a linear layer n_classes -> n_classes. The default has
    2,616 parameters. They lie in one vector (P,) in the order of torch.nn: weight, then bias, layer by layer.

    Raises:
        InputError: a size that is no whole number of at least 1, a side too small for the five convolutions (below 21),
            or an activation that is not in `ACTIVATIONS`.
    """

    channels: int = 8
    n_classes: int = 10
    side: int = 28
    activation: str = "tanh"

    def __post_init__(self) -> None:
        for name in ("channels", "n_classes", "side"):
            check_count(name, getattr(self, name))
        check_name("activation", self.activation, tuple(ACTIVATIONS))
        if self.side < 21:
            raise bad_input("side", self.side, "the five convolutions need images of at least 21 pixels a side")

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The seven layers with parameters, from the image up."""
        n_in, side, start, found = 1, self.side, 0, []
        layers = [*((self.channels, 3, stride) for stride in STRIDES), (self.n_classes, 1, 1), (self.n_classes, 1, 1)]
        for n_out, kernel, stride in layers:
            pooled = len(found) == len(STRIDES) + 1
            side = 1 if pooled else side
            found.append(Stage(n_in, n_out, kernel, stride, side, (side - kernel) // stride + 1, start, pooled))
            n_in, side, start = n_out, found[-1].side_out, start + found[-1].n_weights + n_out
        return tuple(found)

    def bare(self) -> nn.Sequential:
        """torch.nn's convolutions with the activation after each, the mean over space, and a linear layer."""
        return sequential(1, self.channels, self.n_classes, self.n_classes, ACTIVATIONS[self.activation])

    def init(self, seed: int) -> Tensor:
        """A start (P,) in float64: weights normal with scale 2 / sqrt(fan in), cut at two scales, zero biases.

        Koh and Liang's start. The cut draws again what lies outside; the weights' own standard deviation is then
        0.88 of the scale.
        """
        return self.start(seed, lambda rng, shape: 2 / sqrt(prod(shape[1:])) * _cut_normal(rng, prod(shape)))

    def units(self, theta: Tensor, x: Tensor) -> Iterator[Tensor]:
        """Pre-activations of one layer after another on x (n, 1, side, side), at last the logits (n, classes)."""
        parts, activate = self.parts(theta), ACTIVATIONS[self.activation]()
        for stage, weight, bias in zip(self.stages, parts[::2], parts[1::2], strict=True):
            z = linear(x.mean((2, 3)), weight, bias) if stage.pooled else conv2d(x, weight, bias, stage.stride)
            yield z
            x = activate(z)


def sequential(
    n_in: int, width: int, maps: int, n_classes: int, activation: type[nn.Module] = nn.Tanh
) -> nn.Sequential:
    """The layers of torch.nn for images of n_in channels, with so many maps before the mean over space."""
    widths = [n_in, *[width] * len(STRIDES)]
    layers = [nn.Conv2d(*of, 3, stride) for *of, stride in zip(widths, widths[1:], STRIDES, strict=False)]
    layers = [part for layer in (*layers, nn.Conv2d(width, maps, 1)) for part in (layer, activation())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(maps, n_classes))


def _cut_normal(rng: np.random.Generator, size: int) -> np.ndarray:
    """Standard normal numbers, each drawn again until it lies within two of zero."""
    found = rng.standard_normal(size)
    while (outside := np.abs(found) > 2).any():
        found[outside] = rng.standard_normal(outside.sum())
    return found
