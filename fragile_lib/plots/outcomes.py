"""Figure of the named outcomes: how many seeds ended how."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.ticker import MaxNLocator

from fragile_lib.plots import base, words
from fragile_lib.plots.base import Picture
from fragile_lib.plots.curves import axis_values, levels, require, select_axis

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
TRUTHS = {"descent": "loo_warm", "certified": "loo_certified"}


def outcomes(
    rows: pd.DataFrame, axis: str = "depth", panels: str = "weight_decay", where: Mapping | None = None
) -> Picture:
    """Seeds by outcome, stacked, for each depth: a row of panels for each fit, a column for each weight decay.

    Takes the results table or a table of certificates. A seed whose rows differ counts with its first that is not ok.
    """
    require(rows, [axis, panels, "status"])
    chosen = _one_row_a_seed(rows, axis, panels, where)
    if chosen.empty:
        return base.empty_picture(words.nothing("outcomes", axis))
    ticks, found = axis_values(chosen, axis), levels(chosen, panels)
    shown = found if len(found) < 3 else [found[0], found[-1]]
    fits = levels(chosen, "fit")
    present = set(chosen["status"])
    kinds = [k for k in LOOKS if k in present] + sorted(present - set(LOOKS))
    told = []
    with base.theme():
        figure, axes = base.new_figure(1.2 + 2.3 * len(fits), len(fits), len(shown), share_y=True)
        for i, fit in enumerate(fits):
            for j, value in enumerate(shown):
                ax, part = axes[i, j], chosen[(chosen["fit"] == fit) & (chosen[panels] == value)]
                counts = part.groupby([axis, "status"]).size().unstack(fill_value=0).reindex(ticks, fill_value=0)
                counts = counts.reindex(columns=kinds, fill_value=0)
                _bars(ax, counts)
                decay = words.value_word(panels, value)
                ax.set_title(
                    f"{'certified' if fit == 'certified' else 'descent'}, {decay}".replace("weight decay", "decay")
                )
                ax.set_xlabel(words.short_word(axis) if i == len(fits) - 1 else "")
                ax.set_ylabel("seeds" if j == 0 else "")
                told.append(f"{words.value_word('fit', fit)}, {decay}: {_tell(counts, axis)}")
        base.legend_below(figure, list(axes.flat))
    alt = words.sentences(f"Outcomes by {words.short_word(axis)}", *told)
    total = ", ".join(f"{words.value_word('status', k)} {int((chosen['status'] == k).sum())}" for k in kinds)
    setting = words.setting_sentence(chosen, [axis, panels, "train_choice", "test_choice"])
    return Picture(figure, alt, words.sentences(setting, f"Outcomes of {len(chosen)} fits: {total}"))


def _one_row_a_seed(rows: pd.DataFrame, axis: str, panels: str, where: Mapping | None) -> pd.DataFrame:
    if rows.empty:
        return rows
    table = rows if "fit" in rows.columns else rows.assign(fit="descent")
    parts = []
    for fit, truth in TRUTHS.items():
        own = {"fit": fit} | ({"ground_truth": truth} if "ground_truth" in table.columns else {})
        parts.append(select_axis(table, axis, {**own, **(where or {})}, free=[axis, panels]))
    chosen = pd.concat(parts).copy()
    chosen["status"] = chosen["status"].astype(object).where(chosen["status"].notna(), "ok")
    chosen = chosen.sort_values("status", key=lambda s: s == "ok", kind="stable")
    unit = [c for c in ("run_id", axis, panels, "fit", "seed") if c in chosen.columns]
    return chosen.drop_duplicates(unit)


def _bars(ax, counts: pd.DataFrame) -> None:
    bottom = pd.Series(0, index=counts.index)
    for kind in counts.columns:
        colour, hatch = LOOKS.get(kind, OTHER)
        bars = ax.bar(
            range(len(counts)),
            counts[kind],
            bottom=bottom,
            color=colour,
            hatch=hatch,
            edgecolor="0.25",
            linewidth=0.6,
            label=words.value_word("status", kind),
        )
        numbers = [str(n) if n else "" for n in counts[kind]]
        for text in ax.bar_label(bars, numbers, label_type="center", fontsize=10):
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85} if hatch else None)
        bottom = bottom + counts[kind]
    ax.set_xticks(range(len(counts)), [words.tick(v) for v in counts.index])
    ax.set_xlim(-0.6, len(counts) - 0.4)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _tell(counts: pd.DataFrame, axis: str) -> str:
    """Totals, and for every outcome but ok the axis values where it happened."""
    parts = []
    for kind in counts.columns:
        total = int(counts[kind].sum())
        if not total:
            continue
        text = f"{total} {words.value_word('status', kind)}"
        if kind != "ok":
            at = [f"{n} at {words.short_word(axis)} {words.tick(v)}" for v, n in counts[kind].items() if n]
            text += f" ({', '.join(at)})"
        parts.append(text)
    return words.joined(parts) or "none"
