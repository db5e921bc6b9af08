"""The gradients of single examples by the layers of a network, from one pass back for all of them.

A layer with inputs a and gradients d at its outputs has, for one example, the gradient sum_places d a^T. An ordinary
pass back gives d for all examples at once, where automatic differentiation of each would carry every layer's weights
once an example (I. Goodfellow, "Efficient per-example gradient computations", 2015; for convolutions G. Rochette, A.
Manoel and E. Tramel, 2019). Layers are those that K-FAC knows, so its passes serve here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold
from torch.nn.utils import vector_to_parameters

from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.base import SMALL, Objective, slope
from fragile_lib.objectives.losses import Loss
from fragile_lib.solvers.kfac_layers import Layer, NormLayer, Passes, check_module, find_layers
from fragile_lib.tools.errors import InputError

PIECE = 2**18  # numbers of a layer's inputs at once, so that they stay in the cache: up to twice as fast
SAME = 1e-3  # of the largest number of a gradient: rounding in single precision


@dataclass(frozen=True)
class Layered:
    """The gradients of a network's examples at theta (P,), layer by layer.

    module: the network, whose parameters are theta. layers: those that it uses; parameters of others have no gradient.
    """

    module: nn.Module
    layers: list[Layer | NormLayer]
    n_params: int

    def at(self, theta: Tensor) -> Layered:
        """The same at theta."""
        vector_to_parameters(theta, self.module.parameters())
        return self

    def gradients(self, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        """grad loss_i (n, P) of examples x (n, ...), y (n, ...)."""
        found = x.new_zeros(len(x), self.n_params, dtype=next(self.module.parameters()).dtype)
        for layer, a, d in self._passed(x, y, loss):
            found[:, layer.place] = _own(layer, a, d)
        return found

    def along(self, v: Tensor, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        """v_k . grad loss_i: (K, n) for v (K, P). Of `SMALL` numbers at most are gradients held at once."""
        found = v.new_zeros(len(v), len(x))
        for layer, a, d in self._passed(x, y, loss):
            part = v[:, layer.place]
            single = isinstance(layer, Layer) and a.ndim == 2
            product, held = (_without_gradients, len(v) * d.shape[-1]) if single else (_by_gradients, part.shape[1])
            step = max(1, min(SMALL // held, PIECE // _seen_at_once(layer, a, d)))
            for at, some, out in zip(range(0, len(x), step), a.split(step), d.split(step), strict=True):
                found[:, at : at + step] += product(layer, part, some, out)
        return found

    def _passed(self, x: Tensor, y: Tensor, loss: Loss) -> Iterator[tuple[Layer | NormLayer, Tensor, Tensor]]:
        """(layer, its inputs, the gradients at its outputs), each (n, ...)."""
        passes = Passes(self.module, x, y, _Slope(loss), batch=len(x))
        for inputs, _, gradients in passes.of(self.layers):
            yield from zip(self.layers, inputs, next(gradients()), strict=True)


@dataclass(frozen=True)
class _Slope(Loss):
    """A loss whose gradient stands where `Passes` asks for the root of its curvature."""

    loss: Loss

    def roots(self, z: Tensor, y: Tensor, draws: Tensor | None = None) -> Tensor:
        """d loss_i / d z_i as the one column (n, ..., C, 1)."""
        return self.loss.gradients(z, y)[..., None]


_FOUND: WeakKeyDictionary[ModuleModel, Layered | None] = WeakKeyDictionary()


def layered(objective: Objective, theta: Tensor) -> Layered | None:
    """The layers of the objective's network at theta (P,); None where not all of its parameters are theirs.

    That is so where layers are unknown, share parameters, are used twice, or hold their examples along another axis
    than the first; and where parameters do something else beside. It is found out once for a network, by its first two
    examples, whose gradients have to be those of automatic differentiation.
    """
    model = objective.model
    if model not in _FOUND:
        _FOUND[model] = _understood(objective, theta)
    found = _FOUND[model]
    return None if found is None else found.at(theta)


def _understood(objective: Objective, theta: Tensor) -> Layered | None:
    module, some = objective.model.bare(), objective.examples(slice(0, 2))
    module.requires_grad_()
    vector_to_parameters(theta, module.parameters())
    x, y = some.x[0], some.y[0]
    try:
        layers = find_layers(module)
        used = check_module(objective, theta, module, layers, x)
        found = Layered(module, [layer for layer, is_used in zip(layers, used, strict=True) if is_used], len(theta))
        told = found.gradients(x, y, objective.loss)
    except (InputError, RuntimeError):  # layers that are not known; shapes without the examples first
        return None
    values = partial(_value, objective)
    expected = torch.stack([slope(partial(values, x=x[[i]], y=y[[i]]), theta) for i in range(len(x))])
    size = float(expected.abs().nan_to_num().max())
    return found if torch.allclose(told, expected, rtol=SAME, atol=SAME * size, equal_nan=True) else None


def _value(objective: Objective, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return objective.loss.values(objective.model(theta, x), y).sum()


def _own(layer: Layer | NormLayer, a: Tensor, d: Tensor) -> Tensor:
    """Each example's gradient (n, p) of one layer."""
    if isinstance(layer, NormLayer):
        return layer.gradients(a, d)
    if isinstance(layer.module, nn.Conv2d):
        m = layer.module
        a = unfold(a, m.kernel_size, m.dilation, m.padding, m.stride).mT
    d = layer.places(d)
    weights = (d.mT @ a.reshape(*d.shape[:2], -1)).flatten(1)  # `patches` would copy them for the column of ones
    return torch.cat([weights, d.sum(1)], dim=1) if layer.bias else weights


def _seen_at_once(layer: Layer | NormLayer, a: Tensor, d: Tensor) -> int:
    """Numbers that are written for one example: the patches of a convolution, or its inputs."""
    if not isinstance(layer.module, nn.Conv2d):
        return max(1, a[0].numel())
    return layer.module.weight[0].numel() * d[0, 0].numel()


def _by_gradients(layer: Layer | NormLayer, v: Tensor, a: Tensor, d: Tensor) -> Tensor:
    return v @ _own(layer, a, d).T


def _without_gradients(layer: Layer, v: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """d_i^T V_k a_i: (K, n), of a linear layer that each example passes once."""
    weights = layer.join(v)
    images = layer.patches(a)[:, 0] @ weights.flatten(0, 1).T
    return (images.unflatten(1, weights.shape[:2]) * d[:, None]).sum(2).T
