"""The objective and its derivatives: compiled kernels against torch.func, and both against dense references."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import (
    Linear,
    everything,
    iris_subset,
    random_network,
    triple_product,
    value_by_hand,
    vectors,
    with_examples,
)
from numba import njit
from torch.func import grad, hessian
from torch.nn.functional import cross_entropy

from fragile_lib.data.sets import Data
from fragile_lib.kernels import kernel_cache
from fragile_lib.kernels.conv_kernels import gradients
from fragile_lib.kernels.conv_tiles import LANES, tanh_in_place
from fragile_lib.models.mlp import MLP
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives import base, conv
from fragile_lib.objectives.base import Objective, resolve_device
from fragile_lib.objectives.conv import ConvObjective
from fragile_lib.objectives.fused import FusedObjective, make_objective
from fragile_lib.tools.errors import InputError

# Fewer channels than a tile has rows and more; sides that leave rows over at a stride of 2 and sides that do not.
SMALL, ODD, WIDE = SmallCNN(2, 3, 21), SmallCNN(3, 4, 24, "relu"), SmallCNN(9, 11, 23)


def images(model=SMALL, n=13, kind=torch.float64, sets=3, signed=True):
    """As `random_network` of a convolutional one; the compiled objective in `kind`, the rest in float64."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    x = torch.rand(sets, n, 1, model.side, model.side, generator=draw, dtype=torch.float64).to(kind)
    y = torch.randint(0, model.n_classes, (sets, n), generator=draw)
    theta = torch.stack([model.init(s) for s in range(sets)]) + 0.1 * normal(sets, model.n_params)
    weights = normal(sets, n) / n
    reference = Objective(model, Data(x.double(), y), 0.03)
    return ConvObjective(model, Data(x, y), 0.03), reference, theta, weights if signed else weights.abs()


SHAPES = [(1, 5, 121), (1, 8, 7), (2, 3, 7), (2, 8, 121), (4, 3, 121), (4, 5, 7), (4, 8, 7), (1, 1, 1)]
PERCEPTRONS = [partial(random_network, kind, *shape) for kind in ("relu", "tanh", "softplus") for shape in SHAPES]
CONVOLUTIONS = [
    *(partial(images, model, kind=kind) for model in (SMALL, ODD) for kind in (torch.float64, torch.float32)),
    *(partial(images, model, 11, kind, 1) for model in (WIDE, SmallCNN()) for kind in (torch.float64, torch.float32)),
    *(partial(images, SMALL, n, sets=1, signed=False) for n in (1, 7, 8, 9, 65)),  # fills the registers or does not
]
perceptrons = pytest.mark.parametrize("make", PERCEPTRONS, ids=lambda make: "-".join(map(str, make.args)))
both_convolutions = pytest.mark.parametrize("model", [SMALL, ODD], ids=["tanh", "relu"])
both_precisions = pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])


@pytest.fixture(scope="module", params=[*PERCEPTRONS, *CONVOLUTIONS])
def case(request):
    return request.param()


def close(found, expected, tolerance=1e-10):
    """Within the tolerance of the largest entry."""
    tolerance = max(tolerance, 1e-5) if found.dtype == torch.float32 else tolerance
    scale = expected.abs().max().item() or 1.0
    torch.testing.assert_close(found.double() / scale, expected / scale, rtol=tolerance, atol=tolerance)


def all_close(found, expected, tolerance=1e-11):
    for one, other in zip(found, expected, strict=True):
        close(one, other, tolerance)


# -- compiled kernels against torch.func -----------------------------------------------------------------------------


def test_values_and_derivatives_are_those_of_the_reference_and_of_the_written_out_objective(case):
    ours, reference, theta, weights = case
    v, kind = vectors(theta), ours.data.x.dtype
    t, w, u = theta.to(kind), weights.to(kind), v.to(kind)
    close(ours.logits(t), reference.logits(theta))
    close(ours.losses(t), reference.losses(theta))
    close(ours.value(t, w), reference.value(theta, weights))
    expected = torch.stack([grad(value_by_hand(reference, e, weights))(theta[e]) for e in range(len(theta))])
    close(ours.gradient(t, w), expected)
    close(reference.gradient(theta, weights), expected)
    rows = reference.example_gradients(theta)
    close(ours.example_gradients(t), rows)
    for objective, at, along in ((ours, t, u), (reference, theta, v)):
        close(objective.directional(at, along), torch.einsum("enp,ekp->ekn", rows, v))
    for gauss_newton in (False, True):
        found = ours.products(t, u, w, gauss_newton=gauss_newton)
        close(found, reference.products(theta, v, weights, gauss_newton=gauss_newton))
    assert ours.gradient(t, w).dtype == found.dtype == ours.logits(t).dtype == kind


@pytest.mark.parametrize("gauss_newton", [False, True], ids=["hessian", "ggn"])
def test_matrices_are_the_dense_hessian_and_the_explicit_triple_product(case, gauss_newton):
    ours, reference, theta, weights = case
    v, kind = vectors(theta), ours.data.x.dtype
    found = ours.matrices(theta.to(kind), weights.to(kind), gauss_newton=gauss_newton)
    assert torch.equal(found, found.mT) and found.dtype == kind
    products = reference.products(theta, v, weights, gauss_newton=gauss_newton)
    close(torch.einsum("epq,ekq->ekp", found.double(), v), products, 1e-10 if kind == torch.float64 else 1e-4)
    if theta.shape[1] < 500:
        by_hand = triple_product if gauss_newton else dense_hessian
        close(found[0], by_hand(reference, theta, weights))
    if theta.shape[1] < 100:
        again = reference.matrices(theta[:1], weights[:1], torch.tensor([0]), gauss_newton)
        close(again[0], by_hand(reference, theta, weights))


def dense_hessian(objective, theta, weights):
    return hessian(value_by_hand(objective, 0, weights))(theta[0])


@perceptrons
def test_kernels_descend_and_recur_as_the_reference_does_and_leave_their_start_alone(make):
    fused, reference, theta, weights = make()
    start, velocity = theta / 2, vectors(theta, 1)[:, 0] / 10
    kept, options = (start.clone(), velocity.clone()), (weights, torch.arange(len(theta)), 0.2, 0.8, 6)
    all_close(fused.descend(start, velocity, *options), reference.descend(start, velocity, *options), 1e-10)
    assert torch.equal(start, kept[0]) and torch.equal(velocity, kept[1])
    v, draws = vectors(theta)[0], np.random.default_rng(0).integers(fused.n, size=8)
    for place in (0, 2):
        options = theta[0], v, draws, torch.tensor([place]), 0.1, 30.0
        close(fused.stochastic_recursion(*options), reference.stochastic_recursion(*options))


@both_precisions
@pytest.mark.parametrize("n", [21, 150])  # neither fills its last block; 150 are of several parts
@both_convolutions
def test_a_cotangent_of_the_logits_is_pulled_back_with_the_losses_and_where_no_weight_is(model, n, kind, tolerance):
    ours, reference, theta, weights = images(model, n, kind, sets=1)
    theta, weights = torch.cat([theta, theta + 0.1 * vectors(theta)[0]]), weights * torch.tensor([[1.0], [-2.0], [0.0]])
    weights[0, :16] = 0  # two blocks, or one
    cotangent = torch.randn(n, model.n_classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / n
    cotangent[8:16] = 0  # with the weights of the first network: a block of nothing
    for given in (cotangent, None):
        options = {} if given is None else {"cotangent": given.to(kind)}
        value, gradient = ours.value_and_gradient(theta.to(kind), weights.to(kind), **options)
        assert value.dtype == torch.float64 and gradient.dtype == kind
        assert torch.equal(gradient, ours.gradient(theta.to(kind), weights.to(kind), **options))
        for e in range(3):
            total = with_cotangent(reference, 0, weights[e], 0 * cotangent if given is None else given)
            close(value[e], total(theta[e]), tolerance)
            close(gradient[e], grad(total)(theta[e]), tolerance)


def with_cotangent(objective, dataset, weights, cotangent):
    """J on a data set and the outputs paired with a cotangent, written out."""
    x, y = objective.data.x[dataset], objective.data.y[dataset]

    def total(theta):
        outputs = objective.model(theta, x)
        lost = (weights * cross_entropy(outputs, y, reduction="none")).sum()
        decay = 0.5 * objective.weight_decay * (objective.model.is_weight * theta**2).sum()
        return lost + decay + (cotangent * outputs).sum()

    return total


def test_a_cotangent_of_zero_is_none_and_takes_no_other_code():
    ours, _, theta, weights = images(n=25)
    none, places = torch.zeros(25, 3, dtype=torch.float64), torch.tensor([1, 0, 2])
    for place in (None, places):
        assert torch.equal(ours.gradient(theta, weights, place, none), ours.gradient(theta, weights, place))
    kinds = {signature[1].dtype for signature in gradients.signatures}
    assert len(gradients.signatures) == len(kinds)  # so that `compile_all` has compiled it


def test_tanh_is_within_two_units_in_the_last_place_and_keeps_nan():
    @njit
    def apply(values):
        tanh_in_place(values, 0, 2)

    for kind, unit in ((np.float64, 2.3e-16), (np.float32, 1.2e-7)):
        lanes = LANES[np.dtype(kind)]
        grid = np.concatenate([np.linspace(-25, 25, 1001), np.geomspace(1e-30, 1, 400), -np.geomspace(1e-8, 10, 391)])
        for some in np.array_split(grid, len(grid) // (2 * lanes)):
            values = np.zeros(2 * lanes, kind)
            values[: len(some)] = some[: 2 * lanes]
            exact = np.tanh(values.astype(np.longdouble))
            apply(values)
            assert np.all(np.abs(values - exact) <= 2 * unit * np.abs(exact))
        values = np.zeros(2 * lanes, kind)
        values[:4] = np.nan, np.inf, -np.inf, -0.0
        apply(values)
        assert np.isnan(values[0]) and values[1:3].tolist() == [1, -1] and np.signbit(values[3])


# -- meaning of weights, decay, data sets, stacks --------------------------------------------------------------------


@pytest.fixture(params=["fused", "reference", "convolution"])
def either(request):
    """An objective of each kind on three data sets of 25 examples, theta (3, P), weights (3, 25)."""
    if request.param == "convolution":
        ours, _, *case = images(n=25)
        return ours, *case
    fused, reference, *case = random_network("tanh", 2, 5, 25)
    return fused if request.param == "fused" else reference, *case


def test_an_example_of_weight_zero_is_absent_and_the_order_of_the_others_does_not_matter(either):
    objective, theta, weights = either
    keep = torch.ones(25, dtype=torch.bool)
    keep[[3, *range(8, 16)]] = False  # also a whole block of the convolution kernels
    order = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    order = order[keep[order]]
    smaller = with_examples(objective, order)
    all_close(everything(smaller, theta, weights[:, order]), everything(objective, theta, weights * keep))
    close(smaller.losses(theta), objective.losses(theta)[:, order], 1e-11)
    close(smaller.example_gradients(theta), objective.example_gradients(theta)[:, order], 1e-11)


def test_the_decay_acts_on_weights_alone_and_neither_on_examples_nor_on_test_data(either):
    objective, theta, weights = either
    free = type(objective)(objective.model, objective.data, 0.0)
    decay, v = 0.03 * objective.model.is_weight, vectors(theta)
    with_decay, without = everything(objective, theta, weights), everything(free, theta, weights)
    matrix = torch.diag(decay).expand(3, -1, -1)
    added = [(decay * theta**2).sum(1) / 2, decay * theta, decay * v, decay * v, matrix, matrix]
    all_close([one - other for one, other in zip(with_decay, without, strict=True)], added, 1e-10)
    assert torch.equal(objective.losses(theta), free.losses(theta))
    assert torch.equal(objective.example_gradients(theta), free.example_gradients(theta))
    test = objective.on(Data(objective.data.x[:, :5].contiguous(), objective.data.y[:, :5].contiguous()))
    assert type(test) is type(objective) and (test.n, test.weight_decay) == (5, 0.0)
    uniform = test.uniform(3)
    assert torch.equal(uniform, torch.full((3, 5), 1 / 5, dtype=torch.float64))
    close(test.value(theta, uniform), objective.losses(theta)[:, :5].mean(1), 1e-11)
    close(test.gradient(theta, uniform), objective.example_gradients(theta)[:, :5].mean(1), 1e-11)


def test_each_member_sees_the_data_set_it_is_told_and_one_serves_all(either):
    objective, theta, weights = either
    v = vectors(theta)
    for places, held in ((torch.tensor([2, 0, 0]), [2, 0, 0]), (torch.zeros(3, dtype=torch.long), [0])):
        data = Data(objective.data.x[held], objective.data.y[held])
        moved = type(objective)(objective.model, data, objective.weight_decay)
        all_close(everything(objective, theta, weights, places), everything(moved, theta, weights))
        for name, given in (("losses", ()), ("directional", (v,)), ("example_gradients", ())):
            close(getattr(objective, name)(theta, *given, places), getattr(moved, name)(theta, *given), 1e-11)
    with pytest.raises(InputError, match="^dataset = "):
        objective.losses(theta[:2])


@pytest.mark.parametrize("place", [None, torch.tensor([2, 2, 1])])
def test_values_gradients_and_pulled_back_cotangents_are_those_written_out(either, place):
    objective, theta, weights = either
    rows, constant = np.array([24, 3, 3, 7]), torch.linspace(-1, 1, 75, dtype=torch.float64).view(25, 3)
    value, gradient = objective.value_and_gradient(theta, weights, place)
    more, with_constant = objective.value_and_gradient(theta, weights, place, constant)
    times = torch.zeros(25, dtype=torch.float64).index_add_(0, torch.tensor(rows), torch.ones(4).double())
    some = objective.batch_gradient(theta, weights, rows, place)
    close(some, objective.gradient(theta, weights * times, place), 1e-11)
    close(objective.gradient(theta, weights, place, constant), with_constant, 1e-11)
    for e, d in enumerate(range(3) if place is None else place.tolist()):
        for given, found, slope in ((0 * constant, value[e], gradient[e]), (constant, more[e], with_constant[e])):
            total = with_cotangent(objective, d, weights[e], given)
            close(found, total(theta[e]), 1e-11)
            close(slope, grad(total)(theta[e]), 1e-11)
        y, outputs = objective.data.y[d], objective.model(theta[e], objective.data.x[d])
        in_logits = grad(lambda z, y=y: cross_entropy(z, y, reduction="sum"))(outputs)
        close(objective.logit_gradients(theta[e], d), in_logits, 1e-11)


def test_products_with_a_few_examples_are_their_mean_curvature(either):
    objective, theta, _ = either
    rows, v = np.array([24, 3, 7, 12, 0]), vectors(theta)[1]
    weights = torch.zeros(1, 25, dtype=torch.float64)
    weights[0, rows] = 0.2
    for gauss_newton in (False, True):
        whole = objective.products(theta[1:2], v[None], weights, torch.tensor([2]), gauss_newton)[0]
        close(objective.batch_products(theta[1], v, rows, 2, gauss_newton), whole - objective.decay * v, 1e-11)


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
        assert all(torch.equal(together[one], single) for together, single in zip(stack, alone, strict=True))
        single = fused.descend(theta[one], torch.zeros_like(theta[one]), weights[one], place, 0.1, 0.9, 20)[0]
        assert torch.equal(descended[e], single[0])


def test_neither_threads_nor_chunks_change_a_digit_that_matters(monkeypatch):
    ours, _, theta, weights = images(n=70, sets=1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(everything(ours, theta, weights))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(few, many) for few, many in zip(found[0][:-1], found[1][:-1], strict=True))
    close(found[1][-1], found[0][-1], 1e-13)  # a library's matrix product
    slopes = ours.directional(theta, vectors(theta))
    monkeypatch.setattr(conv, "HELD", 16)
    close(ours.matrices(theta, weights, gauss_newton=True), found[0][-1], 1e-13)
    close(ours.directional(theta, vectors(theta)), slopes, 1e-13)


# -- extremes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus"])
def test_large_logits_and_saturated_units_stay_finite_and_right(activation):
    fused, reference, theta, weights = random_network(activation, 2, 5, 11)
    big = 40 * theta
    close(fused.losses(big), reference.losses(big), 1e-9)
    close(fused.gradient(big, weights), reference.gradient(big, weights), 1e-9)
    assert torch.isfinite(fused.matrices(big, weights)).all()


def test_sure_convolutional_networks_stay_finite_and_right():
    ours, reference, theta, weights = images(n=9, sets=2, signed=False)
    sure, v = theta.clone(), vectors(theta)
    sure[:, SMALL.stages[-1].start :] *= 300
    close(ours.losses(sure), reference.losses(sure))
    close(ours.gradient(sure, weights), reference.gradient(sure, weights))
    dense = ours.matrices(sure, weights, gauss_newton=True)
    # the reference takes p - p^2 as a difference, which loses the digits that the factors keep
    close(torch.einsum("epq,ekq->ekp", dense, v), reference.products(sure, v, weights, gauss_newton=True), 1e-7)
    single, _, _, weights = images(kind=torch.float32, signed=False)
    far = images()[2].float() * 200  # the odds of some labels underflow
    value, expected = single.value_and_gradient(far, weights.float())[0], images()[1].value(far.double(), weights)
    assert expected.min() > 100
    close(value, expected, 1e-5)


@pytest.mark.parametrize(
    "make",
    [*(partial(random_network, kind, 1, 5, 7) for kind in ("relu", "tanh", "softplus")), images, lambda: images(ODD)],
)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_parameter_that_is_not_finite_shows_in_the_losses_and_stays_in_its_network(make, poison):
    ours, _, theta, weights = make()
    clean_losses, clean_gradient = ours.losses(theta), ours.gradient(theta, weights)
    for place in (-1, 0):  # the bias of the last logit, the first weight
        theta[1, place] = poison
        losses, gradient = ours.losses(theta), ours.gradient(theta, weights)
        assert not torch.isfinite(losses[1]).all() and not torch.isfinite(gradient[1]).all()
        for other in (0, 2):
            assert torch.equal(losses[other], clean_losses[other])
            assert torch.equal(gradient[other], clean_gradient[other])


# -- bad input, stale code -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model", {"model": torch.nn.Identity()}),
        ("device", {"device": "cuda"}),
        ("data.x.dtype", {"data": Data(torch.zeros(1, 2, 1, 21, 21).half(), torch.zeros(1, 2).long())}),
        ("data.x.shape", {"data": Data(torch.zeros(1, 2, 21, 21), torch.zeros(1, 2).long())}),
        ("data.x.shape", {"data": Data(torch.zeros(1, 2, 1, 28, 28), torch.zeros(1, 2).long())}),
        ("labels", {"data": Data(torch.zeros(1, 2, 1, 21, 21), torch.tensor([[0, 3]]))}),
        ("labels", {"data": Data(torch.zeros(1, 2, 1, 21, 21), torch.tensor([[0, -1]]))}),
        ("weight_decay", {"weight_decay": -1.0}),
        *(("cotangent.shape", {"cotangent": torch.zeros(shape)}) for shape in ((12, 3), (13, 4), (13,), (0, 0))),
    ],
)
def test_what_the_kernels_cannot_take_is_refused(name, change):
    ours, _, theta, weights = images()
    with pytest.raises(InputError, match=f"^{name} = "):
        if "cotangent" in change:
            ours.gradient(theta, weights, **change)
        ConvObjective(**({"model": SMALL, "data": ours.data} | change))


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
    assert type(make_objective(Linear(4, 3), data, 0.1, "cpu")) is Objective


def test_kept_code_goes_stale_with_any_of_its_files(tmp_path, monkeypatch):
    assert gradients._cache._cache_file._source_stamp == kernel_cache.stamp(kernel_cache.CONVOLUTION)
    for file in kernel_cache.CONVOLUTION:
        (tmp_path / file).write_text("one")
    monkeypatch.setattr(kernel_cache, "__file__", str(tmp_path / "kernel_cache.py"))
    stamp = kernel_cache.stamp.__wrapped__
    stamps = [stamp(kernel_cache.CONVOLUTION)]
    for file in kernel_cache.CONVOLUTION:
        (tmp_path / file).write_text("other")
        stamps.append(stamp(kernel_cache.CONVOLUTION))
    assert len(set(stamps)) == 1 + len(kernel_cache.CONVOLUTION)
