"""What all networks here share: their parameters lie in one vector, in the order of torch.nn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor, nn


class Flat:
    """A network whose parameters are one vector (P,): those of torch.nn's `parameters()` one after another.

    `bare` makes it as torch.nn modules. The L2 term acts on parameters of two dimensions or more, so not on biases and
    normalisation scales (Koh and Liang 2017).
    """

    bare: Callable[[], nn.Module]

    @cached_property
    def tensors(self) -> tuple[torch.Size, ...]:
        """The shape of each parameter of torch.nn."""
        with torch.device("meta"):  # shapes alone: nothing is drawn
            return tuple(parameter.shape for parameter in self.bare().parameters())

    @cached_property
    def n_params(self) -> int:
        """P, the length of the parameter vector."""
        return sum(map(prod, self.tensors))

    @cached_property
    def is_weight(self) -> Tensor:
        """(P,) one for the parameters that the L2 term acts on, zero for the others."""
        return torch.cat([torch.full((prod(shape),), float(len(shape) > 1)) for shape in self.tensors]).double()

    def parts(self, theta: Tensor) -> list[Tensor]:
        """theta (P,) taken apart into the tensors, without a copy; its reverse mode is one concatenation."""
        pieces = theta.split([prod(shape) for shape in self.tensors])
        return [piece.view(shape) for piece, shape in zip(pieces, self.tensors, strict=True)]

    def module(self, theta: Tensor) -> nn.Module:
        """The same network as torch.nn modules that own copies of theta (P,), in its floating type and order."""
        network = self.bare().to(theta)
        nn.utils.vector_to_parameters(theta.detach().clone(), network.parameters())
        return network


class Layered(Flat):
    """A network of layers, each a weight and a bias; `units` yields what each makes before the activation."""

    units: Callable[[Tensor, Tensor], Iterator[Tensor]]

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (n, classes) of one network theta (P,) on x (n, ...)."""
        for z in self.units(theta, x):
            logits = z  # the last; a list would hold the others
        return logits

    def preactivations(self, theta: Tensor, x: Tensor) -> Tensor:
        """Pre-activations of all hidden units: (n, units)."""
        *hidden, _ = self.units(theta, x)
        return torch.cat([z.flatten(1) for z in hidden], 1)

    def start(self, seed: int, draw: Callable[[np.random.Generator, torch.Size], np.ndarray]) -> Tensor:
        """A start (P,) in float64: weights as `draw` makes those of a shape, in one piece; zero biases."""
        rng = np.random.default_rng([seed, 1])
        parts = [draw(rng, shape) if len(shape) > 1 else np.zeros(shape) for shape in self.tensors]
        return torch.from_numpy(np.concatenate(parts))
