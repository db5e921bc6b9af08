"""How the benchmarks measure: several ways to the same numbers take turns, are compared, and their ratios printed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from fragile_lib.minimise.modules import make_optimiser
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.objectives.base import Objective

EXACT = 1e-9  # relative difference of the same formula in float64


class DisagreementError(RuntimeError):
    """Two ways to the same numbers differ by more than rounding and tolerances explain."""


@dataclass(frozen=True)
class Way:
    """One way to some numbers.

    run: gives them, or some of them. share: of all the work, how much of it a call does; the seconds of the rest are
    scaled up. part: of the numbers that the first way gives, those that this one gives. limit: the relative difference
    allowed from them. repeats: calls, of which the fastest counts.
    """

    run: Callable[[], Any]
    share: float = 1.0
    part: Callable[[Any], Tensor] = lambda numbers: numbers
    limit: float = EXACT
    repeats: int = 3


@dataclass(frozen=True)
class Timed:
    """What a way gave, and the seconds that all of its work takes."""

    value: Any
    seconds: float


def in_turn(ways: dict[str, Way]) -> dict[str, Timed]:
    """Call the ways in turns, so that other work on the machine meets them alike; the fastest call of each counts.

    With several threads all but the first way are also called on one, and the faster counts: torch's threads wait for
    each other where something else runs.
    """
    threads, first = torch.get_num_threads(), next(iter(ways))
    values, seconds = {}, {name: [] for name in ways}
    for turn in range(max(way.repeats for way in ways.values())):
        for name, way in ways.items():
            for count in {threads} if name == first else {threads, 1}:
                if turn < way.repeats:
                    torch.set_num_threads(count)
                    values[name], spent = _once(way.run)
                    seconds[name].append(spent / way.share)
    torch.set_num_threads(threads)
    return {name: Timed(values[name], min(seconds[name])) for name in ways}


def compare(what: str, ways: dict[str, Way]) -> dict[str, Timed]:
    """Time some ways to the same numbers, check that they are the same, and print how long each takes.

    Raises:
        DisagreementError: a way's numbers differ from the first one's by more than its limit.
    """
    found = in_turn(ways)
    (first, ours), *others = found.items()
    print(f"{what}\n  {first}: {said(ours.seconds)}")
    for name, theirs in others:
        way = ways[name]
        gap = agree(f"{what}: {name}", theirs.value, way.part(ours.value), way.limit)
        scaled = "" if way.share == 1 else f" (scaled up from 1 / {1 / way.share:.3g})"
        ratio = f"{theirs.seconds / ours.seconds:.3g} times as long"
        print(f"  {name}: {said(theirs.seconds)}{scaled}, {ratio}; relative difference {gap:.0e}", flush=True)
    return found


def agree(what: str, found: Tensor, expected: Tensor, limit: float) -> float:
    """||found - expected|| / ||expected||.

    Raises:
        DisagreementError: it is above the limit, or not a number.
    """
    found, expected = (torch.as_tensor(numbers) for numbers in (found, expected))
    gap = ((found - expected).norm() / expected.norm()).item()
    if not gap <= limit:
        raise DisagreementError(f"{what}: relative difference {gap:.1e}, above {limit:.0e}")
    return gap


def said(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def by_optimiser(module: nn.Module, x: Tensor, y: Tensor, weights: Tensor, schedule: Schedule, decay: float) -> Tensor:
    """One network trained on J(.; weights) by torch.optim and torch.nn, as anyone would write it: (P,)."""
    optimiser = make_optimiser(module, schedule, decay)
    for rows in schedule.rows(len(y)):
        optimiser.zero_grad()
        lost = cross_entropy(module(x[rows]), y[rows], reduction="none")
        (len(y) / len(rows) * weights[rows].to(x) @ lost).backward()
        optimiser.step()
    return parameters_to_vector(module.parameters()).detach()


def gradients_by_loop(objective: Objective, theta: Tensor, count: int) -> Tensor:
    """Gradients of the first losses, one after the other by autograd: (count, P)."""
    t, (x,), (y,) = theta.clone().requires_grad_(), objective.data.x, objective.data.y
    losses = (cross_entropy(objective.model(t, x[i : i + 1]), y[i : i + 1]) for i in range(count))
    return torch.stack([torch.autograd.grad(loss, t)[0] for loss in losses])


def matrix_product_rate(kind: type = np.float64) -> float:
    """Floating-point operations a second of a large matrix product of this type: the machine's practical peak."""
    a = np.random.default_rng(0).normal(size=(1000, 1000)).astype(kind)
    return 2 * 1000**3 / in_turn({"product": Way(lambda: a @ a, repeats=10)})["product"].seconds


@contextmanager
def compiled(function: Callable, once: Callable[[Callable], Any]) -> Iterator[tuple[Callable | None, float]]:
    """Within: the function by torch.compile, and the seconds of calling it `once`; None where it does not work."""
    with TemporaryDirectory() as empty, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=empty):  # no earlier run's work
        fast, seconds = torch.compile(function), 0.0
        try:
            seconds = _once(partial(once, fast))[1]
            print(f"torch.compile: {said(seconds)} for the first call")
        except (RuntimeError, OSError) as error:
            print(f"torch.compile does not work here: {str(error).strip().splitlines()[0]}")
            fast = None
        yield fast, seconds


def _once(run: Callable[[], Any]) -> tuple[Any, float]:
    began = perf_counter()
    value = run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return value, perf_counter() - began
