"""Large networks in chunks: against `Objective` and dense references in float64, and retraining against full runs."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from fragile_lib.data.sets import Data
from fragile_lib.deep import estimators, network, truths
from fragile_lib.examination import choose_test_points
from fragile_lib.minimise.modules import Schedule, from_scratch_without, go_on_without, losses_of, make_optimiser, train
from fragile_lib.models.architectures import build, frozen_statistics
from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.streamed import StreamedObjective
from fragile_lib.solvers.batch_lissa import BatchLissaSolver, DivergedWarning
from fragile_lib.tools.errors import InputError

N, CLASSES = 23, 3


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
    return StreamedObjective(model, data, 0.01, chunk=7, vectors=2), Objective(model, data, 0.01), model.theta, vectors


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


def test_what_it_is_on_other_data_has_no_decay(both):
    streamed, _, theta, _ = both
    some = streamed.of(np.array([2, 5]))
    assert some.weight_decay == 0 and some.chunk == streamed.chunk
    torch.testing.assert_close(some.losses(theta[None]), streamed.losses(theta[None])[:, [2, 5]])


def test_stacks_are_refused(both):
    streamed, _, theta, v = both
    with pytest.raises(InputError, match="one network"):
        streamed.products(theta.expand(2, -1), v[None], streamed.uniform(1))
    with pytest.raises(InputError, match="chunk = 0"):
        StreamedObjective(streamed.model, streamed.data, chunk=0)
    with pytest.raises(InputError, match="not stacked"):
        StreamedObjective(
            streamed.model, Data(streamed.data.x.expand(2, -1, -1, -1, -1), streamed.data.y.expand(2, -1))
        )


# -- the stochastic recursion ----------------------------------------------------------------------------------------


def dense(whole, theta, damping):
    matrix = whole.matrices(theta[None], whole.uniform(1))[0]
    return matrix + damping * torch.eye(len(theta), dtype=theta.dtype)


@pytest.mark.parametrize("stretch", [1.0, 3.0])
def test_lissa_has_the_damped_inverse_as_its_fixed_point_at_any_scale(both, stretch):
    """One batch of all examples makes the recursion deterministic: its limit must not depend on the scale."""
    streamed, whole, theta, v = both
    damping = 0.5 - float(torch.linalg.eigvalsh(dense(whole, theta, 0.0))[0].clamp(max=0))
    scale = stretch * float(torch.linalg.eigvalsh(dense(whole, theta, damping))[-1])
    depth = int(250 * stretch)
    solver = BatchLissaSolver(streamed, theta, damping, depth=depth, batch=N, scale=scale)
    solution = solver(v[:2])
    expected = torch.linalg.solve(dense(whole, theta, damping), v[:2].T).T
    torch.testing.assert_close(solution.x, expected, rtol=1e-6, atol=1e-8)
    assert solution.status == "ok" and solution.residual.max() < 1e-6 and solution.products == 2 * depth


def test_the_default_scale_bounds_every_minibatch(both):
    streamed, _, theta, _ = both
    solver = BatchLissaSolver(streamed, theta, 0.01, batch=4)
    for rows in solver.parts:
        part = Objective(streamed.model, Data(streamed.data.x[:, rows], streamed.data.y[:, rows]))
        ggn = part.matrices(theta[None], part.uniform(1), gauss_newton=True)[0]
        assert float(torch.linalg.eigvalsh(ggn)[-1]) < solver.scale
    assert len(solver.parts) == 5 and len(np.unique(np.concatenate(solver.parts))) == 20


def test_a_recursion_that_grows_is_ended_early_and_names_a_scale_that_works(both):
    streamed, whole, theta, v = both
    damping = 3.0  # above the negative curvature of every minibatch
    parts = BatchLissaSolver(streamed, theta, damping, batch=4).parts
    for rows in parts:
        part = Objective(whole.model, Data(whole.data.x[:, rows], whole.data.y[:, rows]))
        assert float(torch.linalg.eigvalsh(part.matrices(theta[None], part.uniform(1))[0])[0]) > -damping
    with pytest.warns(DivergedWarning, match=r"after \d+ of 1000000 steps at lissa_scale = .*; give ") as told:
        solution = BatchLissaSolver(streamed, theta, damping, depth=1_000_000, batch=4, scale=1.0)(v)
    assert solution.status == "solver_diverged" and torch.isnan(solution.x).all()
    named = float(str(told[0].message).split("give ")[1].split()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert BatchLissaSolver(streamed, theta, damping, depth=50, batch=4, scale=named)(v).status == "ok"


@pytest.mark.parametrize("options", [{"depth": 0}, {"batch": N + 1}, {"scale": -1.0}, {"damping": -0.1}])
def test_bad_settings_of_the_recursion_are_refused(both, options):
    streamed, _, theta, _ = both
    with pytest.raises(InputError):
        BatchLissaSolver(streamed, theta, **{"damping": 0.1, **options})


# -- training and retraining -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adam", "sgd", "nesterov", "rmsprop"])
def test_branching_off_the_control_gives_the_numbers_of_full_runs(optimiser):
    x, y = images()
    schedule = Schedule(6, 4, 0.01, optimiser, seed=3)
    start = train(small_module(), x, y, schedule, 0.01)
    start = network.replace(start, module=frozen_statistics(start.module, x, N))
    test, removals = images(4, seed=9), [np.array([0]), np.array([7]), np.array([1, 2, 3]), np.array([22])]
    again = schedule.continued(0.5, seed=5)
    found = go_on_without(start, (x, y), test, again, 0.01, removals)
    for place, removal in enumerate([np.array([], int), *removals]):
        module = copy.deepcopy(start.module)
        memory = make_optimiser(module, again, 0.01)
        memory.load_state_dict(copy.deepcopy(start.optimiser.state_dict()))
        for step, rows in enumerate(again.rows(N)):
            kept = np.setdiff1d(rows, removal)
            kept = rows[np.isin(rows, kept)]
            for group in memory.param_groups:
                group["lr"] = again.rate(step)
            memory.zero_grad(set_to_none=False)
            (nn.functional.cross_entropy(module(x[kept]), y[kept], reduction="sum") / 4).backward()
            memory.step()
        expected = losses_of(module, *test)
        np.testing.assert_array_equal(found.control if place == 0 else found.removed[place - 1], expected)
    assert found.images < 5 * again.steps * 4  # less than five full runs
    used = np.concatenate(list(again.rows(N)))
    assert found.unseen == sum(not np.isin(r, used).any() for r in removals)


def test_an_image_that_no_batch_holds_changes_nothing():
    x, y = images()
    schedule = Schedule(1, 4, 0.01)
    start = train(small_module(), x, y, Schedule(2, 4, 0.01), 0.0)
    start = network.replace(start, module=start.module.eval())
    unused = np.setdiff1d(np.arange(N), next(schedule.rows(N)))
    found = go_on_without(start, (x, y), images(3, seed=9), schedule, 0.0, [unused[:1]])
    np.testing.assert_array_equal(found.removed[0], found.control)
    assert found.unseen == 1 and found.images == 4


def test_a_batch_of_which_nothing_is_left_still_decays():
    x, y = images(4)
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES)).double()
    trained = train(module, x, y, Schedule(1, 4, 0.1, "sgd"), 0.5, removed=[0, 1, 2, 3])
    torch.testing.assert_close(trained.module[1].weight, (1 - 0.1 * 0.5) * module[1].weight)
    torch.testing.assert_close(trained.module[1].bias, module[1].bias)


def test_training_descends_j_itself():
    """One step of plain gradient descent on all examples is theta - rate grad J."""
    x, y = images(12)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, CLASSES)).double()
    model = ModuleModel(module, CLASSES)
    j = StreamedObjective(model, Data(x[None], y[None]), 0.3)
    stepped = ModuleModel(train(module, x, y, Schedule(1, 12, 0.1, "sgd"), 0.3).module, CLASSES).theta
    expected = model.theta - 0.1 * j.gradient(model.theta[None], j.uniform(1))[0]
    torch.testing.assert_close(stepped, expected)


def test_from_scratch_without_an_image_is_training_on_the_others():
    x, y = images()
    schedule = Schedule(5, 4, 0.01, seed=2)
    found = from_scratch_without(small_module(), (x, y), images(3, seed=9), schedule, 0.01, [np.array([6])])
    alone = train(small_module(), x, y, schedule, 0.01, removed=[6]).module
    left = np.setdiff1d(np.arange(N), [6])
    expected = losses_of(frozen_statistics(alone, x[left], len(left)), *images(3, seed=9))
    np.testing.assert_array_equal(found.removed[0], expected)
    assert not np.array_equal(found.control, expected)


def test_the_rate_falls_once_and_retraining_goes_on_with_the_last_one():
    schedule = Schedule(30, 4, 0.01, "nesterov", seed=1)
    assert [schedule.rate(s) for s in (0, 19, 20, 29)] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    further = schedule.continued(0.06, seed=4)
    assert (further.steps, further.rate(0), further.rate(1), further.seed) == (2, 0.001, 0.001, 4)
    assert further.optimiser == "nesterov"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch": 0}, "batch"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"optimiser": "lion"}, "optimiser"),
        ({"drop_after": 2.0}, "drop_after"),
        ({"steps": -1}, "steps"),
    ],
)
def test_a_bad_schedule_is_refused(options, named):
    with pytest.raises(InputError, match=f"^{named} = "):
        Schedule(**{"steps": 3, "batch": 2, "learning_rate": 0.1, **options})


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match="batch = 24"):
        next(Schedule(1, 24, 0.1).rows(N))


# -- the whole way, on one network -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared():
    x, y = images(30)
    data, test = Data(x[None], y[None]), Data(*(part[None] for part in images(20, seed=9)))
    return network.prepare(small_module(), CLASSES, data, test, 0.05, 0.1, Schedule(60, 10, 0.02), "batch", 7, "cpu")


@pytest.fixture(scope="module")
def points(prepared):
    losses = prepared.test.losses(prepared.theta[None])[0]
    return choose_test_points(losses, {"max_loss": 2, "p50_loss": 1})


def test_the_certificate_is_of_the_frozen_network(prepared):
    whole = Objective(prepared.model, prepared.train.data, 0.05)
    theta, weights = prepared.theta[None], whole.uniform(1)
    c = prepared.certificate
    assert c["grad_norm"] == pytest.approx(float(whole.gradient(theta, weights).norm()))
    assert c["objective"] == pytest.approx(float(whole.value(theta, weights)))
    top = float(torch.linalg.eigvalsh(whole.matrices(theta, weights, gauss_newton=True)[0])[-1])
    assert 0.9 * top < c["eig_max"] <= top * (1 + 1e-9)
    assert c["status"] == "not_certified" and 0 <= c["test_accuracy"] <= 1


def test_estimates_are_the_dense_ones_on_the_scale_of_leaving_out(prepared, points):
    whole = Objective(prepared.model, prepared.train.data, 0.05)
    theta = prepared.theta
    ggn = whole.matrices(theta[None], whole.uniform(1), gauss_newton=True)[0]
    inverse = torch.linalg.inv(ggn + 0.1 * torch.eye(len(theta)))
    test = Objective(prepared.model, prepared.test.data)
    f = test.example_gradients(theta[None])[0][points.index]
    expected = whole.example_gradients(theta[None])[0] @ inverse @ f.T / whole.n
    found = estimators.estimate_by(prepared, points, "cg_ggn", cg_iterations=200)
    assert found.status == "ok" and found.residual <= estimators.TOLERANCE
    np.testing.assert_allclose(found.changes, expected, atol=0.02 * expected.abs().max())


@pytest.mark.parametrize("name", estimators.ESTIMATORS)
def test_every_estimator_gives_a_number_for_each_image_and_point(prepared, points, name):
    found = estimators.estimate_by(prepared, points, name, lissa_depth=5, lissa_batch=5)
    assert found.changes.shape == (30, 3) and np.isfinite(found.changes).all() and np.isfinite(found.residual)


def test_where_the_wanted_estimator_diverged_another_chooses(prepared, points):
    good = estimators.estimate_by(prepared, points, "identity")
    bad = estimators.Estimated(np.full((30, 3), np.nan), status="solver_diverged")
    assert estimators.selecting({"lissa": bad, "identity": good}, "lissa") == "identity"
    assert estimators.selecting({"identity": good}, "identity") == "identity"
    with pytest.raises(InputError, match="all diverged"):
        estimators.selecting({"lissa": bad}, "lissa")
    with pytest.raises(InputError, match="choose one of lissa"):
        estimators.make_solver(prepared, "exact")


def test_the_warm_truth_is_the_change_against_the_network_itself(prepared, points):
    further = prepared.schedule.continued(0.1, 1)
    chosen = {"random": [truths.choose_at_random(30, 5, 0)] * 3}
    found, spent = truths.warm(prepared, points, further, chosen, repeat=True)
    warm, less = found["loo_warm"], found["loo_warm_minus_control"]
    index = chosen["random"][0]
    assert np.isfinite(warm.changes[index]).all() and np.isnan(np.delete(warm.changes, index, axis=0)).all()
    np.testing.assert_allclose(less.changes[index], warm.changes[index] - warm.control)
    test = prepared.test.data.x[0, points.index], prepared.test.data.y[0, points.index]
    data = prepared.train_images
    alone = go_on_without(prepared.trained, data, test, further, 0.05, [index[:1]])
    np.testing.assert_allclose(warm.changes[index[0]], alone.removed[0] - losses_of(prepared.trained.module, *test))
    assert warm.repeats.shape == (2, 30, 3) and not np.allclose(warm.repeats[0, index], warm.repeats[1, index])
    assert spent.images > 0


def test_groups_and_training_from_scratch_give_rows(prepared, points):
    further = prepared.schedule.continued(0.1, 1)
    estimates = {"identity": estimators.estimate_by(prepared, points, "identity")}
    shared = {"seed": 0, "fit": "trained"}
    scores = estimates["identity"].changes
    rows = truths.group_rows(prepared, points, further, estimates, scores, 4, 3, shared)
    assert {row["train_choice"] for row in rows} == {"random_groups", "same_class_groups", "top_influence_groups"}
    assert len(rows) == 9 and all(row["n_points"] == 4 and row["ground_truth"] == "group" for row in rows)
    rows = truths.scratch_rows(prepared, points, small_module(), further, [0, 1], np.arange(4), estimates, shared)
    kinds = {(row["estimator"], row["ground_truth"]) for row in rows}
    assert kinds == {("identity", "loo_warm"), ("identity", "loo_scratch"), ("loo_warm", "loo_scratch")}
    assert all(row["train_choice"] == "scratch" for row in rows)


def test_longer_truths_are_warm_starts_of_more_steps_on_the_same_images(prepared, points):
    estimates = {"identity": estimators.estimate_by(prepared, points, "identity")}
    indices = [np.array([1, 4, 7, 9])] * 3
    rows = truths.longer_rows(prepared, points, [0.2, 0.5], indices, estimates, {"seed": 0})
    most = points.choice.count("max_loss")
    assert [row["ground_truth"] for row in rows] == ["loo_warm_0.2"] * most + ["loo_warm_0.5"] * most
    assert {row["test_choice"] for row in rows} == {"max_loss"} != set(points.choice)
    further = prepared.schedule.continued(0.5, prepared.seed)
    direct = truths.warm(prepared, points, further, {"top_influence": indices}, repeat=True)[0]["loo_warm"]
    again = truths.rows_of(points, {"top_influence": indices}, estimates, {"loo_warm_0.5": direct}, {})
    again = [row["spearman"] for row in again if row["test_choice"] == "max_loss"]
    assert [row["spearman"] for row in rows[most:]] == again
    assert np.isfinite(rows[most]["ceiling_spearman"])


def test_half_a_batch_of_one_is_refused_before_training():
    x, y = images(6)
    data = Data(x[None], y[None])
    with pytest.raises(InputError, match="batch = 1"):
        network.prepare(small_module(), CLASSES, data, data, 0.0, 0.1, Schedule(5, 1, 0.1), "batch", 7, "cpu")


def test_a_real_architecture_goes_the_whole_way_in_float32():
    x, y = images(20, dtype=torch.float32)
    x = torch.nn.functional.interpolate(x, size=12)
    data = Data(x[None], y[None])
    module = build("resnet18", 1, 12, CLASSES, width_multiplier=0.0625, stem="strided")
    ready = network.prepare(module, CLASSES, data, data, 0.001, 0.1, Schedule(4, 10, 0.001), "batch", 10, "cpu")
    some = choose_test_points(ready.test.losses(ready.theta[None])[0], {"max_loss": 2})
    for name in estimators.ESTIMATORS:
        found = estimators.estimate_by(ready, some, name, lissa_depth=3, cg_iterations=3)
        assert np.isfinite(found.changes).all()
    assert ready.flops_per_image > 0 and ready.trained.images == 40
