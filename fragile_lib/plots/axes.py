"""Axes of statistics: to 1 with zero in sight, logarithmic, or logarithmic to both sides of zero; names of places."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, NullLocator

from fragile_lib.plots import words
from fragile_lib.plots.rows import Panel, Shown, part

LINE = {"color": "0.35", "linewidth": 1.0, "zorder": 1}
MOST = {"x": 4, "y": 6}  # ticks of a log axis that has many decades


def placed(marks: pd.DataFrame) -> pd.DataFrame:
    """The marks that have a place on the axis of their statistic: on a log axis mean and interval are positive."""
    log = marks["statistic"].map(lambda name: words.STATISTICS[name].scale == "log").astype(bool)
    mean, low = marks["mean"].astype(float), marks["low"].astype(float)
    return marks[np.isfinite(mean) & ~(log & ((mean <= 0) | (low <= 0)))]


def scale_axis(ax: Axes, which: str, shown: Shown, panel: Panel, damping: float | None) -> None:
    """Scale and limits of axis "x" or "y" from all that the figure shows of the panel's statistic, and its lines."""
    statistic = words.STATISTICS[panel.statistic]
    marks = placed(shown.marks[shown.marks["statistic"] == panel.statistic])
    units = shown.units.loc[shown.units["statistic"] == panel.statistic, "value"] if shown.spec.dots else []
    values = np.concatenate([*(marks[c] for c in ("mean", "low", "high", "ceiling")), units]).astype(float)
    values = values[np.isfinite(values)]
    line = ax.axhline if which == "y" else ax.axvline
    if statistic.scale == "correlation":
        getattr(ax, f"set_{which}lim")(min([0.0, *values]) - 0.05, 1.05)
    elif statistic.scale == "log":
        _log_axis(ax, which, np.append(values[values > 0], statistic.lines))
    elif statistic.scale == "symlog":
        threshold = damping or 1e-3
        ends = [*(2 * values), -2 * threshold, threshold]
        symlog_axis(ax, which, min(ends), max(ends), threshold)
        if damping:
            line(-damping, **LINE | {"linestyle": "--"}, label=f"minus damping, {-damping:g}")
    for value in statistic.lines:
        line(value, **LINE | ({"linestyle": "--"} if value else {}))


def _log_axis(ax: Axes, which: str, values: np.ndarray) -> None:
    """A log axis that spans at least one decade, with plain numbers where they are short."""
    low, high = (np.log10(values.min()), np.log10(values.max())) if values.size else (-0.5, 0.5)
    room = max(0.06 * (high - low), (1 - (high - low)) / 2)
    low, high = low - room, high + room
    decades = np.arange(np.floor(low), np.ceil(high) + 1)
    within = decades[(decades >= low) & (decades <= high)]
    ticks = 10.0 ** within[:: -(-len(within) // MOST[which])]
    if len(within) < 3:
        ticks = np.outer(10.0**decades, (1, 2, 5)).ravel()
    axis = getattr(ax, f"{which}axis")
    getattr(ax, f"set_{which}lim")(10**low, 10**high)
    getattr(ax, f"set_{which}scale")("log", nonpositive="mask")
    axis.set_major_locator(FixedLocator(ticks[(ticks >= 10**low) & (ticks <= 10**high)]))
    axis.set_minor_locator(NullLocator())
    if low > -4 and high < 5:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def symlog_axis(ax: Axes, which: str, low: float, high: float, threshold: float, gap: float = 0.12) -> None:
    """Make axis "x" or "y" linear within +- threshold and logarithmic outside.

    Ticks are zero and as many powers of ten as lie a `gap`, a share of the axis, from zero and from outer ones.
    """
    getattr(ax, f"set_{which}scale")("symlog", linthresh=threshold, linscale=0.6)
    axis = getattr(ax, f"{which}axis")
    place = axis.get_transform().transform
    exponents = np.arange(np.ceil(np.log10(threshold)), np.floor(np.log10(max(-low, high, threshold))) + 1)
    powers = [s * 10.0**e for e in exponents[::-1] for s in (1, -1) if low <= s * 10.0**e <= high]
    length, kept = np.ptp(place(np.array([low, high]))), [0.0]
    for value in powers:
        if np.abs(place(np.array(kept)) - place(np.array([value]))).min() >= gap * length:
            kept.append(value)
    axis.set_major_locator(FixedLocator(sorted(kept)))
    axis.set_minor_locator(NullLocator())
    getattr(ax, f"set_{which}lim")(low, high)


def place_words(shown: Shown, panel: Panel) -> list[str]:
    """The names of the places on the axis; below a network's its size in this panel, where the figure is of sizes."""
    spec, levels = shown.spec, shown.levels(shown.spec.at)
    if not spec.sized:
        return [words.label(spec.at, v) if spec.kind == "dots" else words.tick(spec.at, v) for v in levels]
    rows = part(shown.rows, {c: v for c, v in panel.key.items() if c in shown.rows.columns})
    sizes, short = rows.groupby(spec.at)[spec.order].median(), EngFormatter(places=0, sep="")
    return [f"{words.code(v)}\n{short(sizes[v])}" if v in sizes else words.code(v) for v in levels]
