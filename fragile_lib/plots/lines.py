"""Figures of lines: a statistic against depth, width, weight decay and the like, side by side at each place."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fragile_lib.plots import base, words
from fragile_lib.plots.axes import (
    REPEATED,
    bars,
    is_flagged,
    legend_entries,
    looks,
    placed,
    scale_axis,
    series,
    tick_words,
)
from fragile_lib.plots.published import of_panel, published
from fragile_lib.plots.rows import Panel, Shown

SPREAD = 0.34  # of the distance between two ticks, shared by the series there
JITTER = 0.07
UPRIGHT = 46  # letters of all tick labels from which on they stand upright


def draw(shown: Shown, damping: float | None = None) -> Figure:
    """A panel for each value of the columns that have panels; in it each mark with its interval, and each unit."""
    panels, paper = shown.panels(), published(shown)
    rows, columns = (1 + max(p[i] for p in panels) for i in (0, 1))
    with base.theme():
        figure, axes = base.new_figure(1.6 + 2.7 * rows, rows, columns)
        for ax in axes.flat:
            ax.set_axis_off()
        for panel in panels:
            ax = axes[panel.row, panel.column]
            ax.set_axis_on()
            ax.set_title(panel.title)
            _draw_panel(ax, shown, panel)
            _draw_paper(ax, shown, panel, paper)
            scale_axis(ax, "y", shown, panel, damping, shown.spec.dots)
            own = columns > 1 and len({p.statistic for p in panels}) > 1
            ax.set_ylabel(words.column(panel.statistic) if own or not panel.column else "")
            lowest = not any(p.row == panel.row + 1 and p.column == panel.column for p in panels)
            _label_ticks(ax, shown, panel, lowest, columns)
        legend_entries(axes[0, 0], shown, shown.spec.joined)
        figure.align_ylabels()
        base.legend_below(figure)
    return figure


def _unit(shown: Shown) -> float:
    """Share of the distance between ticks that side-by-side marks use: less where few ticks lie far apart."""
    return min(1.0, max(0.5, len(shown.levels(shown.spec.at)) / 6))


def _places(shown: Shown, panel: Panel) -> dict[tuple, float]:
    """(hue, style) -> how far to the side of a tick its marks stand."""
    keys = [k for k in looks(shown) if len(series(panel.marks, shown, k))]
    step = SPREAD * _unit(shown) / len(keys) if len(keys) > 1 else 0.0
    step *= 2.2 if not shown.spec.joined else 1
    return {key: step * (i - (len(keys) - 1) / 2) for i, key in enumerate(keys)}


def _draw_panel(ax: Axes, shown: Shown, panel: Panel) -> None:
    position = {value: i for i, value in enumerate(shown.levels(shown.spec.at))}
    marked = looks(shown)
    for key, shift in _places(shown, panel).items():
        look = dict(marked[key])
        if shown.spec.dots:
            _draw_units(ax, series(panel.units, shown, key), position, shift, look["color"], shown)
        marks = placed(series(panel.marks, shown, key))
        marks = marks.assign(x=marks[shown.spec.at].map(position).astype(float) + shift).sort_values("x")
        if shown.spec.joined:
            ax.plot(marks["x"], marks["mean"].astype(float), color=look["color"], linestyle=look["linestyle"], zorder=3)
        look = look | {"linestyle": "none"}
        for hollow, part in marks.groupby([is_flagged(m) for m in marks.itertuples()]):
            fill = {"markerfacecolor": "white"} if hollow else {}
            mean = part["mean"].to_numpy(dtype=float)
            ax.errorbar(part["x"], mean, yerr=bars(part), capsize=3, elinewidth=1.4, zorder=4, **look | fill)
        width = 0.5 * SPREAD * _unit(shown) / max(1, len(marked) - 1)
        for mark in series(panel.marks, shown, key).dropna(subset=["repeated"]).itertuples():
            x = position[getattr(mark, shown.spec.at)] + shift
            ax.plot([x - width, x + width], [mark.repeated] * 2, "k", lw=2.6, label=REPEATED, zorder=5)
    if not len(placed(panel.marks)):
        base.say_nothing(ax)


def _draw_units(ax: Axes, units: pd.DataFrame, position: dict, shift: float, colour: str, shown: Shown) -> None:
    """Each unit as a faint dot, hollow where it is flagged, beside one another in the order of units."""
    units = units.dropna(subset=["value"])
    if units.groupby(shown.spec.at)["unit"].size().max() == 1 or units.empty:
        return  # the mark itself is the unit
    rank = units.groupby(shown.spec.at)["unit"].rank(method="dense").to_numpy(dtype=float) - 1
    aside = JITTER * _unit(shown) * (rank - rank.max() / 2) / max(1.0, rank.max())
    x, y = units[shown.spec.at].map(position).to_numpy(dtype=float) + shift + aside, units["value"].to_numpy()
    hollow, faint = units["flagged"].to_numpy(dtype=bool), base.tint(colour)
    ax.scatter(x[~hollow], y[~hollow], s=18, color=faint, edgecolors="white", linewidths=0.5, zorder=2)
    ax.scatter(x[hollow], y[hollow], s=15, facecolors="none", edgecolors=[faint], linewidths=1.0, zorder=2)


def _draw_paper(ax: Axes, shown: Shown, panel: Panel, paper: pd.DataFrame) -> None:
    """Published numbers as stars at their series, published ranges in grey."""
    spec, places, marked = shown.spec, _places(shown, panel), looks(shown)
    levels = shown.levels(spec.at)
    for row in of_panel(paper, shown, panel):
        x, key = levels.index(row[spec.at]), (row.get(spec.hue), row.get(spec.style))
        if row["low"] == row["high"]:
            star = {"s": 130, "color": marked[key]["color"], "edgecolors": "black", "zorder": 5, "clip_on": False}
            ax.scatter(x + places[key] - 0.11, row["low"], marker="*", label="the paper", **star)
        else:
            band = {"color": "0.92", "lw": 0, "zorder": 0, "label": "the paper's range"}
            ax.fill_between([x - 0.5, x + 0.5], row["low"], row["high"], **band)


def _label_ticks(ax: Axes, shown: Shown, panel: Panel, lowest: bool, columns: int) -> None:
    """Names of the places, upright where they would not fit; below them how many units have a number, if not all."""
    levels = shown.levels(shown.spec.at)
    names = tick_words(shown, panel, levels)
    upright = columns * sum(1 + max(map(len, n.split("\n"))) for n in names) > UPRIGHT and not shown.spec.sized
    ax.set_xticks(range(len(levels)), names, rotation=90 if upright else 0, fontsize=11 if shown.spec.sized else 12)
    counts = [_count(panel.marks[panel.marks[shown.spec.at] == level]) for level in levels]
    if any(counts) and not upright:  # as labels of minor ticks, for which the layout makes room
        ax.xaxis.remove_overlapping_locs = False
        ax.set_xticks(range(len(levels)), counts, minor=True, fontsize=10, color="0.3")
        ax.tick_params(axis="x", which="minor", length=0, pad=21)
    ax.set_xlim(-0.5, len(levels) - 0.5)
    below = f"; below: {words.short(shown.spec.unit[-1])}s with a number".replace("starts", "seeds")
    label = words.column(shown.spec.at) if columns == 1 else words.short(shown.spec.at)
    ax.set_xlabel(label + (below if any(counts) and not upright and columns == 1 else "") if lowest else "")


def _count(marks: pd.DataFrame) -> str:
    """ "n=7", "7-10" over series, nothing where all units have a number."""
    if (marks["n"] == marks["units"]).all():
        return ""
    few, most = marks["n"].min(), marks["n"].max()
    return f"n={few}" if few == most else f"{few}\N{EN DASH}{most}"
