"""The objective under example weights, and its derivatives, for a stack of networks.

    J(theta; w) = sum_i w_i loss(z_i, theta) + (weight_decay / 2) ||theta_reg||^2,     w_i = 1/n by default

`Objective`, on torch, serves any network, loss and device; the other modules of this folder have the same interface.
`fused.make_objective` chooses, and `losses` says what a loss is. Small networks go as one stack; a large one, to which
`chunk` is given, goes alone and in chunks of examples, and what is batched are the vectors K that multiply its
curvature: a convolution with K tangents of its weights is one with K times the channels, and with K tangents of its
input one with K times the images, so that neither becomes a grouped convolution.

Letters: E stack size, P parameters, n examples, K vectors, S data sets. Every method takes theta (E, P) and, where a
stack member's data set is not the one of its own position, `dataset` (E,), the index of each member's data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jacrev, jvp, vjp, vmap

from fragile_lib.data.sets import Data
from fragile_lib.objectives.losses import CROSS_ENTROPY, Loss, as_loss, over_vectors
from fragile_lib.tools.checks import check_count, check_number
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
        chunk: examples whose activations are held at once, of one network after the other; losses are then in float64
            from the outputs on. By default all of them, of the whole stack.
        vectors: tangents that such a network carries forward at once. No answer depends on these two.

    Raises:
        InputError: a weight decay that is no finite number of at least 0; data of other shapes or lengths, or none;
            labels that the loss has no meaning for; a chunk or a number of vectors below 1.
    """

    def __init__(
        self,
        model: Model,
        data: Data,
        weight_decay: float = 0.0,
        device: str = "cpu",
        loss: Loss | Callable[[Tensor, Tensor], Tensor] = CROSS_ENTROPY,
        chunk: int | None = None,
        vectors: int = 8,
    ) -> None:
        check_number("weight_decay", weight_decay)
        check_count("chunk", chunk, optional=True)
        check_count("vectors", vectors)
        self.chunk, self.vectors = chunk, vectors
        self.model, self.weight_decay, self.loss = model, float(weight_decay), as_loss(loss)
        like = getattr(model, "theta", data.x)
        require(like.is_floating_point(), "data.x.dtype", data.x.dtype, "give features of a floating type (x.double())")
        self.device = torch.device(device) if like is data.x else like.device
        self._hold(self._taken(data, like.dtype))
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

    def _hold(self, data: Data) -> None:
        """Take these data, already in the right form, for what is asked from now on."""
        self.data = data

    @property
    def n(self) -> int:
        """The number of examples of each data set."""
        return len(self.data)

    @property
    def options(self) -> dict[str, object]:
        """Arguments of the constructor that `like` hands on."""
        return {"loss": self.loss} | ({"chunk": self.chunk, "vectors": self.vectors} if self.chunk else {})

    def like(self, data: Data, **changed: object) -> Objective:
        """The same J on other data, but for arguments that are changed."""
        same = {"model": self.model, "weight_decay": self.weight_decay, "device": str(self.device)}
        return type(self)(data=data, **{**same, **self.options, **changed})

    def on(self, data: Data, **changed: object) -> Objective:
        """The same losses on other data (test data), without the L2 term; or, with `loss`, another measurement."""
        return self.like(data, weight_decay=0.0, **changed)

    def part(self, rows: np.ndarray) -> Objective:
        """The losses of some examples (B,) of each data set, without the L2 term."""
        some = copy(self)
        some._hold(self.examples(rows))
        some.weight_decay, some.decay = 0.0, self.decay.new_zeros(1).expand_as(self.decay)
        return some

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

    def examples(self, rows: slice | np.ndarray | Tensor) -> Data:
        """Some examples of each data set, x and y (S, B, ...); all that is asked of the data, wherever it lies."""
        return Data(self.data.x[:, rows], self.data.y[:, rows])

    def _chunks(self, theta: Tensor, dataset: Tensor | None, *stacks: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """(.., x, y) of each stack member for one chunk of examples after the other.

        Before them what belongs to these examples of stacks (E, n, ...), in J's floating type.
        """
        places, step = self.members(theta, dataset), self.chunk or self.n
        for start in range(0, self.n, step):
            rows = slice(start, start + step)
            some = self.examples(rows)
            one = len(some.y) == 1  # seen by all, without a copy
            seen = (part.expand(len(places), *part.shape[1:]) if one else part[places] for part in (some.x, some.y))
            yield *(stack[:, rows].to(self.decay.dtype) for stack in stacks), *seen

    # -- per example -------------------------------------------------------------------------------------------------

    def _outputs(self, theta: Tensor, dataset: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Outputs (E, B, classes) and labels (E, B) of one chunk after the other."""
        for x, y in self._chunks(theta, dataset):
            yield self._each(self._stacked(vmap(self.model)), self.model, theta, x), y

    def logits(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:
        """Outputs (E, n, classes) of the network."""
        return torch.cat([out for out, _ in self._outputs(theta, dataset)], 1)

    def losses(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:
        """loss(z_i, theta_e): (E, n), in nats for cross entropy."""
        found = []
        for out, y in self._outputs(theta, dataset):
            z = (out.double() if self.chunk else out).flatten(0, 1)
            found.append(self.loss.values(z, y.flatten(0, 1)).view(y.shape[:2]))
        return torch.cat(found, 1)

    def example_gradients(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:
        """grad loss(z_i, theta_e): (E, n, P), without L2 term."""

        def alone(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return self._values(t, x[None], y[None])[0]

        def at_once(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            each = theta[:, None].expand(-1, x.shape[1], -1)
            return slope(lambda t: vmap(vmap(alone))(t, x, y).sum(), each)

        def one_by_one(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return torch.stack([slope(partial(alone, x=one, y=label), t) for one, label in zip(x, y, strict=True)])

        return torch.cat([self._each(at_once, one_by_one, theta, *some) for some in self._chunks(theta, dataset)], 1)

    def logit_gradients(self, theta: Tensor, dataset: int = 0) -> Tensor:
        """(n, classes) the derivative of each loss in its outputs at theta (P,); softmax minus label: cross entropy."""
        out = self.logits(theta[None], torch.tensor([dataset]))[0]
        return self.loss.gradients(out, self.data.y[dataset])

    def jacobians(self, theta: Tensor, rows: Tensor, dataset: int = 0) -> tuple[Tensor, Tensor]:
        """(outputs (k, ..., C), their derivatives (k, C, P), all outputs of an example in a row) at theta (P,)."""
        x = self.examples(rows).x[dataset]

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
        if not self.chunk and self.n * theta.numel() <= SMALL:
            return v @ self.example_gradients(theta, dataset).mT

        def one(t: Tensor, u: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return jvp(lambda s: self._values(s, x, y), (t,), (u,))[1]

        at_once = self._stacked(vmap(vmap(one, in_dims=(None, 0, None, None))))
        found = [self._each(at_once, self._slopes_along, theta, v, *some) for some in self._chunks(theta, dataset)]
        return torch.cat(found, 2)

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

        def paired(t: Tensor, c: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return (c * self.model(t, x)).sum()

        of_each = cotangent.expand(len(theta), *cotangent.shape)
        return found + sum(self._slope_of(paired, theta, *some) for some in self._chunks(theta, dataset, of_each))

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
        return self.part(rows).gradient(theta, weights[:, rows], dataset) + self.decay * theta

    def products(
        self, theta: Tensor, v: Tensor, weights: Tensor, dataset: Tensor | None = None, gauss_newton: bool = False
    ) -> Tensor:
        """(E, K, P): the Hessian of J, or its Gauss-Newton (GGN) part, times each v (E, K, P); the L2 term included.

        GGN = sum_i w_i J_i^T Lambda_i J_i + L2, J_i the Jacobian of the outputs and Lambda_i the Hessian of the loss in
        them (Schraudolph 2002). The Hessian product is Pearlmutter's (1994).
        """
        at_once, alone, found = self._stacked(vmap(self._forward(gauss_newton))), self._reverse(gauss_newton), 0
        for some in self._chunks(theta, dataset, weights):
            found = found + self._each(at_once, alone, theta, v, *some)
        return found + self.decay * v

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
        some = self.part(rows)
        return some.products(theta[None], v[None], some.uniform(1), torch.tensor([dataset]), gauss_newton)[0]

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
        if self.chunk and not bool(weights.all()):  # of a large network examples of weight zero cost nothing
            used = [(t[None], w[None], w.nonzero()[:, 0].cpu().numpy()) for t, w in zip(theta, weights, strict=True)]
            found = torch.cat([self.part(rows)._gradient(t, w[:, rows], None) for t, w, rows in used])
            return found + self.decay * theta
        some = self._chunks(theta, dataset, weights)
        return sum(self._slope_of(self._weighted, theta, *parts) for parts in some) + self.decay * theta

    def _slope_of(self, value: Callable[..., Tensor], *stacks: Tensor) -> Tensor:
        """The gradient (E, P) in theta of a value of one network, for stacks theta (E, P) and the like."""

        def at_once(theta: Tensor, *others: Tensor) -> Tensor:
            return slope(lambda t: vmap(value)(t, *others).sum(), theta)

        return self._each(self._stacked(at_once), lambda theta, *one: slope(lambda t: value(t, *one), theta), *stacks)

    # -- of one network ----------------------------------------------------------------------------------------------

    def _stacked(self, at_once: Callable[..., Tensor]) -> Callable[..., Tensor] | None:
        """A way for whole stacks, unless networks go one by one: those that have a chunk."""
        return None if self.chunk else at_once

    def _each(self, at_once: Callable[..., Tensor] | None, alone: Callable[..., Tensor], *stacks: Tensor) -> Tensor:
        """`at_once` of stacks (E, ...) by torch.func, or, where it cannot transform the network, `alone` of each."""
        if at_once and not self.plain:
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
        """The derivative of function(theta) along each row of v, some `vectors` at once: (K, ...).

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

        return torch.cat([self._each(forward, reverse, theta[None], u[None])[0] for u in v.split(self.vectors)])


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
