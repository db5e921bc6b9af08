"""Attributions that invert no curvature: the gradient product, TracIn over checkpoints, and TRAK's random projections.

All return loss changes on the scale of `influence`: loss after the removal minus loss before it, positive = helpful,
linear in the change of weights d (k, n). Leave-one-out is d = -e_i/n. TracIn and TRAK take objectives on one data set.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.losses import is_plain
from fragile_lib.solvers.base import AppliedInverse, DampedCurvature
from fragile_lib.tools.checks import check_count, check_number
from fragile_lib.tools.errors import bad_input


class IdentitySolver(AppliedInverse):
    """x = v: the inverse of the curvature is taken to be the identity, so that influence is a product of gradients.

    With it, `influence` gives grad f . grad loss_i / n for leaving out i: the loss change after a single gradient step
    of size 1 without the example. Its sign and order mean something, its scale only that of such a step: in directions
    of curvature c the real change is 1 / (c + damping) of it. The residual ||(C + damping I) v - v|| / ||v|| says how
    far the curvature is from the identity, and takes a product with the whole curvature, several times what the
    estimate costs.

    Args:
        objective, theta, damping, gauss_newton, dataset: as in `ExactSolver`; for the residual alone.
    """

    def __init__(
        self, objective: Objective, theta: Tensor, damping: float = 0.0, gauss_newton: bool = False, dataset: int = 0
    ) -> None:
        self.operator = DampedCurvature(objective, theta, damping, gauss_newton, dataset)

    def apply(self, v: Tensor) -> Tensor:
        """V itself, (K, P)."""
        return v.clone()


def tracin(
    train: Objective, test: Objective, checkpoints: Tensor, step_sizes: Tensor, removals: Tensor, points: Tensor
) -> Tensor:
    """TracInCP (Pruthi, Liu, Kale and Sundararajan 2020): the removals' effect on the steps that were taken, (k, m).

        -sum_c eta_c grad f(theta_c) . sum_i d_i grad loss_i(theta_c)

    Gradient descent on J moves by -eta sum_i w_i grad loss_i, so weights w + d change f by
    -eta d_i grad f . grad loss_i at each step, to first order. The scale is that of retraining from the start where
    eta_c is the sum of the step sizes that checkpoint c stands for (every 100th step kept: 100 eta; with momentum b,
    over 1 - b), and as long as moved parameters do not change the later gradients: near an optimum the curvature pulls
    the effect of early steps back, so that over a long run the changes come out too large.

    Args:
        checkpoints: networks (C, P) along the training run.
        step_sizes: eta_c (C,), see above.
        removals: weight changes d (k, n).
        points: test points (m,).

    Raises:
        InputError: checkpoints that are not (C, P), or step sizes that are not C numbers of at least 0.
    """
    sizes = torch.as_tensor(step_sizes)
    if checkpoints.ndim != 2 or not len(checkpoints):
        raise bad_input("checkpoints", tuple(checkpoints.shape), "give networks (C, P), C at least 1")
    if sizes.shape != checkpoints.shape[:1] or not bool((torch.isfinite(sizes) & (sizes >= 0)).all()):
        raise bad_input("step_sizes", step_sizes, "give one finite number of at least 0 for each checkpoint")
    changes = 0.0
    for theta, size in zip(checkpoints, sizes.tolist(), strict=True):
        gradients = _loss_gradients(test, theta, points)
        slopes = train.directional(theta[None], gradients[None])[0]
        changes = changes - size * (removals.to(slopes) @ slopes.T)
    return changes


def trak(
    train: Objective,
    test: Objective,
    checkpoints: Tensor,
    removals: Tensor,
    points: Tensor,
    dim: int | None = 512,
    damping: float = 0.0,
    seed: int = 0,
    chunk: int = 128,
) -> Tensor:
    """TRAK (Park, Georgiev, Ilyas, Leclerc and Madry 2023, equation 17), turned into loss changes (k, m).

    phi_i = Pi grad margin_i, margin = log p/(1-p) of the right class, Pi a Gaussian projection to `dim` numbers; with
    Phi (n, dim) and averages over checkpoints, each with a projection of its own,

        tau(z, i) = mean_c [phi(z)^T (Phi^T Phi + n damping I)^-1 phi_i] * mean_c [1 - p_i],

    the margin that training example i gives test point z. A margin lost is (1 - p_z) as much loss gained, so the change
    is -n d_i (1 - p_z) tau(z, i). Order and sign are TRAK's at each test point. The scale is that of leave-one-out but
    for the factors p_i (1 - p_i), at most 1/4, that the method drops from its matrix: changes come out too small, most
    where the network is sure of its training examples. With dim None, gradients are not projected.

    Holds (n, dim) features and (dim, P) projection, and per-example gradients of `chunk` examples at a time.

    Raises:
        InputError: checkpoints that are not (C, P), a bad count or damping, a `dim` above n without damping, or a
            kernel without an inverse.
    """
    if checkpoints.ndim != 2 or not len(checkpoints):
        raise bad_input("checkpoints", tuple(checkpoints.shape), "give networks (C, P), C at least 1")
    check_count("dim", dim, optional=True)
    check_count("chunk", chunk)
    check_number("damping", damping)
    if not is_plain(train.loss, train.data.y):
        raise bad_input("loss", type(train.loss).__name__, "TRAK is of the plain cross entropy")
    if dim is not None and dim > train.n and damping == 0:
        raise bad_input("dim", dim, f"give at most the number of training examples, {train.n}, or a damping above 0")
    points = torch.as_tensor(points, device=train.device)
    x, y = train.data.x[0], train.data.y[0]
    x_test, y_test = test.data.x[0][points], test.data.y[0][points]
    products, doubt, test_doubt = 0.0, 0.0, 0.0
    for number, theta in enumerate(checkpoints):
        projection = _projection(dim, theta, [seed, 5, number])
        features, margins = margin_features(train.model, theta, x, y, projection, chunk)
        test_features, test_margins = margin_features(train.model, theta, x_test, y_test, projection, chunk)
        products = products + test_features @ _inverse_kernel(features, damping) @ features.T
        doubt, test_doubt = doubt + torch.sigmoid(-margins), test_doubt + torch.sigmoid(-test_margins)
    tau = products * doubt / len(checkpoints) ** 2
    loss_scale = test_doubt / len(checkpoints)
    return -train.n * removals.to(tau) @ (loss_scale[:, None] * tau).T


def _loss_gradients(test: Objective, theta: Tensor, points: Tensor) -> Tensor:
    """grad loss of each test point (m,) at theta (P,): (m, P)."""
    one_hot = torch.nn.functional.one_hot(torch.as_tensor(points), test.n).to(theta)
    return test.gradient(theta.expand(len(one_hot), -1), one_hot)


def margin_features(
    model: object, theta: Tensor, x: Tensor, y: Tensor, projection: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """(projected gradients (n, dim), margins (n,)) of log p/(1-p) of each example's class."""

    def margin(t: Tensor, x_one: Tensor, y_one: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(t, x_one[None])[0]
        right = torch.arange(len(logits), device=logits.device) == y_one
        value = (logits * right).sum() - torch.logsumexp(logits.masked_fill(right, -torch.inf), 0)
        return value, value

    one, features, margins = grad(margin, has_aux=True), [], []
    for part, labels in zip(x.split(chunk), y.split(chunk), strict=True):
        try:
            gradients, values = vmap(one, in_dims=(None, 0, 0))(theta, part, labels)
        except RuntimeError:  # an operation without a batching rule, as of recurrent layers
            pairs = [one(theta, *example) for example in zip(part, labels, strict=True)]
            gradients, values = (torch.stack(kind) for kind in zip(*pairs, strict=True))
        features.append(gradients if projection is None else gradients @ projection.T)
        margins.append(values)
    return torch.cat(features), torch.cat(margins)


def _projection(dim: int | None, theta: Tensor, seed: list[int]) -> Tensor | None:
    """Gaussian (dim, P), of variance 1/dim so that norms stay in the mean; None for no projection."""
    if dim is None:
        return None
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    drawn = torch.randn(dim, len(theta), generator=generator, dtype=theta.dtype)
    return drawn.to(theta.device) / dim**0.5


def _inverse_kernel(features: Tensor, damping: float) -> Tensor:
    """(Phi^T Phi + n damping I)^-1: (dim, dim)."""
    kernel = features.T @ features
    if not bool(torch.isfinite(kernel).all()):
        return torch.full_like(kernel, torch.nan)
    spectrum, vectors = torch.linalg.eigh(kernel)
    spectrum = spectrum + len(features) * damping
    if not spectrum[0] > len(spectrum) * torch.finfo(kernel.dtype).eps * spectrum[-1]:
        remedy = "the features' kernel has no inverse to machine precision; give a damping above 0 or a smaller dim"
        raise bad_input("damping", damping, remedy)
    return (vectors / spectrum) @ vectors.T
