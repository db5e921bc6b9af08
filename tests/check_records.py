"""Run a selection of the committed runs again and compare every number of their rows and points: `make check-records`.

    python tests/check_records.py [--reference DIR] [--out DIR] [--jobs N] [RUN_ID ...]

The reference is reports/records, or a folder that this script has filled elsewhere (`--out`), with another revision
(`--root`) say. On one machine with one thread a run is the same to the last digit that a record holds, so that the
reference of another revision must be met exactly (`--exact`). Records of another kind of processor differ by the order
of floating-point operations, which training amplifies. `APART` states how far apart, in each column, one revision was
on processors with and without AVX-512, and that much is allowed. The networks that are not in it were as far apart as
correlations can be (up to 0.81, with other test points chosen): they are compared with `--exact` alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fragile_lib.study.files import stored
from fragile_lib.study.record_file import read_record

ROOT = Path(__file__).resolve().parents[1]
SELECTION = (  # the longest first
    "small_mnist-wd0.001-s0",
    "mnist-lenet-wd0.001-adam-s0",
    "iris-relu-d8-w5-wd0.005",
    "mnist-vgg13-wd0.001-adam-s0",
    "mnist-resnet18-wd0.001-adam-s0",
    "iris-relu-d8-w5-wd0",
    "iris-relu-d5-w5-wd0.005",
    "iris-relu-d5-w5-wd0",
    "iris-relu-d1-w5-wd0.005",
    "iris-relu-d1-w5-wd0",
)
KEY = ("seed", "test_point", "test_choice", "train_choice", "fit", "estimator", "ground_truth")
COST = ("seconds_estimate", "seconds_retrain", "memory_mb")  # what a run took is no result of it
CORRELATIONS = ("spearman", "pearson", "slope", "sign_agreement", "ceiling_pearson", "ceiling_spearman")
SOLVED = 1e-8  # a relative residual below is round-off, whose size depends on the order of sums
ROUNDING = 1.01e-3  # relative: one unit in the last of four digits
APART = {  # "points" is relative to the largest of its list, the others are absolute
    "small_mnist-wd0.001-s0": {
        "eig_min": 4.6e-12, "solver_residual": 4.4e-9, "pearson": 0.0025, "spearman": 0.015, "slope": 0.0069
    },
    "iris-relu-d8-w5-wd0.005": {
        "solver_residual": 8.4e-13, "norm_spearman": 0.095, "norm_ratio": 0.011, "grad_norm": 1.1e-9,
        "eig_min": 1.6e-10, "eig_max": 0.09, "pearson": 0.07, "spearman": 0.34, "slope": 30.0, "sign_agreement": 0.14,
        "n_points": 1.0, "n_uncertified": 1.0, "points": 0.74
    },
    "iris-relu-d8-w5-wd0": {"solver_residual": 1.1e-11, "norm_spearman": 0.11, "spearman": 0.012},
    "iris-relu-d5-w5-wd0.005": {
        "solver_residual": 1.4e-11, "control_change": 0.0046, "grad_norm": 1.5e-4, "eig_min": 1.1e-5, "eig_max": 0.72,
        "norm_spearman": 0.25, "norm_ratio": 0.029, "pearson": 0.0034, "slope": 0.071
    },
    "iris-relu-d5-w5-wd0": {"solver_residual": 1.4e-11},
    "iris-relu-d1-w5-wd0.005": {"solver_residual": 2.7e-14, "eig_min": 9e-18},
    "iris-relu-d1-w5-wd0": {"solver_residual": 1.8e-13, "norm_ratio": 2.0, "sign_agreement": 0.0084},
}  # fmt: skip


def run(run_id: str, root: Path, out: Path) -> Path:
    """The record of a run made anew with the committed parameters."""
    target = out / run_id
    if not (target / "result.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        code = (
            "import sys, yaml; from pathlib import Path; from fragile_lib.study.execute import execute_notebook as go\n"
            "p = yaml.safe_load(Path(sys.argv[1]).read_text()); name = sys.argv[2]; out = Path(sys.argv[3])\n"
            "known = yaml.safe_load(Path(f'params/{name}.yaml').read_text())['parameters']\n"
            "asked = {'own_curvature': [], 'repeats': 1} | p\n"  # what older records did not ask for
            "p = {key: asked[key] for key in known if key in asked}\n"
            "p |= {'output_dir': str(out), 'run_id': out.name, 'profile': 'check', 'grid_results': ''}\n"
            "go(Path('notebooks') / f'{name}.ipynb', out / 'run.ipynb', p, Path.cwd())\n"
        )
        record = read_record(ROOT / "reports" / "records" / run_id / "result.json")
        given = ROOT / "reports" / "records" / run_id / "params.yaml"
        environment = os.environ | {"PYTHONPATH": str(root)}
        subprocess.run(
            [sys.executable, "-c", code, str(given), record["notebook"], str(target.resolve())],
            cwd=root, env=environment, check=True,
        )  # fmt: skip
    return target / "result.json"


def differences(found: dict, expected: dict, exact: bool) -> list[str]:
    """One line for each number or word that differs by more than its tolerance."""
    lines, tolerances = [], {} if exact else APART[found["run_id"]]
    ours, theirs = rows_by_key(found), rows_by_key(expected)
    lines += [f"row {key} is missing" for key in theirs.keys() - ours.keys()]
    for key in ours.keys() & theirs.keys():
        for column, value in theirs[key].items():
            other = ours[key].get(column)
            if (
                column in (*COST, *KEY)
                or close(other, value, tolerances.get(column, 0.0))
                or excused(column, ours[key])
            ):
                continue
            lines.append(f"{key} {column}: {other} for {value}")
    ours, theirs = points_by_key(found), points_by_key(expected)
    lines += [f"point {key} is missing" for key in theirs.keys() - ours.keys()]
    allowed = tolerances.get("points", 0.0)
    for key in ours.keys() & theirs.keys():
        worst = max((abs((a or 0) - (b or 0)) for a, b in zip(ours[key], theirs[key], strict=True)), default=0.0)
        size = max((abs(b or 0) for b in theirs[key]), default=0.0)
        if worst > (ROUNDING + allowed) * size:
            lines.append(f"point {key}: off by {worst:.2e} of {size:.2e}")
    return lines


def excused(column: str, row: dict) -> bool:
    """A residual of round-off; the status where nothing was solved, which older records called ok; noise not measured.

    A record of before truths were means of repetitions is made again with one, which says nothing of a truth's noise.
    """
    if column.startswith("ceiling_") and row.get(column) is None:
        return True
    residual = row.get("solver_residual") or 0.0
    return (column == "solver_residual" and residual < SOLVED) or (column == "status" and residual >= 1)


def close(a: object, b: object, allowed: float) -> bool:
    """Whether two entries are equal, or numbers within `allowed` and the rounding of a record."""
    if a == b:
        return True
    if not all(isinstance(v, int | float) for v in (a, b)):
        return False
    return math.isclose(a, b, rel_tol=ROUNDING, abs_tol=allowed)


def rows_by_key(record: dict) -> dict[tuple, dict]:
    """Rows of a record by what they are about."""
    columns = record["rows"]["columns"]
    rows = [dict(zip(columns, values, strict=True)) for values in record["rows"]["data"]]
    return {tuple(row.get(name) for name in KEY): row for row in rows}


def points_by_key(record: dict) -> dict[tuple, list]:
    """Estimates and truths of single removals, by what they are about."""
    found = {}
    for point in record["points"]:
        place = tuple(point.get(name) for name in KEY[:5])
        for kind in ("estimate", "truth"):
            found |= {(*place, kind, name): values for name, values in point.get(kind, {}).items()}
            unnamed = (place[0], None, *place[2:])  # records of before held one test point of a kind, without its name
            found |= {(*unnamed, kind, name): values for name, values in point.get(kind, {}).items()}
    return found


def main() -> int:
    """Run, compare, and print what differs; 1 where anything does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", default=SELECTION)
    parser.add_argument("--reference", type=Path, default=ROOT / "reports" / "records")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree whose code runs")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "check")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--exact", action="store_true", help="no tolerance but a record's rounding")
    given = parser.parse_args()
    runs = [run_id for run_id in given.runs if given.exact or run_id in APART]
    for run_id in given.runs:
        if run_id not in runs:
            print(f"{run_id}: left out; it differs between processors. Fill a folder with `--out`, then `--exact`")
    wrong = 0
    with ThreadPoolExecutor(given.jobs) as pool:
        made = {run_id: pool.submit(run, run_id, given.root, given.out) for run_id in runs}
        for run_id, job in made.items():
            expected = given.reference / run_id / "result.json"
            if not stored(expected).exists():
                print(f"{run_id}: made; no reference in {given.reference}")
                continue
            found = json.loads(job.result().read_text())
            lines = differences(found, read_record(expected), given.exact)
            wrong += len(lines)
            print(f"{run_id}: {len(lines) or 'nothing'} differs", *lines[:20], sep="\n  ", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
