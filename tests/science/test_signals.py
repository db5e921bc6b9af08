"""What is known before anything is left out, against the closed forms of a ridge regression; and its lights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import Regression
from scipy.stats import spearmanr
from test_modules import images, planned, small_module

from fragile_lib.agreement import beside_reliability, retrainings_for
from fragile_lib.choices import Chosen, Points, Removals, Truth, choose
from fragile_lib.data.sets import Data
from fragile_lib.estimates import estimate
from fragile_lib.minimise.modules import ModuleTrainer, copied, one_step, train
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.minimise.stack import StackTrainer
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives.base import Objective
from fragile_lib.own import trust
from fragile_lib.own.fitted import read_rules
from fragile_lib.own.signals import FACTOR, FOLLOWED, STEP, metasmoothness, signals, traces
from fragile_lib.own.trust import LIGHTS
from fragile_lib.tools.errors import InputError

# -- signals ---------------------------------------------------------------------------------------------------------


DAMPING, LEFT = 0.2, (1, 3, 4, 8, 9, 15, 20, 21)


@pytest.fixture(scope="module")
def ridge() -> Regression:
    return Regression()


def told(ridge, truths=None, **changed):
    """The rows of `exact` and `cg_ggn`, two test points and one choice of removals."""
    network = replace(ridge.network(DAMPING), certificate={"grad_norm": 0.5, "grad_norm_start": 2.0, "eig_min": 0.1})
    points = Points(np.array([2, 5]), ["max_loss", "p50_loss"])
    removals = Removals.single(LEFT, ridge.n)
    chosen = Chosen({"top_influence": [removals] * 2, "random": [removals] * 2})
    names, options = ["exact", "cg_ggn"], {"cg_ggn": {"tolerance": 0.5, "max_iterations": 1}}
    estimates = estimate([network], [points], names, options=options)
    given = {"names": names, "options": options, **changed}
    return signals([network], [points], [chosen], estimates, [truths or {}], **given)


def expected(ridge, point: int, damping: float) -> np.ndarray:
    """g^T (H + damping)^-1 grad loss_i / n of the removals, by the normal equations."""
    theta = ridge.optimum()
    slopes = (ridge.design @ theta - ridge.y)[:, None] * ridge.design
    slope = (ridge.design_test[point] @ theta - ridge.y_test[point]) * ridge.design_test[point]
    solved = np.linalg.solve(ridge.hessian() + damping * np.eye(4), slopes[list(LEFT)].T)
    return slope @ solved / ridge.n


def test_estimates_at_other_dampings_and_their_order(ridge):
    row = told(ridge)[0]
    kept, tight = row["pairs"], {"rtol": 1e-9}
    now, more, less = (expected(ridge, 2, f * DAMPING) for f in (1, FACTOR, 1 / FACTOR))
    np.testing.assert_allclose(kept["estimate"], now, **tight)
    np.testing.assert_allclose(kept["more"], more, **tight)
    np.testing.assert_allclose(kept["less"], less, **tight)
    assert kept["index"].tolist() == list(LEFT)
    assert row["damping_rank"] == pytest.approx(min(spearmanr(now, other)[0] for other in (more, less)))
    assert row["damping_ratio"] == pytest.approx(np.median(abs(more)) / np.median(abs(less)))
    assert row["estimate_spread"] == pytest.approx(now.std())


def test_estimators_are_compared_with_one_another(ridge):
    rows = [row for row in told(ridge) if row["test_point"] == 2 and row["train_choice"] == "top_influence"]
    exact, rough = (row["pairs"]["estimate"] for row in rows)
    assert [row["estimator"] for row in rows] == ["exact", "cg_ggn"]
    assert rows[0]["agreement"] == rows[1]["agreement"] == pytest.approx(spearmanr(exact, rough)[0])
    assert not np.allclose(exact, rough) and rows[1]["status"] == "ok" and 0.1 < rows[1]["residual"] <= 0.5
    alone = told(ridge, names=["exact"])
    assert np.isnan([row["agreement"] for row in alone]).all()


def test_the_move_is_followed_as_far_as_quadratics_bend(ridge):
    row = told(ridge)[0]
    theta, hessian = ridge.optimum(), ridge.hessian()
    errors, now = ridge.design @ theta - ridge.y, expected(ridge, 2, DAMPING)
    bent, remains = [], []
    for i in np.array(LEFT)[np.argsort(-abs(now))[:FOLLOWED]]:
        pull = -errors[i] * ridge.design[i] / ridge.n
        move = -np.linalg.solve(hessian + DAMPING * np.eye(4), pull)
        across = ridge.design_test[2] @ move
        slope = (ridge.design_test[2] @ theta - ridge.y_test[2]) * across
        bent.append(across**2 / 2 / abs(slope))
        left = hessian - np.outer(ridge.design[i], ridge.design[i]) / ridge.n
        remains.append(np.linalg.norm(left @ move + pull) / np.linalg.norm(pull))
    assert row["test_curvature"] == pytest.approx(np.median(bent), rel=1e-6)
    assert row["left_out_gradient"] == pytest.approx(np.median(remains), rel=1e-6)
    others = [row for row in told(ridge) if row["train_choice"] == "random"]
    assert np.isnan([row["test_curvature"] for row in others]).all()


def test_what_is_said_of_the_network(ridge):
    row = told(ridge)[0]
    size = (ridge.design**2).sum(axis=1)
    np.testing.assert_allclose(traces(ridge.network(), np.array(LEFT)), size[list(LEFT)])
    np.testing.assert_allclose(row["pairs"]["trace"], size[list(LEFT)] / size.mean())
    assert row["trace_share"] == pytest.approx(size.max() / size.sum())
    assert row["gradient_share"] == 0.25 and row["eig_share"] == pytest.approx(0.1 / DAMPING)
    assert np.isnan(row["metasmoothness"])


def test_controls_alone_are_taken_of_a_truth(ridge):
    removals, controls = Removals.single(LEFT, ridge.n), np.array([[1.0, 5.0], [3.0, 5.5], [2.0, 9.0]])
    unreadable = np.full((3, len(LEFT), 2), np.nan)  # repetitions of removals are not looked at
    once = Truth(removals, unreadable[0], repeat_controls=controls[:1])
    truth = Truth(removals, unreadable[0], repeats=unreadable, repeat_controls=controls)
    row = told(ridge, {"one": once, "three": truth})[0]
    assert row["control_spread"] == 1.0
    assert row["signal"] == pytest.approx(np.median(abs(expected(ridge, 2, DAMPING))))
    assert np.isnan(told(ridge)[0]["signal"])


@pytest.mark.parametrize("steps", [1, 40])
def test_metasmoothness_of_descent(ridge, steps):
    network = ridge.network()
    further = {"steps": steps, "learning_rate": 0.1, "momentum": 0.5}
    signs = np.random.default_rng([0, 31]).choice([-1.0, 1.0], ridge.n)
    ends = []
    for k in range(3):
        w, theta, velocity = (1 + k * STEP * signs) / ridge.n, ridge.optimum(), np.zeros(4)
        for _ in range(steps):
            gradient = (ridge.design.T * w) @ (ridge.design @ theta - ridge.y) + ridge.penalty @ theta
            velocity = 0.5 * velocity + gradient
            theta = theta - 0.1 * velocity
        ends.append(theta)
    one, two = np.diff(ends, axis=0)
    found = metasmoothness(network, further)
    assert found == pytest.approx((abs(one) * np.sign(one) * np.sign(two)).sum() / abs(one).sum(), abs=1e-9)
    assert found > 0.9  # a quadratic answers evenly


def test_metasmoothness_of_training_that_turns_back(ridge):
    class Turning:
        def under(self, schedule, weights):
            assert schedule.steps == 3 and weights.shape == (3, ridge.n)
            return torch.tensor([[0.0, 0.0], [3.0, 1.0], [2.0, 2.0]])

    network = replace(ridge.network(), trainer=Turning())
    assert metasmoothness(network, {"schedule": Schedule(3, 5)}) == pytest.approx((-3 + 1) / 4)


def test_a_name_without_a_solver_is_refused(ridge):
    with pytest.raises(InputError, match="signals = 'source'"):
        told(ridge, names=["source"])


def test_a_module_under_weights_of_zero_is_one_without_the_examples():
    x, y = images()
    start = train(small_module().eval(), x, y, planned(3, 4), 0.01)  # batch statistics would feel examples of no weight
    trainer, schedule = ModuleTrainer(start, (x, y), 0.01, small_module()), planned(6, 8)
    weights = torch.full((2, len(x)), 1 / len(x), dtype=torch.float64)
    weights[1, [2, 7]] = 0
    found = trainer.under(schedule, weights)
    for theta, removed in zip(found, ((), (2, 7)), strict=True):
        module, optimiser = copied(start.module, start.optimiser, schedule, 0.01)
        for step, rows in enumerate(schedule.rows(len(x))):
            one_step(module, optimiser, x, y, rows, schedule, step, removed)
        torch.testing.assert_close(theta, torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert not torch.allclose(*found)


def test_a_stack_under_weights_starts_from_the_network():
    model, draw = SmallCNN(2, 3, 21), torch.Generator().manual_seed(0)
    data = Data(torch.rand(1, 8, 1, 21, 21, generator=draw).double(), torch.arange(8)[None] % 3)
    objective, theta = Objective(model, data, 0.03), model.init(0)
    trainer, schedule = StackTrainer(objective, theta), Schedule(3, 4, 0.01)
    weights = torch.full((2, 8), 1 / 8, dtype=torch.float64)
    weights[1, 5] = 0
    whole, without = trainer.under(schedule, weights)
    left = trainer.go_on(schedule, [np.array([5])], objective.on(data))
    torch.testing.assert_close(objective.losses(whole[None])[0].double(), torch.tensor(left.control).double())
    torch.testing.assert_close(objective.losses(without[None])[0].double(), torch.tensor(left.removed[0]).double())


def test_another_damping_keeps_the_matrix(ridge):
    network = ridge.network(DAMPING)
    held = network.hessian
    other = network.with_damping(0.7)
    assert other.hessian.vectors is held.vectors and other.hessian.damping == other.damping == 0.7
    assert network.hessian.damping == DAMPING and "gauss_newton" not in other.__dict__


# -- lights ----------------------------------------------------------------------------------------------------------


def lit(damping: float, names=("exact", "identity"), **certificate) -> tuple:
    network = replace(
        Regression(n=60).network(damping), certificate={"grad_norm": 1e-9, "grad_norm_start": 1.0} | certificate
    )
    points = Points(np.array([2, 4]), ["max_loss", "p50_loss"])
    return network, points, estimate([network], [points], names)[0]


def lights(damping: float, **certificate) -> dict:
    table = trust(*lit(damping, **certificate), count=10)
    return {(row.estimator, row.signal): row for row in table.itertuples()}


def test_lights_of_a_minimum_and_of_a_solver_that_solves_nothing():
    found = lights(1e-4)
    of_exact = {
        signal: row.light for (name, signal), row in found.items() if name == "exact" and signal != "believable"
    }
    assert of_exact.pop("trace_share") in ("green", "amber") and of_exact.pop("agreement")
    assert set(of_exact.values()) == {"green"} and {"residual", "left_out_gradient", "damping_rank"} <= set(of_exact)
    assert found["exact", "residual"].why == found["exact", "residual"].remedy == ""
    rough = found["identity", "residual"]
    assert rough.light == "amber" and "not solved its equation" in rough.why and "direct solver" in rough.remedy
    assert "a damping of 0.0003 (now 0.0001)" in rough.remedy


def test_where_estimators_disagree_the_one_of_least_residual_is_named():
    network, points, by = lit(0.3)
    table = trust(network, points, by | {"identity": replace(by["identity"], changes=-by["identity"].changes)}, 10)
    remedies = table[table["signal"] == "agreement"]["remedy"].tolist()
    assert remedies == ["exact, whose residual is the least"] * 2


def test_lights_of_heavy_damping_and_of_training_cut_short():
    found = lights(50.0, grad_norm=0.5, eig_min=-80.0)
    red = {signal for (name, signal), row in found.items() if name == "exact" and row.light == "red"}
    assert {"gradient_share", "eig_share"} <= red
    move = found["exact", "left_out_gradient"]
    assert move.light == "amber" and move.value > 0.9 and "does not lead to the optimum" in move.why
    assert move.remedy == "a damping of 17 (now 50), or an exact solver"
    assert "a damping above 80 (now 50)" in found["exact", "eig_share"].remedy


def test_the_derivative_of_going_on_tells_what_to_believe_and_how_often_to_retrain():
    network, points, estimates = lit(0.3)
    everyone = Removals.single(range(60), 60)
    true = estimates["exact"].changes
    noise = 0.5 * true.std() * np.random.default_rng(0).standard_normal((2, *true.shape))
    derived = Truth(everyone, true, np.zeros(2), repeats=true + noise, averaged=True)
    without, found = trust(*lit(0.3), count=10), trust(network, points, estimates, 10, derived)
    of = found.set_index(["estimator", "signal"])["value"]
    assert of["exact", "unrolled"] == 1 and of["identity", "unrolled"] < 1
    assert of["exact", "believable"] > 0.8 and of["exact", "believable"] > of["identity", "believable"]
    chosen = choose(true[:, :1], {"top_influence": 10}).all()
    single = beside_reliability(derived.on(chosen)[:, 0], derived.repeats_on(chosen, 0))["reliability_single"]
    assert of["exact", "retrainings"] == retrainings_for(0.8, single) > 1
    remedy = found.set_index(["estimator", "signal"])["remedy"]["exact", "retrainings"]
    assert remedy.startswith(f"the mean of {retrainings_for(0.8, single):.0f} retrainings;")
    assert {"unrolled", "retrainings"} & set(without["signal"]) == set()
    assert without.set_index(["estimator", "signal"])["why"]["exact", "believable"] == str(read_rules()["before"])
    loss = float(network.test_losses()[points.index[0]])
    huge = trust(network, points, estimates, 10, replace(derived, changes=1e3 * loss * np.sign(true)))
    told = huge.set_index(["estimator", "signal"])
    assert told["light"]["exact", "derivative_size"] == "red" and "unrolled" not in set(huge["signal"])
    assert told["value"]["exact", "derivative_size"] == pytest.approx(1e3)
    assert told["why"]["exact", "believable"] == str(read_rules()["before"])


def test_values_are_those_of_the_signals():
    network, points, estimates = lit(0.3)
    chosen = choose(estimates["exact"].changes[:, :1], {"top_influence": 10})
    first = Points(points.index[:1], ["max_loss"])
    (row, _) = signals([network], [first], [chosen], [estimates], [{}], ["exact", "identity"])
    found = trust(network, points, estimates, count=10)
    for one in found[(found.estimator == "exact") & (found.signal != "believable")].itertuples():
        assert one.value == row[one.signal]


@pytest.mark.parametrize(("name", "value", "light"), [
    ("residual", 0.05, "green"), ("residual", 0.5, "amber"), ("residual", 1.0, "red"), ("residual", np.nan, "unknown"),
    ("damping_rank", 0.96, "green"), ("damping_rank", 0.9, "amber"), ("damping_rank", 0.8, "red"),
])  # fmt: skip
def test_bounds(name, value, light):
    assert LIGHTS[name].of(value) == light


def test_an_estimator_without_a_solver_is_refused():
    network, points, estimates = lit(0.3)
    with pytest.raises(InputError, match="signals = 'mine'"):
        trust(network, points, {"mine": estimates["exact"]}, count=10)
