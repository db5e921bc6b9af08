"""Compiled work on several cores of one process."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch


def in_threads(run: Callable[..., None], tasks: list[tuple]) -> None:
    """run(*task) for each task, on torch's number of threads, denormal numbers counted as zero."""
    pool = _pool(torch.get_num_threads(), os.getpid())
    for done in [pool.submit(run, *task) for task in tasks]:
        done.result()


@cache
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:
    """Threads are kept from call to call; a forked process has none of its parent's and makes its own."""
    return ThreadPoolExecutor(threads, initializer=torch.set_flush_denormal, initargs=(True,))


def split(first: int, stop: int, count: int) -> list[tuple[int, int]]:
    """Up to `count` ranges of about equal length, none empty."""
    ends = np.unique(np.linspace(first, stop, count + 1).astype(int)).tolist()
    return list(zip(ends[:-1], ends[1:], strict=True))
