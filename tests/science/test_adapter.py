"""A torch.nn.Module as a pure function, against the module itself and against the network written by hand."""

import pytest
import torch
from torch import nn

from fragile_lib.data.sets import Data
from fragile_lib.models.module import ModuleModel
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives.base import Objective
from fragile_lib.tools.errors import InputError


def images(n=5):
    return torch.rand(n, 1, 21, 21, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_it_is_the_network_written_by_hand_in_value_curvature_and_decay():
    network = SmallCNN(2, 3, 21)
    theta = network.init(0)
    model = ModuleModel(network.module(theta), 3)
    assert torch.equal(model.theta, theta)
    assert model.n_params == network.n_params
    assert torch.equal(model.is_weight, network.is_weight)
    data = Data(images()[None], torch.tensor([[0, 1, 2, 0, 1]]))
    ours, expected = Objective(model, data, 0.1), Objective(network, data, 0.1)
    stack, weights = torch.stack([theta, network.init(1)]), ours.uniform(2)
    torch.testing.assert_close(ours.gradient(stack, weights), expected.gradient(stack, weights))
    v = torch.stack([network.init(2), network.init(3)])[:, None]
    for gauss_newton in (False, True):
        found = ours.products(stack, v, weights, gauss_newton=gauss_newton)
        torch.testing.assert_close(found, expected.products(stack, v, weights, gauss_newton=gauss_newton))
    torch.testing.assert_close(ours.example_gradients(stack), expected.example_gradients(stack))


def test_later_changes_of_the_module_do_not_reach_it_nor_its_calls_the_module():
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(441), nn.Linear(441, 3)).double().eval()
    model, x = ModuleModel(module, 3), images()
    before = module(x)
    torch.testing.assert_close(model(model.theta, x), before)
    model(model.theta + 1, x)
    assert torch.equal(module(x), before)
    module.train()(x)  # moves the running statistics
    with torch.no_grad():
        module[2].weight.add_(1)
    torch.testing.assert_close(model(model.theta, x), before)


def test_a_shared_parameter_is_there_once_and_moves_both_its_places():
    layer = nn.Linear(4, 4, bias=False).double()
    model = ModuleModel(nn.Sequential(layer, nn.Tanh(), layer), 4)
    assert model.n_params == 16
    theta, x = torch.linspace(-1, 1, 16, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    weight = theta.view(4, 4)
    torch.testing.assert_close(model(theta, x), torch.tanh(x @ weight.T) @ weight.T)


def test_theta_sets_the_floating_type_buffers_included():
    model = ModuleModel(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)).eval(), 2)
    assert model(model.theta.double(), torch.ones(3, 4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)),
        nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 2), nn.RReLU()),
        nn.Sequential(nn.MultiheadAttention(4, 2, dropout=0.1)),
        nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True), nn.Linear(4, 2)),
    ],
    ids=["dropout", "batch norm", "random slope", "attention", "instance norm"],
)
def test_a_layer_that_is_random_or_changes_is_refused_until_the_module_is_in_eval_mode(module):
    with pytest.raises(InputError, match=r"^module\.\d = .*eval"):
        ModuleModel(module, 2)
    ModuleModel(module.eval(), 2)


def test_batch_statistics_are_refused_in_any_mode():
    module = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)).eval()
    with pytest.raises(InputError, match=r"^module\.0 = "):
        ModuleModel(module, 2)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("n_classes", (nn.Linear(4, 2), 0)),
        ("n_classes", (nn.Linear(4, 2), 2.0)),
        ("module", (nn.Tanh(), 2)),
        ("module", (nn.LazyLinear(2), 2)),
    ],
)
def test_what_cannot_be_taken_over_is_named(name, arguments):
    with pytest.raises(InputError, match=f"^{name} = "):
        ModuleModel(*arguments)


def test_logits_of_another_shape_are_named():
    model = ModuleModel(nn.Linear(4, 2), 3)
    with pytest.raises(InputError, match=r"^module\(x\)\.shape = \(5, 2\)"):
        model(model.theta, torch.ones(5, 4))
