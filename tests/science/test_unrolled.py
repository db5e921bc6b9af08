"""The unrolled derivative against differences of whole trainings, a closed form, other batches."""

import numpy as np
import pytest
import torch
from helpers import Regression
from test_stack import DROPS, MODEL, OPTIMISERS, N, problem

from fragile_lib.choices import Points
from fragile_lib.data.sets import Data
from fragile_lib.estimates import influence
from fragile_lib.estimates.source import source
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.minimise.stack import train
from fragile_lib.minimise.unrolled import State, unrolled
from fragile_lib.models.mlp import MLP
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.fused import FusedObjective
from fragile_lib.solvers.dense import ExactSolver
from fragile_lib.tools.errors import InputError

NAMES = ["rmsprop", "adam", "sgd", "momentum", "nesterov"]


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
    schedule = Schedule(4000, case.n, 0.2, drops=(), optimiser="sgd", momentum=0.5)
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
    schedule = Schedule(3000, case.n, 1e-3, drops=(), optimiser="sgd")
    _, slopes = unrolled(case.train, State.at(case.fitted()[None]), schedule, ends_of(case.test))
    for gauss_newton in (True, False):  # the same matrix here
        after = source(network, points, time=3.0, gauss_newton=gauss_newton).changes
        np.testing.assert_allclose(after, -slopes[0].T.numpy() / case.n, rtol=2e-3, atol=1e-6)
    forever = source(network, points, time=1e9).changes
    exact = influence(network, points, ExactSolver(case.train, case.fitted(), 0.0)).changes
    np.testing.assert_allclose(forever, exact, rtol=1e-8)
    for time in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(InputError, match="time"):
            source(network, points, time=time)
