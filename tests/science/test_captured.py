"""The stack and the single network of GPUs, without their graph: against the loop, and what a graph asks of a step.

On a CPU the same code runs; what only a card could show is asked of the meta device, which holds no numbers to look at.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import in_chunks
from test_modules import CLASSES, N, examined, images, planned, small_frozen, small_module
from torch import nn

from fragile_lib.data.sets import Data
from fragile_lib.minimise import captured
from fragile_lib.minimise.captured import Start, Steps
from fragile_lib.minimise.modules import ModuleTrainer, train
from fragile_lib.minimise.schedule import Schedule, State
from fragile_lib.models.architectures import build, frozen_statistics
from fragile_lib.models.module import ModuleModel
from fragile_lib.network.modules import prepare
from fragile_lib.tools.errors import InputError

OPTIMISERS = ("adam", "sgd", "nesterov", "rmsprop")
REMOVED = [np.array([0]), np.array([7]), np.array([1, 2, 3]), np.array([22]), np.arange(N)]


def pooled(seed=0):
    """A network with pools and without statistics of batches."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, CLASSES)
        return nn.Sequential(*parts).double()


def trained(optimiser="adam", make=small_module, kind=torch.float64):
    """(a trainer by the loop, how it goes on): some steps made, batch statistics frozen."""
    x, y = images(dtype=kind)
    schedule = planned(6, 4, optimiser=optimiser, seed=3)
    start = train(make().to(kind), x, y, schedule, 0.01)
    start = replace(start, module=frozen_statistics(start.module, x, N))
    return ModuleTrainer(start, (x, y), 0.01, make().to(kind)), schedule.continued(5, seed=5)


def examined_in(kind):
    model, data = ModuleModel(small_frozen().to(kind), CLASSES), examined(4).data
    return in_chunks(model, data)


@pytest.mark.parametrize("way", ["stack", "single"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("make", [small_module, pooled])
def test_it_retrains_to_the_numbers_of_the_loop(way, optimiser, make):
    """Frozen batch statistics, the optimiser's memory and batches of which nothing is left included."""
    loop, schedule = trained(optimiser, make)
    expected = loop.go_on(schedule, REMOVED, examined(4))
    found = replace(loop, way=way, precision="full").go_on(schedule, REMOVED, examined(4))
    for name in ("before", "control", "removed"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-10, err_msg=name)
    np.testing.assert_array_equal(found.unseen, expected.unseen)
    assert abs(expected.removed - expected.control).max() > 1e-4  # leaving out changes something
    assert found.images >= expected.images if way == "stack" else found.images == expected.images


@pytest.mark.parametrize("way", ["stack", "single"])
def test_in_float32_it_stays_near_the_loop(way):
    loop, schedule = trained(kind=torch.float32)
    test = examined_in(torch.float32)
    expected = loop.go_on(schedule, REMOVED, test)
    found = replace(loop, way=way, precision="full").go_on(schedule, REMOVED, test)
    np.testing.assert_allclose(found.removed, expected.removed, rtol=1e-4)


def test_several_stacks_give_what_one_does(monkeypatch):
    loop, schedule = trained()
    trainer = replace(loop, way="stack")
    whole = trainer.go_on(schedule, REMOVED, examined(4))
    monkeypatch.setattr(captured, "MEMBERS", 3)
    parts = trainer.go_on(schedule, REMOVED, examined(4))
    np.testing.assert_allclose(parts.removed, whole.removed, rtol=1e-12)
    assert parts.images > whole.images  # a control in each


def test_an_image_that_no_batch_holds_costs_nothing():
    loop, _ = trained()
    schedule = planned(1, 4)
    unused = np.setdiff1d(np.arange(N), next(schedule.rows(N)))[:1]
    for way in ("stack", "single"):
        found = replace(loop, way=way).go_on(schedule, [unused], examined())
        np.testing.assert_array_equal(found.removed[0], found.control)
        assert found.unseen.tolist() == [True] and found.images == 4


@pytest.mark.parametrize("make", [small_module, pooled])
def test_training_anew_is_that_of_the_loop(make):
    """In a stack without batch normalisation; with it by the loop, as before."""
    loop, _ = trained(make=make)
    schedule, removed = planned(5, 4, seed=2), [np.array([6]), np.array([1, 2])]
    expected = loop.from_scratch(schedule, removed, examined())
    found = replace(loop, way="stack").from_scratch(schedule, removed, examined())
    for name in ("before", "control", "removed"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-10)
    np.testing.assert_array_equal(found.unseen, expected.unseen)


def test_the_loop_is_taken_on_a_cpu_and_a_gpu_chooses_by_size():
    loop, _ = trained()
    assert loop.chosen == ("loop", "full") and loop.told(planned(5, 4)) == {}
    large = build("resnet18", 1, 12, CLASSES, 0.25)
    for fresh, chosen in ((loop.fresh, ("stack", "full")), (large, ("single", "tf32"))):
        on_gpu = ModuleTrainer(loop.start, (FakeImages(), loop.data[1]), 0.01, fresh)
        assert on_gpu.chosen == chosen
    assert replace(loop, way="single", precision="bfloat16").chosen == ("single", "bfloat16")
    for wrong in ({"way": "graph"}, {"precision": "half"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            replace(loop, **wrong)


class FakeImages:
    """What says only where it is."""

    device = torch.device("cuda")


def test_the_error_of_a_rounded_retraining_is_told():
    """Relative to what the steps change: nothing but rounding in full precision, some thousandths in bfloat16."""
    loop, schedule = trained(kind=torch.float32)
    told = {p: replace(loop, way="single", precision=p).told(schedule) for p in ("full", "bfloat16")}
    assert told["full"]["retraining_error"] < 1e-4 < told["bfloat16"]["retraining_error"] < 0.3
    expected = {"retraining": "single", "retraining_in_graph": False, "retraining_precision": "bfloat16"}
    assert told["bfloat16"].items() > expected.items()


def test_a_certificate_tells_of_another_way_than_the_loop(monkeypatch):
    x, y = images(20)
    data = Data(x[None], y[None])
    how = CLASSES, data, data, 0.05, 0.1, planned(4, 10), "batch", 10, "cpu"
    assert "retraining" not in prepare(small_module(), *how).certificate
    monkeypatch.setattr(ModuleTrainer, "chosen", ("stack", "full"))
    certificate = prepare(small_module(), *how).certificate
    assert certificate["retraining"] == "stack" and certificate["retraining_error"] < 1e-10


# -- what a graph asks of a step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", captured.PRECISIONS)
@pytest.mark.parametrize(
    "architecture, width, size", [("lenet", 1, 3), ("small_cnn", 1, 3), ("vgg13", 0.125, 2), ("resnet18", 1, 1)]
)
def test_a_step_looks_at_no_number_and_leaves_no_device(architecture, width, size, precision):
    """The meta device has no numbers: `item`, `nonzero` and other waits for a GPU raise there, as do other devices."""
    start = on_meta(architecture, width, precision)
    steps = Steps(start, Schedule(2, 5), size)
    steps.run(0, 2)
    assert steps.held[0].is_meta and steps.held[0].shape == (size, start.model.n_params)


def on_meta(architecture, width, precision="full"):
    model = ModuleModel(build(architecture, 1, 28, 10, width).eval().to("meta"), 10)
    x, y = torch.empty(20, 1, 28, 28, device="meta"), torch.empty(20, dtype=torch.long, device="meta")
    return Start(model, x, y, 0.01, State.at(model.theta[None]), precision)


def test_what_is_written_stays_where_it_is():
    loop, schedule = trained()
    steps = Steps(loop._begin(loop.start.module, loop.state(schedule)), schedule, 3)
    own = (*steps.held, steps.kept, steps._rows, steps._now)
    places = [part.data_ptr() for part in own]
    steps.run(0, 3)
    steps.load([part.clone() for part in steps.held])
    assert [part.data_ptr() for part in (*steps.held, steps.kept, steps._rows, steps._now)] == places


class FakeCuda:
    """What `captured` asks of torch.cuda, noted in order."""

    def __init__(self, fails=False):
        self.log, self.fails = [], fails

    def Stream(self):  # noqa: N802
        return self

    def current_stream(self):
        return self

    def wait_stream(self, other):
        self.log.append("wait")

    def stream(self, side):
        return nullcontext()

    def CUDAGraph(self):  # noqa: N802
        return self

    def replay(self):
        self.log.append("replay")

    @contextmanager
    def graph(self, graph):
        self.log.append("capture")
        yield
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")


def test_a_step_is_warmed_up_on_a_side_stream_and_then_captured(monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(captured.torch, "cuda", cuda)
    make, in_graph = captured.captured(lambda: cuda.log.append("step"))
    make()
    assert in_graph and cuda.log == ["wait", *["step"] * captured.WARM_UP, "wait", "capture", "step", "replay"]


def test_a_step_that_cannot_be_captured_runs_without(monkeypatch):
    cuda = FakeCuda(fails=True)
    monkeypatch.setattr(captured.torch, "cuda", cuda)
    with pytest.warns(UserWarning, match="without"):
        make, in_graph = captured.captured(lambda: cuda.log.append("step"))
    make()
    assert not in_graph and cuda.log[-1] == "step"


def test_the_arithmetic_of_a_gpu_is_chosen_and_put_back():
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32, convolutions.deterministic
    for precision in captured.PRECISIONS:
        with captured.arithmetic(precision):
            wanted = precision == "tf32"
            assert (convolutions.allow_tf32, products.allow_tf32, convolutions.deterministic) == (wanted, wanted, True)
    assert (convolutions.allow_tf32, products.allow_tf32, convolutions.deterministic) == before
