"""Figures of single points: estimated against retrained change of the test loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fragile_lib.agreement import Agreement, compare
from fragile_lib.plots import base, words
from fragile_lib.plots.base import Picture
from fragile_lib.plots.curves import OWN

COMBINATIONS = (
    ("descent", "exact", "loo_warm"),
    ("descent", "exact", "loo_warm_minus_control"),
    ("certified", "exact", "loo_certified"),
)
MOST_IN_LEGEND = 10  # seeds or test points
TOGETHER = {"test_choice": "max_loss", "train_choice": "top_influence", "weight_decay": 0.001}
TOGETHER_TRUTHS = ("loo_warm", "loo_warm_minus_control", "loo_tilted", "pbrf", "loo_certified")


def scatter_estimate_truth(
    points: Sequence[Mapping],
    combinations: Sequence[tuple[str, str, str]] = COMBINATIONS,
    test_choice: str = "max_loss",
    train_choice: str = "top_influence",
    scale: str = "auto",
) -> Picture:
    """Estimated against retrained loss change of each removed training point, one panel for each combination.

    `points` is the list of that name in a result record; a combination is (fit, estimator, ground truth), and those
    that the points lack are left out. Both axes of a panel have one scale, so that the diagonal is a perfect estimate.
    `scale` is "linear", "symlog" (linear near zero, logarithmic outwards) or "auto": symlog where one size of change
    would press the others into a dot.
    """
    wanted = [p for p in points if p.get("test_choice") == test_choice and p.get("train_choice") == train_choice]
    panels = {c: found for c in combinations if (found := _vectors(wanted, c))}
    if not panels:
        what = f"{words.value_word('', train_choice)}, test point {words.value_word('', test_choice)}"
        return base.empty_picture(f"No points: the record has no estimates with retraining for training points {what}.")
    seeds = sorted({seed for found in panels.values() for seed in found})
    colours = dict(zip(seeds, sns.color_palette("viridis", len(seeds) + 1).as_hex(), strict=False))  # without yellow
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    told, height = [], 5.9 if columns == 1 else 0.9 + 3.1 * rows
    with base.theme():
        figure, axes = base.new_figure(height, rows, columns, layout="compressed")
        for i, (ax, (combination, found)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
            named = {f"seed {seed}": pair for seed, pair in found.items()}
            _panel(ax, named, [colours[seed] for seed in found], scale, most=5 if columns > 1 else 9)
            numbers = _numbers([compare(e, t) for e, t in found.values()])
            ax.set_title(f"{_title(combination)}\n{numbers}", fontsize=12)
            told.append(f"{_long_title(combination)}: {numbers.replace(chr(10), ', ')}, {_sizes(found)}")
            ax.set_xlabel("estimated loss change" if i + columns >= len(panels) else "")
        for ax in axes[:, 0]:
            ax.set_ylabel("retrained loss change")
        _spare_cell(axes, len(panels), len(seeds))
        if axes.size == len(panels) and 1 < len(seeds) <= MOST_IN_LEGEND:
            base.legend_below(figure, list(axes.flat))
    alt = words.sentences("Scatter of retrained against estimated loss change", *told)
    chosen = "all training points" if train_choice == "all" else f"training points {words.value_word('', train_choice)}"
    caption = (
        f"Each dot is the removal of one training point ({chosen}; test point {words.value_word('', test_choice)}); "
        f"{len(seeds)} {'seed, so no mean' if len(seeds) == 1 else 'seeds, by colour; numbers are means over seeds'}. "
        "On the dashed line estimate and retraining are equal; above zero the example was helpful."
    )
    return Picture(figure, alt, caption)


def together(
    points: Sequence[Mapping], where: Mapping | None = None, scale: str = "auto", estimator: str | None = None
) -> Picture:
    """True against estimated loss change of all test points of one network together, a panel for each ground truth.

    `points` has one entry for each (seed, test point, choice of training points). `where` overrides `TOGETHER`: a key
    of an entry and its value, None for all; a key that an entry lacks chooses nothing. With several seeds the numbers
    are computed for each and averaged: a pair of one network says nothing about a pair of another. `estimator`: whose
    estimates; by default those that belong to each truth.
    """
    chosen = {k: v for k, v in (TOGETHER | dict(where or {})).items() if v is not None}
    wanted = [p for p in points if all(p.get(k, v) == v for k, v in chosen.items())]
    panels = {truth: found for truth in TOGETHER_TRUTHS if (found := _pairs(wanted, truth, estimator))}
    if not panels:
        return base.empty_picture(
            "No points: the record has no exact estimates beside a ground truth to show together."
        )
    keys = sorted({key for found in panels.values() for key in found})
    seeds, tests = sorted({seed for seed, _ in keys}), _numbered(keys)
    shades = sns.color_palette("viridis", max(tests.values()) + 2).as_hex()  # without yellow
    marks = {key: (shades[tests[key]], base.MARKERS[seeds.index(key[0]) % len(base.MARKERS)]) for key in keys}
    entries = len(keys) if len(keys) <= MOST_IN_LEGEND else len(seeds)
    columns = min(2, len(panels))
    rows, told = -(-len(panels) // columns), []
    legend = rows * columns == len(panels) and 1 < entries <= MOST_IN_LEGEND
    below = 0.25 * -(-entries // 3) if legend else 0.0
    height = (6.2 if columns == 1 else 0.9 + 3.3 * rows) + below
    with base.theme():
        figure, axes = base.new_figure(height, rows, columns, layout="compressed")
        for i, (ax, (truth, found)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
            named = {_test_label(key, seeds, entries): pair for key, pair in found.items()}
            colours, markers = zip(*(marks[key] for key in found), strict=True)
            _panel(ax, named, colours, scale, 5 if columns > 1 else 9, markers, size=18)
            numbers, words_of = _pooled(found)
            ax.set_title(f"{words.value_word('', truth)}\n{numbers}", fontsize=12)
            told.append(f"{words.value_word('', truth)}: {words_of}")
            ax.set_xlabel("estimated loss change" if i + columns >= len(panels) else "")
        for ax in axes[:, 0]:
            ax.set_ylabel("true loss change")
        if entries == len(seeds) > 1:  # too many test points for a legend: of the seeds' markers alone
            for seed in seeds:
                mark = base.MARKERS[seeds.index(seed) % len(base.MARKERS)]
                axes[0, 0].plot([], [], mark, color="0.3", label=f"seed {seed}")
        _spare_cell(axes, len(panels), entries, columns=1)
        if axes.size == len(panels) and 1 < entries <= MOST_IN_LEGEND:
            base.legend_below(figure, list(axes.flat))
    alt = words.sentences("Scatter of true against estimated loss change, all test points together", *told)
    bent = any(ax.get_xscale() == "symlog" for ax in axes.flat)
    scales = "axes are linear near zero and logarithmic outwards" if bent else ""
    return Picture(figure, alt, words.sentences(_together_caption(wanted, keys, seeds), scales))


def damped_or_not(points: Sequence[Mapping], **options: str) -> Picture:
    """Certified left-out minima against estimates with and without damping, at the test point that has most of them.

    `points` as in `together`; options go to `scatter_estimate_truth`.
    """
    both = [p for p in points if {"exact", "exact_undamped"} <= set(p.get("estimate") or {})]
    found = [(np.isfinite(np.asarray(p["truth"].get("loo_certified", []), dtype=float)).sum(), p) for p in both]
    most = max(found, key=lambda pair: pair[0], default=(0, None))
    panels = [("certified", name, "loo_certified") for name in ("exact", "exact_undamped")]
    picture = scatter_estimate_truth([most[1]] if most[0] else [], panels, **options)
    if not most[0]:
        return picture
    which = "Left: the damped Hessian's estimates; right: the same without damping"
    return picture._replace(caption=words.sentences(which, picture.caption))


def _pairs(points: Sequence[Mapping], truth: str, estimator: str | None = None) -> dict:
    """(seed, test point) -> (estimate, truth), both (k,), where there is a truth; finished training goes first."""
    found = {}
    for p in sorted(points, key=lambda p: (p.get("seed", 0), p["test_point"], p.get("fit") != "finished")):
        pair = (p.get("estimate") or {}).get(estimator or OWN.get(truth, "exact")), (p.get("truth") or {}).get(truth)
        key = p.get("seed", 0), p["test_point"]
        if key not in found and pair[0] is not None and pair[1] is not None:
            estimate, true = (np.asarray(x, dtype=float) for x in pair)
            if np.isfinite(true).any():
                found[key] = estimate[np.isfinite(true)], true[np.isfinite(true)]
    return found


def _numbered(keys: Sequence[tuple]) -> dict:
    """(seed, test point) -> its place among the test points of its seed."""
    counts: dict = {}
    return {key: counts.setdefault(key[0], []).append(key) or len(counts[key[0]]) - 1 for key in keys}


def _test_label(key: tuple, seeds: Sequence, entries: int) -> str:
    text = f"test point {key[1]}" + (f", seed {key[0]}" if len(seeds) > 1 else "")
    return text if entries > len(seeds) else f"_{text}"  # not in the legend


def _pooled(found: Mapping) -> tuple[str, str]:
    """Pearson and Spearman of all pairs of a seed together, for the title (mean over seeds) and in full."""
    agreements = {}
    for seed in sorted({seed for seed, _ in found}):
        of_seed = [pair for key, pair in found.items() if key[0] == seed]
        agreements[seed] = compare(*(np.concatenate(part) for part in zip(*of_seed, strict=True)))
    usable = [a for a in agreements.values() if a.status == "ok"]
    title = "no number"
    if usable:
        pearson, spearman = np.mean([a.pearson for a in usable]), np.mean([a.spearman for a in usable])
        title = f"Pearson {words.number(pearson)}\nSpearman {words.number(spearman)}"
    each = [
        f"seed {seed} Pearson {words.number(a.pearson)}, Spearman {words.number(a.spearman)}, {a.n} pairs"
        for seed, a in agreements.items()
    ]
    mean = f"mean over {len(usable)} seeds " if len(usable) > 1 else ""
    return title, f"{mean}{title.replace(chr(10), ', ')} ({'; '.join(each)})"


def _together_caption(points: Sequence[Mapping], keys: Sequence[tuple], seeds: Sequence) -> str:
    test, train = (
        words.joined(sorted({words.value_word("", p[c]) for p in points})) for c in ("test_choice", "train_choice")
    )
    decays = sorted({p["weight_decay"] for p in points if "weight_decay" in p})
    profiles = sorted({str(p["profile"]) for p in points if "profile" in p})
    return words.sentences(
        ", ".join(words.value_word("weight_decay", d) for d in decays),
        f"profile {words.joined(profiles)}" if profiles else "",
        f"Each mark is the removal of one training point ({train}) seen from one test point ({test})",
        f"{len(keys)} test points by colour, of {len(seeds)} seed{'s by marker' if len(seeds) > 1 else ''}",
        "numbers are computed over all pairs of a seed together" + (", then averaged" if len(seeds) > 1 else ""),
        "On the dashed line estimate and truth are equal",
    )


def _vectors(points: Sequence[Mapping], combination: tuple[str, str, str]) -> dict:
    """Seed -> (estimate, truth), both (k,), of the removals that have a truth; None is read as NaN."""
    fit, estimator, truth = combination
    found = {}
    for p in points:
        pair = (p.get("estimate") or {}).get(estimator), (p.get("truth") or {}).get(truth)
        if p.get("fit") == fit and pair[0] is not None and pair[1] is not None:
            estimate, true = (np.asarray(x, dtype=float) for x in pair)
            # a left-out optimum that was not certified is not there; any other gap is a divergence to be told
            retrained = np.isfinite(true) if fit == "certified" else np.ones(true.shape, dtype=bool)
            found[p.get("seed", 0)] = estimate[retrained], true[retrained]
    return found


def _panel(
    ax: Axes, found: Mapping, colours: Sequence, scale: str, most: int, markers: Sequence[str] = (), size: float = 26
) -> None:
    """Draw each labelled pair (estimate, truth) in its colour, on two axes of one scale, with the diagonal."""
    for (label, (estimate, truth)), colour, marker in zip_longest(found.items(), colours, markers, fillvalue="o"):
        mark = {"s": size, "color": colour, "marker": marker, "edgecolors": "white", "linewidths": 0.4}
        ax.scatter(estimate, truth, label=label, zorder=3, **mark)
    values = np.concatenate([np.concatenate(pair) for pair in found.values()])
    values = values[np.isfinite(values)]
    sizes = np.abs(values[values != 0])
    largest = sizes.max() if sizes.size else 1.0
    typical = np.quantile(sizes, 0.25) if sizes.size else 1.0
    if sizes.size and (scale == "symlog" or (scale == "auto" and largest > 100 * typical)):
        threshold = 10 ** np.floor(np.log10(max(typical, 1e-6 * largest)))
        low, high = min(2 * values.min(), -threshold), max(2 * values.max(), threshold)
        for which in "xy":
            base.symlog_axis(ax, which, low, high, threshold, most, gap=1.1 / most)
    else:
        low, high = (min(values.min(), 0.0), max(values.max(), 0.0)) if values.size else (-1.0, 1.0)
        room = 0.06 * (high - low) or largest
        ax.set(xlim=(low - room, high + room), ylim=(low - room, high + room))
        ax.xaxis.set_major_locator(MaxNLocator(most - 1))
        ax.yaxis.set_major_locator(MaxNLocator(most - 1))
    ax.set_aspect("equal", adjustable="box")
    ax.axline((0, 0), (largest, largest), color="0.3", linewidth=1.2, linestyle="--", zorder=2)
    ax.grid(True)


def _spare_cell(axes: np.ndarray, used: int, entries: int, columns: int = 2) -> None:
    """Where panels leave a cell free, it holds the legend of the colours."""
    for ax in list(axes.flat)[used:]:
        ax.set_axis_off()
        if 1 < entries <= MOST_IN_LEGEND:
            handles, labels = axes.flat[0].get_legend_handles_labels()
            ax.legend(handles, labels, loc="center", ncols=columns)


def _numbers(agreements: list[Agreement]) -> str:
    """Mean Spearman and slope over the seeds that have one, and how many have none."""
    usable = [a for a in agreements if a.status == "ok"]
    text = "no number"
    if usable:
        spearman, slope = np.mean([a.spearman for a in usable]), np.mean([a.slope for a in usable])
        text = f"Spearman {words.number(spearman)}, slope {words.number(slope)}"
    lost = [a.status for a in agreements if a.status != "ok"]
    if lost:
        text += "\n" + ", ".join(f"{lost.count(s)} {words.value_word('status', s)}" for s in sorted(set(lost)))
    return text


def _title(combination: tuple[str, str, str]) -> str:
    fit, estimator, truth = combination
    names = {"loo_warm": "descent, LOO", "loo_warm_minus_control": "LOO minus control"}
    name = names.get(truth, words.value_word("", truth))
    by = "undamped" if estimator == "exact_undamped" else words.value_word("", estimator)
    return name if estimator == "exact" else f"{name}, {by}"


def _long_title(combination: tuple[str, str, str]) -> str:
    return ", ".join(words.value_word("", part) for part in combination)


def _sizes(found: dict) -> str:
    n = sum(len(e) for e, _ in found.values())
    return f"{n} points of {len(found)} seed{'s' if len(found) > 1 else ''}"
