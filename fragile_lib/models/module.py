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
from torch.nn.utils import vector_to_parameters

from fragile_lib.tools.errors import bad_input


class ModuleModel:
    """A copy of `module`, (n, ...) -> logits (n, n_classes), as what `Objective` asks for: (theta (P,), x) -> logits.

    Parameters lie in one vector (P,) in the order of `torch.nn.utils.parameters_to_vector`; one that is used in several
    places is there once, and a frozen one (requires_grad False) is a parameter like the others. The L2 term acts on
    those of two dimensions or more, so not on biases and normalisation scales. Buffers are constants, taken over in
    the floating type of theta. The module itself is left as it is.

    Raises:
        InputError: no parameters, or some whose shape is not known yet; a layer that is random or changes its buffers
            (dropout, batch normalisation in training mode), or whose output for one example depends on the others
            (batch normalisation without running statistics); a number of classes below 1. When called: logits of
            another shape.
    """

    def __init__(self, module: torch.nn.Module, n_classes: int) -> None:
        if isinstance(n_classes, bool) or not isinstance(n_classes, int) or n_classes < 1:
            raise bad_input("n_classes", n_classes, "give a whole number of at least 1")
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

    @property
    def n_params(self) -> int:
        """P, the length of the parameter vector."""
        return len(self.theta)

    @cached_property
    def is_weight(self) -> Tensor:
        """(P,) one for the parameters that the L2 term acts on, zero for the others."""
        marks = [torch.full((p.numel(),), float(p.dim() > 1)) for p in self._network.parameters()]
        return torch.cat(marks).double().to(self.theta.device)

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (n, classes) of one network theta (P,) on x (n, ...)."""
        named = dict(self._network.named_parameters())
        parts = theta.split([parameter.numel() for parameter in named.values()])  # reverse mode: one concatenation
        values = {name: part.view(named[name].shape) for name, part in zip(named, parts, strict=True)}
        for name, buffer in self._network.named_buffers():
            values[name] = buffer.to(theta.dtype) if buffer.is_floating_point() else buffer
        logits = functional_call(self._network, values, (x,))
        if logits.shape != (len(x), self.n_classes):
            raise bad_input("module(x).shape", tuple(logits.shape), f"give logits ({len(x)}, {self.n_classes})")
        return logits

    def module(self, theta: Tensor) -> torch.nn.Module:
        """The network as a torch.nn.Module that owns copies of theta (P,), in its floating type; K-FAC asks for it."""
        network = deepcopy(self._network).to(theta)
        vector_to_parameters(theta.detach().clone(), network.parameters())
        return network


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
