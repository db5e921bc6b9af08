"""Figures of the study over architectures that compare solvers: what they agree with, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from fragile_lib.plots import base, words
from fragile_lib.plots.architectures_rows import (
    ARCHITECTURES,
    DATASETS,
    Line,
    Mark,
    ceiling_sentence,
    choose,
    correlations_along_x,
    decay_word,
    draw_lines,
    finite,
    name,
    plain_mean,
    points_sentence,
    present,
    rounded,
    scale_sentence,
    told,
)
from fragile_lib.plots.base import Picture
from fragile_lib.plots.small_mnist import DECAY

ESTIMATORS = ("lissa", "cg_ggn", "ekfac", "identity")
COLOURS = dict(zip(ESTIMATORS, base.CYCLE, strict=False))
MARKERS = dict(zip(ESTIMATORS, base.MARKERS, strict=False))
TRAINS = {"top_influence": "largest |influence|", "random": "random"}
SETTING = {"dataset": ["mnist", "cifar10"], "weight_decay": DECAY, "estimator": list(ESTIMATORS)}


def estimators_by_architecture(results: pd.DataFrame, where: Mapping | None = None) -> Picture:
    """Spearman of each estimator with warm-start retraining; a panel for a data set and a choice of training points."""
    rows = choose(results, where, **SETTING, train_choice=list(TRAINS))
    if rows.empty:
        return base.empty_picture(words.nothing("spearman", "estimator"))
    shown, trains = present(rows, "dataset", DATASETS), list(dict.fromkeys([*TRAINS, *rows["train_choice"]]))
    trains, networks = present(rows, "train_choice", trains), present(rows, "architecture", ARCHITECTURES)
    panels = {(d, t): _agreement_lines(rows, networks, d, t) for d in shown for t in trains}
    sentences = []
    with base.theme():
        height = 1.3 + (0.6 + 0.54 * len(networks)) * len(shown)
        figure, axes = base.new_figure(height, len(shown), len(trains), share_y=True)
        for ax, ((dataset, train), lines) in zip(axes.flat, panels.items(), strict=True):
            draw_lines(ax, lines, dots=False)
            points = TRAINS.get(train, words.value_word("", train))
            ax.set_title(f"{name(dataset)}, {points}")
            sentences += [f"{name(dataset)}, training points: {points}", *told(lines, lambda m: rounded(m.mean))]
        correlations_along_x(axes.flat, [line for lines in panels.values() for line in lines], dots=False)
        for ax in axes[-1]:
            ax.set_xlabel("Spearman correlation")
        base.legend_below(figure, list(axes.flat))
    caption = words.sentences(
        *[_over_networks(rows[rows["train_choice"] == t], TRAINS.get(t, words.value_word("", t))) for t in trains],
        words.joined([decay_word(d) for d in sorted(rows["weight_decay"].unique())]),
        points_sentence(rows, dots=False),
        ceiling_sentence(rows),
        scale_sentence(rows),
        words.outcome_sentence(rows, "spearman", dots=False, counts=False),
    )
    return Picture(figure, words.sentences("Mean Spearman by estimator", *sentences), caption)


def costs(results: pd.DataFrame, where: Mapping | None = None) -> Picture:
    """Seconds of each estimator and of the retraining for each network, a panel for each data set.

    Both are of the whole network: an estimate of every training image's influence on all examined test points, and
    retraining without each image that any of them asks for.
    """
    rows = choose(
        results, where, ["seconds_estimate", "seconds_retrain"], **SETTING, test_choice=None, train_choice=None
    )
    seconds = finite([*rows["seconds_estimate"], *rows["seconds_retrain"]]) if len(rows) else np.zeros(0)
    if not (seconds > 0).any():
        return base.empty_picture(words.nothing("seconds_estimate", "architecture"))
    shown, networks = present(rows, "dataset", DATASETS), present(rows, "architecture", ARCHITECTURES)
    panels = {d: [_cost_line(rows, d, a) for a in networks] for d in shown}
    with base.theme():
        figure, axes = base.new_figure(1.5 + 0.6 * len(networks), 1, len(shown), share_y=True)
        for ax, (dataset, lines) in zip(axes[0], panels.items(), strict=True):
            draw_lines(ax, lines, dots=False)
            _seconds_axis(ax, seconds[seconds > 0])
            ax.set_title(name(dataset))
        base.legend_below(figure, list(axes.flat))
    sentences = [s for d, lines in panels.items() for s in [name(d), *told(lines, lambda m: words.number(m.mean))]]
    caption = words.sentences(
        *_ratios(panels),
        "Seconds for one network: estimates are of every training image's influence on all examined test points, "
        "retraining leaves out each chosen image in turn",
        words.joined([decay_word(d) for d in sorted(rows["weight_decay"].unique())]),
        scale_sentence(rows),
    )
    return Picture(figure, words.sentences("Seconds of estimates and of retraining", *sentences), caption)


def _agreement_lines(rows: pd.DataFrame, networks: Sequence[str], dataset: str, train: str) -> list[Line]:
    """A line for each network, with a mark for each estimator that any network has."""
    here = rows[(rows["dataset"] == dataset) & (rows["train_choice"] == train)]
    estimators, lines = present(rows, "estimator", ESTIMATORS), []
    for architecture in networks:
        part = here[here["architecture"] == architecture]
        marks = [
            Mark(name(e), part.loc[part["estimator"] == e, "spearman"].to_numpy(), COLOURS[e], MARKERS[e])
            for e in estimators
        ]
        lines.append(Line(name(architecture), marks, plain_mean(part["ceiling_spearman"])))
    return lines


def _cost_line(rows: pd.DataFrame, dataset: str, architecture: str) -> Line:
    """The network's median seconds by estimator, and of its retraining; each counts once, however many rows it has."""
    part = rows[(rows["dataset"] == dataset) & (rows["architecture"] == architecture)]
    marks = []
    for e in present(rows, "estimator", ESTIMATORS):
        values = finite(part.loc[part["estimator"] == e, "seconds_estimate"])
        marks.append(Mark(name(e), _median(values), COLOURS[e], MARKERS[e]))
    marks.append(Mark("retraining", _median(finite(part["seconds_retrain"])), "black", "P"))
    return Line(name(architecture), marks)


def _median(values: np.ndarray) -> np.ndarray:
    """(1,) median of the values above zero, which have a place on a logarithmic axis; (0,) without one."""
    values = values[values > 0]
    return np.array([np.median(values)]) if values.size else values


def _seconds_axis(ax: Axes, seconds: np.ndarray) -> None:
    ax.set_xscale("log")
    low, high = np.floor(np.log10(seconds.min())), np.ceil(np.log10(seconds.max()))
    ax.set_xlim(10 ** (low - 0.1), 10 ** (max(high, low + 1) + 0.1))
    ax.xaxis.set_major_locator(LogLocator(10, numticks=5))
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("seconds")


def _over_networks(rows: pd.DataFrame, points: str) -> str:
    """Mean Spearman by estimator over the networks that have a number from each, every network counting once."""
    means = rows.groupby(["run_id", "estimator"])["spearman"].agg(plain_mean).unstack().dropna()
    if means.empty:
        return ""
    each = [f"{name(e)} {rounded(means[e].mean())}" for e in ESTIMATORS if e in means.columns]
    return f"Mean over {len(means)} networks, training points {points}: {', '.join(each)}"


def _ratios(panels: Mapping[str, Sequence[Line]]) -> list[str]:
    """How many times the seconds of the first estimator the retraining takes, from the least to the most."""
    pairs = [(m.marks[0], m.marks[-1]) for lines in panels.values() for m in lines]
    ratios = finite(r.values[0] / e.values[0] for e, r in pairs if len(r.values) and len(e.values))
    if not ratios.size:
        return []
    first, least, most = pairs[0][0].name, words.number(ratios[0]), words.number(ratios[-1])
    return [f"Retraining takes {least}{f' to {most}' if most != least else ''} times as long as {first}"]
