"""All records of a study -> one table, results.csv."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fragile_lib.study.files import content_of, stored, study_root
from fragile_lib.study.record_file import read_record, row_dicts
from fragile_lib.tools.errors import InputError, bad_input, require
from fragile_lib.tools.files import write_if_changed

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "run_id", "profile", "dataset", "architecture", "activation", "depth", "width", "weight_decay", "n_train",
    "n_params", "seed", "test_point", "test_choice", "train_choice", "n_points", "estimator", "ground_truth", "pearson",
    "spearman", "slope", "grad_norm", "eig_min", "eig_max", "solver_residual", "status", "seconds_estimate",
    "seconds_retrain", "fit", "norm_spearman", "norm_ratio",
)  # fmt: skip


def results_csv(records: Iterable[dict[str, Any]]) -> str:
    """Return the table of all records as CSV text: the fixed columns, then any further in order of appearance."""
    import pandas as pd

    rows = [row for content in records for row in row_dicts(content)]
    columns = dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)])
    table = pd.DataFrame(rows, columns=list(columns))
    # Whole numbers with gaps (a depth that does not apply) must not become 5.0.
    return table.convert_dtypes().to_csv(index=False, lineterminator="\n")


def read_records(paths: Iterable[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the readable records among `paths` and a line on each that is not."""
    records, told = [], []
    for path in paths:
        try:
            records.append(read_record(path))
        except InputError as error:
            told.append(f"left out: {error}")
    return records, told


def collect(paths: Iterable[Path], target: Path) -> tuple[int, list[str]]:
    """Write the table of the records at `paths` to `target`; return how many there were, and what is to be told."""
    records, told = read_records(paths)
    write_if_changed(target, results_csv(records))
    return len(records), told


def read_results(path: str | Path) -> pd.DataFrame:
    """Return a results table for drawing, plain or packed; "" gives an empty one.

    A relative path is one from the notebooks' folder. Raises InputError where a path is given and no table that can be
    read is there.
    """
    import pandas as pd

    if not str(path):
        return pd.DataFrame()
    place = stored(study_root() / "notebooks" / path)
    remedy = "no table is there; run a study first, or give '' for no figures"
    require(place.exists(), "grid_results", str(path), remedy)
    # A column has one type, whatever part of the file is read; only what is empty is missing, and `NA` a name as any.
    options = {"low_memory": False, "keep_default_na": False, "na_values": [""]}
    try:
        return pd.read_csv(io.BytesIO(content_of(place)), **options)
    except (OSError, ValueError) as error:
        said = f"cannot be read ({error}); make it again or restore it from git"
        raise bad_input("grid_results", str(path), said) from None


def read_points(path: str | Path, run_ids: str = "", part: str = "points") -> list[dict[str, Any]]:
    """Return the compared points in the records beside a results table, each with its run's facts; "" gives none.

    Args:
        path: the results table, as in `read_results`; records lie in `records/` beside it or in folders of their own.
        run_ids: how the names of the wanted runs begin.
        part: of the records; `signals` for what was known of the estimates before anything was left out.
    """
    if not str(path):
        return []
    place = (study_root() / "notebooks" / path).parent
    place = place / "records" if (place / "records").is_dir() else place
    paths = [folder / "result.json" for folder in sorted(place.glob(f"{run_ids}*"))]
    records, told = read_records(path for path in paths if stored(path).is_file())
    for line in told:
        warnings.warn(line, stacklevel=2)
    return [
        {"run_id": r["run_id"], "profile": r["profile"], **r["run"], **one} for r in records for one in r.get(part, [])
    ]
