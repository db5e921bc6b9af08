"""The hot paths against the obvious alternatives, timed in the same run: `make bench`.

Iris on one core, then small MNIST (`small_mnist`) on all, then the large networks (`architectures`) on one core or the
GPU; the word `iris`, `small_mnist` or `architectures` runs one of them alone. The alternatives are what torch offers
without this library: a loop, as anyone would write it, and the fair one, the same batched by vmap, compiled where that
works. Every ratio comes with a check that all ways give the same numbers. Where an alternative would take minutes, it
is timed on a stated part of the work and scaled up.
"""

from __future__ import annotations

import os
import resource
import warnings
from argparse import ArgumentParser
from pathlib import Path

import architectures
import iris
import small_mnist
import torch
from threadpoolctl import threadpool_limits

from fragile_lib.data import sets
from fragile_lib.kernels import mlp
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives import conv
from fragile_lib.objectives.base import resolve_device


def on_iris() -> None:
    """Time the part on Iris."""
    mlp.compile_all()
    iris.report()


def on_small_mnist() -> None:
    """Time the part on small MNIST."""
    conv.compile_all()
    images = sets.small_mnist("koh_liang", 5_500, 10_000)
    small_mnist.report(small_mnist.trained(*images, SmallCNN(), small_mnist.Sizes()))
    networks = Path(__file__).parents[2] / "reports" / "networks"
    small_mnist.left_out_optima(small_mnist.at_a_minimum(*images, networks), 100)


def on_architectures() -> None:
    """Time the part on the networks of the study over architectures."""
    sizes = architectures.Sizes()
    images = sets.image_subset(sizes.dataset, sizes.source, sizes.images, sizes.tests)
    architectures.report(architectures.placed(*images, sizes, resolve_device("auto")))


def main() -> None:
    """Time all parts, or the one that the command line names, each on its number of cores."""
    every = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = {"iris": (on_iris, 1), "small_mnist": (on_small_mnist, every), "architectures": (on_architectures, 1)}
    parser = ArgumentParser(description="Time the hot paths against what torch offers and print the ratios.")
    parser.add_argument("part", nargs="?", choices=list(parts), help="one part alone; default: all")
    chosen = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # of processes that a part starts
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    warnings.filterwarnings("ignore", "There is a performance drop", module="torch")  # pools under vmap, in all ways
    torch.set_default_dtype(torch.float64)
    for name in [chosen.part] if chosen.part else parts:
        run, cores = parts[name]
        torch.set_num_threads(cores)
        with threadpool_limits(cores):
            run()
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, torch included")


if __name__ == "__main__":
    main()
