"""The result record, as a notebook's last cell writes it; `record_file` reads it back.

The notebook gives what it found; where and when it ran, with which versions and how much memory, is added here.
Facts that only the study knows (the fingerprint) come through the environment, so a notebook need not know of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fragile_lib.study.files import study_root
from fragile_lib.study.record_file import STATISTICS, write_record
from fragile_lib.tools import machine
from fragile_lib.tools.files import plain

if TYPE_CHECKING:
    import pandas as pd

DIGITS = 4  # significant, of what is recorded: finer than any interval by far, and records stay small
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "numba", "papermill")
DECIDING = ("fragile_lib", "notebooks", "params", "pyproject.toml")
GROUPS = ("test_choice", "train_choice", "fit", "estimator", "ground_truth")
NOT_RECORDED = ("output_dir", "grid_results", "profile", "run_id")


def record(
    *,
    output_dir: str | Path,
    run_id: str,
    profile: str,
    notebook: str,
    run: Mapping[str, Any],
    parameters: Mapping[str, Any],
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
        content = {
            "run_id": run_id,
            "profile": profile,
            "notebook": notebook,
            "status": status,
            "run": plain(run),
            "parameters": plain({k: v for k, v in parameters.items() if k not in NOT_RECORDED}),
            "rows": _table(rows),
            "certificates": plain(certificates, digits=6),
            "points": plain(list(points), digits=DIGITS),
            "seeds": plain(list(seeds)),
            "versions": machine.versions(PACKAGES),
            "git": machine.git_state(study_root(), DECIDING),
            "device": str(device),
            "machine": machine.machine(),
            "threads": machine.threads(),
            "seconds": round(machine.WORK.seconds(), 3),
            "seconds_by_part": plain(seconds_by_part or {}, digits=6),
            "peak_memory_mb": machine.peak_memory_mb(),
            "started": machine.WORK.at,
            "finished": machine.timestamp(),
            "fingerprint": os.environ.get("FRAGILE_FINGERPRINT", ""),
            **plain(extra, digits=DIGITS),
        }
        write_record(Path(output_dir) / "result.json", content)
    return _summary(rows)


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
