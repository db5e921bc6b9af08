"""Axes of statistics: to 1 with zero in sight, logarithmic, or logarithmic to both sides of zero."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from fragile_lib.plots import words
from fragile_lib.plots.base import CYCLE, DASHES, MARKERS
from fragile_lib.plots.rows import Panel, Shown

REPEATED = "the truth with its own repetition"
LINE = {"color": "0.35", "linewidth": 1.0, "zorder": 1}


def looks(shown: Shown) -> dict[tuple, dict]:
    """(hue, style) -> colour, marker and dash; hues without a style have markers and dashes of their own."""
    found = {}
    for i, hue in enumerate(shown.levels(shown.spec.hue)):
        for j, style in enumerate(shown.levels(shown.spec.style)):
            k = i if shown.spec.style is None else j
            mark = {"color": CYCLE[i % len(CYCLE)], "marker": MARKERS[k % len(MARKERS)]}
            found[hue, style] = mark | {"linestyle": DASHES[k % len(DASHES)]}
    return found


def series(table: pd.DataFrame, shown: Shown, key: tuple) -> pd.DataFrame:
    """The rows of one (hue, style)."""
    for name, value in zip((shown.spec.hue, shown.spec.style), key, strict=True):
        table = table if name is None else table[table[name] == value]
    return table


def legend_entries(ax: Axes, shown: Shown, joined: bool = True) -> None:
    """An entry for each hue, and where markers mean something else one for each style."""
    spec, marked = shown.spec, looks(shown)
    first_hue, first_style = (shown.levels(c)[0] for c in (spec.hue, spec.style))
    for hue in shown.levels(spec.hue) if spec.hue else []:
        look = dict(marked[hue, first_style])
        if spec.style:
            look |= {"linestyle": "-", "marker": "" if joined else "o"}
        ax.errorbar([], [], label=words.value(spec.hue, hue), **look | ({} if joined else {"linestyle": "none"}))
    for style in shown.levels(spec.style) if spec.style else []:
        look = marked[first_hue, style] | {"color": "0.35"} | ({} if joined else {"linestyle": "none"})
        ax.errorbar([], [], label=words.value(spec.style, style), **look)


def placed(marks: pd.DataFrame) -> pd.DataFrame:
    """The marks that have a place on the axis of their statistic: on a log axis mean and interval are positive."""
    found = marks[np.isfinite(marks["mean"].astype(float))]
    if len(found) and words.STATISTICS[found["statistic"].iloc[0]].scale == "log":
        found = found[(found["mean"] > 0) & ~(found["low"] <= 0)]
    return found


def bars(marks: pd.DataFrame) -> np.ndarray:
    """(2, k) lengths of the error bars below and above the means, NaN where there is no interval."""
    return np.array([marks["mean"] - marks["low"], marks["high"] - marks["mean"]], dtype=float).clip(min=0)


def is_flagged(mark: object) -> bool:
    """Whether every unit behind a mark is flagged: such marks are hollow."""
    return mark.n_degenerate == mark.units > 0


def scale_axis(ax: Axes, which: str, shown: Shown, panel: Panel, damping: float | None, dots: bool) -> None:
    """Scale and limits of axis "x" or "y" from all that the figure shows of the panel's statistic, and its lines."""
    statistic = words.STATISTICS[panel.statistic]
    marks = placed(shown.marks[shown.marks["statistic"] == panel.statistic])
    units = shown.units.loc[shown.units["statistic"] == panel.statistic, "value"] if dots else []
    values = np.concatenate([marks["mean"], marks["low"], marks["high"], units, marks["repeated"]]).astype(float)
    values = values[np.isfinite(values)]
    line = ax.axhline if which == "y" else ax.axvline
    if statistic.scale == "correlation":
        getattr(ax, f"set_{which}lim")(min([0.0, *values]) - 0.05, 1.05)
    elif statistic.scale == "log":
        _log_axis(ax, which, np.append(values[values > 0], statistic.lines))
    elif statistic.scale == "symlog":
        threshold = damping or 1e-3
        low, high = min([2 * v for v in values] + [-2 * threshold]), max([2 * v for v in values] + [threshold])
        symlog_axis(ax, which, low, high, threshold, most=8)
        if damping:
            line(-damping, **LINE | {"linestyle": "--"}, label=f"minus damping, {-damping:g}")
    for value in statistic.lines:
        line(value, **LINE | ({"linestyle": "--"} if value else {}))


def _log_axis(ax: Axes, which: str, values: np.ndarray) -> None:
    """A log axis that spans at least one decade, with plain numbers where they are short."""
    low, high = (np.log10(values.min()), np.log10(values.max())) if values.size else (-0.5, 0.5)
    room = max(0.06 * (high - low), (1 - (high - low)) / 2)
    getattr(ax, f"set_{which}scale")("log", nonpositive="mask")
    getattr(ax, f"set_{which}lim")(10 ** (low - room), 10 ** (high + room))
    axis, width = getattr(ax, f"{which}axis"), high - low + 2 * room
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if width < (2.2 if which == "y" else 1.3) else (1,), numticks=6))
    axis.set_minor_locator(NullLocator())
    if low - room > -4 and high + room < 5:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def symlog_axis(
    ax: Axes, which: str, low: float, high: float, threshold: float, most: int = 7, gap: float = 0.0
) -> None:
    """Make axis "x" or "y" linear within +- threshold and logarithmic outside; about `most` ticks, zero among them.

    With a `gap`, a share of the axis, there are as many ticks as lie that far from zero and from outer ones.
    """
    getattr(ax, f"set_{which}scale")("symlog", linthresh=threshold, linscale=0.6)
    exponents = [
        np.arange(np.ceil(np.log10(threshold)), np.floor(np.log10(max(side, threshold))) + 1) for side in (-low, high)
    ]
    step = 1 if gap else -(-sum(map(len, exponents)) // (most - 1)) or 1
    negative, positive = (10.0 ** e[::-1][::step] for e in exponents)
    axis = getattr(ax, f"{which}axis")
    place = axis.get_transform().transform
    length, kept = np.ptp(place(np.array([low, high]))), [0.0]
    for value in sorted([*-negative, *positive], key=abs, reverse=True):
        if np.abs(place(np.array(kept)) - place(np.array([value]))).min() >= gap * length:
            kept.append(value)
    axis.set_major_locator(FixedLocator(sorted(kept)))
    axis.set_minor_locator(NullLocator())
    getattr(ax, f"set_{which}lim")(low, high)


def size(x: float) -> str:
    """A number of layers or parameters in few signs: 50, 2.6k, 62k, 149k, 11M."""
    if x < 1000:
        return f"{x:.0f}"
    scaled, unit = (x / 1e3, "k") if x < 999_500 else (x / 1e6, "M")
    return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"


def tick_words(shown: Shown, panel: Panel, levels: Iterable) -> list[str]:
    """The names of the places on the axis; below a network's its size in this panel, where the figure is of sizes."""
    spec, names = shown.spec, [words.tick(shown.spec.at, v) for v in levels]
    if not spec.sized:
        return names
    rows = shown.rows
    for name in (spec.rows, spec.columns):
        rows = rows[rows[name] == panel.marks[name].iloc[0]] if name in rows.columns else rows
    sizes = rows.groupby(spec.at)[spec.order].median()
    return [f"{text}\n{size(sizes[v])}" if v in sizes else text for v, text in zip(levels, names, strict=True)]
