"""How the benchmarks measure."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np


def best(run: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of some repeats: the one least disturbed by other work on the machine."""
    times = []
    for _ in range(repeats):
        began = perf_counter()
        run()
        times.append(perf_counter() - began)
    return min(times)


def matrix_product_rate(kind: type = np.float64) -> float:
    """Floating-point operations a second of a large matrix product of this type: the machine's practical peak."""
    a = np.random.default_rng(0).normal(size=(1000, 1000)).astype(kind)
    return 2 * 1000**3 / best(lambda: a @ a, 10)
