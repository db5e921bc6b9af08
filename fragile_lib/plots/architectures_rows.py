"""What the figures over architectures share: which rows they show, means of test points, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fragile_lib.agreement import bootstrap_interval
from fragile_lib.plots import base, words
from fragile_lib.plots.curves import require, select
from fragile_lib.plots.small_mnist import CEILING, DECAY

DATASETS = ("mnist", "cifar10", "cifar100")
ARCHITECTURES = ("small_cnn", "lenet", "vgg13", "vgg14", "resnet18", "resnet50")
NEEDED = ("run_id", "weight_decay", "optimiser", "seed", "test_point", "test_choice", "train_choice", "estimator")
NEEDED += ("ground_truth", "status", "n_train", "n_params", "depth")
# What a figure shows when it does not say otherwise: the paper's estimator, truth and points, for one start of Adam.
MAIN = {
    "optimiser": "adam",
    "seed": 0,
    "estimator": "lissa",
    "ground_truth": "loo_warm",
    "test_choice": "max_loss",
    "train_choice": "top_influence",
}
# Published (Pearson, Spearman) for test points of highest loss, by data set, weight decay and architecture.
PAPER = {
    ("mnist", DECAY, "small_cnn"): (0.95, 0.87),
    ("mnist", DECAY, "lenet"): (0.83, 0.51),
    ("mnist", DECAY, "resnet50"): (0.24, 0.22),
    ("mnist", 0.0, "resnet50"): (None, 0.13),
    ("cifar100", 0.0005, "resnet18"): (0.15, 0.11),
}
FULL = 50_000  # training images of the published networks, at least


class Mean(NamedTuple):
    """Mean over n finite values, NaN without one, and its 95% bootstrap interval, NaN with fewer than two."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def bar(self) -> list[list[float]] | None:
        """Lengths of the error bar below and above the mean, as matplotlib wants them."""
        return [[max(0.0, self.mean - self.low)], [max(0.0, self.high - self.mean)]] if self.n > 1 else None

    @property
    def words(self) -> str:
        """The mean, and its interval where there is one."""
        if not self.n:
            return "no number"
        between = f" ({rounded(self.low)} to {rounded(self.high)})" if self.n > 1 else ""
        return f"{rounded(self.mean)}{between}"


class Mark(NamedTuple):
    """One mean of a line: what it is the mean of, the single values, and how it is drawn."""

    name: str
    values: np.ndarray
    colour: str = base.BLUE
    marker: str = "o"


class Line(NamedTuple):
    """One line of a figure of lines: its label, its marks from top to bottom, and its truth's agreement with itself."""

    label: str
    marks: list[Mark]
    ceiling: float = np.nan


def finite(values: Iterable) -> np.ndarray:
    """The finite values, sorted, so that sums and resamples do not depend on the order of rows."""
    values = pd.to_numeric(pd.Series(list(values), dtype=object), errors="coerce").to_numpy(dtype=float)
    return np.sort(values[np.isfinite(values)])


def mean_of(values: Iterable) -> Mean:
    """Mean and interval of the finite ones among the values."""
    return _mean_of(tuple(finite(values).tolist()))


@lru_cache(maxsize=1024)  # a figure asks several times: to draw, to scale its axis, to tell
def _mean_of(values: tuple[float, ...]) -> Mean:
    found = bootstrap_interval(values)
    return Mean(float(np.mean(values)) if values else np.nan, found.low, found.high, len(values))


def plain_mean(values: Iterable) -> float:
    """Mean of the finite ones among the values, NaN without one."""
    values = finite(values)
    return float(values.mean()) if values.size else np.nan


def choose(
    results: pd.DataFrame, where: Mapping | None = None, needed: Iterable[str] = ("spearman",), **others: object
) -> pd.DataFrame:
    """The chosen rows of single test points, in the order of data sets and architectures.

    `others` overrides `MAIN`, and `where` both; a value is one value, a list of values, or None for all.
    """
    require(results, ["dataset", "architecture"])
    if results.empty:
        return results
    rows = results[results["dataset"].isin(DATASETS) & results["architecture"].isin(ARCHITECTURES)]
    require(rows, [*NEEDED, *needed])  # rows of other notebooks may lack them
    if len(rows):
        rows = select(_with_whole_ceilings(rows), where, defaults=MAIN | others)
        rows = rows[rows["test_point"].notna()]
    if rows.empty:
        return rows
    absent = {c: np.nan for c in ("ceiling_spearman", "ceiling_pearson", "width_multiplier") if c not in rows.columns}
    order = {name: i for i, name in enumerate((*DATASETS, *ARCHITECTURES))}
    rows = rows.assign(**absent, _set=rows["dataset"].map(order), _net=rows["architecture"].map(order))
    keys = ["_set", "_net", "weight_decay", "optimiser", "seed", "train_choice", "ground_truth", "estimator"]
    rows = rows.sort_values([*keys, "test_choice", "test_point"], kind="stable", ignore_index=True)
    return rows.drop(columns=["_set", "_net"])


def _with_whole_ceilings(rows: pd.DataFrame) -> pd.DataFrame:
    """The truth is repeated for the images that each run's first test point asks for: elsewhere by chance, on a few."""
    first = rows.sort_index().groupby("run_id")["test_point"].transform("first").reindex(rows.index)
    whole = (rows["test_point"] == first) & rows["train_choice"].isin(["top_influence"])
    ceilings = [c for c in ("ceiling_spearman", "ceiling_pearson") if c in rows.columns]
    return rows.assign(**{c: rows[c].where(whole) for c in ceilings})


def present(rows: pd.DataFrame, column: str, order: Iterable) -> list:
    """The values of the column that the rows have, in the given order."""
    found = set(rows[column].dropna())
    return [value for value in order if value in found]


def name(code: str) -> str:
    """A data set, an architecture, an optimiser, an estimator as readers know it, without a comma for use in lists."""
    return "CG (GGN)" if code == "cg_ggn" else words.TITLES.get(code) or words.value_word("", code)


def rounded(correlation: float) -> str:
    """A correlation with two decimals, zero without a sign."""
    return f"{correlation:.2f}".replace("-0.00", "0.00") if np.isfinite(correlation) else "no number"


def decay_word(value: float) -> str:
    """A weight decay for a legend or a heading."""
    return words.value_word("weight_decay", value) if value else "no weight decay"


def scale_sentence(rows: pd.DataFrame) -> str:
    """Training images by data set, which networks are narrower than published, profile; and whether that is reduced."""
    images = {d: sorted(rows.loc[rows["dataset"] == d, "n_train"].dropna().unique()) for d in rows["dataset"].unique()}
    counts = {d: words.joined([f"{n:,.0f}" for n in found]) for d, found in images.items()}
    parts = [f"{count} training images of {name(d)}" for d, count in counts.items()]
    parts = parts if len(set(counts.values())) > 1 else [f"{next(iter(counts.values()))} training images"]
    width = pd.to_numeric(rows["width_multiplier"], errors="coerce").astype(float)
    for factor in sorted(width[width < 1].unique()):
        names = [name(a) for a in present(rows[width == factor], "architecture", ARCHITECTURES)]
        parts.append(f"{words.joined(names)} at {factor:g} of {'their' if len(names) > 1 else 'its'} published width")
    reduced = bool((width < 1).any()) or any(n < FULL for found in images.values() for n in found)
    profiles = sorted(rows["profile"].dropna().astype(str).unique()) if "profile" in rows.columns else []
    unrecorded = sorted(set(profiles) - set(words.OF_RECORD))
    return words.sentences(
        f"Scale, {'reduced from the published one: ' if reduced else ''}{'; '.join(parts)}",
        f"Profile {words.joined(profiles)}{', not a study of record' if unrecorded else ''}" if profiles else "",
    )


def points_sentence(rows: pd.DataFrame, of: str = "each network", dots: bool = True) -> str:
    """How many test points stand behind a mean, and what its interval can and cannot say."""
    counts = rows.drop_duplicates(["run_id", "test_choice", "test_point"]).groupby(["run_id", "test_choice"]).size()
    few, most = counts.min(), counts.max()
    choices = words.joined([words.value_word("", c) for c in sorted(rows["test_choice"].unique())])
    number = f"{few}" if few == most else f"{few} to {most}"
    points = f"{number} test point{'s' if most > 1 else ''} {choices} of {of}"
    if most < 2:
        return f"Each mark is {points}, so there is no interval."
    short = " (too short with so few)" if few < 10 else ""
    faint = "; faint dots are single test points" if dots else ""
    return f"Means over {points} with 95% bootstrap intervals over these points alone{short}{faint}."


def ceiling_sentence(rows: pd.DataFrame, statistic: str = "spearman") -> str:
    """What the black marks are, and whether they speak for one test point of each network only."""
    repeated = rows[pd.to_numeric(rows[f"ceiling_{statistic}"], errors="coerce").notna()]
    if repeated.empty:
        return ""
    single = (repeated.groupby("run_id")["test_point"].nunique() == 1).all()
    return f"Black marks: {CEILING} when it is repeated{', at one test point of each network' if single else ''}."


def draw_lines(ax: Axes, lines: Sequence[Line], dots: bool = True) -> None:
    """Each mark of each line with its interval, single values as faint dots below it, ceilings as black bars."""
    for y, line in enumerate(lines):
        if y % 2:
            ax.axhspan(y - 0.5, y + 0.5, color="0.965", zorder=0)
        slot = 0.84 / len(line.marks)
        for i, mark in enumerate(line.marks):
            values, found = finite(mark.values), mean_of(mark.values)
            if not values.size:
                continue
            at = y + slot * (i - (len(line.marks) - 1) / 2)
            if dots and values.size > 1:
                ax.scatter(values, np.full(values.size, at + 0.27 * slot), s=20, color=base.tint(mark.colour), lw=0)
                at -= 0.12 * slot
            style = {"color": mark.colour, "linestyle": "none", "capsize": 3, "elinewidth": 1.5, "zorder": 4}
            ax.errorbar([found.mean], [at], xerr=found.bar, marker=mark.marker, label=mark.name, **style)
        if np.isfinite(line.ceiling):
            ax.plot([line.ceiling] * 2, [y - 0.42, y + 0.42], color="black", linewidth=2.4, zorder=3, label=CEILING)
    ax.set_yticks(range(len(lines)), [line.label for line in lines])
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.grid(True, axis="x")


def correlations_along_x(axes: Iterable[Axes], lines: Iterable[Line], dots: bool = True) -> None:
    """One scale for all axes, from the smallest value or just below zero to 1, with a line at zero."""
    every = [(mean_of(m.values), m.values) for line in lines for m in line.marks]
    values = [v for found, values in every for v in (values if dots else [found.mean, found.low])]
    low = min([0.0, *finite([*values, *(line.ceiling for line in lines)])]) - 0.05
    for ax in axes:
        ax.set_xlim(low, 1.05)
        ax.axvline(0, color="0.35", linewidth=1.0, zorder=1)


def told(lines: Iterable[Line], text: Callable[[Mean], str] = lambda mean: mean.words) -> list[str]:
    """The lines in words: each mean as `text` says it, and the agreement of the truth with itself."""
    sentences = []
    for line in lines:
        marks = [f"{m.name + ' ' if len(line.marks) > 1 else ''}{text(mean_of(m.values))}" for m in line.marks]
        ceiling = f"; {CEILING} {rounded(line.ceiling)}" if np.isfinite(line.ceiling) else ""
        sentences.append(f"{line.label.replace(chr(10), ' ')}: {', '.join(marks)}{ceiling}")
    return sentences
