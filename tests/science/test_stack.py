"""Minibatch training of stacks against torch.optim, and its unrolled derivative against differences of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import Regression, leave_one_out
from torch.nn.functional import cross_entropy

from fragile_lib.choices import Points
from fragile_lib.data.sets import Data
from fragile_lib.estimates import influence
from fragile_lib.estimates.source import source
from fragile_lib.minimise.schedule import TENTH_AFTER_TWO_THIRDS, Schedule
from fragile_lib.minimise.stack import train, train_beside
from fragile_lib.minimise.unrolled import State, unrolled
from fragile_lib.models.mlp import MLP
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.conv import ConvObjective
from fragile_lib.objectives.fused import FusedObjective
from fragile_lib.solvers.dense import ExactSolver
from fragile_lib.tools.errors import InputError

# -- training --------------------------------------------------------------------------------------------------------


MODEL, DECAY, N = SmallCNN(2, 3, 21), 0.03, 22
DROPS = ((0.3, 0.1), (0.6, 0.01))


def problem(kind=torch.float64, objective=ConvObjective):
    """An objective, a stack of a control and two left-out members from one start, and their weights."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(1, N, 1, 21, 21, generator=draw, dtype=torch.float64).to(kind)
    y = torch.randint(0, 3, (1, N), generator=draw)
    theta = MODEL.init(0).expand(3, -1).contiguous()
    weights = torch.full((3, N), 1 / N, dtype=torch.float64)
    weights[1:] += leave_one_out(torch.tensor([4, 7]), N)
    return objective(MODEL, Data(x, y), DECAY), theta, weights


def by_torch(objective, theta, weights, schedule, make):
    """One network by torch.optim and autograd, as anyone would write it, on the same batches."""
    network = MODEL.module(theta.to(objective.data.x.dtype))
    optimiser = make(
        [
            {"params": [p for p in network.parameters() if p.dim() > 1], "weight_decay": DECAY},
            {"params": [p for p in network.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ]
    )
    order = schedule.rows(N)
    present = (weights > 0).to(objective.data.x.dtype)
    for step in range(schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        rows = next(order)
        optimiser.zero_grad()
        lost = cross_entropy(network(objective.data.x[0, rows]), objective.data.y[0, rows], reduction="none")
        ((present[rows] * lost).sum() / schedule.batch).backward()
        optimiser.step()
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach()


NAMES = ["rmsprop", "adam", "sgd", "momentum", "nesterov"]
OPTIMISERS = [
    ({"optimiser": "rmsprop", "learning_rate": 1e-2}, torch.optim.RMSprop),
    ({"optimiser": "adam", "learning_rate": 1e-2}, torch.optim.Adam),
    ({"optimiser": "sgd", "learning_rate": 0.1}, torch.optim.SGD),
    ({"optimiser": "sgd", "learning_rate": 0.1, "momentum": 0.9}, lambda g: torch.optim.SGD(g, momentum=0.9)),
    (
        {"optimiser": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
        lambda g: torch.optim.SGD(g, momentum=0.9, nesterov=True),
    ),
]


@pytest.mark.parametrize(("settings", "make"), OPTIMISERS, ids=NAMES)
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["64", "32"])
def test_every_member_of_a_stack_is_what_torch_optim_makes_of_it_alone(settings, make, kind, tolerance):
    objective, theta, weights = problem(kind)
    schedule = Schedule(steps=20, batch=10, drops=DROPS, seed=3, **settings)
    found = train(objective, theta, weights, schedule).theta
    assert found.dtype == kind
    moved = (found - theta.to(kind)).abs().max().item()
    for e in range(3):
        expected = by_torch(objective, theta[e], weights[e], schedule, make)
        torch.testing.assert_close(found[e], expected, rtol=tolerance, atol=tolerance * max(1.0, moved))
    assert moved > 0.01
    assert (found[1] - found[0]).abs().max() > 1e-4  # the left-out example was in some batch


@pytest.mark.parametrize("objective", [ConvObjective, Objective])
@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_members_that_wait_beside_the_control_end_where_they_would_have_ended_alone(objective, optimiser):
    train_objective, theta, _ = problem(torch.float32, objective)
    weights = torch.full((8, N), 1 / N, dtype=torch.float64)
    weights[1:] += leave_one_out(torch.tensor([4, 7, 0, 21, 13, 2, 9]), N)
    for steps in (0, 1, 2, 7):  # of five batches an epoch: after one or two steps some images have not been seen
        schedule = Schedule(steps=steps, batch=4, learning_rate=1e-2, optimiser=optimiser, momentum=0.0, seed=5)
        expected = train(train_objective, theta[:1].expand(8, -1), weights, schedule).theta
        found = train_beside(train_objective, theta[0], [np.array([i]) for i in (4, 7, 0, 21, 13, 2, 9)], schedule)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        apart = (found[1:] != found[0]).any(dim=1)
        assert not apart.all() if steps < 5 else apart.sum() >= 5  # an image is left over in an epoch, or two


def test_a_member_does_not_depend_on_its_stack_and_the_start_is_left_alone():
    objective, theta, weights = problem(torch.float32)
    kept, schedule = theta.clone(), Schedule(15, 10, 1e-2)
    stack = train(objective, theta, weights, schedule).theta
    assert torch.equal(theta, kept)
    for e in range(3):
        assert torch.equal(train(objective, theta[e : e + 1], weights[e : e + 1], schedule).theta[0], stack[e])


def test_checkpoints_are_the_networks_on_the_way_with_the_rates_that_leave_them():
    objective, theta, weights = problem()
    schedule = Schedule(10, 10, 1e-2, DROPS)
    found = train(objective, theta, weights, schedule, checkpoints=(0, 4, 10))
    assert torch.equal(found.checkpoints[0], theta)
    assert torch.equal(found.checkpoints[2], found.theta)
    flat = Schedule(4, 10, 1e-2, ((0.75, 0.1),))  # the same first four steps
    assert torch.equal(found.checkpoints[1], train(objective, theta, weights, flat).theta)
    assert found.rates.tolist() == pytest.approx([1e-2, 1e-3, 1e-4], rel=1e-12)
    assert train(objective, theta, weights, schedule).checkpoints.shape == (0, 3, MODEL.n_params)


def test_the_rate_drops_where_koh_and_liang_drop_it():
    schedule = Schedule(500_000)
    steps = [0, 109_999, 110_000, 219_999, 220_000, 499_999]
    assert [schedule.rate(step) for step in steps] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6], rel=1e-12)


def test_batches_run_through_every_example_once_an_epoch_in_a_new_order_by_the_seed():
    drawn = Schedule(12, 5, seed=1).rows(22)
    epochs = [np.concatenate([next(drawn) for _ in range(4)]) for _ in range(3)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 20
    assert not np.array_equal(epochs[0], epochs[1])
    again, other = Schedule(1, 5, seed=1).rows(22), Schedule(1, 5, seed=2).rows(22)
    assert np.array_equal(epochs[0][:5], next(again))
    assert not np.array_equal(epochs[0][:5], next(other))


def test_a_diverged_member_leaves_the_others_alone():
    objective, theta, weights = problem()
    schedule = Schedule(6, 10, 1e-2)
    clean = train(objective, theta, weights, schedule).theta
    theta[1, 0] = torch.nan
    found = train(objective, theta, weights, schedule).theta
    assert torch.isnan(found[1]).any()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


def test_a_batch_beyond_the_data_and_wild_checkpoints_are_refused():
    objective, theta, weights = problem()
    with pytest.raises(InputError, match="^batch = "):
        train(objective, theta, weights, Schedule(1, N + 1))
    for checkpoints in ((3, 2), (0, 0), (-1,), (6,)):
        with pytest.raises(InputError, match="^checkpoints = "):
            train(objective, theta, weights, Schedule(5, 10), checkpoints=checkpoints)


def test_going_on_keeps_the_last_rate_and_names_stand_for_options():
    schedule = Schedule.named("nesterov", steps=30, batch=4, learning_rate=0.01, drops=TENTH_AFTER_TWO_THIRDS, seed=1)
    assert [schedule.rate(s) for s in (0, 19, 20, 29)] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    assert (schedule.optimiser, schedule.momentum, schedule.nesterov) == ("sgd", 0.9, True)
    further = schedule.continued(schedule.share(0.06), seed=4)
    assert (further.steps, further.rate(0), further.rate(1), further.seed) == (2, pytest.approx(0.001), 0.001, 4)
    assert further.nesterov and schedule.share(1e-9) == 1
    with pytest.raises(InputError, match="^retrain_fraction = "):
        schedule.share(0.0)


def test_the_first_use_of_a_removal_is_the_first_batch_that_holds_a_member():
    schedule = Schedule(4, 5, seed=1)
    batches = list(schedule.rows(22))
    never = np.setdiff1d(np.arange(22), np.concatenate(batches))
    members = [batches[2][:1], np.array([batches[3][0], batches[1][1]]), batches[0], never[:1]]
    assert schedule.first_use(22, members).tolist() == [2, 1, 0, 4]


# -- the unrolled derivative -----------------------------------------------------------------------------------------


def ends_of(test):
    """Gradients (E, m, P) of all losses of `test`."""

    def ends(theta):
        return test.example_gradients(theta, torch.zeros(len(theta), dtype=torch.long))

    return ends


@pytest.mark.parametrize("settings", [settings for settings, _ in OPTIMISERS], ids=NAMES)
def test_it_is_the_limit_of_differences_of_whole_trainings(settings):
    objective, theta, _ = problem(objective=Objective)
    test = objective.on(Data(objective.data.x[:, :3] * 0.9, objective.data.y[:, :3]))
    schedule = Schedule(steps=9, batch=8, drops=DROPS, seed=5, **settings)
    end, slopes = unrolled(objective, State.at(theta[:1]), schedule, ends_of(test))
    assert torch.equal(end, train(objective, theta[:1], objective.uniform(1), schedule).theta)
    direction = torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / N
    errors = []
    for step in (1e-2, 1e-3, 1e-4):
        weights = objective.uniform(2) + step * torch.stack([direction, -direction])
        above, below = test.losses(train(objective, theta[:2], weights, schedule).theta, torch.tensor([0, 0]))
        errors.append(float(((above - below) / (2 * step) - slopes[0] @ direction).abs().max()))
    scale = float((slopes[0] @ direction).abs().max())
    assert errors[1] < errors[0] / 30 and errors[-1] < 1e-6 * scale, "central differences are off by the step's square"


def test_for_a_quadratic_it_is_the_geometric_sum_of_contractions():
    case, rate, steps = Regression(), 0.1, 37
    schedule = Schedule(steps, case.n, rate, drops=(), optimiser="sgd")
    theta = case.fitted()[None]
    _, slopes = unrolled(case.train, State.at(theta), schedule, ends_of(case.test))
    hessian = case.hessian()
    reached = np.eye(len(hessian)) - np.linalg.matrix_power(np.eye(len(hessian)) - rate * hessian, steps)
    influence = -case.test.example_gradients(theta)[0].numpy() @ reached @ np.linalg.inv(hessian)
    expected = influence @ case.train.example_gradients(theta)[0].numpy().T
    assert np.allclose(slopes[0].numpy(), expected, rtol=1e-10, atol=1e-12)


def test_after_long_descent_from_a_minimum_it_is_the_influence_function():
    case = Regression()
    schedule = Schedule(200, case.n, 0.2, drops=(), optimiser="sgd", momentum=0.5)
    _, slopes = unrolled(case.train, State.at(case.fitted()[None]), schedule, ends_of(case.test))
    gradients = case.train.example_gradients(case.fitted()[None])[0].numpy()
    estimate = case.test.example_gradients(case.fitted()[None])[0].numpy() @ np.linalg.solve(
        case.hessian(), gradients.T
    )
    assert np.allclose(-slopes[0].numpy(), estimate, rtol=1e-8)


def test_a_stack_with_its_data_sets_is_its_members_one_by_one():
    draw = torch.Generator().manual_seed(2)
    x, y = torch.randn(2, 15, 4, generator=draw, dtype=torch.float64), torch.randint(0, 3, (2, 15), generator=draw)
    model = MLP(2, 3, "tanh")
    theta = torch.stack([model.init(0), model.init(1)])
    schedule = Schedule(11, 15, 0.1, drops=(), optimiser="sgd", momentum=0.9)
    both = unrolled(FusedObjective(model, Data(x, y), 0.01), State.at(theta), schedule, _first_two(model, x, y))[1]
    for s in (0, 1):
        own = Objective(model, Data(x[s : s + 1], y[s : s + 1]), 0.01)
        alone = unrolled(own, State.at(theta[s : s + 1]), schedule, _first_two(model, x[s:], y[s:]))[1]
        assert torch.allclose(both[s], alone[0], rtol=1e-9, atol=1e-12)


def _first_two(model, x, y):
    """Gradients of each network's losses on the first two examples of its own data."""
    return lambda theta: Objective(model, Data(x[: len(theta), :2], y[: len(theta), :2])).example_gradients(theta)


def test_it_goes_on_with_the_memory_of_an_optimiser():
    objective, theta, _ = problem(objective=Objective)
    whole = Schedule(steps=6, batch=N, learning_rate=1e-2, drops=())
    ends = ends_of(objective.on(objective.data))
    end, slopes = unrolled(objective, State.at(theta[:1]), whole, ends)
    first, memory = Schedule(steps=4, batch=N, learning_rate=1e-2, drops=()), None
    walked = []

    def remember(theta):
        walked.append(theta)
        return ends(theta)

    unrolled(objective, State.at(theta[:1]), first, remember)
    memory = _adam(objective, theta[:1], 4, 1e-2)
    rest_end, rest = unrolled(objective, memory, Schedule(steps=2, batch=N, learning_rate=1e-2, drops=()), ends)
    assert torch.allclose(memory.theta, walked[0], rtol=1e-12)
    assert torch.allclose(rest_end, end, rtol=1e-10)
    assert not torch.allclose(rest, slopes), "what the first steps did to theta is not in the second part"


def _adam(objective, theta, steps, rate):
    """Adam by its equations (Kingma and Ba 2015, algorithm 1), with its memory."""
    first = second = torch.zeros_like(theta)
    for t in range(1, steps + 1):
        gradient = objective.gradient(theta, objective.uniform(1))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        theta = theta - rate * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    return State(theta, first, second, steps)


def test_an_example_that_no_batch_holds_has_no_part_in_it():
    objective, theta, _ = problem(objective=Objective)
    schedule = Schedule(steps=1, batch=5, drops=(), seed=4)
    _, slopes = unrolled(objective, State.at(theta[:1]), schedule, ends_of(objective.on(objective.data)))
    unseen = schedule.first_use(N, [np.array([i]) for i in range(N)]) == 1
    assert unseen.sum() == N - 5 and not slopes[0][:, unseen].any() and slopes[0][:, ~unseen].any(dim=0).all()
    assert MODEL.n_params == theta.shape[1]


def test_source_is_the_unrolled_derivative_where_curvature_stays_and_the_influence_function_in_the_end():
    case = Regression(weight_decay=0.0)  # gradients without an L2 term, as SOURCE takes them
    network, points = case.network(), Points(np.arange(case.m), ["random"] * case.m)
    schedule = Schedule(250, case.n, 1e-3, drops=(), optimiser="sgd")
    _, slopes = unrolled(case.train, State.at(case.fitted()[None]), schedule, ends_of(case.test))
    for gauss_newton in (True, False):  # the same matrix here
        after = source(network, points, time=0.25, gauss_newton=gauss_newton).changes
        np.testing.assert_allclose(after, -slopes[0].T.numpy() / case.n, rtol=2e-3, atol=1e-6)
    forever = source(network, points, time=1e9).changes
    exact = influence(network, points, ExactSolver(case.train, case.fitted(), 0.0)).changes
    np.testing.assert_allclose(forever, exact, rtol=1e-8)
    for time in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(InputError, match="time"):
            source(network, points, time=time)
