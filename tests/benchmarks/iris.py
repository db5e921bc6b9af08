"""Multilayer perceptrons on Iris, one core: stacks, estimates and Hessians against torch's ways to the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from clock import Way, by_optimiser, compare, compiled, gradients_by_loop, matrix_product_rate, said
from torch import Tensor
from torch.func import hessian, jacrev
from torch.nn.functional import cross_entropy

from fragile_lib.choices import Points, Removals, choose_points
from fragile_lib.data.sets import Data, iris_splits
from fragile_lib.estimates import ESTIMATORS, influence
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.models.mlp import MLP
from fragile_lib.network import Network
from fragile_lib.network.modules import as_it_is
from fragile_lib.network.stack import descended
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.fused import make_objective
from fragile_lib.solvers import Solver

SEEDS, LEFT_OUT, STEPS, TRAINING = 10, 25, 200, 2000
RATE, MOMENTUM, DECAY, DAMPING = 1e-3, 0.9, 0.005, 1e-3
FIXED = 0.02  # seconds that `influence` may take whatever the problem


def as_module(model: MLP, theta: Tensor) -> torch.nn.Sequential:
    """The same network as torch.nn modules."""
    layers: list[torch.nn.Module] = []
    for n_in, n_out in model.shapes:
        layers += [torch.nn.Linear(n_in, n_out, dtype=theta.dtype), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1])
    torch.nn.utils.vector_to_parameters(theta.clone(), network.parameters())
    return network


def retraining(depth: int, data: Data, peak: float) -> None:
    """Left-out networks of all seeds: the stack against a loop of torch.optim, and against one vmap of torch.func."""
    model = MLP(depth, 5)
    fused, plain = make_objective(model, data, DECAY, "cpu"), Objective(model, data, DECAY)
    dataset = torch.arange(SEEDS).repeat_interleave(LEFT_OUT)
    theta = torch.stack([model.init(s) for s in range(SEEDS)])[dataset]
    weights = fused.uniform(len(theta)) + Removals.single(list(range(LEFT_OUT)) * SEEDS, fused.n).changes()
    still, fit = torch.zeros_like(theta), (weights, dataset, RATE, MOMENTUM)
    schedule = Schedule(STEPS, fused.n, RATE, drops=(), optimiser="sgd", momentum=MOMENTUM)

    def alone() -> Tensor:
        x, y = data.x[dataset[-1]], data.y[dataset[-1]]
        return by_optimiser(as_module(model, theta[-1]), x, y, weights[-1], schedule, DECAY)[None]

    def one_step(t: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        return plain.descend(t, velocity, *fit, 1)

    def by_steps(step: Callable) -> Tensor:
        state = theta, still
        for _ in range(STEPS):
            state = step(*state)
        return state[0]

    ways = {
        "the stack": Way(lambda: fused.descend(theta, still, *fit, STEPS)[0]),
        "loop of torch.optim": Way(alone, 1 / len(theta), lambda found: found[-1:]),
        "vmap of torch.func": Way(lambda: plain.descend(theta, still, *fit, STEPS)[0]),
    }
    with compiled(one_step, lambda fast: fast(theta, still)) as (fast, _):
        if fast is not None:
            ways["vmap of torch.func, compiled"] = Way(lambda: by_steps(fast))
        ours = compare(f"leave-one-out retraining, depth {depth}, {len(theta)} networks, {STEPS} steps", ways)
    arithmetic = len(theta) * fused.n * sum(6 * i * o for i, o in model.shapes)
    rate = STEPS * arithmetic / ours["the stack"].seconds
    print(f"  {rate / 1e9:.1f} Gflop/s, {100 * rate / peak:.0f}% of a large matrix product's {peak / 1e9:.0f}")


def trained(depth: int, train_data: Data, test_data: Data) -> Network:
    """One network of the paper's fit."""
    options = {"steps": TRAINING, "learning_rate": 1e-2, "momentum": MOMENTUM, "device": "cpu"}
    return descended(MLP(depth, 5), train_data, test_data, DECAY, DAMPING, [0], **options)[0]


def estimates(depth: int, network: Network) -> None:
    """All pairs' exact estimates of one network, from nothing, against torch's Hessian and gradients."""
    train, test, theta = network.train, network.test, network.theta
    points = Points(np.arange(test.n), ["all"] * test.n)
    plain = Objective(train.model, train.data, DECAY)

    def scores(curvature: Tensor, of_train: Tensor, of_test: Tensor) -> Tensor:
        damped = curvature + DAMPING * torch.eye(len(theta))
        return of_train @ torch.linalg.inv(damped) @ of_test.T / train.n

    def by_loops() -> Tensor:
        curvature = torch.autograd.functional.hessian(mean_loss(network), theta)
        return scores(curvature, *(gradients_by_loop(o, theta, o.n) for o in (train, test)))

    def by_vmap() -> Tensor:
        gradients = (o.example_gradients(theta[None])[0] for o in (plain, plain.on(test.data)))
        return scores(hessian(mean_loss(network))(theta), *gradients)

    compare(
        f"exact estimates, depth {depth}, {train.n} x {test.n} pairs",
        {
            "exact": Way(lambda: torch.from_numpy(ESTIMATORS["exact"](replace(network), points).changes), repeats=10),
            "torch's Hessian and a loop of autograd": Way(by_loops),
            "torch.func.hessian and vmap(grad)": Way(by_vmap),
        },
    )


def mean_loss(network: Network) -> Callable[[Tensor], Tensor]:
    """J of one network by plain torch, a function of its parameters (P,)."""
    train = network.train
    (x,), (y,) = train.data.x, train.data.y
    return lambda t: cross_entropy(train.model(t, x), y) + 0.5 * (train.decay * t**2).sum()


def hessians(depth: int, network: Network) -> None:
    """The dense Hessian against a product for each column and torch.func's Hessian."""
    fused, theta, place = network.train, network.theta[None], network.dataset
    plain, weights = Objective(fused.model, fused.data, DECAY), fused.uniform(1)
    ways = {
        "dense": Way(lambda: fused.matrices(theta, weights, place), repeats=20),
        "own kernel, a product a column": Way(lambda: Objective.matrices(fused, theta, weights, place), repeats=20),
        "torch.func, a product a column under vmap": Way(lambda: plain.matrices(theta, weights, place)),
    }
    twice = jacrev(jacrev(mean_loss(network)))  # forward mode takes far longer to compile
    with compiled(twice, lambda fast: fast(network.theta)) as (fast, _):
        if fast is not None:
            ways["torch.func.jacrev of jacrev, compiled"] = Way(lambda: fast(network.theta)[None])
        compare(f"dense Hessian, depth {depth}, {theta.shape[1]} parameters", ways)


def fixed_cost(network: Network) -> None:
    """What `influence` adds to the arithmetic of one test point: for the network, and for it as an own module."""
    model, data = network.train.model, (network.train.data, network.test.data)
    mine = as_it_is(as_module(model, network.theta), model.n_classes, *data, DECAY, DAMPING, 50, "cpu")
    for name, one in (("multilayer perceptron", network), ("own module", mine)):
        compare_fixed(name, one, one.hessian, choose_points(one.test_losses(), {"max_loss": 1}))


def compare_fixed(name: str, one: Network, solver: Solver, point: Points) -> None:
    """For one network, its solver made before."""
    ways = {
        "whole": Way(lambda: influence(one, point, solver).changes, repeats=20),
        "arithmetic": Way(lambda: one.slopes(solver(one.test_gradients(point)).x) / one.train.n, repeats=20),
    }
    found = compare(f"influence on one test point, {name} of {len(one.theta)} parameters", ways)
    fixed = found["whole"].seconds - found["arithmetic"].seconds
    print(f"  fixed: {said(fixed)} (at most {said(FIXED)}: {'yes' if fixed <= FIXED else 'no'})")


def report() -> None:
    """Time every part and print it."""
    peak = matrix_product_rate()
    train_data, test_data = iris_splits(list(range(SEEDS)))
    networks = {
        depth: trained(depth, *(Data(data.x[:1], data.y[:1]) for data in (train_data, test_data))) for depth in (1, 8)
    }
    fixed_cost(networks[8])
    for depth, network in networks.items():
        retraining(depth, train_data, peak)
        estimates(depth, network)
        hessians(depth, network)
