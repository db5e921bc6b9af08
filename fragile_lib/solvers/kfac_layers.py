"""What K-FAC sees of a network: its layers' inputs, and the gradients at their outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from fragile_lib.tools.errors import bad_input


@dataclass(frozen=True)
class Layer:
    """A Linear or Conv2d layer as the matrix (out, in) that it is, with a last column for its bias.

    place: where its weight and then its bias lie in the flat parameter vector.
    """

    module: nn.Linear | nn.Conv2d
    place: slice

    @property
    def size(self) -> int:
        """p, the number of its parameters."""
        return self.place.stop - self.place.start

    @property
    def n_weights(self) -> int:
        """Its parameters without the bias."""
        return self.module.weight.numel()

    @property
    def bias(self) -> bool:
        """Whether it has one."""
        return self.module.bias is not None

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


def find_layers(module: nn.Module) -> list[Layer]:
    """All layers with parameters, in the order of the flat vector.

    Raises:
        InputError: parameters outside Linear and Conv2d layers or in two of them, or a convolution with groups or with
            a padding other than zeros by number.
    """
    layers, at = [], 0
    for name, part in module.named_modules():
        if not list(part.parameters(recurse=False)):
            continue
        if not isinstance(part, nn.Linear | nn.Conv2d):
            raise bad_input("module", f"{name}: {type(part).__name__}", "K-FAC knows Linear and Conv2d layers alone")
        plain = isinstance(part, nn.Linear) or (
            part.groups == 1 and part.padding_mode == "zeros" and not isinstance(part.padding, str)
        )
        if not plain:
            raise bad_input("module", f"{name}: {part}", "K-FAC knows convolutions of one group, zero-padded by number")
        size = sum(p.numel() for p in part.parameters())
        layers.append(Layer(part, slice(at, at + size)))
        at += size
    if at != sum(p.numel() for p in module.parameters()):
        raise bad_input("module", type(module).__name__, "no two layers may share parameters")
    return layers


def batches(
    module: nn.Module, layers: list[Layer], x: Tensor, batch: int, samples: int | None, seed: int
) -> Iterator[tuple[Tensor, list[Tensor], list[Tensor], Tensor | None]]:
    """(logits with their graph, the layers' inputs, their outputs, uniform draws (n, samples)) of each batch of x."""
    draws = None
    if samples is not None:  # drawn for all examples at once, so that the batch size changes nothing
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(len(x), samples, generator=generator, dtype=torch.float64).to(x.device)
    for start in range(0, len(x), batch):
        rows = slice(start, start + batch)
        inputs, outputs = {}, {}

        def keep(part: nn.Module, given: tuple, result: Tensor, inputs=inputs, outputs=outputs) -> Tensor:
            if part in inputs:
                raise bad_input("module", str(part), "no layer may be used twice")
            inputs[part], outputs[part] = given[0].detach(), result
            return result.clone()  # what follows may work in place

        hooks = [layer.module.register_forward_hook(keep) for layer in layers]
        try:
            with torch.enable_grad():
                logits = module(x[rows])
        finally:
            for hook in hooks:
                hook.remove()
        order = [layer.module for layer in layers]
        yield logits, [inputs[m] for m in order], [outputs[m] for m in order], None if draws is None else draws[rows]


def loss_root(logits: Tensor, draws: Tensor | None) -> Tensor:
    """Columns B (n, classes, columns) with B B^T = diag(p) - p p^T for each example, p the softmax of its logits.

    Exact, B = (diag(p) - p p^T) diag(p)^-1/2, one column a class; or, for uniform draws (n, columns), (p - y) of a
    label y drawn from p each, over the root of their number, which holds in the mean.
    """
    p = logits.softmax(1)
    if draws is None:
        return (torch.eye(p.shape[1], dtype=p.dtype, device=p.device) - p[:, :, None]) * p.sqrt()[:, None]
    edges = p.double().cumsum(1)[:, :-1].contiguous()
    labels = torch.searchsorted(edges, draws.contiguous(), right=True)
    drawn = torch.nn.functional.one_hot(labels, p.shape[1]).mT
    return (p[:, :, None] - drawn) / draws.shape[1] ** 0.5
