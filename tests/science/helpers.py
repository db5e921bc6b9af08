"""Models and data small enough to have closed forms: linear regression, linear softmax, planted matrices."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn.functional import cross_entropy

from fragile_lib.choices import Points, Removals
from fragile_lib.data.sets import Data, iris_splits
from fragile_lib.minimise.newton import newton
from fragile_lib.models.mlp import MLP
from fragile_lib.models.module import ModuleModel
from fragile_lib.network import Network
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.fused import FusedObjective
from fragile_lib.objectives.losses import SquaredError
from fragile_lib.solvers import Solver

in_chunks = partial(Objective, chunk=50)  # as large networks are held


class Linear:
    """x -> W x + b, parameters (W row by row, b)."""

    activation = "none"

    def __init__(self, n_features: int, n_outputs: int) -> None:
        self.n_features, self.n_outputs, self.n_classes = n_features, n_outputs, n_outputs
        self.n_params = n_outputs * (n_features + 1)
        self.is_weight = torch.cat([torch.ones(n_outputs * n_features), torch.zeros(n_outputs)]).double()

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        split = self.n_outputs * self.n_features
        return x @ theta[:split].view(self.n_outputs, self.n_features).T + theta[split:]


class Regression:
    """A ridge regression with its design matrix, so that every answer can be written down."""

    def __init__(self, n: int = 25, m: int = 6, n_features: int = 3, weight_decay: float = 0.05, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        x, x_test = rng.standard_normal((n, n_features)), rng.standard_normal((m, n_features))
        truth = rng.standard_normal(n_features)
        self.n, self.m, self.weight_decay = n, m, weight_decay
        self.y = x @ truth + 0.5 + 0.3 * rng.standard_normal(n)
        self.y_test = x_test @ truth + 0.5 + 0.3 * rng.standard_normal(m)
        self.design = np.column_stack([x, np.ones(n)])
        self.design_test = np.column_stack([x_test, np.ones(m)])
        self.penalty = weight_decay * np.diag([1.0] * n_features + [0.0])
        model = Linear(n_features, 1)
        data = Data(torch.tensor(x)[None], torch.tensor(self.y)[None])
        self.train = Objective(model, data, weight_decay, loss=SquaredError())
        self.test = self.train.on(Data(torch.tensor(x_test)[None], torch.tensor(self.y_test)[None]))

    def hessian(self) -> np.ndarray:
        return self.design.T @ self.design / self.n + self.penalty

    def optimum(self, weights: np.ndarray | None = None) -> np.ndarray:
        """The solution of the weighted normal equations."""
        w = np.full(self.n, 1 / self.n) if weights is None else weights
        return np.linalg.solve((self.design.T * w) @ self.design + self.penalty, self.design.T @ (w * self.y))

    def test_losses(self, theta: np.ndarray) -> np.ndarray:
        return 0.5 * (self.design_test @ theta - self.y_test) ** 2

    def fitted(self) -> Tensor:
        return torch.tensor(self.optimum())

    def network(self, damping: float = 0.0) -> Network:
        """The fitted regression as what estimates and truths are asked of."""
        return network_of(self.train, self.test, self.fitted(), damping)

    def exact_leave_one_out(self) -> np.ndarray:
        """(n, m) loss after refitting without each example minus loss before, the other weights kept at 1/n."""
        before, changes = self.test_losses(self.optimum()), []
        for i in range(self.n):
            w = np.full(self.n, 1 / self.n)
            w[i] = 0
            changes.append(self.test_losses(self.optimum(w)) - before)
        return np.array(changes)


def leave_one_out(indices: Tensor, n: int) -> Tensor:
    """The weight changes (k, n) of leaving out each of some examples."""
    return Removals.single(indices.tolist(), n).changes()


def along(network: Network, points: Points, solver: Solver, d: Tensor) -> Tensor:
    """The derivative of the test losses along any changes of the weights d (k, n): (k, m)."""
    return -torch.as_tensor(d) @ network.slopes(solver(network.test_gradients(points)).x)


def influence_along(
    train: Objective, test: Objective, theta: Tensor, d: Tensor, points: Tensor, solver: Solver
) -> Tensor:
    """As `along`, for test points by their indices."""
    some = Points(points.numpy(), ["random"] * len(points))
    return along(network_of(train, test, theta), some, solver, d)


def network_of(train: Objective, test: Objective, theta: Tensor, damping: float = 0.0, place: int = 0) -> Network:
    """A network at a minimum, as far as it is told."""
    certificate = {"status": "ok", "grad_norm": 0.0}
    return Network(theta, train, test, damping, place=place, fit="certified", certificate=certificate)


def rotated(spectrum: list[float], seed: int = 0) -> np.ndarray:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum), len(spectrum))))[0]
    return (q * np.array(spectrum)) @ q.T


def iris_subset(per_class: int, seed: int = 0) -> tuple[Data, Data]:
    """The first flowers of each class of a training split, and the whole test split."""
    train, test = iris_splits([seed])
    rows = torch.cat([(train.y[0] == c).nonzero()[:per_class, 0] for c in range(3)])
    return Data(train.x[:, rows], train.y[:, rows]), test


def softmax_regression(data: Data, weight_decay: float) -> Objective:
    return Objective(Linear(data.x.shape[2], 3), data, weight_decay)


def sklearn_softmax(data: Data, weight_decay: float, without: int | None = None) -> Tensor:
    """The same optimum by scikit-learn: ||W||^2 / 2 + C sum loss with C = 1 / (n weight_decay), n of the full set."""
    x, y = data.x[0].numpy(), data.y[0].numpy()
    keep = np.arange(len(y)) != (-1 if without is None else without)
    c = 1 / (len(y) * weight_decay)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at its last digits the line search gives up
        fit = LogisticRegression(C=c, tol=1e-12, max_iter=10_000, solver="newton-cg").fit(x[keep], y[keep])
    return torch.tensor(np.concatenate([fit.coef_.ravel(), fit.intercept_]))


def random_network(
    activation: str, depth: int, width: int, n: int, weight_decay: float = 0.03, size: int = 3, seed: int = 0
) -> tuple[FusedObjective, Objective, Tensor, Tensor]:
    """One network as fused and as reference objective on `size` random data sets, parameters and weights."""
    rng = np.random.default_rng([seed, depth, width, n])
    model = MLP(depth, width, activation, sharpness=2.5)
    data = Data(torch.tensor(rng.standard_normal((size, n, 4))), torch.tensor(rng.integers(0, 3, (size, n))))
    theta = torch.tensor(0.7 * rng.standard_normal((size, model.n_params)))
    weights = torch.tensor(rng.random((size, n)) / n)
    return FusedObjective(model, data, weight_decay), Objective(model, data, weight_decay), theta, weights


def value_by_hand(objective: Objective, e: int, weights: Tensor) -> Callable[[Tensor], Tensor]:
    """J of network e on data set e, written out."""
    x, y, marks = objective.data.x[e], objective.data.y[e], objective.model.is_weight

    def value(theta: Tensor) -> Tensor:
        lost = cross_entropy(objective.model(theta, x), y, reduction="none")
        return (weights[e] * lost).sum() + objective.weight_decay / 2 * (marks * theta**2).sum()

    return value


def triple_product(objective: Objective, theta: Tensor, weights: Tensor) -> Tensor:
    """The Gauss-Newton matrix of the first network, as Jacobian, curvature of the losses, Jacobian."""
    jacobian = jacrev(lambda t: objective.model(t, objective.data.x[0]))(theta[0])  # (n, classes, P)
    p = objective.logits(theta)[0].softmax(1)
    middle = weights[0][:, None, None] * (torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
    return torch.einsum("ncp,ncd,ndq->pq", jacobian, middle, jacobian) + torch.diag(objective.decay)


def vectors(theta: Tensor, count: int = 2, seed: int = 5) -> Tensor:
    """Random vectors for each of a stack of networks."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(theta), count, theta.shape[1], dtype=torch.float64, generator=generator)


def everything(
    objective: Objective, theta: Tensor, weights: Tensor, dataset: Tensor | None = None, v: Tensor | None = None
) -> list[Tensor]:
    """Value, gradient, products and matrices of both curvatures."""
    v = vectors(theta) if v is None else v
    return [
        objective.value(theta, weights, dataset),
        objective.gradient(theta, weights, dataset),
        *(objective.products(theta, v, weights, dataset, gauss_newton=g) for g in (False, True)),
        *(objective.matrices(theta, weights, dataset, gauss_newton=g) for g in (False, True)),
    ]


def with_examples(objective: Objective, rows: Tensor) -> Objective:
    """The same objective of these of its examples, in this order."""
    data = Data(objective.data.x[:, rows], objective.data.y[:, rows])
    return objective.like(data)


def same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# -- planted curvature, networks as nn.Module, and small fitted problems ----------------------------------------------

SPECTRA = {
    "well conditioned": np.linspace(1, 6, 12),
    "condition number 1e8": np.logspace(-7, 1, 12),
    "negative eigenvalues": np.array([-2.0, -0.3, *np.linspace(0.4, 8, 10)]),
    "rank deficient": np.array([*np.zeros(7), *np.linspace(1, 5, 5)]),
    "repeated": np.array([*[0.5] * 6, *[3.0] * 6]),
}


class Planted:
    """Stands in for an objective: its curvature is a given matrix, products and dense alike; it counts its products."""

    n = 1

    def __init__(self, matrix: np.ndarray, decay: np.ndarray | None = None, dtype: torch.dtype = torch.float64) -> None:
        self.matrix = torch.tensor(matrix, dtype=dtype)
        self.decay = torch.zeros(len(matrix), dtype=dtype) if decay is None else torch.tensor(decay, dtype=dtype)
        self.data = Data(self.matrix, self.matrix)
        self.products_used, self.largest_stack = 0, 0

    @property
    def theta(self) -> Tensor:
        return torch.zeros(len(self.matrix), dtype=self.matrix.dtype)

    def uniform(self, size: int) -> Tensor:
        return torch.ones(size, 1, dtype=torch.float64)

    def matrices(self, theta: Tensor, weights: Tensor, dataset: Tensor, gauss_newton: bool = False) -> Tensor:
        return (self.matrix + torch.diag(self.decay))[None]

    def products(
        self, theta: Tensor, v: Tensor, weights: Tensor, dataset: Tensor, gauss_newton: bool = False
    ) -> Tensor:
        self.products_used += v.shape[1]
        self.largest_stack = max(self.largest_stack, v.shape[1])
        return v @ self.matrix + self.decay * v

    def solved(self, v: Tensor, damping: float) -> np.ndarray:
        damped = self.matrices(None, None, None)[0].double().numpy() + damping * np.eye(len(self.matrix))
        return np.linalg.solve(damped, v.double().numpy().T).T


def planted(name: str) -> Planted:
    return Planted(rotated(list(SPECTRA[name])))


def right_hand_sides(k: int, size: int, seed: int = 1) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal((k, size)))


def filled(module: nn.Module, theta: Tensor) -> nn.Module:
    module = module.to(theta)
    nn.utils.vector_to_parameters(theta, module.parameters())
    return module


def conv_net(**options: object) -> nn.Sequential:
    """Two convolutions with stride, padding and dilation as told, and a linear layer without a bias."""
    settings = {"stride": 2, "padding": 1} | options
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, **settings), nn.Tanh(), nn.Conv2d(3, 4, 2), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3, bias=False),
    )  # fmt: skip


def conv_problem(
    n: int = 13, weight_decay: float = 0.02, seed: int = 0, build: Callable[[], nn.Module] = conv_net
) -> tuple[Objective, Tensor]:
    rng = np.random.default_rng([seed, 9])
    model = ModuleModel(build().double(), 3)
    data = Data(torch.tensor(rng.standard_normal((1, n, 2, 7, 7))), torch.tensor(rng.integers(0, 3, (1, n))))
    theta = torch.tensor(0.5 * rng.standard_normal(model.n_params))
    return Objective(model, data, weight_decay), theta


def mlp_problem(
    n: int = 21, weight_decay: float = 0.02, seed: int = 0, activation: str = "tanh"
) -> tuple[Objective, Tensor, nn.Sequential]:
    """A random network, not at an optimum: objective, theta (P,) and the same network as nn.Module."""
    rng = np.random.default_rng([seed, 10])
    model = MLP(2, 5, activation)
    data = Data(torch.tensor(rng.standard_normal((1, n, 4))), torch.tensor(rng.integers(0, 3, (1, n))))
    theta = torch.tensor(0.7 * rng.standard_normal(model.n_params))
    return Objective(model, data, weight_decay), theta, model.module(theta)


def linear_problem(weight_decay: float = 0.02, per_class: int = 10) -> tuple[Objective, Objective, Tensor, nn.Module]:
    """Softmax regression on Iris at its optimum: training and test objective, theta (15,), the network as nn.Module."""
    train, test = iris_subset(per_class)
    objective = Objective(Linear(4, 3), train, weight_decay)
    theta = newton(objective, torch.zeros(1, 15).double(), objective.uniform(1))[0][0]
    return objective, objective.on(test), theta, filled(nn.Sequential(nn.Linear(4, 3)), theta)


def shuffled(objective: Objective, seed: int = 0) -> tuple[Objective, Tensor]:
    """The same objective with its examples in another order, and the order."""
    order = torch.randperm(objective.n, generator=torch.Generator().manual_seed(seed))
    return with_examples(objective, order), order


def dense(objective: Objective, theta: Tensor, gauss_newton: bool) -> Tensor:
    return objective.matrices(theta[None], objective.uniform(1), torch.tensor([0]), gauss_newton)[0]
