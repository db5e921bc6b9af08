"""What the libraries are given: a module, its data, and the dense answers in float64 by plain autograd."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from fragile_lib.choices import Points, Removals
from fragile_lib.data import sets
from fragile_lib.data.sets import Data
from fragile_lib.models.architectures import build, frozen_statistics
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.network import Network
from fragile_lib.network.dense import cnn_objective
from fragile_lib.objectives.losses import CROSS_ENTROPY
from fragile_lib.own import network_of
from fragile_lib.truths.minima import Minima

NETWORKS = Path(__file__).parents[2] / "reports" / "networks"


@dataclass(frozen=True)
class Problem:
    """A trained module, J = mean cross entropy + (decay / 2) ||theta||^2, and a damping: (n, m) scores are wanted.

    The L2 term is on all parameters, so that a library without weight decay can take decay + damping as one shift.
    chunk: examples in one pass, where a library lets one say so.
    """

    module: nn.Module
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    decay: float = 0.01
    damping: float = 1e-3
    chunk: int = 500

    @property
    def n(self) -> int:
        """Training examples."""
        return len(self.y)

    @property
    def shift(self) -> float:
        """What stands on the diagonal beside the curvature of the mean loss."""
        return self.decay + self.damping

    @property
    def train(self) -> TensorDataset:
        """The training examples as a dataset."""
        return TensorDataset(self.x, self.y)

    @property
    def test(self) -> TensorDataset:
        """The test examples as a dataset."""
        return TensorDataset(self.x_test, self.y_test)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """By name, without graphs."""
        return {name: p.detach() for name, p in self.module.named_parameters()}

    def first(self, n: int, m: int) -> Problem:
        """The same module on the first examples alone."""
        return replace(self, x=self.x[:n], y=self.y[:n], x_test=self.x_test[:m], y_test=self.y_test[:m])

    def single(self) -> Problem:
        """The same in float32, which is all that some libraries take."""
        data = {"x": self.x.float(), "x_test": self.x_test.float()}
        return replace(self, module=deepcopy(self.module).float(), **data)

    def network(self) -> Network:
        """For the calls of this library."""
        given = {"weight_decay": self.decay, "damping": self.damping, "chunk": self.chunk, "device": "cpu"}
        data = (self.x, self.y), (self.x_test, self.y_test)
        return network_of(self.module, CROSS_ENTROPY, *data, decayed="all", **given)

    def settled(self) -> Network:
        """At the certified minimum from which examples are left out."""
        return replace(self.network(), fit="certified")

    # -- dense answers, by autograd alone ----------------------------------------------------------------------------

    def outputs(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (n, C) from flat parameters (P,)."""
        parts = theta.split([p.numel() for p in self.parameters.values()])
        named = {name: part.view_as(p) for (name, p), part in zip(self.parameters.items(), parts, strict=True)}
        return functional_call(self.module, named, (x,))

    @property
    def theta(self) -> Tensor:
        """All parameters (P,)."""
        return torch.cat([p.flatten() for p in self.parameters.values()])

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each example's loss (n, P)."""
        one = grad(lambda t, a, b: cross_entropy(self.outputs(t, a[None]), b[None]))
        return vmap(one, in_dims=(None, 0, 0), chunk_size=self.chunk)(self.theta, x, y)

    def hessian(self) -> Tensor:
        """Of the mean loss (P, P)."""
        slope = grad(lambda t: cross_entropy(self.outputs(t, self.x), self.y))
        return jacrev(slope, chunk_size=64)(self.theta)

    def gauss_newton(self) -> Tensor:
        """The Gauss-Newton matrix of the mean loss (P, P)."""
        found = 0.0
        for x in self.x.split(100):
            jacobian = vmap(lambda a: jacrev(lambda t: self.outputs(t, a[None])[0])(self.theta))(x)
            p = self.outputs(self.theta, x).softmax(1)
            inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
            found = found + torch.einsum("ncp,ncd,ndq->pq", jacobian, inner, jacobian)
        return found / self.n

    def scores(self, curvature: Tensor | None) -> Tensor:
        """grad f^T (curvature + shift)^-1 grad loss_i / n (n, m); None: the identity in the inverse's place."""
        along = self.gradients(self.x_test, self.y_test)
        if curvature is not None:
            along = torch.linalg.solve(curvature + self.shift * torch.eye(len(curvature)).to(along), along.T).T
        return self.gradients(self.x, self.y) @ along.T / self.n

    def left_out(self, rows: np.ndarray) -> np.ndarray:
        """Certified leave-one-out: loss changes (k, m) at the minimum without each row, nan where none was reached."""
        network = self.settled()
        removals, nothing = Removals.single(rows, self.n), Removals((), self.n)
        respond, m = Minima(network, "minimum"), len(self.y_test)
        thetas, kept = respond(removals, network.theta, 40, nothing)
        changes = respond.changes(Points(np.arange(m), ["all"] * m), thetas)
        return np.where(kept[:, None], changes - changes[0], np.nan)[1:]


class Compiled(Problem):
    """The study's small CNN, for which this library has compiled passes beside what it does with any module."""

    def compiled(self) -> Network:
        """For the same calls; its L2 term would be on weights alone, so that the whole shift is damping."""
        return self._by_kernels(0.0, self.shift)

    def settled(self) -> Network:
        """The minimum that the study certified, its L2 term on weights alone."""
        found = self._by_kernels(self.decay, self.damping)
        return replace(found, fit="certified", certificate={"tolerance": 1e-6})

    def dense(self, gauss_newton: bool) -> Tensor:
        """The Hessian or the Gauss-Newton matrix (P, P) by those passes, which autograd would need hours for."""
        train = self.compiled().train
        return train.matrices(self.theta[None], train.uniform(1), gauss_newton=gauss_newton)[0]

    def _by_kernels(self, decay: float, damping: float) -> Network:
        train, test = (Data(x[None], y[None]) for x, y in ((self.x, self.y), (self.x_test, self.y_test)))
        objective = cnn_objective(SmallCNN(), train, decay, "cpu")
        return Network(self.theta, objective, objective.on(test), damping)


def trained(module: nn.Module, x: Tensor, y: Tensor, decay: float) -> nn.Module:
    """At a minimum of J, by L-BFGS in float64."""
    parts = list(module.double().parameters())
    how = {"max_iter": 4000, "history_size": 50, "tolerance_grad": 1e-10, "tolerance_change": 0.0}
    optimiser = torch.optim.LBFGS(parts, line_search_fn="strong_wolfe", **how)

    def value() -> Tensor:
        optimiser.zero_grad()
        objective = cross_entropy(module(x), y) + decay / 2 * sum(p.square().sum() for p in parts)
        objective.backward()
        return objective

    optimiser.step(value)
    for p in parts:
        p.grad = None
    return module.eval()


def of_table(table: dict, sizes: tuple[int, int], *widths: int, **settings: float) -> Problem:
    """n + m standardised rows of a data set of scikit-learn, and a perceptron of these hidden widths at its minimum."""
    order = np.random.default_rng(0).permutation(len(table["target"]))[: sum(sizes)]
    x, y = torch.tensor(table["data"][order]).double(), torch.tensor(table["target"][order]).long()
    kept = x[: sizes[0]]
    x = (x - kept.mean(0)) / kept.std(0).clamp(min=1e-6)
    ends = [x.shape[1], *widths, int(y.max()) + 1]
    torch.manual_seed(0)
    layers = [layer for a, b in zip(ends, ends[1:], strict=False) for layer in (nn.Linear(a, b), nn.Tanh())]
    halves = *(part[: sizes[0]] for part in (x, y)), *(part[sizes[0] :] for part in (x, y))
    problem = Problem(nn.Sequential(*layers[:-1]), *halves, **settings)
    trained(problem.module, problem.x, problem.y, problem.decay)
    return problem


def logistic() -> Problem:
    """Logistic regression on the breast cancer data: 469 x 20, 62 parameters."""
    return of_table(load_breast_cancer(), (469, 20))


def mlp() -> Problem:
    """A perceptron with one hidden layer on the digits: 1,500 x 20, 985 parameters."""
    return of_table(load_digits(), (1500, 20), 13)


def cnn() -> Problem:
    """The small CNN of the study at its certified minimum: 5,500 x 100 of MNIST, 2,616 parameters."""
    train, test = sets.small_mnist("koh_liang", 5_500, 10_000)
    theta = torch.tensor(np.load(next(NETWORKS.glob("wd0.001-s0-*.npz")))["theta"])
    module = SmallCNN().module(theta.flatten()).double().eval()
    halves = train.x[0].double(), train.y[0], test.x[0, :100].double(), test.y[0, :100]
    return Compiled(module, *halves, 1e-3, 1e-2)


def resnet() -> Problem:
    """ResNet-18 at a quarter of the width as it starts, statistics frozen: 2,000 x 20 of CIFAR-10, in float32."""
    train, test = sets.image_subset("cifar10", "full", 2_000, 20)
    torch.manual_seed(0)
    module = frozen_statistics(build("resnet18", 3, train.x.shape[-1], 10, 0.25), train.x[0].float(), 100)
    halves = train.x[0].float(), train.y[0], test.x[0].float(), test.y[0]
    return Problem(module.eval(), *halves, 1e-3, 1e-2, 50)


CASES = {"logistic": logistic, "mlp": mlp, "cnn": cnn, "resnet": resnet}
SMALL = {
    "logistic": lambda: of_table(load_wine(), (60, 8)),
    "mlp": lambda: of_table(load_wine(), (60, 8), 4),
}
