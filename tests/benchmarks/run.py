"""The hot paths against the obvious alternative, both timed in this run: `make bench`.

Iris on one core, then small MNIST (`small_mnist`) on all, then the large networks (`architectures`) on one core or the
GPU; the word `iris`, `small_mnist` or `architectures` runs one of them alone, and `--small` shrinks the last two, to
see whether they run. Every ratio comes with a check that both ways give the same numbers. Where the alternative would
take minutes, it is timed on a stated part of the work and scaled up.
"""

from __future__ import annotations

import os
import resource
import warnings
from argparse import ArgumentParser
from pathlib import Path

import architectures
import deep_case
import small_mnist
import torch
from clock import best, matrix_product_rate
from fragile_lib.influence import influence, leave_one_out
from threadpoolctl import threadpool_limits

from fragile_lib.data.sets import Data, image_subset, iris_splits, koh_liang_mnist
from fragile_lib.kernels.mlp import compile_all
from fragile_lib.models.mlp import MLP
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives import conv as conv_objective
from fragile_lib.objectives.base import Objective, make_objective, resolve_device
from fragile_lib.solvers import ExactSolver

SEEDS, LEFT_OUT, STEPS = 10, 25, 200
RATE, MOMENTUM, DECAY, DAMPING = 1e-3, 0.9, 0.005, 1e-3


def module(model: MLP, theta: torch.Tensor) -> torch.nn.Sequential:
    """The same network as torch.nn modules."""
    layers: list[torch.nn.Module] = []
    at = 0
    for n_in, n_out in model.shapes:
        linear = torch.nn.Linear(n_in, n_out, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(theta[at : at + n_in * n_out].view(n_out, n_in))
            linear.bias.copy_(theta[at + n_in * n_out : at + n_in * n_out + n_out])
        at += n_in * n_out + n_out
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def by_optimiser(model: MLP, theta: torch.Tensor, weights: torch.Tensor, x: torch.Tensor, y: torch.Tensor, steps: int):
    """One network by torch.optim.SGD, as anyone would write it."""
    network = module(model, theta)
    linears = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    groups = [
        {"params": [layer.weight for layer in linears], "weight_decay": DECAY},
        {"params": [layer.bias for layer in linears], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM)
    for _ in range(steps):
        optimiser.zero_grad()
        (weights * torch.nn.functional.cross_entropy(network(x), y, reduction="none")).sum().backward()
        optimiser.step()
    return torch.cat([part.detach().flatten() for layer in linears for part in (layer.weight, layer.bias)])


def retraining(depth: int, train_data: Data, peak: float) -> None:
    """10 seeds x 25 left-out points: the stack against a loop of torch.optim over single models."""
    model = MLP(depth, 5)
    objective = make_objective(model, train_data, DECAY, "cpu")
    dataset = torch.arange(SEEDS).repeat_interleave(LEFT_OUT)
    theta = torch.stack([model.init(s) for s in range(SEEDS)])[dataset]
    removed = torch.arange(LEFT_OUT).repeat(SEEDS)
    weights = objective.uniform(len(theta)) + leave_one_out(removed, objective.n)
    state = theta, torch.zeros_like(theta), weights, dataset, RATE, MOMENTUM
    stacked = best(lambda: objective.descend(*state, STEPS), 3) / STEPS
    ours = objective.descend(*state, STEPS)[0]
    singles = [0, 37, len(theta) - 1]
    arguments = [(model, theta[e], weights[e], train_data.x[dataset[e]], train_data.y[dataset[e]]) for e in singles]
    loop = best(lambda: by_optimiser(*arguments[0], STEPS), 3) / STEPS * len(theta)
    gap = max((by_optimiser(*a, STEPS) - ours[e]).abs().max().item() for a, e in zip(arguments, singles, strict=True))
    arithmetic = len(theta) * objective.n * sum(6 * i * o for i, o in model.shapes)
    print(
        f"leave-one-out retraining, depth {depth}, {len(theta)} networks of {model.n_params} parameters\n"
        f"  stack {1e3 * stacked:.2f} ms a step, loop of torch.optim {1e3 * loop:.0f} ms a step (one network, times "
        f"{len(theta)}): {loop / stacked:.0f} times faster; largest difference after {STEPS} steps {gap:.0e}\n"
        f"  {arithmetic / 1e6:.0f} Mflop of matrix products a step: {arithmetic / stacked / 1e9:.1f} Gflop/s, "
        f"{100 * arithmetic / stacked / peak:.0f}% of a large matrix product's {peak / 1e9:.0f}"
    )


def estimates(depth: int, train_data: Data, test_data: Data) -> None:
    """All 120 x 30 exact estimates of one network, against torch's Hessian and a loop of autograd over examples."""
    model = MLP(depth, 5)
    train = make_objective(model, train_data, DECAY, "cpu")
    test = train.on(test_data)
    start = model.init(0)[None]
    theta = train.descend(start, 0 * start, train.uniform(1), torch.tensor([0]), 1e-2, MOMENTUM, 2000)[0][0]
    everyone, points = leave_one_out(torch.arange(train.n), train.n), torch.arange(test.n)

    def ours() -> torch.Tensor:
        return influence(train, test, theta, everyone, points, ExactSolver(train, theta, DAMPING)).changes

    def loss(t: torch.Tensor, data: Data, i: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(t, data.x[0, i : i + 1]), data.y[0, i : i + 1])

    def loops() -> torch.Tensor:
        t = theta.clone().requires_grad_()
        hessian = torch.autograd.functional.hessian(lambda u: mean_loss(u), t)
        inverse = torch.linalg.inv(hessian + DAMPING * torch.eye(len(theta)))
        of_train = torch.stack([torch.autograd.grad(loss(t, train_data, i), t)[0] for i in range(train.n)])
        of_test = torch.stack([torch.autograd.grad(loss(t, test_data, j), t)[0] for j in range(test.n)])
        return of_train @ inverse @ of_test.T / train.n

    def mean_loss(t: torch.Tensor) -> torch.Tensor:
        losses = torch.nn.functional.cross_entropy(model(t, train_data.x[0]), train_data.y[0])
        return losses + 0.5 * (train.decay * t**2).sum()

    fast, slow = best(ours), best(loops, 2)
    gap = (ours() - loops()).abs().max().item() / loops().abs().max().item()
    print(
        f"exact estimates, depth {depth}, {train.n} x {test.n} pairs: {1e3 * fast:.1f} ms against {1e3 * slow:.0f} ms\n"
        f"  by torch's Hessian and a loop of autograd over examples: {slow / fast:.0f} times faster; "
        f"largest relative difference {gap:.0e}"
    )


def hessians(depth: int, train_data: Data) -> None:
    """The dense Hessian by half columns, against a Hessian-vector product for each column and torch.func.hessian."""
    model = MLP(depth, 5)
    fused = make_objective(model, train_data, DECAY, "cpu")
    plain = Objective(model, train_data, DECAY)
    theta, weights, place = model.init(0)[None], fused.uniform(1), torch.tensor([0])
    columns = best(lambda: fused.matrices(theta, weights, place))
    products = best(lambda: Objective.matrices(fused, theta, weights, place))
    reference = best(lambda: plain.matrices(theta, weights, place), 2)
    gap = (fused.matrices(theta, weights, place) - plain.matrices(theta, weights, place)).abs().max().item()
    print(
        f"dense Hessian, depth {depth}: {1e3 * columns:.2f} ms; {products / columns:.1f} times faster than one\n"
        f"  product a column, {reference / columns:.0f} times faster than torch.func; largest difference {gap:.0e}"
    )


def iris() -> None:
    """Time the part on Iris on one core and print the ratios."""
    torch.set_num_threads(1)
    compile_all()
    with threadpool_limits(1):
        peak = matrix_product_rate()
        train_data, test_data = iris_splits(list(range(SEEDS)))
        one = Data(train_data.x[:1], train_data.y[:1]), Data(test_data.x[:1], test_data.y[:1])
        for depth in (1, 8):
            retraining(depth, train_data, peak)
        for depth in (1, 8):
            estimates(depth, *one)
            hessians(depth, one[0])


def mnist(small: bool) -> None:
    """Time the part on small MNIST on all cores and print the ratios."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(cores)
    conv_objective.compile_all()
    with threadpool_limits(cores):
        sizes = small_mnist.SMALL if small else small_mnist.Sizes()
        images = koh_liang_mnist()
        small_mnist.report(small_mnist.trained(*images, SmallCNN(), sizes))
        if not small:
            networks = Path(__file__).parents[2] / "reports" / "networks"
            small_mnist.left_out_optima(small_mnist.at_a_minimum(*images, networks), sizes.points)


def large_networks(small: bool) -> None:
    """Time the part on the networks of the study over architectures, on one core or the GPU, and print the ratios."""
    torch.set_num_threads(1)
    sizes = deep_case.SMALL if small else deep_case.Sizes()
    with threadpool_limits(1):
        images = image_subset(sizes.dataset, sizes.source, sizes.images, sizes.tests)
        architectures.report(deep_case.placed(*images, sizes, resolve_device("auto")))


def main() -> None:
    """Time all parts, or the one that the command line names."""
    parts = {"iris": lambda _: iris(), "small_mnist": mnist, "architectures": large_networks}
    parser = ArgumentParser(description="Time the hot paths against plain loops and print the ratios.")
    parser.add_argument("part", nargs="?", choices=list(parts), help="one part alone; default: all")
    parser.add_argument("--small", action="store_true", help="all but Iris much smaller: a trial, not a measurement")
    chosen = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # of processes that a part starts
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    warnings.filterwarnings("ignore", "There is a performance drop", module="torch")  # pools under vmap, in all ways
    torch.set_default_dtype(torch.float64)
    for name in [chosen.part] if chosen.part else parts:
        parts[name](chosen.small)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, torch included")


if __name__ == "__main__":
    main()
