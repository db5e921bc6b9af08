"""Gradients of single examples by layers: those of plain autograd, or none where a network is not understood."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.losses import CROSS_ENTROPY, CrossEntropy, SquaredError, as_loss
from fragile_lib.own import examples, layered
from fragile_lib.own.examples import objective_of

CLASSES = 3
LARGE = 2.0  # a feature above it


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.head(self.second(self.first(x).tanh()))


class Twice(nn.Module):
    """A layer that is passed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.head(self.first(self.first(x).tanh()))


class Beside(Twice):
    """A layer whose weight does something else beside."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.head(linear(self.first(x).tanh(), self.first.weight))


class Turned(Twice):
    """Layers whose inputs hold places first and examples second."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = x.unflatten(1, (2, 2)).transpose(0, 1).repeat(1, 1, 2)  # (2, n, 4)
        return self.head(self.first(x).tanh()).sum(0)


class Named(Twice):
    """A layer that is given its input by name."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.head(self.first(input=x).tanh())


class Unseen(Twice):
    """A layer whose hooks are not called."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.head(self.first.forward(x).tanh())


class Sorted(Twice):
    """A layer that has its examples in the order of a feature, which for the examples here is upside down."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        order = x[:, 0].argsort(descending=True)
        return self.head(self.first(x[order]).tanh()[order.argsort()])


class Routed(nn.Module):
    """Two layers, of which an example passes one; the first and the last example pass the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        large, z = x[:, 0] > LARGE, torch.zeros_like(x)
        for marked, layer in ((large, self.first), (~large, self.second)):
            if bool(marked.any()):
                z[marked] = layer(x[marked])
        return self.head(z.tanh())


class Branched(Routed):
    """The same by a choice that a chunk makes."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        large = x[:, :1] > LARGE
        z = self.second(x)
        return self.head((torch.where(large, self.first(x), z) if bool(large.any()) else z).tanh())


class Viewed(nn.Module):
    """A network that takes images with their channels first alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(27, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.head(self.first(x).relu().view(len(x), -1))


class Rough(Twice):
    """In single precision the gradients of several examples at once are others, as beside a kink by rounding."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        z = self.first(x)
        return self.head(z * 1.01 - 0.01 * z.detach() if x.dtype == torch.float32 and len(x) > 1 else z)


class Single(Twice):
    """A network that takes single precision alone."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.head(self.first(x.float()).tanh())


class Unused(Twice):
    """A layer that no example passes."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.head(x)


def convolutions() -> nn.Module:
    net = nn.Sequential(
        nn.Unflatten(1, (2, 6, 6)),
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 2, dilation=2, padding=(1, 0)),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    ).double()
    net(torch.rand(8, 72, dtype=torch.float64))  # statistics, and the lazy layer's shape
    return net


class Doubled(nn.Linear):
    """A layer that computes something else."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return 2 * super().forward(x)


def chain(first: nn.Module | None = None, bias: bool = True) -> nn.Sequential:
    """Of Linear layers and activations alone, unless the first is another."""
    layers = nn.Linear(4, 5, bias=bias), nn.Tanh(), nn.Linear(5, 2), nn.Softplus(), nn.Linear(2, CLASSES)
    return nn.Sequential(first or layers[0], *layers[1:])


def overridden() -> nn.Module:
    """A layer whose own `forward` is another."""
    net = chain()
    net[0].forward = lambda x: linear(x, 2 * net[0].weight)
    return net


def twice_passed() -> nn.Module:
    """A layer that stands at two places."""
    square = nn.Linear(4, 4)
    return nn.Sequential(square, nn.Tanh(), square, nn.Linear(4, CLASSES))


UNDERSTOOD = {
    "a chain": (chain, 4),
    "a chain without a bias": (lambda: chain(bias=False), 4),
    "logistic regression": (lambda: nn.Sequential(nn.Linear(4, CLASSES)), 4),
    "perceptron": (lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, CLASSES)), 4),
    "convolutions": (convolutions, 72),
    "a layer is not used": (Unused, 4),
}
NOT = {
    "tied weights": Tied,
    "a layer is passed twice": Twice,
    "a weight is used beside": Beside,
    "examples along the second axis": Turned,
    "an input by its name": Named,
    "a layer without hooks": Unseen,
    "examples in another order": Sorted,
    "outputs that a hook changes": lambda: hooked(),
    "a chain with a subclass": lambda: chain(Doubled(4, 5)),
    "a recurrent layer": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.LSTM(2, 3, batch_first=True), Last()),
}


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    net[0].register_forward_hook(lambda part, given, result: 2 * result)
    return net


class Last(nn.Module):
    """The last place of what a recurrent layer gives."""

    def forward(self, out: tuple) -> Tensor:  # noqa: D102
        return out[0][:, -1]


def made(module: nn.Module, size: int, n: int = 7, loss: object = CROSS_ENTROPY, chunk: int = 3) -> tuple:
    """(objective of n examples, theta): in chunks that do not divide n."""
    torch.manual_seed(0)
    model = ModuleModel(module.double().eval(), CLASSES)
    y = torch.arange(n) % CLASSES
    y = y if isinstance(loss, CrossEntropy) else torch.rand(n, CLASSES, dtype=torch.float64)
    objective = objective_of(model, (torch.rand(n, size, dtype=torch.float64), y), 0.1, chunk, loss)
    return objective, model.theta + 0.1 * torch.rand_like(model.theta)  # not the module's own


def plain(objective: object, theta: Tensor) -> Tensor:
    """(n, P) one example after the other."""
    theta, rows = theta.detach().requires_grad_(), []
    for x, y in zip(objective.data.x[0], objective.data.y[0], strict=True):
        value = objective.loss.values(objective.model(theta, x[None]), y[None]).sum()
        rows.append(torch.autograd.grad(value, theta)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("loss", [CROSS_ENTROPY, SquaredError()], ids=["labels", "targets"])
@pytest.mark.parametrize("name", UNDERSTOOD)
def test_gradients_and_products_are_those_of_autograd(name, loss, pieces, monkeypatch):
    if pieces:  # one example in a piece
        monkeypatch.setattr(layered, "PIECE", 1)
        monkeypatch.setattr(layered, "HELD", 1)
    make, size = UNDERSTOOD[name]
    objective, theta = made(make(), size, loss=loss)
    assert layered.layered(objective, theta) is not None
    expected, v = plain(objective, theta), torch.rand(5, len(theta), dtype=torch.float64)
    torch.testing.assert_close(objective.example_gradients(theta[None])[0], expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(objective.directional(theta[None], v[None])[0], v @ expected.T, rtol=1e-12, atol=1e-14)
    along, losses = objective.directional_and_losses(theta[None], v[None])
    torch.testing.assert_close(along, v @ expected.T, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(losses, objective.losses(theta[None])[0], rtol=1e-12, atol=0)
    weights, same = torch.rand(9, 7, dtype=torch.float64), theta.expand(9, -1)
    under = weights @ expected + objective.decay * theta
    torch.testing.assert_close(objective.gradient(same, weights), under, rtol=1e-12, atol=1e-14)


CHANGED = {
    "a hook": hooked,
    "a subclass": lambda: chain(Doubled(4, 5)),
    "a forward of its own": overridden,
    "a layer twice": twice_passed,
    "a parametrization": lambda: chain(nn.utils.parametrizations.orthogonal(nn.Linear(4, 5))),
    "work in place": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, CLASSES)),
    "another layer": lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, CLASSES)),
    "a container of one's own": lambda: type("Mine", (nn.Sequential,), {})(nn.Linear(4, CLASSES)),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_is_no_plain_chain_is_still_checked(name):
    assert not layered._is_chain(CHANGED[name]().double())
    assert layered._is_chain(chain())


@pytest.mark.parametrize("gauss_newton", [False, True])
@pytest.mark.parametrize(
    "loss", [CROSS_ENTROPY, SquaredError(), as_loss(lambda z, y: (z * y).sum(1))], ids=["labels", "targets", "linear"]
)
@pytest.mark.parametrize("name", ["a chain", "a chain without a bias", "logistic regression"])
def test_the_matrix_of_a_chain_is_that_of_products(name, loss, gauss_newton, monkeypatch):
    objective, theta = made(UNDERSTOOD[name][0](), 4, loss=loss)
    weights, v = torch.rand(1, 7, dtype=torch.float64), torch.rand(1, 3, len(theta), dtype=torch.float64)
    expected = Objective.products(objective, theta[None], v, weights, None, gauss_newton)
    how = weights, None, gauss_newton
    monkeypatch.setattr(examples, "PIECE", 1)  # one example in a piece
    torch.testing.assert_close(v @ objective.matrices(theta[None], *how), expected, rtol=1e-11, atol=1e-13)
    often = objective.often()
    for factor in (1, 2):  # at other parameters and weights the matrix is another
        at, under = factor * theta[None], factor * weights
        expected = Objective.products(objective, at, v, under, None, gauss_newton)
        for _ in range(2):
            found = often.products(at, v, under, None, gauss_newton)
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def test_places_of_a_sequence_are_summed_over():
    net = nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, CLASSES))
    model = ModuleModel(net.double().eval(), CLASSES)
    y = torch.tensor([[0, 1, 2], [2, -1, 0], [1, 1, -1], [0, 0, 2]])
    loss = CrossEntropy(ignore_index=-1)
    objective = objective_of(model, (torch.rand(4, 12, dtype=torch.float64), y), 0.0, 4, loss)
    found, expected = objective.example_gradients(model.theta[None])[0], plain(objective, model.theta)
    assert layered.layered(objective, model.theta) is not None
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("single", [False, True])
def test_images_may_have_to_have_their_channels_first(single):
    torch.manual_seed(0)
    module, kind = Viewed(), torch.float32 if single else torch.float64
    model = ModuleModel(module.to(kind).eval(), CLASSES)
    objective = objective_of(model, (torch.rand(5, 2, 3, 3), torch.arange(5) % CLASSES), 0.1, 3, CROSS_ENTROPY)
    found = layered.layered(objective, model.theta)
    assert found.form == torch.preserve_format and {p.dtype for p in found.module.parameters()} == {kind}
    torch.testing.assert_close(objective.example_gradients(model.theta[None])[0], plain(objective, model.theta))


@pytest.mark.parametrize("kind", [Rough, Single])
def test_a_network_in_single_precision_is_understood_whatever_its_rounding(kind):
    torch.manual_seed(0)
    model = ModuleModel(kind().eval(), CLASSES)
    objective = objective_of(model, (torch.rand(7, 4), torch.arange(7) % CLASSES), 0.1, 3, CROSS_ENTROPY)
    found, expected = objective.example_gradients(model.theta[None])[0], plain(objective, model.theta)
    assert layered.layered(objective, model.theta) is not None and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("name", NOT)
def test_a_network_that_is_not_understood_is_differentiated_as_any(name):
    objective, theta = made(NOT[name](), 4)
    assert layered.layered(objective, theta) is None
    expected, v = plain(objective, theta), torch.rand(5, len(theta), dtype=torch.float64)
    torch.testing.assert_close(objective.example_gradients(theta[None])[0], expected, rtol=1e-12, atol=1e-14)
    along, losses = objective.directional_and_losses(theta[None], v[None])
    torch.testing.assert_close(along, v @ expected.T, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(losses, objective.losses(theta[None])[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [Routed, Branched])
def test_layers_that_only_some_examples_pass_are_seen_when_these_come(make):
    objective, theta = made(make(), 4)
    x = objective.data.x[0]
    x[[1, 4], 0] += LARGE  # none of those by which the network is understood
    assert layered.layered(objective, theta) is not None
    torch.testing.assert_close(objective.example_gradients(theta[None])[0], plain(objective, theta), rtol=1e-12, atol=0)
    assert layered.layered(objective, theta) is None
    objective, theta = made(make(), 4)
    objective.data.x[0][[1, 4], 0] += LARGE
    expected, v = plain(objective, theta), torch.rand(5, len(theta), dtype=torch.float64)
    torch.testing.assert_close(objective.directional(theta[None], v[None])[0], v @ expected.T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("void", ["labels", "features"])
def test_examples_that_show_no_gradient_do_not_hide_what_is_not_understood(void):
    objective, theta = made(hooked(), 4, loss=CrossEntropy(ignore_index=0))
    if void == "features":
        objective.data.x[0][[0, 3, 6]] = torch.nan
    found, expected = objective.example_gradients(theta[None])[0], plain(objective, theta)
    assert not expected[[0, 3, 6]].isfinite().all() if void == "features" else not expected[[0, 3, 6]].any()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14, equal_nan=True)


def test_a_frozen_parameter_and_its_network_stay_as_they_are():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    net[0].weight.requires_grad_(False)
    objective, theta = made(net, 4)
    before = [p.clone() for p in net.parameters()]
    found = objective.example_gradients(theta[None])[0]
    torch.testing.assert_close(found, plain(objective, theta), rtol=1e-12, atol=1e-14)
    assert not net[0].weight.requires_grad
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
