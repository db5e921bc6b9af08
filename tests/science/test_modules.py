"""Large networks in chunks: against `Objective` and dense references in float64, and retraining against full runs."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import in_chunks
from torch import nn

from fragile_lib.choices import Estimate, Points, choose, choose_points
from fragile_lib.data.sets import Data
from fragile_lib.estimates import estimate, selecting
from fragile_lib.minimise.modules import ModuleTrainer, losses_of, make_optimiser, train
from fragile_lib.minimise.schedule import TENTH_AFTER_TWO_THIRDS, Schedule
from fragile_lib.models.architectures import build, frozen_statistics
from fragile_lib.models.module import ModuleModel
from fragile_lib.network import modules as network_modules
from fragile_lib.network.modules import prepare
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.losses import CROSS_ENTROPY
from fragile_lib.own import network_of
from fragile_lib.solvers.lissa import DivergedWarning, lissa_partition
from fragile_lib.tools.errors import InputError
from fragile_lib.truths import leave_out

N, CLASSES = 23, 3
NAMES = ("lissa_partition", "cg_ggn", "ekfac", "identity")


def planned(steps, batch, rate=0.01, optimiser="adam", seed=0):
    return Schedule.named(
        optimiser, steps=steps, batch=batch, learning_rate=rate, drops=TENTH_AFTER_TWO_THIRDS, seed=seed
    )


def examined(n=3, seed=9):
    """The losses of some test images."""
    x, y = images(n, seed)
    return in_chunks(ModuleModel(small_frozen(), CLASSES), Data(x[None], y[None]))


def small_frozen():
    return frozen_statistics(small_module(), images()[0], N)


def images(n=N, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 6, 6, generator=rng, dtype=dtype), torch.arange(n) % CLASSES


def small_module(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, CLASSES)
        ).double()


@pytest.fixture(scope="module")
def both():
    """The same J in chunks and at once, its theta, and some vectors."""
    x, y = images()
    model = ModuleModel(frozen_statistics(small_module(), x, N), CLASSES)
    data = Data(x[None], y[None])
    vectors = torch.randn(5, len(model.theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return in_chunks(model, data, 0.01, chunk=7, vectors=2), Objective(model, data, 0.01), model.theta, vectors


def test_chunks_and_groups_of_vectors_change_no_derivative(both):
    streamed, whole, theta, v = both
    weights = torch.rand(1, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights[0, 3] = 0
    close = torch.testing.assert_close
    close(streamed.losses(theta[None]), whole.losses(theta[None]))
    close(streamed.value(theta[None], weights), whole.value(theta[None], weights))
    close(streamed.gradient(theta[None], weights), whole.gradient(theta[None], weights))
    close(streamed.directional(theta[None], v[None]), whole.directional(theta[None], v[None]))
    for gauss_newton in (False, True):
        arguments = theta[None], v[None], weights, None, gauss_newton
        close(streamed.products(*arguments), whole.products(*arguments), rtol=1e-9, atol=1e-10)


def test_examples_of_weight_zero_cost_a_large_network_nothing(both, monkeypatch):
    streamed, whole, theta, _ = both
    weights = torch.zeros(3, N, dtype=torch.float64)
    weights[0, [2, 9]], weights[1, 4] = torch.tensor([0.5, 2.0], dtype=torch.float64), 1.0
    seen, plain = [], ModuleModel.__call__

    def counted(self, t, x):
        seen.append(len(x))
        return plain(self, t, x)

    monkeypatch.setattr(ModuleModel, "__call__", counted)
    found = streamed.gradient(theta.expand(3, -1), weights)
    assert sum(seen) == 3
    monkeypatch.undo()
    torch.testing.assert_close(found, whole.gradient(theta.expand(3, -1), weights))


def test_what_it_is_on_other_data_has_no_decay(both):
    streamed, _, theta, _ = both
    some = streamed.on(Data(streamed.data.x[:, [2, 5]], streamed.data.y[:, [2, 5]]))
    assert some.weight_decay == 0 and some.chunk == streamed.chunk
    torch.testing.assert_close(some.losses(theta[None]), streamed.losses(theta[None])[:, [2, 5]])


def test_chunks_and_vectors_are_counts(both):
    for name in ("chunk", "vectors"):
        with pytest.raises(InputError, match=f"{name} = 0"):
            in_chunks(both[0].model, both[0].data, **{name: 0})


# -- the stochastic recursion ----------------------------------------------------------------------------------------


def dense(whole, theta, damping):
    matrix = whole.matrices(theta[None], whole.uniform(1))[0]
    return matrix + damping * torch.eye(len(theta), dtype=theta.dtype)


def test_the_default_scale_bounds_every_minibatch(both):
    streamed, _, theta, _ = both
    solver = lissa_partition(streamed, theta, 0.01, batch=4)
    for rows in solver.parts:
        part = Objective(streamed.model, Data(streamed.data.x[:, rows], streamed.data.y[:, rows]))
        ggn = part.matrices(theta[None], part.uniform(1), gauss_newton=True)[0]
        assert float(torch.linalg.eigvalsh(ggn)[-1]) < solver.scale
    assert len(solver.parts) == 5 and len(np.unique(np.concatenate(solver.parts))) == 20


def test_a_recursion_that_grows_is_ended_early_and_names_a_scale_that_works(both):
    streamed, whole, theta, v = both
    damping = 3.0  # above the negative curvature of every minibatch
    parts = lissa_partition(streamed, theta, damping, batch=4).parts
    for rows in parts:
        part = Objective(whole.model, Data(whole.data.x[:, rows], whole.data.y[:, rows]))
        assert float(torch.linalg.eigvalsh(part.matrices(theta[None], part.uniform(1))[0])[0]) > -damping
    with pytest.warns(DivergedWarning, match=r"after \d+ of 1000000 steps at lissa_scale = .*; give ") as told:
        solution = lissa_partition(streamed, theta, damping, depth=1_000_000, batch=4, scale=1.0)(v)
    assert solution.status == "solver_diverged" and torch.isnan(solution.x).all()
    named = float(str(told[0].message).split("give ")[1].split()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lissa_partition(streamed, theta, damping, depth=50, batch=4, scale=named)(v).status == "ok"


# -- training and retraining -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adam", "sgd", "nesterov", "rmsprop"])
def test_branching_off_the_control_gives_the_numbers_of_full_runs(optimiser):
    x, y = images()
    schedule = planned(6, 4, optimiser=optimiser, seed=3)
    start = train(small_module(), x, y, schedule, 0.01)
    start = replace(start, module=frozen_statistics(start.module, x, N))
    test, removals = examined(4), [np.array([0]), np.array([7]), np.array([1, 2, 3]), np.array([22])]
    again = schedule.continued(3, seed=5)
    found = ModuleTrainer(start, (x, y), 0.01, small_module()).go_on(again, removals, test)
    np.testing.assert_array_equal(found.before, losses_of(start.module, test))
    for place, removal in enumerate([np.array([], int), *removals]):
        module = copy.deepcopy(start.module)
        memory = make_optimiser(module, again, 0.01)
        memory.load_state_dict(copy.deepcopy(start.optimiser.state_dict()))
        for step, rows in enumerate(again.rows(N)):
            kept = rows[~np.isin(rows, removal)]
            for group in memory.param_groups:
                group["lr"] = again.rate(step)
            memory.zero_grad(set_to_none=False)
            (nn.functional.cross_entropy(module(x[kept]), y[kept], reduction="sum") / 4).backward()
            memory.step()
        expected = losses_of(module, test)
        np.testing.assert_array_equal(found.control if place == 0 else found.removed[place - 1], expected)
    assert found.images < 5 * again.steps * 4  # less than five full runs
    used = np.concatenate(list(again.rows(N)))
    assert found.unseen.tolist() == [not np.isin(r, used).any() for r in removals]


def test_a_batch_of_which_nothing_is_left_still_decays():
    x, y = images(4)
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES)).double()
    trained = train(module, x, y, planned(1, 4, 0.1, "sgd"), 0.5, removed=[0, 1, 2, 3])
    torch.testing.assert_close(trained.module[1].weight, (1 - 0.1 * 0.5) * module[1].weight)
    torch.testing.assert_close(trained.module[1].bias, module[1].bias)


def test_training_descends_j_itself():
    """One step of plain gradient descent on all examples is theta - rate grad J."""
    x, y = images(12)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, CLASSES)).double()
    model = ModuleModel(module, CLASSES)
    j = in_chunks(model, Data(x[None], y[None]), 0.3)
    stepped = ModuleModel(train(module, x, y, planned(1, 12, 0.1, "sgd"), 0.3).module, CLASSES).theta
    expected = model.theta - 0.1 * j.gradient(model.theta[None], j.uniform(1))[0]
    torch.testing.assert_close(stepped, expected)


def test_from_scratch_without_an_image_is_training_on_the_others():
    x, y = images()
    schedule, test = planned(5, 4, seed=2), examined()
    trainer = ModuleTrainer(train(small_module(), x, y, planned(1, 4), 0.0), (x, y), 0.01, small_module())
    found = trainer.from_scratch(schedule, [np.array([6])], test)
    alone = train(small_module(), x, y, schedule, 0.01, removed=[6]).module
    left = np.setdiff1d(np.arange(N), [6])
    expected = losses_of(frozen_statistics(alone, x[left], len(left)), test)
    np.testing.assert_array_equal(found.removed[0], expected)
    assert not np.array_equal(found.control, expected)


# -- the whole way, on one network -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared():
    x, y = images(30)
    data, test = Data(x[None], y[None]), Data(*(part[None] for part in images(20, seed=9)))
    return prepare(small_module(), CLASSES, data, test, 0.05, 0.1, planned(60, 10, 0.02), "batch", 7, "cpu")


@pytest.fixture(scope="module")
def points(prepared):
    return choose_points(prepared.test_losses(), {"max_loss": 2, "p50_loss": 1})


def by(prepared, points, name, **options):
    return estimate([prepared], [points], [name], options={name: options})[0][name]


def test_the_certificate_is_of_the_frozen_network(prepared):
    whole = Objective(prepared.train.model, prepared.train.data, 0.05)
    theta, weights = prepared.theta[None], whole.uniform(1)
    c = prepared.certificate
    assert c["grad_norm"] == pytest.approx(float(whole.gradient(theta, weights).norm()))
    assert c["objective"] == pytest.approx(float(whole.value(theta, weights)))
    top = float(torch.linalg.eigvalsh(whole.matrices(theta, weights, gauss_newton=True)[0])[-1])
    assert 0.9 * top < c["eig_max"] <= top * (1 + 1e-9)
    assert c["status"] == "not_certified" and 0 <= c["test_accuracy"] <= 1 and not prepared.certified


def test_of_very_many_images_the_first_tell_the_size_of_the_curvature(prepared, monkeypatch):
    monkeypatch.setattr(network_modules, "MANY", 29)
    monkeypatch.setattr(network_modules, "SOME", 12)
    data = prepared.train.data
    first = Objective(prepared.train.model, Data(data.x[:, :12], data.y[:, :12]), 0.05)
    matrix = first.matrices(prepared.theta[None], first.uniform(1), gauss_newton=True)[0]
    top = float(torch.linalg.eigvalsh(matrix)[-1])
    assert 0.9 * top < network_modules._largest_eigenvalue(prepared) <= top * (1 + 1e-9)


def test_estimates_are_the_dense_ones_on_the_scale_of_leaving_out(prepared, points):
    whole = Objective(prepared.train.model, prepared.train.data, 0.05)
    theta = prepared.theta
    ggn = whole.matrices(theta[None], whole.uniform(1), gauss_newton=True)[0]
    inverse = torch.linalg.inv(ggn + 0.1 * torch.eye(len(theta)))
    f = Objective(prepared.train.model, prepared.test.data).example_gradients(theta[None])[0][points.index]
    expected = whole.example_gradients(theta[None])[0] @ inverse @ f.T / whole.n
    found = by(prepared, points, "cg_ggn", tolerance=1e-2, max_iterations=200)
    assert found.status == "ok" and found.residual <= 1e-2
    np.testing.assert_allclose(found.changes, expected, atol=0.02 * expected.abs().max())
    np.testing.assert_allclose(by(prepared, points, "gram_ggn").changes, expected, rtol=1e-6, atol=1e-10)


def test_a_network_trained_elsewhere_is_taken_as_it_is(prepared, points):
    module = prepared.trainer.start.module
    data = [(objective.data.x[0], objective.data.y[0]) for objective in (prepared.train, prepared.test)]
    how = {"weight_decay": 0.05, "decayed": "weights", "damping": 0.1, "chunk": 7, "device": "cpu"}
    same = network_of(module, CROSS_ENTROPY, *data, schedule=planned(3, 10), **how)
    assert torch.equal(same.theta, prepared.theta)
    for name, close in (("exact_ggn", 1e-12), ("cg_ggn", 1e-3)):  # the same sums in another order; CG stops at 1e-4
        found, wanted = (by(one, points, name).changes for one in (same, prepared))
        np.testing.assert_allclose(found, wanted, atol=close)
    chosen = [choose(by(same, points, "identity").changes, {"top_influence": 4})]
    (found,) = leave_out([same], [points], chosen, ["warm_minibatch"], options={"warm_minibatch": {"fraction": 1.0}})
    assert np.isfinite(found["warm_minibatch"].changes).all()


def test_where_the_wanted_estimator_diverged_another_chooses(prepared, points):
    good = by(prepared, points, "identity")
    bad = Estimate(good.removals, np.full((30, 3), np.nan), status="solver_diverged")
    assert selecting({"lissa": bad, "identity": good}, "lissa") == "identity"
    assert selecting({"identity": good}, "identity") == "identity"
    broken = replace(good, changes=np.where(np.arange(30)[:, None] == 4, np.nan, good.changes))
    assert selecting({"lissa": bad, "identity": broken}, "lissa") == "identity"  # a broken image counts for nobody
    with pytest.raises(InputError, match="all diverged"):
        selecting({"lissa": bad}, "lissa")
    with pytest.raises(InputError, match="select_by = 'cg'"):
        selecting({"lissa": bad, "identity": good}, "cg")


def test_half_a_batch_of_one_is_refused_before_training():
    x, y = images(6)
    data = Data(x[None], y[None])
    with pytest.raises(InputError, match="batch = 1"):
        prepare(small_module(), CLASSES, data, data, 0.0, 0.1, planned(5, 1, 0.1), "batch", 7, "cpu")


def test_a_real_architecture_goes_the_whole_way_in_float32():
    x, y = images(20, dtype=torch.float32)
    x = torch.nn.functional.interpolate(x, size=12)
    data = Data(x[None], y[None])
    module = build("resnet18", 1, 12, CLASSES, width_multiplier=0.0625, stem="strided")
    ready = prepare(module, CLASSES, data, data, 0.001, 0.1, planned(4, 10, 0.001), "batch", 10, "cpu")
    some = choose_points(ready.test_losses(), {"max_loss": 2})
    small = {"lissa_partition": {"depth": 3}, "cg_ggn": {"max_iterations": 3}}
    for found in estimate([ready], [some], NAMES, options=small)[0].values():
        assert np.isfinite(found.changes).all()
    assert isinstance(some, Points) and ready.trainer.start.images == 40
