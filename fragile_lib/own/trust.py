"""What to believe of the scores of a network, and why: certificate, residual, reliability, agreement."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from fragile_lib.choices import Estimate
from fragile_lib.network import Network

SOME = 100  # training examples whose gradients tell what a removal changes
RELIABLE = 0.5  # below this a truth is too noisy to judge by
SOLVED = 0.1  # relative residual


def beliefs(network: Network, estimate: Estimate, rows: pd.DataFrame) -> pd.DataFrame:
    """One line for each thing that a score rests on: what was asked, what was measured, and what follows.

    * Training has ended where ||grad J|| is below what leaving one example out adds to it, ||grad loss_i|| / n in the
      median: else the network moves by more than a removal moves it.
    * The equation is solved where the relative residual is below `SOLVED` and the curvature positive.
    * At each test point: a truth of reliability below `RELIABLE` says nothing; else the order agrees where the 95%
      interval of Spearman's correlation with the mean of R retrainings is above 0.

    Args:
        network: what was examined.
        estimate: with its residual and outcome.
        rows: of `rows.compare`, one a test point, of this estimate and one truth.
    """
    slope, added = network.certificate["grad_norm"], _added(network)
    told = [
        (
            "Has training ended?",
            f"slope of J {slope:.1e}, one example adds {added:.1e}",
            "yes" if slope < added else "no: scores are of a minimum that this network is not",
        ),
        (
            "Is the equation solved?",
            f"residual {estimate.residual:.1e}, {estimate.status}",
            "yes" if estimate.status == "ok" and estimate.residual < SOLVED else "no: an approximation, if that",
        ),
    ]
    for row in rows.to_dict("records"):
        low, high = row["spearman_low"], row["spearman_high"]
        measured = f"Spearman {row['spearman']:.2f} ({low:.2f} to {high:.2f}), slope {row['slope']:.2g}"
        asked = f"Do the scores agree with retraining at test point {row['test_point']}?"
        told.append((asked, f"{measured}, reliability {row['reliability']:.2f}", _agreed(row["reliability"], low)))
    return pd.DataFrame(told, columns=["asked", "measured", "so"])


def _agreed(reliability: float, low: float) -> str:
    if np.isnan(reliability):
        return "not known: no agreement of repetitions"
    if reliability < RELIABLE:
        return "not known: the retraining is too noisy"
    return "the order does" if low > 0 else "not shown"


def _added(network: Network) -> float:
    """The median of ||grad loss_i|| / n over some training examples."""
    n, theta = network.train.n, network.theta
    some = network.train.part(np.random.default_rng(0).permutation(n)[:SOME])
    gradients = some.gradient(theta.expand(some.n, -1), torch.eye(some.n).to(theta))
    return float(gradients.norm(dim=1).median()) / n
