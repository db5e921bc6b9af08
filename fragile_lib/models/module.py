"""Any torch.nn.Module as a pure function of one flat parameter vector, for `Objective` and the solvers."""

from __future__ import annotations

from copy import deepcopy
from functools import cached_property
from numbers import Real

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from fragile_lib.models.flat import Flat
from fragile_lib.tools.checks import check_count
from fragile_lib.tools.errors import bad_input


class ModuleModel(Flat):
    """A copy of `module`, (n, ...) -> logits (n, n_classes), as what `Objective` asks for: (theta (P,), x) -> logits.

    Parameters lie in one vector (P,) in the order of `torch.nn.utils.parameters_to_vector`; one that is used in several
    places is there once, and a frozen one (requires_grad False) is a parameter like the others. Buffers are constants,
    taken over in the floating type of theta. The module itself is left as it is. K-FAC asks for `module`.

    Raises:
        InputError: no parameters, or some whose shape is not known yet; a layer that is random or changes its buffers
            (dropout, batch normalisation in training mode), or whose output for one example depends on the others
            (batch normalisation without running statistics); a number of classes below 1. When called: logits of
            another shape.
    """

    def __init__(self, module: torch.nn.Module, n_classes: int) -> None:
        check_count("n_classes", n_classes)
        for name, part in module.named_modules():
            _check(name, part)
        parameters = list(module.parameters())
        if not parameters or any(is_lazy(parameter) for parameter in parameters):
            remedy = "give a module with parameters; a lazy one is to be called once before"
            raise bad_input("module", type(module).__name__, remedy)
        self._network, self.n_classes = deepcopy(module), n_classes

    @cached_property
    def theta(self) -> Tensor:
        """(P,) the module's own parameters when it was taken over."""
        return torch.cat([parameter.detach().flatten() for parameter in self._network.parameters()])

    @cached_property
    def tensors(self) -> tuple[torch.Size, ...]:  # noqa: D102
        return tuple(parameter.shape for parameter in self._network.parameters())

    def bare(self) -> torch.nn.Module:
        """A copy of the module."""
        return deepcopy(self._network)

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (n, classes) of one network theta (P,) on x (n, ...)."""
        names = (name for name, _ in self._network.named_parameters())
        values = dict(zip(names, self.parts(theta), strict=True))
        for name, buffer in self._network.named_buffers():
            values[name] = buffer.to(theta.dtype) if buffer.is_floating_point() else buffer
        logits = functional_call(self._network, values, (x,))
        if logits.shape != (len(x), self.n_classes):
            raise bad_input("module(x).shape", tuple(logits.shape), f"give logits ({len(x)}, {self.n_classes})")
        return logits


def _check(name: str, part: torch.nn.Module) -> None:
    """Raise InputError for a layer that is not a function of its parameters and one example alone."""
    where, kind = f"module.{name}" if name else "module", type(part).__name__
    if isinstance(part, _BatchNorm) and part.running_mean is None:
        raise bad_input(where, kind, "give it running statistics: examples must not depend on each other")
    rate = getattr(part, "dropout", 0.0)  # of attention and recurrent layers
    changing = (
        isinstance(part, _BatchNorm | _DropoutNd | torch.nn.RReLU)
        or (isinstance(part, _InstanceNorm) and part.track_running_stats)
        or (isinstance(rate, Real) and rate > 0)
    )
    if part.training and changing:
        raise bad_input(where, kind, "it is random or changes in training mode; call module.eval() before")
