"""The gradients of single examples by the layers of a network, from one pass back for all of them.

A layer with inputs a and gradients d at its outputs has, for one example, the gradient sum_places d a^T. An ordinary
pass back gives d for all examples at once, where automatic differentiation of each would carry every layer's weights
once an example (I. Goodfellow, "Efficient per-example gradient computations", 2015; for convolutions G. Rochette, A.
Manoel and E. Tramel, 2019). Layers are those that K-FAC knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import unfold
from torch.nn.utils import vector_to_parameters

from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.base import SMALL, Objective, slope
from fragile_lib.objectives.losses import Loss
from fragile_lib.solvers.kfac_layers import Layer, NormLayer, check_module, find_layers
from fragile_lib.tools.errors import InputError

PIECE = 2**18  # numbers of a layer's inputs at once, so that they stay in the cache: up to twice as fast
SAME = 1e-3  # of the largest number of a gradient: rounding in single precision


class NotUnderstoodError(RuntimeError):
    """A pass in which parameters did something else than in the passes before."""


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
        """(layer, its inputs, the gradients at its outputs), each (n, ...).

        Raises:
            NotUnderstoodError: a layer that was not called once, by one tensor of n rows; or parameters that this pass
                used in another place than their layer.
        """
        inputs, outputs = {}, {}

        def keep(part: nn.Module, given: tuple, result: Tensor) -> Tensor:
            if part in inputs or len(given) != 1 or not len(given[0]) == len(result) == len(x):
                raise NotUnderstoodError
            inputs[part], outputs[part] = given[0].detach(), result
            return result.clone()  # what follows may work in place

        hooks = [layer.module.register_forward_hook(keep) for layer in self.layers]
        try:
            with torch.enable_grad():
                z = self.module(x.clone())  # and what comes first
        finally:
            for hook in hooks:
                hook.remove()
        parts = [layer.module for layer in self.layers]
        once = {id(p): 1 for part in parts for p in part.parameters(recurse=False)}
        if len(inputs) != len(parts) or _uses(z) != once:
            raise NotUnderstoodError
        out = z[:, None] if z.ndim == 1 else z
        slopes = torch.autograd.grad(out, [outputs[part] for part in parts], loss.gradients(out.detach(), y))
        yield from zip(self.layers, (inputs[part] for part in parts), slopes, strict=True)


def _uses(z: Tensor) -> Counter:
    """How often the graph of z uses each of its leaves, by their ids."""
    found, seen, open_nodes = Counter(), set(), [z.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        for one, _ in getattr(node, "next_functions", ()):
            if hasattr(one, "variable"):
                found[id(one.variable)] += 1
            elif one not in seen:
                seen.add(one)  # kept: an id of what is gone may come again
                open_nodes.append(one)
    return found


class _Weighed(Loss):
    """sum_c y_c z_c: what shows a gradient whatever the labels are."""

    def values(self, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return (y * z).flatten(1).sum(1)

    def gradients(self, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return y


_FOUND: WeakKeyDictionary[ModuleModel, Layered | None] = WeakKeyDictionary()


def layered(objective: Objective, theta: Tensor) -> Layered | None:
    """The layers of the objective's network at theta (P,); None where not all of its parameters are theirs.

    That is so where layers are unknown, share parameters, are used twice, or hold their examples along another axis
    than the first or in another order; and where parameters do something else beside. It is found out once for a
    network, by a few of its examples in two orders, whose gradients have to be those of automatic differentiation, and
    each later pass looks whether its graph is such a one (`forget`).
    """
    model = objective.model
    if model not in _FOUND:
        _FOUND[model] = _understood(objective, theta)
    found = _FOUND[model]
    return None if found is None else found.at(theta)


def forget(model: ModuleModel) -> None:
    """From now on the network is not understood."""
    _FOUND[model] = None


def _understood(objective: Objective, theta: Tensor) -> Layered | None:
    model, module = objective.model, objective.model.bare()
    module.requires_grad_()
    vector_to_parameters(theta, module.parameters())
    x = objective.examples(np.unique([0, objective.n // 2, objective.n - 1])).x[0]
    try:
        layers = find_layers(module)
        used = check_module(objective, theta, module, layers, x)
        found = Layered(module, [layer for layer, is_used in zip(layers, used, strict=True) if is_used], len(theta))
        z = model(theta, x)
        y = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=z.dtype).to(z.device)
        told, turned = (found.gradients(*some, _Weighed()) for some in ((x, y), (x.flip(0), y.flip(0))))
        expected = [slope(lambda t, i=i: (y[i] * model(t, x[[i]])[0]).sum(), theta) for i in range(len(x))]
    except (InputError, RuntimeError):  # layers that are not known; shapes without the examples first
        return None
    expected = torch.stack(expected)
    size = float(expected.abs().nan_to_num().max())
    same = partial(torch.allclose, expected, rtol=SAME, atol=SAME * size)
    return found if same(told) and same(turned.flip(0)) else None  # neither is, where expected is not finite


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
