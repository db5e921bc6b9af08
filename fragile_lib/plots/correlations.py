"""Figures of the agreement between estimates and retraining over depth and width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fragile_lib.plots import base, words
from fragile_lib.plots.base import Picture
from fragile_lib.plots.curves import (
    Curve,
    axis_values,
    correlation_axis,
    curve,
    curves,
    describe,
    draw,
    levels,
    require,
    select_axis,
    unit_of,
)

CORRELATIONS = ("spearman", "pearson", "norm_spearman")

# The five readings of "finished": (fit, ground truth, estimator, name in the legend, colour, marker).
VARIANTS = (
    ("descent", "loo_warm", "exact", "Hessian", base.BLUE, "o"),
    ("descent", "loo_warm_minus_control", "exact", "Hessian, control subtracted", base.GREEN, "^"),
    ("descent", "loo_warm", "exact_ggn", "GGN", base.PURPLE, "D"),
    ("certified", "loo_certified", "exact", "Hessian", base.BLUE, "o"),
    ("certified", "loo_certified", "exact_ggn", "GGN", base.PURPLE, "D"),
)


def correlation_against(
    results: pd.DataFrame,
    axis: str = "depth",
    statistic: str = "spearman",
    hue: str | None = "weight_decay",
    style: str | None = None,
    where: Mapping | None = None,
    paper: Mapping | None = None,
) -> Picture:
    """A correlation (or the slope) against depth or width: mean over seeds, 95% bootstrap intervals, single seeds.

    `where` overrides `curves.DEFAULTS`. `paper` gives published figures, drawn as stars: axis value -> figure, or, to
    place one at a curve, (axis value, hue value) -> figure.
    """
    require(results, [axis, statistic, hue, style])
    rows = select_axis(results, axis, where, free=[c for c in (axis, hue, style) if c])
    if rows.empty:
        return base.empty_picture(words.nothing(statistic, axis))
    drawn, ticks = curves(rows, axis, statistic, hue, style), axis_values(rows, axis)
    with base.theme():
        figure, axes = base.new_figure(4.4)
        ax = axes[0, 0]
        draw(ax, drawn, ticks, axis)
        if statistic in CORRELATIONS:
            correlation_axis(ax, drawn, words.column_word(statistic))
        else:
            _slope_axis(ax, drawn, words.column_word(statistic))
        marked = _mark_paper(ax, drawn, ticks, paper or {}, hue)
        base.legend_below(figure, [ax])
    told = [describe(c, axis, intervals=True) for c in drawn]
    told += [f"paper: {words.number(y)} at {words.short_word(axis)} {words.tick(x)}{name}" for x, y, name in marked]
    alt = words.sentences(f"{words.short_word(statistic)} against {words.short_word(axis)}", *told)
    return Picture(figure, alt, words.caption(rows, [axis, hue, style], statistic, "Mean", stars=bool(marked)))


def solver_comparison(
    results: pd.DataFrame,
    axis: str = "depth",
    hue: str | None = "weight_decay",
    statistic: str = "spearman",
    where: Mapping | None = None,
) -> Picture:
    """Stochastic (LiSSA) beside exact iHVP, and below the difference LiSSA minus exact, paired by seed."""
    require(results, [axis, statistic, hue, "estimator"])
    rows = select_axis(results, axis, {"estimator": ["exact", "lissa"], **(where or {})}, free=[axis])
    if rows.empty:
        return base.empty_picture(words.nothing(statistic, axis))
    drawn, ticks = curves(rows, axis, statistic, hue, "estimator"), axis_values(rows, axis)
    differences = _paired(rows, axis, statistic, hue)
    with base.theme():
        figure, axes = base.new_figure(6.8, rows=2)
        upper, lower = axes[:, 0]
        draw(upper, drawn, ticks, axis)
        upper.set_xlabel("")
        correlation_axis(upper, drawn, words.column_word(statistic))
        draw(lower, differences, ticks, axis)
        lower.axhline(0, color="0.35", linewidth=1.0, zorder=1)
        lower.set_ylabel("LiSSA minus exact")
        base.legend_below(figure, [upper])
    told = [f"{words.short_word(statistic)} by solver against {words.short_word(axis)}"]
    told += [describe(c, axis) for c in drawn]
    told += [f"LiSSA minus exact, {describe(c, axis)}" for c in differences]
    told += [] if differences else ["No seed has both solvers, so there is no difference to show"]
    caption = words.caption(rows, [axis, hue, "estimator"], statistic, "Mean")
    return Picture(figure, words.sentences(*told), f"{caption} Below: differences, paired by seed.")


def finished_or_not(
    results: pd.DataFrame,
    axis: str = "depth",
    statistic: str = "spearman",
    panels: str = "weight_decay",
    where: Mapping | None = None,
) -> Picture:
    """Does the fall survive when training is finished, the control is subtracted, the Hessian is the GGN?

    Upper row: the paper's gradient descent; lower row: the certified stationary point, with its certified left-out
    optima. At most two columns: the largest and the smallest value of `panels` in the table.
    """
    require(results, [axis, statistic, panels, "fit", "ground_truth", "estimator"])
    parts = {v: _variant_rows(results, axis, v, where, free=[axis, panels]) for v in VARIANTS}
    present = {v: rows for v, rows in parts.items() if len(rows)}
    if not present:
        return base.empty_picture(words.nothing(statistic, axis))
    rows = pd.concat(present.values())
    ticks, found = axis_values(rows, axis), levels(rows, panels)
    shown = found if len(found) < 3 else [found[0], found[-1]]
    fits = [f for f in ("descent", "certified") if any(v[0] == f for v in present)]
    with base.theme():
        figure, axes = base.new_figure(1.1 + 2.9 * len(fits), len(fits), len(shown), share_y=True)
        told, everything = [], []
        for i, fit in enumerate(fits):
            for j, value in enumerate(shown):
                drawn = _variant_curves(present, fit, panels, value, axis, statistic)
                draw(axes[i, j], drawn, ticks, axis, dots=False)
                axes[i, j].set_title(f"{'descent' if fit == 'descent' else 'certified'}, {_short(panels, value)}")
                axes[i, j].set_xlabel(words.short_word(axis) if i == len(fits) - 1 else "")
                everything += drawn
                place = f"{words.value_word('fit', fit)}, {words.value_word(panels, value)}"
                told += [f"{place}, {describe(c, axis)}" for c in drawn]
        for ax in axes.flat:
            correlation_axis(ax, everything, words.column_word(statistic) if ax in axes[:, 0] else "", dots=False)
        figure.align_xlabels()
        base.legend_below(figure, list(axes.flat))
    alt = words.sentences(f"{words.short_word(statistic)} against {words.short_word(axis)}", *told)
    caption = (
        words.caption(rows, [axis, panels], statistic, "Mean", dots=False)
        + " Upper row: the end of gradient descent; lower row: "
    )
    caption += "the same networks driven on to a certified stationary point." if "certified" in fits else "not run."
    absent = [f"{words.value_word('fit', v[0])}: {v[3]}" for v in VARIANTS if v not in present]
    if absent:
        caption += f" Not in the table: {words.joined(absent)}."
    if len(shown) < len(found):
        caption += f" Of {len(found)} values of {words.short_word(panels)} the largest and the smallest are shown."
    return Picture(figure, alt, caption)


def _variant_rows(results: pd.DataFrame, axis: str, variant: tuple, where: Mapping | None, free: list) -> pd.DataFrame:
    fit, truth, estimator = variant[:3]
    chosen = {**(where or {}), "fit": fit, "ground_truth": truth, "estimator": estimator}
    return select_axis(results, axis, chosen if len(results) else None, free)


def _variant_curves(present: Mapping, fit: str, panels: str, value: object, axis: str, statistic: str) -> list[Curve]:
    drawn = []
    for variant, rows in present.items():
        part = rows[rows[panels] == value]
        if variant[0] == fit and len(part):
            drawn.append(curve(part, axis, statistic, label=variant[3], colour=variant[4], marker=variant[5]))
    return drawn


def _paired(rows: pd.DataFrame, axis: str, statistic: str, hue: str | None) -> list[Curve]:
    """Curves of LiSSA minus exact over the seeds that have both numbers."""
    index = [c for c in (axis, hue, "seed") if c]
    wide = rows.pivot_table(index=index, columns="estimator", values=statistic, aggfunc="mean", observed=True)
    if not {"exact", "lissa"} <= set(wide.columns):
        return []
    wide["difference"] = wide["lissa"] - wide["exact"]
    return curves(wide.dropna(subset=["difference"]).reset_index(), axis, "difference", hue)


def _mark_paper(ax, drawn: Sequence[Curve], ticks: list, paper: Mapping, hue: str | None) -> list[tuple]:
    """Draw the published figures that lie on the axis, as stars; return them."""
    marked = []
    for key, y in paper.items():
        x, level = key if isinstance(key, tuple) else (key, None)
        if x not in ticks:
            continue
        colour = next((c.colour for c in drawn if hue is not None and level is not None and level in c.key), "black")
        place = ticks.index(x) - 0.28 * unit_of(ticks)
        star = {"marker": "*", "s": 130, "color": colour, "edgecolors": "black", "zorder": 4, "clip_on": False}
        ax.scatter(place, y, label="_" if marked else "the paper", **star)
        marked.append((x, y, "" if level is None else f" ({words.value_word(hue or '', level)})"))
    return marked


def _slope_axis(ax, drawn: Sequence[Curve], label: str) -> None:
    """A line at 1 (a perfect estimate) and at 0; logarithmic outwards where slopes differ by orders of magnitude."""
    values = np.abs([v for c in drawn for v in c.dots["value"] if np.isfinite(v)])
    if values.size and values.max() > 10:
        signed = [v for c in drawn for v in c.dots["value"] if np.isfinite(v)]
        low, high = min(-0.5, 1.5 * min(signed)), 1.5 * max(1.0, *signed)
        base.symlog_axis(ax, "y", low, high, threshold=1.0)
    for y, dash in ((1, "--"), (0, "-")):
        ax.axhline(y, color="0.35", linewidth=1.0, linestyle=dash, zorder=1)
    ax.set_ylabel(label)


def _short(column: str, value: object) -> str:
    return words.value_word(column, value).replace("weight decay", "decay")
