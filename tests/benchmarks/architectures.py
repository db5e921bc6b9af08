"""Networks of the study over architectures: the hot paths against the obvious alternative, both timed in this run.

Full width is torchvision's; narrow networks, an eighth of it, are those of the study of record. The alternatives are
torch.func and torch.autograd without this library, and torch's own switches: memory format, bfloat16, torch.compile.
All run on one core, or on the GPU where there is one. The ways of a comparison take turns, so that other work on the
machine meets them alike, and the fastest of each counts. Every ratio comes with a check that both ways give the same
numbers; a check that fails ends the run. bfloat16 gives other numbers: there the check is a rule, printed with what it
says.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from deep_case import DAMPING, DECAY, SINGLE, SLOPES, Case, Sizes, gradient_of, in_turn, yes
from fragile_lib.deep.network import Network
from small_mnist import DisagreementError, agree
from switches import compilation, half_precision, memory_formats
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.functional import cross_entropy

from fragile_lib.data.sets import Data
from fragile_lib.minimise.modules import Schedule, copied, go_on_without, losses_of
from fragile_lib.models.architectures import build, frozen_statistics
from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.streamed import StreamedObjective, gauss_newton_product, hessian_product
from fragile_lib.solvers import BlockCGSolver
from fragile_lib.tools.measure import Peak

TIMES_FASTER = 3  # what forward mode is asked for, against vmap(grad)


# -- scores, products, retraining --------------------------------------------------------------------------------------


def scores(case: Case) -> None:
    """Scores of training images along test gradients by ResNet-18 at full width: forward mode against gradients."""
    sizes = case.sizes
    objective = case.frozen("resnet18", sizes.wide, sizes.forward)
    theta = objective.model.theta
    few, module = case.batch(sizes.reverse), objective.model.module(theta)
    tests = zip(case.test.x[0].split(1), case.test.y[0].split(1), strict=True)
    along = torch.stack([gradient_of(module, *test) for test in islice(tests, max(sizes.directions))])
    print(f"scores of training images, ResNet-18, {len(theta) / 1e6:.1f} million parameters, images/s")
    for count in sizes.directions:
        v, some = along[:count], sizes.forward if count == 1 else sizes.reverse
        scored = objective.on(Data(case.train.x[:, :some], case.train.y[:, :some]))
        ways = {
            "forward mode": lambda v=v, scored=scored: scored.directional(theta[None], v[None])[0],
            "vmap(grad)": lambda v=v: slopes_by_vmap(module, v, *few),
            "loop of autograd.grad": lambda v=v: slopes_by_loop(module, v, *few),
        }
        found = in_turn(case, ways)
        ours = found.pop("forward mode")
        rate = some / ours.seconds
        print(f"  {count} at once: forward mode {rate:.1f} ({some} images timed)")
        for name, theirs in found.items():
            limit = case.allowed(SLOPES if count == 1 else SINGLE)
            gap = agree(name, ours.value[:, : sizes.reverse], theirs.value, limit)
            faster = rate / (sizes.reverse / theirs.seconds)
            asked = f" (at least {TIMES_FASTER}: {yes(faster >= TIMES_FASTER)})" if name == "vmap(grad)" else ""
            print(
                f"    {name} {sizes.reverse / theirs.seconds:.1f} ({sizes.reverse} timed): {faster:.1f} times faster"
                f"{asked}; {gap}"
            )


def slopes_by_vmap(module: nn.Module, v: Tensor, x: Tensor, y: Tensor, chunk: int = 5) -> Tensor:
    """v_k . grad loss_i by the gradients of a few examples at once: (K, n).

    By parameters as they are: slices of one flat vector would have every backward pass write it once for each of them.
    """

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(module, values, (image[None],)), label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    values = {name: p.detach() for name, p in module.named_parameters()}
    found = []
    for part in zip(x.split(chunk), y.split(chunk), strict=True):
        gradient = torch.cat([g.flatten(1) for g in gradients(values, *part).values()], dim=1)
        found.append(v @ gradient.T)
    return torch.cat(found, dim=1)


def slopes_by_loop(module: nn.Module, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """v_k . grad loss_i by one gradient after the other: (K, n)."""
    found = []
    for i in range(len(x)):
        loss = cross_entropy(module(x[i : i + 1]), y[i : i + 1])
        gradient = torch.autograd.grad(loss, list(module.parameters()))
        found.append(v @ torch.cat([g.flatten() for g in gradient]))
    return torch.stack(found, dim=1)


def products(case: Case) -> None:
    """Curvature times several vectors: the library's two passes against one vmap of torch.func's product."""
    sizes = case.sizes
    for architecture in sizes.curving:
        objective = case.frozen(architecture, sizes.narrow, sizes.curved)
        model, theta, (x, y) = objective.model, objective.model.theta, case.batch(sizes.curved)
        v = torch.from_numpy(np.random.default_rng(0).standard_normal((sizes.vectors, len(theta)))).to(theta)
        weights = objective.uniform(1)[0]
        for name, own, plain in (
            ("Gauss-Newton", gauss_newton_product, plain_gauss_newton),
            ("Hessian", hessian_product, plain_hessian),
        ):
            arguments = model, theta, v, weights, x, y
            found = in_turn(case, {"own": partial(own, *arguments), "plain": partial(plain, *arguments)})
            ours, theirs = found["own"], found["plain"]
            gap = agree(f"{name} products", ours.value, theirs.value, case.allowed(SINGLE))
            print(
                f"{name} products, {architecture} at width {sizes.narrow:g}, {sizes.vectors} vectors, {sizes.curved} "
                f"images: {1e3 * ours.seconds:.0f} ms\n  one vmap of torch.func: {1e3 * theirs.seconds:.0f} ms: "
                f"{theirs.seconds / ours.seconds:.1f} times faster; {gap}"
            )


def plain_gauss_newton(model: ModuleModel, theta: Tensor, v: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """sum_i w_i J_i^T (diag(p) - p p^T) J_i v_k by torch.func: (K, P)."""

    def logits(t: Tensor) -> Tensor:
        return model(t, x)

    def product(u: Tensor) -> Tensor:
        out, tangent = jvp(logits, (theta,), (u,))
        p = out.softmax(1)
        return vjp(logits, theta)[1](weights[:, None] * p * (tangent - (p * tangent).sum(1, keepdim=True)))[0]

    return vmap(product)(v)


def plain_hessian(model: ModuleModel, theta: Tensor, v: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """sum_i w_i hess loss_i v_k by torch.func, forward over reverse: (K, P)."""

    def loss(t: Tensor) -> Tensor:
        return (weights * cross_entropy(model(t, x), y, reduction="none")).sum()

    return vmap(lambda u: jvp(grad(loss), (theta,), (u,))[1])(v)


def retraining(case: Case) -> None:
    """Leave-one-out retraining that branches off the control, against a full run of each removal and of the control."""
    network, removals = case.network, list(np.arange(case.sizes.removals)[:, None])
    schedule = network.schedule.continued(case.sizes.fraction, 0)
    test = network.test.data.x[0], network.test.data.y[0]
    arguments = network.trained, network.train_images, test, schedule, DECAY, removals
    nobody = np.array([], dtype=int)
    ways = {
        "branches": lambda: go_on_without(*arguments),
        "full runs": lambda: np.stack([full_run(network, schedule, removal) for removal in (nobody, *removals)]),
    }
    found = in_turn(case, ways)
    ours, theirs = found["branches"], found["full runs"]
    changes = torch.from_numpy(np.concatenate([ours.value.control[None], ours.value.removed]))
    gap = agree("retraining", changes, torch.from_numpy(theirs.value), 0.0 if case.device.type == "cpu" else SINGLE)
    print(
        f"retraining without each of {len(removals)} images, {schedule.steps} steps of {schedule.batch}, and a "
        f"control: {ours.seconds:.1f} s\n  full runs: {theirs.seconds:.1f} s: {theirs.seconds / ours.seconds:.2f} "
        f"times faster; {gap}"
    )


def full_run(network: Network, schedule: Schedule, removed: np.ndarray) -> np.ndarray:
    """Test losses (m,) after going on without some images, every step computed."""
    (x, y), trained = network.train_images, network.trained
    module, optimiser = copied(trained.module, trained.optimiser, schedule, DECAY)
    for step, rows in enumerate(schedule.rows(len(x))):
        kept = rows[~np.isin(rows, removed)]
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        optimiser.zero_grad()
        (cross_entropy(module(x[kept]), y[kept], reduction="sum") / len(rows)).backward()
        optimiser.step()
    return losses_of(module, network.test.data.x[0], network.test.data.y[0])


# -- memory ------------------------------------------------------------------------------------------------------------


def memory(case: Case) -> None:
    """Peak memory of an estimate of n and of 4n images, each in a process of its own; always on the CPU.

    Raises:
        DisagreementError: it grows by more than the images and one chunk's activations.
    """
    sizes, rises = case.sizes, []
    x, y = (part[: 4 * sizes.watched].cpu() for part in (case.train.x[0], case.train.y[0]))
    for count in (sizes.watched, 4 * sizes.watched):
        rises.append(in_fresh_process(peak_rise, x[:count].numpy(), y[:count].numpy(), sizes))
    images = (x[sizes.watched :].nbytes + y[sizes.watched :].nbytes) / 1e6
    held = activations(case.module("resnet18", sizes.narrow).cpu(), x[: sizes.chunk])
    print(
        f"peak memory of an estimate, narrow ResNet-18, chunks of {sizes.chunk}: {rises[0]:.0f} MB on "
        f"{sizes.watched} images, {rises[1]:.0f} MB on {4 * sizes.watched}\n  "
        + check_growth(rises[1] - rises[0], images, held)
    )


def in_fresh_process(run: Callable, *arguments: object) -> Any:
    """What `run` returns in a process that has used no memory before."""
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        return fresh.submit(run, *arguments).result()


def peak_rise(x: np.ndarray, y: np.ndarray, sizes: Sizes) -> float:
    """Megabytes by which the process rises while images x (n, C, H, W) are taken in, one gradient solved for and all
    images scored.
    """
    torch.set_num_threads(1)
    module = build("resnet18", x.shape[1], x.shape[-1], 10, sizes.narrow)
    model = ModuleModel(frozen_statistics(module, torch.from_numpy(x[:2].copy()), 2), 10)
    with Peak() as peak:
        data = Data(torch.from_numpy(x.copy())[None], torch.from_numpy(y.copy())[None])
        objective = StreamedObjective(model, data, DECAY, chunk=sizes.chunk)
        v = gradient_of(model.module(model.theta), data.x[0, :1], data.y[0, :1])[None]
        solve = BlockCGSolver(objective, model.theta, DAMPING, gauss_newton=True, tolerance=1e-2, max_iterations=2)
        objective.directional(model.theta[None], solve(v).x[None])
    return peak.mb


def activations(module: nn.Module, x: Tensor) -> float:
    """Megabytes that a forward pass on images x keeps for the backward pass, parameters left out."""
    kept, parameters = {}, {p.untyped_storage().data_ptr() for p in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(x)
    del out  # held until here, so that no storage came twice
    return sum(size for place, size in kept.items() if place not in parameters) / 1e6


def check_growth(growth: float, images: float, chunk: float) -> str:
    """Megabytes of growth beside those of the added images and of one chunk's activations, in words.

    Raises:
        DisagreementError: the growth is above both together.
    """
    said = f"{growth:.1f} MB more for {images:.1f} MB more of images; one chunk's activations are {chunk:.1f} MB"
    if not growth <= images + chunk:
        raise DisagreementError(f"memory of an estimate: {said}")
    return said


# -- all of them -------------------------------------------------------------------------------------------------------


def report(case: Case) -> None:
    """Time every part and print it."""
    sizes = case.sizes
    where = "one core" if case.device.type == "cpu" else torch.cuda.get_device_name(case.device)
    print(f"Networks of the study over architectures, {sizes.dataset}, float32, on {where}")
    for part in (scores, products, retraining, memory_formats, half_precision, compilation, memory):
        part(case)
