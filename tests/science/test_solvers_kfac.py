"""K-FAC and EK-FAC: against the dense Gauss-Newton matrix, their definitions, and an independent library."""

import numpy as np
import pytest
import torch
from helpers import Regression, conv_net, dense, filled, linear_problem, mlp_problem, right_hand_sides
from torch import nn
from torchvision.models.resnet import BasicBlock

from fragile_lib.data.sets import Data
from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.base import Objective
from fragile_lib.solvers import EkfacSolver, ExactSolver, KfacSolver, kfac
from fragile_lib.solvers.kfac import DiagonalBlock
from fragile_lib.solvers.kfac_layers import Layer
from fragile_lib.tools.errors import InputError

KINDS = [KfacSolver, EkfacSolver]


def stem_net():
    """Layers of many kinds: bias and none, padding, dilation, rectangular kernels, an activation in place."""
    return nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), nn.ReLU(inplace=True),
        nn.Sequential(nn.Conv2d(3, 2, 2, dilation=(1, 2)), nn.Tanh()),
        nn.Flatten(), nn.Linear(2 * 2 * 2, 4), nn.ReLU(inplace=True), nn.Linear(4, 3),
    )  # fmt: skip


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


PLAIN = {"convolutions": conv_net, "many kinds of layers": stem_net}
NORMED = {"image": normed_net, "residual": residual_net, "features": features_net}
NETS = ["mlp", *PLAIN, *NORMED]
by_net, by_kind = pytest.mark.parametrize("name", NETS), pytest.mark.parametrize("kind", KINDS)
by_normed = pytest.mark.parametrize("name", NORMED)


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


def problem(name, n=7, weight_decay=0.02, seed=0):
    """Objective, theta (P,), module, of a network by name or by what builds it."""
    if name == "mlp":
        return mlp_problem(2 * n, weight_decay, seed)
    build = ({**PLAIN, **NORMED}).get(name, name)
    rng = np.random.default_rng([seed, 12])
    model = ModuleModel(shaken(build(), seed), 3)
    data = Data(torch.tensor(rng.standard_normal((1, n, 2, 5, 5))), torch.tensor(rng.integers(0, 3, (1, n))))
    return Objective(model, data, weight_decay), model.theta, model.module(model.theta)


def make(kind, given, damping=0.1, **options):
    objective, theta, module = given
    return kind(objective, theta, damping, module, **options)


def curvature(given):
    """The Gauss-Newton matrix without L2 (P, P)."""
    return dense(*given[:2], True) - torch.diag(given[0].decay)


def approximated(made):
    """The matrix (P, P) that a solver inverts, without damping, or that of one of its blocks, without L2 too."""
    if isinstance(made, DiagonalBlock):
        return torch.diag(made.spectrum)
    if isinstance(made, kfac.Block):
        inside = made.layer.join(torch.eye(made.layer.place.stop - made.layer.place.start).to(made.left))
        inside = (made.left.T @ inside @ made.right) * made.spectrum
        return made.layer.split(made.left @ inside @ made.right.T)
    decay = made.operator.objective.decay.to(made.operator.theta)
    return torch.block_diag(*[approximated(block) for block in made.blocks]) + torch.diag(decay)


def kronecker_blocks(solver):
    return [block for block in solver.blocks if not isinstance(block, DiagonalBlock)]


# -- definitions -----------------------------------------------------------------------------------------------------


@by_kind
@pytest.mark.parametrize("copies", [1, 5])
def test_one_linear_layer_and_equal_examples_are_caught_exactly(kind, copies):
    objective = linear_problem(weight_decay=0.05)[0]
    data = Data(objective.data.x[:, :1].repeat(1, copies, 1), objective.data.y[:, :1].repeat(1, copies))
    same, theta = Objective(objective.model, data, 0.05), torch.linspace(-1, 1, 15, dtype=torch.float64)
    solver, v = kind(same, theta, 0.1, filled(nn.Sequential(nn.Linear(4, 3)), theta)), right_hand_sides(3, 15)
    torch.testing.assert_close(approximated(solver), dense(same, theta, True), rtol=1e-10, atol=1e-12)
    assert solver(v).residual.max() < 1e-12  # decay on weights alone included
    torch.testing.assert_close(solver(v).x, ExactSolver(same, theta, 0.1, True)(v).x, rtol=1e-9, atol=1e-10)


@by_net
def test_ekfac_has_the_diagonal_of_the_gauss_newton_blocks_in_the_basis_of_kfac(name):
    given = problem(name)
    solver, ggn = make(EkfacSolver, given), curvature(given)
    for block in kronecker_blocks(solver):
        span, shape = block.layer.place, block.spectrum.shape
        basis = torch.einsum("oj,ik->jkoi", block.left, block.right).reshape(-1, *shape)
        rows = block.layer.split(basis)  # one eigenvector of the layer a row
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)).double(), rtol=0, atol=1e-10)
        expected = ((rows @ ggn[span, span]) * rows).sum(1)
        torch.testing.assert_close(block.spectrum.flatten(), expected, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(
        approximated(solver).trace(), (ggn.diagonal() + given[0].decay).sum(), rtol=1e-9, atol=0.0
    )


@by_kind
@pytest.mark.parametrize("name", ["mlp", *PLAIN])
def test_an_independent_library_has_the_same_matrices(kind, name):
    curvlinops = pytest.importorskip("curvlinops")
    objective, theta, module = problem(name)
    operator = {KfacSolver: curvlinops.KFACLinearOperator, EkfacSolver: curvlinops.EKFACLinearOperator}[kind](
        module, nn.CrossEntropyLoss(), list(module.parameters()), [(objective.data.x[0], objective.data.y[0])],
        fisher_type="type-2", separate_weight_and_bias=False, check_deterministic=False,
    )  # fmt: skip
    expected = operator @ torch.eye(len(theta)).double() + torch.diag(objective.decay)
    torch.testing.assert_close(approximated(kind(objective, theta, 0.1, module)), expected, rtol=1e-8, atol=1e-11)


@by_normed
@by_kind
def test_normalisation_layers_have_the_diagonal_of_the_gauss_newton_matrix(name, kind):
    given = problem(name)
    solver, ggn = make(kind, given), curvature(given)
    blocks = [block for block in solver.blocks if isinstance(block, DiagonalBlock)]
    norms = [m for m in given[2].modules() if "Norm" in type(m).__name__]
    assert len(blocks) == len(norms)
    for block, norm in zip(blocks, norms, strict=True):
        place = block.layer.place
        assert block.spectrum.shape == (sum(p.numel() for p in norm.parameters()),)
        assert block.spectrum.count_nonzero() > len(block.spectrum) / 2  # the others are behind dead units
        torch.testing.assert_close(block.spectrum, ggn[place, place].diagonal(), rtol=1e-9, atol=1e-13)


def test_a_scale_of_zero_hides_nothing():
    objective, _, module = problem("residual")
    with torch.no_grad():
        module[4].bn2.weight.zero_()  # as ResNets are sometimes begun
    theta = nn.utils.parameters_to_vector(module.parameters()).detach()
    given = objective, theta, module
    found = make(EkfacSolver, given).blocks[-2]
    assert found.layer.place.stop == len(theta) - 15
    expected = curvature(given)[found.layer.place, found.layer.place].diagonal()
    assert found.spectrum[:4].min() > 0
    torch.testing.assert_close(found.spectrum, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("places", "out", "inputs"), [(1, 4, 5), (2, 6, 9), (40, 3, 4)])
@pytest.mark.parametrize("piece", [1, 2**24])
def test_the_squares_are_those_of_each_examples_gradient_in_whatever_order(places, out, inputs, piece, monkeypatch):
    monkeypatch.setattr(kfac, "PIECE", piece)
    layer = Layer(nn.Linear(inputs, out, bias=False), slice(0, out * inputs))
    a = right_hand_sides(5, places * inputs).view(5, places, -1)
    g = right_hand_sides(5, places * out, 2).view(5, places, -1)
    left, right = (torch.linalg.qr(right_hand_sides(size, size))[0] for size in (out, inputs))
    expected = (left.T @ torch.einsum("nto,nti->noi", g, a) @ right).square().sum(0)
    torch.testing.assert_close(kfac._squares(layer, a, g, left, right), expected, rtol=1e-10, atol=1e-12)


# -- drawn labels, batches, precision --------------------------------------------------------------------------------


@by_kind
@pytest.mark.parametrize("name", ["mlp", *PLAIN, "image"])
def test_many_drawn_labels_come_to_the_exact_factors_and_go_by_their_seed(kind, name):
    given = problem(name)
    exact = approximated(make(kind, given))
    few, again, other, many = (
        approximated(make(kind, given, samples=s, seed=seed)) for s, seed in ((4, 0), (4, 0), (4, 1), (400, 0))
    )
    assert torch.equal(few, again) and not torch.equal(few, other)
    assert (many - exact).norm() < 0.1 * exact.norm()
    assert (many - exact).norm() < (few - exact).norm() / 3  # the noise falls as the root of the samples, to a tenth


@by_net
@by_kind
@pytest.mark.parametrize("samples", [None, 2])
def test_the_sizes_of_batches_and_pieces_change_nothing(name, kind, samples, monkeypatch):
    given = problem(name)
    expected = approximated(make(kind, given, samples=samples))
    for batch, piece in ((1, kfac.PIECE), (3, 300)):
        monkeypatch.setattr(kfac, "PIECE", piece)
        found = approximated(make(kind, given, samples=samples, batch=batch))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@by_kind
@pytest.mark.parametrize("name", ["mlp", *NORMED])
def test_single_precision_comes_to_the_same(name, kind):
    objective, theta, module = problem(name)
    model = objective.model if name == "mlp" else ModuleModel(objective.model.module(theta.float()), 3)
    single = Objective(model, Data(objective.data.x.float(), objective.data.y), objective.weight_decay)
    v = right_hand_sides(2, len(theta))
    solver = kind(single, theta.float(), 0.1, objective.model.module(theta.float()))
    assert approximated(solver).dtype == solver.apply(v.float()).dtype == torch.float32
    found, expected = solver(v.float()), kind(objective, theta, 0.1, module)(v)
    torch.testing.assert_close(found.x, expected.x.float(), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(found.residual, expected.residual.float(), rtol=1e-3, atol=1e-3)


# -- the inverse -----------------------------------------------------------------------------------------------------


@by_net
@by_kind
@pytest.mark.parametrize(("weight_decay", "damping"), [(0.0, 1e-3), (0.5, 1e-3), (0.02, 0.3)])
def test_the_inverse_is_exact_symmetric_and_positive_with_damping_on_all(name, kind, weight_decay, damping):
    given = problem(name, weight_decay=weight_decay)
    if name == "mlp":  # biases that decay otherwise than the weights
        given[0].decay = torch.where(given[0].decay > 0, given[0].decay, 0.3)
    solver, eye = make(kind, given, damping, samples=1), torch.eye(len(given[1])).double()
    inverse = solver.apply(eye)
    damped = approximated(solver) + damping * eye
    torch.testing.assert_close(inverse, torch.linalg.inv(damped), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(inverse, inverse.T, rtol=1e-8, atol=1e-8)
    assert torch.linalg.eigvalsh(inverse)[0] > 0
    solution = solver(right_hand_sides(2, len(eye)))
    assert solution.products == 0 and solution.seconds > solver.seconds > 0
    if name == "features":  # a scale and a shift of three dimensions decay, of one they do not
        decays = {tuple(b.layer.module.weight.shape): b.decay for b in solver.blocks[1:4]}
        assert decays[3, 4, 4].tolist() == [weight_decay] * 96
        assert not decays[(3,)].any() and not decays[(16,)].any()


def test_the_module_is_left_as_it_was_and_may_be_frozen_and_gradients_switched_off():
    given = problem("residual")
    expected, module = approximated(make(EkfacSolver, given)), given[2]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module[0].requires_grad_(False)
    module[3].requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(approximated(make(EkfacSolver, given)), expected)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks for part in module.modules())
    assert all(p.grad is None for p in module.parameters())
    assert [p.requires_grad for p in module[3].parameters()] == [False] * 9


# -- bad input -------------------------------------------------------------------------------------------------------


def refused(match, objective, theta, module, **options):
    for kind in KINDS:
        with pytest.raises(InputError, match=match):
            kind(objective, theta, **({"damping": 0.1, "module": module} | options))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x


class ChannelsLast(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.mT).mT


class Uses(nn.Module):
    """A network that uses its middle layer so many times, or shares its weight with the last."""

    def __init__(self, times, shares=False):
        super().__init__()
        self.times = times
        self.first, self.middle, self.last = nn.Linear(50, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        if shares:
            self.last.weight = self.middle.weight

    def forward(self, x):
        x = self.first(x.flatten(1))
        for _ in range(self.times):
            x = self.middle(x).tanh()
        return self.last(x)


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
        (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "0: .*padded by number"),
    ],
)
def test_layers_that_it_does_not_know_are_refused(part, match):
    refused(f"^module = .*{match}", *problem(lambda: nn.Sequential(part(), *conv_net())))


def test_layers_that_are_random_or_change_or_are_used_twice_or_share_a_parameter_are_refused():
    objective, theta, module = problem("image")
    refused("^module.0 = 'Dropout': .*training mode", objective, theta, nn.Sequential(nn.Dropout(), *module))
    refused("^module.1 = 'BatchNorm2d': .*training mode", objective, theta, module.train())
    module.eval()[1].running_mean = None
    refused("^module.1 = 'BatchNorm2d': .*running statistics", objective, theta, module)
    refused("^module = .*used once, not 2 times", *problem(lambda: Uses(2)))
    refused("^module = .*share", *problem(lambda: Uses(1, shares=True)))
    make(EkfacSolver, problem(lambda: Uses(1)))


def test_a_module_that_is_not_the_network_another_decay_and_labels_drawn_for_another_loss_are_refused():
    objective, theta, module = problem("image")
    refused("^module = .*parameters in order", objective, theta, problem("residual")[2])
    refused("^module = .*parameters in order", objective, theta, problem("image", seed=1)[2])
    refused("^module = .*parameters in order.*float64", objective, theta, objective.model.module(theta.float()))
    linear, _, fitted, _ = linear_problem()
    refused("^module = None: ", linear, fitted, None)
    objective.decay = objective.decay.clone()
    objective.decay[0] = 0.5
    refused("^decay = .*weights", objective, theta, module)
    module[1].running_mean.add_(0.5)  # the same parameters
    refused("^module = .*outputs", objective, theta, module)
    regression = Regression()
    outputs = filled(nn.Sequential(nn.Linear(3, 1)), regression.fitted())
    refused("^samples = 3", regression.train, regression.fitted(), outputs, samples=3)
