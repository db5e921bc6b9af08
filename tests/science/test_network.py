"""What a network tells of itself: its parts on its own data, its certificate, and how it is driven on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import iris_subset, network_of, random_network

from fragile_lib.choices import Points
from fragile_lib.data.sets import Data
from fragile_lib.models.mlp import MLP
from fragile_lib.network import Network, stack
from fragile_lib.solvers.dense import DenseSolver

POINTS = Points(np.array([7, 0, 2]), ["random"] * 3)


@pytest.fixture(scope="module")
def network() -> Network:
    """The second of three of one stack."""
    train, _, theta, _ = random_network("tanh", 2, 4, 9)
    return network_of(train, train.on(random_network("tanh", 2, 4, 9, seed=1)[0].data), theta[1], 0.1, place=1)


def test_all_that_it_tells_is_of_its_own_data(network: Network) -> None:
    place, close = torch.tensor([1]), torch.testing.assert_close
    theta, train, test = network.theta[None], network.train, network.test
    close(network.test_losses(), test.losses(theta, place)[0])
    close(network.on_points(POINTS).losses(theta)[0], test.losses(theta, place)[0, POINTS.index])
    close(network.test_gradients(POINTS), test.example_gradients(theta, place)[0, POINTS.index])
    gradients = train.example_gradients(theta, place)[0]
    close(network.members((4, 1)).example_gradients(theta)[0], gradients[[4, 1]])
    assert network.members((4, 1)).weight_decay == network.on_points(POINTS).weight_decay == 0
    x = torch.randn(2, len(network.theta), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    close(network.slopes(x), gradients @ x.T)
    np.testing.assert_array_equal(network.labels, train.data.y[1])
    np.testing.assert_allclose(network.train_losses(), train.losses(theta, place)[0])


@pytest.mark.parametrize("gauss_newton", [False, True])
def test_its_direct_solvers_are_of_its_own_curvature_and_made_once(network: Network, gauss_newton: bool) -> None:
    solver = network.gauss_newton if gauss_newton else network.hessian
    matrix = network.train.matrices(network.theta[None], network.train.uniform(1), torch.tensor([1]), gauss_newton)[0]
    expected = torch.linalg.solve(matrix + 0.1 * torch.eye(len(matrix)).double(), network.theta)
    torch.testing.assert_close(solver(network.theta[None]).x[0], expected, rtol=1e-8, atol=1e-10)
    assert solver is (network.gauss_newton if gauss_newton else network.hessian)
    assert not isinstance(solver, DenseSolver)  # that one is for a matrix in float32


def test_alone_it_is_the_same_network(network: Network) -> None:
    alone = network.alone()
    assert alone.place == 0 and len(alone.train.data.y) == len(alone.test.data.y) == 1 and alone.alone() is alone
    assert alone.train.weight_decay == network.train.weight_decay and type(alone.train) is type(network.train)
    torch.testing.assert_close(alone.test_gradients(POINTS), network.test_gradients(POINTS))
    np.testing.assert_array_equal(alone.labels, network.labels)


def test_rows_carry_what_its_certificate_tells(network: Network) -> None:
    told = replace(network, seed=3, certificate={"status": "ok", "grad_norm": 0.5, "eig_max": 2.0, "steps": 9})
    assert told.shared == {"seed": 3, "fit": "certified", "grad_norm": 0.5, "eig_max": 2.0}
    assert told.certified and not replace(told, usable=False).certified and not replace(told, fit="finished").certified
    assert told.curvature is told.train and replace(told, curved=told.test).curvature is told.test


def test_a_stack_is_trained_as_one_and_each_network_has_its_seed_and_certificate() -> None:
    sets = [iris_subset(6, seed) for seed in (4, 7)]
    data = [Data(torch.cat([d[k].x for d in sets]), torch.cat([d[k].y for d in sets])) for k in (0, 1)]
    how = 0.02, 1e-3, [4, 7], 50, 0.1, 0.9
    first, second = stack.descended(MLP(1, 4, "tanh"), *data, *how)
    assert first.train is second.train and (first.place, second.place) == (0, 1)
    for network, seed, own in ((first, 4, sets[0]), (second, 7, sets[1])):
        (alone,) = stack.descended(MLP(1, 4, "tanh"), *own, 0.02, 1e-3, [seed], 50, 0.1, 0.9)
        assert torch.equal(network.theta, alone.theta)
        assert (network.certificate["seed"], network.certificate["fit"], network.seed) == (seed, "descent", seed)
        assert network.certificate["grad_norm"] == pytest.approx(alone.certificate["grad_norm"], rel=1e-9)


@pytest.mark.parametrize(("activation", "depth"), [("relu", 1), ("relu", 2), ("tanh", 2)])
def test_a_diverged_network_is_not_certified_as_another_one(
    monkeypatch: pytest.MonkeyPatch, activation: str, depth: int
) -> None:
    def broken(model: MLP, seed: int) -> torch.Tensor:
        return torch.cat([torch.tensor([float("nan")]), torch.ones(model.n_params - 1)]).double()

    monkeypatch.setattr(MLP, "init", broken)
    started = stack.descended(MLP(depth, 5, activation), *iris_subset(4), 0.005, 1e-3, [0], 1, 0.1, 0.9)
    (driven,) = stack.driven_on(started)
    assert [n.certificate["status"] for n in (*started, driven)] == ["diverged", "diverged"]
    assert torch.isnan(driven.theta[0]) and not driven.usable and driven.certificate["fit"] == "certified"
