"""The objective under example weights, and its derivatives, for a stack of networks.

    J(theta; w) = sum_i w_i loss(z_i, theta) + (weight_decay / 2) ||theta_reg||^2,     w_i = 1/n by default

`Objective`, on torch, serves any network, loss and device; the other modules of this folder have the same interface.
`fused.make_objective` chooses, and `losses` says what a loss is.

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
from torch.func import grad, jacrev, jvp, vjp, vmap

from fragile_lib.data.sets import Data
from fragile_lib.objectives.losses import CROSS_ENTROPY, Loss, as_loss, over_vectors
from fragile_lib.tools.checks import check_number
from fragile_lib.tools.errors import bad_input, require

SMALL = 2**22  # numbers: per-example gradients that are held at once rather than passed over for each direction


class Model(Protocol):
    """What an objective asks of a network: theta (P,), x (n, ...) -> logits (n, classes); P; where the L2 term acts."""

    n_params: int
    is_weight: Tensor

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor: ...  # noqa: D102


class GrownError(ArithmeticError):
    """A recursion was ended because it grew; its argument is the number of steps made."""


class Objective:
    """J and its derivatives by torch, for any `Model` and `Loss`.

    Floating type and device are theta's where the model has its parameters with it, else those of the features:
    weights, decay and features of a floating type take them. Labels are checked here, once.

    By torch.func; where an operation of the network has no forward mode or no batching rule (attention on some devices,
    recurrent layers, weight normalisation) by plain reverse mode, one network and, for the Hessian and for
    directions, one vector at a time.

    Args:
        model: theta (P,), x -> outputs.
        data: features x (S, n, ...) and labels or targets y (S, n, ...).
        weight_decay: of J; at least 0.
        device: where data are kept, for a model without parameters of its own.
        loss: one of `losses`, or a function (outputs, targets) -> (n,).

    Raises:
        InputError: a weight decay that is no finite number of at least 0; data of other shapes or lengths, or none;
            labels that the loss has no meaning for.
    """

    def __init__(
        self,
        model: Model,
        data: Data,
        weight_decay: float = 0.0,
        device: str = "cpu",
        loss: Loss | Callable[[Tensor, Tensor], Tensor] = CROSS_ENTROPY,
    ) -> None:
        check_number("weight_decay", weight_decay)
        self.model, self.weight_decay, self.loss = model, float(weight_decay), as_loss(loss)
        like = getattr(model, "theta", data.x)
        require(like.is_floating_point(), "data.x.dtype", data.x.dtype, "give features of a floating type (x.double())")
        self.device = torch.device(device) if like is data.x else like.device
        self.data = self._taken(data, like.dtype)
        self.decay = (weight_decay * model.is_weight).to(self.device, like.dtype)
        self.plain = False  # whether an operation was met that torch.func cannot transform

    def __init_subclass__(cls) -> None:
        if "_loss" in vars(cls):
            raise bad_input("_loss", cls.__name__, "give the loss as `loss`: a method of J's would miss its curvature")

    def _taken(self, data: Data, dtype: torch.dtype) -> Data:
        """The data on the device, real numbers in J's floating type."""
        x, y = data.x, data.y
        if x.ndim < 2 or y.ndim < 2 or x.shape[:2] != y.shape[:2]:
            remedy = "give features (S, n, ...) and labels (S, n, ...) of equal length; for one set x[None], y[None]"
            raise bad_input("data", f"x {tuple(x.shape)}, y {tuple(y.shape)}", remedy)
        require(x.shape[1], "data", f"x {tuple(x.shape)}", "give at least one example")
        y = self.loss.checked(y, getattr(self.model, "n_classes", None))
        return Data(*(part.to(self.device, dtype if part.is_floating_point() else part.dtype) for part in (x, y)))

    @property
    def n(self) -> int:
        """The number of examples of each data set."""
        return len(self.data)

    @property
    def options(self) -> dict[str, object]:
        """Arguments of the constructor that `like` hands on."""
        return {"loss": self.loss}

    def like(self, data: Data, **changed: object) -> Objective:
        """The same J on other data, but for arguments that are changed."""
        same = {"model": self.model, "weight_decay": self.weight_decay, "device": str(self.device)}
        return type(self)(data=data, **{**same, **self.options, **changed})

    def on(self, data: Data, **changed: object) -> Objective:
        """The same losses on other data (test data), without the L2 term; or, with `loss`, another measurement."""
        return self.like(data, weight_decay=0.0, **changed)

    def part(self, rows: np.ndarray) -> Objective:
        """The losses of some examples (B,) of each data set, without the L2 term."""
        return self.on(Data(self.data.x[:, rows], self.data.y[:, rows]))

    def smoothed(self, sharpness: float) -> Objective:
        """J of the same network with softplus of this sharpness in the place of ReLU, on the same data."""
        return self.like(self.data, model=self.model.smoothed(sharpness))

    def uniform(self, size: int) -> Tensor:
        """The default weights: (size, n), all 1/n."""
        return torch.full((size, self.n), 1 / self.n, dtype=self.decay.dtype, device=self.device)

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
        """Outputs (E, n, classes) of the network."""
        return self._each(vmap(self.model), self.model, theta, self.data.x[self.members(theta, dataset)])

    def losses(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:
        """loss(z_i, theta_e): (E, n), in nats for cross entropy."""
        out, y = self.logits(theta, dataset), self.data.y[self.members(theta, dataset)]
        return self.loss.values(out.flatten(0, 1), y.flatten(0, 1)).view(len(theta), self.n)

    def example_gradients(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:
        """grad loss(z_i, theta_e): (E, n, P), without L2 term."""

        def alone(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return self._values(t, x[None], y[None])[0]

        def at_once(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            each = theta[:, None].expand(-1, self.n, -1)
            return slope(lambda t: vmap(vmap(alone))(t, x, y).sum(), each)

        def one_by_one(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return torch.stack([slope(partial(alone, x=one, y=label), t) for one, label in zip(x, y, strict=True)])

        d = self.members(theta, dataset)
        return self._each(at_once, one_by_one, theta, self.data.x[d], self.data.y[d])

    def logit_gradients(self, theta: Tensor, dataset: int = 0) -> Tensor:
        """(n, classes) the derivative of each loss in its outputs at theta (P,); softmax minus label: cross entropy."""
        out = self.logits(theta[None], torch.tensor([dataset]))[0]
        return self.loss.gradients(out, self.data.y[dataset])

    def jacobians(self, theta: Tensor, rows: Tensor, dataset: int = 0) -> tuple[Tensor, Tensor]:
        """(outputs (k, ..., C), their derivatives (k, C, P), all outputs of an example in a row) at theta (P,)."""
        x = self.data.x[dataset][rows]

        def outputs(t: Tensor, one: Tensor) -> Tensor:
            return self.model(t, one[None])[0]

        def at_once(t: Tensor, x: Tensor) -> Tensor:
            return vmap(jacrev(outputs), in_dims=(None, 0))(t[0], x[0])[None]

        def one_by_one(t: Tensor, x: Tensor) -> Tensor:
            return torch.stack([torch.autograd.functional.jacobian(partial(outputs, one=one), t) for one in x])

        found = self._each(at_once, one_by_one, theta[None], x[None])[0]
        out = self._each(vmap(self.model), self.model, theta[None], x[None])[0]
        return out, found.flatten(1, -2)

    def directional(self, theta: Tensor, v: Tensor, dataset: Tensor | None = None) -> Tensor:
        """v_k . grad loss(z_i, theta_e): (E, K, n) for v (E, K, P).

        By one forward-mode pass for each v, without per-example gradients; where these are few numbers, by them.
        """
        if self.n * theta.numel() <= SMALL:
            return v @ self.example_gradients(theta, dataset).mT
        d = self.members(theta, dataset)

        def one(t: Tensor, u: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return jvp(lambda s: self._values(s, x, y), (t,), (u,))[1]

        at_once = vmap(vmap(one, in_dims=(None, 0, None, None)))
        return self._each(at_once, self._slopes_along, theta, v, self.data.x[d], self.data.y[d])

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

        def paired(t: Tensor, x: Tensor) -> Tensor:
            return (cotangent * self.model(t, x)).sum()

        return found + self._slope_of(paired, theta, x)

    def value_and_gradient(
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None, cotangent: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """J (E,), or J + sum_i <c_i, logits_i>, and its gradient (E, P); in one pass where the kind can do that."""
        value = self.value(theta, weights, dataset)
        if cotangent is not None:
            product = cotangent * self.logits(theta, dataset)
            value = value + product.sum(tuple(range(1, product.ndim)))
        return value, self.gradient(theta, weights, dataset, cotangent)

    def batch_gradient(self, theta: Tensor, weights: Tensor, rows: np.ndarray, dataset: Tensor | None = None) -> Tensor:
        """grad of sum over the batch `rows` (B,) of w_i loss_i, plus L2: (E, P) for weights (E, n)."""
        d = self.members(theta, dataset)
        x, y = self.data.x[:, rows][d], self.data.y[:, rows][d]
        return (self._slope_of(self._weighted, theta, weights[:, rows], x, y) + self.decay * theta).to(theta.dtype)

    def products(
        self, theta: Tensor, v: Tensor, weights: Tensor, dataset: Tensor | None = None, gauss_newton: bool = False
    ) -> Tensor:
        """(E, K, P): the Hessian of J, or its Gauss-Newton (GGN) part, times each v (E, K, P); the L2 term included.

        GGN = sum_i w_i J_i^T Lambda_i J_i + L2, J_i the Jacobian of the outputs and Lambda_i the Hessian of the loss in
        them (Schraudolph 2002). The Hessian product is Pearlmutter's (1994).
        """
        d = self.members(theta, dataset)
        stacks = theta, v, weights, self.data.x[d], self.data.y[d]
        return self._each(vmap(self._forward(gauss_newton)), self._reverse(gauss_newton), *stacks) + self.decay * v

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
        mean = theta.new_full((len(rows),), 1 / len(rows))
        forward, stacks = self._forward(gauss_newton), (part[None] for part in (theta, v, mean, x, y))
        return self._each(lambda *s: forward(*(p[0] for p in s))[None], self._reverse(gauss_newton), *stacks)[0]

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
        found = self._slope_of(self._weighted, theta, weights, self.data.x[d], self.data.y[d])
        return found + self.decay * theta

    def _slope_of(self, value: Callable[..., Tensor], *stacks: Tensor) -> Tensor:
        """The gradient (E, P) in theta of a value of one network, for stacks theta (E, P) and the like."""

        def at_once(theta: Tensor, *others: Tensor) -> Tensor:
            return slope(lambda t: vmap(value)(t, *others).sum(), theta)

        return self._each(at_once, lambda theta, *one: slope(lambda t: value(t, *one), theta), *stacks)

    # -- of one network ----------------------------------------------------------------------------------------------

    def _each(self, at_once: Callable[..., Tensor], alone: Callable[..., Tensor], *stacks: Tensor) -> Tensor:
        """`at_once` of stacks (E, ...) by torch.func, or, where it cannot transform the network, `alone` of each."""
        if not self.plain:
            try:
                return at_once(*stacks)
            except RuntimeError as error:  # NotImplementedError is one of them
                if isinstance(error, torch.OutOfMemoryError) or "random" in str(error):
                    raise
                self.plain = True
        return torch.stack([alone(*parts) for parts in zip(*stacks, strict=True)])

    def _values(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.loss.values(self.model(theta, x), y)

    def _weighted(self, theta: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (weights * self._values(theta, x, y)).sum()

    def _forward(self, gauss_newton: bool) -> Callable[..., Tensor]:
        """The products (K, P) of one network with its Hessian or GGN without L2, by forward mode over the vectors."""
        one = self._ggn_product if gauss_newton else self._hessian_product
        return vmap(one, in_dims=(None, 0, None, None, None))

    def _hessian_product(self, theta: Tensor, v: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return jvp(lambda t: grad(self._weighted)(t, weights, x, y), (theta,), (v,))[1]

    def _ggn_product(self, theta: Tensor, v: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        network = partial(self.model, x=x)
        out, tangent = jvp(network, (theta,), (v,))
        return vjp(network, theta)[1](self.loss.curved(out, y, weights, tangent))[0]

    def _reverse(self, gauss_newton: bool) -> Callable[..., Tensor]:
        """The same with one backward pass for each vector: all that large networks, and some operations, allow."""
        return self._gauss_newton_products if gauss_newton else self._hessian_products

    def _hessian_products(self, theta: Tensor, v: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """sum_i w_i hess loss_i v_k for each row of v (K, P), without L2: (K, P). Pearlmutter (1994), reverse twice.

        The graph of the gradient is built once for all vectors: on narrow ResNets 1.2 to 2 times as fast as forward
        over reverse, the more the smaller the batch.
        """
        theta = theta.detach().requires_grad_()
        with torch.enable_grad():
            value = self._weighted(theta, weights, x, y)
            gradient = torch.autograd.grad(value, theta, create_graph=True)[0]
        return pulled_back(gradient, theta, v)

    def _gauss_newton_products(self, theta: Tensor, v: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """sum_i w_i J_i^T Lambda_i J_i v_k for each row of v (K, P), without L2: (K, P).

        Forward mode for all vectors at once, then one backward pass for each: on a narrow ResNet-50 1.7 to 2 times as
        fast as both under one vmap.
        """
        tangents = self._tangents(partial(self.model, x=x), theta, v)
        theta = theta.detach().requires_grad_()
        with torch.enable_grad():
            out = self.model(theta, x)
        return pulled_back(out, theta, self.loss.curved(out.detach(), y, weights, tangents))

    def _slopes_along(self, theta: Tensor, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """v_k . grad loss_i (K, n) for v (K, P)."""
        return self._tangents(lambda t: self._values(t, x, y), theta, v)

    def _tangents(self, function: Callable[[Tensor], Tensor], theta: Tensor, v: Tensor) -> Tensor:
        """The derivative of function(theta) along each row of v: (K, ...).

        By forward mode; else by reverse mode twice: c -> (d function / d theta)^T c is linear, and its transpose is it.
        """

        def forward(theta: Tensor, v: Tensor) -> Tensor:
            return over_vectors(lambda u: jvp(function, (theta[0],), (u,))[1], v[0])[None]

        def reverse(theta: Tensor, v: Tensor) -> Tensor:
            theta = theta.detach().requires_grad_()
            with torch.enable_grad():
                out = function(theta)
                c = torch.zeros_like(out, requires_grad=True)
                back = torch.autograd.grad(out, theta, c, create_graph=True)[0]
            return pulled_back(back, c, v)

        return self._each(forward, reverse, theta[None], v[None])[0]


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


def pulled_back(out: Tensor, at: Tensor, cotangents: Tensor) -> Tensor:
    """cotangents_k^T d out / d at for each k: (K, ...) of the shape of `at`."""
    if not out.requires_grad:  # constant: of a loss that is linear in theta
        return at.new_zeros(len(cotangents), *at.shape)
    last = len(cotangents) - 1
    found = [
        torch.autograd.grad(out, at, c, retain_graph=k < last, materialize_grads=True)[0]
        for k, c in enumerate(cotangents)
    ]
    return torch.stack(found)
