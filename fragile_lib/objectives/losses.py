"""The loss of one example in the network's outputs, chosen once: its value, its gradient and its curvature there.

Everything above asks a `Loss`: J and its derivatives, the Gauss-Newton matrix J^T Lambda J (Lambda the Hessian of the
loss in the outputs), the roots of Lambda that K-FAC and the Gram matrix are made of, the Bregman divergence. The
compiled kernels have the plain cross entropy built in.

Letters: n examples, C outputs, T places of a sequence, K vectors. Outputs z (n, C), or (n, T, C) with a label a place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.nn.functional import one_hot, softplus

from fragile_lib.tools.checks import check_name, check_number
from fragile_lib.tools.errors import bad_input

FLOOR = 1e-6  # of an eigenvalue of the loss's curvature, as a share of the largest: below -FLOOR it is negative


class Loss:
    """One number for each example. `values` alone is asked for: the rest follows by autograd in the outputs."""

    def values(self, z: Tensor, y: Tensor) -> Tensor:
        """(n,) the loss of each example of outputs z (n, ..., C) and targets y (n, ...)."""
        raise NotImplementedError

    def checked(self, y: Tensor, outputs: int | None) -> Tensor:
        """Targets y (S, n, ...) in the form that `values` takes.

        Raises:
            InputError: targets that the loss has no meaning for; outputs: C, where it is known.
        """
        return y

    def gradients(self, z: Tensor, y: Tensor) -> Tensor:
        """d loss_i / d z_i, in the shape of z."""
        return grad(lambda out: self.values(out, y).sum())(z)

    def curved(self, z: Tensor, y: Tensor, weights: Tensor, v: Tensor) -> Tensor:
        """w_i Lambda_i v_i for v (n, ..., C) or vectors (K, n, ..., C) of the shape of z; weights (n,)."""

        def slopes(out: Tensor) -> Tensor:
            return grad(lambda o: (weights * self.values(o, y)).sum())(out)

        product = vjp(slopes, z)[1]  # Lambda is symmetric
        return product(v)[0] if v.ndim == z.ndim else over_vectors(lambda u: product(u)[0], v)

    def roots(self, z: Tensor, y: Tensor, draws: Tensor | None = None) -> Tensor:
        """Columns R (n, ..., C, r) with R R^T = Lambda for each example.

        draws: uniform numbers (n, ..., r), from which labels are drawn in the place of all columns.

        Raises:
            InputError: draws for a loss without labels, or a loss that curves downwards in its outputs.
        """
        if draws is not None:
            raise bad_input("samples", draws.shape[-1], "labels are drawn for the cross entropy alone; leave it out")
        ones, basis = z.new_ones(len(z)), torch.eye(z[0].numel()).to(z)
        columns = [self.curved(z, y, ones, e.view(z.shape[1:]).expand_as(z)).flatten(1) for e in basis]
        spectrum, vectors = torch.linalg.eigh(torch.stack(columns, 2))
        if bool((spectrum < -FLOOR * spectrum.abs().max()).any()):
            remedy = "it curves downwards in the outputs, so that its curvature has no root; take cg_ggn or exact_ggn"
            raise bad_input("loss", type(self).__name__, remedy)
        return (vectors * spectrum.clamp(min=0).sqrt()[:, None]).view(*z.shape, -1)


@dataclass(frozen=True, eq=False)
class CrossEntropy(Loss):
    """-sum_c t_c log p_c in nats, p the softmax of the outputs.

    t is the label's class, or, for real labels y (n, C), these probabilities; then as in torch's `cross_entropy`:
    smoothed to (1 - label_smoothing) t + label_smoothing / C, times the class weights. In outputs z the gradient is
    s p - t and the curvature s (diag(p) - p p^T), s = sum_c t_c.

    Args:
        weight: of each class.
        label_smoothing: in [0, 1).
        ignore_index: label of examples, or of places, whose loss is zero.
        places: `mean` or `sum` over those places of a sequence that count: the loss of the example.

    Raises:
        InputError: weights that are negative or not finite, a smoothing outside [0, 1), another word for places.
    """

    weight: Sequence[float] | Tensor | None = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    places: str = "mean"

    def __post_init__(self) -> None:
        check_number("label_smoothing", self.label_smoothing, below=1)
        check_name("places", self.places, ("mean", "sum"))
        if self.weight is not None:
            weight = torch.as_tensor(self.weight)
            if not bool((torch.isfinite(weight) & (weight >= 0)).all()):
                raise bad_input("weight", self.weight, "give one finite number of at least 0 for each class")

    def checked(self, y: Tensor, outputs: int | None) -> Tensor:  # noqa: D102
        if outputs == 1:
            raise bad_input("n_classes", 1, "the cross entropy of one output is zero; take BinaryLogit or SquaredError")
        if self.weight is not None and outputs not in (None, len(self.weight)):
            raise bad_input("weight", self.weight, f"give one number for each of {outputs} classes")
        if y.is_floating_point():
            sums = y.sum(-1)
            if y.ndim < 3 or y.shape[-1] != outputs or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
                remedy = "give whole numbers (labels.long()), or probabilities (n, classes) that sum to one"
                raise bad_input("labels", f"{y.dtype} {tuple(y.shape[1:])}", remedy)
            return y
        if y.dtype == torch.bool:
            raise bad_input("labels", "booleans", "give classes as whole numbers (labels.long())")
        found = y.long()
        counted = found if self.ignore_index is None else found[found != self.ignore_index]
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < (outputs or float("inf")):
            remedy = f"give classes from 0 to {outputs - 1 if outputs else 'C - 1'}"
            remedy += "; others are left out by CrossEntropy(ignore_index=...)"
            raise bad_input("labels", (int(counted.min()), int(counted.max())), remedy)
        return found

    def values(self, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        # cross entropy in two steps: as one, its first use under vmap imports for a third of a second
        log_p = z.log_softmax(-1)
        if z.ndim == 2 and is_plain(self, y):
            return -log_p.gather(1, y[:, None])[:, 0]
        return -(self._targets(z, y) * log_p).flatten(1).sum(1)

    def gradients(self, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        t = self._targets(z, y)
        return t.sum(-1, keepdim=True) * z.softmax(-1) - t

    def curved(self, z: Tensor, y: Tensor, weights: Tensor, v: Tensor) -> Tensor:  # noqa: D102
        p, scale = z.softmax(-1), weights.view(-1, *[1] * (z.ndim - 1))
        scale = scale * self._targets(z, y).sum(-1, keepdim=True)
        return scale * p * (v - (p * v).sum(-1, keepdim=True))

    def roots(self, z: Tensor, y: Tensor, draws: Tensor | None = None) -> Tensor:
        """As in `Loss`: C - 1 columns, T times as many for sequences, or one for each label drawn from p.

        Exact, after Tanabe and Sagae (1992): with q_c the probability beyond class c, column c is
        sqrt(p_c q_c / q_{c-1}) times (0, ..., 1, -p_k / q_c for k > c). For draws, (p - y) over the root of their
        number, which holds in the mean.
        """
        p = z.softmax(-1)
        size = self._targets(z, y).sum(-1).sqrt()[..., None, None]
        if draws is not None:
            edges = p.double().cumsum(-1)[..., :-1].contiguous()
            drawn = one_hot(torch.searchsorted(edges, draws.contiguous(), right=True), p.shape[-1]).mT
            return (p[..., None] - drawn) / draws.shape[-1] ** 0.5 * size
        beyond = p.flip(-1).cumsum(-1).flip(-1)  # q_{c-1} at place c
        tiny = torch.finfo(p.dtype).tiny
        here, after = beyond[..., :-1].clamp(min=tiny), beyond[..., 1:].clamp(min=tiny)
        scale = (p[..., :-1] * after / here).sqrt()
        below = -p[..., :, None] / after[..., None, :]
        classes = p.shape[-1]
        ones = torch.eye(classes, classes - 1, dtype=p.dtype, device=p.device)
        return _apart((below.tril(-1)[..., :, : classes - 1] + ones) * scale[..., None, :] * size)

    def _targets(self, z: Tensor, y: Tensor) -> Tensor:
        """t in the shape of z."""
        classes, counted = z.shape[-1], torch.ones_like(z[..., 0])
        if y.is_floating_point():
            t = y.to(z)
        else:
            t = (y[..., None] == torch.arange(classes, device=z.device)).to(z)
            if self.ignore_index is not None:
                counted = (y != self.ignore_index).to(z)
        if self.label_smoothing:
            t = (1 - self.label_smoothing) * t + self.label_smoothing / classes
        if self.weight is not None:
            t = t * torch.as_tensor(self.weight).to(z)
        if self.places == "mean" and z.ndim > 2:
            counted = counted / counted.flatten(1).sum(1).clamp(min=1).view(-1, *[1] * (z.ndim - 2))
        return t * counted[..., None]


class _OfEachOutput(Loss):
    """A loss that is a sum over the outputs: its curvature is a diagonal."""

    def _each(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, first and second derivative in each output."""
        raise NotImplementedError

    def checked(self, y: Tensor, outputs: int | None) -> Tensor:
        """Finite numbers, one for each output; for a single output (n,) will do."""
        y = y if y.is_floating_point() else y.double()
        if not bool(torch.isfinite(y).all()):
            raise bad_input("targets", "not finite", "give finite numbers")
        y = y[..., None] if outputs == 1 and (y.ndim == 2 or y.shape[-1] != 1) else y
        if outputs is not None and (y.ndim < 3 or y.shape[-1] != outputs):
            raise bad_input("targets.shape", tuple(y.shape[1:]), f"give (n, {outputs}), one target for each output")
        return y

    def values(self, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return self._each(z, y.view_as(z))[0].flatten(1).sum(1)

    def gradients(self, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return self._each(z, y.view_as(z))[1]

    def curved(self, z: Tensor, y: Tensor, weights: Tensor, v: Tensor) -> Tensor:  # noqa: D102
        return weights.view(-1, *[1] * (z.ndim - 1)) * self._each(z, y.view_as(z))[2] * v


class SquaredError(_OfEachOutput):
    """||z - y||^2 / 2: regression, of one output or several; torch's MSELoss of one output is twice it."""

    def _each(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return 0.5 * (z - y) ** 2, z - y, torch.ones_like(z)


@dataclass(frozen=True)
class Huber(_OfEachOutput):
    """(z - y)^2 / 2 up to |z - y| = delta, and delta (|z - y| - delta / 2) beyond, where it does not curve.

    Raises:
        InputError: a delta that is not above 0.
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        check_number("delta", self.delta, above=0)

    def _each(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r = z - y
        inside = r.abs() <= self.delta
        value = torch.where(inside, 0.5 * r**2, self.delta * (r.abs() - 0.5 * self.delta))
        return value, r.clamp(-self.delta, self.delta), inside.to(z)


class BinaryLogit(_OfEachOutput):
    """log(1 + e^z) - y z: one logit for two classes, or one for each of several labels; y in [0, 1]."""

    def checked(self, y: Tensor, outputs: int | None) -> Tensor:  # noqa: D102
        y = super().checked(y, outputs)
        if y.numel() and not 0 <= float(y.min()) <= float(y.max()) <= 1:
            raise bad_input("labels", (float(y.min()), float(y.max())), "give 0 or 1, or probabilities")
        return y

    def _each(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = torch.sigmoid(z)
        return softplus(z) - y * z, p - y, p * (1 - p)


@dataclass(frozen=True)
class OwnLoss(Loss):
    """Any function (z (n, ...), y (n, ...)) -> (n,) that torch can differentiate twice; no example sees another."""

    function: Callable[[Tensor, Tensor], Tensor]

    def values(self, z: Tensor, y: Tensor) -> Tensor:
        """As the function says.

        Raises:
            InputError: it does not give one number for each example.
        """
        found = self.function(z, y)
        if not isinstance(found, Tensor) or found.shape != z.shape[:1]:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            remedy = f"give one loss for each of the {len(z)} examples, no mean"
            raise bad_input("loss(outputs, targets)", shape, remedy)
        return found


CROSS_ENTROPY = CrossEntropy()


def is_plain(loss: object, y: Tensor) -> bool:
    """Whether a loss of labels y is the cross entropy of classes without any option: what the kernels compute."""
    if not isinstance(loss, CrossEntropy) or y.is_floating_point():
        return False
    return loss.weight is None and loss.label_smoothing == 0 and loss.ignore_index is None


def check_plain(loss: object, y: Tensor) -> None:
    """Raise InputError where `is_plain` is not so."""
    if not is_plain(loss, y):
        remedy = "kernels and captured steps know the plain cross entropy alone; `Objective` and the loop take any"
        raise bad_input("loss", loss, remedy)


def as_loss(loss: Loss | Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A `Loss` as it is, or a function as `OwnLoss`.

    Raises:
        InputError: something else.
    """
    if isinstance(loss, Loss):
        return loss
    if not callable(loss) or isinstance(loss, type):
        raise bad_input("loss", loss, "give one of objectives.losses, or a function (outputs, targets) -> (n,)")
    return OwnLoss(loss)


def _apart(root: Tensor) -> Tensor:
    """Roots of each place (n, T, C, r) as (n, T, C, T r): places do not share a column; (n, C, r) as it is."""
    if root.ndim == 3:
        return root
    n, places, outputs, columns = root.shape
    own = torch.eye(places, dtype=root.dtype, device=root.device)
    return (root[:, :, :, None] * own[:, None, :, None]).reshape(n, places, outputs, places * columns)


def over_vectors(product: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """`product(v_k)` for each row of v (K, ...); a single one without the cost of batching."""
    return product(v[0])[None] if len(v) == 1 else vmap(product)(v)
