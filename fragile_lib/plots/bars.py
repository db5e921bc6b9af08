"""Figures of bars: how many networks ended with which outcome."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fragile_lib.plots import base, texts, words
from fragile_lib.plots.base import Picture
from fragile_lib.plots.rows import Shown

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


def picture(shown: Shown) -> Picture:
    """Stacked bars of outcomes; each unit counts once, with its first outcome that is not ok."""
    spec, rows = shown.spec, shown.rows.assign(status=shown.rows["status"].fillna("ok"))
    rows = rows.sort_values("status", key=lambda s: s == "ok", kind="stable").drop_duplicates([*spec.keys, *spec.unit])
    there, panels, told = set(rows["status"]), shown.panels(), []
    kinds = [k for k in LOOKS if k in there] + sorted(there - set(LOOKS))
    size = [1 + max(p[i] for p in panels) for i in (0, 1)]
    with base.theme():
        figure, axes = base.new_figure(1.2 + 2.3 * size[0], *size, sharey=True)
        for panel in panels:
            facets = [c for c in (spec.rows, spec.columns) if c]
            part = rows.merge(panel.marks[facets].drop_duplicates(), on=facets)
            counts = part.groupby([spec.at, "status"]).size().unstack(fill_value=0)
            counts = counts.reindex(index=shown.levels(spec.at), columns=kinds, fill_value=0)
            told.append(f"{panel.title}: {_told(counts, spec.at)}")
            ax = axes[panel.row, panel.column]
            _stack(ax, counts)
            ax.set_title(panel.title)
            ax.set_xticks(range(len(counts)), [words.tick(spec.at, v) for v in counts.index])
            ax.set_xlabel(words.short(spec.at) if panel.row == size[0] - 1 else "")
            ax.set_ylabel("seeds" if panel.column == 0 else "")
        base.legend_below(figure)
    total = ", ".join(f"{words.code(k)} {int((rows['status'] == k).sum())}" for k in kinds)
    setting = texts.setting(rows, spec.keys, ())
    caption = words.sentences(setting, f"Outcomes of {len(rows)} fits: {total}", *shown.notes)
    return Picture(figure, words.sentences(f"Outcomes by {words.short(spec.at)}", *told), caption)


def _stack(ax: Axes, counts: pd.DataFrame) -> None:
    bottom = pd.Series(0, index=counts.index)
    for kind in counts.columns:
        colour, hatch = LOOKS.get(kind, OTHER)
        look = {"color": colour, "hatch": hatch, "edgecolor": "0.25", "linewidth": 0.6, "label": words.code(kind)}
        drawn = ax.bar(range(len(counts)), counts[kind], bottom=bottom, **look)
        numbers = [str(n) if n else "" for n in counts[kind]]
        for text in ax.bar_label(drawn, numbers, label_type="center", fontsize=10):
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85} if hatch else None)
        bottom = bottom + counts[kind]
    ax.set_xlim(-0.6, len(counts) - 0.4)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _told(counts: pd.DataFrame, axis: str) -> str:
    """Totals, and for every outcome but ok the places where it happened."""
    parts = []
    for kind, total in counts.sum().items():
        if total:
            at = [f"{n} at {words.short(axis)} {words.tick(axis, v)}" for v, n in counts[kind].items() if n]
            parts.append(f"{total} {words.code(kind)}" + (f" ({', '.join(at)})" if kind != "ok" else ""))
    return words.joined(parts) or "none"
