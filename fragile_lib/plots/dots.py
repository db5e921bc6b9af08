"""Figures of dots: categories from top to bottom, and for each the means of all series along a statistic."""

from __future__ import annotations

import textwrap

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

LINE = 0.19  # inches for each mark of a category, and least for a category
LEAST = 0.3
LETTERS = 24  # in one line of a category's name


def draw(shown: Shown, damping: float | None = None) -> Figure:
    """A panel for each value of the columns that have panels; in it a line for each category."""
    panels, paper, names = shown.panels(), published(shown), shown.levels(shown.spec.at)
    rows, columns = (1 + max(p[i] for p in panels) for i in (0, 1))
    height = len(names) * max(LEAST, LINE * len(looks(shown)) + 0.12 + 0.1 * shown.spec.dots)
    with base.theme():
        figure, axes = base.new_figure(1.5 + rows * (0.5 + height), rows, columns, sharey=True)
        for ax in axes.flat:
            ax.set_axis_off()
        for panel in panels:
            ax = axes[panel.row, panel.column]
            ax.set_axis_on()
            ax.set_title(panel.title, loc="left" if columns == 1 else "center")
            _draw_panel(ax, shown, panel)
            for row in of_panel(paper, shown, panel):
                y, band = names.index(row[shown.spec.at]), {"color": "0.85", "lw": 0, "zorder": 0.5}
                ax.fill_betweenx([y - 0.5, y + 0.5], row["low"], row["high"], label="the paper's range", **band)
            scale_axis(ax, "x", shown, panel, damping, shown.spec.dots)
            several = len({p.statistic for p in panels}) > 1
            if several or not any(p.row > panel.row and p.column == panel.column for p in panels):
                ax.set_xlabel("" if panel.title == words.short(panel.statistic) else words.column(panel.statistic))
            labels = [textwrap.fill(text, LETTERS) for text in tick_words(shown, panel, names)]
            ax.set_yticks(range(len(names)), labels)
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.grid(False, axis="y")
            ax.grid(True, axis="x")
        legend_entries(axes[0, 0], shown, joined=False)
        base.legend_below(figure)
    return figure


def _draw_panel(ax: Axes, shown: Shown, panel: Panel) -> None:
    """Each mark with its interval, single units as faint dots below it, the truth's agreement with itself in black."""
    marked, names = looks(shown), shown.levels(shown.spec.at)
    for y in range(1, len(names), 2):
        ax.axhspan(y - 0.5, y + 0.5, color="0.965", zorder=0)
    slot = 0.84 / len(marked)
    for i, (key, look) in enumerate(marked.items()):
        marks = series(panel.marks, shown, key)
        drawn = placed(marks)
        for mark, bar in zip(drawn.itertuples(), bars(drawn).T, strict=True):
            y = names.index(getattr(mark, shown.spec.at)) + slot * (i - (len(marked) - 1) / 2)
            values = _values(panel.units, shown, key, mark)
            if shown.spec.dots and values.size > 1:
                ax.scatter(values, np.full(values.size, y + 0.27 * slot), s=18, color=base.tint(look["color"]), lw=0)
                y -= 0.12 * slot
            fill = {"markerfacecolor": "white"} if is_flagged(mark) else {}
            bar = bar[:, None] if np.isfinite(bar).all() else None
            style = look | fill | {"linestyle": "none", "capsize": 3, "elinewidth": 1.5, "zorder": 4}
            ax.errorbar([mark.mean], [y], xerr=bar, **style)
        for mark in marks.dropna(subset=["repeated"]).itertuples():
            y = names.index(getattr(mark, shown.spec.at)) + slot * (i - (len(marked) - 1) / 2)
            ends = [y - slot / 2, y + slot / 2]
            ax.plot([mark.repeated] * 2, ends, "k", lw=2.4, solid_capstyle="butt", zorder=3, label=REPEATED)
    numbers = placed(panel.marks)
    for name in set(panel.marks[shown.spec.at]) - set(numbers[shown.spec.at]) if len(numbers) else ():
        ax.text(
            0.02, names.index(name), "none", va="center", fontsize=10, color="0.4", transform=ax.get_yaxis_transform()
        )
    if not len(numbers):
        base.say_nothing(ax)


def _values(units: pd.DataFrame, shown: Shown, key: tuple, mark: object) -> np.ndarray:
    here = series(units, shown, key)
    return here.loc[here[shown.spec.at] == getattr(mark, shown.spec.at), "value"].dropna().to_numpy(dtype=float)
