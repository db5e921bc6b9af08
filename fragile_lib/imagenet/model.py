"""A large network as a function of its flat parameter vector, whose gradient costs what the network's own does."""

from __future__ import annotations

from torch import Tensor
from torch.func import functional_call

from fragile_lib.adapter import ModuleModel
from fragile_lib.errors import bad_input


class SplitModel(ModuleModel):
    """`ModuleModel`, with theta (P,) taken apart in one piece of work.

    The gradient of a slice is a vector (P,) of zeros but for the slice, and they are added up, one for each parameter
    tensor: for ResNet-50's 161 tensors that took 24 s on one core, 150 times the network's forward pass on ten images
    of 32 pixels. The gradient of `split` is one concatenation.
    """

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (n, classes) of one network theta (P,) on x (n, ...)."""
        named = dict(self._network.named_parameters())
        parts = theta.split([parameter.numel() for parameter in named.values()])
        values = {name: part.view(named[name].shape) for name, part in zip(named, parts, strict=True)}
        for name, buffer in self._network.named_buffers():
            values[name] = buffer.to(theta.dtype) if buffer.is_floating_point() else buffer
        logits = functional_call(self._network, values, (x,))
        if logits.shape != (len(x), self.n_classes):
            raise bad_input("module(x).shape", tuple(logits.shape), f"give logits ({len(x)}, {self.n_classes})")
        return logits
