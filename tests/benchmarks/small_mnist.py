"""Koh and Liang's network on their 5,500 images: the hot paths against the obvious alternative, both timed in this run.

The alternatives are what torch offers without this library: torch.func on the plain `Objective`, 500 images at a time
so that its maps fit into memory, torch.optim and torch.nn on single networks, scipy's conjugate gradients. They are
timed several times, on all threads and on one, and their fastest counts: torch loads much at a first call, and its
threads wait for each other where something else runs. Every ratio comes with a check that both ways give the same
numbers; a check that fails ends the run.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import best, matrix_product_rate
from fragile_lib.examination import choose_test_points
from fragile_lib.influence import Estimate, influence, leave_one_out
from fragile_lib.minimise.minibatch import Protocol, batches, train
from fragile_lib.prepared import Prepared, prepare
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.func import grad
from torch.nn.functional import cross_entropy

from fragile_lib.data.sets import Data
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.conv import ConvObjective
from fragile_lib.solvers import BlockCGSolver, ExactSolver
from fragile_lib.truths import LEFT_OUT, left_out

DECAY, DAMPING, TOLERANCE = 1e-3, 1e-2, 1e-4
CHUNK, BATCH = 500, 500  # images that the plain objective sees at once, and those of a minibatch
# Relative differences allowed: the same formula, the same few steps of CG, CG to the tolerance, float32.
EXACT, SAME_STEPS, SOLVED, SINGLE = 1e-9, 1e-6, 1e-2, 1e-3


class DisagreementError(RuntimeError):
    """Two ways to the same numbers differ by more than rounding and tolerances explain."""


@dataclass(frozen=True)
class Sizes:
    """How much is timed. The first two say what is asked for, the others what of the alternatives is run."""

    images: int = 5500
    points: int = 100  # test points, and left-out training points
    training: int = 300  # steps of Adam before anything is measured
    columns: int = 2  # Hessian-vector products by torch.func
    examples: int = 200  # gradients in a loop over examples
    solves: int = 1  # test points solved by conjugate gradients
    iterations: int = 5  # of those, timed with torch.func
    singles: int = 2  # networks trained by torch.optim
    steps: int = 6  # of minibatch training
    repeats: int = 3


SMALL = Sizes(images=300, examples=50, training=100, iterations=3, repeats=2)


@dataclass(frozen=True)
class Case:
    """A trained network theta (P,), J on the training images and the losses of the test images; sizes."""

    train: ConvObjective
    test: ConvObjective
    theta: Tensor
    sizes: Sizes

    @cached_property
    def plain(self) -> list[Objective]:
        """The losses by torch.func, one objective for every few images, without the L2 term."""
        data, model = self.train.data, self.train.model
        parts = zip(data.x.split(CHUNK, 1), data.y.split(CHUNK, 1), strict=True)
        return [Objective(model, Data(x, y)) for x, y in parts]

    @property
    def weights(self) -> Tensor:
        """(1, n) the default weights."""
        return self.train.uniform(1)

    @property
    def left_out(self) -> Tensor:
        """(points, n) weights, each without one training example of the first batch."""
        removed = next(batches(self.train.n, min(BATCH, self.train.n), 0))[: self.sizes.points]
        return self.weights + leave_one_out(torch.from_numpy(removed), self.train.n)

    def plain_product(self, v: Tensor, gauss_newton: bool = False) -> Tensor:
        """Hessian of J, or its Gauss-Newton part, times v (P,), by torch.func."""
        found = self.train.decay * v
        for part, weights in zip(self.plain, self.weights.split(CHUNK, 1), strict=True):
            found = found + part.products(self.theta[None], v[None, None], weights, gauss_newton=gauss_newton)[0, 0]
        return found

    def plain_gradient(self, weights: Tensor) -> Tensor:
        """Gradient of J under weights (n,), by torch.func: (P,)."""
        found = self.train.decay * self.theta
        for part, some in zip(self.plain, weights[None].split(CHUNK, 1), strict=True):
            found = found + part.gradient(self.theta[None], some)[0]
        return found


def trained(train_data: Data, test_data: Data, model: SmallCNN, sizes: Sizes) -> Case:
    """The network of seed 0 after a few hundred steps of Adam on the first images."""
    some = Data(train_data.x[:, : sizes.images].double(), train_data.y[:, : sizes.images])
    points = Data(test_data.x[:, : sizes.points].double(), test_data.y[:, : sizes.points])
    objective = ConvObjective(model, some, DECAY)
    protocol = Protocol(sizes.training, batch=min(BATCH, objective.n), learning_rate=1e-3, drops=())
    theta = train(objective, model.init(0)[None], objective.uniform(1), protocol).theta[0]
    return Case(objective, objective.on(points), theta, sizes)


def agree(what: str, found: Tensor, expected: Tensor, limit: float) -> str:
    """||found - expected|| / ||expected||, in words.

    Raises:
        DisagreementError: it is above the limit, or not a number.
    """
    gap = ((found - expected).norm() / expected.norm()).item()
    if not gap <= limit:
        raise DisagreementError(f"{what}: relative difference {gap:.1e}, above {limit:.0e}")
    return f"relative difference {gap:.0e}"


# -- the parts ---------------------------------------------------------------------------------------------------------


def hessians(case: Case) -> None:
    """The dense Hessian against a product for every column, by torch.func and by the library's own kernel."""
    n_params = len(case.theta)
    dense = timed(lambda: case.train.matrices(case.theta[None], case.weights)[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    columns = torch.linspace(0, n_params - 1, case.sizes.columns).long()
    basis = torch.eye(n_params, dtype=case.theta.dtype)
    plain = by_torch(lambda: torch.stack([case.plain_product(basis[j]) for j in columns]), case.sizes.repeats)
    some = torch.linspace(0, n_params - 1, min(64, n_params)).long()
    own = timed(lambda: case.train.products(case.theta[None], basis[None, some], case.weights)[0])
    gap = agree("dense Hessian", dense.value[columns], plain.value, EXACT)
    agree("products", dense.value[some], own.value, EXACT)
    per_column, per_product = plain.seconds / len(columns) * n_params, own.seconds / len(some) * n_params
    print(
        f"dense Hessian, {case.train.n} images, {n_params} parameters: {dense.seconds:.1f} s; peak resident memory so "
        f"far {peak:.2f} GiB, of the whole process\n"
        f"  torch.func, one product a column: {per_column:.0f} s ({len(columns)} columns, scaled up): "
        f"{per_column / dense.seconds:.0f} times faster; {gap}\n"
        f"  own kernel, one product a column: {per_product:.0f} s ({len(some)} columns, scaled up): "
        f"{per_product / dense.seconds:.1f} times faster"
    )


def gauss_newton(case: Case) -> None:
    """The dense Gauss-Newton matrix against a product for every column by torch.func."""
    n_params = len(case.theta)
    dense = timed(lambda: case.train.matrices(case.theta[None], case.weights, gauss_newton=True)[0])
    v = torch.from_numpy(np.random.default_rng(0).standard_normal(n_params))
    plain = by_torch(lambda: case.plain_product(v, gauss_newton=True), case.sizes.repeats)
    gap = agree("dense Gauss-Newton matrix", dense.value @ v, plain.value, EXACT)
    print(
        f"dense Gauss-Newton matrix: {dense.seconds:.1f} s\n"
        f"  torch.func, one product a column: {plain.seconds * n_params:.0f} s (1 column, scaled up): "
        f"{plain.seconds * n_params / dense.seconds:.0f} times faster; {gap}"
    )


def scores(case: Case) -> None:
    """All training points' scores for all test points on the damped Gauss-Newton matrix, from nothing."""
    ways = {
        "dense matrix and its eigenvectors": lambda: ExactSolver(case.train, case.theta, DAMPING, gauss_newton=True),
        "block CG": lambda: BlockCGSolver(case.train, case.theta, DAMPING, gauss_newton=True, tolerance=TOLERANCE),
    }
    found = {name: timed(lambda make=make: _estimate(case, make())) for name, make in ways.items()}
    fastest = min(found, key=lambda name: found[name].seconds)
    ours = found[fastest]
    print(f"scores of {case.train.n} training points for {case.sizes.points} test points, from nothing")
    for name, way in found.items():
        if not way.value.residual <= TOLERANCE:
            raise DisagreementError(f"{name}: relative residual {way.value.residual:.1e}, above {TOLERANCE:.0e}")
        print(f"  {name}: {way.seconds:.1f} s, residual {way.value.residual:.0e}")
    loop, gaps = _scores_by_loop(case, ours.value.changes)
    print(f"  fastest, {fastest}: {loop / ours.seconds:.0f} times faster than the loop's {loop:.0f} s; {gaps}")


def _estimate(case: Case, solver: ExactSolver | BlockCGSolver) -> Estimate:
    removals = leave_one_out(torch.arange(case.train.n), case.train.n)
    return influence(case.train, case.test, case.theta, removals, torch.arange(case.sizes.points), solver)


def _scores_by_loop(case: Case, ours: Tensor) -> tuple[float, str]:
    """(seconds of all of it, how far its scores are from ours (n, points)) by torch.func and scipy, from parts of it.

    A gradient each for all training and test points, timed on a few; for each test point, iterations of conjugate
    gradients: as many as they take with the library's product of the same matrix, each as long as torch.func's.
    """
    sizes, n = case.sizes, case.train.n
    of_train = by_torch(lambda: _gradients_in_a_loop(case.train, case.theta, min(sizes.examples, n)), sizes.repeats)
    of_test = _gradients_in_a_loop(case.test, case.theta, sizes.solves)
    solved = [_conjugate_gradients(_own_product(case), v, 10 * len(v)) for v in of_test]
    iterations, each = float(np.mean([count for _, count, _ in solved])), _seconds_an_iteration(case, of_test[0])
    theirs = of_train.value @ torch.stack([x for x, _, _ in solved]).T / n
    gap = agree("scores", ours[: len(theirs), : sizes.solves], theirs, SOLVED)
    gradients = of_train.seconds / len(theirs) * (n + sizes.points)
    print(
        f"  loop of torch.func and scipy's CG: {gradients:.0f} s of gradients ({len(theirs)} timed, scaled up to "
        f"{n + sizes.points}),\n    and {sizes.points} times {iterations:.0f} iterations of {each:.2f} s "
        f"({sizes.iterations} timed; counted on {sizes.solves} test points), "
        f"residual {max(residual for _, _, residual in solved):.0e}"
    )
    return gradients + sizes.points * iterations * each, gap


def _gradients_in_a_loop(objective: Objective, theta: Tensor, count: int) -> Tensor:
    """Gradients of the first losses, one after the other by torch.func: (count, P)."""
    gradient = grad(lambda t, x, y: cross_entropy(objective.model(t, x[None]), y[None]))
    (x,), (y,) = objective.data.x, objective.data.y
    return torch.stack([gradient(theta, x[i], y[i]) for i in range(count)])


def _own_product(case: Case) -> Callable[[Tensor], Tensor]:
    """The library's product of the Gauss-Newton matrix and one vector (P,)."""
    return lambda v: case.train.products(case.theta[None], v[None, None], case.weights, gauss_newton=True)[0, 0]


def _seconds_an_iteration(case: Case, v: Tensor) -> float:
    """Of conjugate gradients with torch.func's product; a few of them must end where the library's product ends."""
    count = case.sizes.iterations
    few = by_torch(lambda: _conjugate_gradients(lambda u: case.plain_product(u, True), v, count), case.sizes.repeats)
    agree("conjugate gradients", _conjugate_gradients(_own_product(case), v, count)[0], few.value[0], SAME_STEPS)
    return few.seconds / (few.value[1] + 1)  # a product each, and one for the residual


def _conjugate_gradients(product: Callable[[Tensor], Tensor], v: Tensor, most: int) -> tuple[Tensor, int, float]:
    """(x, iterations, relative residual) of (product + damping) x = v (P,) by scipy, `most` iterations at most."""
    count = 0

    def damped(u: np.ndarray) -> np.ndarray:
        u = torch.from_numpy(u)
        return (product(u) + DAMPING * u).numpy()

    def counted(_: np.ndarray) -> None:
        nonlocal count
        count += 1

    operator = LinearOperator((len(v), len(v)), matvec=damped, dtype=np.float64)
    x, _ = cg(operator, v.numpy(), rtol=TOLERANCE, maxiter=most, callback=counted)
    residual = np.linalg.norm(damped(x) - v.numpy()) / float(v.norm())
    return torch.from_numpy(x), count, residual


def chord_iterations(case: Case, objective: Objective | None = None) -> None:
    """What a chord iteration of 100 left-out optima takes: a gradient of each network under its own weights.

    `objective`: any with the same images and parameters, J itself by default; only J is compared with torch.func.
    """
    weights = case.left_out
    theta = case.theta.expand(len(weights), -1).contiguous()
    stack = timed(lambda: (objective or case.train).gradient(theta, weights))
    print(f"a chord iteration, {len(weights)} left-out networks on all {case.train.n} images: {stack.seconds:.1f} s")
    if objective is not None:
        return
    plain = by_torch(lambda: case.plain_gradient(weights[0]), case.sizes.repeats)
    gap = agree("gradients", stack.value[:1], plain.value[None], EXACT)
    loop = plain.seconds * len(weights)
    print(
        f"  torch.func, one network after the other: {loop:.1f} s (1 network, scaled up): {loop / stack.seconds:.1f} "
        f"times faster; {gap}"
    )


def left_out_optima(prepared: Prepared, count: int) -> None:
    """Certified minima without each of `count` training images drawn at random, from a network at a certified minimum.

    Newton steps with the network's Hessian first, BFGS where they do not arrive. The dense Hessian is there already.
    """
    drawn = np.sort(np.random.default_rng(0).choice(prepared.train.n, count, replace=False))
    points = choose_test_points(prepared.test.losses(prepared.theta[None])[0], {"max_loss": 1})
    by_newton = timed(lambda: left_out(prepared, points, "loo_certified", drawn))
    by_both = timed(lambda: left_out(prepared, points, "loo_certified", drawn, further=drawn))
    reached = [int(np.isfinite(way.value.changes[drawn, 0]).sum()) for way in (by_newton, by_both)]
    print(
        f"{count} left-out optima, {prepared.train.n} images, gradient at most {LEFT_OUT:g} of what removal made it\n"
        f"  (the network: {prepared.certificate['status']}, gradient {prepared.certificate['grad_norm']:.0e}):\n"
        f"  Newton steps with the one Hessian: {reached[0]} certified in {by_newton.seconds:.0f} s\n"
        f"  and BFGS for the others: {reached[1]} certified in {by_both.seconds:.0f} s in all"
    )


def at_a_minimum(train_data: Data, test_data: Data, networks: Path | str) -> Prepared:
    """The network of the study of record at weight decay 0.001, seed 0, as it is kept; without that, an hour's work."""
    protocol = Protocol(2500, 500, 0.01, seed=0)
    return prepare(SmallCNN(), train_data, test_data, DECAY, DAMPING, protocol, 3, 10, networks=networks)


def minibatches(case: Case) -> None:
    """Leave-one-out training with a control, float32, against torch.optim.Adam on single networks."""
    sizes, data = case.sizes, case.train.data
    objective = ConvObjective(case.train.model, Data(data.x.float(), data.y), DECAY)
    weights = torch.cat([case.weights, case.left_out])
    start = case.theta.float().expand(len(weights), -1).contiguous()
    protocol = Protocol(sizes.steps, batch=min(BATCH, objective.n))
    stack = timed(lambda: train(objective, start, weights, protocol).theta, sizes.repeats)
    members = torch.linspace(0, len(weights) - 1, sizes.singles).long().tolist()

    def by_optimiser(protocol: Protocol) -> Tensor:
        return torch.stack([_by_optimiser(objective, start[e], weights[e], protocol) for e in members])

    loop = by_torch(lambda: by_optimiser(protocol), sizes.repeats)
    three = Protocol(3, batch=protocol.batch)
    found, expected = train(objective, start, weights, three).theta[members], by_optimiser(three)
    gap = agree("minibatch training", found - start[members], expected - start[members], SINGLE)
    ours, theirs = stack.seconds / sizes.steps, loop.seconds / sizes.steps / len(members) * len(weights)
    print(
        f"minibatch training, {len(weights)} networks, batches of {protocol.batch}, float32: {1 / ours:.1f} steps/s\n"
        f"  loop of torch.optim.Adam: {1 / theirs:.2f} ({len(members)} networks, scaled up): {theirs / ours:.1f} times "
        f"faster\n  of what 3 steps move, {gap}"
    )


def _by_optimiser(objective: ConvObjective, theta: Tensor, weights: Tensor, protocol: Protocol) -> Tensor:
    """One network by torch.optim.Adam and torch.nn, as anyone would write it, on the same batches: (P,)."""
    network = objective.model.module(theta)
    matrices = [p for p in network.parameters() if p.dim() > 1]
    biases = [p for p in network.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": biases, "weight_decay": 0.0}]
    optimiser = torch.optim.Adam(groups, lr=protocol.learning_rate)
    (x,), (y,), present = objective.data.x, objective.data.y, (weights > 0).float()
    order = batches(objective.n, protocol.batch, protocol.seed)
    for step in range(protocol.steps):
        for group in optimiser.param_groups:
            group["lr"] = protocol.rate(step)
        rows = torch.from_numpy(next(order))
        optimiser.zero_grad()
        lost = cross_entropy(network(x[rows]), y[rows], reduction="none")
        ((present[rows] * lost).sum() / protocol.batch).backward()
        optimiser.step()
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach()


def gradient_flops(model: SmallCNN) -> int:
    """Floating-point operations of one image's gradient: 2 for each multiply-add of the convolutions.

    A layer takes n_out n_in kernel^2 side_out^2 multiply-adds forward, as many for the gradient of its weights, and as
    many for that of its input, which the first layer does not need. Activations, biases and softmax are not counted.
    """
    forward = [stage.n_weights * stage.side_out**2 for stage in model.stages]
    return 2 * (3 * sum(forward) - forward[0])


def share_of_peak(case: Case) -> None:
    """The gradient kernel's rate against that of a large matrix product, on as many threads."""
    size = 4
    for kind, name in ((torch.float64, "float64"), (torch.float32, "float32")):
        data = Data(case.train.data.x.to(kind), case.train.data.y)
        objective, theta = ConvObjective(case.train.model, data, DECAY), case.theta.to(kind).expand(size, -1)
        weights = objective.uniform(size)
        seconds = timed(lambda o=objective, t=theta, w=weights: o.gradient(t, w), case.sizes.repeats).seconds
        rate = size * objective.n * gradient_flops(objective.model) / seconds
        peak = matrix_product_rate(np.dtype(name).type)
        print(
            f"gradient, {name}: {rate / 1e9:.0f} Gflop/s on {torch.get_num_threads()} threads, "
            f"{100 * rate / peak:.0f}% of a large matrix product's {peak / 1e9:.0f}"
        )


# -- all of them -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """What a call returned and the seconds it took."""

    value: Any
    seconds: float


def timed(run: Callable[[], object], repeats: int = 1) -> Timed:
    """Call it some times: what it returned, and the seconds of the fastest call."""
    kept: list[Any] = []

    def once() -> None:
        kept[:] = [run()]

    seconds = best(once, repeats)
    return Timed(kept[0], seconds)


def by_torch(run: Callable[[], object], repeats: int) -> Timed:
    """`timed` for an alternative: on all threads and on one, whichever is faster."""
    threads = torch.get_num_threads()
    on_all = timed(run, repeats)
    torch.set_num_threads(1)
    try:
        on_one = timed(run, repeats)
    finally:
        torch.set_num_threads(threads)
    return min(on_all, on_one, key=lambda way: way.seconds)


def report(case: Case) -> None:
    """Time every part and print it; the dense Hessian first, since its memory is read off the process's peak."""
    steps, threads = case.sizes.training, torch.get_num_threads()
    print(f"Koh and Liang's network, {case.train.n} images, {threads} threads, after {steps} steps of Adam")
    for part in (hessians, gauss_newton, scores, chord_iterations, minibatches, share_of_peak):
        part(case)
