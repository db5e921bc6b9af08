"""The objective and its derivatives: compiled kernels against torch.func, and both against dense references."""

import numpy as np
import pytest
import torch
from helpers import (
    Regression,
    everything,
    iris_subset,
    random_network,
    same,
    softmax_regression,
    triple_product,
    value_by_hand,
    vectors,
    with_examples,
)
from torch.func import grad, hessian
from torch.nn.functional import cross_entropy

from fragile_lib.data.sets import Data
from fragile_lib.models.mlp import MLP
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives import base
from fragile_lib.objectives.base import Objective, resolve_device
from fragile_lib.objectives.conv import ConvObjective
from fragile_lib.objectives.fused import FusedObjective, make_objective
from fragile_lib.tools.errors import InputError

SHAPES = [(1, 5, 121), (1, 8, 7), (2, 3, 7), (2, 8, 121), (4, 3, 121), (4, 5, 7), (4, 8, 7), (1, 1, 1)]
CASES = [(activation, *shape) for activation in ("relu", "tanh", "softplus") for shape in SHAPES]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request):
    return random_network(*request.param)


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# -- compiled kernels against torch.func -----------------------------------------------------------------------------


def test_kernels_give_the_reference_logits_losses_and_values(case):
    fused, reference, theta, weights = case
    close(fused.logits(theta), reference.logits(theta))
    close(fused.losses(theta), reference.losses(theta))
    close(fused.value(theta, weights), reference.value(theta, weights))


def test_kernels_give_the_reference_gradient_which_is_that_of_the_written_out_objective(case):
    fused, reference, theta, weights = case
    expected = torch.stack([grad(value_by_hand(fused, e, weights))(theta[e]) for e in range(len(theta))])
    close(fused.gradient(theta, weights), expected)
    close(reference.gradient(theta, weights), expected)


@pytest.mark.parametrize("gauss_newton", [False, True], ids=["hessian", "ggn"])
def test_kernels_give_the_reference_products(case, gauss_newton):
    fused, reference, theta, weights = case
    v = vectors(theta)
    found = fused.products(theta, v, weights, gauss_newton=gauss_newton)
    close(found, reference.products(theta, v, weights, gauss_newton=gauss_newton))
    close(found, torch.einsum("epq,ekq->ekp", fused.matrices(theta, weights, gauss_newton=gauss_newton), v))


def test_the_matrix_is_the_dense_hessian_and_symmetric(case):
    fused, _, theta, weights = case
    found = fused.matrices(theta, weights)
    close(found[:1], hessian(value_by_hand(fused, 0, weights))(theta[0])[None])
    assert torch.equal(found, found.mT)


def test_the_gauss_newton_matrix_is_the_explicit_triple_product(case):
    fused, reference, theta, weights = case
    expected = triple_product(fused, theta, weights)
    close(fused.matrices(theta, weights, gauss_newton=True)[0], expected)
    assert torch.linalg.eigvalsh(expected)[0] > -1e-10
    if theta.shape[1] < 100:
        close(reference.matrices(theta[:1], weights[:1], torch.tensor([0]), gauss_newton=True)[0], expected)


def test_directional_derivatives_are_products_with_the_example_gradients(case):
    fused, reference, theta, _ = case
    v, gradients = vectors(theta), fused.example_gradients(theta)
    close(gradients, reference.example_gradients(theta))
    close(fused.directional(theta, v), torch.einsum("enp,ekp->ekn", gradients, v))
    close(reference.directional(theta, v), fused.directional(theta, v))


def test_kernels_descend_as_the_reference_does(case):
    fused, reference, theta, weights = case
    start, velocity = theta / 2, vectors(theta, 1)[:, 0] / 10
    options = weights, torch.arange(len(theta)), 0.2, 0.8, 6
    for found, expected in zip(
        fused.descend(start, velocity, *options), reference.descend(start, velocity, *options), strict=True
    ):
        close(found, expected)


def test_kernels_follow_the_reference_recursion_on_the_same_draws(case):
    fused, reference, theta, _ = case
    v, draws = vectors(theta)[0], np.random.default_rng(0).integers(fused.n, size=8)
    for place in (0, 2):
        options = theta[0], v, draws, torch.tensor([place]), 0.1, 30.0
        close(fused.stochastic_recursion(*options), reference.stochastic_recursion(*options))


def test_descent_changes_neither_its_start_nor_its_velocity():
    fused, _, theta, weights = random_network("relu", 1, 5, 7)
    kept, velocity = theta.clone(), torch.zeros_like(theta)
    fused.descend(theta, velocity, weights, torch.arange(3), 0.1, 0.9, 5)
    assert torch.equal(theta, kept)
    assert torch.equal(velocity, torch.zeros_like(theta))


# -- meaning of weights, decay, data sets, stacks --------------------------------------------------------------------


@pytest.fixture(params=["fused", "reference", "convolution"])
def either(request):
    """An objective of each kind on three data sets of 25 examples, theta (3, P), weights (3, 25)."""
    if request.param != "convolution":
        fused, reference, *case = random_network("tanh", 2, 5, 25)
        return fused if request.param == "fused" else reference, *case
    model, draw = SmallCNN(2, 3, 21), torch.Generator().manual_seed(0)
    x = torch.rand(3, 25, 1, 21, 21, generator=draw, dtype=torch.float64)
    data = Data(x, torch.randint(0, 3, (3, 25), generator=draw))
    theta = torch.stack([model.init(s) for s in range(3)])
    return ConvObjective(model, data, 0.03), theta, torch.rand(3, 25, generator=draw, dtype=torch.float64) / 25


def test_an_example_of_weight_zero_is_absent(either):
    objective, theta, weights = either
    keep = torch.ones(25, dtype=torch.bool)
    keep[[3, *range(8, 16)]] = False  # also a whole block of the convolution kernels
    gone = weights * keep
    smaller = everything(with_examples(objective, keep), theta, weights[:, keep])
    same(everything(objective, theta, gone), smaller, 1e-11)


def test_the_order_of_examples_does_not_matter(either):
    objective, theta, weights = either
    order = torch.randperm(objective.n, generator=torch.Generator().manual_seed(0))
    shuffled = with_examples(objective, order)
    same(everything(shuffled, theta, weights[:, order]), everything(objective, theta, weights), 1e-11)
    close(shuffled.losses(theta), objective.losses(theta)[:, order], 1e-11)
    close(shuffled.example_gradients(theta), objective.example_gradients(theta)[:, order], 1e-11)


def test_the_decay_acts_on_weights_alone_in_value_gradient_products_and_matrices(either):
    objective, theta, weights = either
    free = type(objective)(objective.model, objective.data, 0.0)
    marks, decay, v = objective.model.is_weight, 0.03, vectors(theta)
    with_decay, without = everything(objective, theta, weights), everything(free, theta, weights)
    added = [with_term - term for with_term, term in zip(with_decay, without, strict=True)]
    close(added[0], decay / 2 * (marks * theta**2).sum(1), 1e-11)
    close(added[1], decay * marks * theta, 1e-11)
    for product in added[2:4]:
        close(product, decay * marks * v, 1e-11)
    for matrix in added[4:6]:
        close(matrix, torch.diag(decay * marks).expand(3, -1, -1), 1e-11)
    assert torch.equal(objective.losses(theta), free.losses(theta))
    assert torch.equal(objective.example_gradients(theta), free.example_gradients(theta))


def test_the_objective_on_test_data_has_no_decay(either):
    objective, theta, _ = either
    test = objective.on(Data(objective.data.x[:, :5].contiguous(), objective.data.y[:, :5].contiguous()))
    assert type(test) is type(objective)
    assert (test.n, test.weight_decay) == (5, 0.0)
    uniform = test.uniform(3)
    close(test.value(theta, uniform), objective.losses(theta)[:, :5].mean(1), 1e-11)
    close(test.gradient(theta, uniform), objective.example_gradients(theta)[:, :5].mean(1), 1e-11)


def test_smoothing_keeps_data_and_decay():
    objective = random_network("relu", 1, 5, 7)[0]
    smooth = objective.smoothed(50.0)
    assert type(smooth) is FusedObjective
    assert smooth.model == objective.model.smoothed(50.0)
    assert smooth.weight_decay == objective.weight_decay
    assert torch.equal(smooth.data.x, objective.data.x)


def test_default_weights_are_one_over_n(either):
    objective = either[0]
    assert torch.equal(objective.uniform(2), torch.full((2, 25), 1 / 25, dtype=torch.float64))


def test_each_member_sees_the_data_set_it_is_told(either):
    objective, theta, weights = either
    places = torch.tensor([2, 0, 0])
    moved = type(objective)(
        objective.model, Data(objective.data.x[places], objective.data.y[places]), objective.weight_decay
    )
    same(everything(objective, theta, weights, places), everything(moved, theta, weights), 1e-11)
    v = vectors(theta)
    close(objective.losses(theta, places), moved.losses(theta), 1e-11)
    close(objective.directional(theta, v, places), moved.directional(theta, v), 1e-11)
    close(objective.example_gradients(theta, places), moved.example_gradients(theta), 1e-11)


def test_one_data_set_serves_every_member_and_an_unclear_choice_is_refused(either):
    objective, theta, weights = either
    single = type(objective)(objective.model, Data(objective.data.x[:1], objective.data.y[:1]), 0.03)
    close(single.losses(theta), objective.losses(theta, torch.zeros(3, dtype=torch.long)), 1e-11)
    with pytest.raises(InputError, match="^dataset = "):
        objective.losses(theta[:2])


@pytest.mark.parametrize("place", [None, torch.tensor([2, 2, 1])])
def test_values_gradients_and_pulled_back_cotangents_are_those_written_out(either, place):
    objective, theta, weights = either
    rows, constant = np.array([24, 3, 3, 7]), torch.linspace(-1, 1, 75, dtype=torch.float64).view(25, 3)
    value, gradient = objective.value_and_gradient(theta, weights, place)
    more, with_constant = objective.value_and_gradient(theta, weights, place, constant)
    times = torch.zeros(25, dtype=torch.float64).index_add_(0, torch.tensor(rows), torch.ones(4).double())
    close(
        objective.batch_gradient(theta, weights, rows, place), objective.gradient(theta, weights * times, place), 1e-11
    )
    close(objective.gradient(theta, weights, place, constant), with_constant, 1e-11)
    for e, d in enumerate(range(3) if place is None else place.tolist()):
        x, y = objective.data.x[d], objective.data.y[d]

        def total(t, c, x=x, y=y, e=e):
            lost = cross_entropy(objective.model(t, x), y, reduction="none")
            decayed = 0.015 * (objective.model.is_weight * t**2).sum()
            return (weights[e] * lost).sum() + decayed + (c * objective.model(t, x)).sum()

        close(value[e], total(theta[e], 0 * constant), 1e-11)
        close(more[e], total(theta[e], constant), 1e-11)
        close(gradient[e], grad(total)(theta[e], 0 * constant), 1e-11)
        close(with_constant[e], grad(total)(theta[e], constant), 1e-11)
        in_logits = grad(lambda z, y=y: cross_entropy(z, y, reduction="sum"))(objective.model(theta[e], x))
        close(objective.logit_gradients(theta[e], d), in_logits, 1e-11)


def test_products_with_a_few_examples_are_their_mean_curvature(either):
    objective, theta, _ = either
    rows, v = np.array([24, 3, 7, 12, 0]), vectors(theta)[1]
    weights = torch.zeros(1, 25, dtype=torch.float64)
    weights[0, rows] = 0.2
    for gauss_newton in (False, True):
        whole = objective.products(theta[1:2], v[None], weights, torch.tensor([2]), gauss_newton)[0]
        found = objective.batch_products(theta[1], v, rows, 2, gauss_newton)
        close(found, whole - objective.decay * v, 1e-11)


def test_a_recursion_that_grows_beyond_what_it_may_is_ended(either):
    objective, theta, _ = either
    v, settings = vectors(theta)[1], (torch.tensor([0]), 10.0, 0.01)
    with pytest.raises(base.GrownError, match="^1$"):
        objective.stochastic_recursion(theta[1], v, np.zeros(3000, int), *settings, growth=2.0)
    assert not torch.isfinite(objective.stochastic_recursion(theta[1], v, np.zeros(3000, int), *settings)).all()


def test_directional_derivatives_by_forward_mode_are_those_by_rows(monkeypatch):
    _, reference, theta, _ = random_network("tanh", 2, 5, 11)
    by_rows = reference.directional(theta, vectors(theta))
    monkeypatch.setattr(base, "SMALL", 0)
    monkeypatch.setattr(Objective, "example_gradients", None)
    close(reference.directional(theta, vectors(theta)), by_rows, 1e-12)


def test_a_stack_equals_its_single_networks_bit_for_bit():
    fused, _, theta, weights = random_network("relu", 2, 5, 11)
    stack = everything(fused, theta, weights)
    descended = fused.descend(theta, torch.zeros_like(theta), weights, torch.arange(3), 0.1, 0.9, 20)[0]
    for e in range(3):
        one, place = slice(e, e + 1), torch.tensor([e])
        alone = everything(fused, theta[one], weights[one], place, vectors(theta)[one])
        same([together[one] for together in stack], alone, 0)
        at_rest = torch.zeros_like(theta[one])
        single = fused.descend(theta[one], at_rest, weights[one], place, 0.1, 0.9, 20)[0]
        assert torch.equal(descended[e], single[0])


@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus"])
def test_large_logits_and_saturated_units_stay_finite_and_right(activation):
    fused, reference, theta, weights = random_network(activation, 2, 5, 11)
    big = 40 * theta
    scale = reference.gradient(big, weights).abs().max().item()
    close(fused.losses(big), reference.losses(big), 1e-9)
    close(fused.gradient(big, weights) / scale, reference.gradient(big, weights) / scale, 1e-9)
    assert torch.isfinite(fused.matrices(big, weights)).all()


@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_parameter_that_is_not_finite_shows_in_the_losses_and_stays_in_its_network(activation, poison):
    fused, _, theta, weights = random_network(activation, 1, 5, 7)
    clean_losses, clean_gradient = fused.losses(theta), fused.gradient(theta, weights)
    theta[1, -1] = poison  # the bias of the last logit
    assert not torch.isfinite(fused.losses(theta)[1]).all()
    for other in (0, 2):
        assert torch.equal(fused.losses(theta)[other], clean_losses[other])
        assert torch.equal(fused.gradient(theta, weights)[other], clean_gradient[other])


# -- other losses ----------------------------------------------------------------------------------------------------


def test_the_generic_objective_carries_another_loss():
    problem = Regression()
    theta = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    residual = problem.design @ theta[0].numpy() - problem.y
    uniform, train = problem.train.uniform(1), problem.train
    close(train.losses(theta)[0], torch.tensor(residual**2 / 2), 1e-12)
    close(train.example_gradients(theta)[0], torch.tensor(residual[:, None] * problem.design), 1e-12)
    expected = problem.design.T @ residual / problem.n + problem.penalty @ theta[0].numpy()
    close(train.gradient(theta, uniform)[0], torch.tensor(expected), 1e-12)
    close(train.matrices(theta, uniform)[0], torch.tensor(problem.hessian()), 1e-12)


def test_gauss_newton_is_the_hessian_for_squared_error_and_for_linear_softmax():
    problem, data = Regression(), iris_subset(5)[0]
    for objective in (problem.train, softmax_regression(data, 0.1)):
        theta = torch.linspace(-1, 1, objective.model.n_params, dtype=torch.float64)[None]
        uniform = objective.uniform(1)
        close(objective.matrices(theta, uniform), objective.matrices(theta, uniform, gauss_newton=True), 1e-12)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none_and_auto_is_the_cpu():
    assert resolve_device("auto") == "cpu"
    with pytest.raises(InputError, match="no CUDA device"):
        make_objective(MLP(1, 5), iris_subset(2)[0], 0.0, "cuda")


def test_the_fast_objective_is_chosen_for_multilayer_perceptrons_in_float64_on_a_cpu():
    data = iris_subset(2)[0]
    single = Data(data.x.float(), data.y)
    assert type(make_objective(MLP(1, 5), data, 0.1, "cpu")) is FusedObjective
    assert type(make_objective(MLP(1, 5), single, 0.1, "cpu")) is Objective
    assert type(make_objective(softmax_regression(data, 0.1).model, data, 0.1, "cpu")) is Objective
