"""Any torch.nn.Module as a pure function of one flat parameter vector, for `Objective` and the solvers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import cached_property, partial
from numbers import Real

import torch
from torch import Tensor
from torch.backends import cudnn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from fragile_lib.models.flat import Flat
from fragile_lib.tools.checks import check_count
from fragile_lib.tools.errors import bad_input

# What hides a module: copies on devices, compiled code.
WRAPPED = torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel, torch.jit.ScriptModule


class ModuleModel(Flat):
    """A copy of `module`, (n, ...) -> outputs (n, n_classes), as what `Objective` asks for: (theta (P,), x) -> outputs.

    Outputs may be (n, T, n_classes), of the places of a sequence, and (n,) for a single one. Parameters lie in one
    vector (P,) in the order of `torch.nn.utils.parameters_to_vector`; one that is used in several places is there once,
    and a frozen one (requires_grad False) is a parameter like the others. Buffers are constants, taken over in the
    floating type of theta. The module itself is left as it is, and so is x, whatever layers do in place. Attention and
    recurrent layers are computed by kernels that have all derivatives. K-FAC asks for `module`.

    Raises:
        InputError: a module for several devices or a compiled one; no parameters, some whose shape is not known yet, or
            of other types than one of float32 and float64; a layer that is random or changes its buffers (dropout,
            batch normalisation in training mode), or whose output for one example depends on the others (batch
            normalisation without running statistics); a number of classes below 1. When called: outputs that are no
            tensor, or of another shape.
    """

    def __init__(self, module: torch.nn.Module, n_classes: int) -> None:
        check_count("n_classes", n_classes)
        if isinstance(module, WRAPPED) or hasattr(module, "_orig_mod"):  # the last: torch.compile
            remedy = "give the plain torch.nn.Module inside (module.module, module._orig_mod, or the one compiled)"
            raise bad_input("module", type(module).__name__, remedy)
        for name, part in module.named_modules():
            _check(name, part)
        parameters = list(module.parameters())
        if not parameters or any(is_lazy(parameter) for parameter in parameters):
            remedy = "give a module with parameters; a lazy one is to be called once before"
            raise bad_input("module", type(module).__name__, remedy)
        kinds = {parameter.dtype for parameter in parameters}
        if len(kinds) > 1 or not kinds <= {torch.float32, torch.float64}:
            remedy = "give parameters of one type, float32 or float64: module.float() or module.double()"
            raise bad_input("module", sorted(map(str, kinds)), remedy)
        self._network, self.n_classes = deepcopy(module), n_classes
        self._recurrent = any(isinstance(part, torch.nn.RNNBase) for part in module.modules())
        for part in self._network.modules():
            if isinstance(part, _WeightNorm):  # torch 2.14 has a wrong second derivative of its own kernel
                part.forward = partial(_normed_weight, dim=part.dim)

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
        with differentiable(self._recurrent):
            out = functional_call(self._network, values, (x.clone(),))  # a layer may work in place
        if not isinstance(out, Tensor):
            raise bad_input("module(x)", type(out).__name__, "wrap the module so that it returns its outputs alone")
        out = out[:, None] if self.n_classes == 1 and out.shape == (len(x),) else out
        if out.ndim < 2 or (len(out), out.shape[-1]) != (len(x), self.n_classes):
            raise bad_input("module(x).shape", tuple(out.shape), f"give outputs ({len(x)}, {self.n_classes})")
        return out


def _normed_weight(size: Tensor, direction: Tensor, dim: int) -> Tensor:
    """size * direction / ||direction||, the norm over all dimensions but one; over all of them for -1."""
    others = [d for d in range(direction.ndim) if dim == -1 or d != dim % direction.ndim]
    return direction * (size / torch.linalg.vector_norm(direction, dim=others, keepdim=dim != -1))


@contextmanager
def differentiable(recurrent: bool) -> Iterator[None]:
    """Within: attention, and recurrent layers where there are some, run on kernels that have all their derivatives."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), cudnn.flags(enabled=False) if recurrent else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _check(name: str, part: torch.nn.Module) -> None:
    """Raise InputError for a layer that is not a function of its parameters and one example alone."""
    where, kind = f"module.{name}" if name else "module", type(part).__name__
    if isinstance(part, _BatchNorm) and part.running_mean is None:
        raise bad_input(where, kind, "give it running statistics: examples must not depend on each other")
    if any(isinstance(hook, WeightNorm) for hook in part._forward_pre_hooks.values()):
        raise bad_input(
            where, kind, "take torch.nn.utils.parametrizations.weight_norm: of this one torch keeps no copy"
        )
    rate = getattr(part, "dropout", 0.0)  # of attention and recurrent layers
    changing = (
        isinstance(part, _BatchNorm | _DropoutNd | torch.nn.RReLU | _SpectralNorm)
        or (isinstance(part, _InstanceNorm) and part.track_running_stats)
        or (isinstance(rate, Real) and rate > 0)
    )
    if part.training and changing:
        raise bad_input(where, kind, "it is random or changes in training mode; call module.eval() before")
