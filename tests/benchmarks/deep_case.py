"""What the benchmarks of the study over architectures share: how much, which networks, how they take turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from clock import best
from fragile_lib.deep.network import Network, prepare
from small_mnist import Timed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fragile_lib.data.sets import Data
from fragile_lib.minimise.modules import Schedule, make_optimiser
from fragile_lib.models.architectures import build, frozen_statistics
from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.streamed import StreamedObjective

DECAY, DAMPING, RATE = 1e-3, 1e-2, 1e-3  # those of the study
# Relative differences allowed in float32: of slopes along one direction, of those along several and of products, and of
# gradients in training mode, where dividing by the batch's own deviations enlarges rounding. GPUs round the factors of
# convolutions to TF32, with its 10 bits.
SLOPES, SINGLE, TRAINING, TF32 = 1e-4, 1e-3, 2e-2, 2e-2


@dataclass(frozen=True)
class Sizes:
    """How much is timed, of which images."""

    dataset: str = "cifar10"
    source: str = "full"
    images: int = 500  # of the trained network; test images:
    tests: int = 100
    training: int = 100  # its steps
    fraction: float = 0.06  # of these, in retraining
    narrow: float = 0.125  # width
    wide: float = 1.0
    batch: int = 50  # images of a training step, narrow and wide
    wide_batch: int = 20
    forward: int = 40  # images scored by forward mode along one direction; by reverse mode, or along several:
    reverse: int = 10
    directions: tuple[int, ...] = (1, 8)
    curved: int = 20  # images of a product
    vectors: int = 6
    removals: int = 12
    top: int = 40  # images that no rounding may exchange
    watched: int = 100  # images of the estimate whose memory is watched; and four times as many
    chunk: int = 25
    curving: tuple[str, ...] = ("resnet18", "resnet50")  # networks of the products
    compiled: str = "resnet18"
    backend: str = "inductor"
    repeats: int = 2


SMALL = Sizes(
    dataset="mnist",
    source="digits",
    images=40,
    tests=20,
    training=10,
    fraction=0.5,
    narrow=0.03125,
    wide=0.0625,
    batch=10,
    wide_batch=10,
    forward=6,
    reverse=4,
    directions=(1, 2),
    curved=4,
    curving=("resnet18",),
    compiled="vgg13",
    vectors=2,
    removals=3,
    top=5,
    watched=20,
    chunk=20,
    backend="aot_eager",
    repeats=1,
)


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

    def frozen(self, architecture: str, width: float, count: int) -> StreamedObjective:
        """J of a network as it starts on the first images, batch statistics frozen on them."""
        x, y = self.batch(count)
        model = ModuleModel(frozen_statistics(self.module(architecture, width), x, count), 10)
        return StreamedObjective(model, Data(x[None], y[None]), DECAY, str(self.device))

    @cached_property
    def network(self) -> Network:
        """A narrow ResNet-18 with the stem of the study, trained."""
        sizes = self.sizes
        module = self.module("resnet18", sizes.narrow, "strided")
        schedule = Schedule(sizes.training, sizes.batch, RATE)
        return prepare(module, 10, self.train, self.test, DECAY, DAMPING, schedule, "batch", device=str(self.device))


def placed(train_data: Data, test_data: Data, sizes: Sizes, device: str) -> Case:
    """The case on a device, its images with channels last, as `deep.network` has them."""
    found = []
    for data in (train_data, test_data):
        x = data.x[0].to(device=device, dtype=torch.float32, memory_format=torch.channels_last)
        found.append(Data(x[None], data.y.to(device)))
    return Case(*found, sizes)


def in_turn(case: Case, ways: dict[str, Callable[[], object]], repeats: int | None = None) -> dict[str, Timed]:
    """Call each way some times, in turns: what it returned, and the seconds of its fastest call."""
    values: dict[str, object] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}

    def once(name: str) -> None:
        values[name] = ways[name]()
        if case.device.type == "cuda":
            torch.cuda.synchronize(case.device)

    for _ in range(repeats or case.sizes.repeats):
        for name in ways:
            seconds[name].append(best(partial(once, name), 1))
    return {name: Timed(values[name], min(seconds[name])) for name in ways}


def training_step(module: nn.Module, x: Tensor, y: Tensor, mode: Callable | None = None) -> Callable[[], None]:
    """A step of Adam on these images, to be called again and again; mode: makes the context of the forward pass."""
    optimiser = make_optimiser(module, Schedule(1, len(x), RATE), DECAY)

    def step() -> None:
        optimiser.zero_grad()
        _loss(module, x, y, mode).backward()
        optimiser.step()

    return step


def gradient_of(module: nn.Module, x: Tensor, y: Tensor, mode: Callable | None = None) -> Tensor:
    """The gradient (P,) of the mean loss."""
    found = torch.autograd.grad(_loss(module, x, y, mode), list(module.parameters()))
    return torch.cat([g.detach().flatten().float() for g in found])


def _loss(module: nn.Module, x: Tensor, y: Tensor, mode: Callable | None) -> Tensor:
    if mode is None:
        return cross_entropy(module(x), y)
    with mode():
        return cross_entropy(module(x), y)


def yes(holds: bool) -> str:
    """The word for it."""
    return "yes" if holds else "no"
