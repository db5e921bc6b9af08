"""Multilayer perceptrons on Iris, one core: stacks, estimates and Hessians against torch's ways to the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from clock import Way, compare, compiled, in_turn, matrix_product_rate, said
from torch import Tensor
from torch.func import grad, hessian, jacrev, vmap
from torch.nn.functional import cross_entropy

from fragile_lib.choices import Points, Removals
from fragile_lib.data.sets import Data, iris_splits
from fragile_lib.estimates import ESTIMATORS, influence
from fragile_lib.models.mlp import MLP
from fragile_lib.network import Network
from fragile_lib.network.modules import own
from fragile_lib.network.stack import descended
from fragile_lib.objectives.base import Objective, make_objective

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


def by_optimiser(model: MLP, theta: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """One network by torch.optim.SGD, as anyone would write it: (P,) after `STEPS`."""
    network = as_module(model, theta)
    groups = [
        {"params": [p for p in network.parameters() if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in network.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM)
    for _ in range(STEPS):
        optimiser.zero_grad()
        (weights * cross_entropy(network(x), y, reduction="none")).sum().backward()
        optimiser.step()
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach()


def retraining(depth: int, data: Data, peak: float) -> None:
    """Left-out networks of all seeds: the stack against a loop of torch.optim, and against one vmap of torch.func."""
    model = MLP(depth, 5)
    fused, plain = make_objective(model, data, DECAY, "cpu"), Objective(model, data, DECAY)
    dataset = torch.arange(SEEDS).repeat_interleave(LEFT_OUT)
    theta = torch.stack([model.init(s) for s in range(SEEDS)])[dataset]
    weights = fused.uniform(len(theta)) + Removals.single(list(range(LEFT_OUT)) * SEEDS, fused.n).changes()
    x, y, still = data.x[dataset], data.y[dataset], torch.zeros_like(theta)

    def loss(t: Tensor, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (w * cross_entropy(model(t, x), y, reduction="none")).sum()

    def step(t: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        velocity = MOMENTUM * velocity + vmap(grad(loss))(t, weights, x, y) + plain.decay * t
        return t - RATE * velocity, velocity

    def by_vmap(one_step: Callable) -> Tensor:
        state = theta, still
        for _ in range(STEPS):
            state = one_step(*state)
        return state[0]

    ways = {
        "the stack": Way(lambda: fused.descend(theta, still, weights, dataset, RATE, MOMENTUM, STEPS)[0]),
        "loop of torch.optim": Way(
            lambda: by_optimiser(model, theta[-1], weights[-1], x[-1], y[-1])[None], 1 / len(theta), lambda all_: all_[-1:]
        ),
        "vmap of torch.func": Way(lambda: by_vmap(step)),
    }
    with compiled(step, lambda fast: fast(theta, still)) as (fast, _):
        if fast is not None:
            ways["vmap of torch.func, compiled"] = Way(lambda: by_vmap(fast))
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
    points = every_point(network)
    plain = Objective(train.model, train.data, DECAY)

    def scores(curvature: Tensor, of_train: Tensor, of_test: Tensor) -> Tensor:
        damped = curvature + DAMPING * torch.eye(len(theta))
        return of_train @ torch.linalg.inv(damped) @ of_test.T / train.n

    def by_loop(data: Data) -> Tensor:
        t = theta.clone().requires_grad_()
        losses = (cross_entropy(train.model(t, x[None]), y[None]) for x, y in zip(data.x[0], data.y[0], strict=True))
        return torch.stack([torch.autograd.grad(loss, t)[0] for loss in losses])

    def by_loops() -> Tensor:
        curvature = torch.autograd.functional.hessian(mean_loss(network), theta)
        return scores(curvature, by_loop(train.data), by_loop(test.data))

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
    module = as_module(network.train.model, network.theta)
    mine = own(module, network.train.model.n_classes, network.train.data, network.test.data, DECAY, DAMPING, device="cpu")
    points = every_point(network).some([0])
    for name, one in (("multilayer perceptron", network), ("own module", mine)):
        solver = one.hessian

        def arithmetic(one: Network = one, solver: object = solver) -> Tensor:
            return one.slopes(solver(one.test_gradients(points)).x) / one.train.n

        ways = {
            "whole": Way(lambda one=one, solver=solver: influence(one, points, solver).changes, repeats=20),
            "arithmetic": Way(arithmetic, repeats=20),
        }
        found = compare(f"influence on one test point, {name} of {len(one.theta)} parameters", ways)
        fixed = found["whole"].seconds - found["arithmetic"].seconds
        print(f"  fixed: {said(fixed)} (at most {said(FIXED)}: {'yes' if fixed <= FIXED else 'no'})")


def every_point(network: Network) -> Points:
    """All test points."""
    return Points(torch.arange(network.test.n).numpy(), ["all"] * network.test.n)


def report() -> None:
    """Time every part and print it."""
    peak = matrix_product_rate()
    train_data, test_data = iris_splits(list(range(SEEDS)))
    for depth in (1, 8):
        retraining(depth, train_data, peak)
    for depth in (1, 8):
        network = trained(depth, *(Data(data.x[:1], data.y[:1]) for data in (train_data, test_data)))
        estimates(depth, network)
        hessians(depth, network)
    fixed_cost(network)
