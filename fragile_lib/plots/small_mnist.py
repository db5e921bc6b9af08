"""Figures of the small-MNIST study over single test points: point by point, and against weight decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fragile_lib.plots import base, words
from fragile_lib.plots.base import Picture
from fragile_lib.plots.correlations import CORRELATIONS
from fragile_lib.plots.curves import OWN, axis_values, correlation_axis, curves, describe, draw, levels, require, select

DECAY = 0.001  # of the network that most figures show
TRAIN_CHOICES = ("top_influence", "p30_influence")
TRUTHS = ("loo_warm", "loo_warm_minus_control", "loo_tilted", "loo_certified", "pbrf", "loo_scratch", "group")
NEEDED = ("seed", "weight_decay", "test_choice", "train_choice", "test_point", "estimator", "ground_truth", "status")
CEILING = "agreement of the truth with itself"
CEILING_SENTENCE = f"Dashed: {CEILING}, a mean over the networks where it was repeated, at one test point of each"
SLOT = 0.19  # distance between marks at one test point, unless there are too many for the room of one


def by_test_point(
    results: pd.DataFrame,
    where: Mapping | None = None,
    statistic: str = "spearman",
    paper: tuple[float, float] | None = (0.92, 0.38),
) -> Picture:
    """The correlation at each single test point, from the largest loss down; a panel for each ground truth.

    `paper` is the published range of Spearman for training points of largest |influence|, drawn where that is the
    statistic.
    """
    truths = ["loo_warm", "loo_certified", "loo_tilted", "pbrf"]
    defaults = {"weight_decay": DECAY, "train_choice": TRAIN_CHOICES, "ground_truth": truths}
    rows, left_out = reached(own_estimates(choose(results, defaults, where, statistic), where))
    if rows.empty:
        return base.empty_picture(words.nothing(statistic, "test_choice"))
    paper = paper if statistic == "spearman" else None
    rows, groups = _placed(rows)
    shown = present(rows, "ground_truth")
    with base.theme():
        figure, axes = base.new_figure(1.7 + 2.5 * len(shown), rows=len(shown))
        for ax, truth in zip(axes[:, 0], shown, strict=True):
            part = rows[rows["ground_truth"] == truth]
            _draw_points(ax, part, statistic, present(rows, "train_choice"), sorted(rows["seed"].unique()))
            if paper and truth.startswith("loo_warm"):
                ax.axhspan(min(paper), max(paper), color="0.92", zorder=0, label="the paper's range")
            _points_axis(ax, rows, groups, statistic)
            ax.set_title(_panel_title(truth, part))
        axes[-1, 0].set_xlabel("test points in order of loss, largest first")
        base.legend_below(figure, list(axes[:, 0]))
    keys = [(truth, train, test) for truth in shown for train in present(rows, "train_choice") for test in groups]
    told = [_spread(rows, statistic, paper, *key) for key in keys]
    head = f"{words.short_word(statistic)} at single test points"
    caption = words.sentences(
        words.setting_sentence(rows, ["test_choice", "train_choice"]),
        words.scale_sentence(rows),
        words.units_sentence(rows),
        "Each mark is one test point of one seed, its colour the choice of training points",
        CEILING_SENTENCE if np.isfinite(with_itself(rows, statistic)) else "",
        words.outcome_sentence(rows, statistic, dots=False, counts=False),
        left_out,
    )
    return Picture(figure, words.sentences(head, *told), caption)


def against_decay(results: pd.DataFrame, statistic: str = "spearman", where: Mapping | None = None) -> Picture:
    """The correlation against weight decay, a panel for each ground truth: mean over test points and seeds."""
    truths = ["loo_warm", "loo_tilted", "loo_certified", "pbrf"]
    defaults = {"test_choice": "max_loss", "train_choice": TRAIN_CHOICES, "ground_truth": truths}
    rows, left_out = reached(own_estimates(choose(results, defaults, where, statistic), where))
    if rows.empty:
        return base.empty_picture(words.nothing(statistic, "weight_decay"))
    shown, ticks = present(rows, "ground_truth"), axis_values(rows, "weight_decay")
    units = rows.assign(network=rows["seed"], seed=_unit(rows, ["weight_decay"]))  # what is resampled: a test point
    columns = min(2, len(shown))
    told, everything = [], []
    with base.theme():
        height = 1.9 + 2.6 * -(-len(shown) // columns)
        figure, axes = base.new_figure(height, -(-len(shown) // columns), columns, share_y=True)
        for i, (ax, truth) in enumerate(zip(axes.flat, shown, strict=False)):
            drawn = curves(units[units["ground_truth"] == truth], "weight_decay", statistic, hue="train_choice")
            drawn = [replace(c, label=f"training points {c.label}") for c in drawn]
            draw(ax, drawn, ticks, "weight_decay")
            repeated = _ceilings(rows[rows["ground_truth"] == truth], statistic)
            for place, _, decay, height in repeated:
                at = ticks.index(decay)
                draw_ceiling(ax, height, base.CYCLE[place], place, (at - 0.75, at + 0.75))
            _upright_ticks(ax, ticks, last=i + columns >= len(shown))
            ax.set_title(_panel_title(truth, rows[rows["ground_truth"] == truth]).replace(", ", "\n"), fontsize=12)
            everything += drawn
            told += [f"{words.value_word('', truth)}, {describe(c, 'weight_decay', intervals=True)}" for c in drawn]
            told += [
                f"{words.value_word('', truth)}, training points {words.value_word('', train)}, "
                f"{words.value_word('weight_decay', decay)}{itself(height)}"
                for _, train, decay, height in repeated
            ]
        for ax in list(axes.flat)[len(shown) :]:
            ax.set_axis_off()
        for ax in list(axes.flat)[: len(shown)]:
            label = words.column_word(statistic) if ax in axes[:, 0] else ""
            correlation_axis(ax, everything, label) if statistic in CORRELATIONS else ax.set_ylabel(label)
        base.legend_below(figure, list(axes.flat))
    caption = words.sentences(
        words.setting_sentence(rows, ["weight_decay", "train_choice"]),
        words.scale_sentence(rows),
        words.units_sentence(rows),
        "Mean over test points and seeds with 95% bootstrap intervals over them, which speak for these networks; "
        "faint dots are single test points",
        CEILING_SENTENCE if np.isfinite(with_itself(rows, statistic)) else "",
        words.outcome_sentence(rows, statistic, counts=False),
        left_out,
    )
    return Picture(figure, words.sentences(f"{words.short_word(statistic)} against weight decay", *told), caption)


def _ceilings(rows: pd.DataFrame, statistic: str) -> list[tuple[int, str, float, float]]:
    """(place among the choices, choice of training points, weight decay, ceiling) where a truth was repeated."""
    found = [
        (i, train, decay, with_itself(part, statistic))
        for i, train in enumerate(levels(rows, "train_choice"))
        for decay, part in rows[rows["train_choice"] == train].groupby("weight_decay")
    ]
    return [one for one in found if np.isfinite(one[-1])]


def choose(results: pd.DataFrame, defaults: Mapping, where: Mapping | None, statistic: str) -> pd.DataFrame:
    """The chosen rows of single test points, sorted; of a truth known after two fits, that of finished training."""
    require(results, [*NEEDED, statistic])
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}
    rows = select(results, where if len(results) else None, defaults=given)
    if rows.empty:
        return rows
    rows = rows[rows["test_point"].notna() & ~rows["test_choice"].astype(str).str.endswith("_together")]
    keys = ["weight_decay", "seed", "ground_truth", "train_choice"]
    if "fit" in rows.columns:
        later = (rows["fit"] != "finished").astype(int)
        rows = rows[later == later.groupby([rows[k] for k in keys]).transform("min")]
    ceilings = {c: np.nan for c in ("ceiling_spearman", "ceiling_pearson", "test_loss") if c not in rows.columns}
    return rows.assign(**ceilings).sort_values([*keys, "test_choice", "test_point"], kind="stable", ignore_index=True)


def reached(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows whose truth was reached for enough of the training points, and a sentence that counts the others."""
    if rows.empty:
        return rows, ""
    found = rows[rows["status"] != "not_certified"].reset_index(drop=True)
    lost = len(rows) - len(found)
    few = f"Not drawn: {lost} of {len(rows)} rows, whose truth was reached for fewer than four in five training points"
    return found, few if lost else ""


def own_estimates(rows: pd.DataFrame, where: Mapping | None = None) -> pd.DataFrame:
    """Of each ground truth the rows with the estimate that belongs to it (`OWN`), unless `where` names another."""
    if rows.empty or "estimator" in (where or {}):
        return rows
    kept = rows["estimator"] == rows["ground_truth"].map(lambda truth: OWN.get(truth, "exact"))
    return rows[kept].reset_index(drop=True)


def with_itself(rows: pd.DataFrame, statistic: str = "spearman") -> float:
    """A truth's mean agreement with itself over the test points for which it was repeated; nan where it never was.

    Each test point counts once, whatever number of estimators it has rows for.
    """
    ceilings = rows[f"ceiling_{statistic}"].astype(float)
    return float(ceilings.groupby([rows["seed"], rows["test_point"]]).mean().mean())


def draw_ceiling(ax: Axes, height: float, colour: str, place: int = 0, ends: tuple[float, float] | None = None) -> None:
    """A truth's agreement with itself as a dashed line, across the axes or from end to end; nothing where it is nan.

    place: of lines that may lie on one another, so that the dashes of one fill the gaps of the other.
    """
    if not np.isfinite(height):
        return
    left, right = ends or (0, 1)
    across = ax.get_yaxis_transform() if ends is None else ax.transData
    dashes = {"linestyle": (3 * place, (3, 3)), "linewidth": 2.0}
    ax.plot([left, right], [height] * 2, color=colour, transform=across, zorder=2, **dashes)
    ax.plot([], [], color="0.35", label=CEILING, **dashes)


def itself(height: float) -> str:
    """The same in words, to be put after what it is the ceiling of; nothing where it is nan."""
    return f"; {CEILING} {words.number(height)}" if np.isfinite(height) else ""


def _panel_title(truth: str, rows: pd.DataFrame) -> str:
    """The truth, and the curvature of the estimates that it is compared with."""
    names = {"exact": "Hessian", "exact_ggn": "Gauss-Newton"}
    by = words.joined([names.get(e, words.value_word("", e)) for e in levels(rows, "estimator")])
    return f"{words.value_word('', truth)}, estimate by {by}"


def present(rows: pd.DataFrame, column: str) -> list:
    """The values that the rows have, ground truths in the order of the study."""
    found = levels(rows, column)
    return sorted(found, key=lambda v: TRUTHS.index(v) if v in TRUTHS else len(TRUTHS))


def _unit(rows: pd.DataFrame, within: Sequence[str]) -> pd.Series:
    """A number for each (seed, test point), counted anew within each value of `within`."""
    keys = ["seed", "test_point"]
    points = rows[[*within, *keys]].drop_duplicates().sort_values([*within, *keys])
    points["unit"] = points.groupby(list(within)).cumcount()
    return rows[[*within, *keys]].merge(points, how="left")["unit"].set_axis(rows.index)


def _placed(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict]:
    """Rows with a place x on the axis: the rank by loss within choice and seed; and choice -> its (first, last) x."""
    keys = ["test_choice", "seed", "test_point"]
    points = rows.drop_duplicates(keys).sort_values(["test_loss", "test_point"], ascending=[False, True])[keys]
    points["x"] = points.groupby(keys[:2]).cumcount().astype(float)
    groups, start = {}, 0.0
    for choice in levels(rows, "test_choice"):
        of_choice = points["test_choice"] == choice
        points.loc[of_choice, "x"] += start
        groups[choice] = start, points.loc[of_choice, "x"].max()
        start = groups[choice][1] + 2
    return rows.merge(points, on=keys, how="left"), groups


def _draw_points(ax: Axes, part: pd.DataFrame, statistic: str, trains: list, seeds: list) -> None:
    """A mark for each row, side by side by choice of training points and seed; a choice's ceiling across the panel."""
    slots = len(trains) * len(seeds)
    slot = min(SLOT, 0.84 / slots)
    for i, train in enumerate(trains):
        colour, marker = base.CYCLE[i], base.MARKERS[i]
        ax.plot([], [], marker, color=colour, label=words.value_word("", train))
        for j, seed in enumerate(seeds):
            rows = part[(part["train_choice"] == train) & (part["seed"] == seed)]
            x = rows["x"].to_numpy() + slot * (i * len(seeds) + j - (slots - 1) / 2)
            fill = colour if j == 0 else "white"
            ax.plot(x, rows[statistic].to_numpy(), marker, color=colour, markerfacecolor=fill, markersize=5.5, zorder=3)
    for i, train in enumerate(trains):
        draw_ceiling(ax, with_itself(part[part["train_choice"] == train], statistic), base.CYCLE[i], i)
    if len(seeds) > 1:
        ax.plot([], [], "o", color="0.3", label=f"seed {seeds[0]}")
        others = words.joined([str(s) for s in seeds[1:]])
        ax.plot([], [], "o", color="0.3", markerfacecolor="white", label=f"seed{'s' * (len(seeds) > 2)} {others}")


def _points_axis(ax: Axes, rows: pd.DataFrame, groups: Mapping, statistic: str) -> None:
    """Ranks as ticks, each group's name below them; the correlation from below its smallest value to 1."""
    if statistic in CORRELATIONS:
        ax.set_ylim(np.nanmin([0.0, *rows[statistic]]) - 0.05, 1.05)
    ax.axhline(0, color="0.35", linewidth=1.0, zorder=1)
    ax.set_ylabel(words.column_word(statistic))
    ranks = {first + k: str(k + 1) for first, last in groups.values() for k in _few(int(last - first) + 1)}
    ax.set_xticks(list(ranks), list(ranks.values()))
    centres = [(first + last) / 2 for first, last in groups.values()]
    ax.xaxis.remove_overlapping_locs = False
    ax.set_xticks(centres, [words.value_word("", choice).removeprefix("of ") for choice in groups], minor=True)
    ax.tick_params(axis="x", which="minor", length=0, pad=21)
    for _, last in list(groups.values())[:-1]:
        ax.axvline(last + 1, color="0.6", linewidth=1.0, zorder=1)
    ax.set_xlim(-0.7, max(last for _, last in groups.values()) + 0.7)


def _few(n: int) -> list[int]:
    """The first, the middle and the last of n ranks."""
    return sorted({0, (n - 1) // 2, n - 1})


def _spread(rows: pd.DataFrame, statistic: str, paper: tuple | None, truth: str, train: str, test: str) -> str:
    """Mean and range of a statistic over the test points in words, and how many lie in the paper's range."""
    part = rows[(rows["ground_truth"] == truth) & (rows["train_choice"] == train) & (rows["test_choice"] == test)]
    values = part[statistic].astype(float).dropna()
    names = [
        words.value_word("", truth),
        *(f"{w} points {words.value_word('', v)}" for w, v in (("training", train), ("test", test))),
    ]
    if values.empty:
        return f"{', '.join(names)}: no number"
    text = f"mean {words.number(values.mean())}, from {words.number(values.min())} to {words.number(values.max())}"
    text += f" over {len(values)} test points"
    if paper and train == "top_influence":
        text += f", {values.between(min(paper), max(paper)).sum()} of them in the paper's range"
    return f"{', '.join(names)}: {text}{itself(with_itself(part, statistic))}"


def _upright_ticks(ax: Axes, ticks: list, last: bool) -> None:
    """Weight decays as upright labels below the lowest panel of each column; the caption counts what is missing."""
    ax.set_xticks([], minor=True)
    ax.set_xticks(range(len(ticks)), [words.tick(value) for value in ticks], rotation=90)
    ax.tick_params(axis="x", labelbottom=last)
    ax.set_xlabel("weight decay" if last else "")
