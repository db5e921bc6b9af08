"""Agreement of estimates with retraining against the length of retraining, for the networks that went on for longer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from fragile_lib.plots import base, words
from fragile_lib.plots.architectures_rows import (
    ARCHITECTURES,
    ceiling_sentence,
    choose,
    finite,
    mean_of,
    name,
    plain_mean,
    points_sentence,
    present,
    rounded,
    scale_sentence,
)
from fragile_lib.plots.base import Picture
from fragile_lib.plots.small_mnist import CEILING, DECAY

ESTIMATORS = ("lissa", "cg_ggn", "ekfac", "identity")
SHORTEST = "loo_warm"  # longer ones are loo_warm_F, F the share of the training steps
SHIFT = 0.05  # of the marks of one estimator, in factors of the length
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
TITLES = {"spearman": "Spearman", "slope": "slope"}


def longer_retraining(results: pd.DataFrame, where: Mapping | None = None) -> Picture:
    """Spearman, and beside it the slope of truth on estimate, against the length of retraining, a row a network.

    Of the networks that were retrained for more than one length, on MNIST with weight decay, at the test points of
    highest loss. The product of gradients has the size that the damping gives it, so its slope is not shown; nor are
    slopes whose interval reaches zero.
    """
    truths = [t for t in _truths(results) if t != SHORTEST]
    if not truths:
        return base.empty_picture(words.nothing("spearman", "ground_truth"))
    setting = {"dataset": "mnist", "weight_decay": DECAY, "estimator": list(ESTIMATORS), "test_choice": "max_loss"}
    rows = choose(results, where, ["spearman", "slope"], **setting, ground_truth=[SHORTEST, *truths])
    went_on = rows[rows["ground_truth"] != SHORTEST]["run_id"].unique() if len(rows) else []
    rows = rows[rows["run_id"].isin(went_on)] if len(rows) else rows
    if rows.empty:
        return base.empty_picture(words.nothing("spearman", "ground_truth"))
    rows = rows.assign(share=[_share(t) for t in rows["ground_truth"]])
    networks = present(rows, "architecture", ARCHITECTURES)
    told = []
    with base.theme():
        figure, axes = base.new_figure(2.9 * len(networks) + 1.2, rows=len(networks), columns=2)
        for i, network in enumerate(networks):
            part = rows[rows["architecture"] == network]
            for ax, statistic in zip(axes[i], TITLES, strict=True):
                told += _draw(ax, part, statistic, f"{name(network)}, {statistic}")
                ax.set_title(f"{name(network)}: {TITLES[statistic]}", loc="left")
        for ax in axes[-1]:
            ax.set_xlabel("share of the training steps")
        base.legend_below(figure, list(axes[:, 0]))
    caption = words.sentences(
        *_findings(rows, networks),
        f"MNIST, weight decay {DECAY:g}, test points of highest loss",
        "Training points of largest |influence|, the same at all lengths",
        points_sentence(rows, dots=False),
        ceiling_sentence(rows),
        "A slope of 1 says that an estimate has the size of the truth; that of the product of gradients is not shown",
        scale_sentence(rows),
    )
    return Picture(figure, words.sentences("Agreement against the length of retraining", *told), caption)


def _truths(results: pd.DataFrame) -> list[str]:
    if results.empty or "ground_truth" not in results.columns:
        return []
    every = results["ground_truth"].dropna().unique()
    return [t for t in every if t == SHORTEST or _is_share(t.removeprefix(f"{SHORTEST}_"))]


def _is_share(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def _share(truth: str) -> float:
    """The share of the training steps that a truth went on for; the protocol's own is 6%."""
    return 0.06 if truth == SHORTEST else float(truth.removeprefix(f"{SHORTEST}_"))


def _draw(ax: Axes, rows: pd.DataFrame, statistic: str, setting: str) -> list[str]:
    """One line an estimator, with intervals; the truth's agreement with itself; what they say."""
    shares, told = sorted(rows["share"].unique()), []
    for k, estimator in enumerate(ESTIMATORS if statistic == "spearman" else ESTIMATORS[:-1]):
        part = rows[rows["estimator"] == estimator]
        found = {s: mean_of(part.loc[part["share"] == s, statistic]) for s in shares}
        found = {s: m for s, m in found.items() if m.n and (statistic == "spearman" or m.low > 0)}
        if not found:
            continue
        x = np.array(list(found)) * (1 + SHIFT * (k - 1.5))
        bars = np.hstack([m.bar if m.bar else [[0.0], [0.0]] for m in found.values()])
        line = {"color": base.CYCLE[k], "marker": base.MARKERS[k], "linestyle": base.DASHES[k], "capsize": 3}
        ax.errorbar(x, [m.mean for m in found.values()], yerr=bars, label=name(estimator), zorder=4, **line)
        told.append(f"{setting}, {name(estimator)}: {', '.join(f'{s:.0%} {m.words}' for s, m in found.items())}")
    if statistic == "spearman":
        _ceilings(ax, rows, shares)
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(shares, [f"{s:.0%}" for s in shares])
    ax.set_xlim(min(shares) / 1.5, max(shares) * 1.7)
    if statistic == "slope":
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.axhline(1, color="0.35", linewidth=1.0, zorder=1)
        bottom, top = ax.get_ylim()
        ax.set_yticks([t for t in TICKS if bottom <= t <= max(top, 1)])
    else:
        ax.set_ylim(min([0.0, *finite(rows[statistic])]) - 0.05, 1.05)
    return told


def _ceilings(ax: Axes, rows: pd.DataFrame, shares: list[float]) -> None:
    for share in shares:
        height = plain_mean(rows.loc[rows["share"] == share, "ceiling_spearman"])
        if np.isfinite(height):
            ends = [share / 1.15, share * 1.15]
            ax.plot(ends, [height] * 2, color="black", linewidth=2.4, zorder=5, label=CEILING)


def _findings(rows: pd.DataFrame, networks: list[str]) -> list[str]:
    """From the shortest to the longest: how each estimator's mean correlation changes."""
    said = []
    for network in networks:
        part = rows[rows["architecture"] == network]
        ends = part["share"].min(), part["share"].max()
        each = []
        for estimator in present(part, "estimator", ESTIMATORS):
            low, high = (
                mean_of(part.loc[(part["share"] == s) & (part["estimator"] == estimator), "spearman"]).mean
                for s in ends
            )
            each.append(f"{name(estimator)} {rounded(low)} to {rounded(high)}")
        said.append(f"{name(network)}, from {ends[0]:.0%} to {ends[1]:.0%} of the steps: {', '.join(each)}")
    return said
