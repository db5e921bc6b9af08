"""Koh and Liang's small convolutional network as a pure function of one flat parameter vector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

from fragile_lib.tools.errors import bad_input

STRIDES = (1, 2, 1, 2, 1)  # of the five 3x3 convolutions
ACTIVATIONS = ("tanh", "relu")


@dataclass(frozen=True)
class Stage:
    """One layer with parameters: square kernel, weight (n_out, n_in, kernel, kernel), then bias (n_out,), at `start`.

    side_in and side_out are those of its square maps; `pooled`: its input is the mean over space of the stage below;
    `activated`: the activation follows it.
    """

    n_in: int
    n_out: int
    kernel: int
    stride: int
    side_in: int
    side_out: int
    start: int
    pooled: bool
    activated: bool

    @property
    def n_weights(self) -> int:
        """Number of weights, biases not counted."""
        return self.n_out * self.n_in * self.kernel**2

    @property
    def stop(self) -> int:
        """Where its parameters end."""
        return self.start + self.n_weights + self.n_out


@dataclass(frozen=True)
class SmallCNN:
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
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise bad_input(name, value, "give a whole number of at least 1")
        if self.activation not in ACTIVATIONS:
            raise bad_input("activation", self.activation, f"choose one of {', '.join(ACTIVATIONS)}")
        if self.side < 21:
            raise bad_input("side", self.side, "the five convolutions need images of at least 21 pixels a side")

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The seven layers with parameters, from the image up; see `upward`."""
        found: list[Stage] = []
        n_in, side, start = 1, self.side, 0
        for stride in STRIDES:
            side_out = (side - 3) // stride + 1
            found.append(Stage(n_in, self.channels, 3, stride, side, side_out, start, False, True))
            n_in, side, start = self.channels, side_out, found[-1].stop
        found.append(Stage(n_in, self.n_classes, 1, 1, side, side, start, False, True))
        found.append(Stage(self.n_classes, self.n_classes, 1, 1, 1, 1, found[-1].stop, True, False))
        return tuple(found)

    @property
    def n_params(self) -> int:
        """P, the length of the parameter vector."""
        return self.stages[-1].stop

    @cached_property
    def is_weight(self) -> Tensor:
        """(P,) one for weights and zero for biases: what the L2 term acts on (Koh and Liang 2017)."""
        parts = [torch.cat([torch.ones(stage.n_weights), torch.zeros(stage.n_out)]) for stage in self.stages]
        return torch.cat(parts).double()

    def init(self, seed: int) -> Tensor:
        """A start (P,) in float64: weights normal with scale 2 / sqrt(fan in), cut at two scales, zero biases.

        Koh and Liang's start. The cut draws again what lies outside; the weights' own standard deviation is then
        0.88 of the scale.
        """
        rng = np.random.default_rng([seed, 1])
        parts = []
        for stage in self.stages:
            scale = 2 / sqrt(stage.n_in * stage.kernel**2)
            parts += [scale * _cut_normal(rng, stage.n_weights), np.zeros(stage.n_out)]
        return torch.from_numpy(np.concatenate(parts))

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (n, classes) of one network theta (P,) on x (n, 1, side, side)."""
        return self.upward(theta, x, 0)

    def upward(self, theta: Tensor, a: Tensor, stage: int) -> Tensor:
        """Logits (n, classes) from a, the input of `stage`: (n, n_in, side_in, side_in) of that stage."""
        for at in self.stages[stage:]:
            a = self.apply(theta, a, at)
        return a

    def apply(self, theta: Tensor, a: Tensor, stage: Stage) -> Tensor:
        """What one stage makes of its input a: the input of the next one (pooled where that is), or the logits."""
        weight = theta[stage.start : stage.start + stage.n_weights]
        bias = theta[stage.start + stage.n_weights : stage.stop]
        if not stage.activated:
            return linear(a.flatten(1), weight.view(stage.n_out, stage.n_in), bias)
        shape = (stage.n_out, stage.n_in, stage.kernel, stage.kernel)
        z = self._activate(conv2d(a, weight.view(shape), bias, stage.stride))
        return z.mean((2, 3), keepdim=True) if stage is self.stages[-2] else z

    def module(self, theta: Tensor) -> torch.nn.Sequential:
        """The same network as torch.nn modules that own copies of theta, in its floating type and order."""
        layers: list[torch.nn.Module] = []
        for stage in self.stages[:-1]:
            kind = torch.nn.Tanh() if self.activation == "tanh" else torch.nn.ReLU()
            layers += [torch.nn.Conv2d(stage.n_in, stage.n_out, stage.kernel, stage.stride), kind]
        layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(self.n_classes, self.n_classes)]
        network = torch.nn.Sequential(*layers).to(theta)
        torch.nn.utils.vector_to_parameters(theta.detach().clone(), network.parameters())
        return network

    def preactivations(self, theta: Tensor, x: Tensor) -> Tensor:
        """Pre-activations of all hidden units: (n, units)."""
        found = []
        for stage in self.stages[:-1]:
            shape = (stage.n_out, stage.n_in, stage.kernel, stage.kernel)
            weight = theta[stage.start : stage.start + stage.n_weights].view(shape)
            z = conv2d(x, weight, theta[stage.start + stage.n_weights : stage.stop], stage.stride)
            found.append(z.flatten(1))
            x = self._activate(z)
        return torch.cat(found, 1)

    def _activate(self, z: Tensor) -> Tensor:
        return torch.tanh(z) if self.activation == "tanh" else torch.relu(z)


def _cut_normal(rng: np.random.Generator, size: int) -> np.ndarray:
    """Standard normal numbers, each drawn again until it lies within two of zero."""
    found = rng.standard_normal(size)
    while (outside := np.abs(found) > 2).any():
        found[outside] = rng.standard_normal(outside.sum())
    return found
