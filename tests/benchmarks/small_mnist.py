"""Koh and Liang's network on their 5,500 images: the hot paths against what torch offers without this library.

That is torch.func on the plain `Objective`, some hundred images at a time so that its maps fit into memory, torch.optim
and torch.nn on single networks, scipy's conjugate gradients; and batched, per-example Jacobians by vmap(jacrev) and
stacks of networks by vmap(grad).
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from clock import Timed, Way, agree, by_optimiser, compare, gradients_by_loop, in_turn, matrix_product_rate, said
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.func import jacrev, vmap

from fragile_lib.choices import Chosen, Points, Removals, choose_points
from fragile_lib.data.sets import Data
from fragile_lib.estimates import ESTIMATORS
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.minimise.stack import train
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.network import Network
from fragile_lib.network.dense import cnn_objective, prepare
from fragile_lib.objectives.base import Objective
from fragile_lib.truths import TRUTHS

DECAY, DAMPING, TOLERANCE = 1e-3, 1e-2, 1e-4
SOLVED, SINGLE = 1e-2, 1e-2  # relative differences of CG at its tolerance, of what some steps move in float32


@dataclass(frozen=True)
class Sizes:
    """How much is timed. The first two say what is asked for, the others what of the alternatives is run."""

    images: int = 5500
    points: int = 100  # test points, and left-out training points
    training: int = 300  # steps of Adam before anything is measured
    examples: int = 200  # gradients in a loop over examples
    together: int = 8  # columns, or networks, under one vmap
    steps: int = 4  # of minibatch training
    batch: int = 500  # images of a minibatch, and those that torch.func sees at once


@dataclass(frozen=True)
class Case:
    """A trained network, and how much is timed on it."""

    network: Network
    sizes: Sizes

    @property
    def one(self) -> tuple[Tensor, Tensor]:
        """The network as a stack (1, P) with the default weights (1, n)."""
        return self.network.theta[None], self.network.train.uniform(1)

    def schedule(self, steps: int) -> Schedule:
        """Adam at a constant rate."""
        return Schedule(steps, self.sizes.batch, 1e-3, drops=())

    @property
    def left_out(self) -> Tensor:
        """(points, n) weights, each without one training example of the first batch."""
        (first,), n = self.schedule(1).rows(self.network.train.n), self.network.train.n
        return self.one[1] + Removals.single(first[: self.sizes.points], n).changes()

    def in_chunks(self, run: Callable[[Objective, Tensor], Tensor], weights: Tensor) -> list[Tensor]:
        """`run` on some images after the other: their losses by torch.func, without L2, and their weights."""
        (data, model), size = (self.network.train.data, self.network.train.model), self.sizes.batch
        parts = zip(data.x.split(size, 1), data.y.split(size, 1), weights.split(size, 1), strict=True)
        return [run(Objective(model, Data(x, y)), some) for x, y, some in parts]

    def plain_products(self, v: Tensor, gauss_newton: bool = False) -> Tensor:
        """Hessian of J, or its Gauss-Newton part, times each v (K, P), by torch.func: (K, P)."""
        theta, weights = self.one

        def product(part: Objective, some: Tensor) -> Tensor:
            return part.products(theta, v[None], some, gauss_newton=gauss_newton)[0]

        return sum(self.in_chunks(product, weights)) + self.network.train.decay * v

    def plain_gradients(self, weights: Tensor) -> Tensor:
        """Gradients of J under each row of weights (E, n), by torch.func, one vmap over networks: (E, P)."""
        theta = self.network.theta.expand(len(weights), -1)
        parts = self.in_chunks(lambda part, some: part.gradient(theta, some), weights)
        return sum(parts) + self.network.train.decay * theta

    def jacobian_gauss_newton(self) -> Tensor:
        """The dense Gauss-Newton matrix from per-example Jacobians of the logits, by vmap(jacrev): (P, P)."""
        theta, weights = self.network.theta, self.one[1]

        def matrix(part: Objective, some: Tensor) -> Tensor:
            jacobians = vmap(jacrev(lambda t, x: part.model(t, x[None])[0]), in_dims=(None, 0))(theta, part.data.x[0])
            p = part.model(theta, part.data.x[0]).softmax(1)
            curved = (some[0, :, None] * p)[..., None] * (jacobians - p[:, None] @ jacobians)
            return jacobians.flatten(0, 1).T @ curved.flatten(0, 1)

        return sum(self.in_chunks(matrix, weights)) + torch.diag(self.network.train.decay)


def trained(train_data: Data, test_data: Data, model: SmallCNN, sizes: Sizes) -> Case:
    """The network of seed 0 after a few hundred steps of Adam on the first images."""
    some = Data(train_data.x[:, : sizes.images].double(), train_data.y[:, : sizes.images])
    points = Data(test_data.x[:, : sizes.points].double(), test_data.y[:, : sizes.points])
    objective = cnn_objective(model, some, DECAY, "cpu")
    start = Case(Network(model.init(0), objective, objective.on(points), DAMPING), sizes)
    theta = train(objective, *start.one, start.schedule(sizes.training)).theta[0]
    return replace(start, network=replace(start.network, theta=theta))


# -- the parts ---------------------------------------------------------------------------------------------------------


def hessians(case: Case) -> None:
    """The dense Hessian against a product for every column, by torch.func and by the library's own kernel."""
    objective, (theta, weights), n_params = case.network.train, case.one, len(case.network.theta)
    basis = torch.eye(n_params, dtype=theta.dtype)
    few, some = (torch.linspace(0, n_params - 1, count).long() for count in (case.sizes.together, 64))

    def own() -> Tensor:
        return objective.products(theta, basis[None, some], weights)[0]

    compare(
        f"dense Hessian, {objective.n} images, {n_params} parameters",
        {
            "dense": Way(lambda: objective.matrices(theta, weights)[0], repeats=1),
            "own kernel, a product a column": Way(own, 64 / n_params, lambda h: h[some], repeats=1),
            "torch.func, a product a column": Way(
                lambda: case.plain_products(basis[few[:1]]), 1 / n_params, lambda h: h[few[:1]]
            ),
            f"torch.func, {len(few)} columns under a vmap": Way(
                lambda: case.plain_products(basis[few]), len(few) / n_params, lambda h: h[few]
            ),
        },
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"  peak resident memory so far {peak:.2f} GiB, of the whole process, alternatives included")


def gauss_newton(case: Case) -> Timed:
    """The dense Gauss-Newton matrix against Jacobians, and torch.func's product for every column, which is returned."""
    objective, n_params = case.network.train, len(case.network.theta)
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((1, n_params)))
    found = compare(
        f"dense Gauss-Newton matrix, {objective.n} images, {n_params} parameters",
        {
            "dense": Way(lambda: objective.matrices(*case.one, gauss_newton=True)[0], repeats=2),
            "vmap(jacrev) and one product": Way(case.jacobian_gauss_newton, repeats=1),
            "torch.func, a product a column": Way(
                lambda: case.plain_products(v, gauss_newton=True), 1 / n_params, lambda g: v @ g
            ),
        },
    )
    return found["torch.func, a product a column"]


def scores(case: Case, product_seconds: float) -> None:
    """All training points' scores for all test points on the damped Gauss-Newton matrix, from nothing.

    product_seconds: of a product of the Gauss-Newton matrix and one vector by torch.func.
    """
    network, sizes = case.network, case.sizes
    everyone = Points(np.arange(sizes.points), ["all"] * sizes.points)

    def estimated(name: str, **options: object) -> Tensor:
        return torch.from_numpy(ESTIMATORS[name](replace(network), everyone, **options).changes)

    def by_jacobians() -> Tensor:
        theta, weights = case.one
        damped = case.jacobian_gauss_newton() + DAMPING * torch.eye(theta.shape[1], dtype=theta.dtype)
        of_test = Objective(network.train.model, network.test.data).example_gradients(theta)[0]
        solved = torch.cholesky_solve(of_test.T, torch.linalg.cholesky(damped))
        gradients = case.in_chunks(lambda part, _: part.example_gradients(theta)[0], weights)
        return torch.cat(gradients) @ solved / network.train.n

    found = compare(
        f"scores of {network.train.n} training points for {sizes.points} test points, from nothing",
        {
            "dense matrix and its eigenvectors": Way(lambda: estimated("exact_ggn"), repeats=1),
            "block CG": Way(lambda: estimated("cg_ggn", tolerance=TOLERANCE), limit=SOLVED, repeats=1),
            "vmap(jacrev), Cholesky, vmap(grad)": Way(by_jacobians, repeats=1),
        },
    )
    scores_by_loop(case, found["dense matrix and its eigenvectors"], product_seconds)


def scores_by_loop(case: Case, ours: Timed, product: float) -> None:
    """The same by a loop of gradients and a run of scipy's CG for each test point, from parts of it.

    A gradient each for all training and test points, timed on a few; for each test point as many iterations of CG as
    it takes for the first one with the library's product of the same matrix, each as long as torch.func's `product`.
    """
    network, sizes, m, vectors = case.network, case.sizes, case.sizes.points, []
    few = in_turn({"": Way(lambda: gradients_by_loop(network.train, network.theta, sizes.examples))})[""]
    (v,) = gradients_by_loop(network.test, network.theta, 1)

    def damped(u: np.ndarray) -> np.ndarray:
        u = torch.from_numpy(u).view(1, 1, -1)
        vectors.append(u)
        return (network.train.products(case.one[0], u, case.one[1], gauss_newton=True) + DAMPING * u).numpy()

    x, _ = cg(LinearOperator((len(v), len(v)), matvec=damped, dtype=np.float64), v.numpy(), rtol=TOLERANCE)
    theirs = few.value @ torch.from_numpy(x) / network.train.n
    gap = agree("scores by a loop", theirs, ours.value[: len(theirs), 0], SOLVED)
    seconds = few.seconds / len(theirs) * (network.train.n + m) + m * len(vectors) * product
    print(
        f"  loop of torch.func and scipy's CG: {said(seconds)} (scaled up from {len(theirs)} gradients and "
        f"{len(vectors)} products), {seconds / ours.seconds:.3g} times as long; relative difference {gap:.0e}"
    )


def left_out_gradients(case: Case) -> None:
    """Gradients of left-out networks, each under its own weights on all images: a chord iteration of their optima."""
    objective, weights = case.network.train, case.left_out
    theta, few = case.network.theta.repeat(len(weights), 1), case.sizes.together
    compare(
        f"gradients of {len(weights)} left-out networks on all {objective.n} images",
        {
            "the stack": Way(lambda: objective.gradient(theta, weights)),
            "torch.func, one network after the other": Way(
                lambda: case.plain_gradients(weights[:1]), 1 / len(weights), lambda g: g[:1]
            ),
            f"torch.func, {few} networks under a vmap": Way(
                lambda: case.plain_gradients(weights[:few]), few / len(weights), lambda g: g[:few], repeats=1
            ),
        },
    )


def left_out_optima(network: Network, count: int) -> None:
    """Certified minima without each of `count` training images drawn at random, from a network at a certified minimum.

    Newton steps with the network's Hessian first, BFGS where they do not arrive. The dense Hessian is there already.
    """
    n = network.train.n
    drawn = Removals.single(np.sort(np.random.default_rng(0).choice(n, count, replace=False)), n)
    points = choose_points(network.test_losses(), {"max_loss": 1})
    chosen = Chosen({"influential": [drawn.none()], "drawn": [drawn]})  # BFGS is for the first, where it is limited
    print(f"{count} left-out optima, {n} images (the network: {network.fit}, {network.certificate['grad_norm']:.0e})")
    for name, options in (("Newton steps with the one Hessian", {"bfgs_points": 1}), ("and BFGS for the others", {})):
        run = Way(lambda options=options: TRUTHS["minimum"]([network], [points], [chosen], **options)[0], repeats=1)
        found = in_turn({name: run})[name]
        reached = int(np.isfinite(found.value.changes[:, 0]).sum())
        print(f"  {name}: {reached} certified in {said(found.seconds)}")


def at_a_minimum(train_data: Data, test_data: Data, networks: Path | str) -> Network:
    """The network of the study of record at weight decay 0.001, seed 0, as it is kept; without that, an hour's work."""
    schedule = Schedule(2500, 500, 0.01, seed=0)
    return prepare(SmallCNN(), train_data, test_data, DECAY, DAMPING, schedule, 3, 10, networks=networks)


def minibatches(case: Case) -> None:
    """Leave-one-out training with a control, float32, against torch.optim.Adam on single networks and a vmap."""
    network, sizes, data = case.network, case.sizes, case.network.train.data
    data, model, schedule = Data(data.x.float(), data.y), network.train.model, case.schedule(sizes.steps)
    single, plain = cnn_objective(model, data, DECAY, "cpu"), Objective(model, data, DECAY)
    weights = torch.cat([case.one[1], case.left_out])
    start = network.theta.float().repeat(len(weights), 1)

    def moved(objective: Objective, count: int) -> Tensor:
        return train(objective, start[:count], weights[:count], schedule).theta - start[:count]

    def alone() -> Tensor:
        found = by_optimiser(model.module(start[1]), data.x[0], data.y[0], weights[1], schedule, DECAY)
        return (found - start[1])[None]

    every, few = len(weights), sizes.together
    ways = {
        "the stack": Way(lambda: moved(single, every)),
        "loop of torch.optim.Adam": Way(alone, 1 / every, lambda found: found[1:2], SINGLE),
        f"vmap of torch.func, {few} networks": Way(
            lambda: moved(plain, few), few / every, lambda found: found[:few], SINGLE
        ),
    }
    what = f"minibatch training, {every} networks, {sizes.steps} batches of {schedule.batch}, float32"
    ours = compare(what, ways)["the stack"]
    print(f"  {sizes.steps / ours.seconds:.2f} steps a second")


def gradient_flops(model: SmallCNN) -> int:
    """Floating-point operations of one image's gradient: 2 for each multiply-add of the convolutions.

    A layer takes n_out n_in kernel^2 side_out^2 multiply-adds forward, as many for the gradient of its weights, and as
    many for that of its input, which the first layer does not need. Activations, biases and softmax are not counted.
    """
    forward = [stage.n_weights * stage.side_out**2 for stage in model.stages]
    return 2 * (3 * sum(forward) - forward[0])


def share_of_peak(case: Case) -> None:
    """The gradient kernel's rate against that of a large matrix product, on as many threads."""
    data, model, size = case.network.train.data, case.network.train.model, 4
    for kind, name in ((torch.float64, "float64"), (torch.float32, "float32")):
        objective = cnn_objective(model, Data(data.x.to(kind), data.y), DECAY, "cpu")
        theta, weights = case.network.theta.to(kind).repeat(size, 1), objective.uniform(size)
        seconds = in_turn({"": Way(lambda o=objective, t=theta, w=weights: o.gradient(t, w))})[""].seconds
        rate, peak = size * objective.n * gradient_flops(model) / seconds, matrix_product_rate(np.dtype(name).type)
        print(
            f"gradient, {name}: {rate / 1e9:.0f} Gflop/s on {torch.get_num_threads()} threads, "
            f"{100 * rate / peak:.0f}% of a large matrix product's {peak / 1e9:.0f}"
        )


def report(case: Case) -> None:
    """Time every part and print it."""
    steps, threads = case.sizes.training, torch.get_num_threads()
    print(f"Koh and Liang's network, {case.network.train.n} images, {threads} threads, after {steps} steps of Adam")
    hessians(case)
    scores(case, gauss_newton(case).seconds / len(case.network.theta))
    for part in (left_out_gradients, minibatches, share_of_peak):
        part(case)
