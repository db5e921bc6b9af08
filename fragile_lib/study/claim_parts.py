"""One part of a claim's rule: select rows, reduce each seed to one number, judge the mean over seeds.

Nothing here knows what a column means. The four kinds (`value`, `trend`, `difference`, `step`) are explained in words
at the head of params/claims.yaml.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from fragile_lib.study.bootstrap import MIN_SEEDS, bootstrap_mean

TOLERANCE = 0.05
MIN_CHANGE = 0.05
NOT_DEGENERATE = ("ok", "indefinite")
SIGNS = {"falls": -1, "grows": 1, "negative": -1, "positive": 1}
TRANSFORMS: dict[str | None, Callable[[np.ndarray], np.ndarray]] = {
    None: lambda x: x,
    "log": np.log,
    "abs_log": lambda x: np.abs(np.log(x)),
}
SAME = 1e-5  # relative spread below which repeated rows of one network are one number (records round)


@dataclass(frozen=True)
class Part:
    """A rule part as written in the YAML file, defaults filled in and `for_each` expanded."""

    kind: str
    label: str
    statistic: str
    where: dict = field(default_factory=dict)
    minus: dict | None = None  # the columns that differ in the selection that is subtracted
    axis: str | None = None
    direction: str | None = None
    transform: str | None = None
    paper: float | None = None
    tolerance: float = TOLERANCE
    min_change: float = MIN_CHANGE
    cut: float | None = None
    at_each: bool = False


@dataclass(frozen=True)
class PartVerdict:
    """What the results say about one part."""

    kind: str
    label: str
    outcome: str  # reproduced, partly, not, undecided, not run
    sentence: str
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    n_seeds: int = 0
    n_networks: int = 0
    degenerate: dict[str, int] = field(default_factory=dict)
    profiles: tuple[str, ...] = ()


class Undecidable(Exception):
    """The rows do not answer the question; the message says why."""


def judge_part(results: pd.DataFrame, part: Part) -> PartVerdict:
    """Judge one part on the results table (one row per run, seed and the choices named by the columns)."""
    selections = [part.where] if part.minus is None else [part.where, {**part.where, **part.minus}]
    rows = [select(results, where) for where in selections]
    counts = _count(pd.concat(rows))
    if any(r.empty for r in rows):
        return PartVerdict(part.kind, part.label, "not run", "No run has these settings.", **counts)
    try:
        tables = [seed_table(r, part) for r in rows]
        table = tables[0] if part.minus is None else _difference(*tables)
        outcome, sentence, values = _JUDGES[part.kind](table, part)
    except Undecidable as reason:
        return PartVerdict(part.kind, part.label, "undecided", f"{reason}", **counts)
    return PartVerdict(
        part.kind, part.label, outcome, sentence, float(values.mean()), bootstrap_mean(values), len(values), **counts
    )


def select(results: pd.DataFrame, where: dict) -> pd.DataFrame:
    """Rows whose columns equal the wanted value, one of a list, or lie in `{min: a, max: b}` (both ends included)."""
    keep = np.full(len(results), True)
    for column, wanted in where.items():
        if column not in results:
            return results.iloc[:0]
        keep &= _matches(results[column], wanted)
    return results[keep]


def _matches(column: pd.Series, wanted: object) -> np.ndarray:
    if isinstance(wanted, dict):
        return column.between(wanted.get("min", -np.inf), wanted.get("max", np.inf)).to_numpy()
    if isinstance(wanted, list):
        return np.logical_or.reduce([_matches(column, each) for each in wanted])
    if isinstance(wanted, bool) or not isinstance(wanted, int | float):
        return (column == wanted).to_numpy()
    return np.isclose(pd.to_numeric(column, errors="coerce").to_numpy(float), wanted, rtol=1e-9, atol=0.0)


def seed_table(rows: pd.DataFrame, part: Part) -> pd.DataFrame:
    """Return the transformed statistic, seeds x axis values (one column `0` without an axis); NaN where not finite.

    Raises `Undecidable` where one cell would mix runs or differing numbers: the rule does not say which is meant.
    """
    if part.statistic not in rows:
        raise Undecidable(f"The results have no column “{part.statistic}”.")
    numbers = pd.to_numeric(rows[part.statistic], errors="coerce").to_numpy(float)
    with np.errstate(all="ignore"):
        numbers = TRANSFORMS[part.transform](numbers)
    axis = 0 if part.axis is None else rows[part.axis].to_numpy()
    long = pd.DataFrame({"seed": rows["seed"].to_numpy(), "at": axis, "x": numbers, "run": rows["run_id"].to_numpy()})
    cells = long.groupby(["seed", "at"])
    if (cells["run"].nunique() > 1).any():
        raise Undecidable(f"The rule selects several runs for one seed: {_some(long['run'])}.")
    long = long[np.isfinite(long["x"])]
    if long.empty:
        raise Undecidable(f"No finite value of “{part.statistic}”.")
    spread = long.groupby(["seed", "at"])["x"].agg(["min", "max"])
    if ((spread["max"] - spread["min"]) > SAME * spread.abs().max(axis=1)).any():
        raise Undecidable("The rule selects several differing rows of one network.")
    return spread["max"].unstack("at").sort_index(axis=1)


def _some(names: pd.Series) -> str:
    return ", ".join(str(name) for name in sorted(names.unique())[:3])


def _difference(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """First minus second, paired by seed and axis value; what has no partner drops out."""
    first, second = first.align(second, join="inner")
    return first - second


def _judge_value(table: pd.DataFrame, part: Part) -> tuple[str, str, np.ndarray]:
    values = _enough(table.iloc[:, 0].dropna().to_numpy(), part)
    low, high = bootstrap_mean(values)
    said = f"{_estimate(values)}; the paper’s {part.paper:g} lies "
    if low - part.tolerance <= part.paper <= high + part.tolerance:
        return "reproduced", said + f"within the interval widened by {part.tolerance:g}.", values
    seeds = f"the range of the single seeds, {number(values.min())} to {number(values.max())}"
    if values.min() <= part.paper <= values.max():
        return "partly", said + f"outside the interval but within {seeds}.", values
    return "not", said + f"outside {seeds}, and outside the interval widened by {part.tolerance:g}.", values


def _judge_trend(table: pd.DataFrame, part: Part) -> tuple[str, str, np.ndarray]:
    """Per seed: least-squares slope times the axis range, the end-to-end change."""
    if table.shape[1] < 2:
        raise Undecidable(f"Only one value of {part.axis} has results.")
    x = table.columns.to_numpy(float)
    # A seed with few axis values would be extrapolated over the whole range: it needs half of them, and at least two.
    table = table[table.notna().sum(axis=1) >= max(2, len(x) / 2)]
    weight = table.notna().to_numpy(float)
    y = table.fillna(0.0).to_numpy()
    total = weight.sum(axis=1, keepdims=True)
    dx = (x - (weight * x).sum(axis=1, keepdims=True) / np.maximum(total, 1)) * weight
    slopes = (dx * y).sum(axis=1) / np.maximum((dx * dx).sum(axis=1), np.finfo(float).tiny)
    values = _enough(slopes * (x.max() - x.min()), part)
    return *_judge_sign(values, part, f"from {part.axis} {x.min():g} to {x.max():g}"), values


def _judge_difference(table: pd.DataFrame, part: Part) -> tuple[str, str, np.ndarray]:
    table = table.dropna(how="all").dropna(axis=1, how="all")
    values = _enough(table.mean(axis=1).to_numpy(), part)
    over = f"in the mean over {part.axis} {_span(table.columns)}" if part.axis and table.shape[1] > 1 else ""
    outcome, sentence = _judge_sign(values, part, over)
    if not part.at_each:
        return outcome, sentence, values
    judged = (table.mean() * SIGNS[part.direction] > 0) & (table.notna().sum() >= MIN_SEEDS)
    if judged.all():
        return outcome, sentence + f" The sign holds at every {part.axis}.", values
    failing = ", ".join(f"{value:g}" for value in table.columns[~judged])
    sentence += f" The sign does not hold, or has too few seeds, at {part.axis} {failing}."
    return ("partly" if outcome == "reproduced" else outcome), sentence, values


def _judge_step(table: pd.DataFrame, part: Part) -> tuple[str, str, np.ndarray]:
    beyond = table.columns.to_numpy(float) > part.cut
    if beyond.all() or not beyond.any():
        raise Undecidable(f"No results on {'this' if beyond.all() else 'the far'} side of {part.axis} {part.cut:g}.")
    change = table.loc[:, beyond].mean(axis=1) - table.loc[:, ~beyond].mean(axis=1)
    values = _enough(change.dropna().to_numpy(), part)
    return *_judge_sign(values, part, f"beyond {part.axis} {part.cut:g}, against up to it"), values


def _judge_sign(values: np.ndarray, part: Part, over: str) -> tuple[str, str]:
    """Reproduced: interval wholly on the claimed side and the mean large enough; partly: on that side but smaller."""
    sign = SIGNS[part.direction]
    low, high = sorted(sign * end for end in bootstrap_mean(values))
    said = " ".join(filter(None, [_estimate(values), over]))
    if low <= 0:
        return "not", said + f": the interval is not wholly {'above' if sign > 0 else 'below'} zero, as claimed."
    if sign * values.mean() < part.min_change:
        return "partly", said + f": of the claimed sign, but smaller than {number(part.min_change)}."
    return "reproduced", said + f": of the claimed sign, and at least {number(part.min_change)}."


def _enough(values: np.ndarray, part: Part) -> np.ndarray:
    if len(values) < MIN_SEEDS:
        raise Undecidable(f"{len(values)} seeds have a finite “{part.statistic}” here; a judgement needs {MIN_SEEDS}.")
    return values


def _estimate(values: np.ndarray) -> str:
    low, high = bootstrap_mean(values)
    return f"{number(values.mean())} (95% interval {number(low)} to {number(high)}, {len(values)} seeds)"


def number(value: float) -> str:
    """Format for prose and tables: two decimals, three significant digits beyond 100, a real minus sign."""
    digits = f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}"
    return digits.replace("-", "−").replace("−0.00", "0.00")


def _span(values: pd.Index) -> str:
    return f"{values.min():g} to {values.max():g}"


def _count(rows: pd.DataFrame) -> dict:
    """Count networks (run and seed) and, by name, the degenerate ones among them; the profiles they come from."""
    if rows.empty:
        return {"n_networks": 0, "degenerate": {}, "profiles": ()}
    bad = rows[~rows["status"].isin(NOT_DEGENERATE)].drop_duplicates(["run_id", "seed"])
    return {
        "n_networks": len(rows.drop_duplicates(["run_id", "seed"])),
        "degenerate": {str(name): int(n) for name, n in bad["status"].value_counts().items()},
        "profiles": tuple(sorted(str(p) for p in rows["profile"].dropna().unique())),
    }


_JUDGES = {"value": _judge_value, "trend": _judge_trend, "difference": _judge_difference, "step": _judge_step}
KINDS = tuple(_JUDGES)
