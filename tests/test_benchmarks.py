"""That the benchmarks run, print their ratios, and that all ways of each give the same numbers at a tiny size."""

from __future__ import annotations

import importlib
import itertools
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from fragile_lib.data import sets
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.network.dense import prepare


@pytest.fixture
def benchmark(monkeypatch):
    """A benchmark's module by name; all is called once, whatever is timed takes a second, and nothing is compiled."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))
    clock, usual = importlib.import_module("clock"), torch.get_default_dtype()
    monkeypatch.setattr(clock, "perf_counter", itertools.count().__next__)
    monkeypatch.setattr(clock.Way, "repeats", property(lambda _: 1, lambda *_: None))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    torch.set_default_dtype(torch.float64)
    yield importlib.import_module
    torch.set_default_dtype(usual)


def ratios(capsys, count):
    """(text, relative differences): as many as there are alternatives, and a ratio with each."""
    out = capsys.readouterr().out
    gaps = re.findall(r"times as long; relative difference (\S+)", out)
    assert len(gaps) == count
    return out, [float(gap) for gap in gaps]


@pytest.mark.parametrize("depth", [1, 2])
def test_all_ways_on_iris_agree(benchmark, monkeypatch, capsys, depth):
    iris = benchmark("iris")
    for name, value in {"SEEDS": 2, "STEPS": 20, "TRAINING": 200}.items():
        monkeypatch.setattr(iris, name, value)
    train_data, test_data = sets.iris_splits([0, 1])
    iris.retraining(depth, train_data, 1e9)
    network = iris.trained(depth, *(type(data)(data.x[:1], data.y[:1]) for data in (train_data, test_data)))
    for part in (iris.estimates, iris.hessians):
        part(depth, network)
    iris.fixed_cost(network)
    out, gaps = ratios(capsys, 3 + 2 + 3 + 2)
    assert max(gaps) < 1e-9
    assert "loop of torch.optim: 50 s (scaled up from 1 / 50), 50 times as long" in out
    assert out.count("fixed: 0 ms (at most 20 ms: yes)") == 2


@pytest.fixture
def small_mnist(benchmark):
    """The benchmark on small MNIST, and a tiny network with few images for it."""
    module = benchmark("small_mnist")
    sizes = module.Sizes(images=20, points=3, training=3, examples=2, together=2, steps=2, batch=8)
    return module, module.trained(*sets.small_mnist("digits", 20, 10), SmallCNN(2, 10, 28), sizes)


def test_all_ways_on_small_mnist_agree(small_mnist, capsys):
    module, tiny = small_mnist
    module.report(tiny)
    out, gaps = ratios(capsys, 3 + 2 + 3 + 2 + 2)
    assert max(gaps) < 1e-2
    assert sum(gap < 1e-9 for gap in gaps) >= 8
    assert out.count("of a large matrix product's") == 2


def test_left_out_optima_are_counted(benchmark, capsys):
    module = benchmark("small_mnist")
    schedule = module.Schedule(100, 20, 1e-2)
    network = prepare(
        SmallCNN(2), *sets.small_mnist("digits", 60, 20), 0.02, 0.01, schedule, 1, minimum_rounds=8, device="cpu"
    )
    module.left_out_optima(network, 10)
    newton, both = (int(n) for n in re.findall(r"(\d+) certified", capsys.readouterr().out))
    assert newton < both <= 10


def test_operations_are_counted_from_the_stages(benchmark):
    model = SmallCNN()
    forward = [9 * 8 * 26**2] + [9 * 64 * side**2 for side in (12, 10, 4, 2)] + [8 * 10 * 4, 100]
    assert benchmark("small_mnist").gradient_flops(model) == 2 * (3 * sum(forward) - forward[0])


@pytest.fixture
def architectures(benchmark, monkeypatch):
    """The benchmark on large networks, and tiny networks with few images for it."""
    module = benchmark("architectures")
    # The memory of a process that ran other tests says nothing.
    monkeypatch.setattr(module, "in_fresh_process", lambda run, *arguments: 0 * run(*arguments))
    return module, tiny_case(module)


@cache
def tiny_case(module):
    """Its network is trained once for all tests."""
    sizes = module.SMALL
    return module.placed(*sets.image_subset("mnist", "digits", sizes.images, sizes.tests), sizes, "cpu")


def test_all_ways_on_architectures_agree(architectures, capsys):
    module, tiny = architectures
    module.report(tiny)
    out, gaps = ratios(capsys, 4 + 2 + 1 + 2 + 4 + 2 + 1)
    assert max(gaps[:9]) < 1e-3
    assert "without a CUDA graph here" in out
    assert "  full runs: 1 s, 1 times as long; relative difference 0e+00" in out
    assert "the same 5 on top): " in out and "0.0 MB more, of images " in out


@pytest.mark.parametrize("name, part", [("slopes_by_loop", "scores"), ("full_run", "retraining")])
def test_ways_that_differ_end_the_run(architectures, monkeypatch, name, part):
    module, tiny = architectures
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments: 1.002 * right(*arguments))
    with pytest.raises(module.DisagreementError, match="relative difference 2.0e-03"):
        getattr(module, part)(tiny)


def test_memory_may_grow_by_images_and_one_chunk(architectures, monkeypatch):
    module, tiny = architectures
    monkeypatch.setattr(module, "activations", lambda *_: 5.0)
    for each, passes in ((1e-6, True), (1.0, False)):
        monkeypatch.setattr(module, "in_fresh_process", lambda run, x, *_, each=each: x.nbytes / 1e6 + each * len(x))
        if passes:
            module.memory(tiny)
        else:
            with pytest.raises(module.DisagreementError, match="grows by more than the images"):
                module.memory(tiny)


def test_activations_are_what_a_backward_pass_needs(architectures):
    """The convolution keeps its input, the ReLU its output."""
    network, images = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()), torch.zeros(2, 1, 6, 6)
    assert architectures[0].activations(network, images) == images.nbytes / 1e6 * (1 + 3 * 16 / 36)


def test_rankings_are_compared_at_the_worst_test_point(architectures):
    single = torch.tensor([[4.0, -3.0, 2.0, 1.0, 0.5], [4.0, -3.0, 2.0, 1.0, 0.5]])
    half = torch.tensor([[4.0, -3.3, 2.0, 1.0, 0.5], [0.5, -3.0, 2.0, 1.0, 4.0]])
    worst = architectures[0].worst_ranking
    assert worst(single, half, 3) == pytest.approx((0.1, 2))
    assert worst(single[:1], half[:1], 3) == pytest.approx((1.0, 3))


def test_where_nothing_compiles_it_is_said(architectures, monkeypatch, capsys):
    def refuse(*_):
        raise RuntimeError("no C++ compiler\nmore of it")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    architectures[0].compilation(architectures[1])
    assert capsys.readouterr().out == "torch.compile does not work here: no C++ compiler\n"
