"""Networks of the study over architectures: the hot paths against torch.func, torch.autograd and torch's own switches.

Full width is torchvision's; narrow networks, an eighth of it, are those of the study of record. All run on one core, or
on the GPU where there is one. bfloat16 gives other numbers: what it does to rankings is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import ceil
from multiprocessing import get_context

import numpy as np
import torch
from clock import DisagreementError, Way, compare, compiled
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from fragile_lib.choices import Points, choose_points, choose_training
from fragile_lib.data.sets import Data
from fragile_lib.estimates import ESTIMATORS
from fragile_lib.estimates.by_name import SOLVERS
from fragile_lib.minimise.modules import ModuleTrainer, Trained, copied, losses_of, make_optimiser, one_step
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.models.architectures import build, frozen_statistics
from fragile_lib.models.module import ModuleModel
from fragile_lib.network import Network
from fragile_lib.network.modules import as_it_is, prepare
from fragile_lib.objectives.base import Objective
from fragile_lib.tools.measure import Peak

DECAY, DAMPING, RATE = 1e-3, 1e-2, 1e-3  # those of the study
# Relative differences allowed in float32: of slopes and products, of gradients in training mode, where dividing by the
# batch's own deviations enlarges rounding, and where GPUs round the factors of convolutions to TF32, with its 10 bits.
SINGLE, TRAINING, TF32, HALF = 1e-3, 2e-2, 2e-2, 1.0
DIRECTIONS, VECTORS, STEPS = (1, 8), 6, 6
SAME_RANKING = 0.999  # Spearman; and the same images on top


@dataclass(frozen=True)
class Sizes:
    """How much is timed, of which images."""

    dataset: str = "cifar10"
    source: str = "full"
    images: int = 500  # of the trained network; test images:
    tests: int = 100
    training: int = 100  # its steps, of images:
    batch: int = 50
    narrow: float = 0.125  # width
    wide: float = 1.0
    forward: int = 40  # images scored by forward mode; by reverse mode, multiplied with, and in a step at full width:
    reverse: int = 10
    removals: int = 12
    top: int = 40  # images that no rounding may exchange
    watched: int = 100  # images of the estimate whose memory is watched; and four times as many
    chunk: int = 25
    curving: tuple[str, ...] = ("resnet18", "resnet50")  # networks of the products
    stacked: int = 100  # networks retrained at once, and images in their batches


SMALL = Sizes("mnist", "digits", 40, 20, 10, 10, 1 / 32, 1 / 16, 8, 6, 3, 5, 10, 10, ("resnet18",), 4)


@dataclass(frozen=True)
class Case:
    """Training and test images (1, n, C, H, W) in float32 on a device, channels last."""

    train: Data
    test: Data
    sizes: Sizes

    @property
    def device(self) -> torch.device:
        """Where everything but the watched memory is."""
        return self.train.x.device

    def allowed(self, limit: float) -> float:
        """The relative difference allowed here, of one allowed on a CPU."""
        return limit if self.device.type == "cpu" else max(limit, TF32)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """The first training images and labels."""
        return self.train.x[0, :count], self.train.y[0, :count]

    def module(self, architecture: str, width: float, stem: str = "small") -> nn.Module:
        """A network as it starts, in training mode, channels last."""
        module = build(architecture, self.train.x.shape[2], self.train.x.shape[-1], 10, width, stem=stem)
        return module.to(device=self.device, memory_format=torch.channels_last)

    def frozen(self, architecture: str, width: float, count: int) -> Objective:
        """J of a network as it starts on the first images, batch statistics frozen on them."""
        x, y = self.batch(count)
        model = ModuleModel(frozen_statistics(self.module(architecture, width), x, count), 10)
        return Objective(model, Data(x[None], y[None]), DECAY, chunk=50)

    @cached_property
    def network(self) -> Network:
        """A narrow ResNet-18 with the stem of the study, trained."""
        schedule = Schedule(self.sizes.training, self.sizes.batch, RATE)
        module, device = self.module("resnet18", self.sizes.narrow, "strided"), str(self.device)
        return prepare(module, 10, self.train, self.test, DECAY, DAMPING, schedule, "batch", device=device)


def placed(train_data: Data, test_data: Data, sizes: Sizes, device: str) -> Case:
    """The case on a device, its images with channels last, as `network.modules` has them."""
    found = []
    for data in (train_data, test_data):
        x = data.x[0].to(device=device, dtype=torch.float32, memory_format=torch.channels_last)
        found.append(Data(x[None], data.y.to(device)))
    return Case(*found, sizes)


def gradient_of(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient (P,) of the mean loss."""
    found = torch.autograd.grad(cross_entropy(module(x), y), list(module.parameters()))
    return torch.cat([g.flatten() for g in found])


# -- scores, products, retraining --------------------------------------------------------------------------------------


def scores(case: Case) -> None:
    """Scores of training images along test gradients by ResNet-18 at full width: forward mode against gradients."""
    sizes, objective = case.sizes, case.frozen("resnet18", case.sizes.wide, case.sizes.forward)
    theta, few = objective.model.theta, case.batch(sizes.reverse)
    module = objective.model.module(theta)
    tests = zip(case.test.x[0].split(1), case.test.y[0].split(1), strict=True)
    along = torch.stack([gradient_of(module, *test) for test, _ in zip(tests, range(max(DIRECTIONS)), strict=False)])
    rest = {
        "share": sizes.reverse / sizes.forward,
        "part": lambda slopes: slopes[:, : sizes.reverse],
        "limit": case.allowed(SINGLE),
        "repeats": 2,
    }
    for count in DIRECTIONS:
        v = along[:count]
        ways = {
            "forward mode": Way(partial(lambda v: objective.directional(theta[None], v[None])[0], v), repeats=2),
            "vmap(grad)": Way(partial(slopes_by_vmap, module, v, *few), **rest),
            "loop of autograd.grad": Way(partial(slopes_by_loop, module, v, *few), **rest),
        }
        what = f"scores of {sizes.forward} images along {count}, ResNet-18, {len(theta) / 1e6:.1f} million parameters"
        compare(what, ways)


def slopes_by_vmap(module: nn.Module, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """v_k . grad loss_i by the gradients of a few examples at once: (K, n).

    By parameters as they are: slices of one flat vector would have every backward pass write it once for each of them.
    """

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(module, values, (image[None],)), label[None])

    values = {name: p.detach() for name, p in module.named_parameters()}
    gradients = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=5)(values, x, y)
    return v @ torch.cat([g.flatten(1) for g in gradients.values()], dim=1).T


def slopes_by_loop(module: nn.Module, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """v_k . grad loss_i by one gradient after the other: (K, n)."""
    return torch.stack([v @ gradient_of(module, *one) for one in zip(x.split(1), y.split(1), strict=True)], dim=1)


def products(case: Case) -> None:
    """Curvature times several vectors: the library's two passes against one vmap of torch.func's product."""
    count, width = 2 * case.sizes.reverse, case.sizes.narrow
    for architecture in case.sizes.curving:
        streamed = case.frozen(architecture, width, count)
        plain = Objective(streamed.model, streamed.data, DECAY, str(case.device))
        theta, weights = streamed.model.theta[None], streamed.uniform(1)
        v = torch.from_numpy(np.random.default_rng(0).standard_normal((1, VECTORS, theta.shape[1]))).to(theta)
        for name, gauss_newton in (("Gauss-Newton", True), ("Hessian", False)):
            options = {"weights": weights, "gauss_newton": gauss_newton}
            compare(
                f"{name} products, {architecture} at width {width:g}, {VECTORS} vectors, {count} images",
                {
                    "own": Way(partial(streamed.products, theta, v, **options)),
                    "one vmap of torch.func": Way(
                        partial(plain.products, theta, v, **options), limit=case.allowed(SINGLE)
                    ),
                },
            )


def retraining(case: Case) -> None:
    """Leave-one-out retraining that branches off the control, against a full run of each removal and of the control."""
    network, members = case.network, list(np.arange(case.sizes.removals)[:, None])
    schedule = network.schedule.continued(STEPS, 0)

    def branches() -> np.ndarray:
        found = network.trainer.go_on(schedule, members, network.test)
        return np.concatenate([found.control[None], found.removed])

    def full_runs() -> np.ndarray:
        return np.stack([full_run(network, schedule, removed) for removed in (np.array([], int), *members)])

    compare(
        f"retraining without each of {len(members)} images, {STEPS} steps of {schedule.batch}, and a control",
        {"branches": Way(branches), "full runs": Way(full_runs, limit=0.0 if case.device.type == "cpu" else SINGLE)},
    )


def full_run(network: Network, schedule: Schedule, removed: np.ndarray) -> np.ndarray:
    """Test losses (m,) after going on without some images, every step computed."""
    start, (x, y) = network.trainer.start, network.trainer.data
    module, optimiser = copied(start.module, start.optimiser, schedule, DECAY)
    for step, rows in enumerate(schedule.rows(len(x))):
        one_step(module, optimiser, x, y, rows, schedule, step, removed)
    return losses_of(module, network.test)


def stacks(case: Case) -> None:
    """Retraining as a GPU does it, small networks at once and a large one in a graph, against the loop of torch.optim.

    Everything that is left out is in the first batch, so that no run is the control's.
    """
    if case.device.type == "cpu":
        print("retraining as on a GPU: without a CUDA graph here, so that the ratios say nothing of a GPU's")
    sizes = case.sizes
    for architecture, width, way, count in (
        ("lenet", 1.0, "stack", sizes.stacked),
        ("resnet18", sizes.wide, "single", 1),
    ):
        schedule = Schedule(STEPS if way == "stack" else 2, sizes.stacked, RATE)
        loop, test = untrained(case, architecture, width, schedule)
        members = list(next(schedule.rows(sizes.images))[:count, None])

        def losses(trainer: ModuleTrainer, schedule=schedule, members=members, test=test) -> np.ndarray:
            found = trainer.go_on(schedule, members, test)
            return np.concatenate([found.control[None], found.removed])

        ours = partial(losses, replace(loop, way=way))
        theirs = partial(losses, replace(loop, way="loop"))
        repeats = 2 if way == "stack" else 1
        what = f"retraining {architecture} at width {width:g} without each of {count} images, {schedule.steps} steps"
        # Adam's first steps go by the signs of gradients, however small: what TF32 makes of them is printed.
        limit = TRAINING if case.device.type == "cpu" else HALF
        ways = {way: Way(ours, repeats=repeats), "loop": Way(theirs, limit=limit, repeats=repeats)}
        compare(f"{what} of {schedule.batch}, and a control", ways)


def untrained(case: Case, architecture: str, width: float, schedule: Schedule) -> tuple[ModuleTrainer, Objective]:
    """(a trainer, its test images) of a network as it starts, batch statistics frozen; the optimiser has no memory."""
    objective = case.frozen(architecture, width, case.sizes.batch)
    module = objective.model.bare()
    start = Trained(module, make_optimiser(module, schedule, DECAY), 0, 0.0)
    data = case.train.x[0], case.train.y[0]
    return ModuleTrainer(start, data, DECAY, module), objective.on(case.test)


# -- torch's switches --------------------------------------------------------------------------------------------------


def memory_formats(case: Case) -> None:
    """The gradient of a training step with channels last, as the library has it, against contiguous memory."""
    for width, count in ((case.sizes.narrow, case.sizes.batch), (case.sizes.wide, 2 * case.sizes.reverse)):
        for architecture in ("resnet18", "vgg13"):
            (x, y), module = case.batch(count), case.module(architecture, width)
            plain = deepcopy(module).to(memory_format=torch.contiguous_format)
            limit, flat = case.allowed(TRAINING), x.clone(memory_format=torch.contiguous_format)
            compare(
                f"gradient of a training step, {architecture} at width {width:g}, {count} images",
                {
                    "channels last": Way(partial(gradient_of, module, x, y)),
                    "contiguous": Way(partial(gradient_of, plain, flat, y), limit=limit),
                },
            )


def half_precision(case: Case) -> None:
    """Scores in bfloat16 against float32, and whether that leaves rankings as they are."""
    network, each, top = case.network, max(DIRECTIONS) // 2, case.sizes.top
    points = choose_points(network.test_losses(), {"max_loss": each, "p50_loss": each})
    v = SOLVERS["ekfac"](network)(network.test_gradients(points)).x
    found = in_both("narrow", network.train, network.theta, v)
    spearman, common = worst_ranking(*(timed.value for timed in found.values()), top)
    same = spearman >= SAME_RANKING and common == top
    print(
        f"  at the worst of {len(v)} points: Spearman {spearman:.5f}, {common:g} of the {top} top images the same\n"
        f"  changes no ranking (Spearman >= {SAME_RANKING}, the same {top} on top): {'yes' if same else 'no'}"
    )
    wide = case.frozen("resnet18", case.sizes.wide, case.sizes.forward)
    theta = wide.model.theta
    in_both("full width", wide, theta, gradient_of(wide.model.module(theta), *case.batch(1))[None])


def in_both(name: str, objective: Objective, theta: Tensor, v: Tensor) -> dict:
    """Forward mode along v (K, P) in float32 and in bfloat16."""
    rounded = Objective(InBfloat16(objective.model), objective.data, DECAY, str(objective.device), chunk=50)
    ways = {"float32": objective, "bfloat16": rounded}
    run = {n: Way(lambda o=o: o.directional(theta[None], v[None])[0], limit=HALF) for n, o in ways.items()}
    return compare(f"scores of {objective.n} images along {len(v)}, ResNet-18, {name}", run)


class InBfloat16:
    """A network computed in bfloat16 from parameters, images and tangents in float32; its logits are float32 again.

    torch.autocast does not do for forward mode: after a normalisation with scales in float32 the tangents are float32
    and the values bfloat16, which convolutions refuse.
    """

    def __init__(self, model: ModuleModel) -> None:
        self.model, self.is_weight = model, model.is_weight

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (n, classes)."""
        return self.model(theta.bfloat16(), x.bfloat16()).float()


def worst_ranking(single: Tensor, half: Tensor, top: int) -> tuple[float, float]:
    """(Spearman, common images among the `top` of largest |score|) of scores (K, n): the worst of the K."""
    rows = []
    for pair in zip(single.double().cpu().numpy(), half.double().cpu().numpy(), strict=True):
        chosen = (choose_training("top_influence", top, s, s) for s in pair)
        rows.append((spearmanr(*pair).statistic, len(np.intersect1d(*chosen))))
    return tuple(np.min(rows, axis=0))


def compilation(case: Case) -> None:
    """The gradient of a training step eager and by torch.compile, and the steps after which compiling has paid."""
    (x, y), module = case.batch(case.sizes.batch), case.module("resnet18", case.sizes.narrow)
    with compiled(deepcopy(module), lambda fast: gradient_of(fast, x, y)) as (fast, spent):
        if fast is None:
            return
        ways = {
            "eager": Way(lambda: gradient_of(module, x, y), repeats=10),
            "compiled": Way(lambda: gradient_of(fast, x, y), limit=case.allowed(TRAINING), repeats=10),
        }
        what = f"gradient of a training step, resnet18 at width {case.sizes.narrow:g}, {len(y)} images"
        eager, quick = (way.seconds for way in compare(what, ways).values())
    gained = eager - quick
    print(f"  pays back after {ceil((spent - quick) / gained)} steps" if gained > 0 else "  never pays back")


# -- memory ------------------------------------------------------------------------------------------------------------


def memory(case: Case) -> None:
    """Peak memory of an estimate of n and of 4n images, each in a process of its own; always on the CPU.

    Raises:
        DisagreementError: it grows by more than the images and one chunk's activations.
    """
    sizes, few = case.sizes, case.sizes.watched
    x, y = (part.cpu() for part in case.batch(4 * few))
    less, more = (in_fresh_process(peak_rise, x[:n].numpy(), y[:n].numpy(), sizes) for n in (few, 4 * few))
    images = (x[few:].nbytes + y[few:].nbytes) / 1e6
    held = activations(case.module("resnet18", sizes.narrow).cpu(), x[: sizes.chunk])
    print(f"peak memory of an estimate, narrow ResNet-18, {few} images: {less:.0f} MB; four times as many:")
    print(f"  {more - less:.1f} MB more, of images {images:.1f} MB; one chunk's activations are {held:.1f} MB")
    if more - less > images + held:
        raise DisagreementError("memory of an estimate: it grows by more than the images and one chunk's activations")


def in_fresh_process(run: Callable[..., float], *arguments: object) -> float:
    """What `run` returns in a process that has used no memory before."""
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        return fresh.submit(run, *arguments).result()


def peak_rise(x: np.ndarray, y: np.ndarray, sizes: Sizes) -> float:
    """Megabytes by which the process rises while images x (n, C, H, W) are taken in and scored for one of them."""
    torch.set_num_threads(1)
    module = build("resnet18", x.shape[1], x.shape[-1], 10, sizes.narrow)
    module = frozen_statistics(module, torch.from_numpy(x[:2].copy()), 2)
    with Peak() as peak:
        data = Data(torch.from_numpy(x.copy())[None], torch.from_numpy(y.copy())[None])
        first = Data(data.x[:, :1], data.y[:, :1])
        network = as_it_is(module, 10, data, first, DECAY, DAMPING, sizes.chunk, "cpu")
        ESTIMATORS["cg_ggn"](network, Points(np.array([0]), ["first"]), tolerance=1e-2, max_iterations=2)
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


def report(case: Case) -> None:
    """Time every part and print it."""
    where = "one core" if case.device.type == "cpu" else torch.cuda.get_device_name(case.device)
    print(f"Networks of the study over architectures, {case.sizes.dataset}, float32, on {where}")
    for part in (scores, products, retraining, stacks, memory_formats, half_precision, compilation, memory):
        part(case)
