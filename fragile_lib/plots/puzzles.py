"""Figures of the public puzzles: what reliability leaves to be seen, slope over damping, loss over removals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fragile_lib.plots import base, texts, words
from fragile_lib.plots.base import Picture

CHOICES = ("random", "top_influence")
OF = ("run_id", "dataset", "n_train", "profile")


def _look(place: int) -> dict:
    place %= len(base.CYCLE)
    return {"color": base.CYCLE[place], "marker": base.MARKERS[place], "ls": base.DASHES[place]}


def _of(rows: pd.DataFrame, puzzle: str) -> pd.DataFrame:
    there = "puzzle" in rows and "estimator" in rows
    return rows[rows["puzzle"] == puzzle].copy() if there else rows.head(0)


def _told(figure: object, head: str, setting: str, details: Sequence[str], rows: pd.DataFrame) -> Picture:
    of = texts.brief(rows)
    rows = rows.drop(columns=["dataset", "n_train", "profile"], errors="ignore")  # what is common the caption says
    caption = words.caption([head], [f"{of}; {setting}" if of else setting], details)
    return Picture(figure, words.sentences(head, setting, *details), caption, rows=rows)


def _numbers(found: pd.Series, level: str = "estimator") -> str:
    """From where to where each of the first estimators goes."""
    by = found.dropna().groupby(level=level)
    names = words.ordered(by.groups)[: texts.SERIES]
    return words.joined(f"{words.code(name)} {words.span(by.get_group(name))}" for name in names)


def _ways(rows: pd.DataFrame) -> pd.Series:
    """How the perceptron was trained, and below it what sets some runs apart from most."""
    way = rows["fit"]
    for name, unit in (("n_train", "images"), ("n_points", "left out")):
        if name in rows:
            apart = rows[name] != rows[name].mode()[0]
            way = way.where(~apart, way + "\n" + rows[name].map("{:,.0f}".format) + f" {unit}")
    return way


def ways_of_training(rows: pd.DataFrame) -> Picture:
    """Agreement of each estimator with one retraining, a panel for each choice, under its ceiling, by way of training.

    Runs of one way that differ in the number of images or of those left out stand apart.

    rows: of `own.puzzles.perceptron_rows`.
    """
    rows = _of(rows, "perceptron")
    if rows.empty:
        return Picture(None, "No rows of the perceptron.")
    rows["ceiling_single"] = rows["reliability_single"].clip(lower=0) ** 0.5
    rows["way"] = _ways(rows)
    by = ["train_choice", "way", "estimator"]
    means = rows.groupby(by, sort=False)[["spearman_single", "ceiling_single", "reliability_single"]].mean()
    order = [name for name in ("dropout", "batches", "n_train", "n_points") if name in rows]
    ways = list(dict.fromkeys(rows.sort_values(order)["way"]))
    with base.theme():
        figure, axes = base.new_figure(1.6 + 1.1 * len(ways), 2, 1, sharex=True)
        for ax, choice in zip(axes[:, 0], CHOICES, strict=True):
            for place, name in enumerate(words.ordered(rows["estimator"])):
                found = means.xs((choice, name), level=("train_choice", "estimator")).reindex(ways)
                look = _look(place) | {"ls": "none", "label": words.code(name)}
                ax.plot(found["spearman_single"], np.arange(len(ways)) + 0.15 * (place - 1), **look)
            ax.plot(found["ceiling_single"], range(len(ways)), "k|", ms=16, mew=2, label="ceiling of one retraining")
            ax.axvline(0, color="0.6", lw=0.8)
            ax.set(
                yticks=range(len(ways)),
                yticklabels=ways,
                ylim=(len(ways) - 0.5, -0.5),
                title=f"images {words.code(choice)}",
            )
            ax.grid(axis="x")
        ax.set(xlabel="Spearman correlation with one retraining")
        base.legend_below(figure)
    head = "Leave-one-out of the perceptron by way of training, images drawn at random: "
    head += _numbers(means["spearman_single"].xs(CHOICES[0], level="train_choice"))
    setting = f"means over {words.counted(rows['test_point'].nunique(), 'test image')}"
    details = (
        "A black mark is what an estimate without any error would reach, the root of one retraining's reliability",
    )
    return _told(figure, head, setting, details, rows.filter(items=[*OF, "test_point", *by, *means.columns]))


def over_damping(rows: pd.DataFrame) -> Picture:
    """Spearman correlation and slope over damping, a panel for each choice and statistic.

    rows: of `own.puzzles.logistic_rows`.
    """
    rows = _of(rows, "logistic")
    if rows.empty:
        return Picture(None, "No rows of the logistic regression.")
    by, measures = ["train_choice", "estimator", "damping"], ["spearman", "slope"]
    means = rows.groupby(by)[measures].mean()
    with base.theme():
        figure, axes = base.new_figure(6.2, 2, 2, sharex=True)
        for line, statistic in zip(axes, ("spearman", "slope"), strict=True):
            for ax, choice in zip(line, CHOICES, strict=True):
                for place, name in enumerate(words.ordered(rows["estimator"])):
                    found = means.loc[choice, name][statistic].sort_index()
                    ax.plot(found.index, found, label=words.code(name), **_look(place))
                _damping_axis(ax, statistic, choice)
        base.legend_below(figure)
    head = "Softmax regression: agreement with the certified minima without each image, drawn at random, over damping: "
    head += _numbers(means["spearman"].loc[CHOICES[0]])
    setting = f"means over {words.counted(rows['test_point'].nunique(), 'test image')}"
    details = ("A slope of 1 says that an estimate has the size of the truth; below 1 it is too large",)
    return _told(figure, head, setting, details, rows.filter(items=[*OF, "test_point", *by, *measures]))


def _damping_axis(ax: Axes, statistic: str, choice: str) -> None:
    ax.set(xscale="log")
    if statistic == "spearman":
        ax.set(title=words.code(choice).replace("of largest", "largest"), ylim=(-0.15, 1.05))
    else:
        ax.set(xlabel="damping")
        ax.set_yscale("symlog", linthresh=1e-4)
        ax.axhline(1, color="0.4", lw=0.8)
    if choice == CHOICES[0]:
        ax.set(ylabel="Spearman" if statistic == "spearman" else "slope")


def after_removal(rows: pd.DataFrame) -> Picture:
    """The loss after leaving out the k most helpful examples by each score, a panel for each table.

    rows: of `own.puzzles.curve_rows`.
    """
    rows = _of(rows, "curve")
    if rows.empty:
        return Picture(None, "No rows of the removal curve.")
    tables = list(dict.fromkeys(rows["fit"]))
    with base.theme():
        figure, axes = base.new_figure(4.2, 1, len(tables))
        for ax, table in zip(axes[0], tables, strict=True):
            some = rows[rows["fit"] == table]
            for place, name in enumerate(words.ordered(some["selected_by"])):
                by_count = some[some["selected_by"] == name].groupby("removed")[
                    ["loss_before", "loss_after", "loss_error"]
                ]
                found, look = by_count.mean(), _look(place)
                before = float(found["loss_before"].iloc[0])
                errors = [0.0, *found["loss_error"].fillna(0)]
                ax.errorbar([0, *found.index], [before, *found["loss_after"]], errors, label=words.code(name), **look)
            ax.set(title=table.split("/")[-1], xlabel="examples left out")
        axes[0, 0].set(ylabel="loss of the test examples")
        base.legend_below(figure)
    head = f"Loss of the test examples without the examples that help them most, by each score, {tables[0]}: "
    head += _numbers(rows[rows["fit"] == tables[0]].set_index("selected_by")["loss_after"], "selected_by")
    setting = f"means over {words.counted(int(rows['repeats'].max()), 'training')} anew from other starts"
    drawn = ["fit", "selected_by", "removed", "loss_before", "loss_after", "loss_error"]
    details = ("Bars: standard error of the change from the control",)
    return _told(figure, head, setting, details, rows.filter(items=[*OF, "seed", *drawn]))
