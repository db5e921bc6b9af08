"""Figures of bars: how many networks ended with which outcome."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fragile_lib.plots import base, words

# Outcome -> (colour, hatch), in the order in which they are stacked; hatches tell them apart without colour.
LOOKS = {
    "ok": ("#9ecae1", ""),
    "indefinite": ("#de8f05", "//"),
    "constant": ("#949494", ".."),
    "diverged": ("#d55e00", "xx"),
    "solver_diverged": ("#cc78bc", "\\\\"),
    "not_certified": ("#ece133", "--"),
}
OTHER = ("#ffffff", "++")


def kinds(status: pd.Series) -> list[str]:
    """The outcomes that there are, in the order in which they are stacked."""
    present = set(status)
    return [k for k in LOOKS if k in present] + sorted(present - set(LOOKS))


def draw(counts: dict[tuple[int, int], tuple[str, pd.DataFrame]], axis: str) -> Figure:
    """Stacked bars: (row, column) of a panel -> its title, and its counts (a row for each place, a column an outcome)."""
    rows, columns = (1 + max(place[i] for place in counts) for i in (0, 1))
    with base.theme():
        figure, axes = base.new_figure(1.2 + 2.3 * rows, rows, columns, sharey=True)
        for (i, j), (title, table) in counts.items():
            ax = axes[i, j]
            _stack(ax, table)
            ax.set_title(title)
            ax.set_xticks(range(len(table)), [words.tick(axis, v) for v in table.index])
            ax.set_xlim(-0.6, len(table) - 0.4)
            ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.set_xlabel(words.short(axis) if i == rows - 1 else "")
            ax.set_ylabel("seeds" if j == 0 else "")
        base.legend_below(figure)
    return figure


def _stack(ax: Axes, table: pd.DataFrame) -> None:
    bottom = pd.Series(0, index=table.index)
    for kind in table.columns:
        colour, hatch = LOOKS.get(kind, OTHER)
        look = {"color": colour, "hatch": hatch, "edgecolor": "0.25", "linewidth": 0.6, "label": words.code(kind)}
        drawn = ax.bar(range(len(table)), table[kind], bottom=bottom, **look)
        numbers = [str(n) if n else "" for n in table[kind]]
        for text in ax.bar_label(drawn, numbers, label_type="center", fontsize=10):
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85} if hatch else None)
        bottom = bottom + table[kind]


def told(table: pd.DataFrame, axis: str) -> str:
    """Totals, and for every outcome but ok the places where it happened."""
    parts = []
    for kind, total in table.sum().items():
        if total:
            at = [f"{n} at {words.short(axis)} {words.tick(axis, v)}" for v, n in table[kind].items() if n]
            parts.append(f"{total} {words.code(kind)}" + (f" ({', '.join(at)})" if kind != "ok" else ""))
    return words.joined(parts) or "none"
