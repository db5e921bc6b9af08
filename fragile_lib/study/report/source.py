"""What a report is made from: records, failures, planned runs, executed notebooks, the results table, the settings.

A broken file is named on the report and does not stop it: the other runs are still worth reading.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from fragile_lib.study.claims import Claim, load_claims
from fragile_lib.study.record import read_record, rows_frame
from fragile_lib.study.yaml_file import load_yaml
from fragile_lib.tools.errors import InputError, bad_input

Planner = Callable[[Path, str], dict[str, list[str]]]


@dataclass(frozen=True)
class Run:
    """A planned or found run: `record` is its last finished result, `failure` its last failed attempt."""

    run_id: str
    notebook: str
    record: dict | None = None
    failure: dict | None = None
    problem: str = ""
    outdated: bool = False  # the collected table leaves this result out: it is of other parameters or code

    @property
    def state(self) -> str:
        """One of ok, failed, failed later (an older result is kept), outdated, unreadable, missing."""
        if self.problem:
            return "unreadable"
        if self.outdated:
            return "failed" if self.failure else "outdated"
        if self.failure:
            return "failed later" if self.record else "failed"
        return "ok" if self.record else "missing"


@dataclass
class Study:
    """Everything that the report shows."""

    source: Path
    profile: str
    runs: list[Run]
    results: pd.DataFrame
    results_path: Path | None
    pages: dict[str, Path]
    claims: list[Claim]
    settings: dict
    deviations: list[dict]
    problems: list[str] = field(default_factory=list)

    @property
    def records(self) -> list[dict]:
        """The finished results that the table holds, in the order of the runs."""
        return [run.record for run in self.runs if run.record and not run.outdated]


def read_study(source: Path, params_dir: Path, planner: Planner) -> Study:
    """Read a study; where `source` holds `records/`, the runs lie there.

    Raises `InputError` where `source` is no folder or a file of settings is malformed.
    """
    if not source.is_dir():
        raise bad_input("source", str(source), "is not a folder; run the study first (make study)")
    source = source / "records" if (source / "records").is_dir() else source
    problems: list[str] = []
    found = [_read_run(folder) for folder in sorted(source.iterdir()) if _is_run(folder)]
    profiles = Counter(run.record.get("profile") for run in found if run.record)
    profile = str(profiles.most_common(1)[0][0]) if profiles else source.name
    if len(profiles) > 1:
        problems.append(f"Records of several profiles are mixed here: {', '.join(map(str, profiles))}.")
    runs = _with_planned(found, params_dir, profile, planner, problems)
    problems += [f"{run.run_id}: {run.problem}" for run in runs if run.problem]
    path, results = _results(source, [run.record for run in runs if run.record])
    held = set(results["run_id"]) if len(results) else set()
    runs = [replace(run, outdated=True) if path and run.record and run.run_id not in held else run for run in runs]
    settings = load_yaml(params_dir / "report.yaml") if (params_dir / "report.yaml").exists() else {}
    pages = _pages(source, settings.get("pages", []))
    claims, deviations = load_claims(params_dir / "claims.yaml"), _deviations(params_dir / "deviations.yaml")
    return Study(source, profile, runs, results, path, pages, claims, settings, deviations, problems)


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).exists() for name in ("result.json", "failure.json"))


def _read_run(folder: Path) -> Run:
    record, problem = None, ""
    if (folder / "result.json").exists():
        try:
            record = read_record(folder / "result.json")
        except InputError as error:
            problem = str(error).replace(str(folder.parent) + "/", "")
    failure = _failure(folder / "failure.json")
    notebook = (record or failure or {}).get("notebook") or folder.name.split("-")[0]
    return Run(folder.name, str(notebook), record, failure, problem)


def _failure(path: Path) -> dict | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        return {"error": "Unknown", "message": f"{path.name} cannot be read ({error})"}
    return (
        content if isinstance(content, dict) else {"error": "Unknown", "message": f"{path.name} is no failure record"}
    )


def _with_planned(found: list[Run], params_dir: Path, profile: str, planner: Planner, problems: list[str]) -> list[Run]:
    """Runs in the order of the plan, missing ones included; found runs that are not planned come last."""
    try:
        planned = planner(params_dir, profile)
    except InputError as error:
        problems.append(f"The plan could not be read, so missing runs are not shown: {error}")
        planned = {}
    by_id = {run.run_id: run for run in found}
    runs = [
        replace(by_id.pop(name, Run(name, notebook)), notebook=notebook)
        for notebook, names in planned.items()
        for name in names
    ]
    return runs + list(by_id.values())


def _results(source: Path, records: list[dict]) -> tuple[Path | None, pd.DataFrame]:
    """The collected table where there is one, else the rows of the records."""
    for path in (source / "results.csv", source.parent / "results.csv"):
        if path.is_file() and path.stat().st_size:
            return path, pd.read_csv(path, low_memory=False)
    frames = [rows_frame(record) for record in records]
    return None, pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _pages(source: Path, order: list[str]) -> dict[str, Path]:
    folder = next((f for f in (source / "pages", source.parent / "pages") if f.is_dir()), None)
    found = {path.stem: path for path in sorted(folder.glob("*.ipynb"))} if folder else {}
    return {name: found[name] for name in sorted(found, key=lambda n: (order.index(n) if n in order else 99, n))}


def _deviations(path: Path) -> list[dict]:
    """Read `deviations: [{what, paper, here, why, notebook}]`, all text; `notebook` may be left out."""
    if not path.exists():
        return []
    entries = load_yaml(path).get("deviations")
    if not isinstance(entries, list):
        raise bad_input("deviations", entries, f"give a list of {{what, paper, here, why}} [{path.name}]")
    for number, entry in enumerate(entries, 1):
        for key in ("what", "paper", "here", "why"):
            if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
                raise bad_input(f"deviations[{number}].{key}", entry, f"give {key} as text [{path.name}]")
    return entries
