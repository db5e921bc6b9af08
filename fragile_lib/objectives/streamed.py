"""J of one large network, computed in chunks of images: never more than one chunk's activations are held.

The interface is that of `Objective`, so that solvers and estimates take either. There it is stacks of small networks;
here it is one network theta (P,) at a time, and what is batched are the vectors K that multiply its curvature: a
convolution with K tangents of its weights is one with K times the channels, and with K tangents of its input one with K
times the images, so that neither becomes a grouped convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fragile_lib.data.sets import Data
from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.losses import CROSS_ENTROPY, Loss
from fragile_lib.tools.checks import check_count
from fragile_lib.tools.errors import bad_input


class StreamedObjective(Objective):
    """J(theta; w) on one data set, in chunks of `chunk` images and of `vectors` vectors; the answers depend on neither.

    Raises:
        InputError: several data sets, a bad weight decay, a chunk or a number of vectors below 1, or, when called, a
            stack of several different networks where one is asked for.
    """

    def __init__(
        self,
        model: ModuleModel,
        data: Data,
        weight_decay: float = 0.0,
        device: str = "cpu",
        chunk: int = 50,
        vectors: int = 8,
        loss: Loss | Callable[[Tensor, Tensor], Tensor] = CROSS_ENTROPY,
    ) -> None:
        check_count("chunk", chunk)
        check_count("vectors", vectors)
        super().__init__(model, data, weight_decay, device, loss)
        if len(data.y) != 1:
            raise bad_input("data", f"{len(data.y)} data sets", "give one: large networks are not stacked")
        self.chunk, self.vectors = chunk, vectors

    @property
    def options(self) -> dict[str, object]:  # noqa: D102
        return super().options | {"chunk": self.chunk, "vectors": self.vectors}

    # -- per example -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def logits(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:
        """Logits (E, n, classes)."""
        return torch.stack([torch.cat([self.model(t, x) for x, _, _ in self._chunks()]) for t in theta])

    @torch.no_grad()
    def losses(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:
        """loss(z_i, theta_e): (E, n), in float64 from the outputs on."""
        found = [[self.loss.values(self.model(t, x).double(), y) for x, y, _ in self._chunks()] for t in theta]
        return torch.stack([torch.cat(chunks) for chunks in found])

    def directional(self, theta: Tensor, v: Tensor, dataset: Tensor | None = None) -> Tensor:
        """v_k . grad loss(z_i, theta): (1, K, n) for v (1, K, P), by forward mode."""
        t, some = _one(theta), v[0].split(self.vectors)
        found = [torch.cat([self._slopes_along(t, u, x, y) for u in some]) for x, y, _ in self._chunks()]
        return torch.cat(found, dim=1)[None]

    # -- under weights -----------------------------------------------------------------------------------------------

    def _gradient(self, theta: Tensor, weights: Tensor, dataset: Tensor | None) -> Tensor:
        """Examples of weight zero cost nothing."""
        found = []
        for t, w in zip(theta, weights, strict=True):
            total = self.decay * t
            for rows in w.nonzero()[:, 0].split(self.chunk):
                total = total + torch.func.grad(self._weighted)(t, w[rows].to(t), *self.examples(rows))
            found.append(total)
        return torch.stack(found)

    def products(
        self, theta: Tensor, v: Tensor, weights: Tensor, dataset: Tensor | None = None, gauss_newton: bool = False
    ) -> Tensor:
        """(1, K, P): the Hessian of J, or its Gauss-Newton part, times each v (1, K, P); the L2 term included."""
        total = self.decay * v[0]
        for x, y, w in self._chunks(weights[0]):
            total += self._products(_one(theta), v[0], w, x, y, gauss_newton)
        return total[None]

    def batch_products(  # noqa: D102
        self, theta: Tensor, v: Tensor, rows: np.ndarray, dataset: int = 0, gauss_newton: bool = False
    ) -> Tensor:
        return self._products(theta, v, v.new_full((len(rows),), 1 / len(rows)), *self.examples(rows), gauss_newton)

    def _products(self, theta: Tensor, v: Tensor, weights: Tensor, x: Tensor, y: Tensor, gauss_newton: bool) -> Tensor:
        product = self._reverse(gauss_newton)
        return torch.cat([product(theta, u, weights, x, y) for u in v.split(self.vectors)])

    def _chunks(self, weights: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """(x, y, weights) of one chunk after the other."""
        weights = None if weights is None else weights.to(self.decay)
        for start in range(0, self.n, self.chunk):
            rows = slice(start, start + self.chunk)
            yield *self.examples(rows), None if weights is None else weights[rows]

    def examples(self, rows: slice | np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """(x, y) of some examples: all that is asked of the data here, so that they may lie elsewhere."""
        return self.data.x[0, rows], self.data.y[0, rows]


def _one(theta: Tensor) -> Tensor:
    if len(theta) != 1:
        raise bad_input("theta", tuple(theta.shape), "give one network (1, P): large networks are not stacked")
    return theta[0]
