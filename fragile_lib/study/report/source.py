"""What a report is made from: records, failures, planned runs, executed notebooks, the results table, the settings.

A broken file is named on the report and does not stop it: the other runs are still worth reading.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from fragile_lib.study.claims import Claim, load_claims
from fragile_lib.study.collect import read_results
from fragile_lib.study.declaration import Declaration, check_values, declared
from fragile_lib.study.files import stored
from fragile_lib.study.params import load_specs, planned
from fragile_lib.study.plan import CARD
from fragile_lib.study.record_file import read_record
from fragile_lib.tools.errors import InputError, require, within
from fragile_lib.tools.files import load_json, load_yaml

DEVIATION = declared("str", "what", "paper", "here", "why", "notebook")
METHOD = declared("str", "name", "title", "asks", "leaves_out", "formula", "parameters", "applies")
METHOD |= declared("str", "kind", choices=("estimator", "truth"))


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
    methods: list[dict]
    problems: list[str] = field(default_factory=list)
    cells: tuple[int, int] = (0, 0)  # of `CARD`: that have been run, and that are planned

    @property
    def records(self) -> list[dict]:
        """The finished results that the table holds, in the order of the runs."""
        return [run.record for run in self.runs if run.record and not run.outdated]

    @property
    def seeds(self) -> str:
        """How many seeds a run has, in words."""
        counts = sorted({len(record.get("seeds") or []) for record in self.records} - {0})
        return f"{' to '.join(map(str, dict.fromkeys([counts[0], counts[-1]])))} seeds a run" if counts else ""


def read_study(source: Path, params_dir: Path) -> Study:
    """Read a study; where `source` holds `records/`, the runs lie there.

    Raises `InputError` where `source` is no folder or a file of settings is malformed.
    """
    require(source.is_dir(), "source", str(source), "is not a folder; run the study first (make study)")
    source = source / "records" if (source / "records").is_dir() else source
    problems: list[str] = []
    told = [f for f in sorted(source.iterdir()) if (f / "failure.json").exists() or stored(f / "result.json").exists()]
    found = {folder.name: _read_run(folder) for folder in told}
    profiles = Counter(run.record.get("profile") for run in found.values() if run.record)
    profile = str(profiles.most_common(1)[0][0]) if profiles else source.name
    if len(profiles.keys() - {CARD}) > 1:
        problems.append(f"Records of several profiles are mixed here: {', '.join(map(str, profiles))}.")
    try:
        specs = load_specs(params_dir)
    except InputError as error:
        specs = {}
        problems.append(f"The plan could not be read, so missing runs are not shown: {error}")
    plan, cells = planned(specs, profile), planned(specs, CARD)
    # In the order of the plan, missing ones included; found runs that are not planned come last.
    found = {name: Run(name, notebook) for name, notebook in plan.items()} | {
        name: replace(run, notebook=plan.get(name, run.notebook)) for name, run in found.items()
    }
    problems += [f"{run.run_id}: {run.problem}" for run in found.values() if run.problem]
    tables = (stored(folder / "results.csv") for folder in (source, source.parent))
    path = next((table for table in tables if table.is_file()), None)
    results = read_results(path.absolute()) if path else pd.DataFrame(columns=["run_id"])
    held = set(results["run_id"])
    runs = [replace(run, outdated=bool(run.record and run.run_id not in held)) for run in found.values()]
    done = sum(bool(found[name].record) for name in cells if name in found)
    settings = load_yaml(params_dir / "report.yaml") if (params_dir / "report.yaml").exists() else {}
    return Study(
        source, profile, runs, results, path, _pages(source, settings.get("pages", [])),
        load_claims(params_dir / "claims.yaml"), settings,
        read_entries(params_dir / "deviations.yaml", DEVIATION), read_methods(params_dir / "methods.yaml"), problems,
        (done, len(cells)),
    )  # fmt: skip


def _read_run(folder: Path) -> Run:
    record, problem, failure = None, "", None
    try:
        record = read_record(folder / "result.json") if stored(folder / "result.json").exists() else None
    except InputError as error:
        problem = str(error).replace(str(folder.parent) + "/", "")
    try:
        failure = dict(load_json(folder / "failure.json")) if (folder / "failure.json").exists() else None
    except (ValueError, TypeError, OSError) as error:
        failure = {"error": "Unknown", "message": f"failure.json cannot be read ({error})"}
    notebook = (record or failure or {}).get("notebook") or folder.name.split("-")[0]
    return Run(folder.name, str(notebook), record, failure, problem)


def _pages(source: Path, order: list[str]) -> dict[str, Path]:
    folder = next((f for f in (source / "pages", source.parent / "pages") if f.is_dir()), source)
    found = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    return {name: found[name] for name in sorted(found, key=lambda n: (order.index(n) if n in order else 99, n))}


def read_entries(path: Path, form: dict[str, Declaration]) -> list[dict]:
    """Read the list of a YAML file, named as the file is, whose entries are as declared; no file, no entries."""
    if not path.exists():
        return []
    name = path.stem
    entries = check_values(declared("list", name, of="mapping"), load_yaml(path))[name]
    with within(path.name):
        return [check_values(form, entry, place=f"{name}[{i}].") for i, entry in enumerate(entries, 1)]


def read_methods(path: Path) -> list[dict]:
    """Read what each estimator and each ground truth answers; a name stands once for each kind."""
    entries = read_entries(path, METHOD)
    for (kind, name), n in Counter((entry["kind"], entry["name"]) for entry in entries).items():
        require(n == 1, f"{kind} name", name, f"occurs {n} times; remove the others [{path.name}]")
    return entries
