"""Which runs there are, which are finished, and the small files that tell Snakemake so.

The truth about a run is its `result.json`: it is finished when that file can be read and carries the run's present
fingerprint. Snakemake deletes a rule's outputs before it runs and after it fails, so no result is ever its output.
It sees a stamp, `.done/<run_id>`, and runs what has none. Stamps are brought in line here, and can be deleted at any
time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fragile_lib.study.files import content_of, package_dir, profile_dir, shown, stored, study_root
from fragile_lib.study.fingerprint import run_fingerprint
from fragile_lib.study.notebook_file import Notebook, code_cells, parameters_cell, read_notebook
from fragile_lib.study.params import STANDARD, Run, Spec, load_specs, select
from fragile_lib.study.record_file import read_record
from fragile_lib.tools.errors import InputError, require
from fragile_lib.tools.files import data_root, dump_yaml, remove, write_if_changed, write_whole
from fragile_lib.tools.processes import say

CARD = "gpu"  # the profile whose cells, run on a graphics card, stand beside those of the study of record
RESTORED_PROFILES = ("laptop", CARD, "paper")


@dataclass(frozen=True)
class Job:
    """A run with the folder it lives in and what its result depends on."""

    run: Run
    directory: Path
    fingerprint: str
    limits: Mapping[str, int]

    @property
    def record(self) -> Path:
        """Return the file that holds the result."""
        return self.directory / "result.json"

    @property
    def stamp(self) -> Path:
        """Return the file whose presence tells Snakemake that the run is finished."""
        return self.directory.parent / ".done" / self.run.run_id

    @property
    def state(self) -> str:
        """Return `finished`, `outdated` (by other parameters or code), `unreadable`, `failed` or `missing`."""
        state, _ = standing(self.record, self.fingerprint)
        return "failed" if state in ("missing", "outdated") and (self.directory / "failure.json").exists() else state

    def described(self) -> dict[str, object]:
        """Return what `run.execute` has to know."""
        facts = {name: getattr(self.run, name) for name in ("run_id", "notebook", "profile")}
        return {**facts, "fingerprint": self.fingerprint, **self.limits}


def standing(path: Path, fingerprint: str) -> tuple[str, str]:
    """Return how a record stands to a fingerprint, `finished`, `outdated`, `unreadable` or `missing`, and its fault."""
    if not stored(path).exists():
        return "missing", ""
    try:
        return "finished" if read_record(path).get("fingerprint") == fingerprint else "outdated", ""
    except InputError as error:
        return "unreadable", str(error).partition(": ")[2].rpartition(";")[0]


def validated(root: Path, profile: str, notebook: str | None = None) -> dict[str, Spec]:
    """Return the chosen specs after checking every parameters file and the notebook of each; writes nothing."""
    specs = load_specs(root / "params")
    chosen = select(specs, profile, notebook)
    for spec in specs.values():
        check_notebook(spec, root)
    return chosen


def check_notebook(spec: Spec, root: Path) -> Notebook:
    """Return the notebook of a spec after checking that both know the same parameters."""
    name = f"notebooks/{spec.notebook}.ipynb"
    notebook = read_notebook(root / name, root)
    known = parameters_cell(notebook, name)
    for parameter in spec.declarations:
        remedy = f"is declared in {spec.source} but not in the parameters cell of {name}; add it there"
        require(parameter in known, parameter, "(missing)", remedy)
    for parameter, value in known.items():
        remedy = f"is in the parameters cell of {name} but not declared in {spec.source}; add it there"
        require(parameter in (*spec.declarations, *STANDARD), parameter, value, remedy)
    remedy = f"is not in the parameters cell of {name}, so no record would come; add it"
    require(not spec.profiles or "output_dir" in known, "output_dir", "(missing)", remedy)
    return notebook


def make_plan(root: Path, profile: str, notebook: str | None = None) -> list[Job]:
    """Return the jobs of a profile, all notebooks' or one's; raise InputError on bad input; writes nothing."""
    jobs = []
    for spec in validated(root, profile, notebook).values():
        cells = code_cells(check_notebook(spec, root), parameters=False)  # a run is given all of them
        for run in spec.runs(profile):
            fingerprint = run_fingerprint(run.parameters, cells, package_dir(root))
            jobs.append(Job(run, profile_dir(root, profile) / run.run_id, fingerprint, spec.limits))
    return jobs


def left_out(root: Path, profile: str, notebook: str | None = None) -> list[str]:
    """Return a line on each grid of a profile that waits for data."""
    chosen = select(load_specs(root / "params"), profile, notebook).values()
    waiting = [(spec.notebook, grid, path) for spec in chosen for grid, path in spec.lacking(profile).items()]
    return [f"left out: grid {grid} of {name}, which needs {path} in {data_root()}" for name, grid, path in waiting]


def prepare(root: Path, profile: str, notebook: str | None = None) -> tuple[list[Job], list[str]]:
    """Write what the runs need, restore and set aside results, and bring the stamps in line; safe to repeat.

    Returns the jobs and what is to be told. Raises InputError before anything is written; OSError on a full disk.
    """
    jobs = make_plan(root, profile, notebook)
    told = left_out(root, profile, notebook)
    for job in jobs:
        told += _set_aside(job, root)
        write_if_changed(job.directory / "params.yaml", dump_yaml(job.run.parameters))
        write_if_changed(job.directory / ".job.json", json.dumps(job.described(), indent=1) + "\n")
        if job.state != "finished" and profile in RESTORED_PROFILES:
            told += _restore(job, root)
        if job.state != "finished":
            job.stamp.unlink(missing_ok=True)
            continue
        for left in job.directory.glob(".partial-*"):  # killed just after its record was in place
            remove(left)
        write_if_changed(job.stamp, "")
    return jobs, told


def _set_aside(job: Job, root: Path) -> list[str]:
    """Set a damaged record, or a folder where a file of the run belongs, aside; return what is to be told."""
    told = []
    for name in ("result.json", "params.yaml", ".job.json", "run.ipynb"):
        path = job.directory / name
        fault = "is a folder" if path.is_dir() else standing(path, "")[1] if path == job.record else ""
        if fault:
            aside = path.with_name(f"{name}.unreadable")
            remove(aside)
            path.replace(aside)
            told.append(f"{shown(path, root)} {fault}; set aside as {aside.name}, the run is repeated")
    return told


def _restore(job: Job, root: Path) -> list[str]:
    """Copy a committed record of the same fingerprint, so that a study goes on in a fresh clone."""
    source = stored(root / "reports" / "records" / job.run.run_id / "result.json")
    state, fault = standing(source, job.fingerprint)
    if fault:
        return [f"{shown(source, root)} {fault}; the run is repeated"]
    if state != "finished" or read_record(source)["profile"] != job.run.profile:
        return []
    (job.directory / "run.ipynb").unlink(missing_ok=True)  # it belongs to the older result
    write_whole(job.record, content_of(source))
    return [f"{job.run.run_id}: finished result taken from {shown(source, root)}"]


def jobs_for_snakemake(config: Mapping[str, str], main_process: bool) -> list[Job]:
    """Return the jobs as the Snakefile needs them; only Snakemake's main process prepares files.

    Bad input ends the process in one line: Snakemake would show where in the code it was found.
    """
    try:
        asked = study_root(), config.get("profile", "quick"), config.get("notebook") or None
        jobs, told = prepare(*asked) if main_process else (make_plan(*asked), [])
    except InputError as error:
        sys.exit(f"error: {error}")
    say(*told)
    return jobs
