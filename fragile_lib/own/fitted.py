"""The fitted rule: from the signals of a run to the probability that its estimate orders removals as retraining does.

Logistic regressions in plain numbers, in `rules.json` beside this module: `before`, of what the estimates themselves
tell, and `unrolled`, of their correlation with the unrolled derivative of going on. `rule` fits them on the records of
the study and judges them; `trust` asks them about a network on which nobody retrained anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

FILE = Path(__file__).with_name("rules.json")
# Each signal as a rule takes it: sizes by their logarithm, ratios by their distance from 1.
LOG = ("residual", "gradient_share", "signal", "test_curvature", "left_out_gradient")
PLAIN = ("trace_share", "metasmoothness", "agreement", "damping_rank")
RUN_SIGNALS = (*LOG, *PLAIN, "eig_share", "damping_ratio", "predicted_reliability")


def as_taken(found: pd.DataFrame) -> pd.DataFrame:
    """Rows of `signals.signals` with each signal as rules take it, and `predicted_reliability` V / (V + s^2).

    V is the variance of the estimates over the removals, s^2 that of the controls.
    """
    spread, noise = found["estimate_spread"].astype(float) ** 2, found["control_spread"].astype(float) ** 2
    found = found.assign(predicted_reliability=spread / (spread + noise))
    for name in LOG:
        found[name] = found[name].astype(float).map(log_size)
    found["damping_ratio"] = found["damping_ratio"].astype(float).map(log_size).abs()
    found["eig_share"] = np.arcsinh(found["eig_share"].astype(float))
    return found


def log_size(size: float) -> float:
    """The decimal logarithm of a size, of 1e-12 at least; nan for what was not measured."""
    return float(np.log10(max(size, 1e-12))) if size is not None and np.isfinite(size) else np.nan


@dataclass(frozen=True)
class Rule:
    """p = 1 / (1 + exp(-(intercept + sum_j weights_j (x_j - mean_j) / scale_j))), x_j the signals as rules take them.

    Attributes:
        signals: their names.
        mean, scale, weights: one number for each.
        intercept: see above.
        reached: by what was held out (`network`, `dataset`), the area under the curve there and its interval.
        networks: on how many it was fitted.
        runs: on how many.
    """

    signals: Sequence[str]
    mean: Sequence[float]
    scale: Sequence[float]
    weights: Sequence[float]
    intercept: float
    reached: Mapping[str, Sequence[float]]
    networks: int
    runs: int

    def probability(self, told: pd.DataFrame) -> np.ndarray:
        """Of rows of `signals.signals`; nan where a signal that the rule takes was not measured."""
        values = as_taken(told)[list(self.signals)].astype(float).to_numpy()
        z = self.intercept + (values - np.array(self.mean)) / np.array(self.scale) @ np.array(self.weights)
        return 1 / (1 + np.exp(-z))

    def __str__(self) -> str:
        areas = (f"{a:.2f} ({low:.2f} to {high:.2f}) on a {by} held out" for by, (a, low, high) in self.reached.items())
        return f"by {' and '.join(self.signals)}, fitted on {self.networks} networks; area {', '.join(areas)}"


def read_rules(path: Path = FILE) -> dict[str, Rule]:
    """The rules of a file by name, by default those fitted on the study of record."""
    return {name: Rule(**values) for name, values in json.loads(path.read_text(encoding="utf-8")).items()}


def write_rules(rules: Mapping[str, Rule], path: Path | str = FILE) -> None:
    """Write rules for `read_rules`."""
    values = {name: asdict(rule) for name, rule in rules.items()}
    Path(path).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
