"""Networks: sizes, the layout of their parameters, their starts and activations."""

import math

import pytest
import torch

from fragile_lib.models.mlp import ACTIVATIONS, MLP


def as_torch_modules(model, theta):
    """The same network as torch.nn modules that own copies of theta."""
    kinds = {"relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh(), "softplus": torch.nn.Softplus(model.sharpness, 1e6)}
    layers = [torch.nn.Linear(n_in, n_out).double() for n_in, n_out in model.shapes]
    modules = [part for layer in layers for part in (layer, kinds[model.activation])][:-1]
    network = torch.nn.Sequential(*modules)
    torch.nn.utils.vector_to_parameters(theta.clone(), network.parameters())
    return network


@pytest.mark.parametrize(("depth", "width", "count"), [(1, 5, 43), (8, 5, 253), (1, 50, 403)])
def test_parameter_counts_of_the_iris_networks(depth, width, count):
    model = MLP(depth, width)
    assert model.n_params == count
    assert len(model.init(0)) == count
    assert len(model.is_weight) == count


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [1, 3])
def test_parameters_lie_as_in_a_stack_of_torch_linear_layers(activation, depth):
    model = MLP(depth, 4, activation, n_features=3, n_classes=2, sharpness=1.7)
    theta = torch.randn(model.n_params, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    network, x = as_torch_modules(model, theta), torch.linspace(-2, 2, 15, dtype=torch.float64).view(5, 3)
    torch.testing.assert_close(model(theta, x), network(x), rtol=1e-12, atol=1e-12)
    marks = [torch.full_like(p, float(p.dim() == 2)) for p in network.parameters()]
    assert torch.equal(model.is_weight, torch.nn.utils.parameters_to_vector(marks))


def test_preactivations_are_those_of_the_hidden_units():
    model = MLP(2, 3, "tanh")
    theta, x = model.init(0), torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = as_torch_modules(model, theta)
    first = network[0](x)
    expected = torch.cat([first, network[2](first.tanh())], dim=1)
    torch.testing.assert_close(model.preactivations(theta, x), expected, rtol=1e-12, atol=1e-12)


def test_a_start_depends_on_its_seed_alone():
    model = MLP(2, 5)
    assert torch.equal(model.init(3), MLP(2, 5).init(3))
    assert not torch.equal(model.init(3), model.init(4))
    assert model.init(3).dtype == torch.float64


@pytest.mark.parametrize(("activation", "variance"), [("relu", 2 / 40), ("softplus", 2 / 40), ("tanh", 2 / (40 + 300))])
def test_a_start_has_the_scale_of_its_activation_and_zero_biases(activation, variance):
    model = MLP(1, 300, activation, n_features=40)
    theta = model.init(0)
    first = theta[: 40 * 300]
    assert first.std().item() == pytest.approx(math.sqrt(variance), rel=0.03)
    assert abs(first.mean().item()) < 4 * math.sqrt(variance / len(first))
    assert torch.all(theta[model.is_weight == 0] == 0)


@pytest.mark.parametrize("sharpness", [0.5, 10.0, 1e3])
def test_softplus_differs_from_relu_by_ln2_over_its_sharpness_at_most(sharpness):
    z = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    found = MLP(1, 1, "softplus", sharpness=sharpness)._activation()(z)
    excess = found - z.relu()
    assert excess.min() >= -1e-15
    assert excess.max().item() <= math.log(2) / sharpness * (1 + 1e-12)
    assert excess[500].item() == pytest.approx(math.log(2) / sharpness, rel=1e-12)


def test_smoothing_keeps_all_but_the_activation():
    smooth = MLP(3, 6, "relu", n_features=7, n_classes=2).smoothed(100.0)
    assert smooth == MLP(3, 6, "softplus", n_features=7, n_classes=2, sharpness=100.0)
