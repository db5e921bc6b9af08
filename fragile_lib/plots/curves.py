"""From the results table to curves over depth or width: choose rows, average over seeds, draw, describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fragile_lib.agreement import summarise
from fragile_lib.plots import base, words
from fragile_lib.tools.errors import bad_input

# What a figure shows of a results table when its caller does not say otherwise: the paper's protocol.
DEFAULTS = {
    "fit": "descent",
    "estimator": "exact",
    "ground_truth": "loo_warm",
    "test_choice": "max_loss",
    "train_choice": "top_influence",
    "activation": "relu",
}
# The estimate that a truth is compared with unless a figure shows several: a damped Gauss-Newton estimate is the
# derivative of the proximal Bregman response, the Hessian's that of the others.
OWN = {"pbrf": "exact_ggn"}
SPREAD = 0.34  # of the distance between two ticks, shared by the curves there
JITTER = 0.07


@dataclass(frozen=True)
class Curve:
    """One line of a figure: an average over seeds with its interval at each axis value, and the seeds themselves.

    `table` has the columns x (the axis value), mean, low, high, n; `dots` x, seed, value, flagged.
    """

    label: str
    colour: str
    marker: str
    dash: object
    table: pd.DataFrame
    dots: pd.DataFrame
    key: tuple = ()  # the values of hue and style that this curve stands for


def select(
    results: pd.DataFrame,
    where: Mapping | None = None,
    free: Sequence[str] = (),
    defaults: Mapping = DEFAULTS,
) -> pd.DataFrame:
    """The rows that `defaults`, overridden by `where`, let through; columns in `free` are not filtered by default.

    A value of `where` is one value, a list of values, or None for "all". Columns that the table does not have cannot
    be filtered by default (certificates have no ground truth); naming one in `where` is an error.
    """
    where = dict(where or {})
    for column in where:
        if column not in results.columns and len(results.columns):
            raise bad_input("where", column, f"no such column; the table has {', '.join(results.columns)}")
    filters = {k: v for k, v in defaults.items() if k not in free and k in results.columns} | where
    if "activation" not in where and "activation" in filters and results["activation"].nunique() == 1:
        del filters["activation"]  # a study of one other activation is not empty
    kept = pd.Series(True, index=results.index, dtype=bool)
    for column, value in filters.items():
        if value is not None and column in results.columns:
            kept &= results[column].isin(value if isinstance(value, list | tuple | set) else [value])
    return results[kept]


def select_axis(
    results: pd.DataFrame, axis: str, where: Mapping | None = None, free: Sequence[str] = ()
) -> pd.DataFrame:
    """`select`, and of the other size (width beside depth) the one value at which the axis was studied most widely."""
    rows = select(results, where, free)
    rows = rows[rows[axis].notna()] if axis in rows.columns else rows
    other = {"depth": "width", "width": "depth"}.get(axis)
    if other not in rows.columns or other in (where or {}) or other in free or rows.empty:
        return rows
    spread = rows.groupby(other)[axis].nunique()
    return rows[rows[other] == spread.index[spread == spread.max()].min()] if len(spread) else rows


def require(rows: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table with rows but without a needed column."""
    for column in columns:
        if column is not None and column not in rows.columns and len(rows):
            raise bad_input("column", column, f"the table has {', '.join(map(str, rows.columns))}")


def levels(rows: pd.DataFrame, column: str | None) -> list:
    """The values of a column in the order of legends: numbers from large to small, words in order of the study."""
    if column is None:
        return [None]
    values = list(rows[column].dropna().unique())
    if all(isinstance(v, str) for v in values):
        order = list(words.VALUES)
        return sorted(values, key=lambda v: (order.index(v) if v in order else len(order), v))
    return sorted(values, reverse=True)


def curves(
    rows: pd.DataFrame,
    axis: str,
    statistic: str,
    hue: str | None = None,
    style: str | None = None,
    average: Callable[..., float] = np.mean,
) -> list[Curve]:
    """One curve for each pair of values of `hue` (colour) and `style` (marker and dash) that has rows."""
    found = []
    for i, hue_level in enumerate(levels(rows, hue) or [None]):
        for j, style_level in enumerate(levels(rows, style) or [None]):
            named = [(c, v) for c, v in ((hue, hue_level), (style, style_level)) if v is not None]
            part = rows
            for column, value in named:
                part = part[part[column] == value]
            if part.empty:
                continue
            mark = j if style is not None else i
            found.append(
                curve(
                    part,
                    axis,
                    statistic,
                    label=", ".join(words.value_word(c, v) for c, v in named) or words.column_word(statistic),
                    colour=base.CYCLE[i % len(base.CYCLE)],
                    marker=base.MARKERS[mark % len(base.MARKERS)],
                    dash=base.DASHES[mark % len(base.DASHES)],
                    average=average,
                    key=tuple(v for _, v in named),
                )
            )
    return found


def curve(
    rows: pd.DataFrame,
    axis: str,
    statistic: str,
    label: str,
    colour: str = base.BLUE,
    marker: str = "o",
    dash: object = "-",
    average: Callable[..., float] = np.mean,
    key: tuple = (),
) -> Curve:
    """Average `statistic` over the seeds of these rows at each value of the axis."""
    table = summarise(rows, [axis], statistic, average=average).rename(columns={axis: "x"})
    value = pd.to_numeric(rows[statistic], errors="coerce").astype(float)
    dots = pd.DataFrame(
        {
            "x": rows[axis],
            "seed": rows["seed"] if "seed" in rows.columns else 0,
            "value": value.where(np.isfinite(value)),
            "flagged": (rows["status"].notna() & (rows["status"] != "ok")) if "status" in rows.columns else False,
        }
    ).sort_values(["x", "seed"], kind="stable")
    return Curve(label, colour, marker, dash, table, dots, key)


def axis_values(rows: pd.DataFrame, axis: str) -> list:
    """The values of the axis that any row has, also a row without a number, in order; they are drawn equally spaced."""
    return sorted(rows[axis].dropna().unique())


def draw(ax: Axes, drawn: Sequence[Curve], ticks: list, axis: str, dots: bool = True) -> None:
    """Draw the curves side by side at each tick, each seed as a faint dot, and label the ticks; see `label_ticks`."""
    position, unit = {value: i for i, value in enumerate(ticks)}, unit_of(ticks)
    for i, c in enumerate(drawn):
        shift = SPREAD * unit * ((i + 0.5) / len(drawn) - 0.5) if len(drawn) > 1 else 0.0
        if dots:
            seeds = c.dots.dropna(subset=["value"])
            x = seeds["x"].map(position).to_numpy(dtype=float) + shift + JITTER * unit * _ranks(seeds["seed"])
            hollow = seeds["flagged"].to_numpy(dtype=bool)
            y, faint = seeds["value"].to_numpy(dtype=float), base.tint(c.colour)
            ax.scatter(x[~hollow], y[~hollow], s=18, color=faint, edgecolors="white", linewidths=0.5, zorder=2)
            ax.scatter(x[hollow], y[hollow], s=15, facecolors="none", edgecolors=[faint], linewidths=1.0, zorder=2)
        t = c.table
        below, above = (t["mean"] - t["low"]).clip(lower=0), (t["high"] - t["mean"]).clip(lower=0)
        ax.errorbar(
            t["x"].map(position).to_numpy(dtype=float) + shift,
            t["mean"].to_numpy(dtype=float),
            yerr=np.array([below, above], dtype=float),
            color=c.colour,
            marker=c.marker,
            linestyle=c.dash,
            capsize=3,
            elinewidth=1.4,
            zorder=3,
            label=c.label.replace("weight decay", "decay") if ", " in c.label else c.label,  # long ones must fit
        )
    label_ticks(ax, drawn, ticks, axis)


def unit_of(ticks: list) -> float:
    """Share of the distance between ticks that side-by-side marks use: less where few ticks lie far apart."""
    return min(1.0, max(0.5, len(ticks) / 6))


def _ranks(seeds: pd.Series) -> np.ndarray:
    """Seeds as equally spaced numbers in [-1/2, 1/2]: dots lie beside one another in the order of seeds."""
    if seeds.empty:
        return np.zeros(0)
    rank = seeds.rank(method="dense").to_numpy(dtype=float) - 1
    return (rank - rank.max() / 2) / max(1.0, rank.max())


def label_ticks(ax: Axes, drawn: Sequence[Curve], ticks: list, axis: str) -> None:
    """Axis values, and below each one where some seed has no number, how many have one ("n=7", "7-10" over curves)."""
    everyone = max((c.dots["seed"].nunique() for c in drawn), default=0)
    counts = []
    for value in ticks:
        found = [int(n) for c in drawn for n in c.table.loc[c.table["x"] == value, "n"]] or [everyone]
        few, most = min(found), max(found)
        counts.append("" if few == everyone else f"n={few}" if few == most else f"{few}\N{EN DASH}{most}")
    ax.set_xticks(range(len(ticks)), [words.tick(value) for value in ticks])
    if any(counts):  # as labels of minor ticks, for which the layout makes room
        ax.xaxis.remove_overlapping_locs = False
        ax.set_xticks(range(len(ticks)), counts, minor=True, fontsize=10, color="0.3")
        ax.tick_params(axis="x", which="minor", length=0, pad=21)
    ax.set_xlim(-0.5, len(ticks) - 0.5)
    ax.set_xlabel(words.column_word(axis) + ("; below: seeds with a number" if any(counts) else ""))


def correlation_axis(ax: Axes, drawn: Sequence[Curve], label: str, dots: bool = True) -> None:
    """From the smallest value (or just below zero) to 1, with a line at zero: the sign is never hidden."""
    values = [
        v for c in drawn for v in [*(c.dots["value"] if dots else c.table["mean"]), *c.table["low"]] if np.isfinite(v)
    ]
    ax.set_ylim(min([0.0, *values]) - 0.05, 1.05)
    ax.axhline(0, color="0.35", linewidth=1.0, zorder=1)
    ax.set_ylabel(label)


def describe(c: Curve, axis: str, intervals: bool = False) -> str:
    """The curve in words: its first and last value, with their intervals if asked for, and an extreme between them."""
    t = c.table[np.isfinite(c.table["mean"].astype(float))].reset_index(drop=True)
    values = [words.number(m) for m in t["mean"]]
    if not values:
        return f"{c.label}: no number"

    def at(i: int, interval: bool = False) -> str:
        low, high = t.loc[i, "low"], t.loc[i, "high"]
        between = (
            f" (95% interval {words.number(low)} to {words.number(high)})" if interval and np.isfinite(low) else ""
        )
        return f"{values[i]}{between} at {words.short_word(axis)} {words.tick(t.loc[i, 'x'])}"

    last = len(values) - 1
    text = at(0, intervals) + (f", {at(last, intervals)}" if last else "")
    for word, i in (("lowest", int(np.argmin(t["mean"]))), ("highest", int(np.argmax(t["mean"])))):
        if values[i] not in (values[0], values[last]):
            text += f", {word} {at(i)}"
    return f"{c.label}: {text}"
