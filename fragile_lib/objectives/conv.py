"""J and its derivatives for a `SmallCNN` on a CPU, by the compiled kernels of `conv_kernels`.

Everything runs block by block of 8 (float64) or 16 (float32) images, whose maps stay in the cache, so that memory does
not grow with the data. The blocks are dealt to torch's number of threads in a fixed number of parts: the sums do not
depend on how many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fragile_lib.data.sets import Data
from fragile_lib.kernels import conv_kernels
from fragile_lib.kernels.conv_plan import layout
from fragile_lib.kernels.conv_tiles import LANES
from fragile_lib.kernels.parallel import in_threads, split
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.losses import CROSS_ENTROPY, Loss, check_plain
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.progress import progress

PARTS, BLOCKS = 8, 8  # sums over blocks are made in so many parts at most, of so many blocks at least, about
VECTORS = 256  # directions of a product held at once
HELD = 256  # images whose gradients or Jacobians are: 50 MB for 2,616 parameters and 10 classes in float64
PANELS = 8  # of columns, in which a symmetric matrix product is made


class ConvObjective(Objective):
    """`Objective` for a `SmallCNN` on a CPU, in the floating type of data.x (S, n, 1, side, side).

    Raises:
        InputError: what `Objective` raises, another model or loss, images of another shape, a type that is not float64
            or float32, or a device that is not the CPU.
    """

    def __init__(
        self,
        model: SmallCNN,
        data: Data,
        weight_decay: float = 0.0,
        device: str = "cpu",
        loss: Loss = CROSS_ENTROPY,
    ) -> None:
        _check(model, data, device)
        check_plain(loss, data.y)
        self._kind = np.dtype(np.float64 if data.x.dtype == torch.float64 else np.float32)
        self._layout, self._lanes = layout(model, self._kind), LANES[self._kind]
        super().__init__(model, data, weight_decay, device, loss)

    def _hold(self, data: Data) -> None:
        super()._hold(data)
        self._x = _blocked(np.ascontiguousarray(data.x.flatten(2).numpy()), self._lanes)
        self._y, self._blocks = _filled(data.y.numpy(), self._lanes), self._x.shape[1]

    def _outputs(self, theta: Tensor, dataset: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        out = np.empty((len(theta), self._blocks * self._lanes, self.model.n_classes), self._kind)
        places = self.members(theta, dataset)
        self._each_part(conv_kernels.logits, self._packed(theta), self._x, places.numpy(), out=lambda part: (out,))
        yield torch.from_numpy(out[:, : self.n]), self.data.y[places]

    def example_gradients(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:  # noqa: D102
        out = np.empty((len(theta), self.n, 1, theta.shape[1]), self._kind)
        for e, place in enumerate(self.members(theta, dataset).tolist()):
            self._rows(theta[e], place, None, 0, self._blocks, out[e])
        return torch.from_numpy(out[:, :, 0])

    def directional(self, theta: Tensor, v: Tensor, dataset: Tensor | None = None) -> Tensor:
        """v_k . grad loss(z_i, theta_e): (E, K, n) for v (E, K, P).

        As a product with the gradients of `HELD` images at a time, since a gradient costs less than two directions by
        forward mode.
        """
        found = torch.empty(*v.shape[:2], self._blocks * self._lanes, dtype=self.data.x.dtype)
        places = self.members(theta, dataset).tolist()
        for first, stop, span, rows in self._chunks_of_rows(1):
            for e, place in enumerate(places):
                self._rows(theta[e], place, None, first, stop, rows.numpy())
                found[e, :, span] = v[e] @ rows[:, 0].T
        return found[..., : self.n]

    def gradient(
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None, cotangent: Tensor | None = None
    ) -> Tensor:
        """As in `Objective`, in one pass: the logits' deltas are w_i (p_i - e_y) + c_i.

        Raises:
            InputError: a cotangent c that is not (n, classes).
        """
        return self._both(theta, weights, dataset, cotangent, 0)[1]

    def value_and_gradient(
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None, cotangent: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As in `Objective`, values in float64, in one pass; raises what `gradient` raises."""
        sums, gradient = self._both(theta, weights, dataset, cotangent, len(theta))
        wide = theta.double()
        return sums + 0.5 * (wide * wide) @ self.decay.double(), gradient

    def products(  # noqa: D102
        self, theta: Tensor, v: Tensor, weights: Tensor, dataset: Tensor | None = None, gauss_newton: bool = False
    ) -> Tensor:
        places, w, found = self.members(theta, dataset).numpy(), _filled(self._array(weights), self._lanes), []
        for some in v.split(VECTORS, 1):
            fixed = self._packed(theta), self._packed(some), self._x, self._y, places, w, gauss_newton
            found.append(self._sum_of_parts(conv_kernels.products, some.shape[:2], *fixed))
        return torch.cat(found, 1) + self.decay * v

    def matrices(
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None, gauss_newton: bool = False
    ) -> Tensor:
        """(E, P, P): the Hessian of J, or its Gauss-Newton part, dense.

        A column of the Hessian is made only in the rows of its own layer and those above: below its own layer nothing
        moves. Symmetry gives the rest. The Gauss-Newton part is a product of square roots (see `example_rows`).
        """
        w, places = _filled(self._array(weights), self._lanes), self.members(theta, dataset).tolist()
        one = self._dense_gauss_newton if gauss_newton else self._dense_hessian
        found = [one(theta[e], w[e], place) for e, place in enumerate(places)]
        return torch.stack(found) + torch.diag(self.decay)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _array(self, tensor: Tensor) -> np.ndarray:
        return np.ascontiguousarray(tensor.detach().numpy(), dtype=self._kind)

    def _cotangent(self, cotangent: Tensor | None) -> np.ndarray:
        """Constants c (n, classes) by blocks, as the kernels take them; (0, 0) for none."""
        if cotangent is None:
            return np.zeros((0, 0), self._kind)
        if cotangent.shape != (self.n, self.model.n_classes):
            remedy = f"give one number for each example and class, ({self.n}, {self.model.n_classes})"
            raise bad_input("cotangent.shape", tuple(cotangent.shape), remedy)
        return _blocked(self._array(cotangent)[None], self._lanes)[0]

    def _packed(self, theta: Tensor) -> np.ndarray:
        return self._layout.packed(self._array(theta))

    def _both(
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None, cotangent: Tensor | None, values: int
    ) -> tuple[Tensor, Tensor]:
        """The weighted losses and pairings of so many networks, all or none, without L2, and the gradient (E, P)."""
        places = np.ascontiguousarray(self.members(theta, dataset).numpy())  # an expanded one would be compiled anew
        w, sums = _filled(self._array(weights), self._lanes), np.zeros((len(_parts(0, self._blocks)), values))
        fixed = self._packed(theta), self._x, self._y, places, w, self._cotangent(cotangent)
        found = self._sum_of_parts(conv_kernels.gradients, theta.shape[:1], *fixed, beside=(sums,))
        return torch.from_numpy(sums.sum(0)), found + self.decay * theta

    def _each_part(self, kernel: Callable, *fixed: object, out: Callable[[int], tuple]) -> None:
        """Run a kernel on each part of the blocks; out says what a part writes into."""
        parts = [(part, *ends) for part, ends in enumerate(_parts(0, self._blocks))]
        in_threads(lambda part, first, stop: kernel(self._layout.net, *fixed, first, stop, *out(part)), parts)

    def _sum_of_parts(self, kernel: Callable, shape: tuple[int, ...], *fixed: object, beside: tuple = ()) -> Tensor:
        """(*shape, P) the sum over parts of what a kernel adds up; what it writes besides, for each part."""
        count = len(_parts(0, self._blocks))
        out = np.zeros((count, *shape, self._layout.net.gradients // self._lanes), self._kind)
        self._each_part(kernel, *fixed, out=lambda part: (out[part], *(b[part] for b in beside)))
        return torch.from_numpy(out.sum(0)[..., self._layout.unpack])

    def _rows(self, theta: Tensor, place: int, w: np.ndarray | None, first: int, stop: int, out: np.ndarray) -> None:
        """Gradients of single examples, or for weights w their square roots of the Gauss-Newton matrix, by blocks."""
        rank = 0 if w is None else self.model.n_classes - 1
        weights = np.ones(len(self._y[place]), out.dtype) if w is None else w
        fixed = self._packed(theta), self._layout.unpack, self._x[place], self._y[place], weights, rank

        def part(a: int, b: int) -> None:
            rows = out[(a - first) * self._lanes : (b - first) * self._lanes]
            conv_kernels.example_rows(self._layout.net, *fixed, a, b, rows)

        in_threads(part, _parts(first, stop))

    def _chunks_of_rows(self, count: int) -> Iterator[tuple[int, int, slice, Tensor]]:
        """First and last block of `HELD` images after the other, their span, and room for `count` rows (P,) of each."""
        held, step = torch.empty(HELD, count, self.model.n_params, dtype=self.data.x.dtype), HELD // self._lanes
        for first in range(0, self._blocks, step):
            stop = min(first + step, self._blocks)
            span = slice(first * self._lanes, stop * self._lanes)
            yield first, stop, span, held[: span.stop - span.start]

    def _dense_gauss_newton(self, theta: Tensor, w: np.ndarray, place: int) -> Tensor:
        """sum_i w_i J_i^T Lambda_i J_i as sum over chunks of A^T sign(w) A, in panels of the lower half."""
        total = torch.zeros(len(theta), len(theta), dtype=self.data.x.dtype)
        edges = np.linspace(0, len(theta), PANELS + 1).astype(int).tolist()
        chunks = self._chunks_of_rows(self.model.n_classes - 1)
        for first, stop, span, rows in progress(chunks, desc="dense Gauss-Newton matrix"):
            if not w[span].any():
                continue
            self._rows(theta, place, w, first, stop, rows.numpy())
            signed = rows * torch.from_numpy(np.sign(w[span]))[:, None, None] if (w[span] < 0).any() else rows
            left, right = signed.flatten(0, 1), rows.flatten(0, 1)
            for a, b in zip(edges[:-1], edges[1:], strict=True):
                total[a:, a:b].addmm_(left[:, a:].T, right[:, a:b])
        return total.tril() + total.tril(-1).T

    def _dense_hessian(self, theta: Tensor, w: np.ndarray, place: int) -> Tensor:
        net, columns = self._layout.net, self._layout.columns
        out = np.zeros((len(theta), net.gradients // net.lanes), self._kind)
        fixed = self._packed(theta), columns
        groups = [np.arange(g, len(theta), 2 * PARTS) for g in range(min(2 * PARTS, len(theta)))]
        for first, stop in progress(split(0, self._blocks, 20), desc="dense Hessian"):
            in_threads(
                lambda chosen, a, b: conv_kernels.hessian_columns(
                    net, *fixed, chosen, self._x[place], self._y[place], w, a, b, out
                ),
                [(chosen, first, stop) for chosen in groups],
            )
        return torch.from_numpy(_symmetric(out[:, self._layout.unpack], columns))


def _parts(first: int, stop: int) -> list[tuple[int, int]]:
    """The parts, of at least a few blocks each, that blocks first .. stop are dealt out in."""
    return split(first, stop, min(PARTS, -(-(stop - first) // BLOCKS)))


def _symmetric(made: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The whole matrix from columns that hold the rows of later layers and, in their own, of no earlier channels."""
    rank = columns[:, 0] * (columns[:, 2].max() + 2) + columns[:, 2] + 1
    later, same = rank[None, :] > rank[:, None], rank[None, :] == rank[:, None]
    return np.where(same, (made + made.T) / 2, np.where(later, made, made.T))


def _filled(values: np.ndarray, lanes: int) -> np.ndarray:
    """(.., n) with zeros up to whole blocks."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % lanes)])


def _blocked(pixels: np.ndarray, lanes: int) -> np.ndarray:
    """Images (S, n, d) as blocks (S, blocks, d * lanes) from a cache line on, the last block filled up with zeros."""
    sets, n, size = pixels.shape
    blocks, whole = -(-n // lanes), n // lanes
    raw = np.zeros(sets * blocks * size * lanes + 64 // pixels.itemsize, pixels.dtype)
    skip = -raw.ctypes.data % 64 // pixels.itemsize
    out = raw[skip : skip + sets * blocks * size * lanes].reshape(sets, blocks, size, lanes)
    for s in range(sets):
        out[s, :whole] = pixels[s, : whole * lanes].reshape(whole, lanes, size).transpose(0, 2, 1)
        if whole < blocks:
            out[s, whole, :, : n - whole * lanes] = pixels[s, whole * lanes :].T
    return out.reshape(sets, blocks, size * lanes)


def _check(model: SmallCNN, data: Data, device: str) -> None:
    if not isinstance(model, SmallCNN):
        raise bad_input("model", model, "give a SmallCNN; `Objective` takes any model")
    if str(device) != "cpu":
        raise bad_input("device", device, "these kernels are for the CPU; `Objective` runs anywhere")
    if data.x.dtype not in (torch.float64, torch.float32):
        raise bad_input("data.x.dtype", data.x.dtype, "give float64 or float32")
    if data.x.dim() != 5 or data.x.shape[2:] != (1, model.side, model.side):
        raise bad_input("data.x.shape", tuple(data.x.shape), f"give (S, n, 1, {model.side}, {model.side})")


def compile_all() -> None:
    """Compile every kernel once, over a minute on one core; numba keeps the result for later processes."""
    for kind in (torch.float64, torch.float32):
        data = Data(torch.zeros(1, 1, 1, 21, 21, dtype=kind), torch.zeros(1, 1, dtype=torch.long))
        objective = ConvObjective(SmallCNN(1, 2, 21), data)
        theta, weights = objective.model.init(0).to(kind)[None], torch.ones(1, 1, dtype=kind)
        objective.logits(theta)
        objective.value_and_gradient(theta, weights)
        objective.example_gradients(theta)
        objective.products(theta, theta[None], weights)
        objective.matrices(theta, weights)
