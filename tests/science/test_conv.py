"""Koh and Liang's network, and its compiled objective against torch.func and against dense references."""

import numpy as np
import pytest
import torch
from helpers import everything, triple_product, value_by_hand
from numba import njit
from torch.func import hessian, vjp

from fragile_lib.data.sets import Data
from fragile_lib.kernels import kernel_cache
from fragile_lib.kernels.conv_kernels import gradients
from fragile_lib.kernels.conv_tiles import LANES, tanh_in_place
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives import conv
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.conv import ConvObjective
from fragile_lib.tools.errors import InputError

# Fewer channels than a tile has rows and more; sides that leave rows over at a stride of 2 and sides that do not.
SMALL, ODD, WIDE = SmallCNN(2, 3, 21), SmallCNN(3, 4, 24, "relu"), SmallCNN(9, 11, 23)


def instance(model=SMALL, n=13, sets=2, kind=torch.float64, weight_decay=0.03, seed=0):
    """The compiled objective, the reference in float64, theta (sets, P), weights (sets, n) of either sign, v."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    x = torch.rand(sets, n, 1, model.side, model.side, generator=draw, dtype=torch.float64).to(kind)
    y = torch.randint(0, model.n_classes, (sets, n), generator=draw)
    theta = torch.stack([model.init(s) for s in range(sets)]) + 0.1 * normal(sets, model.n_params)
    ours = ConvObjective(model, Data(x, y), weight_decay)
    reference = Objective(model, Data(x.double(), y), weight_decay)
    return ours, reference, theta, normal(sets, n) / n, normal(sets, 2, model.n_params)


def close(found, expected, tolerance=1e-11):
    """Within the tolerance of the largest entry."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.double() / scale, expected / scale, rtol=tolerance, atol=tolerance)


# -- the network ---------------------------------------------------------------------------------------------------


def test_the_network_of_the_paper_has_2616_parameters():
    model = SmallCNN()
    assert model.n_params == 2616
    assert [stage.side_out for stage in model.stages] == [26, 12, 10, 4, 2, 2, 1]
    assert (
        len(model.init(0)) == len(model.is_weight) == sum(p.numel() for p in model.module(model.init(0)).parameters())
    )


@pytest.mark.parametrize("model", [SmallCNN(), ODD], ids=["paper", "odd"])
def test_parameters_lie_as_in_torch_modules(model):
    _, reference, theta, _, _ = instance(model)
    network, x = model.module(theta[0]), reference.data.x[0]
    torch.testing.assert_close(model(theta[0], x), network(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.nn.utils.parameters_to_vector(network.parameters()), theta[0])
    marks = [torch.full_like(p, float(p.dim() > 1)) for p in network.parameters()]
    assert torch.equal(model.is_weight, torch.nn.utils.parameters_to_vector(marks))


def test_a_module_owns_its_parameters_and_keeps_their_type():
    theta = SmallCNN().init(0).float()
    network, kept = SmallCNN().module(theta), theta.clone()
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert torch.equal(theta, kept)
    assert next(network.parameters()).dtype == torch.float32


def test_preactivations_are_those_of_the_hidden_units():
    model, (_, reference, theta, _, _) = ODD, instance(ODD)
    seen = []
    network = model.module(theta[0])
    for layer in network:
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _module, _input, output: seen.append(output.flatten(1)))
    network(reference.data.x[0])
    torch.testing.assert_close(model.preactivations(theta[0], reference.data.x[0]), torch.cat(seen, 1))


def test_a_start_is_a_cut_normal_of_scale_two_over_root_fan_in():
    model = SmallCNN()
    theta = model.init(3)
    assert torch.equal(theta, SmallCNN().init(3))
    assert not torch.equal(theta, model.init(4))
    assert torch.all(theta[model.is_weight == 0] == 0)
    units = torch.cat(
        [
            theta[stage.start : stage.start + stage.n_weights] * (stage.n_in * stage.kernel**2) ** 0.5 / 2
            for stage in model.stages
        ]
    )
    assert units.abs().max() <= 2
    assert units.abs().max() > 1.95
    assert units.std().item() == pytest.approx(0.8796, abs=0.03)  # of a standard normal cut at two


# -- kernels against torch.func --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["64", "32"])
@pytest.mark.parametrize("model", [SMALL, ODD, WIDE, SmallCNN()], ids=["small", "odd", "wide", "paper"])
def test_kernels_give_the_reference_values_and_derivatives(model, kind, tolerance):
    ours, reference, theta, weights, v = instance(model, kind=kind)
    t, w, u = theta.to(kind), weights.to(kind), v.to(kind)
    close(ours.logits(t), reference.logits(theta), tolerance)
    close(ours.losses(t), reference.losses(theta), tolerance)
    close(ours.value(t, w), reference.value(theta, weights), tolerance)
    close(ours.gradient(t, w), reference.gradient(theta, weights), tolerance)
    close(ours.example_gradients(t), reference.example_gradients(theta), tolerance)
    assert ours.gradient(t, w).dtype == ours.products(t, u, w).dtype == ours.logits(t).dtype == kind
    slopes = reference.directional(theta, v)
    close(ours.directional(t, u), slopes, tolerance)
    close(ours.products(t, u, w), reference.products(theta, v, weights), tolerance)
    close(
        ours.products(t, u, w, gauss_newton=True), reference.products(theta, v, weights, gauss_newton=True), tolerance
    )


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["64", "32"])
@pytest.mark.parametrize("n", [21, 150])  # neither fills its last block; 150 are of several parts
@pytest.mark.parametrize("model", [SMALL, ODD], ids=["small", "odd"])
def test_a_cotangent_of_the_logits_is_pulled_back_with_the_losses_and_where_no_weight_is(model, n, kind, tolerance):
    ours, reference, theta, weights, v = instance(model, n=n, sets=1, kind=kind)
    theta, weights = torch.cat([theta, theta + 0.1 * v[0]]), weights * torch.tensor([[1.0], [-2.0], [0.0]])
    weights[0, :16] = 0  # two blocks, or one
    cotangent = torch.randn(n, model.n_classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / n
    cotangent[8:16] = 0  # with the weights of the first network: a block of nothing
    pulled = [vjp(lambda t: model(t, reference.data.x[0]), t)[1](cotangent)[0] for t in theta]
    expected = reference.gradient(theta, weights) + torch.stack(pulled)
    found = ours.gradient(theta.to(kind), weights.to(kind), cotangent=cotangent.to(kind))
    assert found.dtype == kind
    for e in range(3):
        close(found[e], expected[e], tolerance)
    value, gradient = ours.value_and_gradient(theta.to(kind), weights.to(kind), cotangent=cotangent.to(kind))
    paired = (cotangent * reference.logits(theta)).sum((1, 2))
    assert value.dtype == torch.float64 and torch.equal(gradient, found)
    close(value, reference.value(theta, weights) + paired, tolerance)
    value, gradient = ours.value_and_gradient(theta.to(kind), weights.to(kind))
    close(value, reference.value(theta, weights), tolerance)
    assert torch.equal(gradient, ours.gradient(theta.to(kind), weights.to(kind)))


def test_a_cotangent_of_zero_is_none_and_takes_no_other_code():
    ours, _, theta, weights, _ = instance(n=25)
    none = torch.zeros(25, 3, dtype=torch.float64)
    assert torch.equal(ours.gradient(theta, weights, cotangent=none), ours.gradient(theta, weights))
    places = torch.tensor([1, 0])
    assert torch.equal(ours.gradient(theta, weights, places, none), ours.gradient(theta, weights, places))
    kinds = {signature[1].dtype for signature in gradients.signatures}
    assert len(gradients.signatures) == len(kinds)  # so that `compile_all` has compiled it


@pytest.mark.parametrize("shape", [(12, 3), (13, 4), (13,), (0, 0)])
def test_a_cotangent_of_another_shape_is_named(shape):
    ours, _, theta, weights, _ = instance()
    with pytest.raises(InputError, match="^cotangent.shape = "):
        ours.gradient(theta, weights, cotangent=torch.zeros(shape))


@pytest.mark.parametrize("model", [SMALL, ODD], ids=["small", "odd"])
def test_the_dense_hessian_is_that_of_the_written_out_objective(model):
    ours, reference, theta, weights, _ = instance(model, n=9, sets=1)
    found = ours.matrices(theta, weights)[0]
    close(found, hessian(value_by_hand(reference, 0, weights))(theta[0]), 1e-10)
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("model", [SMALL, ODD], ids=["small", "odd"])
@pytest.mark.parametrize("signed", [False, True], ids=["positive", "signed"])
def test_the_dense_gauss_newton_matrix_is_the_explicit_triple_product(model, signed):
    ours, reference, theta, weights, _ = instance(model, n=19, sets=1)
    weights = weights if signed else weights.abs()
    expected = triple_product(reference, theta, weights)
    found = ours.matrices(theta, weights, gauss_newton=True)[0]
    close(found, expected, 1e-12)
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("gauss_newton", [False, True], ids=["hessian", "ggn"])
def test_products_of_the_papers_network_are_those_of_its_dense_matrix(gauss_newton):
    ours, _, theta, weights, v = instance(SmallCNN(), n=11)
    dense = ours.matrices(theta, weights, gauss_newton=gauss_newton)
    close(ours.products(theta, v, weights, gauss_newton=gauss_newton), torch.einsum("epq,ekq->ekp", dense, v), 1e-11)


def test_dense_matrices_in_float32_are_those_of_float64_to_its_digits():
    theta, weights = instance(ODD)[2:4]
    double, single = instance(ODD)[0], instance(ODD, kind=torch.float32)[0]
    for gauss_newton in (False, True):
        found = single.matrices(theta.float(), weights.float(), gauss_newton=gauss_newton)
        assert found.dtype == torch.float32
        close(found, double.matrices(theta, weights, gauss_newton=gauss_newton), 1e-5)


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
        assert np.isnan(values[0])
        assert values[1:3].tolist() == [1, -1]
        assert np.signbit(values[3])


# -- meaning of weights, decay, data sets, sizes -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 8, 9, 65])
def test_any_number_of_examples_fills_the_registers_rightly(n):
    ours, reference, theta, weights, v = instance(n=n, sets=1)
    close(ours.losses(theta), reference.losses(theta))
    close(ours.gradient(theta, weights), reference.gradient(theta, weights))
    close(ours.example_gradients(theta), reference.example_gradients(theta))
    close(ours.directional(theta, v), reference.directional(theta, v))
    close(ours.products(theta, v, weights), reference.products(theta, v, weights))
    dense = reference.products(theta, v, weights, gauss_newton=True)
    close(torch.einsum("epq,ekq->ekp", ours.matrices(theta, weights, gauss_newton=True), v), dense)


def test_neither_threads_nor_chunks_change_a_digit_that_matters(monkeypatch):
    ours, _, theta, weights, v = instance(n=70, sets=1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = everything(ours, theta, weights)
        torch.set_num_threads(3)
        three = everything(ours, theta, weights)
    finally:
        torch.set_num_threads(before)
    for few, many in zip(one[:-1], three[:-1], strict=True):
        assert torch.equal(few, many)
    close(three[-1], one[-1], 1e-13)  # a library's matrix product
    slopes = ours.directional(theta, v)
    monkeypatch.setattr(conv, "HELD", 16)
    close(ours.matrices(theta, weights, gauss_newton=True), one[-1], 1e-13)
    close(ours.directional(theta, v), slopes, 1e-13)


@pytest.mark.parametrize("model", [SMALL, ODD], ids=["tanh", "relu"])
def test_a_parameter_that_is_not_finite_shows_and_stays_in_its_network(model):
    ours, _, theta, weights, _ = instance(model)
    losses, gradient = ours.losses(theta), ours.gradient(theta, weights)
    for poison in (torch.nan, torch.inf):
        theta[1, -1] = poison
        assert not torch.isfinite(ours.losses(theta)[1]).all()
        assert not torch.isfinite(ours.gradient(theta, weights)[1]).all()
        assert torch.equal(ours.losses(theta)[0], losses[0])
        assert torch.equal(ours.gradient(theta, weights)[0], gradient[0])
    theta[1, 0] = torch.nan
    assert torch.isnan(ours.losses(theta)[1]).all()


def test_the_value_of_a_sure_mistake_is_finite_and_right_in_single_precision():
    ours, reference, theta, weights, _ = instance(kind=torch.float32)
    far = theta.float() * 200  # the odds of some labels underflow
    value, _ = ours.value_and_gradient(far, weights.float().abs())
    expected = reference.value(far.double(), weights.float().abs().double())
    assert expected.min() > 100
    close(value, expected, 1e-5)


def test_sure_networks_stay_finite_and_right():
    ours, reference, theta, weights, v = instance(n=9)
    sure = theta.clone()
    sure[:, SMALL.stages[-1].start :] *= 300
    close(ours.losses(sure), reference.losses(sure), 1e-10)
    close(ours.gradient(sure, weights), reference.gradient(sure, weights), 1e-10)
    dense = ours.matrices(sure, weights.abs(), gauss_newton=True)
    # the reference takes p - p^2 as a difference, which loses the digits that the factors keep
    close(torch.einsum("epq,ekq->ekp", dense, v), reference.products(sure, v, weights.abs(), gauss_newton=True), 1e-7)


# -- bad input, stale code ---------------------------------------------------------------------------------------------


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
    ],
)
def test_what_the_kernels_cannot_take_is_refused(name, change):
    data = Data(torch.zeros(1, 2, 1, 21, 21), torch.zeros(1, 2).long())
    with pytest.raises(InputError, match=f"^{name} = "):
        ConvObjective(**({"model": SMALL, "data": data} | change))


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
