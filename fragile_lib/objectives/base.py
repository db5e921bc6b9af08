"""The objective under example weights, and its derivatives, for a stack of networks.

    J(theta; w) = sum_i w_i loss(z_i, theta) + (weight_decay / 2) ||theta_reg||^2,     w_i = 1/n by default

Two classes with one interface: `Objective`, on torch.func, for any network and device, and `FusedObjective`, on the
compiled kernels of `mlp_kernels`, for multilayer perceptrons on a CPU. `make_objective` chooses.

Letters: E stack size, P parameters, n examples, K vectors, S data sets. Every method takes theta (E, P) and, where a
stack member's data set is not the one of its own position, `dataset` (E,), the index of each member's data set.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap
from torch.nn.functional import cross_entropy

from fragile_lib.data.sets import Data
from fragile_lib.kernels import mlp as mlp_kernels
from fragile_lib.kernels.shallow import shallow_matrices
from fragile_lib.models.mlp import MLP
from fragile_lib.tools.errors import bad_input


class Objective:
    """J and its derivatives by torch.func, for any `model(theta (P,), x (n, ...)) -> logits (n, classes)`.

    Raises:
        InputError: a weight decay that is negative or not finite.
    """

    def __init__(self, model: MLP, data: Data, weight_decay: float = 0.0, device: str = "cpu") -> None:
        if not (np.isfinite(weight_decay) and weight_decay >= 0):
            raise bad_input("weight_decay", weight_decay, "give a finite number of at least 0")
        self.model, self.weight_decay = model, float(weight_decay)
        self.device = torch.device(device)
        self.data = Data(data.x.to(self.device), data.y.to(self.device))
        self.decay = (weight_decay * model.is_weight).to(self.data.x)

    @property
    def n(self) -> int:
        """The number of examples of each data set."""
        return len(self.data)

    def on(self, data: Data) -> Objective:
        """The same losses on other data (test data), without the L2 term."""
        return type(self)(self.model, data, 0.0, str(self.device))

    def smoothed(self, sharpness: float) -> Objective:
        """J of the same network with softplus of this sharpness in the place of ReLU, on the same data."""
        return type(self)(self.model.smoothed(sharpness), self.data, self.weight_decay, str(self.device))

    def uniform(self, size: int) -> Tensor:
        """The default weights: (size, n), all 1/n."""
        return torch.full((size, self.n), 1 / self.n, dtype=self.data.x.dtype, device=self.device)

    def members(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:
        """(E,) the data set of each stack member: as given, or its position, or the only one there is."""
        size, sets = theta.shape[0], self.data.y.shape[0]
        if dataset is None:
            if sets not in (1, size):
                raise bad_input("dataset", None, f"say which of the {sets} data sets each of the {size} networks sees")
            dataset = torch.arange(size) if sets == size else torch.zeros(size, dtype=torch.long)
        return dataset.to(self.device)

    # -- per example -------------------------------------------------------------------------------------------------

    def logits(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:
        """Logits (E, n, classes)."""
        return vmap(self.model)(theta, self.data.x[self.members(theta, dataset)])

    def losses(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:
        """loss(z_i, theta_e): (E, n), cross entropy in nats."""
        out = self.logits(theta, dataset)
        labels = self.data.y[self.members(theta, dataset)]
        return cross_entropy(out.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)

    def example_gradients(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:
        """grad loss(z_i, theta_e): (E, n, P), without L2 term."""
        d = self.members(theta, dataset)
        one = vmap(grad(lambda t, x, y: self._loss(t, x[None], y[None])[0]), in_dims=(None, 0, 0))
        return vmap(one)(theta, self.data.x[d], self.data.y[d])

    def directional(self, theta: Tensor, v: Tensor, dataset: Tensor | None = None) -> Tensor:
        """v_k . grad loss(z_i, theta_e): (E, K, n) for v (E, K, P), by forward mode: no per-example gradients."""
        d = self.members(theta, dataset)

        def one(t: Tensor, u: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return jvp(lambda s: self._loss(s, x, y), (t,), (u,))[1]

        return vmap(vmap(one, in_dims=(None, 0, None, None)))(theta, v, self.data.x[d], self.data.y[d])

    # -- under weights -----------------------------------------------------------------------------------------------

    def value(self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None) -> Tensor:
        """J(theta_e; w_e): (E,)."""
        return (weights * self.losses(theta, dataset)).sum(1) + 0.5 * (self.decay * theta**2).sum(1)

    def gradient(self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None) -> Tensor:
        """grad J(theta_e; w_e): (E, P)."""
        d = self.members(theta, dataset)
        data_part = vmap(grad(self._weighted))(theta, weights, self.data.x[d], self.data.y[d])
        return data_part + self.decay * theta

    def products(
        self, theta: Tensor, v: Tensor, weights: Tensor, dataset: Tensor | None = None, gauss_newton: bool = False
    ) -> Tensor:
        """(E, K, P): the Hessian of J, or its Gauss-Newton (GGN) part, times each v (E, K, P); the L2 term included.

        GGN = sum_i w_i J_i^T Lambda_i J_i + L2, J_i the Jacobian of the logits and Lambda_i = diag(p) - p p^T
        (Schraudolph 2002). The Hessian product is Pearlmutter's (1994).
        """
        d = self.members(theta, dataset)
        one = self._ggn_product if gauss_newton else self._hessian_product
        product = vmap(vmap(one, in_dims=(None, 0, None, None, None)))
        return product(theta, v, weights, self.data.x[d], self.data.y[d]) + self.decay * v

    def matrices(
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None, gauss_newton: bool = False
    ) -> Tensor:
        """(E, P, P): the Hessian of J, or its Gauss-Newton part, dense; one product for each column."""
        size, n_params = theta.shape
        basis = torch.eye(n_params, dtype=theta.dtype, device=theta.device).expand(size, n_params, n_params)
        found = self.products(theta, basis, weights, dataset, gauss_newton)
        return (found + found.mT) / 2

    def descend(
        self,
        theta: Tensor,
        velocity: Tensor,
        weights: Tensor,
        dataset: Tensor,
        rate: float,
        momentum: float,
        steps: int,
    ) -> tuple[Tensor, Tensor]:
        """(theta, velocity) after `steps` of gradient descent with momentum, in the form of torch.optim.SGD."""
        for _ in range(steps):
            velocity = momentum * velocity + self.gradient(theta, weights, dataset)
            theta = theta - rate * velocity
        return theta, velocity

    def stochastic_recursion(
        self, theta: Tensor, v: Tensor, draws: np.ndarray, dataset: Tensor, damping: float, scale: float
    ) -> Tensor:
        """x (K, P) after h <- v + h - (H_t + L2 + damping) h / scale; x = h / scale.

        H_t is the mean Hessian of the examples draws[t], one (T,) or a minibatch (T, B). It ends early where h is not
        finite any more.
        """
        x, y, h = self.data.x[dataset[0]], self.data.y[dataset[0]], v
        draws = draws.reshape(len(draws), -1)
        mean = torch.full(draws.shape[1:], 1 / draws.shape[1], dtype=theta.dtype, device=theta.device)
        product = vmap(self._hessian_product, in_dims=(None, 0, None, None, None))
        for t, batch in enumerate(torch.from_numpy(draws).to(self.device)):
            curved = product(theta, h, mean, x[batch], y[batch])
            h = v + h - (curved + (self.decay + damping) * h) / scale
            if t % 100 == 99 and not torch.isfinite(h).all():
                break
        return h / scale

    # -- of one network ----------------------------------------------------------------------------------------------

    def _loss(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.model(theta, x), y, reduction="none")

    def _weighted(self, theta: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (weights * self._loss(theta, x, y)).sum()

    def _hessian_product(self, theta: Tensor, v: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return jvp(lambda t: grad(self._weighted)(t, weights, x, y), (theta,), (v,))[1]

    def _ggn_product(self, theta: Tensor, v: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        network = partial(self.model, x=x)
        out, tangent = jvp(network, (theta,), (v,))
        p = out.softmax(1)
        cotangent = weights[:, None] * p * (tangent - (p * tangent).sum(1, keepdim=True))
        return vjp(network, theta)[1](cotangent)[0]


class FusedObjective(Objective):
    """The same for an `MLP` on a CPU in float64, by compiled kernels that run each network inside the cache."""

    def __init__(self, model: MLP, data: Data, weight_decay: float = 0.0, device: str = "cpu") -> None:
        super().__init__(model, data, weight_decay, device)
        self._x = np.ascontiguousarray(data.x.numpy().transpose(0, 2, 1))
        self._y = np.ascontiguousarray(data.y.numpy())
        self._sizes = np.array(model.sizes)
        self._activation = {"relu": mlp_kernels.RELU, "tanh": mlp_kernels.TANH, "softplus": model.sharpness}[
            model.activation
        ]

    def _arguments(self, theta: Tensor, dataset: Tensor | None) -> tuple:
        return self._x, self._y, self.members(theta, dataset).numpy(), self._sizes, self._activation

    def logits(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:  # noqa: D102
        x, _, d, sizes, activation = self._arguments(theta, dataset)
        out = np.empty((len(theta), self.model.n_classes, self.n))
        mlp_kernels.logits(_array(theta), x, d, sizes, activation, out)
        return torch.from_numpy(out).transpose(1, 2)

    def example_gradients(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:  # noqa: D102
        out = np.empty((len(theta), self.n, self.model.n_params))
        mlp_kernels.example_gradients(_array(theta), *self._arguments(theta, dataset), out)
        return torch.from_numpy(out)

    def directional(self, theta: Tensor, v: Tensor, dataset: Tensor | None = None) -> Tensor:  # noqa: D102
        out = np.empty((*v.shape[:2], self.n))
        mlp_kernels.directional(_array(theta), _array(v), *self._arguments(theta, dataset), out)
        return torch.from_numpy(out)

    def gradient(self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None) -> Tensor:  # noqa: D102
        out = np.empty(theta.shape)
        mlp_kernels.gradients(_array(theta), _array(weights), *self._arguments(theta, dataset), out)
        return torch.from_numpy(out) + self.decay * theta

    def products(  # noqa: D102
        self, theta: Tensor, v: Tensor, weights: Tensor, dataset: Tensor | None = None, gauss_newton: bool = False
    ) -> Tensor:
        out = np.empty(v.shape)
        arguments = self._arguments(theta, dataset)
        mlp_kernels.products(_array(theta), _array(v), _array(weights), *arguments, gauss_newton, out)
        return torch.from_numpy(out) + self.decay * v

    def matrices(  # noqa: D102
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None, gauss_newton: bool = False
    ) -> Tensor:
        if self.model.depth == 1:  # one matrix product beats the kernel's columns
            d = self.members(theta, dataset)
            found = shallow_matrices(self.model, theta, self.data.x[d], self.data.y[d], weights, gauss_newton)
            found.diagonal(dim1=1, dim2=2).add_(self.decay)
            return found
        out = np.empty((len(theta), theta.shape[1], theta.shape[1]))
        arguments = self._arguments(theta, dataset)
        mlp_kernels.matrices(_array(theta), _array(weights), *arguments, gauss_newton, out)
        return torch.from_numpy(out) + torch.diag(self.decay)

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
        arguments = self._arguments(theta, dataset)
        state = theta.numpy(), velocity.numpy(), _array(weights)
        mlp_kernels.descend(*state, *arguments, self.decay.numpy(), rate, momentum, steps)
        return theta, velocity

    def stochastic_recursion(  # noqa: D102
        self, theta: Tensor, v: Tensor, draws: np.ndarray, dataset: Tensor, damping: float, scale: float
    ) -> Tensor:
        if draws.ndim > 1:
            return super().stochastic_recursion(theta, v, draws, dataset, damping, scale)
        out, d = np.empty(v.shape), int(dataset[0])
        options = self._sizes, self._activation, self.decay.numpy(), damping, scale
        mlp_kernels.lissa(_array(theta), _array(v), self._x[d], self._y[d], draws, *options, out)
        return torch.from_numpy(out)


def make_objective(model: MLP, data: Data, weight_decay: float = 0.0, device: str = "auto") -> Objective:
    """The fastest objective for this network, data and device; `auto` takes CUDA where there is one.

    Raises:
        InputError: a device that is not `auto`, `cpu` or `cuda`, or `cuda` where there is none.
    """
    device = resolve_device(device)
    fused = isinstance(model, MLP) and device == "cpu" and data.x.dtype == torch.float64
    return (FusedObjective if fused else Objective)(model, data, weight_decay, device)


def resolve_device(device: str) -> str:
    """`cpu` or `cuda`, with `auto` resolved."""
    if device not in ("auto", "cpu", "cuda"):
        raise bad_input("device", device, "choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise bad_input("device", device, "no CUDA device is there; choose auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy(), dtype=np.float64)
