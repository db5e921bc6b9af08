"""TRAK of a network of one's own: its projected gradients by layers, where these are understood."""

from __future__ import annotations

from copy import copy
from time import perf_counter

import torch
from torch import Tensor

from fragile_lib.choices import Estimate, Points, Removals
from fragile_lib.estimates.by_name import TRAK_DAMPING
from fragile_lib.network import Network
from fragile_lib.objectives.base import slope
from fragile_lib.objectives.losses import Loss, is_plain
from fragile_lib.own.examples import OwnObjective
from fragile_lib.own.network import margin
from fragile_lib.solvers.firstorder import _projection as projection_of  # the draws of the estimator of that name
from fragile_lib.tools.checks import check_count, check_number
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.measure import Peak

ROUNDED = 1e-2  # share of a score to which the features' own rounding may add up


class Margin(Loss):
    """log p / (1 - p) of the label, p the softmax of the outputs."""

    def values(self, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return margin(z, y)

    def gradients(self, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return slope(lambda out: margin(out, y).sum(), z)


def trak(
    network: Network,
    points: Points,
    removals: Removals | None = None,
    dim: int = 512,
    damping: float = TRAK_DAMPING,
) -> Estimate:
    """The estimator `trak` (`solvers.trak`, with its formula): the same numbers but for rounding, examples streamed.

    With fewer parameters than dim, the projection Pi (dim, P) is R of Pi = Q R, which has the same inner products.

    Args:
        network: of `network_of`, with the plain cross entropy, which is measured on test examples too.
        points: the examined test points (m,).
        removals: what is left out; every training example, one by one, where none are given.
        dim: numbers to which gradients are projected.
        damping: of the features' kernel, above 0.

    Raises:
        InputError: another loss, a bad count or damping, or a kernel without an inverse to machine precision.
    """
    train, theta = network.train, network.theta
    check_count("dim", dim)
    check_number("damping", damping, above=0)
    for name, one in (("loss", train), ("measurement", network.test)):
        if not is_plain(one.loss, one.examples(slice(0, 1)).y):
            raise bad_input(name, type(one.loss).__name__, "TRAK is of the plain cross entropy")
    began = perf_counter()
    with Peak() as peak:
        projection = projection_of(dim, theta, [network.seed, 5, 0])
        projection = torch.linalg.qr(projection).R if dim > len(theta) else projection
        (features, doubt), (tested, test_doubt) = (
            _features(one, theta, projection) for one in (train, network.on_points(points))
        )
        tau = _solved(_kernel(features), tested, damping, train.n).T @ features * doubt
        changes = (test_doubt[:, None] * tau).T.double().cpu().numpy()
    removals = Removals.single(range(train.n), train.n) if removals is None else removals
    status = "ok" if bool(torch.isfinite(tau).all()) else "solver_diverged"
    return Estimate(removals, removals.sums(changes), seconds=perf_counter() - began, memory_mb=peak.mb, status=status)


def _features(objective: OwnObjective, theta: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    """(projected gradients of the margins (dim, n), 1 - p (n,))."""
    margins = copy(objective)
    margins.loss = Margin()
    found, values = margins.directional_and_losses(theta[None], projection[None])
    return found, torch.sigmoid(-values).to(found)


def _kernel(features: Tensor) -> Tensor:
    """Their inner products (dim, dim), in double precision: a small damping would be lost in single."""
    found = features.new_zeros(len(features), len(features), dtype=torch.float64)
    for some in features.split(len(features), 1):
        found.addmm_(some.double(), some.double().T)
    return found


def _solved(kernel: Tensor, right: Tensor, damping: float, n: int) -> Tensor:
    """(kernel + n damping I)^-1 right, the kernel being positive semidefinite."""
    if not bool(torch.isfinite(kernel).all()):
        return torch.full_like(right, torch.nan)
    kernel.diagonal().add_(n * damping)
    own, given = (torch.finfo(part.dtype).eps for part in (kernel, right))
    if not n * damping > len(kernel) * max(own, (given / ROUNDED) ** 2) * float(kernel.norm()):
        remedy = "the features' kernel has no inverse to machine precision; give a larger damping or a smaller dim"
        raise bad_input("damping", damping, remedy)
    return torch.cholesky_solve(right.to(kernel), torch.linalg.cholesky(kernel)).to(right)
