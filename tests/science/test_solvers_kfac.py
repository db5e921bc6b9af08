"""K-FAC and EK-FAC: against the dense Gauss-Newton matrix, their definitions, and an independent library."""

import numpy as np
import pytest
import torch
from helpers import Regression
from planted import (
    Torch,
    conv_net,
    conv_problem,
    dense,
    filled,
    linear_problem,
    mlp_module,
    mlp_problem,
    right_hand_sides,
    shuffled,
)
from torch import nn

from fragile_lib.data.sets import Data
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives.base import Objective
from fragile_lib.solvers import BlockCGSolver, EkfacSolver, ExactSolver, KfacSolver
from fragile_lib.solvers.kfac_layers import loss_root
from fragile_lib.tools.errors import InputError

KINDS = [KfacSolver, EkfacSolver]


def stem_net():
    """Layers of many kinds: bias and none, padding, dilation, rectangular kernels, an activation in place."""
    return nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), nn.ReLU(inplace=True),
        nn.Sequential(nn.Conv2d(3, 2, 2, dilation=2), nn.Tanh()),
        nn.Flatten(), nn.Linear(2 * 2 * 4, 4), nn.ReLU(inplace=True), nn.Linear(4, 3),
    )  # fmt: skip


PROBLEMS = {
    "mlp": lambda seed: mlp_problem(seed=seed),
    "convolutions": lambda seed: (*conv_problem(seed=seed), None),
    "many kinds of layers": lambda seed: (*conv_problem(seed=seed, build=stem_net), None),
}


@pytest.fixture(params=PROBLEMS)
def problem(request):
    """Objective, theta (P,), and a module or None, where the model brings its own."""
    return PROBLEMS[request.param](0)


def module_of(problem):
    objective, theta, module = problem
    return module if module is not None else objective.model.module(theta)


def layer_spans(module):
    at = 0
    for part in module.modules():
        size = sum(p.numel() for p in part.parameters(recurse=False))
        if size:
            yield slice(at, at + size)
            at += size


def block_diagonal(matrix, module):
    found = torch.zeros_like(matrix)
    for span in layer_spans(module):
        found[span, span] = matrix[span, span]
    return found


def without_decay(objective, theta, gauss_newton=True):
    return dense(objective, theta, gauss_newton) - torch.diag(objective.decay)


# -- definitions -----------------------------------------------------------------------------------------------------


def test_the_root_of_the_logits_curvature_is_one():
    logits = right_hand_sides(5, 4)
    root, p = loss_root(logits, None), logits.softmax(1)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    torch.testing.assert_close(root @ root.mT, expected, rtol=1e-12, atol=1e-14)


def test_drawn_labels_come_to_it_in_the_mean_and_are_drawn_from_the_probabilities():
    logits = right_hand_sides(2, 3)
    draws = (torch.arange(100_000).double() + 0.5) / 100_000  # every quantile once
    root, p = loss_root(logits, draws.expand(2, -1)), logits.softmax(1)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    torch.testing.assert_close(root @ root.mT, expected, rtol=0, atol=1e-4)


def test_one_linear_layer_and_one_example_are_caught_exactly():
    objective = linear_problem(weight_decay=0.05)[0]
    single = Objective(objective.model, Data(objective.data.x[:, :1], objective.data.y[:, :1]), 0.05)
    theta = torch.linspace(-1, 1, 15, dtype=torch.float64)
    module, v = filled(nn.Sequential(nn.Linear(4, 3)), theta), right_hand_sides(3, 15)
    for kind in KINDS:
        solver = kind(single, theta, 0.1, module)
        torch.testing.assert_close(solver.dense(), dense(single, theta, True), rtol=1e-10, atol=1e-12)
        assert solver(v).residual.max() < 1e-12  # decay on weights alone included
        torch.testing.assert_close(solver(v).x, ExactSolver(single, theta, 0.1, True)(v).x, rtol=1e-9, atol=1e-10)


def test_equal_examples_are_caught_exactly_however_many():
    objective = linear_problem()[0]
    same = Objective(
        objective.model, Data(objective.data.x[:, :1].repeat(1, 5, 1), objective.data.y[:, :1].repeat(1, 5))
    )
    theta = torch.linspace(-1, 1, 15, dtype=torch.float64)
    module = filled(nn.Sequential(nn.Linear(4, 3)), theta)
    for kind in KINDS:
        torch.testing.assert_close(kind(same, theta, 0.1, module).dense(), dense(same, theta, True), rtol=0, atol=1e-12)


def test_kfac_is_the_product_of_the_mean_factors_of_a_linear_layer():
    objective, _, theta, module = linear_problem(weight_decay=0.0)
    inputs = torch.cat([objective.data.x[0], torch.ones(objective.n, 1).double()], dim=1)
    p = objective.logits(theta[None])[0].softmax(1)
    a = inputs.T @ inputs / objective.n
    g = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(0)
    joint = torch.kron(g, a)  # parameters as (out, in with the bias last)
    order = torch.tensor([5 * o + i for o in range(3) for i in range(4)] + [5 * o + 4 for o in range(3)])
    found = KfacSolver(objective, theta, 0.1, module).dense()
    torch.testing.assert_close(found, joint[order][:, order], rtol=1e-10, atol=1e-12)


def test_ekfac_has_the_diagonal_of_the_gauss_newton_blocks_in_the_basis_of_kfac(problem):
    objective, theta, module = problem
    solver, ggn = EkfacSolver(objective, theta, 0.1, module), without_decay(objective, theta)
    for block in solver.blocks:
        span = block.layer.place
        out, n_in = block.spectrum.shape
        basis = torch.einsum("oj,ik->jkoi", block.left, block.right).reshape(out * n_in, out, n_in)
        rows = block.layer.split(basis)  # one eigenvector of the layer a row
        torch.testing.assert_close(rows @ rows.T, torch.eye(out * n_in).double(), rtol=0, atol=1e-10)
        expected = ((rows @ ggn[span, span]) * rows).sum(1)
        torch.testing.assert_close(block.spectrum.flatten(), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ekfac_is_closer_to_the_gauss_newton_matrix_than_kfac(name, seed):
    objective, theta, module = PROBLEMS[name](seed)
    ggn = without_decay(objective, theta)
    blocks = block_diagonal(ggn, module_of((objective, theta, module)))
    decay = torch.diag(objective.decay)
    plain, corrected = (kind(objective, theta, 0.1, module).dense() - decay for kind in KINDS)
    for target in (ggn, blocks):
        assert (corrected - target).norm() < 0.995 * (plain - target).norm()
    assert (corrected - blocks).norm() < 0.7 * blocks.norm()  # and both say something of it
    torch.testing.assert_close(corrected.trace(), ggn.trace(), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(block_diagonal(corrected, module_of((objective, theta, module))), corrected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_independent_library_has_the_same_matrices(kind, problem):
    curvlinops = pytest.importorskip("curvlinops")
    objective, theta, _ = problem
    module = module_of(problem)
    operator = {KfacSolver: curvlinops.KFACLinearOperator, EkfacSolver: curvlinops.EKFACLinearOperator}[kind](
        module, nn.CrossEntropyLoss(), list(module.parameters()), [(objective.data.x[0], objective.data.y[0])],
        fisher_type="type-2", separate_weight_and_bias=False, check_deterministic=False,
    )  # fmt: skip
    expected = operator @ torch.eye(len(theta)).double() + torch.diag(objective.decay)
    torch.testing.assert_close(kind(objective, theta, 0.1, module).dense(), expected, rtol=1e-8, atol=1e-11)


# -- the inverse -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("damping", [1e-3, 0.3])
def test_the_inverse_is_exact_with_damping_on_all_and_decay_on_weights_alone(kind, problem, weight_decay, damping):
    objective, theta, module = problem
    objective = Objective(objective.model, objective.data, weight_decay)
    solver, v = kind(objective, theta, damping, module), right_hand_sides(3, len(theta))
    damped = solver.dense() + damping * torch.eye(len(theta)).double()
    torch.testing.assert_close(solver.apply(v), torch.linalg.solve(damped, v.T).T, rtol=1e-8, atol=1e-8)
    assert torch.equal(solver(v).x, solver.apply(v))


@pytest.mark.parametrize("kind", KINDS)
def test_biases_that_decay_otherwise_than_the_weights_are_exact_too(kind):
    objective, theta, module = mlp_problem()
    objective.decay = torch.where(objective.decay > 0, 0.02, 0.3)
    solver, v = kind(objective, theta, 0.05, module), right_hand_sides(3, len(theta))
    damped = solver.dense() + 0.05 * torch.eye(len(theta)).double()
    torch.testing.assert_close(solver.apply(v), torch.linalg.solve(damped, v.T).T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_inverse_is_symmetric_and_positive(kind, problem):
    objective, theta, module = problem
    inverse = kind(objective, theta, 1e-3, module).apply(torch.eye(len(theta)).double())
    torch.testing.assert_close(inverse, inverse.T, rtol=1e-8, atol=1e-8)
    assert torch.linalg.eigvalsh(inverse)[0] > 0


def test_a_kronecker_inverse_as_preconditioner_saves_products_and_changes_no_answer():
    objective, theta, module = mlp_problem(n=60)
    v = right_hand_sides(2, len(theta))
    plain = BlockCGSolver(objective, theta, 1e-3, True, tolerance=1e-8, block=1)(v)
    helper = EkfacSolver(objective, theta, 1e-3, module)
    helped = BlockCGSolver(objective, theta, 1e-3, True, tolerance=1e-8, block=1, preconditioner=helper.apply)(v)
    torch.testing.assert_close(helped.x, plain.x, rtol=1e-4, atol=1e-4)
    assert helped.status == "ok" and helped.products < plain.products


# -- invariance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize("samples", [None, 3])
def test_the_batch_size_changes_nothing(kind, problem, batch, samples):
    objective, theta, module = problem
    one, other = (kind(objective, theta, 0.1, module, batch=b, samples=samples).dense() for b in (batch, 7))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_examples_changes_nothing(kind, problem):
    objective, theta, module = problem
    v = right_hand_sides(2, len(theta))
    one, other = (kind(o, theta, 0.1, module)(v).x for o in (objective, shuffled(objective)[0]))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_many_drawn_labels_come_to_the_exact_factors(kind, problem):
    objective, theta, module = problem
    exact = kind(objective, theta, 0.1, module).dense()
    errors = [(kind(objective, theta, 0.1, module, samples=s).dense() - exact).norm().item() for s in (4, 400)]
    assert errors[1] < 0.1 * exact.norm()
    assert errors[1] < errors[0] / 3  # the noise falls as the root of the samples, here to a tenth


def test_drawn_labels_repeat_for_a_seed_and_differ_for_another():
    objective, theta, module = mlp_problem()
    first, again, other = (KfacSolver(objective, theta, 0.1, module, samples=2, seed=s).dense() for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_setting_up_leaves_the_module_as_it_was():
    objective, theta, module = mlp_problem()
    EkfacSolver(objective, theta, 0.1, module)
    assert all(p.grad is None for p in module.parameters())
    assert not any(part._forward_hooks for part in module.modules())
    assert torch.equal(nn.utils.parameters_to_vector(module.parameters()).detach(), theta)


def test_gradients_that_are_switched_off_outside_change_nothing():
    objective, theta, module = mlp_problem()
    expected = KfacSolver(objective, theta, 0.1, module).dense()
    with torch.no_grad():
        assert torch.equal(KfacSolver(objective, theta, 0.1, module).dense(), expected)


# -- bad input -------------------------------------------------------------------------------------------------------


def refused(module, theta, objective, match):
    for kind in KINDS:
        with pytest.raises(InputError, match=match):
            kind(objective, theta, 0.1, module)


def test_a_module_that_is_not_the_network_is_refused():
    objective, theta, module = mlp_problem()
    refused(filled(nn.Sequential(nn.Linear(4, 3)), theta[:15]), theta, objective, "^module = .*parameters in order")
    refused(mlp_problem(seed=1)[2], theta, objective, "^module = .*parameters in order")
    relu = nn.Sequential(*[nn.ReLU() if isinstance(part, nn.Tanh) else part for part in module])
    refused(relu, theta, objective, "^module = .*logits")
    refused(None, theta, objective, "^module = None: ")


def extra(part):
    def build():
        return nn.Sequential(part(), *conv_net())

    return build


@pytest.mark.parametrize(
    ("part", "match"),
    [
        (lambda: nn.BatchNorm2d(2).eval(), "BatchNorm2d"),
        (lambda: nn.Conv2d(2, 2, 1, groups=2), "one group"),
        (lambda: nn.Conv2d(2, 2, 3, padding="same"), "padded by number"),
        (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "padded by number"),
    ],
)
def test_layers_that_it_does_not_know_are_refused(part, match):
    model = Torch(extra(part), 3)
    theta = 0.1 * right_hand_sides(1, model.n_params)[0]
    objective = Objective(model, conv_problem()[0].data, 0.0)
    refused(None, theta, objective, f"^module = .*{match}")


def test_a_layer_that_is_used_twice_is_refused():
    shared = nn.Linear(3, 3)
    module = nn.Sequential(shared, nn.Tanh(), shared).double()
    model = Torch(lambda: nn.Sequential(shared, nn.Tanh(), shared), 3)
    theta = nn.utils.parameters_to_vector(module.parameters()).detach()
    data = Data(right_hand_sides(6, 3)[None], torch.zeros(1, 6, dtype=torch.long))
    refused(module, theta, Objective(model, data), "^module = .*used twice")


def test_two_layers_with_one_weight_are_refused():
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    module[2].weight = module[0].weight
    objective = Objective(Torch(lambda: nn.Sequential(nn.Linear(3, 3)), 3), Data(torch.ones(1, 2, 3), torch.ones(1, 2)))
    refused(module, torch.zeros(15).double(), objective, "^module = .*share")


def test_decay_that_differs_within_a_layer_is_refused():
    objective, theta, module = mlp_problem()
    objective.decay = objective.decay.clone()
    objective.decay[0] = 0.5
    refused(module, theta, objective, "^decay = .*weights")


def test_another_loss_is_refused():
    problem = Regression()
    module = filled(nn.Sequential(nn.Linear(3, 1)), problem.fitted())
    refused(module, problem.fitted(), problem.train, "^objective = 'SquaredError'")


@pytest.mark.parametrize(
    ("name", "value"), [("damping", 0.0), ("batch", 0), ("batch", 1.5), ("samples", 0), ("chunk", 0)]
)
def test_a_bad_setting_is_named(name, value):
    objective, theta, module = mlp_problem()
    for kind in KINDS:
        with pytest.raises(InputError, match=f"^{name} = "):
            kind(objective, theta, **({"damping": 0.1, "module": module} | {name: value}))


def test_single_precision_comes_to_the_same():
    objective, theta, _ = mlp_problem()
    data = Data(objective.data.x.float(), objective.data.y)
    single = Objective(objective.model, data, objective.weight_decay)
    v = right_hand_sides(2, len(theta))
    for kind in KINDS:
        expected = kind(objective, theta, 0.1, mlp_module(objective.model, theta)).apply(v)
        solver = kind(single, theta.float(), 0.1, mlp_module(objective.model, theta.float()))
        assert solver.apply(v.float()).dtype == torch.float32
        torch.testing.assert_close(solver.apply(v.float()), expected.float(), rtol=1e-3, atol=1e-3)


def test_the_small_convolutional_network_of_the_study_is_understood():
    rng = np.random.default_rng(0)
    data = Data(torch.tensor(rng.random((1, 6, 1, 21, 21))), torch.tensor(rng.integers(0, 3, (1, 6))))
    objective = Objective(SmallCNN(channels=2, n_classes=3, side=21), data, 0.01)
    theta = objective.model.init(0)
    ggn = without_decay(objective, theta)
    blocks = block_diagonal(ggn, objective.model.module(theta))
    plain, corrected = (kind(objective, theta, 0.1).dense() - torch.diag(objective.decay) for kind in KINDS)
    assert (corrected - blocks).norm() < 0.995 * (plain - blocks).norm()
    torch.testing.assert_close(corrected.trace(), ggn.trace(), rtol=1e-9, atol=0.0)


def test_the_model_brings_its_own_module():
    objective, theta = conv_problem()
    own, given = (KfacSolver(objective, theta, 0.1, m).dense() for m in (None, objective.model.module(theta)))
    assert torch.equal(own, given)
    np.testing.assert_allclose(own, own.T, atol=1e-12)
