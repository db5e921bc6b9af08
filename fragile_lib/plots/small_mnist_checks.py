"""Figures of the small-MNIST study over ground truths and solvers, for one network each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from fragile_lib.agreement import bootstrap_interval
from fragile_lib.plots import base, words
from fragile_lib.plots.base import Picture
from fragile_lib.plots.curves import require
from fragile_lib.plots.small_mnist import (
    CEILING,
    CEILING_SENTENCE,
    DECAY,
    choose,
    draw_ceiling,
    itself,
    present,
    reached,
    with_itself,
)

ORDERS = {
    "exact": "Hessian",
    "exact_ggn": "Gauss-Newton",
    "second_order": "Gauss-Newton, second order",
    "exact_undamped": "Hessian, undamped",
}
GROUPS = ("random_groups", "same_class_groups", "top_influence_groups")
# Solvers that work alike share a colour; markers tell them apart.
FAMILIES = (
    ("exact", "exact_ggn"),
    ("cg", "cg_ggn", "minres"),
    ("kfac", "ekfac"),
    ("arnoldi", "nystroem"),
    ("lissa",),
    ("identity", "tracin", "trak"),
)
SOLVERS = [name for family in FAMILIES for name in family]
ROOM = 0.8  # of the distance between two lines of the truth page, for the marks of one
FLOOR = 1e-8  # relative residuals below this are drawn here


class Solver(NamedTuple):
    """One solver: its mark, median residual (NaN where it has none) and seconds, and whether an outcome is flagged."""

    name: str
    colour: str
    marker: str
    residual: float
    seconds: float
    flagged: bool


def truth_page(results: pd.DataFrame, where: Mapping | None = None) -> Picture:
    """Spearman of the direct estimates with each ground truth, beside each truth's agreement with itself.

    Removals of groups have one row for each way of choosing them, with the estimates to first and to second order.
    Where a truth was reached for too few of the training points (`not_certified`), its number is counted and not drawn.
    """
    defaults = {"weight_decay": DECAY, "test_choice": "max_loss", "estimator": list(ORDERS)}
    defaults["train_choice"] = ["top_influence", "p30_influence", "scratch", *GROUPS]
    rows, left_out = reached(choose(results, defaults, where, "spearman"))
    if len(rows):  # within a test point the control moves all changes alike
        rows = rows[rows["ground_truth"] != "loo_warm_minus_control"].reset_index(drop=True)
    if rows.empty:
        return base.empty_picture(words.nothing("spearman", "ground_truth"))
    lines = [
        (truth, train, rows[(rows["ground_truth"] == truth) & (rows["train_choice"] == train)])
        for truth in present(rows, "ground_truth")
        for train in present(rows, "train_choice")
    ]
    lines = [line for line in lines if len(line[2])]
    with base.theme():
        figure, axes = base.new_figure(1.9 + 0.55 * len(lines))
        ax = axes[0, 0]
        told = [text for y, line in enumerate(lines) for text in _draw_truth(ax, y, *line)]
        ax.set_yticks(range(len(lines)), [_line_label(truth, train) for truth, train, _ in lines])
        ax.set_ylim(len(lines) - 0.5, -0.5)
        ceilings = rows.groupby(["ground_truth", "train_choice"])["ceiling_spearman"].mean()
        lowest = np.nanmin([0.0, *rows["spearman"], *ceilings])
        ax.set_xlim(lowest - 0.05, 1.05)
        ax.axvline(0, color="0.35", linewidth=1.0, zorder=1)
        ax.grid(True, axis="x")
        ax.set_xlabel("Spearman correlation")
        base.legend_below(figure, [ax])
    caption = words.sentences(
        words.setting_sentence(rows, ["train_choice"]),
        words.scale_sentence(rows),
        words.units_sentence(rows),
        "Training points of largest |influence|, but for lines that name others",
        "Faint dots are single test points of one seed, marks their mean with a 95% bootstrap interval over them",
        f"Black ticks: {CEILING} when it is repeated; for single training points at one test point of each network"
        if rows["ceiling_spearman"].notna().any()
        else "",
        words.outcome_sentence(rows, "spearman", dots=False, counts=False),
        left_out,
    )
    return Picture(figure, words.sentences("Spearman by ground truth", *told), caption)


def _line_label(truth: str, train: str) -> str:
    words_of = {"loo_scratch": "LOO from\nscratch"}
    words_of |= {"random_groups": "random\ngroups", "same_class_groups": "groups of\none class"}
    words_of |= {"top_influence_groups": "groups of\nlargest |infl.|"}
    label = words_of.get(train if truth == "group" else truth, words.value_word("", truth))
    return f"{label}\n(30th percentile)" if train == "p30_influence" else label


def _draw_truth(ax: Axes, y: int, truth: str, train: str, rows: pd.DataFrame) -> list[str]:
    """Dots, mean and interval of each estimate in one line of the page, and the truth's ceiling; what they say."""
    named = truth == "group" or train == "p30_influence"
    place = words.value_word("", truth) + (f", {words.value_word('', train)}" if named else "")
    present_orders = [e for e in ORDERS if (rows["estimator"] == e).any()]
    told = []
    for i, estimator in enumerate(present_orders):
        values = rows.loc[rows["estimator"] == estimator, "spearman"].to_numpy(dtype=float)
        name = ORDERS[estimator]
        at = y + ROOM * (i - (len(present_orders) - 1) / 2) / max(len(present_orders), 2)
        text = _draw_mean(ax, at, values[np.isfinite(values)], name, list(ORDERS).index(estimator))
        told.append(f"{place}, {name}: {text}")
    ceiling = with_itself(rows)
    if told and np.isfinite(ceiling):
        ax.plot([ceiling, ceiling], [y - 0.38, y + 0.38], color="black", linewidth=2.4, zorder=3, label=CEILING)
        told[-1] += itself(ceiling)
    return told


def _draw_mean(ax: Axes, y: float, values: np.ndarray, name: str, i: int) -> str:
    """The values as faint dots, their mean with its interval; both in words."""
    if not values.size:
        return "no number"
    colour, mean, interval = base.CYCLE[i], float(values.mean()), bootstrap_interval(values)
    spread = np.linspace(-0.08, 0.08, values.size)
    ax.scatter(values, y + spread, s=16, color=base.tint(colour), edgecolors="white", linewidths=0.4, zorder=2)
    error = [[max(0.0, mean - interval.low)], [max(0.0, interval.high - mean)]] if values.size > 1 else None
    mark = {"color": colour, "marker": base.MARKERS[i], "linestyle": "none", "capsize": 3, "elinewidth": 1.6}
    ax.errorbar([mean], [y], xerr=error, label=name, zorder=4, **mark)
    between = (
        f" (95% interval {words.number(interval.low)} to {words.number(interval.high)})" if values.size > 1 else ""
    )
    return f"mean {words.number(mean)}{between} over {values.size} test point{'s' if values.size > 1 else ''}"


def solver_page(results: pd.DataFrame, where: Mapping | None = None) -> Picture:
    """Solver error against cost, and below what solver error does to the correlation with each truth."""
    defaults = {"weight_decay": DECAY, "test_choice": "max_loss", "train_choice": "top_influence"}
    defaults |= {"estimator": SOLVERS, "ground_truth": ["loo_warm", "loo_certified", "loo_tilted", "pbrf"]}
    require(results, ["solver_residual", "seconds_estimate"])
    rows = _compared(choose(results, defaults, where, "spearman"))
    if rows.empty:
        return base.empty_picture(words.nothing("solver_residual", "seconds_estimate"))
    solvers, truths = _solvers(rows), present(rows, "ground_truth")
    with base.theme():
        figure, axes = base.new_figure(4.2 + 2.6 * len(truths), rows=1 + len(truths))
        upper, *lower = axes[:, 0]
        for s, y in zip(solvers, _residual_axis(upper, "y", solvers), strict=True):
            _mark(upper, s, s.seconds, y)
        _seconds_axis(upper, [s.seconds for s in solvers])
        upper.set_xlabel(words.column_word("seconds_estimate"))
        told = [_cost(s) for s in solvers]
        for ax, truth in zip(lower, truths, strict=True):
            told += _draw_effect(ax, rows[rows["ground_truth"] == truth], solvers, truth)
        for ax in lower[:-1]:
            ax.set_xlabel("")
        figure.align_ylabels()
        base.legend_below(figure, [upper, *lower])
    flagged = words.joined([words.value_word("", s.name) for s in solvers if s.flagged])
    caption = words.sentences(
        words.setting_sentence(rows, []),
        words.scale_sentence(rows),
        words.units_sentence(rows),
        "Residual and seconds are medians, correlations means over test points and seeds",
        _spent(rows, solvers),
        f"Hollow: flagged by the solver ({flagged})" if flagged else "",
        CEILING_SENTENCE if np.isfinite(with_itself(rows)) else "",
        words.outcome_sentence(rows, "spearman", dots=False, counts=False),
    )
    return Picture(
        figure, words.sentences("Solver error against cost, and correlation against solver error", *told), caption
    )


def _compared(rows: pd.DataFrame) -> pd.DataFrame:
    """The networks and test points on which most solvers were tried; others would count for the direct ones alone."""
    if rows.empty:
        return rows
    tried = rows.groupby(["run_id", "test_point"])["estimator"].transform("nunique")
    return rows[tried == tried.max()].reset_index(drop=True)


def _solvers(rows: pd.DataFrame) -> list[Solver]:
    """The solvers that the rows have, in the order of their families."""
    found = []
    for colour, family in zip(base.CYCLE, FAMILIES, strict=True):
        for name, marker in zip(family, base.MARKERS, strict=False):
            part = rows[rows["estimator"] == name]
            if len(part):
                sizes = [float(part[c].astype(float).median()) for c in ("solver_residual", "seconds_estimate")]
                outcome = part["status"].astype(object).where(part["status"].notna(), "ok")
                found.append(Solver(name, colour, marker, *sizes, bool((~outcome.isin(["ok", "indefinite"])).any())))
    return found


def _mark(ax: Axes, s: Solver, x: float, y: float) -> None:
    fill = "white" if s.flagged else s.colour
    mark = {"color": s.colour, "markerfacecolor": fill, "linestyle": "none", "clip_on": False}
    mark["markersize"] = 12 if s.name in FAMILIES[0] else 8.5  # an iteration to the same solution lies on top of it
    mark |= {"markeredgewidth": 1.6} if s.flagged else {"markeredgecolor": "white", "markeredgewidth": 0.8}
    ax.plot([x], [y], marker=s.marker, label=words.value_word("", s.name), zorder=3, **mark)


def _residual_axis(ax: Axes, which: str, solvers: list[Solver]) -> np.ndarray:
    """Make axis "x" or "y" logarithmic, with a strip at its upper end for solvers without a residual.

    Returns the solvers' places on it; in a strip of "x" they lie side by side.
    """
    residuals = np.array([s.residual for s in solvers])
    bare = ~np.isfinite(residuals)
    exponents = np.log10(np.maximum(residuals, FLOOR))
    low, high = (np.floor(exponents[~bare].min()), np.ceil(exponents[~bare].max())) if (~bare).any() else (-1.0, 0.0)
    room = 0.05 * max(1.0, high - low)
    strip = high + 4.5 * room
    exponents[bare] = strip
    if which == "x" and bare.sum() > 1:
        exponents[bare] += room * np.linspace(-1, 1, bare.sum())
    ticks = np.arange(low, high + 0.5, max(1, -(-int(high - low) // 5)))
    below = bool((residuals[~bare] < FLOOR).any())
    labels = [rf"$\leq 10^{{{e:.0f}}}$" if below and e == low else f"$10^{{{e:.0f}}}$" for e in ticks]
    if bare.any():
        (ax.axvline if which == "x" else ax.axhline)(10 ** (high + 2 * room), color="0.6", linewidth=1.0)
        ticks, labels = np.append(ticks, strip), [*labels, "no\nresidual"]
    getattr(ax, f"set_{which}scale")("log")
    getattr(ax, f"set_{which}lim")(10 ** (low - room), 10 ** (strip + 2.5 * room if bare.any() else high + room))
    axis = getattr(ax, f"{which}axis")
    axis.set_minor_locator(NullLocator())
    axis.set_ticks(10.0**ticks, labels)
    axis.set_label_text("relative residual")
    return 10.0**exponents


def _seconds_axis(ax: Axes, seconds: list[float]) -> None:
    """A logarithmic axis with plain numbers: 1, 2, 5, 10 and so on, or powers of ten where there are many."""
    ax.set_xscale("log")
    short = np.nanmax(seconds) < 300 * np.nanmin(seconds)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if short else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def _draw_effect(ax: Axes, rows: pd.DataFrame, solvers: list[Solver], truth: str) -> list[str]:
    """Mean Spearman with one truth against the residual, a mark for each solver; what they say."""
    means = {}
    for s, x in zip(solvers, _residual_axis(ax, "x", solvers), strict=True):
        mean = rows.loc[rows["estimator"] == s.name, "spearman"].astype(float).mean()
        if np.isfinite(mean):
            means[s.name] = mean
            _mark(ax, s, x, mean)
    ceiling = with_itself(rows)
    draw_ceiling(ax, ceiling, "0.35")
    ax.set_ylim(np.nanmin([0.0, ceiling, *means.values()]) - 0.05, 1.05)
    ax.axhline(0, color="0.35", linewidth=1.0, zorder=1)
    ax.set_ylabel("Spearman")
    ax.set_title(f"with {words.value_word('', truth)}")
    each = [f"{words.value_word('', name)} {words.number(mean)}" for name, mean in means.items()]
    return [f"Mean Spearman with {words.value_word('', truth)}: {', '.join(each) or 'no number'}{itself(ceiling)}"]


def _spent(rows: pd.DataFrame, solvers: list[Solver]) -> str:
    """The products and the memory of each solver in one sentence, where they are known."""
    if not {"products", "memory_mb"} <= set(rows.columns):
        return ""
    medians = rows.groupby("estimator")[["products", "memory_mb"]].median()
    each = [
        f"{words.value_word('', s.name)} ({'none' if np.isnan(products) else f'{products:.0f}'}, {memory:,.0f} MB)"
        for s in solvers
        for products, memory in [medians.loc[s.name].to_numpy(dtype=float)]
    ]
    return f"Products with the curvature for a test point, and peak memory with the scoring: {'; '.join(each)}"


def _cost(s: Solver) -> str:
    residual = f"relative residual {words.number(s.residual)}" if np.isfinite(s.residual) else "no residual"
    return f"{words.value_word('', s.name)}: {residual}, {words.number(s.seconds)} seconds"
