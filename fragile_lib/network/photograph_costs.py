"""What scoring and retraining photographs cost: memory, images a second, and what 1.28 million images would take."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from time import perf_counter

import numpy as np
import pandas as pd
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from fragile_lib.data.photographs import Loading
from fragile_lib.data.sets import Data
from fragile_lib.minimise.modules import make_optimiser, one_step
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.models.module import ModuleModel
from fragile_lib.objectives.photographs import PhotoObjective, Scoring
from fragile_lib.objectives.streamed import StreamedObjective
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.measure import Peak

IMAGES = 1_281_167  # of ImageNet's training set
SIZE = 224  # pixels a side of the published networks' images
HOUR = 3600.0


def memory_at_two_sizes(objective: PhotoObjective, part: int = 4) -> pd.DataFrame:
    """Peak memory (MB) while 1/`part` of the photographs, and while all of them, are scored along one direction.

    After a pass of the objective. On a CPU the process's resident memory, on a GPU what is allocated there. A first
    batch goes before, so that neither pays for what the first call of all keeps for good.

    Raises:
        InputError: fewer photographs than `part`.
    """
    n, whole = len(objective.photos), objective.scoring
    one = replace(whole, directions=whole.directions[:1], vectors=1, _made={})
    if n < part:
        raise bad_input("folder", str(objective.photos.listing.folder), f"needs {part} images or more to compare sizes")
    one.on_rows(np.arange(min(n, one.batch)), objective.loading)
    sizes = [max(1, n // part), n]
    peaks = [_peak_mb(one, np.arange(size), objective.loading) for size in sizes]
    return pd.DataFrame({"images": sizes, "peak_mb": peaks})


def _peak_mb(scoring: Scoring, rows: np.ndarray, loading: Loading) -> float:
    if loading.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        scoring.on_rows(rows, loading)
        return torch.cuda.max_memory_allocated() / 1e6
    before = psutil.Process().memory_info().rss / 1e6
    with Peak() as peak:
        scoring.on_rows(rows, loading)
    return before + peak.mb


def rates_at_full_size(
    module: torch.nn.Module, n_directions: int, images: int, weight_decay: float, device: str, size: int = SIZE
) -> dict[str, float]:
    """Images a second of the scoring pass and of a training step on images of the published size, by measurement.

    The images are noise, since no time depends on what they show; decoding is not in it. One batch goes before.
    """
    x = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))
    x = x.to(device=device, memory_format=torch.channels_last)
    y = torch.zeros(images, dtype=torch.int64, device=device)
    module = deepcopy(module).to(device).eval()
    model = ModuleModel(module, module.fc.out_features)
    theta = model.theta.detach()
    v = torch.randn(1, n_directions, len(theta), generator=torch.Generator().manual_seed(1)).to(theta)
    objective = StreamedObjective(model, Data(x[None], y[None]), 0.0, device, images)
    schedule = Schedule.named("nesterov", steps=1, batch=images, learning_rate=1e-6)
    step = (module, make_optimiser(module, schedule, weight_decay), x, y, np.arange(images), schedule, 0, ())
    rates = {
        "scoring": _rate(lambda: objective.directional(theta[None], v), images, device),
        "retraining": _rate(lambda: one_step(*step), images, device),
    }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x[:1])
    return rates | {"flops_per_image": counter.get_total_flops(), "size": size}


def _rate(work: Callable[[], object], images: int, device: str) -> float:
    seconds = []
    for _ in range(2):
        began = perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(perf_counter() - began)
    return images / seconds[1]


def projection(
    rates: dict[str, float], n_directions: int, networks: int, epochs: float, tflops: float, images: int = IMAGES
) -> pd.DataFrame:
    """Images, images a second and hours of ImageNet's scoring pass and of its retraining, here and on one GPU.

    Here: by the measured rates. On one GPU by arithmetic: a training step costs three forward passes, and a pass along
    K directions 1 + 2 K, since a tangent goes through every layer twice, as its input's and as its weights'; divided
    by `tflops`, the 10^12 operations a second that the GPU sustains.

    Args:
        rates: of `rates_at_full_size`.
        n_directions: K, test points times estimators.
        networks: that are retrained, the control among them.
        epochs: of each.
        tflops: see above.
        images: of the set.
    """
    flops = rates["flops_per_image"]
    work = {
        "scoring": (images, rates["scoring"], flops * (1 + 2 * n_directions)),
        "retraining": (round(images * epochs * networks), rates["retraining"], 3 * flops),
    }
    rows = {
        name: {
            "images": count,
            "images_per_second": rate,
            "hours_here": count / rate / HOUR,
            "flops_per_image": cost,
            "gpu_hours": count * cost / (tflops * 1e12) / HOUR,
        }
        for name, (count, rate, cost) in work.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")
