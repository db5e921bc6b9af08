"""The result record: written by a notebook's last cell, read back by everything else.

The notebook gives what it found; where and when it ran, with which versions and how much memory, is added here.
Facts that only the study knows (the fingerprint) come through the environment, so a notebook need not know of them.
"""

from __future__ import annotations

import json
import os
import string
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fragile_lib.study.files import study_root
from fragile_lib.study.params import started_at
from fragile_lib.tools.errors import bad_input, require
from fragile_lib.tools.files import plain, write_json
from fragile_lib.tools.machine import git_state, machine, peak_memory_mb, threads, timestamp, versions

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
DIGITS = 4  # significant, of a row's numbers: finer than any interval by far, and records stay small
LETTERS = string.digits + string.ascii_letters
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "numba", "papermill")
DECIDING = ("fragile_lib", "notebooks", "params", "pyproject.toml")
GROUPS = ("test_choice", "train_choice", "fit", "estimator", "ground_truth")
STATISTICS = ("pearson", "spearman", "slope")
NOT_RECORDED = ("output_dir", "grid_results", "profile", "run_id")
REQUIRED = {
    **dict.fromkeys(("run_id", "profile", "notebook", "status"), str),
    **dict.fromkeys(("run", "parameters", "rows"), dict),
}


def record(
    *,
    output_dir: str | Path,
    run_id: str,
    profile: str,
    notebook: str,
    run: Mapping[str, Any],
    parameters: Mapping[str, Any] | Any,
    rows: pd.DataFrame | list[dict[str, Any]],
    certificates: pd.DataFrame | list[dict[str, Any]] = (),  # type: ignore[assignment]
    points: list[dict[str, Any]] = (),  # type: ignore[assignment]
    seeds: Iterable[int] = (),
    device: str = "cpu",
    seconds_by_part: Mapping[str, float] | None = None,
    status: str = "ok",
    **extra: Any,
) -> pd.DataFrame:
    """Write `<output_dir>/result.json` and return a small table: means over seeds by choice, fit, estimator, truth.

    With `output_dir` "" nothing is written. All values are cast to built-in types, rows rounded to `DIGITS` significant
    digits, NaN and infinity written as null; `extra` lands at the record's top level. Raises OSError on a full disk.
    """
    import pandas as pd

    rows = pd.DataFrame(rows)
    if output_dir:
        finished, values = time.time(), dict(parameters) if isinstance(parameters, Mapping) else vars(parameters)
        content = {
            "schema": SCHEMA,
            "run_id": run_id,
            "profile": profile,
            "notebook": notebook,
            "status": status,
            "run": plain(run),
            "parameters": plain({k: v for k, v in values.items() if k not in NOT_RECORDED}),
            "rows": _table(rows),
            "certificates": plain(certificates, digits=6),
            "points": plain(list(points), digits=DIGITS),
            "seeds": plain(list(seeds)),
            "versions": versions(PACKAGES),
            "git": git_state(study_root(), DECIDING),
            "device": str(device),
            "machine": machine(),
            "threads": threads(),
            "seconds": round(finished - started_at(), 3),
            "seconds_by_part": plain(seconds_by_part or {}, digits=6),
            "peak_memory_mb": peak_memory_mb(),
            "started": timestamp(started_at()),
            "finished": timestamp(finished),
            "fingerprint": os.environ.get("FRAGILE_FINGERPRINT", ""),
            **plain(extra, digits=6),
        }
        write_json(Path(output_dir) / "result.json", content)
    return _summary(rows)


def read_record(path: Path) -> dict[str, Any]:
    """Return a record; raise InputError that says what is wrong where it is missing, truncated or none."""
    remedy = "delete it and run the study again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise bad_input("record", str(path), "is not there; run the study") from None
    except (OSError, ValueError) as error:
        raise bad_input("record", str(path), f"cannot be read ({error}); {remedy}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise bad_input("record", str(path), f"is no record of schema {SCHEMA}; {remedy}")
    for key, kind in REQUIRED.items():
        require(isinstance(content.get(key), kind), "record", str(path), f"has no {key}; {remedy}")
    try:
        content["rows"] = _unpacked(content["rows"])
    except (KeyError, IndexError, TypeError, ValueError):
        raise bad_input("record", str(path), f"its rows do not fit their columns; {remedy}") from None
    return content


def packed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its rows in a quarter of the space: by column, and each value of a column once.

    In place of `rows.data` stands `rows.packed`, which holds for each column its numbers, or `{values, rows}`: the
    distinct values, and a letter for each row, "0" for the first value (`LETTERS`). `read_record` takes both forms.
    """
    columns = list(zip(*content["rows"]["data"], strict=True))
    return {**content, "rows": {"columns": content["rows"]["columns"], "packed": [_pack(column) for column in columns]}}


def _pack(column: Iterable[Any]) -> list[Any] | dict[str, Any]:
    texts = [json.dumps(value) for value in column]  # 1, 1.0 and true are equal, but not the same
    distinct = list(dict.fromkeys(texts))
    if len(distinct) > min(len(LETTERS), len(texts) / 2):
        return [json.loads(text) for text in texts]
    letters = dict(zip(distinct, LETTERS, strict=False))
    return {"values": [json.loads(text) for text in distinct], "rows": "".join(letters[text] for text in texts)}


def _unpacked(rows: Mapping[str, Any]) -> dict[str, Any]:
    columns, data = rows["columns"], rows.get("data")
    if data is None:
        lists = [
            column if isinstance(column, list) else [column["values"][LETTERS.index(c)] for c in column["rows"]]
            for column in rows["packed"]
        ]
        data = [list(row) for row in zip(*lists, strict=True)]
    for row in data:
        dict(zip(columns, row, strict=True))
    return {"columns": columns, "data": data}


def row_dicts(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a record's rows, each with the run's identity and the `run` block joined on."""
    shared = {"run_id": content["run_id"], "profile": content["profile"], **content["run"]}
    columns = content["rows"]["columns"]
    return [{**shared, **dict(zip(columns, values, strict=True))} for values in content["rows"]["data"]]


def _table(rows: pd.DataFrame) -> dict[str, Any]:
    # A column of whole numbers with gaps is float in pandas: seed 3.0 is written as 3.
    data = rows.convert_dtypes().itertuples(index=False, name=None)
    return {"columns": plain(list(rows.columns)), "data": plain(list(data), digits=DIGITS)}


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    groups, statistics = ([name for name in names if name in rows.columns] for names in (GROUPS, STATISTICS))
    if not groups or not statistics or rows.empty:
        return rows.head(10)
    grouped = rows.groupby(groups, sort=False, dropna=False)
    return grouped[statistics].mean().assign(n=grouped.size()).reset_index()
