"""K-FAC and EK-FAC of networks with normalisation: against the dense Gauss-Newton matrix and the plain solvers."""

import numpy as np
import pytest
import torch
from helpers import Regression
from planted import conv_net, dense, filled, mlp_problem, right_hand_sides
from torch import nn
from torchvision.models.resnet import BasicBlock

from fragile_lib.data.sets import Data
from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.base import Objective
from fragile_lib.solvers import BlockCGSolver, EkfacSolver, KfacSolver, kfac_modules
from fragile_lib.solvers.kfac_layers import Layer
from fragile_lib.solvers.kfac_modules import DiagonalBlock, ModuleEkfacSolver
from fragile_lib.tools.errors import InputError

PLAIN = {False: KfacSolver, True: EkfacSolver}


def normed_net():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, 2, bias=False), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


def residual_net():
    """What torchvision's ResNet is made of: additions in place, one ReLU for several places, a way around by 1 x 1."""
    around = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2, bias=False), nn.BatchNorm2d(4))
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True),
        BasicBlock(3, 4, 2, around), BasicBlock(4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def features_net():
    """Normalisation over features, over channels of sequences, over all of an image; a linear layer at many places."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.LayerNorm([3, 4, 4]), nn.Tanh(), nn.Flatten(2), nn.BatchNorm1d(3),
        nn.LayerNorm(16, bias=False), nn.Linear(16, 2), nn.Flatten(), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3),
    )  # fmt: skip


def linear_net():
    return nn.Sequential(nn.Flatten(), nn.Linear(50, 4), nn.Tanh(), nn.Linear(4, 3, bias=False))


def stem_net():
    return nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), nn.ReLU(inplace=True),
        nn.Conv2d(3, 2, 2, dilation=(1, 2)), nn.Tanh(), nn.Flatten(), nn.Linear(2 * 2 * 2, 3),
    )  # fmt: skip


NETS = {"image": normed_net, "residual": residual_net, "features": features_net}
by_net = pytest.mark.parametrize("name", NETS)
by_kind = pytest.mark.parametrize("corrected", [False, True])


def shaken(module, seed=0):
    """Random parameters, scales other than 1, and running statistics as of earlier training."""
    rng = np.random.default_rng([seed, 11])
    module = module.double().eval()
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.tensor(0.5 * rng.standard_normal(tensor.shape)))
    for name, buffer in module.named_buffers():
        if "running_var" in name:
            buffer.copy_(torch.tensor(rng.uniform(0.5, 2, buffer.shape)))
    return module


def problem(build, n=7, weight_decay=0.02, seed=0):
    """Objective, theta (P,), module."""
    rng = np.random.default_rng([seed, 12])
    model = ModuleModel(shaken(build(), seed), 3)
    data = Data(torch.tensor(rng.standard_normal((1, n, 2, 5, 5))), torch.tensor(rng.integers(0, 3, (1, n))))
    return Objective(model, data, weight_decay), model.theta, model.module(model.theta)


def make(problem, corrected=True, damping=0.1, samples=None, **options):
    objective, theta, module = problem
    return ModuleEkfacSolver(objective, theta, damping, module, corrected, samples=samples, **options)


def curvature(problem):
    """The Gauss-Newton matrix without L2 (P, P)."""
    return dense(*problem[:2], True) - torch.diag(problem[0].decay)


# -- definitions -----------------------------------------------------------------------------------------------------


@by_kind
@pytest.mark.parametrize("samples", [None, 3])
@pytest.mark.parametrize("build", [conv_net, stem_net, linear_net])
def test_without_normalisation_it_is_the_plain_solver(build, samples, corrected):
    given = problem(build)
    objective, theta, module = given
    expected = PLAIN[corrected](objective, theta, 0.1, module, samples=samples)
    solver, v = make(given, corrected, samples=samples), right_hand_sides(2, len(theta))
    torch.testing.assert_close(solver.dense(), expected.dense(), rtol=1e-9, atol=1e-12)
    found, wanted = solver(v), expected(v)
    torch.testing.assert_close(found.x, wanted.x, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.residual, wanted.residual, rtol=1e-8, atol=1e-10)


@by_net
@by_kind
def test_normalisation_layers_have_the_diagonal_of_the_gauss_newton_matrix(name, corrected):
    given = problem(NETS[name])
    solver, ggn = make(given, corrected), curvature(given)
    blocks = [block for block in solver.blocks if isinstance(block, DiagonalBlock)]
    norms = [m for m in given[2].modules() if "Norm" in type(m).__name__]
    assert len(blocks) == len(norms)
    for block, norm in zip(blocks, norms, strict=True):
        place = block.layer.place
        assert block.spectrum.shape == (sum(p.numel() for p in norm.parameters()),)
        assert block.spectrum.count_nonzero() > len(block.spectrum) / 2  # the others are behind dead units
        torch.testing.assert_close(block.spectrum, ggn[place, place].diagonal(), rtol=1e-9, atol=1e-13)


@by_net
def test_ekfac_has_the_diagonal_of_the_gauss_newton_blocks_in_the_basis_of_kfac(name):
    given = problem(NETS[name])
    solver, ggn = make(given), curvature(given)
    for block in solver.blocks:
        if isinstance(block, DiagonalBlock):
            continue
        span, shape = block.layer.place, block.spectrum.shape
        basis = torch.einsum("oj,ik->jkoi", block.left, block.right).reshape(-1, *shape)
        rows = block.layer.split(basis)  # one eigenvector of the layer a row
        expected = ((rows @ ggn[span, span]) * rows).sum(1)
        torch.testing.assert_close(block.spectrum.flatten(), expected, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(solver.dense().trace(), (ggn.diagonal() + given[0].decay).sum(), rtol=1e-9, atol=0.0)


@by_net
def test_ekfac_is_closer_to_the_kronecker_blocks_than_kfac(name):
    given = problem(NETS[name])
    ggn, solvers = curvature(given), [make(given, corrected) for corrected in (False, True)]
    for plain, corrected in zip(*[solver.blocks for solver in solvers], strict=True):
        if isinstance(plain, DiagonalBlock):
            assert torch.equal(plain.spectrum, corrected.spectrum)
            continue
        target = ggn[plain.layer.place, plain.layer.place]
        assert (corrected.dense() - target).norm() < 0.995 * (plain.dense() - target).norm()


def test_a_scale_of_zero_hides_nothing():
    objective, _, module = problem(residual_net)
    with torch.no_grad():
        module[4].bn2.weight.zero_()  # as ResNets are sometimes begun
    theta = nn.utils.parameters_to_vector(module.parameters()).detach()
    given = objective, theta, module
    found = make(given).blocks[-2]
    assert found.layer.place.stop == len(theta) - 15
    expected = curvature(given)[found.layer.place, found.layer.place].diagonal()
    assert found.spectrum[:4].min() > 0
    torch.testing.assert_close(found.spectrum, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("places", "out", "inputs"), [(1, 4, 5), (2, 6, 9), (40, 3, 4)])
@pytest.mark.parametrize("piece", [1, 2**24])
def test_the_squares_are_those_of_each_examples_gradient_in_whatever_order(places, out, inputs, piece, monkeypatch):
    monkeypatch.setattr(kfac_modules, "PIECE", piece)
    layer = Layer(nn.Linear(inputs, out, bias=False), slice(0, out * inputs))
    a, g = (
        right_hand_sides(5, places * inputs).view(5, places, -1),
        right_hand_sides(5, places * out, 2).view(5, places, -1),
    )
    left, right = (torch.linalg.qr(right_hand_sides(size, size))[0] for size in (out, inputs))
    expected = (left.T @ torch.einsum("nto,nti->noi", g, a) @ right).square().sum(0)
    found = kfac_modules._squares(layer, a, g, left, right)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# -- drawn labels ----------------------------------------------------------------------------------------------------


def test_drawn_labels_are_right_in_the_mean():
    given = problem(normed_net, n=3)
    exact = make(given, corrected=False).dense()
    draws = torch.stack([make(given, corrected=False, samples=1, seed=seed).dense() for seed in range(150)])
    error = draws.mean(0) - exact
    assert error.norm() < 0.2 * exact.norm()
    noise = draws.var(0).sum().div(len(draws)).sqrt()  # what the mean of so many should be wrong by
    assert 0.3 * noise < error.norm() < 3 * noise
    for block in make(given).blocks:
        if isinstance(block, DiagonalBlock):
            place = block.layer.place
            mean = draws[:, place, place].diagonal(dim1=1, dim2=2).mean(0) - given[0].decay[place]
            torch.testing.assert_close(mean, block.spectrum, rtol=0.4, atol=0.05 * float(block.spectrum.max()))


def test_drawn_labels_keep_the_mean_trace_of_ekfac():
    given = problem(normed_net, n=3)
    traces = torch.stack([make(given, samples=1, seed=seed).dense().trace() for seed in range(60)])
    assert abs(traces.mean() - make(given).dense().trace()) < 4 * traces.std() / 60**0.5


def test_drawn_labels_repeat_for_a_seed_differ_for_another_and_are_the_default():
    given = problem(normed_net)
    first, again, other = (make(given, samples=1, seed=seed).dense() for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    default = ModuleEkfacSolver(*given[:2], 0.1, given[2])
    assert torch.equal(default.dense(), make(given, samples=1).dense())


# -- the inverse -----------------------------------------------------------------------------------------------------


@by_net
@by_kind
@pytest.mark.parametrize(("weight_decay", "damping"), [(0.0, 1e-3), (0.5, 1e-3), (0.02, 0.3)])
def test_the_inverse_is_exact_with_damping_on_all_and_decay_on_weights_alone(name, corrected, weight_decay, damping):
    given = problem(NETS[name], weight_decay=weight_decay)
    size = len(given[1])
    solver, v = make(given, corrected, damping, samples=1), right_hand_sides(3, size)
    damped = solver.dense() + damping * torch.eye(size).double()
    torch.testing.assert_close(solver.apply(v), torch.linalg.solve(damped, v.T).T, rtol=1e-8, atol=1e-8)


@by_net
@by_kind
def test_the_inverse_is_symmetric_and_positive(name, corrected):
    given = problem(NETS[name])
    inverse = make(given, corrected, 1e-3, samples=1).apply(torch.eye(len(given[1])).double())
    torch.testing.assert_close(inverse, inverse.T, rtol=1e-8, atol=1e-8)
    assert torch.linalg.eigvalsh(inverse)[0] > 0


def test_scales_decay_only_where_the_objective_says_so():
    objective, theta, module = problem(features_net, weight_decay=0.3)
    decays = {tuple(b.layer.module.weight.shape): b.decay for b in make((objective, theta, module)).blocks[1:4]}
    assert decays[3, 4, 4].tolist() == [objective.weight_decay] * 96  # a scale and a shift of three dimensions
    assert not decays[(3,)].any() and not decays[(16,)].any()


def test_the_residual_is_that_of_the_whole_damped_gauss_newton_matrix():
    given = problem(residual_net)
    solver, v = make(given, damping=0.05), right_hand_sides(3, len(given[1]))
    solution = solver(v)
    damped = dense(*given[:2], True) + 0.05 * torch.eye(len(given[1])).double()
    expected = (solution.x @ damped - v).norm(dim=1) / v.norm(dim=1)
    torch.testing.assert_close(solution.residual, expected, rtol=1e-9, atol=0.0)
    assert solution.status == "ok" and solution.products == 0 and solver.operator.products == 0
    assert torch.equal(solution.x, solver.apply(v)) and solution.seconds > solver.seconds > 0
    chunked = make(given, damping=0.05, chunk=2)(v)
    torch.testing.assert_close(chunked.residual, expected, rtol=1e-9, atol=0.0)


def test_the_residual_may_be_measured_on_another_objective():
    given, v = problem(normed_net), right_hand_sides(2, len(problem(normed_net)[1]))
    objective, theta, _ = given
    part = Objective(objective.model, Data(objective.data.x[:, :3], objective.data.y[:, :3]), objective.weight_decay)
    own, other = make(given)(v), make(given, residual=part)(v)
    assert torch.equal(own.x, other.x)
    error = other.x @ dense(part, theta, True) + 0.1 * other.x - v
    torch.testing.assert_close(other.residual, error.norm(dim=1) / v.norm(dim=1), rtol=1e-9, atol=0.0)


def test_as_preconditioner_it_changes_no_answer():
    given = problem(normed_net, n=6)
    objective, theta, _ = given
    v = right_hand_sides(1, len(theta))
    plain = BlockCGSolver(objective, theta, 1e-2, True, tolerance=1e-8, block=1)(v)
    helper = make(given, damping=1e-2).apply
    helped = BlockCGSolver(objective, theta, 1e-2, True, tolerance=1e-8, block=1, preconditioner=helper)(v)
    assert helped.status == "ok"
    torch.testing.assert_close(helped.x, plain.x, rtol=1e-4, atol=1e-4)


# -- invariance ------------------------------------------------------------------------------------------------------


@by_net
@pytest.mark.parametrize("samples", [None, 2])
def test_the_sizes_of_batches_and_pieces_change_nothing(name, samples, monkeypatch):
    given = problem(NETS[name])
    expected = make(given, samples=samples).dense()
    for batch in (1, 3):
        torch.testing.assert_close(make(given, samples=samples, batch=batch).dense(), expected, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(kfac_modules, "PIECE", 300)
    torch.testing.assert_close(make(given, samples=samples).dense(), expected, rtol=1e-9, atol=1e-12)


@by_net
def test_single_precision_comes_to_the_same(name):
    objective, theta, module = problem(NETS[name])
    single = Objective(objective.model, Data(objective.data.x.float(), objective.data.y), objective.weight_decay)
    v = right_hand_sides(2, len(theta))
    solver = make((single, theta.float(), objective.model.module(theta.float())))
    expected = make((objective, theta, module))(v)
    assert solver.dense().dtype == solver.apply(v.float()).dtype == torch.float32
    found = solver(v.float())
    torch.testing.assert_close(found.x, expected.x.float(), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(found.residual, expected.residual.float(), rtol=1e-3, atol=1e-3)


def test_the_module_is_left_as_it_was_and_may_be_frozen():
    given = problem(residual_net)
    expected, module = make(given).dense(), given[2]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module[0].requires_grad_(False)
    module[3].requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(make(given).dense(), expected)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks for part in module.modules())
    assert all(p.grad is None for p in module.parameters())
    assert [p.requires_grad for p in module[3].parameters()] == [False] * 9


# -- bad input -------------------------------------------------------------------------------------------------------


def refused(match, objective, theta, module, **options):
    with pytest.raises(InputError, match=match):
        ModuleEkfacSolver(objective, theta, **({"damping": 0.1, "module": module} | options))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x


class ChannelsLast(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.mT).mT


@pytest.mark.parametrize(
    ("part", "match"),
    [
        (Scaled, "0: Scaled.*have to be those of"),
        (lambda: nn.PReLU(), "0: PReLU.*have to be those of"),
        (lambda: nn.InstanceNorm2d(2, affine=True), "0: InstanceNorm2d.*have to be those of"),
        (lambda: nn.ConvTranspose2d(2, 2, 1), "0: ConvTranspose2d.*have to be those of"),
        (lambda: ChannelsLast(5), "0: ChannelsLast.*have to be those of"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 1)), "have to be those of"),
        (lambda: nn.Conv2d(2, 2, 1, groups=2), "0: .*one group"),
        (lambda: nn.Conv2d(2, 2, 3, padding="same"), "0: .*padded by number"),
    ],
)
def test_layers_that_it_does_not_know_are_refused(part, match):
    refused(f"^module = .*{match}", *problem(lambda: nn.Sequential(part(), *conv_net())))


def test_layers_that_are_random_or_change_are_refused():
    objective, theta, module = problem(normed_net)
    refused("^module.1 = 'BatchNorm2d': .*training mode", objective, theta, module.train())
    module.eval()[1].running_mean = None
    refused("^module.1 = 'BatchNorm2d': .*running statistics", objective, theta, module)
    dropping = nn.Sequential(nn.Dropout(), *problem(normed_net)[2])
    refused("^module.0 = 'Dropout': .*training mode", objective, theta, dropping)


class Uses(nn.Module):
    """A network that uses its middle layer so many times."""

    def __init__(self, times):
        super().__init__()
        self.times = times
        self.first, self.middle, self.last = nn.Linear(50, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        x = self.first(x.flatten(1))
        for _ in range(self.times):
            x = self.middle(x).tanh()
        return self.last(x)


@pytest.mark.parametrize("times", [0, 2])
def test_layers_that_are_not_used_exactly_once_are_refused(times):
    refused(f"^module = .*used once, not {times} times", *problem(lambda: Uses(times)))
    make(problem(lambda: Uses(1)))


def test_layers_that_share_a_parameter_are_refused():
    def build():
        module = Uses(1)
        module.last.weight = module.middle.weight
        return module

    refused("^module = .*share", *problem(build))


def test_a_module_that_is_not_the_network_is_refused():
    objective, theta, module = problem(normed_net)
    refused("^module = .*parameters in order", objective, theta, problem(residual_net)[2])
    refused("^module = .*parameters in order", objective, theta, problem(normed_net, seed=1)[2])
    refused("^module = .*parameters in order.*float64", objective, theta, objective.model.module(theta.float()))
    module[1].running_mean.add_(0.5)  # the same parameters
    refused("^module = .*logits", objective, theta, module)


def test_another_loss_and_another_decay_are_refused():
    objective, theta, module = problem(normed_net)
    regression = Regression()
    outputs = filled(nn.Sequential(nn.Linear(3, 1)), regression.fitted())
    refused("^objective = 'SquaredError'", regression.train, regression.fitted(), outputs)
    refused("^residual = .*L2", objective, theta, module, residual=Objective(objective.model, objective.data, 0.5))
    objective.decay = objective.decay.clone()
    objective.decay[0] = 0.5
    refused("^decay = .*weights", objective, theta, module)


@pytest.mark.parametrize(
    ("name", "value"),
    [("damping", 0.0), ("damping", -1.0), ("batch", 0), ("samples", 0), ("samples", 1.5), ("chunk", 0)],
)
def test_a_bad_setting_is_named(name, value):
    objective, theta, module = mlp_problem()
    refused(f"^{name} = ", objective, theta, module, **{name: value})


def test_right_hand_sides_of_another_shape_are_refused():
    given = problem(normed_net)
    with pytest.raises(InputError, match="^v = "):
        make(given)(torch.ones(len(given[1])).double())
