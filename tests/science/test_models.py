"""Networks: sizes, the layout of their parameters, their starts and activations."""

import math

import pytest
import torch
from torch import nn

from fragile_lib.data.sets import Data
from fragile_lib.models.mlp import ACTIVATIONS, MLP
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives.base import Objective
from fragile_lib.solvers import EkfacSolver

PERCEPTRONS = [MLP(depth, 4, kind, 3, 2, sharpness=1.7) for depth in (1, 3) for kind in ACTIVATIONS]
MODELS = [*PERCEPTRONS, SmallCNN(2, 3, 21), SmallCNN(3, 4, 24, "relu")]
models = pytest.mark.parametrize("model", MODELS, ids=repr)


def as_torch_modules(model, theta):
    """The same network as torch.nn modules that own copies of theta, written down anew."""
    kinds = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "softplus": nn.Softplus(getattr(model, "sharpness", 1), 1e6)}
    if isinstance(model, MLP):
        layers = [nn.Linear(n_in, n_out) for n_in, n_out in model.shapes]
        modules = [part for layer in layers for part in (layer, kinds[model.activation])][:-1]
    else:
        widths, classes = [1] + [model.channels] * 5, model.n_classes
        layers = [nn.Conv2d(*widths[k : k + 2], 3, stride) for k, stride in enumerate((1, 2, 1, 2, 1))]
        layers.append(nn.Conv2d(model.channels, classes, 1))
        modules = [part for layer in layers for part in (layer, kinds[model.activation])]
        modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(classes, classes)]
    network = nn.Sequential(*modules).to(theta)
    nn.utils.vector_to_parameters(theta.clone(), network.parameters())
    return network


def inputs(model, n=6):
    shape = (model.n_features,) if isinstance(model, MLP) else (1, model.side, model.side)
    return torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("model", "count"), [(MLP(1, 5), 43), (MLP(8, 5), 253), (MLP(1, 50), 403), (SmallCNN(), 2616)])
def test_parameter_counts_of_the_networks_of_the_papers(model, count):
    assert model.n_params == len(model.init(0)) == len(model.is_weight) == count
    if isinstance(model, SmallCNN):
        assert [stage.side_out for stage in model.stages] == [26, 12, 10, 4, 2, 2, 1]


@models
def test_parameters_lie_as_in_torch_modules_and_preactivations_are_those_of_the_hidden_units(model):
    theta, x = torch.randn(model.n_params, generator=torch.Generator().manual_seed(1)).double(), inputs(model)
    network, seen = as_torch_modules(model, theta), []
    for part in network[:-1]:
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.register_forward_hook(lambda _module, _input, output: seen.append(output.flatten(1)))
    torch.testing.assert_close(model(theta, x), network(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.preactivations(theta, x), torch.cat(seen, 1), rtol=1e-12, atol=1e-12)
    marks = [torch.full_like(p, float(p.dim() > 1)) for p in network.parameters()]
    assert torch.equal(model.is_weight, nn.utils.parameters_to_vector(marks))


@models
def test_a_model_brings_its_own_module_which_owns_its_parameters_and_keeps_their_type(model):
    theta, x = model.init(0), inputs(model)
    module = model.module(theta)
    torch.testing.assert_close(module(x), model(theta, x), rtol=1e-12, atol=1e-12)
    assert torch.equal(nn.utils.parameters_to_vector(module.parameters()), theta)
    objective = Objective(model, Data(x[None], torch.arange(6)[None] % model.n_classes), 0.01)
    own, given = (EkfacSolver(objective, theta, 0.1, m).apply(theta[None]) for m in (None, module))
    assert torch.equal(own, given)
    with torch.no_grad():
        next(module.parameters()).add_(1)
    assert torch.equal(theta, model.init(0))
    assert next(model.module(theta.float()).parameters()).dtype == torch.float32


@models
def test_a_start_depends_on_its_seed_alone_and_has_no_biases(model):
    theta = model.init(3)
    assert torch.equal(theta, model.init(3)) and not torch.equal(theta, model.init(4))
    assert theta.dtype == torch.float64 and torch.all(theta[model.is_weight == 0] == 0)


@pytest.mark.parametrize(("activation", "variance"), [("relu", 2 / 40), ("softplus", 2 / 40), ("tanh", 2 / (40 + 300))])
def test_a_start_of_a_perceptron_has_the_scale_of_its_activation(activation, variance):
    first = MLP(1, 300, activation, n_features=40).init(0)[: 40 * 300]
    assert first.std().item() == pytest.approx(math.sqrt(variance), rel=0.03)
    assert abs(first.mean().item()) < 4 * math.sqrt(variance / len(first))


def test_a_start_of_the_small_cnn_is_a_cut_normal_of_scale_two_over_root_fan_in():
    theta, stages = SmallCNN().init(3), SmallCNN().stages
    weights = [theta[s.start : s.start + s.n_weights] * (s.n_in * s.kernel**2) ** 0.5 / 2 for s in stages]
    units = torch.cat(weights)
    assert 1.95 < units.abs().max() <= 2
    assert units.std().item() == pytest.approx(0.8796, abs=0.03)  # of a standard normal cut at two


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
