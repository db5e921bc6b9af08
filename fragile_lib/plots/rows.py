"""From the results table to what a figure shows: choose rows, average over the right unit, tell what was left out.

A figure is described by a `Spec`. Its means ("marks") stand in one tidy table, a row for each panel, series and place
on the axis, and all kinds of figure draw from that table and speak of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from fragile_lib.agreement import summarise
from fragile_lib.plots import words
from fragile_lib.tools.errors import bad_input

Step = Callable[[pd.DataFrame], tuple[pd.DataFrame, str]]  # chosen rows -> rows, and what the caption says of it
SORTED_BY = ("dataset", "architecture", "activation", "depth", "width", "weight_decay", "optimiser", "run_id", "fit")
SORTED_BY += ("seed", "test_choice", "test_point", "train_choice", "ground_truth", "estimator")
SWEPT = "damping"  # empty but in the rows of runs that try several
# Columns that a table may lack; of none of its rows is then known what they say.
OPTIONAL = (SWEPT, "status", "n_train", "n_params", "width_multiplier", "repeats", "unseen", "spearman_single")
OPTIONAL += ("reliability", "reliability_single", "ceiling_spearman", "ceiling_pearson")
# What tells how far one measurement of the truth can be agreed with, the first that is known.
RELIABILITY = {
    "spearman": ["reliability", "ceiling_spearman"],
    "pearson": ["reliability_pearson", "ceiling_pearson"],
    "spearman_single": ["reliability_single"],
}


@dataclass(frozen=True)
class Spec:
    """What a figure of means shows, and how.

    Attributes:
        kind: "lines" or "marks" (along an axis), "dots" (a line of the figure for each category) or "table".
        at: the column along the axis, or of the categories.
        statistics: columns that are averaged, as in `words.STATISTICS`.
        hue: a column that is told apart by colour, marker and dash.
        rows, columns: columns with a panel for each value; "statistic" is among them.
        wrap: how many panels of `rows` stand side by side.
        where: column -> a value or a list of values; None for all.
        unit: what is resampled; rows of one unit are averaged first.
        steps: what happens to the chosen rows.
        without: combinations of values that are not shown.
        order: a column by whose median the categories are ordered; along an axis it stands below their names.
        dots: whether single units are drawn.
        paper: which of the published figures stand beside ours, as in `published.PAPER`.
        sums: columns of the groups that the caption sums up; None for no sums.
        error: a column with the standard error of each number, for bars where nothing is resampled.
        note: a sentence for the caption.
        topic: what the figure shows, in a few words, with which its caption begins.
        by_panel: whether the caption begins with the first series of all panels, and not with all series of the first.
        falls: all categories of a figure in which each starts where the one above it ends, the first at 1.
    """

    kind: str
    at: str
    statistics: tuple[str, ...] = ("spearman",)
    hue: str | None = None
    rows: str | None = None
    columns: str | None = None
    wrap: int = 1
    where: Mapping = field(default_factory=dict)
    unit: tuple[str, ...] = ("seed",)
    steps: tuple[Step, ...] = ()
    without: tuple[Mapping, ...] = ()
    order: str | None = None
    dots: bool = True
    paper: str = ""
    sums: tuple[str, ...] | None = None
    error: str = ""
    note: str = ""
    topic: str = ""
    by_panel: bool = False
    falls: tuple[str, ...] = ()

    @property
    def keys(self) -> list[str]:
        """The columns that tell marks apart."""
        return list(dict.fromkeys(c for c in (self.rows, self.columns, self.hue, self.at) if c))

    @property
    def sized(self) -> bool:
        """Whether the names of the places have their sizes below them."""
        return self.kind == "lines" and self.order is not None


class Panel(NamedTuple):
    """One panel: its place, its values of `Spec.rows` and `Spec.columns`, and its share of marks and units."""

    row: int
    column: int
    key: dict
    marks: pd.DataFrame
    units: pd.DataFrame

    @property
    def statistic(self) -> str:
        """What is averaged in it."""
        return self.marks["statistic"].iloc[0]

    @property
    def title(self) -> str:
        """The values as a title; a statistic is named at its axis."""
        return ", ".join(words.label(c, v).replace("weight ", "") for c, v in self.key.items() if c != "statistic")


@dataclass(frozen=True)
class Shown:
    """What a figure shows.

    `rows` are the chosen rows of the results table and `cells` the same once for each statistic, with the columns
    statistic, value and ceiling (what an errorless estimate would reach). `marks` has a row for each mark:
    statistic, `Spec.keys`, mean, low, high, n, n_degenerate, units, ceiling; `units` the same keys with value and
    flagged, a row for each unit. The keys are categories, in the order in which they are shown, and the rows stand in
    it. `notes` are for the caption.
    """

    spec: Spec
    rows: pd.DataFrame
    cells: pd.DataFrame
    marks: pd.DataFrame
    units: pd.DataFrame
    notes: list[str]

    def levels(self, name: str | None) -> list:
        """The values of a column in the order in which they are shown: [None] for no column."""
        return [None] if name is None else list(self.marks[name].cat.categories)

    def table(self) -> pd.DataFrame:
        """A row for each number that was averaged, with its run, unit and place in the figure."""
        named = [c for c in dict.fromkeys(["run_id", *self.spec.unit, *self.spec.keys, "statistic"]) if c in self.cells]
        varying = [c for c in named if c == "run_id" or self.cells[c].nunique() > 1]  # what is common the caption says
        return self.cells[[*varying, "value", *([self.spec.error] if self.spec.error else [])]]

    def panels(self, absent: bool = False) -> list[Panel]:
        """A panel for each value of the columns that have panels; or those that have no row for their two values."""
        spec, found = self.spec, []
        for i, row in enumerate(self.levels(spec.rows)):
            for j, column in enumerate(self.levels(spec.columns)):
                key = {c: v for c, v in ((spec.rows, row), (spec.columns, column)) if c}
                place = divmod(i, spec.wrap) if spec.wrap > 1 else (i, j)
                found.append(Panel(*place, key, part(self.marks, key), part(self.units, key)))
        return [panel for panel in found if absent == (not len(panel.marks))]


def part(table: pd.DataFrame, values: Mapping) -> pd.DataFrame:
    """The rows that have these values, or one of a list; a column or a value None lets all through."""
    for column, value in values.items():
        if column is not None and value is not None:
            table = table[table[column].isin(np.ravel(value))]
    return table


def require(rows: pd.DataFrame, *columns: str) -> None:
    """Refuse a table without a needed column."""
    for column in columns:
        if column not in rows.columns:
            raise bad_input("column", column, f"no such column; the table has {', '.join(map(str, rows.columns))}")


def select(results: pd.DataFrame, where: Mapping) -> pd.DataFrame:
    """The rows of single test points that `where` lets through, in an order that does not depend on the table's.

    A value of `where` is one value, a list of values, or None for all. Unless `where` names them, test points together
    are passed over, and so are runs over several values of `SWEPT`, which ask the networks of other runs once more. The
    column `first_point` says whether a row is of the test point that stands first in its run.
    """
    rows = results.sort_index(kind="stable").reset_index(drop=True)
    rows = rows.reindex(columns=[*rows, *(c for c in OPTIONAL if c not in rows)])
    # First the data set: what follows looks at whole runs, which are of one, and copies what it lets through.
    others = dict(where)
    rows = _let_through(rows, "dataset", others.pop("dataset")) if "dataset" in where else rows
    if "run_id" in rows.columns and SWEPT not in where:
        rows = rows[rows.groupby("run_id")[SWEPT].transform("count") == 0]
    if {"run_id", "test_point"} <= set(rows.columns):
        first = rows.groupby("run_id")["test_point"].transform("first")
        rows = rows.assign(first_point=rows["test_point"] == first)
        rows = rows if "test_point" in where else rows[rows["test_point"].notna()]
    for column, value in others.items():
        rows = _let_through(rows, column, value)
    return rows.sort_values([c for c in SORTED_BY if c in rows.columns], kind="stable", ignore_index=True)


def _let_through(rows: pd.DataFrame, column: str, value: object) -> pd.DataFrame:
    """The rows whose column has one of the values; None for all. A table without rows may lack the column."""
    if not len(rows):
        return rows
    require(rows, column)
    return part(rows, {column: value})


def show_rows(results: pd.DataFrame, spec: Spec, where: Mapping | None = None) -> Shown | None:
    """Choose, average and count; None where the table has nothing for the figure.

    Raises:
        InputError: the table lacks a column that the figure needs, or `where` names one that it lacks.
    """
    if results.empty:
        return None
    rows, notes = select(results, {**spec.where, **(where or {})}), []
    for step in spec.steps:
        rows, note = step(rows) if len(rows) else (rows, "")
        notes += [note] if note else []
    if len(rows):
        require(rows, *(c for c in (*spec.keys, *spec.statistics, *spec.unit) if c != "statistic"))
        rows = rows[rows[spec.at].notna()]
    if rows.empty:
        return None
    cells = _melted(rows, spec)
    keys = list(dict.fromkeys(["statistic", *spec.keys]))
    units = cells.groupby([*keys, "unit"], as_index=False).agg(value=("value", "mean"), flagged=("flagged", "any"))
    # `summarise` resamples the column `seed`, which is here the unit; a seed that is shown goes by another name
    named = cells.rename(columns={"seed": "_seed_shown"}).assign(seed=cells["unit"])
    by = [k.replace("seed", "_seed_shown") for k in keys]
    marks = pd.concat(
        summarise(part, by, "value", words.STATISTICS[name].average)
        for name, part in named.groupby("statistic", sort=False)
    ).rename(columns={"_seed_shown": "seed"})
    extent = units.groupby(keys, as_index=False).agg(units=("value", "size"))
    of_truth = [k for k in keys if k != "estimator"]  # each test point counts once, whatever estimators it has rows for
    again = cells.groupby([*of_truth, "unit"])["ceiling"].mean().groupby(of_truth).mean().reset_index()
    marks = marks.merge(extent, on=keys).merge(again, on=of_truth)
    if spec.error:
        error = marks.merge(cells.groupby(keys, as_index=False)[spec.error].mean(), on=keys)[spec.error].fillna(0)
        marks = marks.assign(low=marks["mean"] - error, high=marks["mean"] + error)
    categories = {name: _levels(name, spec, rows, cells) for name in keys}
    marks, units = (
        table.assign(**{name: pd.Categorical(table[name], some, ordered=True) for name, some in categories.items()})
        for table in (marks, units)
    )
    return Shown(spec, rows, cells, marks.sort_values(keys, ignore_index=True), units, notes)


def _levels(name: str, spec: Spec, rows: pd.DataFrame, cells: pd.DataFrame) -> list:
    """The values of a key in the order in which they are shown."""
    values = cells[name].dropna().unique()
    if name == "statistic":
        return [s for s in spec.statistics if s in values]
    if name == spec.at and spec.falls:
        return list(spec.falls)
    if f"{name}_order" in cells.columns:
        return list(cells.sort_values(f"{name}_order", kind="stable")[name].unique())
    if name == spec.at and spec.order:
        by_size = rows.groupby(name)[spec.order].median()
        return sorted(words.ordered(values), key=lambda v: np.nan_to_num(by_size[v], nan=np.inf))
    return words.ordered(values, descending=name == "weight_decay" != spec.at)


def _ceiling(rows: pd.DataFrame, statistic: str) -> pd.Series:
    """What an errorless estimate would reach: the root of the truth's reliability, or of two repetitions' agreement."""
    known = rows.reindex(columns=RELIABILITY.get(statistic, ["none"])).astype(float).bfill(axis=1)
    return np.sqrt(known.iloc[:, 0].clip(lower=0))


def _melted(rows: pd.DataFrame, spec: Spec) -> pd.DataFrame:
    """The rows once for each statistic, with the columns that `Shown` names."""
    parts = []
    for name in spec.statistics:
        value = pd.to_numeric(rows[name], errors="coerce").astype(float)
        parts.append(rows.assign(statistic=name, value=value.where(np.isfinite(value)), ceiling=_ceiling(rows, name)))
    cells = pd.concat(parts, ignore_index=True)
    for values in spec.without:
        cells = cells[~np.logical_and.reduce([cells[c] == v for c, v in values.items()])]
    flagged = cells["status"].notna() & (cells["status"] != "ok")
    return cells.assign(flagged=flagged, unit=cells.groupby(list(spec.unit)).ngroup())
