"""Training and test examples as a user has them: tensors, a Dataset, a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from fragile_lib.data.sets import Data
from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.base import SMALL, Objective, pulled_back
from fragile_lib.objectives.losses import Loss
from fragile_lib.own.layered import PIECE, Chain, Layered, NotUnderstoodError, forget, layered
from fragile_lib.tools.errors import bad_input

PULLED = 16  # vectors that go back through a graph at once
PASSED, PASSED_BYTES = 100, 2**20  # examples that go together through the layers: more where they are small
FLAT = 3  # axes of data sets whose examples are vectors
WORTH = 100  # times as many products as there are vectors at once cost as much as the dense matrix, or more
MANY = 4  # directions along which forward passes cost more than the gradient of every example
Examples = tuple[Tensor, Tensor] | Dataset | DataLoader


class OwnObjective(Objective):
    """J on a user's data, with shorter ways where network and data are small: the same numbers but for rounding.

    Where the gradients of all examples are few numbers (n P at most `SMALL`), or directions are `MANY`, they serve
    every direction, some examples at a time. Few, they also serve every member of a stack of one and the same network
    (`expand`), which test gradients are asked of; and `PULLED` vectors at once go back through the graph of a gradient,
    unless there are convolutions, which that would make grouped ones. Of a chain of Linear layers and activations the
    dense curvature is made by layers (`Chain.add_curvature`). Examples still go in chunks.
    """

    _kept: dict | None = None  # the dense matrices of `often`, and of what

    @property
    def few(self) -> bool:
        """Whether the gradients of all examples are few numbers."""
        return self.n * len(self.decay) <= SMALL

    def example_gradients(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:  # noqa: D102
        found = self._by_layers(Layered.gradients, theta, dataset)
        return super().example_gradients(theta, dataset) if found is None else found[None]

    def directional(self, theta: Tensor, v: Tensor, dataset: Tensor | None = None) -> Tensor:  # noqa: D102
        found = self._by_layers(partial(Layered.along, v=v[0]), theta, dataset)
        if found is not None:
            return found[None]
        step = min(self.chunk, max(1, SMALL // len(self.decay)))
        found = v.new_empty(*v.shape[:2], self.n)  # made before: a small tensor between large ones splits the heap
        for rows in np.split(np.arange(self.n), range(step, self.n, step)):
            if self.plain or not (self.few or v.shape[1] >= MANY):
                return super().directional(theta, v, dataset)
            some = self.part(rows)
            found[:, :, rows[0] : rows[-1] + 1] = v @ some.example_gradients(theta, dataset).mT
            self.plain = some.plain  # without torch.func one direction after the other takes fewer passes
        return found

    def directional_and_losses(self, theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`directional` (K, n) and `losses` (n,) at theta (1, P), by the same pass where it goes by layers."""
        told: list[Tensor] = []
        found = self._by_layers(partial(Layered.along, v=v[0], told=told), theta, None)
        if found is None:
            return self.directional(theta, v)[0], self.losses(theta)[0]
        return found, torch.cat(told)

    def _by_layers(self, ask: Callable[..., Tensor], theta: Tensor, dataset: Tensor | None) -> Tensor | None:
        """What is asked of the layers of one network, of all examples; None where they are not understood."""
        layers = layered(self, theta[0]) if len(theta) == 1 else None
        if layers is None:
            return None
        try:
            return ask(layers, theta[0], self._passes(theta, dataset), self.loss)
        except NotUnderstoodError:  # it takes another way for other examples
            forget(self.model)
            return None

    def _passes(self, theta: Tensor, dataset: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) of chunks, or of parts of them whose passes find again the memory that the last gave back."""
        for x, y in self._chunks(theta, dataset):
            step = max(PASSED, PASSED_BYTES // max(1, x[0, 0].numel() * x.element_size()))
            yield from zip(x[0].split(step), y[0].split(step), strict=True)

    def gradient(  # noqa: D102
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None, cotangent: Tensor | None = None
    ) -> Tensor:
        same = len(theta) > 1 and not theta.stride(0)
        no_more = self.n <= len(theta) and layered(self, theta[0]) is not None  # than the gradients that are asked for
        if cotangent is not None or not (same and (self.few or no_more)):
            return super().gradient(theta, weights, dataset, cotangent)
        return weights.to(theta) @ self.example_gradients(theta[:1])[0] + self.decay * theta

    def often(self) -> OwnObjective:
        """The same J, of which a solver asks so many products that, of a small chain, the dense matrix is cheaper."""
        found = copy(self)
        found._kept = {}
        return found

    def products(  # noqa: D102
        self,
        theta: Tensor,
        v: Tensor,
        weights: Tensor,
        dataset: Tensor | None = None,
        gauss_newton: bool = False,
    ) -> Tensor:
        at, n_params = (theta, weights), theta.shape[1]
        kept, matrix = self._kept.get(gauss_newton, ((), None)) if self._kept else ((), None)
        if not (kept and all(map(torch.equal, kept, at))):
            worth = self._kept is not None and n_params**2 <= SMALL and WORTH * v.shape[1] >= n_params
            if not worth or self._chain(theta) is None:
                return super().products(theta, v, weights, dataset, gauss_newton)
            matrix = self.matrices(theta, weights, dataset, gauss_newton)
            self._kept[gauss_newton] = at, matrix
        return v @ matrix

    def matrices(  # noqa: D102
        self, theta: Tensor, weights: Tensor, dataset: Tensor | None = None, gauss_newton: bool = False
    ) -> Tensor:
        chain = self._chain(theta)
        if chain is None:
            return super().matrices(theta, weights, dataset, gauss_newton)
        step = max(1, PIECE // chain.held // self.decay.element_size())
        found = self.decay.new_zeros(len(self.decay), len(self.decay))
        for w, x, y in self._chunks(theta, dataset, weights):
            for some in zip(x[0].split(step), y[0].split(step), w[0].split(step), strict=True):
                chain.add_curvature(found, theta[0], *some, self.loss, gauss_newton)
        found = chain.in_order(found)
        found.diagonal().add_(self.decay)
        return found[None]

    def _chain(self, theta: Tensor) -> Chain | None:
        """The layers of one network, a chain that takes vectors; None of another."""
        layers = layered(self, theta[0]) if len(theta) == 1 else None
        return layers if isinstance(layers, Chain) and self.examples([0]).x.ndim == FLAT else None

    def _hessian_products(self, theta: Tensor, v: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if not self._pulls_many:
            return super()._hessian_products(theta, v, weights, x, y)
        theta = theta.detach().requires_grad_()
        with torch.enable_grad():
            gradient = torch.autograd.grad(self._weighted(theta, weights, x, y), theta, create_graph=True)[0]
        return self._pulled(gradient, theta, v)

    @cached_property
    def _pulls_many(self) -> bool:
        return self.few and not any(isinstance(part, _ConvNd) for part in self.model.bare().modules())

    def _pulled(self, out: Tensor, at: Tensor, cotangents: Tensor) -> Tensor:
        """`pulled_back`, several at once."""
        if not out.requires_grad:
            return pulled_back(out, at, cotangents)
        how = {"retain_graph": True, "is_grads_batched": True, "materialize_grads": True}

        def at_once(all_of: Tensor) -> Tensor:
            pieces = [torch.autograd.grad(out, at, some, **how)[0] for some in all_of[0].split(PULLED)]
            return torch.cat(pieces)[None]

        return self._each(at_once, partial(pulled_back, out, at), cotangents[None])[0]


class DatasetObjective(OwnObjective):
    """J on a Dataset, whose examples are fetched by their indices, a chunk at a time, and not kept.

    Example i is `dataset[i]` whatever the order in which a loader would draw it. Solvers that need all examples at once
    (K-FAC, Gram) ask for `data`, which is then fetched as a whole, and kept.

    Args:
        model, weight_decay, chunk, loss: as in `Objective`.
        dataset: of pairs (x, y), as `collate` puts them together.
        collate: a list of examples -> (x (B, ...), y (B, ...)).

    Raises:
        InputError: what `Objective` raises, for the first example here and for others when they are fetched; a
            dataset that does not give pairs.
    """

    def __init__(
        self,
        model: ModuleModel,
        dataset: Dataset,
        collate: Callable[[list], Sequence],
        weight_decay: float,
        chunk: int,
        loss: Loss,
    ) -> None:
        self.dataset, self.collate = dataset, collate
        super().__init__(model, self._fetched([0]), weight_decay, chunk=chunk, loss=loss)
        del self.data  # the first example alone; from here on it is the property below

    @cached_property
    def data(self) -> Data:
        """All examples."""
        return self._taken(self._fetched(range(self.n)), self.decay.dtype)

    @property
    def n(self) -> int:
        """The number of examples."""
        return len(self.dataset)

    def members(self, theta: Tensor, dataset: Tensor | None = None) -> Tensor:  # noqa: D102
        return torch.zeros(len(theta), dtype=torch.long, device=self.device)

    def examples(self, rows: slice | np.ndarray | Tensor) -> Data:  # noqa: D102
        places = np.arange(self.n)[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        return self._taken(self._fetched(places.tolist()), self.decay.dtype)

    def part(self, rows: np.ndarray) -> Objective:  # noqa: D102
        return self.on(self.examples(np.asarray(rows)))

    def like(self, data: Data, **changed: object) -> Objective:
        """The same J on data in memory."""
        same = {"model": self.model, "weight_decay": self.weight_decay, "device": str(self.device)}
        return OwnObjective(data=data, **{**same, **self.options, **changed})

    def _fetched(self, rows: Sequence[int]) -> Data:
        found = self.collate([self.dataset[i] for i in rows])
        if not (isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(p, Tensor) for p in found)):
            remedy = "give a Dataset of pairs (x, y), or a DataLoader whose collate_fn makes two tensors of a batch"
            raise bad_input("dataset[i]", type(found).__name__, remedy)
        return Data(found[0][None], found[1][None])


def objective_of(
    model: ModuleModel, examples: Examples, weight_decay: float, chunk: int, loss: Loss, streamed: bool = True
) -> Objective:
    """J on a user's examples; `streamed`: those of a Dataset or DataLoader are not kept in memory.

    Raises:
        InputError: what is neither a pair of tensors, nor a Dataset, nor a DataLoader over one.
    """
    if _are_tensors(examples):
        x, y = examples
        return OwnObjective(model, Data(x[None], y[None]), weight_decay, loss=loss, chunk=chunk)
    found = DatasetObjective(model, *_indexed(examples), weight_decay, chunk, loss)
    return found if streamed else found.like(found.data)


def first_of(examples: Examples, like: Tensor) -> Tensor:
    """x of the first examples, two at most, on the device of `like` and, real numbers, in its floating type.

    Raises:
        InputError: what `objective_of` raises, or no examples.
    """
    if _are_tensors(examples):
        x = examples[0][:2]
    else:
        dataset, collate = _indexed(examples)
        x = collate([dataset[i] for i in range(min(2, len(dataset)))])[0]
    if not (isinstance(x, Tensor) and x.ndim and len(x)):
        raise bad_input("train", type(examples).__name__, "give at least one example (x, y)")
    return x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)


def _are_tensors(examples: Examples) -> bool:
    return isinstance(examples, tuple | list) and len(examples) == 2 and all(isinstance(p, Tensor) for p in examples)


def _indexed(examples: Examples) -> tuple[Dataset, Callable[[list], Sequence]]:
    """The dataset and what puts its examples together."""
    dataset, collate = examples, default_collate
    if isinstance(examples, DataLoader):
        dataset, collate = examples.dataset, examples.collate_fn
    if not isinstance(dataset, Dataset):
        raise bad_input("data", type(examples).__name__, "give (x, y) tensors of n examples, a Dataset or a DataLoader")
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__") or not len(dataset):
        remedy = "give a Dataset of a known length above 0: scores are told by index"
        raise bad_input("dataset", type(dataset).__name__, remedy)
    return dataset, collate
