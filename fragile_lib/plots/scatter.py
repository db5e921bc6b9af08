"""Figures of single points: estimated against true change of the test loss, a panel for each estimator and truth."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fragile_lib.agreement import compare
from fragile_lib.plots import base, texts, words
from fragile_lib.plots.axes import symlog_axis
from fragile_lib.plots.base import Picture
from fragile_lib.plots.steps import OWN

MOST_IN_LEGEND = 10  # seeds or test points
STATISTICS = ("pearson", "spearman", "slope")


@dataclass(frozen=True)
class Scatter:
    """What a named scatter shows: truths, in the order of the panels, each with the estimators that it is shown beside.

    An estimator None is the one that belongs to the truth. `where`: a key of a point and its value, None for all; a key
    that a point lacks chooses nothing. `fullest`: of the points that have all estimators the one with most numbers.
    """

    panels: Sequence[tuple[str | None, str]]
    where: Mapping = field(default_factory=dict)
    fullest: bool = False
    note: str = ""


class Pair(NamedTuple):
    """Estimates and truths, both (k,), of one test point and network, and how many removals lack one of the two."""

    estimate: np.ndarray
    truth: np.ndarray
    lost: int


Found = Mapping[tuple[int, int], Pair]  # by seed and test point


def picture(points: Sequence[Mapping], spec: Scatter, where: Mapping, estimator: str | None = None) -> Picture:
    """Draw the chosen points of result records; `where` overrides the specification's, `estimator` every panel's."""
    chosen = {k: v for k, v in {**spec.where, **where}.items() if v is not None}
    wanted = [p for p in points if all(p.get(k, v) == v for k, v in chosen.items())]
    if spec.fullest:
        wanted = _fullest(wanted, spec.panels)
    named = [(estimator or e or OWN.get(truth, "exact"), truth) for e, truth in spec.panels]
    panels = {panel: found for panel in named if (found := pairs(wanted, *panel))}
    if not panels:
        return Picture(None, "No points: the records have no estimates beside these ground truths.")
    keys = sorted({key for found in panels.values() for key in found})
    told = [f"{words.code(t)} by {words.code(e)}: {_numbers(found)[1]}" for (e, t), found in panels.items()]
    figure = _draw(panels, keys)
    bent = any(ax.get_xscale() == "symlog" for ax in figure.axes)
    facts = (*texts.FACTS, "train_choice", "test_choice", "profile")
    caption = words.sentences(
        texts.setting(pd.DataFrame([{k: p[k] for k in facts if k in p} for p in wanted]), ()),
        f"Each mark is the removal of one training point; {_marked(keys)}",
        "On the dashed line estimate and truth are equal; above zero the example was helpful",
        "Axes are linear near zero and logarithmic outwards" if bent else "",
        *told,
        spec.note,
    )
    return Picture(figure, words.sentences("True against estimated change of the test loss", *told), caption)


def pairs(points: Sequence[Mapping], estimator: str, truth: str) -> dict[tuple[int, int], Pair]:
    """(seed, test point) -> what both have numbers for; of a network known after two fits, finished training."""
    found = {}
    for p in sorted(points, key=lambda p: (p.get("seed", 0), p.get("test_point", 0), p.get("fit") != "finished")):
        vectors = (p.get("estimate") or {}).get(estimator), (p.get("truth") or {}).get(truth)
        key = p.get("seed", 0), p.get("test_point", 0)
        if key not in found and vectors[0] is not None and vectors[1] is not None:
            e, t = (np.asarray(x, dtype=float) for x in vectors)
            both = np.isfinite(e) & np.isfinite(t)
            if np.isfinite(t).any():
                found[key] = Pair(e[both], t[both], int((~both).sum()))
    return found


def _fullest(points: Sequence[Mapping], panels: Sequence[tuple]) -> list[Mapping]:
    """The point that has every estimator and most numbers of the first truth."""
    every = {e for e, _ in panels}
    able = [p for p in points if every <= set(p.get("estimate") or {}) and (p.get("truth") or {}).get(panels[0][1])]
    counts = [int(np.isfinite(np.asarray(p["truth"][panels[0][1]], dtype=float)).sum()) for p in able]
    return [able[int(np.argmax(counts))]] if able else []


def _draw(panels: Mapping[tuple, Found], keys: Sequence[tuple]) -> Figure:
    columns, marks = min(2, len(panels)), _looks(keys)
    rows = -(-len(panels) // columns)
    with base.theme():
        height = (6.2 if columns == 1 else 0.9 + 3.5 * rows) + (0.2 + 0.25 * -(-len(keys) // 3) if _few(keys) else 0.5)
        figure, axes = base.new_figure(height, rows, columns, layout="compressed")
        for ax in list(axes.flat)[len(panels) :]:
            ax.set_axis_off()
        for i, (ax, ((estimator, truth), found)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
            _draw_panel(ax, found, marks, 5 if columns > 1 else 9)
            title = [textwrap.fill(words.code(name), 27) for name in (truth, estimator)]
            ax.set_title("\n".join([*title, _numbers(found)[0]]), fontsize=11.5)
            ax.set_xlabel("estimated loss change" if i + columns >= len(panels) else "")
            ax.set_ylabel("true loss change" if i % columns == 0 else "")
        for seed, mark in {} if _few(keys) else {f"seed {seed}": marks[seed, point][1] for seed, point in keys}.items():
            axes[0, 0].plot([], [], mark, color="0.3", label=seed)
        base.legend_below(figure)
    return figure


def _few(keys: Sequence[tuple]) -> bool:
    """Whether each network and test point has its own entry in the legend; else the seeds alone have one."""
    return len(keys) <= MOST_IN_LEGEND


def _looks(keys: Sequence[tuple]) -> dict[tuple, tuple[str, str, str | None]]:
    """(seed, test point) -> colour, marker, label: test points by colour and seeds by marker, or seeds by colour."""
    seeds = list(dict.fromkeys(seed for seed, _ in keys))
    place = {key: [k for k in keys if k[0] == key[0]].index(key) for key in keys}
    single, several = len(keys) == len(seeds), len(seeds) > 1
    shades = sns.color_palette(
        "viridis", max(len(seeds) if single else 0, *place.values(), 0) + 2
    ).as_hex()  # no yellow
    found = {}
    for seed, point in keys:
        i, j = seeds.index(seed), place[seed, point]
        look = (shades[i], "o") if single else (shades[j], base.MARKERS[i % len(base.MARKERS)])
        label = f"seed {seed}" if single else f"test point {point:g}" + (f", seed {seed}" if several else "")
        found[seed, point] = (*look, label if _few(keys) else None)
    return found


def _marked(keys: Sequence[tuple]) -> str:
    """What colours and markers stand for."""
    seeds = len({seed for seed, _ in keys})
    if len(keys) == seeds:
        return "one seed" if seeds == 1 else f"{seeds} seeds by colour; numbers are means over seeds"
    several = " by marker; numbers are of all pairs of a seed together, then averaged" if seeds > 1 else ""
    return f"{len(keys)} test points by colour, of {words.counted(seeds, 'seed')}{several}"


def _draw_panel(ax: Axes, found: Found, marks: Mapping, most: int) -> None:
    """Each pair in its colour, on two axes of one scale, with the diagonal.

    Axes are linear near zero and logarithmic outwards where one size of change would press the others into a dot.
    """
    for key, pair in found.items():
        colour, marker, label = marks[key]
        mark = {"s": 20, "color": colour, "marker": marker, "edgecolors": "white", "linewidths": 0.4, "zorder": 3}
        ax.scatter(pair.estimate, pair.truth, label=label, **mark)
    values = np.concatenate([np.concatenate(pair[:2]) for pair in found.values()])
    sizes = np.abs(values[values != 0])
    largest, typical = (sizes.max(), np.quantile(sizes, 0.25)) if sizes.size else (1.0, 1.0)
    if largest > 100 * typical:
        threshold = 10 ** np.floor(np.log10(max(typical, 1e-6 * largest)))
        low, high = min(2 * values.min(), -threshold), max(2 * values.max(), threshold)
        for which in "xy":
            symlog_axis(ax, which, low, high, threshold, gap=1.1 / most)
    else:
        low, high = (min(values.min(), 0.0), max(values.max(), 0.0)) if values.size else (-1.0, 1.0)
        room = 0.06 * (high - low) or largest
        ax.set(xlim=(low - room, high + room), ylim=(low - room, high + room))
        ax.xaxis.set_major_locator(MaxNLocator(most - 1))
        ax.yaxis.set_major_locator(MaxNLocator(most - 1))
    ax.set_aspect("equal", adjustable="box")
    ax.axline((0, 0), (largest, largest), color="0.3", linewidth=1.2, linestyle="--", zorder=2)
    ax.grid(True)


def _numbers(found: Found) -> tuple[str, str]:
    """Pearson, Spearman and slope of all pairs of a seed together, averaged over seeds: for a title, and in full."""
    agreements = []
    for seed in sorted({seed for seed, _ in found}):
        of_seed = [pair[:2] for key, pair in found.items() if key[0] == seed]
        agreements.append(compare(*(np.concatenate(part) for part in zip(*of_seed, strict=True))))
    usable = [a for a in agreements if a.status == "ok"]
    means = {s: words.number(float(np.mean([getattr(a, s) for a in usable]))) for s in STATISTICS if usable}
    title = "no number"
    if usable:
        title = f"Pearson {means['pearson']}, Spearman {means['spearman']}\nslope {means['slope']}"
    lost = [a.status for a in agreements if a.status != "ok"]
    other = "".join(f", {lost.count(s)} {words.code(s)}" for s in sorted(set(lost)))
    size, without = sum(len(p.truth) for p in found.values()), sum(p.lost for p in found.values())
    over = f" ({size} pairs of {words.counted(len(agreements), 'seed')}"
    over += f"; {without} more without a number)" if without else ")"
    return title + other, title.replace("\n", ", ") + other + over
