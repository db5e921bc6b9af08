"""What the paper published, and which of our marks each figure of it belongs to."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fragile_lib.plots.rows import Shown
from fragile_lib.plots.steps import NOISE

DECAY = 0.001  # of the networks on MNIST and CIFAR-10 that most figures show
GROUPS = ["random_groups", "same_class_groups", "top_influence_groups"]
_IRIS = {"dataset": "iris", "activation": "relu", "test_choice": "max_loss"}
_MNIST = {"dataset": "mnist", "test_choice": "max_loss"}
_CIFAR100 = {"dataset": "cifar100", "test_choice": "max_loss"}
# By the kind of figure: the columns that tell what a number or a range (low, high) is of, and the numbers.
PAPER = {
    "iris": [
        _IRIS | {"depth": 1, "width": 5, "weight_decay": 0.005, "spearman": 0.97},
        _IRIS | {"depth": 1, "width": 5, "weight_decay": 0.0, "spearman": 0.508},
        _IRIS | {"depth": 1, "width": 8, "weight_decay": 0.005, "spearman": 0.82},
        _IRIS | {"depth": 1, "width": 50, "weight_decay": 0.005, "spearman": 0.56},
    ],
    "test points": [{"train_choice": "top_influence", "ground_truth": "warm_minibatch", "spearman": (0.38, 0.92)}],
    "networks": [
        _MNIST | {"weight_decay": DECAY, "architecture": "small_cnn", "pearson": 0.95, "spearman": 0.87},
        _MNIST | {"weight_decay": DECAY, "architecture": "lenet", "pearson": 0.83, "spearman": 0.51},
        _MNIST | {"weight_decay": DECAY, "architecture": "resnet50", "pearson": 0.24, "spearman": 0.22},
        _MNIST | {"weight_decay": 0.0, "architecture": "resnet50", "spearman": 0.13},
        _CIFAR100 | {"weight_decay": 0.0005, "architecture": "resnet18", "pearson": 0.15, "spearman": 0.11},
    ],
    "optimisers": [_MNIST | {"architecture": "lenet", "spearman": (0.45, 0.67)}],  # 0.56 +- 0.11
    "falls": [
        _IRIS | {"rung": NOISE, "depth": 1, "width": 5, "weight_decay": 0.005, "spearman": 0.97},
        {"dataset": "small_mnist", "rung": NOISE, "train_choice": "top_influence", "spearman": (0.38, 0.92)},
        _MNIST | {"rung": NOISE, "architecture": "small_cnn", "spearman": 0.87},
        _MNIST | {"rung": NOISE, "architecture": "lenet", "spearman": 0.51},
    ],
    "groups": [
        _MNIST | {"train_choice": GROUPS, "spearman": (0.01, 0.21)},
        _CIFAR100 | {"train_choice": GROUPS, "spearman": (0.01, 0.18)},
    ],
}


def published(shown: Shown) -> pd.DataFrame:
    """The paper's numbers that belong to marks of the figure: statistic, keys, low and high (equal for one number)."""
    keys = list(dict.fromkeys(["statistic", *shown.spec.keys]))
    parts = [pd.DataFrame(columns=[*keys, "low", "high"])]
    for entry in PAPER.get(shown.spec.paper, []):
        for name in {"spearman", "pearson"} & entry.keys():
            cells = shown.cells[shown.cells["statistic"] == name]
            for column in entry.keys() - {"spearman", "pearson"}:
                cells = cells[cells[column].isin(np.ravel(entry[column]))]
            low, high = np.broadcast_to(entry[name], 2)
            parts.append(cells[keys].drop_duplicates().assign(low=low, high=high))
    parts = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(parts, ignore_index=True)
