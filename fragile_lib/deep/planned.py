"""A run that has not been made: how large its network is, how much it computes, how much memory it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fragile_lib.deep.network import flops_per_image
from fragile_lib.solvers.batch_lissa import POWER_STEPS
from fragile_lib.tools.errors import bad_input

CG_BLOCKS = 6  # blocks of vectors that block conjugate gradients hold
MOMENTS = {"adam": 2, "rmsprop": 1, "nesterov": 1, "sgd": 0}  # vectors in an optimiser's memory
SINGLE = 4  # bytes of a number in single precision


@dataclass(frozen=True)
class NetworkSize:
    """Operations of a forward pass on one image, parameters, numbers that its layers put out, and how many layers."""

    flops_per_image: int
    n_params: int
    activations: int
    layers: int


def size_of(module: nn.Module, shape: Sequence[int]) -> NetworkSize:
    """The size of a network for images of this shape (C, H, W), by a pass that computes nothing.

    The module is left as it is.
    """
    module, put_out = deepcopy(module).to("meta").eval(), []
    x = torch.empty(1, *shape, device="meta")
    for part in module.modules():
        if not any(True for _ in part.children()) and not isinstance(part, nn.Identity):
            part.register_forward_hook(lambda _, __, out: put_out.append(out.numel()))
    flops = flops_per_image(module, x)
    return NetworkSize(flops, sum(p.numel() for p in module.parameters()), sum(put_out), len(put_out))


def retraining_images(n_train: int, batch: int, steps: int, removals: int, size: int = 1) -> float:
    """Images that go through a step when each of `removals` random groups of `size` images is left out, and a control.

    Each run branches off the control's at the first step that holds one of its images: with E batches in an epoch,
    step t is run with probability 1 - (1 - min(t / E, 1))^size. For single images this is exact in
    the mean where the batch divides n_train.
    """
    reached = np.minimum(np.arange(1, steps + 1) / (n_train // batch), 1)
    return batch * (steps + removals * float((1 - (1 - reached) ** size).sum()))


def planned_work(size: NetworkSize, parameters: Mapping[str, object], architecture: str = "") -> dict[str, object]:
    """The work, as in `cost`, of a run with these parameters of the notebook, at most.

    At most, since nothing stops early and no image is chosen twice. Left out are `train_count` images for each test
    point and as many at random, those of the first test point again where `repeat`, and three kinds of `group_count`
    groups. Training from scratch is not counted.
    """
    p = parameters
    n, m, batch = p["n_train"], 2 * p["test_count"], p["batch"]
    steps = p["epochs"] * (n // batch)
    further = max(1, round(p["retrain_fraction"] * steps))
    retrained = retraining_images(n, batch, further, min(n, p["train_count"] * (m + 1)))
    if p["repeat"]:
        retrained += retraining_images(n, batch, further, p["train_count"])
    if p["group_count"]:
        retrained += 3 * retraining_images(n, batch, further, p["group_count"], p["group_size"])
    used = n - n % p["lissa_batch"]
    products = {
        "lissa": (0 if p["lissa_scale"] else POWER_STEPS * used / n) + m * p["lissa_depth"] * p["lissa_batch"] / n,
        "cg_ggn": m * (p["cg_iterations"] + 1),
        "ekfac": 0,
        "identity": 0,
    }
    return {
        "architecture": architecture,
        "n_train": n,
        "test_points": m,
        "flops_per_image": size.flops_per_image,
        "n_params": size.n_params,
        "layers": size.layers,
        "train": {"images": steps * batch},
        "retrain": {"images": retrained},
        **{name: {"products": products[name]} for name in p["estimators"]},
    }


def run_memory_mb(size: NetworkSize, test_points: int, chunk: int, optimiser: str = "adam", vectors: int = 8) -> float:
    """Megabytes (10^6 bytes) of a run in single precision, from first principles and fitted to nothing:

        4 bytes x (P x (weights + gradient + moments) + 6 m P + chunk x activations of an image x (1 + vectors)),

    for the optimiser's moments, the six blocks of block conjugate gradients, and a chunk with its tangents along the
    vectors that go through together, at most one for each of the m test points.

    Raises:
        InputError: an unknown optimiser.
    """
    if optimiser not in MOMENTS:
        raise bad_input("optimiser", optimiser, f"choose one of {', '.join(MOMENTS)}")
    vectors_held = 2 + MOMENTS[optimiser] + CG_BLOCKS * test_points
    activations = chunk * size.activations * (1 + min(vectors, test_points))
    return SINGLE * (size.n_params * vectors_held + activations) / 1e6
