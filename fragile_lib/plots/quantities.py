"""Figures of sizes that span orders of magnitude: norms, eigenvalues, gradients. Medians over seeds, log axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fragile_lib.plots import base, words
from fragile_lib.plots.base import Picture
from fragile_lib.plots.curves import (
    Curve,
    axis_values,
    correlation_axis,
    curves,
    describe,
    draw,
    require,
    select,
    select_axis,
)

CHOICES = ("train_choice", "test_choice")  # which do not matter to a Hessian or a gradient


def parameter_change_norms(
    results: pd.DataFrame, axis: str = "depth", hue: str | None = "weight_decay", where: Mapping | None = None
) -> Picture:
    """Estimated against true size of the parameter change: median ratio (log axis, 1 is right), and Spearman."""
    require(results, [axis, hue, "norm_ratio", "norm_spearman"])
    rows = select_axis(results, axis, where, free=[c for c in (axis, hue) if c])
    if rows.empty:
        return base.empty_picture(words.nothing("norm_ratio", axis))
    ticks = axis_values(rows, axis)
    ratios, ranks = _scale_curves(rows, axis, "norm_ratio", hue), curves(rows, axis, "norm_spearman", hue)
    with base.theme():
        figure, axes = base.new_figure(6.8, rows=2)
        upper, lower = axes[:, 0]
        draw(upper, ratios, ticks, axis)
        _log_axis(upper, ratios, "estimated / true norm")
        upper.axhline(1, color="0.35", linewidth=1.0, linestyle="--", zorder=1)
        upper.set_xlabel("")
        draw(lower, ranks, ticks, axis)
        correlation_axis(lower, ranks, "Spearman of norms")
        base.legend_below(figure, [upper])
    alt = words.sentences(
        f"Estimated over true norm of the parameter change against {words.short_word(axis)}; 1 is right",
        *(describe(c, axis, intervals=True) for c in ratios),
        "Spearman of the two norms over the points",
        *(describe(c, axis) for c in ranks),
    )
    caption = words.caption(rows, [axis, hue], "norm_ratio", "Median (above; dashed: the right size) and mean (below)")
    return Picture(figure, alt, words.sentences(caption, _off_axis(rows, "norm_ratio")))


def top_eigenvalue(
    results: pd.DataFrame, axis: str = "depth", hue: str | None = "weight_decay", where: Mapping | None = None
) -> Picture:
    """The Hessian's largest eigenvalue at the end of training, on a log axis."""
    rows = _certificate_rows(results, axis, "eig_max", hue, where)
    if rows.empty:
        return base.empty_picture(words.nothing("eig_max", axis))
    return _one_panel(rows, axis, "eig_max", hue, None, "largest eigenvalue of H")


def smallest_eigenvalue(
    results: pd.DataFrame,
    axis: str = "depth",
    damping: float = 1e-3,
    hue: str | None = "weight_decay",
    where: Mapping | None = None,
) -> Picture:
    """The Hessian's smallest eigenvalue, linear within +- damping and logarithmic outside.

    Below the line at -damping the damped Hessian is indefinite, so that the inverse belongs to no minimum.
    """
    rows = _certificate_rows(results, axis, "eig_min", hue, where)
    if rows.empty:
        return base.empty_picture(words.nothing("eig_min", axis))
    drawn, ticks = _scale_curves(rows, axis, "eig_min", hue), axis_values(rows, axis)
    values = pd.to_numeric(rows["eig_min"], errors="coerce")
    below, counted = int((values < -damping).sum()), int(np.isfinite(values.astype(float)).sum())
    with base.theme():
        figure, axes = base.new_figure(4.4)
        ax = axes[0, 0]
        draw(ax, drawn, ticks, axis)
        _symlog_limits(ax, drawn, damping)
        ax.axhline(0, color="0.35", linewidth=1.0, zorder=1)
        ax.axhline(
            -damping, color="0.35", linewidth=1.2, linestyle="--", zorder=1, label=f"minus damping, {-damping:g}"
        )
        ax.set_ylabel("smallest eigenvalue of H")
        base.legend_below(figure, [ax])
    indefinite = f"Below the dashed line at -{damping:g}, where the damped Hessian is indefinite: {below} of {counted}"
    head = f"Smallest eigenvalue against {words.short_word(axis)}"
    alt = words.sentences(head, *(describe(c, axis) for c in drawn), indefinite)
    caption = words.sentences(words.caption(rows, [axis, hue, *CHOICES], "eig_min", "Median"), indefinite)
    return Picture(figure, alt, caption)


def gradient_norm(
    certificates: pd.DataFrame, axis: str = "depth", hue: str | None = "weight_decay", where: Mapping | None = None
) -> Picture:
    """How finished is training? The gradient's norm after descent and after the second-order method, on a log axis.

    Takes a table of certificates (with the run's depth and so on joined on) or the results table.
    """
    require(certificates, ["fit"])
    where = dict(where or {})
    parts = []
    for fit, truth in (("descent", "loo_warm"), ("certified", "loo_certified")):
        own = {"fit": fit} | ({"ground_truth": truth} if "ground_truth" in certificates.columns else {})
        parts.append(_certificate_rows(certificates, axis, "grad_norm", hue, {**own, **where}))
    rows = pd.concat(parts)
    if rows.empty:
        return base.empty_picture(words.nothing("grad_norm", axis))
    return _one_panel(rows, axis, "grad_norm", hue, "fit", "norm of the gradient of J")


def finish_against_decay(
    results: pd.DataFrame, damping: float = 0.01, limit: float | None = None, where: Mapping | None = None
) -> Picture:
    """How far was training driven, by weight decay? Above the gradient's norm, below the smallest eigenvalue.

    Takes a table of certificates or the results table; each (weight decay, seed, fit) counts once. `limit` is the
    gradient norm of a certified optimum; without it the table's column `tolerance` is taken, if there is one.
    """
    axis, hue = "weight_decay", "fit" if "fit" in results.columns else None
    require(results, [axis, "seed", "grad_norm", "eig_min"])
    rows = select(results, where if len(results) else None, defaults={})
    rows = rows.dropna(subset=["grad_norm", "eig_min"], how="all") if len(rows) else rows
    if rows.empty:
        return base.empty_picture(words.nothing("grad_norm", axis))
    if "estimator" in rows.columns:  # the outcomes there are of estimates, not of training
        rows = rows.drop(columns="status", errors="ignore")
    rows = rows.sort_values([axis, "seed", *([hue] if hue else [])])
    rows = rows.drop_duplicates([axis, "seed", *([hue] if hue else [])])
    if limit is None and "tolerance" in rows.columns and rows["tolerance"].notna().any():
        limit = float(rows["tolerance"].max())
    ticks = axis_values(rows, axis)
    norms, eigenvalues = (_scale_curves(rows, axis, statistic, hue) for statistic in ("grad_norm", "eig_min"))
    with base.theme():
        figure, axes = base.new_figure(6.8, rows=2)
        upper, lower = axes[:, 0]
        draw(upper, norms, ticks, axis)
        _log_axis(upper, norms, "norm of the gradient of J", also=limit)
        if limit is not None:
            dots = (0, (1, 1.5))
            upper.axhline(
                limit, color="0.2", linestyle=dots, zorder=1, label=f"limit of a certificate, {words.number(limit)}"
            )
        upper.set_xlabel("")
        draw(lower, eigenvalues, ticks, axis)
        _symlog_limits(lower, eigenvalues, damping)
        lower.axhline(0, color="0.35", linewidth=1.0, zorder=1)
        lower.axhline(-damping, color="0.35", linestyle="--", zorder=1, label=f"minus damping, {-damping:g}")
        lower.set_ylabel("smallest eigenvalue of H")
        figure.align_ylabels()
        base.legend_below(figure, [upper, lower])
    told = [_count(rows, "eig_min", -damping, f"smallest eigenvalue below -{damping:g}, damped Hessian indefinite")]
    if limit is not None:
        told.append(
            _count(rows, "grad_norm", limit * (1 + 1e-9), f"gradient norm within the limit {words.number(limit)}")
        )
    alt = words.sentences(
        "Gradient norm against weight decay, log scale",
        *(describe(c, axis) for c in norms),
        "Smallest eigenvalue against weight decay",
        *(describe(c, axis) for c in eigenvalues),
        *told,
    )
    setting = words.setting_sentence(rows, [axis, *CHOICES])
    seeds = words.seeds_sentence(rows, "Median")
    return Picture(figure, alt, words.sentences(setting, words.scale_sentence(rows), seeds, *told))


def _count(rows: pd.DataFrame, column: str, limit: float, text: str) -> str:
    values = pd.to_numeric(rows[column], errors="coerce").astype(float)
    return f"{text}: {int((values < limit).sum())} of {int(np.isfinite(values).sum())} networks"


def _certificate_rows(
    table: pd.DataFrame, axis: str, statistic: str, hue: str | None, where: Mapping | None
) -> pd.DataFrame:
    require(table, [axis, hue, statistic])
    return select_axis(table, axis, where if len(table) else None, free=[c for c in (axis, hue) if c])


def _one_panel(
    rows: pd.DataFrame, axis: str, statistic: str, hue: str | None, style: str | None, label: str
) -> Picture:
    drawn, ticks = _scale_curves(rows, axis, statistic, hue, style), axis_values(rows, axis)
    with base.theme():
        figure, axes = base.new_figure(4.4)
        ax = axes[0, 0]
        draw(ax, drawn, ticks, axis)
        _log_axis(ax, drawn, label)
        base.legend_below(figure, [ax])
    head = f"{words.short_word(statistic)} against {words.short_word(axis)}, log scale"
    alt = words.sentences(head, *(describe(c, axis, intervals=style is None) for c in drawn))
    caption = words.caption(rows, [axis, hue, style, *CHOICES], statistic, "Median")
    return Picture(figure, alt, words.sentences(caption, _off_axis(rows, statistic)))


def _scale_curves(
    rows: pd.DataFrame, axis: str, statistic: str, hue: str | None, style: str | None = None
) -> list[Curve]:
    """Curves of medians: unlike means they say the same on a log axis as on a linear one, and bear zeros."""
    return curves(rows, axis, statistic, hue, style, average=np.median)


def _values(drawn: Sequence[Curve]) -> np.ndarray:
    """All that is drawn: dots, averages, ends of intervals."""
    parts = [np.concatenate([c.dots["value"], c.table["mean"], c.table["low"], c.table["high"]]) for c in drawn]
    values = np.concatenate([np.zeros(0), *parts]).astype(float)
    return values[np.isfinite(values)]


def _log_axis(ax: Axes, drawn: Sequence[Curve], label: str, also: float | None = None) -> None:
    """A log axis that spans at least one decade; what is not positive falls off it, and the caption says so.

    `also` is one more value that must lie on it.
    """
    values = np.append(_values(drawn), [] if also is None else also)
    values = values[values > 0] if (values > 0).any() else np.ones(1)
    low, high = np.log10(values.min()), np.log10(values.max())
    room = max(0.06 * (high - low), (1 - (high - low)) / 2)
    ax.set_ylim(10 ** (low - room), 10 ** (high + room))
    ax.set_yscale("log", nonpositive="mask")
    ax.set_ylabel(label)


def _off_axis(rows: pd.DataFrame, statistic: str) -> str:
    off = int((pd.to_numeric(rows[statistic], errors="coerce") <= 0).sum())
    return f"{off} values that are not positive lie off the log axis" if off else ""


def _symlog_limits(ax: Axes, drawn: Sequence[Curve], damping: float) -> None:
    values = _values(drawn)
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    base.symlog_axis(ax, "y", min(2 * low, -2 * damping), max(2 * high, damping), damping, most=8)
