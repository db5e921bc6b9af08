"""Leaving examples out for real, R times: how well scores agree with it, and how reliable it is itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from fragile_lib import agreement
from fragile_lib.choices import Removals
from fragile_lib.minimise.modules import losses_of
from fragile_lib.own.studied import Studied
from fragile_lib.tools.checks import check_count
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.progress import progress


@dataclass(frozen=True)
class Again:
    """Real changes of k removals on m test examples in R repetitions, beside the scores of a study.

    changes (R, k, m): the measurement after the removal minus that of the same repetition's control, from which nothing
    was left out. estimated (k, m): what the study says.
    """

    removals: Removals
    changes: np.ndarray
    estimated: np.ndarray

    def agreement(self) -> pd.DataFrame:
        """One row for each test example: correlations and slope with the mean of R, and what its noise leaves to say.

        Columns: pearson, spearman, slope, status of `agreement.compare`, and those of `agreement.beside_reliability`:
        the correlation with a single repetition, the reliability of one and of the mean of R, the corrected
        correlation, and intervals. A correlation without a reliability says nothing: with one repetition it is nan.
        """
        rows = []
        for j in range(self.estimated.shape[1]):
            estimated, repeats = self.estimated[:, j], self.changes[:, :, j]
            found = agreement.compare(estimated, repeats.mean(axis=0))
            told = {"pearson": found.pearson, "spearman": found.spearman, "slope": found.slope, "status": found.status}
            rows.append(told | agreement.beside_reliability(estimated, repeats))
        return pd.DataFrame(rows)


def leave_out_again(
    studied: Studied,
    removals: Iterable[int] | Iterable[Iterable[int]],
    fit: Callable[[np.ndarray, int], nn.Module],
    repeats: int = 3,
) -> Again:
    """Train without each removal, `repeats` times, each time beside a control on all examples.

    Args:
        studied: of `study_model`, whose test examples and measurement are taken.
        removals: training examples, each left out by itself (a mask leaves out what it marks); or groups of them, each
            left out as a whole.
        fit: (rows (n',), seed) -> the module trained on these training examples, in evaluation mode. The same seed must
            mean the same start and the same order of what is left; dropout and the like go on, but drawn from it.
        repeats: R, with the seeds 0 .. R - 1.

    Raises:
        InputError: a study that was read from a file, an index that is none, R below 1, or no removals.
    """
    check_count("repeats", repeats)
    if studied.network is None:
        raise bad_input("studied", "read from a file", "give the study itself: its network and data are asked for")
    train, test = studied.network.train, studied.network.test
    left = _removals(removals, train.n)
    everything = np.arange(train.n)

    def measured(group: Sequence[int], seed: int) -> np.ndarray:
        module = fit(np.setdiff1d(everything, group), seed)
        if not isinstance(module, nn.Module):
            raise bad_input("fit(rows, seed)", type(module).__name__, "give the trained torch.nn.Module back")
        return losses_of(module.to(studied.network.theta), test)

    runs = [(seed, group) for seed in range(repeats) for group in ((), *left.members)]
    values = [measured(group, seed) for seed, group in progress(runs, desc="training without")]
    found = np.array(values).reshape(repeats, len(left) + 1, test.n)
    return Again(left, found[:, 1:] - found[:, :1], studied.of(left))


def _removals(given: Iterable[int] | Iterable[Iterable[int]], n: int) -> Removals:
    given = given if isinstance(given, torch.Tensor | np.ndarray) else list(given)
    if not len(given):
        raise bad_input("removals", given, "give training examples to leave out, or groups of them")
    single = np.ndim(given[0]) == 0
    return Removals.single(given, n) if single else Removals.groups(given, n)
