"""What is made of finished runs: the table of a profile, and the study of record under reports/."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from fragile_lib.study.collect import collect
from fragile_lib.study.figures import taken_out
from fragile_lib.study.files import json_text, profile_dir, shown
from fragile_lib.study.notebook_file import as_json, read_notebook
from fragile_lib.study.pages import page_path
from fragile_lib.study.params import Spec, load_specs
from fragile_lib.study.plan import RESTORED_PROFILES, Job, make_plan
from fragile_lib.study.record import packed, read_record
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.files import write_if_changed


def collect_profile(root: Path, profile: str) -> list[str]:
    """Write runs/<profile>/results.csv from all finished runs of all notebooks; return what is to be told."""
    jobs = make_plan(root, profile)
    finished = [job for job in jobs if job.state == "finished"]
    told = [
        f"left out of the table: {job.run.run_id}, its result is of other parameters or code"
        for job in jobs
        if job not in finished and job.record.exists()
    ]
    target = profile_dir(root, profile) / "results.csv"
    count, unread = collect((job.record for job in finished), target)
    return [*told, *unread, f"{shown(target, root)}: {count} of {len(jobs)} runs"]


def publish(root: Path, profile: str, chosen: dict[str, Spec]) -> list[str]:
    """Copy records, failures and pages of the chosen notebooks to reports/, build results.csv; return what is told.

    A run that is not finished keeps its older published record, if any, and is named; runs that are in no grid any
    more are removed (git keeps them). The table is made from the published records, so the two always agree. Raises
    InputError for a profile too small to stand as the study of record.
    """
    if profile not in RESTORED_PROFILES:
        remedy = f"is never published; reports/ holds the study of record, run {' or '.join(RESTORED_PROFILES)}"
        raise bad_input("profile", profile, remedy)
    reports = root / "reports"
    everything = make_plan(root, profile)
    told = [line for job in everything if job.run.notebook in chosen for line in _publish_run(job, reports)]
    planned = {job.run.run_id for job in everything}
    for folder in sorted((reports / "records").glob("*")):
        if folder.is_dir() and folder.name not in planned:
            shutil.rmtree(folder)
            told.append(f"{folder.name}: in no grid any more, removed from reports/records")
    for name, spec in chosen.items():
        page = page_path(root, profile, name)
        if spec.page is not None and page.exists():
            executed = taken_out(read_notebook(page, root), name, reports)
            write_if_changed(reports / "pages" / page.name, as_json(executed))
    return told + collect_published(root, everything)


def collect_published(root: Path, jobs: Iterable[Job] = ()) -> list[str]:
    """Make reports/results.csv from the published records, in the order of the grids; return what is to be told."""
    profiles = {name for spec in load_specs(root / "params").values() for name in spec.profiles}
    jobs = jobs or [job for name in RESTORED_PROFILES if name in profiles for job in make_plan(root, name)]
    names = dict.fromkeys(job.run.run_id for job in jobs)
    paths = [root / "reports" / "records" / name / "result.json" for name in names]
    paths = [path for path in paths if path.exists()]
    return collect(paths, root / "reports" / "results.csv")[1] if paths else []


def _publish_run(job: Job, reports: Path) -> list[str]:
    target, state = reports / "records" / job.run.run_id, job.state
    if state == "finished":
        write_if_changed(target / "params.yaml", (job.directory / "params.yaml").read_bytes())
        write_if_changed(target / "result.json", json_text(packed(read_record(job.record))))
        (target / "failure.json").unlink(missing_ok=True)
        return []
    if (job.directory / "failure.json").exists():
        write_if_changed(target / "failure.json", (job.directory / "failure.json").read_bytes())
    kept = "; its older record stays" if (target / "result.json").exists() else ""
    return [f"{job.run.run_id}: {state}, not published{kept}"]
