"""The main figure of the study over architectures: agreement of estimates with retraining against a network's size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from scipy.optimize import isotonic_regression

from fragile_lib.plots import base, words
from fragile_lib.plots.architectures_rows import (
    ARCHITECTURES,
    DATASETS,
    PAPER,
    ceiling_sentence,
    choose,
    decay_word,
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
from fragile_lib.plots.small_mnist import CEILING
from fragile_lib.tools.errors import bad_input

AXES = {"n_params": "parameters", "depth": "depth (layers with weights)"}
STATISTICS = ("pearson", "spearman")  # in the order of the paper's pairs
GAP = 0.115  # least distance of two networks, as a share of the axis: room for their marks and numbers
NEAR = 0.21  # networks nearer than this cannot have their names side by side
SHIFT = 0.03  # of the marks of one network for each weight decay


def over_architectures(
    results: pd.DataFrame, axis: str = "n_params", where: Mapping | None = None, statistic: str = "spearman"
) -> Picture:
    """Agreement of LiSSA with warm-start retraining against the size of the network, a panel for each data set.

    `axis` is "n_params" or "depth"; it is logarithmic, and networks too close to be told apart are moved apart. Where
    the paper's figure for a network is known it is drawn as a star, at the place of ours.

    Raises:
        InputError: another axis, or a statistic other than "spearman" and "pearson".
    """
    if axis not in AXES:
        raise bad_input("axis", axis, f"choose {' or '.join(AXES)}")
    if statistic not in STATISTICS:
        raise bad_input("statistic", statistic, f"choose {' or '.join(STATISTICS)}")
    rows = choose(results, where, [statistic], dataset=["mnist", "cifar10"])
    if rows.empty:
        return base.empty_picture(words.nothing(statistic, axis))
    shown, decays = present(rows, "dataset", DATASETS), sorted(rows["weight_decay"].unique(), reverse=True)
    told, findings, stars = [], [], []
    with base.theme():
        figure, axes = base.new_figure(1.1 + 3.2 * len(shown), rows=len(shown))
        for ax, dataset in zip(axes[:, 0], shown, strict=True):
            part = rows[rows["dataset"] == dataset]
            places = _network_axis(ax, part, axis)
            ax.set_title(name(dataset), loc="left", fontweight="bold")
            for i, decay in enumerate(decays):
                of_decay = part[part["weight_decay"] == decay]
                shift = SHIFT * (i - (len(decays) - 1) / 2)
                means = _draw_networks(ax, of_decay, places, shift, i, statistic)
                setting = f"{name(dataset)}, {decay_word(decay)}"
                told += _told(setting, of_decay, means, statistic)
                findings += _finding(setting, means)
                stars += _draw_paper(ax, of_decay, places, shift, i, statistic)
            _correlation_axis(ax, rows, statistic)
        axes[-1, 0].set_xlabel(AXES[axis])
        base.legend_below(figure, list(axes[:, 0]))
    tests = words.joined([words.value_word("", c) for c in sorted(rows["test_choice"].unique())])
    head = f"Mean {words.short_word(statistic)} against {words.short_word(axis)}, test points {tests}"
    caption = words.sentences(
        *findings,
        points_sentence(rows),
        ceiling_sentence(rows, statistic),
        "Stars: the paper's figures, of networks of full size" if stars else "",
        "The axis is logarithmic, and networks that would overlap are moved apart" if len(places) > 1 else "",
        scale_sentence(rows),
        words.outcome_sentence(rows, statistic, dots=False, counts=False),
    )
    return Picture(figure, words.sentences(head, *told, *stars), caption)


def _network_axis(ax: Axes, rows: pd.DataFrame, axis: str) -> dict[str, float]:
    """Architecture -> its place on the axis; its size stands below its name above, raised where the last is near."""
    sizes = rows.groupby("architecture")[axis].median().astype(float)
    order = sorted(sizes.index, key=lambda a: (sizes[a], ARCHITECTURES.index(a)))
    places = dict(zip(order, _apart(np.log(sizes[order].to_numpy())), strict=True))
    x = list(places.values())
    raised = [False] * len(x)
    for i in range(1, len(x)):
        raised[i] = x[i] - x[i - 1] < NEAR and not raised[i - 1]
    ax.set_xticks(x, [_size(sizes[a]) for a in order])
    ax.set_xlim(min(x) - 0.08, max(x) + 0.08)
    above = ax.secondary_xaxis("top")
    above.set_xticks(x, [f"{name(a)}\n" if high else name(a) for a, high in zip(order, raised, strict=True)])
    above.xaxis.set_minor_locator(NullLocator())
    above.tick_params(length=0, pad=2, labelsize=11)
    above.spines["top"].set_visible(False)
    for place in x:
        ax.axvline(place, color="0.9", linewidth=1.0, zorder=0)
    return places


def _apart(u: np.ndarray) -> np.ndarray:
    """Increasing numbers scaled to [0, 1] and moved as little as makes neighbours `GAP` apart.

    With x_i = z_i + i GAP the condition on neighbours is that z does not fall, and the smallest sum of squared moves
    is the isotonic regression of u_i - i GAP.
    """
    if len(u) < 2 or u[-1] == u[0]:
        return GAP * np.arange(len(u))
    steps = GAP * np.arange(len(u))
    return isotonic_regression((u - u[0]) / (u[-1] - u[0]) - steps).x + steps


def _size(size: float) -> str:
    """A number of layers or parameters in few signs: 50, 2.6k, 62k, 149k, 11M."""
    if size < 1000:
        return f"{size:.0f}"
    scaled, unit = (size / 1e3, "k") if size < 999_500 else (size / 1e6, "M")
    return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"


def _draw_networks(ax: Axes, rows: pd.DataFrame, places: dict, shift: float, i: int, statistic: str) -> dict:
    """Means with intervals, single test points beside them, ceilings; returns architecture -> its mean."""
    colour, means, x = base.CYCLE[i], {}, []
    for architecture in sorted(present(rows, "architecture", ARCHITECTURES), key=places.get):
        part = rows[rows["architecture"] == architecture]
        values, at = finite(part[statistic]), places[architecture] + shift
        means[architecture] = mean_of(values)
        x.append(at)
        ceiling = plain_mean(part[f"ceiling_{statistic}"])
        if np.isfinite(ceiling):
            ax.plot([at - 0.018, at + 0.018], [ceiling] * 2, color="black", linewidth=2.6, zorder=5, label=CEILING)
        if values.size > 1:
            beside = at + (0.5 * SHIFT if shift >= 0 else -0.5 * SHIFT)
            ax.scatter(np.full(values.size, beside), values, s=16, color=base.tint(colour), lw=0, zorder=2)
            ax.errorbar(
                [at],
                [means[architecture].mean],
                yerr=means[architecture].bar,
                color=colour,
                capsize=3,
                lw=1.4,
                zorder=3,
            )
    line = {"color": colour, "marker": base.MARKERS[i], "linestyle": base.DASHES[i], "linewidth": 1.4}
    if means:
        decay = rows["weight_decay"].iloc[0]
        ax.plot(x, [m.mean for m in means.values()], label=decay_word(decay), zorder=4, **line)
    return means


def _draw_paper(ax: Axes, rows: pd.DataFrame, places: dict, shift: float, i: int, statistic: str) -> list[str]:
    """The paper's figures as stars, where they are of these test points; what they say."""
    told = []
    if set(rows["test_choice"]) != {"max_loss"}:
        return told
    for (dataset, decay, architecture), pair in PAPER.items():
        here = rows[(rows["dataset"] == dataset) & (rows["weight_decay"] == decay)]
        published = pair[STATISTICS.index(statistic)]
        if published is not None and (here["architecture"] == architecture).any():
            style = {"markerfacecolor": "white", "markeredgecolor": base.CYCLE[i], "markeredgewidth": 1.4}
            ax.plot([places[architecture] + shift], [published], "*", markersize=16, zorder=2.5, **style)
            told.append(f"The paper, {name(dataset)}, {decay_word(decay)}, {name(architecture)}: {published:.2f}")
    if told:
        ax.plot(
            [], [], "*", color="white", markeredgecolor="0.2", markeredgewidth=1.4, markersize=14, label="the paper"
        )
    return told


def _correlation_axis(ax: Axes, rows: pd.DataFrame, statistic: str) -> None:
    lowest = finite([*rows[statistic], *rows[f"ceiling_{statistic}"]])
    ax.set_ylim(min([0.0, *lowest]) - 0.05, 1.05)
    ax.axhline(0, color="0.35", linewidth=1.0, zorder=1)
    ax.set_ylabel(words.column_word(statistic))


def _told(setting: str, rows: pd.DataFrame, means: dict, statistic: str) -> list[str]:
    if not means:
        return []
    each = [f"{name(a)} {rounded(m.mean)}" for a, m in means.items()]
    ceilings = finite(rows[f"ceiling_{statistic}"])
    most = f" to {rounded(ceilings[-1])}" if ceilings.size > 1 else ""
    itself = f"; {CEILING} {rounded(ceilings[0])}{most}" if ceilings.size else ""
    return [f"{setting}: {', '.join(each)}{itself}"]


def _finding(setting: str, means: dict) -> list[str]:
    """Which network has the highest mean and which the lowest."""
    known = {a: m.mean for a, m in means.items() if m.n}
    if len(known) < 2:
        return []
    best, worst = max(known, key=known.get), min(known, key=known.get)
    low, high = rounded(known[worst]), rounded(known[best])
    return [f"{setting}: highest for {name(best)} ({high}), lowest for {name(worst)} ({low})"]
