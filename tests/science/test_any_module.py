"""Modules and losses of all kinds: influence against a dense float64 reference by plain autograd, or one clear refusal.

The reference knows neither torch.func nor this package: a Hessian by autograd twice, one column after another.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import in_chunks
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, huber_loss

from fragile_lib.choices import Points, Removals
from fragile_lib.data.sets import Data
from fragile_lib.estimates import estimate
from fragile_lib.models.module import ModuleModel
from fragile_lib.network import Network
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.losses import CROSS_ENTROPY, BinaryLogit, CrossEntropy, Huber, Loss, OwnLoss, SquaredError
from fragile_lib.solvers import (
    ArnoldiSolver,
    BlockCGSolver,
    EkfacSolver,
    ExactSolver,
    KfacSolver,
    MinresSolver,
    NystroemSolver,
    lissa_partition,
    lissa_single,
    trak,
)
from fragile_lib.solvers.gram import GramSolver
from fragile_lib.tools.errors import InputError

N, M, C, DECAY, DAMPING = 10, 3, 3, 0.01, 0.5
ONE = torch.tensor([1])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape: int, classes: int = C, seed: int = 1) -> Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


def made(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build().double().eval()


# -- the reference ---------------------------------------------------------------------------------------------------


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def slope(value: Tensor, module: nn.Module, graph: bool = False) -> Tensor:
    found = torch.autograd.grad(value, list(module.parameters()), create_graph=graph, materialize_grads=True)
    return flat(list(found))


def dense(module: nn.Module, losses: Callable, x: Tensor, y: Tensor) -> Tensor:
    """H + decay + damping (P, P) of the mean loss."""
    gradient = slope(losses(module(x), y).mean(), module, graph=True)
    rows = [
        torch.autograd.grad(g, list(module.parameters()), retain_graph=True, materialize_grads=True) for g in gradient
    ]
    decay = flat([torch.full_like(p, DECAY if p.dim() > 1 else 0.0) for p in module.parameters()])
    return torch.stack([flat(list(row)) for row in rows]) + torch.diag(decay + DAMPING)


def expected_changes(module: nn.Module, losses: Callable, train: tuple, test: tuple) -> np.ndarray:
    """(n, m) g_i^T H^-1 grad f / n, what leaving out each example does to each test loss to first order."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            each = [
                torch.stack([slope(losses(module(x[i : i + 1]), y[i : i + 1]).sum(), module) for i in range(len(x))])
                for x, y in (train, test)
            ]
            return (each[0] @ torch.linalg.solve(dense(module, losses, *train), each[1].T) / len(train[0])).numpy()
        finally:
            torch.backends.mha.set_fastpath_enabled(True)


# -- what is compared with it ----------------------------------------------------------------------------------------


def network(kind: type, module: nn.Module, outputs: int, loss: Loss, train: tuple, test: tuple) -> Network:
    model = ModuleModel(module, outputs)
    objective = kind(model, Data(train[0][None], train[1][None]), DECAY, loss=loss)
    return Network(model.theta, objective, objective.on(Data(test[0][None], test[1][None])), DAMPING)


def estimated(net: Network, name: str = "exact", **options: object):
    points = Points(np.arange(net.test.n), ["all"] * net.test.n)
    return estimate([net], [points], [name], options={name: options})[0][name]


def ce(z: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(z, y, reduction="none")


def features(n: int) -> tuple[Tensor, Tensor]:
    return draw(n, 5, seed=n), labels(n, seed=n)


def sequences(n: int) -> tuple[Tensor, Tensor]:
    return draw(n, 4, 4, seed=n), labels(n, seed=n)


class Tokens(nn.Module):
    """Token ids; the same weights embed and read out."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 3), nn.Linear(3, 7 if tied else C, bias=False)
        if tied:
            self.out.weight = self.embed.weight

    def forward(self, t: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(t).mean(1)))


class EachToken(nn.Module):
    """Logits of the next token at each place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 3), nn.Linear(3, 7)

    def forward(self, t: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(t).cumsum(1)))


class Pixels(nn.Module):
    """Bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(16, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.to(self.out.weight.dtype).flatten(1) / 255)


class Attention(nn.Module):
    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.a, self.out, self.weights = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, C), weights

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x, x, x, need_weights=self.weights)[0].mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.a, self.out = kind(4, 3, batch_first=True), nn.Linear(3, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x)[0][:, -1])


class Spare(nn.Module):
    """A layer that forward never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(5, C), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def dense_net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, C))


def one_output() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1))


def normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, C)), nn.Tanh(), nn.Linear(C, C))


class ByHand(nn.Module):
    """weight_norm with plain products: torch 2.14's own kernel has a wrong second derivative."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        parts = [nn.Parameter(p.detach().clone()) for p in module.parameters()]
        self.bias, self.size, self.direction, self.weight, self.last = parts

    def forward(self, x: Tensor) -> Tensor:
        first = self.direction * self.size / self.direction.norm(dim=1, keepdim=True)
        return torch.tanh(x @ first.T + self.bias) @ self.weight.T + self.last


def token_ids(n: int, classes: int = C) -> tuple[Tensor, Tensor]:
    return labels(n, 4, classes=7, seed=n), labels(n, classes=classes, seed=n + 1)


def quartic(z: Tensor, y: Tensor) -> Tensor:
    return ((z - y) ** 4).sum(1) / 4


def real(n: int, *shape: int, size: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features and real targets."""
    return draw(n, 5, seed=n), size * draw(n, *shape, seed=1)


def each_token(n: int) -> tuple[Tensor, Tensor]:
    return labels(n, 4, classes=7, seed=n), labels(n, 4, classes=7, seed=n + 1)


def squares(z: Tensor, y: Tensor) -> Tensor:
    return (z - y.view_as(z)).pow(2).sum(1) / 2


def huber(z: Tensor, y: Tensor) -> Tensor:
    return huber_loss(z[:, 0], y, reduction="none", delta=0.8)


def binary(z: Tensor, y: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(z[:, 0], y.double(), reduction="none")


def weighted(z: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(z, y, WEIGHT, reduction="none", label_smoothing=0.1)


WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
IGNORED = CrossEntropy(ignore_index=-100)
# name -> (module, outputs, data of n examples, loss, the same by torch's functions)
KINDS = {
    "token ids": (Tokens, C, token_ids, CROSS_ENTROPY, ce),
    "tied weights": (lambda: Tokens(True), 7, lambda n: token_ids(n, 7), CROSS_ENTROPY, ce),
    "bytes": (Pixels, C, lambda n: (labels(n, 4, 4, classes=256, seed=n).byte(), labels(n)), CROSS_ENTROPY, ce),
    "regression": (one_output, 1, real, SquaredError(), squares),
    "two targets": (lambda: nn.Linear(5, 2), 2, lambda n: real(n, 2), SquaredError(), squares),
    "huber": (one_output, 1, lambda n: real(n, size=3.0), Huber(0.8), huber),
    "one logit": (one_output, 1, lambda n: (draw(n, 5, seed=n), labels(n, classes=2)), BinaryLogit(), binary),
    "class weights": (dense_net, C, features, CrossEntropy(WEIGHT, 0.1), weighted),
    "ignored": (dense_net, C, lambda n: (draw(n, 5, seed=n), labels(n).index_fill(0, ONE, -100)), IGNORED, ce),
    "soft labels": (dense_net, C, lambda n: (draw(n, 5, seed=n), draw(n, C, seed=1).softmax(1)), CROSS_ENTROPY, ce),
    "each token": (EachToken, 7, each_token, CROSS_ENTROPY, lambda z, y: ce(z.mT, y).mean(1)),
    "own loss": (lambda: nn.Linear(5, 2), 2, lambda n: real(n, 2), OwnLoss(quartic), quartic),
    "attention with weights": (lambda: Attention(True), C, sequences, CROSS_ENTROPY, ce),
    "attention": (lambda: Attention(False), C, sequences, CROSS_ENTROPY, ce),
    "encoder layer": (Encoder, C, sequences, CROSS_ENTROPY, ce),
    "weight norm": (normed, C, features, CROSS_ENTROPY, ce),
    "lstm": (lambda: Recurrent(nn.LSTM), C, sequences, CROSS_ENTROPY, ce),
    "gru": (lambda: Recurrent(nn.GRU), C, sequences, CROSS_ENTROPY, ce),
    "spare layer": (Spare, C, features, CROSS_ENTROPY, ce),
}
kinds = pytest.mark.parametrize("name", KINDS)


def case(name: str):
    build, outputs, data, loss, by_torch = KINDS[name]
    return made(build), outputs, loss, by_torch, data(N), data(M)


@kinds
@pytest.mark.parametrize("kind", [Objective, in_chunks])
def test_influence_is_the_dense_one_by_plain_autograd(name, kind):
    module, outputs, loss, by_torch, train, test = case(name)
    want = expected_changes(ByHand(module) if name == "weight norm" else module, by_torch, train, test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations without a batching rule
        found = estimated(network(kind, module, outputs, loss, train, test))
    np.testing.assert_allclose(found.changes, want, rtol=1e-8, atol=1e-10 * np.abs(want).max())
    assert np.abs(want).max() > 1e-6


@kinds
def test_directions_gauss_newton_and_values_are_the_same_in_chunks_and_by_rows(name):
    module, outputs, loss, by_torch, train, test = case(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nets = [network(kind, module, outputs, loss, train, test) for kind in (Objective, in_chunks)]
        (whole, streamed), theta = (net.train for net in nets), nets[0].theta[None]
        v, weights = draw(1, 4, theta.shape[1]), whole.uniform(1)
        rows = whole.example_gradients(theta)
        close = torch.testing.assert_close
        close(whole.losses(theta)[0], by_torch(module(train[0]), train[1]).detach())
        close(streamed.losses(theta), whole.losses(theta))
        close(streamed.directional(theta, v), v @ rows.mT)
        ggn = {"gauss_newton": True}
        close(streamed.products(theta, v, weights, **ggn), whole.products(theta, v, weights, **ggn))
        out, jacobians = whole.jacobians(theta[0], torch.arange(N))
        roots = loss.roots(out, whole.data.y[0]).flatten(1, -2).mT @ jacobians
        expected = roots.flatten(0, 1).T @ roots.flatten(0, 1) / N + torch.diag(whole.decay)
        close(whole.matrices(theta, weights, **ggn)[0], expected)


@pytest.mark.parametrize(
    "name", ["regression", "one logit", "class weights", "soft labels", "ignored", "bytes", "spare layer"]
)
def test_all_ways_to_the_gauss_newton_inverse_agree(name):
    module, outputs, loss, _, train, test = case(name)
    net = network(Objective, module, outputs, loss, train, test)
    want = estimated(net, "exact_ggn").changes
    for other in ("gram_ggn", "cg_ggn"):
        found = estimated(net, other, **({"tolerance": 1e-10} if other == "cg_ggn" else {}))
        np.testing.assert_allclose(found.changes, want, rtol=1e-6, atol=1e-9 * np.abs(want).max(), err_msg=other)
        assert found.status == "ok"
    rank = estimated(net, "ekfac").changes
    assert np.corrcoef(rank.ravel(), want.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["regression", "token ids", "soft labels", "bytes"])
@pytest.mark.parametrize("estimator", ["exact", "cg", "ekfac", "lissa_partition", "nystroem", "identity"])
def test_networks_of_single_precision_go_the_whole_way(given, name, estimator):
    module, outputs, loss, _, train, test = case(name)
    if estimator == "ekfac" and name == "token ids":
        pytest.skip("embeddings have no Kronecker factors")
    options = {"lissa_partition": {"batch": 5}, "nystroem": {"rank": 5}}.get(estimator, {})
    want = estimated(network(in_chunks, module, outputs, loss, train, test), estimator, **options).changes
    module = made(KINDS[name][0]).float()
    train, test = ((x.to(given) if x.is_floating_point() else x, y) for x, y in (train, test))
    net = network(in_chunks, module, outputs, loss, train, test)
    found = estimated(net, estimator, **options)
    assert net.train.uniform(1).dtype == net.train.decay.dtype == net.theta.dtype == torch.float32
    np.testing.assert_allclose(found.changes, want, rtol=1e-2, atol=1e-3 * np.abs(want).max())


@pytest.mark.parametrize("name", ["lstm", "attention", "weight norm"])
@pytest.mark.parametrize("estimator", ["trak", "tracin"])
def test_attributions_without_a_solver_take_them_too(name, estimator):
    """TRAK without a projection is a closed form of the margins' gradients; TracIn a product of gradients."""
    module, outputs, loss, by_torch, train, test = case(name)
    net = network(Objective, module, outputs, loss, train, test)
    net = replace(net, checkpoints=net.theta[None], rates=torch.ones(1, dtype=torch.float64))
    module = ByHand(module) if name == "weight norm" else module
    rows = [
        torch.stack([slope(by_torch(module(x[[i]]), y[[i]]).sum(), module) for i in range(len(x))])
        for x, y in (train, test)
    ]
    want = (rows[0] @ rows[1].T / N).numpy()
    if estimator == "tracin":
        np.testing.assert_allclose(estimated(net, "tracin").changes, want, rtol=1e-9)
        return
    doubt = [1 - module(x).softmax(1).detach().gather(1, y[:, None]) for x, y in (train, test)]
    phi = [-r / d for r, d in zip(rows, doubt, strict=True)]  # grad margin = -grad loss / (1 - p)
    d = Removals.single(range(N), N).changes()
    found = trak(net.train, net.test, net.theta[None], d, torch.arange(M), dim=None, damping=0.1)
    kernel = phi[0].T @ phi[0] + N * 0.1 * torch.eye(phi[0].shape[1])
    expected = doubt[0] * (phi[0] @ torch.linalg.solve(kernel, phi[1].T)) * doubt[1].T
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)


# -- outcomes --------------------------------------------------------------------------------------------------------

SOLVERS = {
    "exact": lambda o, t, d: ExactSolver(o, t, d, True),
    "cg": lambda o, t, d: BlockCGSolver(o, t, d, True),
    "minres": lambda o, t, d: MinresSolver(o, t, d, True),
    "arnoldi": lambda o, t, d: ArnoldiSolver(o, t, d, 3, True),
    "arnoldi, whole": lambda o, t, d: ArnoldiSolver(o, t, d, len(t), True),
    "nystroem": lambda o, t, d: NystroemSolver(o, t, d, 3),
    "kfac": KfacSolver,
    "ekfac": EkfacSolver,
    "gram": GramSolver,
    "lissa": lambda o, t, d: lissa_single(o, t, d, depth=400),
    "lissa, partition": lambda o, t, d: lissa_partition(o, t, d, depth=400, batch=5),
}
solvers = pytest.mark.parametrize("solver", SOLVERS)


@pytest.mark.parametrize("solver", [*SOLVERS, "trak"])
def test_one_row_that_is_not_a_number_is_the_same_outcome_of_every_solver(solver):
    (x, y), module = features(N), made(dense_net)
    x[3, 0] = torch.nan
    net = network(Objective, module, C, CROSS_ENTROPY, (x, y), features(M))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LiSSA's, that it grew
        solution = SOLVERS[solver](net.train, net.theta, 0.5)(net.theta[None]) if solver in SOLVERS else None
        found = solution.x if solution else torch.tensor(estimated(net, solver).changes)
        status = solution.status if solution else estimated(net, solver).status
    assert status == "solver_diverged" and torch.isnan(found).all()


@solvers
def test_without_curvature_the_damping_is_left_and_without_that_too_nothing(solver):
    """Logits that are certain: the loss has neither gradient nor curvature in float64."""
    model = ModuleModel(made(lambda: nn.Linear(2, C)), C)
    theta = torch.zeros(9, dtype=torch.float64)
    theta[6] = 1e6
    objective = Objective(model, Data(draw(1, N, 2), torch.zeros(1, N, dtype=torch.long)))
    solution = SOLVERS[solver](objective, theta, 0.5)(draw(2, 9))
    assert solution.status == "ok"
    torch.testing.assert_close(solution.x, 2 * draw(2, 9))
    if solver in ("exact", "cg", "minres"):
        solution = SOLVERS[solver](objective, theta, 0.0)(draw(2, 9))
        assert solution.status == "indefinite" and solution.residual.min() > 1 - 1e-12


@solvers
def test_a_layer_that_forward_never_calls_has_its_decay_and_damping_alone(solver):
    module, outputs, loss, _, train, test = case("spare layer")
    net = network(Objective, module, outputs, loss, train, test)
    v = draw(1, len(net.theta))
    solution = SOLVERS[solver](net.train, net.theta, DAMPING)(v)
    assert solution.status == "ok"
    if "lissa" not in solver:
        spare = v[0, -6:] / (net.train.decay[-6:] + DAMPING)
        torch.testing.assert_close(solution.x[0, -6:], spare, rtol=1e-4, atol=1e-4)


# -- the user's data and module --------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """Overwrites what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.ReLU(inplace=True), nn.Linear(5, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.first(x.sub_(0.1)))


@pytest.mark.parametrize("kind", [Objective, in_chunks])
@pytest.mark.parametrize("estimator", ["exact_ggn", "kfac", "ekfac", "gram_ggn", "identity"])
def test_no_layer_in_place_reaches_the_data(kind, estimator):
    train, test = features(N), features(M)
    before = train[0].clone(), test[0].clone()
    found = estimated(network(kind, made(InPlace), C, CROSS_ENTROPY, train, test), estimator)
    assert torch.equal(train[0], before[0]) and torch.equal(test[0], before[1])
    apart = made(lambda: nn.Sequential(nn.Linear(5, C)))
    clean = [((x - 0.1).relu(), y) for x, y in (train, test)]
    want = estimated(network(kind, apart, C, CROSS_ENTROPY, *clean), estimator)
    np.testing.assert_allclose(found.changes, want.changes, rtol=1e-9)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, C)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.out(x), x


CHANGING = [
    nn.Dropout(0.5),
    nn.BatchNorm1d(5),
    nn.RReLU(),
    nn.MultiheadAttention(5, 1, dropout=0.1),
    nn.InstanceNorm1d(5, track_running_stats=True),
]


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(nn.Linear(5, C).double(), draw(2, 5))


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: nn.DataParallel(nn.Linear(5, C)), "^module = 'DataParallel': .*module.module"),
        (scripted, "^module = .*plain torch.nn.Module"),
        (lambda: torch.compile(nn.Linear(5, C)), "^module = .*_orig_mod"),
        (lambda: nn.Linear(5, C).bfloat16(), "^module = .*bfloat16.*module.float"),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, C).double()), "^module = .*float32.*float64"),
        (nn.Tanh, "^module = "),
        (lambda: nn.LazyLinear(2), "^module = "),
        *((lambda part=part: nn.Sequential(part, nn.Linear(5, C)), r"^module\.0 = .*eval") for part in CHANGING),
        (lambda: nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False)).eval(), r"^module\.0 = "),
        (Pair, r"^module\(x\) = 'tuple': wrap"),
        (lambda: nn.Linear(5, 2), r"^module\(x\)\.shape = \(4, 2\)"),
    ],
)
def test_modules_that_are_none_here_are_refused(build, match):
    with pytest.raises(InputError, match=match):
        model = ModuleModel(build(), C)
        model(model.theta, torch.ones(4, 5))


def test_layers_that_change_or_are_random_are_taken_in_evaluation_mode():
    for part in CHANGING:
        ModuleModel(nn.Sequential(copy.deepcopy(part), nn.Linear(5, C)).eval(), C)


# -- one door --------------------------------------------------------------------------------------------------------


def objective_of(x: Tensor, y: Tensor, decay: object = 0.0) -> Objective:
    return Objective(ModuleModel(made(dense_net), C), Data(x, y), decay)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda x, y: objective_of(x, y), r"^data = 'x \(10, 5\), y \(10,\)': .*x\[None\]"),
        (lambda x, y: objective_of(x[None], y[None, :-1]), "^data = .*equal length"),
        (lambda x, y: objective_of(x[None, :0], y[None, :0]), "^data = .*at least one example"),
        (lambda x, y: objective_of(x[None], y[None]).on(Data(x[None, :0], y[None, :0])), "^data = "),
        (lambda x, y: objective_of(x[None], y[None] + 1), r"^labels = \(1, 3\)"),
        (lambda x, y: objective_of(x[None], y[None].double()), "^labels = .*long"),
        (lambda x, y: objective_of(x[None], y[None], "0.1"), "^weight_decay = '0.1'"),
        (lambda x, y: ExactSolver(objective_of(x[None], y[None]), None, "0.5"), "^damping = '0.5'"),
        (lambda x, y: Removals.single([N], N), r"^removals = \(10,\)"),
        (lambda x, y: Removals.single([-1], N), r"^removals = \(-1,\)"),
        (lambda x, y: Removals.single([0.5], N), "^removals = 'float64"),
        (lambda x, y: Removals.single([True, False], N), "^removals = 'bool"),
        (lambda x, y: Removals.groups([[0, 1], [1, 1]], N), "^removals = .*once"),
        (
            lambda x, y: BlockCGSolver(objective_of(x[None], y[None]), torch.zeros(39), 0.1, max_iterations=2.5),
            "^max_iterations = 2.5",
        ),
    ],
)  # fmt: skip
def test_what_a_user_may_bring_is_checked_once_at_the_door(make, match):
    with pytest.raises(InputError, match=match):
        make(*features(N))


def test_test_points_outside_the_data_are_named():
    net = network(Objective, made(dense_net), C, CROSS_ENTROPY, features(N), features(M))
    for index, match in (([M], r"^points = \(3,\)"), ([0.5], "^points = 'float64")):
        with pytest.raises(InputError, match=match):
            net.on_points(Points(np.array(index), ["all"]))


def test_a_mask_leaves_out_what_it_marks():
    mask = np.arange(N) % 4 == 1
    for given in (mask, torch.tensor(mask), mask.tolist()):
        assert Removals.single(given, N).members == ((1,), (5,), (9,))
        assert Removals.groups([given, [0, 2]], N).members == ((1, 5, 9), (0, 2))


def test_a_loss_as_a_method_of_the_objective_is_refused():
    with pytest.raises(InputError, match="^_loss = 'Mine': give the loss as `loss`"):

        class Mine(Objective):
            def _loss(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
                return ((self.model(theta, x) - y) ** 2).sum(1) / 2


# -- a module as a pure function --------------------------------------------------------------------------------------


def pictures(n: int = 5) -> Tensor:
    return torch.rand(n, 1, 21, 21, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_later_changes_of_the_module_do_not_reach_it_nor_its_calls_the_module():
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(441), nn.Linear(441, 3)).double().eval()
    model, x = ModuleModel(module, 3), pictures()
    before = module(x)
    torch.testing.assert_close(model(model.theta, x), before)
    model(model.theta + 1, x)
    assert torch.equal(module(x), before)
    module.train()(x)  # moves the running statistics
    with torch.no_grad():
        module[2].weight.add_(1)
    torch.testing.assert_close(model(model.theta, x), before)


def test_theta_sets_the_floating_type_buffers_included():
    model = ModuleModel(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)).eval(), 2)
    assert model(model.theta.double(), torch.ones(3, 4, dtype=torch.float64)).dtype == torch.float64
