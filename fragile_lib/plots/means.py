"""Figures of means: a statistic along an axis ("lines"), or of each category from top to bottom ("dots")."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fragile_lib.plots import base, words
from fragile_lib.plots.axes import place_words, placed, scale_axis
from fragile_lib.plots.published import published
from fragile_lib.plots.rows import Panel, Shown, part

CEILING = "ceiling of an errorless estimate"
BESIDE, APART = 0.34, 0.84  # of the distance between two places, shared by joined series and by others
JITTER = 0.07
LETTERS = 46  # of all tick labels from which on they stand upright; of titles side by side
MOST = 12  # names of places along an axis; of more, not each is given
CHANGES = 0.5  # of the correlation's axis, left of all marks, for numbers of what a bar loses
NAME = 24  # letters in one line of a category's name
STRIPE = "0.94"  # behind every second category


def draw(shown: Shown, damping: float | None = None) -> Figure:
    """A panel for each value of the columns that have panels; in it each mark with its interval, and each unit."""
    panels, paper, across = shown.panels(), published(shown), shown.spec.kind == "dots"
    rows, columns = (1 + max(p[i] for p in panels) for i in (0, 1))
    names = len(shown.levels(shown.spec.at))
    height = 0.5 + names * max(0.24, (0.19 if shown.spec.dots else 0.13) * len(_looks(shown)) + 0.1) if across else 2.75
    with base.theme():
        figure, axes = base.new_figure(1.5 + rows * height, rows, columns, sharey=across)
        for ax in axes.flat:
            ax.set_axis_off()
        for panel in shown.panels(absent=True):
            said = textwrap.fill(f"{panel.title}: not measured", 52 // columns)
            axes[panel.row, panel.column].text(0.5, 0.5, said, ha="center", va="center", color="0.3")
        for panel in panels:
            ax = axes[panel.row, panel.column]
            ax.set_axis_on()
            ax.set_title(textwrap.fill(panel.title, (48 if across else 52) // columns))
            _draw_panel(ax, shown, panel)
            _draw_paper(ax, shown, panel, paper)
            scale_axis(ax, "x" if across else "y", shown, panel, damping)
            if shown.spec.falls:
                ax.set_xlim(left=ax.get_xlim()[0] - CHANGES)
                ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            lowest = not any(p.row > panel.row and p.column == panel.column for p in panels)
            if len({p.statistic for p in panels}) > 1 or (lowest if across else panel.column == 0):
                ax.set(**{"xlabel" if across else "ylabel": words.column(panel.statistic)})
            (_label_lines if across else _label_ticks)(ax, shown, panel, lowest, columns)
        for hue, look in _looks(shown).items() if shown.spec.hue else ():
            axes[0, 0].errorbar([], [], label=words.label(shown.spec.hue, hue), **look)
        figure.align_ylabels()
        base.legend_below(figure)
    return figure


def _looks(shown: Shown) -> dict:
    """Hue -> colour, marker and dash."""
    joined = {} if shown.spec.kind == "lines" else {"linestyle": "none"}
    return {hue: base.look(i) | joined for i, hue in enumerate(shown.levels(shown.spec.hue))}


def _places(shown: Shown) -> tuple[dict, float]:
    """Hue -> how far to the side of a place its marks stand; and the distance between two of them."""
    hues, places = shown.levels(shown.spec.hue), len(shown.levels(shown.spec.at))
    step = (BESIDE * min(1.0, max(0.5, places / 6)) if shown.spec.kind == "lines" else APART) / len(hues)
    return {hue: step * (i - (len(hues) - 1) / 2) for i, hue in enumerate(hues)}, step


def _draw_panel(ax: Axes, shown: Shown, panel: Panel) -> None:
    """Each mark with its interval, hollow where all units are flagged; the ceiling in black."""
    levels, across, (shifts, step) = shown.levels(shown.spec.at), shown.spec.kind == "dots", _places(shown)
    drawn = placed(panel.marks)
    for y in range(1, len(levels), 2) if across else ():
        ax.axhspan(y - 0.5, y + 0.5, color=STRIPE, zorder=0)
    for hue, look in _looks(shown).items():
        marks = part(panel.marks, {shown.spec.hue: hue})
        at = marks[shown.spec.at].cat.codes.to_numpy() + shifts[hue]
        for r, p in zip(marks["ceiling"], at, strict=True):
            p -= shifts[hue] if shown.spec.hue == "estimator" and not across else 0  # the same for all estimators
            half = step / 2 if across else max(0.12, 0.02 * len(levels))
            ends = [p - half, p + half]
            if np.isfinite(r):
                _plot(ax, across, ends, [r, r], color="black", lw=2.5, solid_capstyle="butt", label=CEILING, zorder=5)
        if shown.spec.dots:
            units = part(panel.units, {shown.spec.hue: hue})
            _draw_units(ax, shown, units, shifts[hue], look["color"], 0.3 * step if across else None)
        there = marks.index.isin(drawn.index)
        mean = marks["mean"].where(there).to_numpy(dtype=float)
        at = at - 0.12 * step if across and shown.spec.dots else at
        if shown.spec.kind == "lines":
            _plot(ax, across, at, mean, color=look["color"], linestyle=look["linestyle"], zorder=3)
        bars = np.array([mean - marks["low"], marks["high"] - mean], dtype=float).clip(min=0)
        hollow = (marks["n_degenerate"] == marks["units"]).to_numpy(dtype=bool)
        for chosen, fill in ((~hollow & there, {}), (hollow & there, {"markerfacecolor": "white"})):
            points = (mean[chosen], at[chosen]) if across else (at[chosen], mean[chosen])
            look |= {"linestyle": "none", "capsize": 3, "elinewidth": 1.4, "zorder": 4}
            ax.errorbar(*points, **{"xerr" if across else "yerr": bars[:, chosen]}, **look | fill)
    if drawn.empty:
        ax.text(0.5, 0.5, "no number", ha="center", va="center", transform=ax.transAxes, color="0.3")
    if shown.spec.falls and len(drawn):
        _draw_falls(ax, drawn.set_index(shown.spec.at)["mean"].astype(float))
    asked = () if shown.spec.falls else panel.marks[shown.spec.at].unique()
    for place, name in enumerate(levels) if across and len(drawn) else ():
        if name in set(drawn[shown.spec.at]):
            continue
        style = {"va": "center", "fontsize": 10, "color": "0.4", "transform": ax.get_yaxis_transform()}
        behind = {"facecolor": STRIPE if place % 2 else "white", "edgecolor": "none", "pad": 1}  # over the line at 0
        ax.text(0.02, place, "none" if name in asked else "not measured", bbox=behind, **style)


def _draw_falls(ax: Axes, means: pd.Series) -> None:
    """A bar from where the category above ends to each mean, red where agreement is lost and blue where it is won."""
    for place, start, end in zip(means.index.codes, means.shift(fill_value=1.0), means, strict=True):
        colour = base.VERMILLION if end < start else base.BLUE
        ax.barh(place, end - start, left=start, height=0.62, color=base.tint(colour, 0.55), zorder=2)
        style = {"va": "center", "fontsize": 11, "zorder": 6, "transform": ax.get_yaxis_transform()}
        ax.text(0.02, place, words.change(end - start), **style)
    ax.axvline(1, color="0.35", linewidth=1.0, zorder=1)


def _plot(ax: Axes, across: bool, at: object, values: object, **style: object) -> None:
    ax.plot(*((values, at) if across else (at, values)), **style)


def _draw_units(ax: Axes, shown: Shown, units: pd.DataFrame, shift: float, colour: str, aside: float | None) -> None:
    """Each unit as a faint dot, hollow where it is flagged, all `aside` or beside one another in the order of units."""
    units = units.dropna(subset=["value"])
    by_place = units.groupby(shown.spec.at, observed=True)["unit"]
    if units.empty or by_place.size().max() == 1:
        return  # the mark itself is the unit
    if aside is None:
        rank = by_place.rank(method="dense").to_numpy(dtype=float) - 1
        aside = JITTER * (rank - rank.max() / 2) / max(1.0, rank.max())
    at, values = units[shown.spec.at].cat.codes.to_numpy() + shift + aside, units["value"].to_numpy()
    hollow, faint = units["flagged"].to_numpy(dtype=bool), base.tint(colour)
    x, y = (values, at) if shown.spec.kind == "dots" else (at, values)
    fill, edge = (["none" if h else faint for h in hollow], [faint if h else "white" for h in hollow])
    ax.scatter(x, y, s=17, facecolors=fill, edgecolors=edge, linewidths=0.8, zorder=2)


def _draw_paper(ax: Axes, shown: Shown, panel: Panel, paper: pd.DataFrame) -> None:
    """Published numbers as stars at their series, published ranges in grey."""
    spec, looks, levels = shown.spec, _looks(shown), shown.levels(shown.spec.at)
    for row in part(paper, {**panel.key, "statistic": panel.statistic}).to_dict("records"):
        at, hue = levels.index(row[spec.at]), row.get(spec.hue)
        if row["low"] == row["high"]:
            star = {"s": 130, "color": looks[hue]["color"], "edgecolors": "black", "zorder": 6, "clip_on": False}
            at += 0 if spec.kind == "dots" else _places(shown)[0][hue] - 0.11
            place = (row["low"], at) if spec.kind == "dots" else (at, row["low"])
            ax.scatter(*place, marker="*", label="the paper", **star)
        else:
            fill = ax.fill_betweenx if spec.kind == "dots" else ax.fill_between
            band = {"color": "0.89", "lw": 0, "zorder": 0.5, "label": "the paper's range"}
            fill([at - 0.5, at + 0.5], row["low"], row["high"], **band)


def _label_lines(ax: Axes, shown: Shown, panel: Panel, *_: object) -> None:
    names = [textwrap.fill(text, NAME) for text in place_words(shown, panel)]
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.grid(True, axis="x")


def _label_ticks(ax: Axes, shown: Shown, panel: Panel, lowest: bool, columns: int) -> None:
    """Names of the places, upright where they would not fit; below them how many units have a number, if not all."""
    spec, names = shown.spec, place_words(shown, panel)
    upright = columns * sum(1 + len(name) for name in names) > LETTERS and not spec.sized
    if len(names) > MOST:
        names = [name if i % (-(-len(names) // MOST)) == 0 else "" for i, name in enumerate(names)]
        upright = False
    ax.set_xticks(range(len(names)), names, rotation=90 if upright else 0, fontsize=11 if spec.sized else 12)
    counts = [_count(panel.marks[panel.marks[spec.at] == level]) for level in shown.levels(spec.at)]
    told = any(counts) and not upright
    if told:  # as labels of minor ticks, for which the layout makes room
        ax.xaxis.remove_overlapping_locs = False
        ax.set_xticks(range(len(names)), counts, minor=True, fontsize=10, color="0.3")
        ax.tick_params(axis="x", which="minor", length=0, pad=21)
    ax.set_xlim(-0.5, len(names) - 0.5)
    label, below = words.short(spec.at), "; below: n"
    if columns == 1:
        label = f"network and {words.short(spec.order)}" if spec.sized else words.column(spec.at)
        below = f"; below: {words.short(spec.unit[-1])}s with a number"
    ax.set_xlabel(label + (below if told else "") if lowest else "")


def _count(marks: pd.DataFrame) -> str:
    """ "7", "7-10" over series, nothing where all units have a number."""
    if (marks["n"] == marks["units"]).all():
        return ""
    return words.span(marks["n"], str).replace(" to ", "\N{EN DASH}")
