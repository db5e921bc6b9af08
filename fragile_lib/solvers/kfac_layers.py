"""What K-FAC sees of a network: its layers' inputs, the gradients at their outputs, and that it is understood."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, group_norm, layer_norm, unfold

from fragile_lib.models.module import _check as check_constant
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.losses import Loss
from fragile_lib.tools.errors import bad_input

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Layer:
    """A Linear or Conv2d layer as the matrix (out, in) that it is, with a last column for its bias.

    place: where its weight and then its bias lie in the flat parameter vector.
    """

    module: nn.Linear | nn.Conv2d
    place: slice

    @property
    def n_weights(self) -> int:
        """Its parameters without the bias."""
        return self.module.weight.numel()

    @property
    def bias(self) -> bool:
        """Whether it has one."""
        return self.module.bias is not None

    def decays(self, decay: Tensor) -> tuple[float, float]:
        """The L2 factors of its weights and of its bias in decay (P,), each of which has to be one number."""
        own = decay[self.place]
        weights, bias = own[: self.n_weights], own[self.n_weights :]
        for name, part in (("weights", weights), ("bias", bias)):
            if len(part) and not bool((part == part[0]).all()):
                raise bad_input(
                    "decay", part.unique().tolist(), f"a Kronecker block needs one L2 factor for its {name}"
                )
        return float(weights[0]), float(bias[0]) if len(bias) else float(weights[0])

    def join(self, v: Tensor) -> Tensor:
        """(K, p) -> (K, out, in)."""
        weights = v[:, : self.n_weights].unflatten(1, (len(self.module.weight), -1))
        return torch.cat([weights, v[:, self.n_weights :, None]], dim=2) if self.bias else weights

    def split(self, v: Tensor) -> Tensor:
        """(K, out, in) -> (K, p)."""
        if not self.bias:
            return v.flatten(1)
        return torch.cat([v[:, :, :-1].flatten(1), v[:, :, -1]], dim=1)

    def patches(self, x: Tensor) -> Tensor:
        """What each output place sees, with a 1 for the bias: (n, places, in) of the layer's input x."""
        if isinstance(self.module, nn.Conv2d):
            m = self.module
            x = unfold(x, m.kernel_size, m.dilation, m.padding, m.stride).mT
        else:
            x = x.reshape(len(x), -1, x.shape[-1])
        return torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2) if self.bias else x

    def places(self, g: Tensor) -> Tensor:
        """(n, places, out) of what has the shape of the layer's output."""
        if isinstance(self.module, nn.Conv2d):
            return g.flatten(2).mT
        return g.reshape(len(g), -1, g.shape[-1])


@dataclass(frozen=True)
class NormLayer:
    """A layer scale * xhat + shift, xhat (n, ...) normalised by its own or by frozen statistics.

    place: where its scale and then its shift lie in the flat parameter vector.
    """

    module: nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm
    place: slice

    def decays(self, decay: Tensor) -> tuple[Tensor]:
        """The L2 factors (p,) of its parameters in decay (P,)."""
        return (decay[self.place],)

    def normalised(self, x: Tensor) -> Tensor:
        """xhat of the layer's input x, both (n, ...)."""
        m = self.module
        if isinstance(m, nn.LayerNorm):
            return layer_norm(x, m.normalized_shape, eps=m.eps)
        if isinstance(m, nn.GroupNorm):
            return group_norm(x, m.num_groups, eps=m.eps)
        return batch_norm(x, m.running_mean, m.running_var, eps=m.eps)

    def gradients(self, x: Tensor, g: Tensor) -> Tensor:
        """Each example's own gradient (n, p), of its input x and the gradient g at its output."""
        products = {"weight": lambda: g * self.normalised(x), "bias": lambda: g}
        own = self.module.named_parameters(recurse=False)
        return torch.cat([self._sum_places(products[name](), p.numel()) for name, p in own], dim=1)

    def _sum_places(self, g: Tensor, size: int) -> Tensor:
        """(n, size): the sum over what shares a parameter, places before a LayerNorm's features or after channels."""
        if isinstance(self.module, nn.LayerNorm):
            return g.reshape(len(g), -1, size).sum(1)
        return g.reshape(len(g), size, -1).sum(2)


def find_layers(module: nn.Module) -> list[Layer | NormLayer]:
    """All layers with parameters, in the order of the flat vector.

    Raises:
        InputError: parameters outside the known layers or in two of them; a subclass that computes something else; a
            convolution with groups or with a padding other than zeros by number; random layers in training mode.
    """
    layers, at = [], 0
    for name, part in module.named_modules():
        check_constant(name, part)
        own = dict(part.named_parameters(recurse=False))
        if not own:
            continue
        known = any(isinstance(part, k) and type(part).forward is k.forward for k in (nn.Linear, nn.Conv2d, *NORMS))
        if not known or not own.keys() <= {"weight", "bias"}:
            remedy = "parameters have to be those of Linear, Conv2d, BatchNorm, GroupNorm or LayerNorm"
            raise bad_input("module", f"{name}: {type(part).__name__}", remedy)
        if isinstance(part, nn.Conv2d) and not (
            part.groups == 1 and part.padding_mode == "zeros" and not isinstance(part.padding, str)
        ):
            raise bad_input("module", f"{name}: {part}", "K-FAC knows convolutions of one group, zero-padded by number")
        size = sum(p.numel() for p in own.values())
        layers.append((NormLayer if isinstance(part, NORMS) else Layer)(part, slice(at, at + size)))
        at += size
    if at != sum(p.numel() for p in module.parameters()):
        raise bad_input("module", type(module).__name__, "no two layers may share parameters")
    return layers


def check_module(objective: Objective, theta: Tensor, module: nn.Module, layers: list, x: Tensor) -> list[bool]:
    """Whether each layer is used; raise InputError where the module is not the model at theta, or one is used twice."""
    flat = torch.cat([p.detach().flatten() for p in module.parameters()])
    if flat.dtype != theta.dtype or not torch.equal(flat, theta.to(flat.device)):
        remedy = f"its parameters in order have to be theta ({len(theta)},), in {theta.dtype}"
        raise bad_input("module", f"{type(module).__name__} of {len(flat)} parameters", remedy)
    used: Counter = Counter()
    hooks = [layer.module.register_forward_hook(lambda part, *_: used.update([part])) for layer in layers]
    with torch.no_grad():
        logits = module(x[:2].clone())  # a layer may work in place
        expected = objective.model(theta, x[:2])
    for hook in hooks:
        hook.remove()
    for layer in layers:
        if used[layer.module] > 1:
            raise bad_input("module", str(layer.module), f"a layer may be used once, not {used[layer.module]} times")
    # rounding as large as the largest logit leaves, since single precision in deep networks leaves no more
    logits = logits.view_as(expected) if logits.numel() == expected.numel() else logits
    tolerance = 1e-4 * float(expected.nan_to_num().abs().max())
    if not torch.allclose(logits, expected, rtol=1e-3, atol=tolerance, equal_nan=True):
        raise bad_input("module", type(module).__name__, "its outputs have to be the model's at theta")
    return [used[layer.module] == 1 for layer in layers]


@dataclass(frozen=True)
class Passes:
    """Passes over the data of one network: its module and, of one data set, x (n, ...), y (n, ...) and their loss.

    batch: examples in one pass. samples: labels drawn for each example (and place) in the place of all classes, or
    None; seed: of these draws.
    """

    module: nn.Module
    x: Tensor
    y: Tensor
    loss: Loss
    batch: int = 256
    samples: int | None = None
    seed: int = 0

    def of(self, layers: list) -> Iterator[tuple[list[Tensor], list[Tensor], Callable[[], Iterator[list[Tensor]]]]]:
        """For each batch the layers' inputs, their outputs, and the gradients at their outputs.

        Gradients come for one column of the root of the loss's curvature after the other.
        """
        draws = None
        if self.samples is not None:  # drawn for all examples at once, so that the batch size changes nothing
            generator, places = torch.Generator().manual_seed(self.seed), self.y.shape
            draws = torch.rand(*places, self.samples, generator=generator, dtype=torch.float64).to(self.x.device)
        for start in range(0, len(self.x), self.batch):
            rows = slice(start, start + self.batch)
            inputs, outputs = {}, {}

            def keep(part: nn.Module, given: tuple, result: Tensor, inputs=inputs, outputs=outputs) -> Tensor:
                inputs[part], outputs[part] = given[0].detach(), result
                return result.clone()  # what follows may work in place

            hooks = [layer.module.register_forward_hook(keep) for layer in layers]
            try:
                with torch.enable_grad():
                    z = self.module(self.x[rows].clone())  # and what comes first
            finally:
                for hook in hooks:
                    hook.remove()
            held = [[of[layer.module] for layer in layers] for of in (inputs, outputs)]
            yield *held, partial(self._gradients, z, held[1], rows, None if draws is None else draws[rows])

    def _gradients(self, z: Tensor, outputs: list[Tensor], rows: slice, draws: Tensor | None) -> Iterator[list[Tensor]]:
        out = z[:, None] if z.ndim == 1 else z
        root = self.loss.roots(out.detach(), self.y[rows], draws)
        for column in range(root.shape[-1]):
            last = column == root.shape[-1] - 1
            yield torch.autograd.grad(out, outputs, root[..., column], retain_graph=not last)
