"""What is known beforehand beside what came out: rules on networks that they never saw, and reliabilities foretold."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from fragile_lib.plots import base, texts, words
from fragile_lib.plots.base import Picture

BINS = 5  # of equal numbers of cases, for the frequency of what came true
FEWEST = 10  # cases of a curve
CORNERS = 200  # of a curve at most, evenly along it: no eye sees more, and all of them stand in the rows


def held_out_curves(cases: pd.DataFrame, scores: Mapping[str, np.ndarray], what: str) -> Picture:
    """ROC curves and calibration of rules on held-out cases.

    Args:
        cases: with `good`, `network` and `run_id`.
        scores: of each rule, by its name, the probability (cases,) that it gave each case; nan where it gave none.
        what: what is to be told apart, in a few words.
    """
    good, known = cases["good"].to_numpy(bool), {n: s for n, s in scores.items() if np.isfinite(s).sum() >= FEWEST}
    if not known or not 0 < good.sum() < len(good):
        return Picture(None, "No held-out cases of both kinds.")
    drawn = {}
    for name, score in known.items():
        given = good[np.isfinite(score)], score[np.isfinite(score)]
        drawn |= {(name, "curve"): _curve(*given), (name, "probabilities"): _calibration(*given)}
    rows = pd.concat({key: pd.DataFrame(points, columns=["x", "y"]) for key, points in drawn.items()})
    rows = rows.rename_axis(["rule", "panel", None]).reset_index([0, 1]).reset_index(drop=True)
    return _told(_draw(rows), cases, rows, what)


def _curve(good: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(corners, 2): the share of others taken for good, and of good ones found, as the bar is lowered."""
    corners = np.stack(roc_curve(good, score, drop_intermediate=False)[:2], axis=1)
    even = np.searchsorted(corners[1:].sum(axis=1), np.linspace(0, 2 - 1e-9, CORNERS))
    return corners[[0, *np.unique(even) + 1]]


def _calibration(good: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(BINS, 2): the mean probability given in each group of cases, and the share that was good."""
    parts = np.array_split(np.argsort(score, kind="stable"), BINS)
    return np.array([[score[part].mean(), good[part].mean()] for part in parts])


def _draw(rows: pd.DataFrame) -> Figure:
    with base.theme():
        figure, ((left, right),) = base.new_figure(4.6, 1, 2, layout="compressed")
        for place, (name, part) in enumerate(rows.groupby("rule", sort=False)):
            look = base.look(place)
            curve, given = (part[part["panel"] == panel] for panel in ("curve", "probabilities"))
            left.plot(curve["x"], curve["y"], label=name, **look | {"marker": None})
            right.plot(given["x"], given["y"], **look)
        _frame(left, "mistaken for good", "good ones found")
        _frame(right, "probability given", "share that was good")
        base.legend_below(figure)
    return figure


def _frame(ax: Axes, x: str, y: str) -> None:
    ax.plot([0, 1], [0, 1], color="0.6", ls=":", zorder=0)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y, aspect="equal")


def _told(figure: Figure, cases: pd.DataFrame, rows: pd.DataFrame, what: str) -> Picture:
    curves = rows[rows["panel"] == "curve"].groupby("rule", sort=False)
    areas = {name: np.trapezoid(curve["y"], curve["x"]) for name, curve in curves}
    head = f"Area under the curve, {what}, each case alike: "
    head += words.joined(f"{words.number(area)} ({name})" for name, area in [*areas.items()][: texts.SERIES])
    networks, good = cases["network"].nunique(), int(cases["good"].sum())
    counts = f"{words.counted(len(cases), 'case')} of {words.counted(networks, 'network')}, {good} of them good"
    details = (
        "Left: the share of good cases found against the share of others taken for good, as the bar is lowered; the "
        "area below a curve is how often a good case stands before another, each case alike",
        f"Right: cases in {BINS} groups by the probability that the rule gave them; on the dotted line it is right",
        counts,
    )
    caption = words.caption([head], [texts.brief(cases)], details)
    runs = cases["run_id"].unique()
    return Picture(figure, words.sentences(head, *details), caption, rows=rows, runs=tuple(runs))


def foretold(told: pd.DataFrame) -> Picture:
    """The reliability of one retraining, measured against foretold by the unrolled derivative, a mark a test point.

    Retraining on all examples at once has no order of batches, and is left out.

    Args:
        told: with `network`, `dataset`, `ground_truth`, `n_train`, `foretold`, `measured` (`own.rule.retrainings`).
    """
    known = told[told["ground_truth"] == "warm_minibatch"].dropna(subset=["foretold", "measured"])
    if known.empty:
        return Picture(None, "No unrolled derivative was repeated beside a retraining.")
    with base.theme():
        figure, ((ax,),) = base.new_figure(4.9, 1, 1, layout="compressed")
        for place, name in enumerate(words.ordered(known["dataset"])):  # networks would be too many to tell apart
            part = known[known["dataset"] == name]
            look = base.look(place) | {"linestyle": "", "ms": 4, "alpha": 0.7, "label": words.code(name)}
            ax.plot(part["foretold"], part["measured"], **look)
        _frame(ax, "foretold: two unrolled derivatives", "measured: two retrainings")
        base.legend_below(figure)
    gap = (known["measured"] - known["foretold"]).abs()
    head = f"The noise of one retraining, known without retraining: foretold within {gap.median():.2f} in the median"
    counts = f"{words.counted(len(known), 'pair')} of a test point and a choice of removals, "
    counts += f"{words.counted(known['network'].nunique(), 'network')}"
    details = (
        "Reliability: how well two retrainings on other orders of the batches agree on what leaving examples out does",
        "Foretold by how well the unrolled derivatives over these orders agree; on the dotted line it is right",
        f"Nine in ten are within {gap.quantile(0.9):.2f}",
    )
    rows = known[["run_id", "network", "n_train", "test_point", "train_choice", "foretold", "measured"]]
    caption = words.caption([head], [f"{texts.brief(known)}; {counts}"], details)
    return Picture(figure, words.sentences(head, counts, *details), caption, rows=rows)
