"""J of multilayer perceptrons on a CPU, by the compiled kernels of `kernels.mlp`, and the choice of an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from fragile_lib.data.sets import Data
from fragile_lib.kernels import mlp
from fragile_lib.models.mlp import MLP
from fragile_lib.objectives.base import Model, Objective, resolve_device
from fragile_lib.objectives.losses import CROSS_ENTROPY, Loss, check_plain, is_plain


class FusedObjective(Objective):
    """The same for an `MLP` on a CPU in float64, by compiled kernels that run each network inside the cache.

    Raises:
        InputError: what `Objective` raises, or a loss other than the plain cross entropy.
    """

    def __init__(
        self,
        model: MLP,
        data: Data,
        weight_decay: float = 0.0,
        device: str = "cpu",
        loss: Loss = CROSS_ENTROPY,
    ) -> None:
        check_plain(loss, data.y)
        super().__init__(model, data, weight_decay, device, loss)
        self._sizes = np.array(model.sizes)
        self._activation = {"relu": mlp.RELU, "tanh": mlp.TANH, "softplus": model.sharpness}[model.activation]

    def _hold(self, data: Data) -> None:
        super()._hold(data)
        self._x = np.ascontiguousarray(data.x.numpy().transpose(0, 2, 1))
        self._y = np.ascontiguousarray(data.y.numpy())

    def _made(
        self, kernel: Callable, shape: tuple, dataset: Tensor | None, *stacks: Tensor, more: tuple = ()
    ) -> Tensor:
        """What a kernel makes of stacks, theta (E, P) first, and of the data: a tensor of this shape."""
        out = np.empty(shape)
        kernel(*map(_array, stacks), *self._network(stacks[0], dataset), *more, out)
        return torch.from_numpy(out)

    def _network(self, theta: Tensor, dataset: Tensor | None) -> tuple:
        return self._x, self._y, self.members(theta, dataset).numpy(), self._sizes, self._activation

    def _outputs(self, theta: Tensor, dataset: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        out = self._made(mlp.logits, (len(theta), self.model.n_classes, self.n), dataset, theta)
        yield out.transpose(1, 2), self.data.y[self.members(theta, dataset)]

    def example_gradients(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:  # noqa: D102
        return self._made(mlp.example_gradients, (len(theta), self.n, self.model.n_params), dataset, theta)

    def directional(self, theta: Tensor, v: Tensor, dataset: Tensor | None = None) -> Tensor:  # noqa: D102
        return v @ self.example_gradients(theta, dataset).mT

    def _gradient(self, theta: Tensor, weights: Tensor, dataset: Tensor | None) -> Tensor:
        return self._made(mlp.gradients, theta.shape, dataset, theta, weights) + self.decay * theta

    def products(  # noqa: D102
        self, theta: Tensor, v: Tensor, weights: Tensor, dataset: Tensor | None = None, gauss_newton: bool = False
    ) -> Tensor:
        return self._made(mlp.products, v.shape, dataset, theta, v, weights, more=(gauss_newton,)) + self.decay * v

    def matrices(  # noqa: D102
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None, gauss_newton: bool = False
    ) -> Tensor:
        shape = *theta.shape, theta.shape[1]
        return self._made(mlp.matrices, shape, dataset, theta, weights, more=(gauss_newton,)) + torch.diag(self.decay)

    def descend(  # noqa: D102
        self,
        theta: Tensor,
        velocity: Tensor,
        weights: Tensor,
        dataset: Tensor,
        rate: float,
        momentum: float,
        steps: int,
    ) -> tuple[Tensor, Tensor]:
        theta, velocity = theta.clone(), velocity.clone()
        state = theta.numpy(), velocity.numpy(), _array(weights)
        mlp.descend(*state, *self._network(theta, dataset), self.decay.numpy(), rate, momentum, steps)
        return theta, velocity

    def stochastic_recursion(  # noqa: D102
        self,
        theta: Tensor,
        v: Tensor,
        draws: Iterable[np.ndarray],
        dataset: Tensor,
        damping: float,
        scale: float,
        growth: float | None = None,
    ) -> Tensor:
        if growth is not None or not isinstance(draws, np.ndarray) or draws.ndim > 1:
            return super().stochastic_recursion(theta, v, draws, dataset, damping, scale, growth)
        out, d = np.empty(v.shape), int(dataset[0])
        options = self._sizes, self._activation, self.decay.numpy(), damping, scale
        mlp.lissa(_array(theta), _array(v), self._x[d], self._y[d], draws, *options, out)
        return torch.from_numpy(out)


def make_objective(
    model: Model, data: Data, weight_decay: float = 0.0, device: str = "auto", loss: Loss = CROSS_ENTROPY
) -> Objective:
    """The fastest objective for this network, data, loss and device; `auto` takes CUDA where there is one.

    Raises:
        InputError: a device that is not `auto`, `cpu` or `cuda`, or `cuda` where there is none.
    """
    device = resolve_device(device)
    fused = isinstance(model, MLP) and device == "cpu" and data.x.dtype == torch.float64 and is_plain(loss, data.y)
    return (FusedObjective if fused else Objective)(model, data, weight_decay, device, loss)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy(), dtype=np.float64)
