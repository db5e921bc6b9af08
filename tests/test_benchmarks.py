"""That the benchmarks run, and that both ways of each give the same numbers at a tiny size. Nothing is timed."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

from fragile_lib.conv import SmallCNN
from fragile_lib.data import Data, iris_splits, mnist_digits


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
        monkeypatch.setattr(module, "matrix_product_rate", lambda *_: 1e9)
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
