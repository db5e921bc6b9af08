"""Figures of single points: estimated against true change of the test loss, a panel for each estimator and truth."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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

MOST_IN_LEGEND = 10  # seeds or test points; of more, the seeds alone


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


def picture(points: Sequence[Mapping], spec: Scatter, where: Mapping, estimator: str | None = None) -> Picture:
    """Draw the chosen points of result records; `where` overrides the specification's, `estimator` every panel's."""
    chosen = {k: v for k, v in {**spec.where, **where}.items() if v is not None}
    wanted = [p for p in points if all(p.get(k, v) == v for k, v in chosen.items())]
    named = [(estimator or e or OWN.get(truth, "exact"), truth) for e, truth in spec.panels]
    panels = {panel: found for panel in named if len(found := pairs(wanted, *panel))}
    if spec.fullest:
        panels = _fullest(panels) if len(panels) == len(named) else {}
    if not panels:
        return Picture(None, "No points: the records have no estimates beside these ground truths.")
    keys = sorted({key for found in panels.values() for key in zip(found["seed"], found["test_point"], strict=True)})
    numbers = {panel: _numbers(found) for panel, found in panels.items()}
    told = [f"{words.code(t)} by {words.code(e)}: {full}" for (e, t), (_, full) in numbers.items()]
    figure = _draw(panels, keys)
    bent = any(ax.get_xscale() == "symlog" for ax in figure.axes)
    facts = (*texts.FACTS, "train_choice", "test_choice", "profile", "n_train", "run_id")
    of = "".join(f"{words.code(name)}: " for name in sorted({p["dataset"] for p in wanted if "dataset" in p}))
    head = f"{of}true against estimated change of the test loss"
    short = [
        f"{words.code(t)} by {words.code(e)} {', '.join(title.splitlines()[:2])}"
        for (e, t), (title, _) in numbers.items()
    ]
    table = pd.DataFrame([{k: p[k] for k in facts if k in p} for p in wanted])
    lines = (
        [f"{head}: {'; '.join(short[:2])}"],
        [texts.brief(table)],
        [
            texts.setting(table, ()),
            f"Each mark is the removal of one training point; {_marked(keys)}",
            "On the dashed line estimate and truth are equal; above zero the example was helpful",
            "Axes are linear near zero and logarithmic outwards" if bent else "",
            *told,
            spec.note,
        ],
    )
    rows = pd.concat(found.assign(estimator=e, ground_truth=t) for (e, t), found in panels.items())
    rows = rows[[c for c in rows if rows[c].nunique() > 1 or (c == "run_id" and rows[c].any())]]  # others: the caption
    caption = words.caption(*lines)
    return Picture(figure, words.sentences(head, *told), caption, rows=rows)


def pairs(points: Sequence[Mapping], estimator: str, truth: str) -> pd.DataFrame:
    """Run, seed, test point and both changes of each removal; of a network known after two fits, finished training."""
    parts = {}
    for p in sorted(points, key=lambda p: p.get("fit") != "finished"):
        e, t = (p.get("estimate") or {}).get(estimator), (p.get("truth") or {}).get(truth)
        key = p.get("seed", 0), p.get("test_point", 0)
        if key not in parts and e is not None and t is not None:
            values = pd.DataFrame({"estimate": e, "truth": t}, dtype=float)
            values = values.where(np.isfinite(values))
            if values["truth"].notna().any():
                parts[key] = values.assign(seed=key[0], test_point=key[1], run_id=p.get("run_id", ""))
    return pd.concat([parts[key] for key in sorted(parts)], ignore_index=True) if parts else pd.DataFrame()


def _fullest(panels: Mapping[tuple, pd.DataFrame]) -> dict[tuple, pd.DataFrame]:
    """Of all panels the network and test point that has most truths in the first."""
    keys = ["seed", "test_point"]
    best = next(iter(panels.values())).groupby(keys)["truth"].count().idxmax()
    return {panel: found.set_index(keys).loc[[best]].reset_index() for panel, found in panels.items()}


def _draw(panels: Mapping[tuple, pd.DataFrame], keys: Sequence[tuple]) -> Figure:
    columns, marks, few = min(2, len(panels)), _looks(keys), len(keys) <= MOST_IN_LEGEND
    rows = -(-len(panels) // columns)
    with base.theme():
        height = (6.2 if columns == 1 else 0.9 + 3.7 * rows) + (0.2 + 0.25 * -(-len(keys) // 3) if few else 0.5)
        figure, axes = base.new_figure(height, rows, columns, layout="compressed")
        for ax in list(axes.flat)[len(panels) :]:
            ax.set_axis_off()
        for i, (ax, ((estimator, truth), found)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
            _draw_panel(ax, found, marks, 5 if columns > 1 else 9)
            title = [textwrap.fill(words.code(name), 20 if columns > 1 else 40) for name in (truth, estimator)]
            ax.set_title("\n".join([*title, _numbers(found)[0]]), fontsize=11.5)
            ax.set_xlabel("estimated loss change" if i + columns >= len(panels) else "")
            ax.set_ylabel("true loss change" if i % columns == 0 else "")
        for seed, mark in {} if few else {f"seed {seed}": marks[seed, point][1] for seed, point in keys}.items():
            axes[0, 0].plot([], [], mark, color="0.3", label=seed)
        base.legend_below(figure)
    return figure


def _looks(keys: Sequence[tuple]) -> dict[tuple, tuple[str, str, str | None]]:
    """(seed, test point) -> colour, marker, label: test points by colour and seeds by marker, or seeds by colour."""
    seeds = sorted({seed for seed, _ in keys})
    single, found = len(keys) == len(seeds), {}
    place = {key: seeds.index(key[0]) if single else [k for k in keys if k[0] == key[0]].index(key) for key in keys}
    shades = sns.color_palette("viridis", max(place.values()) + 2).as_hex()  # without yellow
    for seed, point in keys:
        marker = base.MARKERS[0 if single else seeds.index(seed) % len(base.MARKERS)]
        label = f"seed {seed}" if single else f"test point {point:g}" + (f", seed {seed}" if len(seeds) > 1 else "")
        found[seed, point] = shades[place[seed, point]], marker, label if len(keys) <= MOST_IN_LEGEND else None
    return found


def _marked(keys: Sequence[tuple]) -> str:
    """What colours and markers stand for."""
    seeds = len({seed for seed, _ in keys})
    if len(keys) == seeds:
        return "one seed" if seeds == 1 else f"{seeds} seeds by colour; numbers are means over seeds"
    several = " by marker; numbers are of all pairs of a seed together, then averaged" if seeds > 1 else ""
    return f"{len(keys)} test points by colour, of {words.counted(seeds, 'seed')}{several}"


def _draw_panel(ax: Axes, found: pd.DataFrame, marks: Mapping, most: int) -> None:
    """Each pair in its colour, on two axes of one scale, with the diagonal.

    Axes are linear near zero and logarithmic outwards where one size of change would press the others into a dot.
    """
    for key, pair in found.groupby(["seed", "test_point"]):
        colour, marker, label = marks[key]
        mark = {"s": 20, "color": colour, "marker": marker, "edgecolors": "white", "linewidths": 0.4, "zorder": 3}
        ax.scatter(pair["estimate"], pair["truth"], label=label, **mark)
    values = found[["estimate", "truth"]].dropna().to_numpy().ravel()
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


def _numbers(found: pd.DataFrame) -> tuple[str, str]:
    """Pearson, Spearman and slope of all pairs of a seed together, averaged over seeds: for a title, and in full."""
    both = found.dropna()
    agreements = [compare(of_seed["estimate"], of_seed["truth"]) for _, of_seed in both.groupby("seed")]
    usable = [a for a in agreements if a.status == "ok"]
    title = "no number"
    if usable:
        means = [
            words.number(float(np.mean([getattr(a, s) for a in usable]))) for s in ("pearson", "spearman", "slope")
        ]
        title = "Pearson {}\nSpearman {}\nslope {}".format(*means)
    lost = [a.status for a in agreements if a.status != "ok"]
    other = "".join(f", {lost.count(s)} {words.code(s)}" for s in sorted(set(lost)))
    over = f" ({len(both)} pairs of {words.counted(found['seed'].nunique(), 'seed')}"
    over += f"; {len(found) - len(both)} more without a number)" if len(both) < len(found) else ")"
    return title + other, title.replace("\n", ", ") + other + over
