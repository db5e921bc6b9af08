"""Gradient products, TracIn and TRAK: sign and scale against descent itself, dense formulas, one exact relation."""

import numpy as np
import pytest
import torch
from helpers import Linear, influence_along, leave_one_out, linear_problem, mlp_problem, right_hand_sides, shuffled

from fragile_lib.data.sets import Data
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.conv import ConvObjective
from fragile_lib.solvers import IdentitySolver, tracin, trak
from fragile_lib.solvers.firstorder import margin_features
from fragile_lib.tools.errors import InputError


@pytest.fixture(scope="module")
def linear():
    """Softmax regression on Iris: (train, test, theta), at its optimum."""
    return linear_problem()[:3]


@pytest.fixture(scope="module")
def network():
    """(train, test, theta) of a perceptron that is at no optimum."""
    train, theta, _ = mlp_problem()
    return train, train.on(mlp_problem(n=6, seed=3)[0].data), theta


def everyone(objective):
    return leave_one_out(torch.arange(objective.n), objective.n), torch.arange(objective.n)


# -- gradient product ------------------------------------------------------------------------------------------------


def test_the_gradient_product_has_the_sign_and_scale_of_one_gradient_step_without_the_example(linear):
    train, test, theta = linear
    d, points = leave_one_out(torch.arange(train.n), train.n), torch.arange(test.n)
    found = influence_along(train, test, theta, d, points, IdentitySolver(train, theta))
    size, weights = 1e-5, train.uniform(train.n) + d
    stack = theta.expand(train.n, -1)
    whole = theta - size * train.gradient(theta[None], train.uniform(1))[0]
    without = stack - size * train.gradient(stack, weights)
    steps = (test.losses(without) - test.losses(whole[None])) / size
    torch.testing.assert_close(found, steps, rtol=1e-3, atol=1e-6)


# -- TracIn ----------------------------------------------------------------------------------------------------------


def descent(objective, weights, rate, steps, start):
    """All networks (steps, E, P) at which a step was taken, and where the last one led (E, P)."""
    theta, seen = start.expand(len(weights), -1), []
    for _ in range(steps):
        seen.append(theta)
        theta = theta - rate * objective.gradient(theta, weights)
    return torch.stack(seen), theta


def test_tracin_has_slope_one_against_leaving_out_from_the_start_in_a_short_run(linear):
    train, test, _ = linear
    d, points = leave_one_out(torch.arange(train.n), train.n), torch.arange(test.n)
    start, rate, steps, errors = 0.3 * right_hand_sides(1, 15)[0], 1e-3, 20, []
    for shrink in (1.0, 0.1):
        path, end = descent(train, train.uniform(1), shrink * rate, steps, start)
        without = descent(train, train.uniform(train.n) + d, shrink * rate, steps, start)[1]
        truth = test.losses(without) - test.losses(end)
        found = tracin(train, test, path[:, 0], torch.full((steps,), shrink * rate), d, points)
        assert found.shape == (train.n, test.n)
        assert np.polyfit(found.ravel(), truth.ravel(), 1)[0] == pytest.approx(1, abs=0.02)
        errors.append(((found - truth).norm() / truth.norm()).item())
    assert errors[1] < 0.002
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)  # to first order in the length of the run


def test_tracin_is_the_sum_over_checkpoints_of_gradient_products(network):
    train, test, theta = network
    checkpoints, sizes = torch.stack([theta, 0.5 * theta, theta - 0.1]), torch.tensor([0.3, 0.0, 2.0])
    d, points = right_hand_sides(4, train.n), torch.tensor([5, 2])
    expected = torch.zeros(4, 2).double()
    for checkpoint, size in zip(checkpoints, sizes, strict=True):
        g, g_test = train.example_gradients(checkpoint[None])[0], test.example_gradients(checkpoint[None])[0]
        expected -= size * d @ g @ g_test[points].T
    torch.testing.assert_close(tracin(train, test, checkpoints, sizes, d, points), expected, rtol=1e-6, atol=1e-8)


# -- TRAK ------------------------------------------------------------------------------------------------------------


def trak_by_hand(train, test, checkpoints, points, damping=0.0):
    """(n, m) by the formula, without projection and with autograd on one example at a time."""
    products, doubts, test_doubts = [], [], []

    def features(data, theta):
        rows, doubt = [], []
        for x, y in zip(data.x[0], data.y[0], strict=True):
            t = theta.clone().requires_grad_()
            p = train.model(t, x[None])[0].softmax(0)[y]
            (p.log() - (1 - p).log()).backward()
            rows.append(t.grad), doubt.append(1 - p.item())
        return torch.stack(rows), torch.tensor(doubt, dtype=torch.float64)

    for theta in checkpoints:
        phi, doubt = features(train.data, theta)
        phi_test, test_doubt = features(test.data, theta)
        kernel = phi.T @ phi + train.n * damping * torch.eye(len(theta)).double()
        products.append(phi @ torch.linalg.solve(kernel, phi_test[points].T))
        doubts.append(doubt), test_doubts.append(test_doubt[points])
    mean = [torch.stack(part).mean(0) for part in (products, doubts, test_doubts)]
    return mean[0] * mean[1][:, None] * mean[2]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("damping", [1e-4, 0.1])
def test_trak_without_projection_is_its_formula(network, count, damping):
    train, test, theta = network
    checkpoints, points = torch.stack([theta, 0.5 * theta, theta - 0.1])[:count], torch.tensor([5, 2])
    expected = trak_by_hand(train, test, checkpoints, points, damping)
    group = right_hand_sides(3, train.n)
    for d, scores in ((leave_one_out(torch.arange(train.n), train.n), expected), (group, -train.n * group @ expected)):
        found = trak(train, test, checkpoints, d, points, dim=None, damping=damping)
        torch.testing.assert_close(found, scores, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("dim", [512, 20, None])
def test_trak_takes_a_convolutional_network_and_its_compiled_objective(dim):
    model, draw = SmallCNN(channels=2, side=24), torch.Generator().manual_seed(0)

    def images(n):
        x = torch.rand(1, n, 1, 24, 24, generator=draw, dtype=torch.float64)
        return Data(x, torch.randint(0, model.n_classes, (1, n), generator=draw))

    train = ConvObjective(model, images(40), 0.01)
    test, theta, points = train.on(images(6)), model.init(0)[None], torch.tensor([5, 2])
    d = leave_one_out(torch.arange(40), 40)
    found = trak(train, test, theta, d, points, dim, damping=1e-6, seed=0)
    assert found.shape == (40, 2)
    if dim is None:
        torch.testing.assert_close(found, trak_by_hand(train, test, theta, points, 1e-6), rtol=1e-6, atol=1e-9)
    else:
        generic = Objective(model, train.data, 0.01)
        assert torch.equal(found, trak(generic, test, theta, d, points, dim, damping=1e-6, seed=0))


def two_classes(n=40, n_features=3, seed=0):
    rng = np.random.default_rng(seed)
    data = Data(torch.tensor(rng.standard_normal((1, n, n_features))), torch.tensor(rng.integers(0, 2, (1, n))))
    return Objective(Linear(n_features, 2), data, 0.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_projection_to_as_many_numbers_as_there_are_directions_changes_nothing(seed):
    """Phi (Phi^T Phi)^-1 Phi^T is the same in every basis; two classes of a linear model have half of P directions."""
    train, test = two_classes(), two_classes(5, seed=1)
    theta, d, points = right_hand_sides(1, 8)[0], leave_one_out(torch.arange(40), 40), torch.arange(5)
    projected = trak(train, test, theta[None], d, points, dim=4, seed=seed)
    free = trak(train, test, theta[None], d, points, dim=None, damping=1e-10)
    torch.testing.assert_close(projected, free, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_neither_chunks_nor_the_order_of_examples_change_trak_and_its_seed_and_checkpoint_do(network, chunk):
    train, test, theta = network
    other, order = shuffled(train)
    d, points = leave_one_out(torch.arange(train.n), train.n), torch.arange(6)
    options = {"dim": 10, "damping": 1e-3}
    whole = trak(train, test, theta[None], d, points, seed=3, **options)
    torch.testing.assert_close(trak(other, test, theta[None], d, points, chunk=chunk, seed=3, **options), whole[order])
    assert not torch.allclose(trak(train, test, theta[None], d, points, seed=4, **options), whole)
    twice = torch.stack([theta, theta])
    assert not torch.allclose(trak(train, test, twice, d, points, seed=3, **options), whole)  # another projection


def test_margins_of_certain_networks_stay_finite(network):
    train, _, theta = network
    features, margins = margin_features(train.model, 60 * theta, train.data.x[0], train.data.y[0], None, 8)
    assert margins.abs().max() > 40  # 1 - p is zero in floating point
    assert torch.isfinite(features).all() and torch.isfinite(margins).all()
    logits = train.model(60 * theta, train.data.x[0])
    rest = logits.clone().scatter_(1, train.data.y[0][:, None], -torch.inf).logsumexp(1)
    torch.testing.assert_close(margins, logits.gather(1, train.data.y[0][:, None])[:, 0] - rest)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "shape"), [([1.0], (2, 15)), ([1.0, -1.0], (2, 15)), ([float("nan")], (1, 15)), ([1.0], (15,))]
)
def test_bad_checkpoints_and_step_sizes_are_named(linear, sizes, shape):
    train, test, theta = linear
    with pytest.raises(InputError, match="^(step_sizes|checkpoints) = "):
        tracin(train, test, theta.expand(shape), torch.tensor(sizes), *everyone(train))


def test_trak_takes_no_single_network_without_its_stack_and_no_direction_without_a_gradient(linear):
    train, test, theta = linear
    with pytest.raises(InputError, match="^checkpoints = "):
        trak(train, test, theta, *everyone(train))
    with pytest.raises(InputError, match="^damping = "):  # softmax regression has such directions
        trak(train, test, theta[None], *everyone(train), dim=None)
