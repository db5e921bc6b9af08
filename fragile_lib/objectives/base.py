"""The objective under example weights, and its derivatives, for a stack of networks.

    J(theta; w) = sum_i w_i loss(z_i, theta) + (weight_decay / 2) ||theta_reg||^2,     w_i = 1/n by default

`Objective`, on torch, serves any network and device; the other modules of this folder have the same interface.
`fused.make_objective` chooses.

Letters: E stack size, P parameters, n examples, K vectors, S data sets. Every method takes theta (E, P) and, where a
stack member's data set is not the one of its own position, `dataset` (E,), the index of each member's data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap
from torch.nn.functional import cross_entropy, one_hot

from fragile_lib.data.sets import Data
from fragile_lib.tools.errors import bad_input

SMALL = 2**22  # numbers: per-example gradients that are held at once rather than passed over for each direction


class Model(Protocol):
    """What an objective asks of a network: theta (P,), x (n, ...) -> logits (n, classes); P; where the L2 term acts."""

    n_params: int
    is_weight: Tensor

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor: ...  # noqa: D102


class GrownError(ArithmeticError):
    """A recursion was ended because it grew; its argument is the number of steps made."""


class Objective:
    """J and its derivatives by torch, for any `Model`.

    Raises:
        InputError: a weight decay that is negative or not finite.
    """

    def __init__(self, model: Model, data: Data, weight_decay: float = 0.0, device: str = "cpu") -> None:
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

    def part(self, rows: np.ndarray) -> Objective:
        """The losses of some examples (B,) of each data set, without the L2 term."""
        return self.on(Data(self.data.x[:, rows], self.data.y[:, rows]))

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
        losses = vmap(vmap(lambda t, x, y: self._loss(t, x[None], y[None])[0]))
        each = theta[:, None].expand(-1, self.n, -1)
        return slope(lambda t: losses(t, self.data.x[d], self.data.y[d]).sum(), each)

    def logit_gradients(self, theta: Tensor, dataset: int = 0) -> Tensor:
        """(n, classes) the derivative of each loss in its logits at theta (P,); softmax minus label: cross entropy."""
        p = self.logits(theta[None], torch.tensor([dataset]))[0].softmax(1)
        return p - one_hot(self.data.y[dataset], p.shape[1])

    def directional(self, theta: Tensor, v: Tensor, dataset: Tensor | None = None) -> Tensor:
        """v_k . grad loss(z_i, theta_e): (E, K, n) for v (E, K, P).

        By one forward-mode pass for each v, without per-example gradients; where these are few numbers, by them.
        """
        if self.n * theta.numel() <= SMALL:
            return v @ self.example_gradients(theta, dataset).mT
        d = self.members(theta, dataset)

        def one(t: Tensor, u: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return jvp(lambda s: self._loss(s, x, y), (t,), (u,))[1]

        return vmap(vmap(one, in_dims=(None, 0, None, None)))(theta, v, self.data.x[d], self.data.y[d])

    # -- under weights -----------------------------------------------------------------------------------------------

    def value(self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None) -> Tensor:
        """J(theta_e; w_e): (E,)."""
        return (weights * self.losses(theta, dataset)).sum(1) + 0.5 * (self.decay * theta**2).sum(1)

    def gradient(
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None, cotangent: Tensor | None = None
    ) -> Tensor:
        """grad J(theta_e; w_e): (E, P); with a cotangent c (n, classes) that of J + sum_i <c_i, logits_ei>."""
        found = self._gradient(theta, weights, dataset)
        if cotangent is None:
            return found
        x = self.data.x[self.members(theta, dataset)]
        return found + slope(lambda t: (cotangent * vmap(self.model)(t, x)).sum(), theta)

    def value_and_gradient(
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None, cotangent: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """J (E,), or J + sum_i <c_i, logits_i>, and its gradient (E, P); in one pass where the kind can do that."""
        value = self.value(theta, weights, dataset)
        if cotangent is not None:
            value = value + (cotangent * self.logits(theta, dataset)).sum((1, 2))
        return value, self.gradient(theta, weights, dataset, cotangent)

    def batch_gradient(self, theta: Tensor, weights: Tensor, rows: np.ndarray, dataset: Tensor | None = None) -> Tensor:
        """grad of sum over the batch `rows` (B,) of w_i loss_i, plus L2: (E, P) for weights (E, n)."""
        return (self.part(rows).gradient(theta, weights[:, rows], dataset) + self.decay * theta).to(theta.dtype)

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

    def batch_products(
        self, theta: Tensor, v: Tensor, rows: np.ndarray, dataset: int = 0, gauss_newton: bool = False
    ) -> Tensor:
        """(K, P): the mean Hessian of the losses of a few examples, or its Gauss-Newton part, times each v (K, P).

        At one network theta (P,), for the examples `rows` (B,) of a data set, without L2 term.
        """
        x, y = self.data.x[dataset, rows], self.data.y[dataset, rows]
        mean = torch.full_like(y, 1 / len(rows), dtype=theta.dtype)
        one = self._ggn_product if gauss_newton else self._hessian_product
        return vmap(one, in_dims=(None, 0, None, None, None))(theta, v, mean, x, y)

    def stochastic_recursion(
        self,
        theta: Tensor,
        v: Tensor,
        draws: Iterable[np.ndarray],
        dataset: Tensor,
        damping: float,
        scale: float,
        growth: float | None = None,
    ) -> Tensor:
        """x (K, P) after h <- v + h - (H_t + L2 + damping) h / scale; x = h / scale.

        H_t is the mean Hessian of the examples draws[t], one (T,) or a minibatch (T, B). It ends early where h is not
        finite any more.

        Raises:
            GrownError: |h| after t steps is beyond `growth` (t + 1) |v|: that many times larger than contractions make
                it.
        """
        h, place, size = v, int(dataset[0]), v.norm(dim=1)
        for step, rows in enumerate(draws, 1):
            curved = self.batch_products(theta, h, np.atleast_1d(rows), place)
            h = v + h - (curved + (self.decay + damping) * h) / scale
            if growth is not None and not bool((h.norm(dim=1) <= growth * (step + 1) * size).all()):
                raise GrownError(step)
            if step % 100 == 0 and not torch.isfinite(h).all():
                break
        return h / scale

    def _gradient(self, theta: Tensor, weights: Tensor, dataset: Tensor | None) -> Tensor:
        d = self.members(theta, dataset)
        x, y = self.data.x[d], self.data.y[d]
        return slope(lambda t: vmap(self._weighted)(t, weights, x, y).sum(), theta) + self.decay * theta

    # -- of one network ----------------------------------------------------------------------------------------------

    def _loss(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        # cross entropy in two steps: as one, its first use under vmap imports for a third of a second
        return -self.model(theta, x).log_softmax(1).gather(1, y[:, None])[:, 0]

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


def resolve_device(device: str) -> str:
    """`cpu` or `cuda`, with `auto` resolved."""
    if device not in ("auto", "cpu", "cuda"):
        raise bad_input("device", device, "choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise bad_input("device", device, "no CUDA device is there; choose auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def slope(value: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """d value / d at, in the shape of `at`, by plain autograd: torch.func.grad imports for a second when first used."""
    at = at.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(value(at), at)[0]
