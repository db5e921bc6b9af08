"""From the results table to the numbers of one part: select rows, transform the statistic, one number for each cell.

Nothing here knows what a column means.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

TRANSFORMS: dict[str | None, Callable[[np.ndarray], np.ndarray]] = {
    None: lambda x: x,
    "log": np.log,
    "abs_log": lambda x: np.abs(np.log(x)),
}
SAME = 1e-5  # relative spread below which repeated rows of one network are one number (records round)


class Undecidable(Exception):
    """The rows do not answer the question; the message says why."""


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


def cell_table(
    rows: pd.DataFrame, statistic: str, transform: str | None, axis: str | None, by: tuple[str, ...] = ("seed",)
) -> pd.DataFrame:
    """Return the transformed statistic, columns `by` x axis values (one column `0` without an axis).

    NaN stands where it is not finite. Raises `Undecidable` where one cell would mix differing numbers, or one seed
    several runs: the rule does not say which is meant.
    """
    for column in (statistic, *by):
        if column not in rows:
            raise Undecidable(f"The results have no column “{column}”.")
    numbers = pd.to_numeric(rows[statistic], errors="coerce").to_numpy(float)
    with np.errstate(all="ignore"):
        numbers = TRANSFORMS[transform](numbers)
    long = rows[list(dict.fromkeys(["seed", "run_id", *by]))].reset_index(drop=True)
    long = long.assign(at=0 if axis is None else rows[axis].to_numpy(), x=numbers)
    if (long.groupby(["seed", "at"])["run_id"].nunique() > 1).any():
        raise Undecidable(f"The rule selects several runs for one seed: {_some(long['run_id'])}.")
    long = long[np.isfinite(long["x"])].dropna(subset=list(by))
    if long.empty:
        raise Undecidable(f"No finite value of “{statistic}”.")
    spread = long.groupby([*by, "at"])["x"].agg(["min", "max"])
    if ((spread["max"] - spread["min"]) > SAME * spread.abs().max(axis=1)).any():
        raise Undecidable("The rule selects several differing rows of one network.")
    return spread["max"].unstack("at").sort_index(axis=1)


def _some(names: pd.Series) -> str:
    return ", ".join(str(name) for name in sorted(names.unique())[:3])
