"""That the benchmarks run, and that both ways of each give the same numbers at a tiny size. Nothing is timed."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fragile_lib.data.sets import Data, image_subset, iris_splits, mnist_digits
from fragile_lib.models.small_cnn import SmallCNN


def at_once(run, repeats=1):
    """In the place of `clock.best`: call it once, and a second is what it took."""
    run()
    return 1.0


@pytest.fixture
def benchmark(monkeypatch):
    """A benchmark's module by name, its clock stopped."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))

    def load(name):
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "best", at_once)
        monkeypatch.setattr(module, "matrix_product_rate", lambda *_: 1e9, raising=False)
        return module

    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield load
    torch.set_default_dtype(usual)


@pytest.mark.parametrize("depth", [1, 2])
def test_both_ways_on_iris_agree(benchmark, monkeypatch, capsys, depth):
    run = benchmark("run")
    monkeypatch.setattr(run, "SEEDS", 2)
    monkeypatch.setattr(run, "STEPS", 20)
    train_data, test_data = iris_splits([0, 1])
    one = Data(train_data.x[:1], train_data.y[:1])
    run.retraining(depth, train_data, 1e9)
    run.estimates(depth, one, Data(test_data.x[:1], test_data.y[:1]))
    run.hessians(depth, one)
    gaps = re.findall(r"difference[a-z0-9 ]* (\d\S*e\S+)", capsys.readouterr().out)
    assert len(gaps) == 3
    assert all(float(gap) < 1e-9 for gap in gaps)


@pytest.fixture
def case(benchmark, monkeypatch):
    """The benchmark on small MNIST, and a tiny network with few images for it."""
    module = benchmark("small_mnist")
    monkeypatch.setattr(module, "CHUNK", 8)
    monkeypatch.setattr(module, "BATCH", 6)
    sizes = module.Sizes(images=20, points=3, training=3, examples=2, iterations=2, steps=2)
    return module, module.trained(*mnist_digits(20, 10), SmallCNN(2, 10, 28), sizes)


def test_both_ways_on_small_mnist_agree(case, capsys):
    module, tiny = case
    module.report(tiny)
    gaps = re.findall(r"relative difference (\S+)", capsys.readouterr().out)
    assert len(gaps) == 5
    assert all(float(gap) < 1e-2 for gap in gaps)


def test_left_out_optima_are_counted(benchmark, capsys):
    module = benchmark("small_mnist")
    images = mnist_digits(60, 20)
    prepared = module.prepare(SmallCNN(2), *images, 0.02, 0.01, module.Protocol(100, 20, 1e-2), 1, minimum_rounds=8)
    module.left_out_optima(prepared, 10)
    newton, both = (int(n) for n in re.findall(r"(\d+) certified", capsys.readouterr().out))
    assert newton < both <= 10


def test_ways_that_differ_end_the_run(case, monkeypatch):
    module, tiny = case
    right = module.Case.plain_product
    monkeypatch.setattr(module.Case, "plain_product", lambda *arguments: 1.001 * right(*arguments))
    with pytest.raises(module.DisagreementError, match="dense Hessian: relative difference 1.0e-03"):
        module.hessians(tiny)


def test_a_chord_iteration_is_timed_on_any_objective(case, capsys):
    module, tiny = case
    module.chord_iterations(tiny, tiny.train)
    assert "torch.func" not in capsys.readouterr().out


def test_operations_are_counted_from_the_stages(benchmark):
    model = SmallCNN()
    forward = [9 * 8 * 26**2] + [9 * 64 * side**2 for side in (12, 10, 4, 2)] + [8 * 10 * 4, 100]
    assert benchmark("small_mnist").gradient_flops(model) == 2 * (3 * sum(forward) - forward[0])


# -- the large networks ----------------------------------------------------------------------------------------------


@pytest.fixture
def large(benchmark, monkeypatch):
    """The benchmark on large networks and torch's switches on them, and tiny networks with few images for both."""
    shared = benchmark("deep_case")
    sizes = replace(shared.SMALL, training=4, forward=3, reverse=2, removals=2, curved=2, backend="eager")
    case = shared.placed(*image_subset("mnist", "digits", sizes.images, sizes.tests), sizes, "cpu")
    module, switches = (importlib.import_module(name) for name in ("architectures", "switches"))
    # The memory of a process that ran other tests says nothing.
    monkeypatch.setattr(module, "in_fresh_process", lambda run, *arguments: 0 * run(*arguments))
    return module, switches, case


def test_both_ways_on_large_networks_agree(large, capsys):
    module, _, tiny = large
    module.report(tiny)
    out = capsys.readouterr().out
    gaps = [float(gap) for gap in re.findall(r"relative difference (\S+)", out)]
    assert len(gaps) == 12
    assert max(gaps) < 1e-3
    assert "control: 1.0 s\n  full runs: 1.0 s: 1.00 times faster; relative difference 0e+00" in out
    assert "the same 5 on top): " in out and "one chunk's activations are 2." in out


@pytest.mark.parametrize("name, part", [("slopes_by_loop", "scores"), ("plain_hessian", "products")])
def test_large_networks_that_differ_end_the_run(large, monkeypatch, name, part):
    module, _, tiny = large
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments: 1.002 * right(*arguments))
    with pytest.raises(module.DisagreementError, match="relative difference 2.0e-03"):
        getattr(module, part)(tiny)


def test_retraining_must_agree_in_every_bit(large, monkeypatch):
    module, _, tiny = large
    right = module.full_run
    monkeypatch.setattr(module, "full_run", lambda *arguments: (1 + 1e-12) * right(*arguments))
    with pytest.raises(module.DisagreementError, match="retraining"):
        module.retraining(tiny)


def test_memory_may_grow_by_images_and_one_chunk(large):
    module = large[0]
    assert module.check_growth(9.0, 4.0, 5.0).startswith("9.0 MB more for 4.0 MB")
    with pytest.raises(module.DisagreementError, match="9.1 MB more"):
        module.check_growth(9.1, 4.0, 5.0)


def test_activations_are_what_a_backward_pass_needs(large):
    """The convolution keeps its input, the ReLU its output."""
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
    images = torch.zeros(2, 1, 6, 6)
    assert large[0].activations(network.to(images), images) == images.nbytes / 1e6 * (1 + 3 * 16 / 36)


def test_rankings_are_compared_at_the_worst_test_point(large):
    single = torch.tensor([[4.0, -3.0, 2.0, 1.0, 0.5], [4.0, -3.0, 2.0, 1.0, 0.5]])
    half = torch.tensor([[4.0, -3.3, 2.0, 1.0, 0.5], [0.5, -3.0, 2.0, 1.0, 4.0]])
    assert large[1].compare_rankings(single, half, 3) == pytest.approx((0.1, 2, 0.875))
    assert large[1].compare_rankings(single[:1], half[:1], 3) == pytest.approx((1.0, 3, 0.1))


def test_where_nothing_compiles_it_is_said(large, monkeypatch, capsys):
    def refuse(*_, **__):
        raise RuntimeError("no C++ compiler\nmore of it")

    monkeypatch.setattr(torch, "compile", refuse)
    large[1].compilation(large[2])
    assert capsys.readouterr().out == "torch.compile: skipped, it does not work here (no C++ compiler)\n"
