"""Data sets and their splits. Nothing else knows where data come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from torch import Tensor

from fragile_lib.errors import bad_input


@dataclass(frozen=True)
class Data:
    """S data sets of equal size, stacked: features x (S, n, ...) and labels y (S, n)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """n, the number of examples of each data set."""
        return self.y.shape[1]


def iris_splits(seeds: list[int], test_fraction: float = 0.2) -> tuple[Data, Data]:
    """Training and test sets of Iris, one stratified split a seed, in float64.

    Features are standardised by the mean and standard deviation of each split's own training set.

    Args:
        seeds: one split for each; S = len(seeds).
        test_fraction: share of the 150 flowers held out; 0.2 gives n = 120 and m = 30.

    Raises:
        InputError: no seeds, or a fraction that leaves a class out of the training or the test set.
    """
    if not seeds:
        raise bad_input("seeds", seeds, "give at least one seed")
    if not 3 <= round(150 * test_fraction) <= 147:
        raise bad_input("test_fraction", test_fraction, "choose a share of (0, 1) that holds out 3 to 147 flowers")
    features, labels = load_iris(return_X_y=True)
    trains, tests = [], []
    for seed in seeds:
        x, x_test, y, y_test = train_test_split(
            features, labels, test_size=round(150 * test_fraction), random_state=seed, stratify=labels
        )
        mean, std = x.mean(axis=0), x.std(axis=0)
        trains.append((torch.from_numpy((x - mean) / std), torch.from_numpy(y)))
        tests.append((torch.from_numpy((x_test - mean) / std), torch.from_numpy(y_test)))
    return _stack(trains), _stack(tests)


def _stack(sets: list[tuple[Tensor, Tensor]]) -> Data:
    return Data(torch.stack([x for x, _ in sets]), torch.stack([y for _, y in sets]).long())
