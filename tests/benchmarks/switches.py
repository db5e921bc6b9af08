"""torch's switches on networks of the study over architectures: memory format, bfloat16, torch.compile."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from math import ceil
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
from deep_case import TRAINING, Case, gradient_of, in_turn, training_step, yes
from fragile_lib.deep.estimators import make_solver, test_gradients
from fragile_lib.examination import choose_test_points, choose_training_points
from scipy.stats import spearmanr
from small_mnist import Timed, agree
from torch import Tensor

from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.streamed import StreamedObjective

SAME_RANKING = 0.999  # Spearman; and the same images on top


def memory_formats(case: Case) -> None:
    """A training step with channels last, as the library has it, against contiguous memory."""
    sizes = case.sizes
    for width, count in ((sizes.narrow, sizes.batch), (sizes.wide, sizes.wide_batch)):
        for architecture in ("resnet18", "vgg13"):
            x, y = case.batch(count)
            module = case.module(architecture, width)
            plain = deepcopy(module).to(memory_format=torch.contiguous_format)
            pairs = {"last": (module, x), "contiguous": (plain, x.clone(memory_format=torch.contiguous_format))}
            gap = agree(
                "channels last", *(gradient_of(m, images, y) for m, images in pairs.values()), case.allowed(TRAINING)
            )
            found = in_turn(case, {name: training_step(m, images, y) for name, (m, images) in pairs.items()})
            last, contiguous = found["last"].seconds, found["contiguous"].seconds
            print(
                f"training step, {architecture} at width {width:g}, {count} images: channels last {1e3 * last:.0f} ms, "
                f"contiguous {1e3 * contiguous:.0f} ms: {contiguous / last:.2f} times as fast; {gap}"
            )


def half_precision(case: Case) -> None:
    """Scores and training steps in bfloat16 against float32, and whether that leaves rankings as they are."""
    sizes, network = case.sizes, case.network
    each = max(sizes.directions) // 2
    points = choose_test_points(network.test.losses(network.theta[None])[0], {"max_loss": each, "p50_loss": each})
    v = make_solver(network, "ekfac")(test_gradients(network, points)).x
    found = in_turn(case, slopes_in_both(network.train, network.theta, v))
    single, half = found["float32"], found["bfloat16"]
    spearman, common, error = compare_rankings(single.value, half.value, sizes.top)
    print(
        f"scores in bfloat16, narrow ResNet-18, {network.train.n} images, {len(v)} test points: "
        f"{single.seconds / half.seconds:.2f} times as fast as float32\n  at the worst test point: Spearman "
        f"{spearman:.5f}, {common} of the {sizes.top} top images the same, largest relative error among them "
        f"{100 * error:.2g}%\n  changes no ranking (Spearman >= {SAME_RANKING}, the same {sizes.top} on top): "
        f"{yes(spearman >= SAME_RANKING and common == sizes.top)}"
    )
    wide = case.frozen("resnet18", sizes.wide, sizes.forward)
    one = gradient_of(wide.model.module(wide.model.theta), wide.data.x[0, :1], wide.data.y[0, :1])[None]
    found = in_turn(case, slopes_in_both(wide, wide.model.theta, one))
    print(f"  full width, {wide.n} images, 1 direction: {_ratio(found)} times as fast")
    for width, count in ((sizes.narrow, sizes.batch), (sizes.wide, sizes.wide_batch)):
        _half_steps(case, width, count)


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


def slopes_in_both(objective: StreamedObjective, theta: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Forward mode along v (K, P) in float32 and in bfloat16, each giving (K, n)."""
    rounded = StreamedObjective(
        InBfloat16(objective.model), objective.data, objective.weight_decay, str(objective.device), objective.chunk
    )
    both = {"float32": objective, "bfloat16": rounded}
    return {name: lambda o=o: o.directional(theta[None], v[None])[0] for name, o in both.items()}


def compare_rankings(single: Tensor, half: Tensor, top: int) -> tuple[float, int, float]:
    """(Spearman, common images among the `top` of largest |score|, largest relative error of those): the worst row.

    single, half: scores (K, n); the error is relative to single's, on single's top images.
    """
    rows = []
    for right, rounded in zip(single.double().cpu().numpy(), half.double().cpu().numpy(), strict=True):
        chosen, other = (choose_training_points(s, "top_influence", top) for s in (right, rounded))
        error = np.abs(rounded[chosen] / right[chosen] - 1).max()
        rows.append((spearmanr(right, rounded).statistic, len(np.intersect1d(chosen, other)), error))
    ranks, common, errors = zip(*rows, strict=True)
    return float(np.min(ranks)), int(np.min(common)), float(np.max(errors))


def _half_steps(case: Case, width: float, count: int) -> None:
    x, y = case.batch(count)
    module = case.module("resnet18", width)
    mixed = partial(torch.autocast, case.device.type, torch.bfloat16)
    right, rounded = gradient_of(module, x, y), gradient_of(module, x, y, mixed)
    ways = {"float32": training_step(deepcopy(module), x, y), "bfloat16": training_step(module, x, y, mixed)}
    error = (rounded - right).norm() / right.norm()
    print(
        f"  training step, width {width:g}, {count} images, under torch.autocast: {_ratio(in_turn(case, ways))} times "
        f"as fast; gradient off by {100 * error:.2g}%"
    )


def compilation(case: Case) -> None:
    """torch.compile of a training step against eager, and the steps after which its compilation has paid."""
    refusal = why_not_compiled(case)
    if refusal:
        print(f"torch.compile: skipped, it does not work here ({refusal})")
        return
    sizes, (x, y) = case.sizes, case.batch(case.sizes.batch)
    module = case.module(sizes.compiled, sizes.narrow)
    right = gradient_of(module, x, y)
    with TemporaryDirectory() as empty, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=empty):  # no earlier run's work
        compiled = torch.compile(deepcopy(module), backend=sizes.backend)
        ways = {"eager": training_step(module, x, y), "compiled": training_step(compiled, x, y)}

        def begin() -> Tensor:
            found = gradient_of(compiled, x, y)
            for _ in range(2):  # a second step could be compiled anew
                ways["compiled"]()
            return found

        first = in_turn(case, {"first": begin}, 1)["first"]
        gap = agree("torch.compile", first.value, right, case.allowed(TRAINING))
        found = in_turn(case, ways, 5 * sizes.repeats)
    eager, fast = found["eager"].seconds, found["compiled"].seconds
    spent, gained = first.seconds - 3 * fast, eager - fast
    paid = f"pays back after {ceil(spent / gained)} steps" if gained > 0 else "never pays back"
    print(
        f"torch.compile, training step of {sizes.compiled} at width {sizes.narrow:g}, {sizes.batch} images: "
        f"{1e3 * fast:.0f} ms, eager {1e3 * eager:.0f} ms: {eager / fast:.2f} times as fast\n  compilation "
        f"{spent:.1f} s, {paid}; {gap}"
    )


def why_not_compiled(case: Case) -> str:
    """Empty where torch.compile works on this machine, or the first line of its refusal: no C++ compiler, say."""
    try:
        torch.compile(lambda t: t.sin() + 1, backend=case.sizes.backend)(torch.zeros(8, device=case.device))
    except (RuntimeError, OSError) as error:
        return str(error).strip().split("\n")[0]
    return ""


def _ratio(found: dict[str, Timed]) -> str:
    return f"{found['float32'].seconds / found['bfloat16'].seconds:.2f}"
