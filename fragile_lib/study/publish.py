"""The study of record: finished results of a profile of the published scale, copied to reports/."""

from __future__ import annotations

import shutil
from pathlib import Path

from fragile_lib.study.collect import collect
from fragile_lib.study.pages import page_path
from fragile_lib.study.params import Spec
from fragile_lib.study.plan import RESTORED_PROFILES, Job, make_plan
from fragile_lib.tools.errors import bad_input


def check_publishable(profile: str) -> None:
    """Raise InputError for a profile too small to stand as the study of record."""
    if profile not in RESTORED_PROFILES:
        remedy = f"is never published; reports/ holds the study of record, run {' or '.join(RESTORED_PROFILES)}"
        raise bad_input("profile", profile, remedy)


def publish(root: Path, profile: str, chosen: dict[str, Spec]) -> list[str]:
    """Copy records, failures and pages of the chosen notebooks to reports/, build results.csv; return what is told.

    A run that is not finished keeps its older published record, if any, and is named; runs that are in no grid any
    more are removed (git keeps them). The table is made from the published records, so the two always agree.
    """
    check_publishable(profile)
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
            _copy(page, reports / "pages" / page.name)
    _, unread = collect(published_records(root, everything), reports / "results.csv")
    return told + unread


def published_records(root: Path, jobs: list[Job]) -> list[Path]:
    """Return the published records in the order of the grids."""
    paths = (root / "reports" / "records" / job.run.run_id / "result.json" for job in jobs)
    return [path for path in paths if path.exists()]


def _publish_run(job: Job, reports: Path) -> list[str]:
    target = reports / "records" / job.run.run_id
    state = job.state
    if state == "finished":
        for name in ("result.json", "params.yaml"):
            _copy(job.directory / name, target / name)
        (target / "failure.json").unlink(missing_ok=True)
        return []
    if (job.directory / "failure.json").exists():
        _copy(job.directory / "failure.json", target / "failure.json")
    kept = "; its older record stays" if (target / "result.json").exists() else ""
    return [f"{job.run.run_id}: {state}, not published{kept}"]


def _copy(source: Path, target: Path) -> None:
    """Copy a file unless it is there already with the same content."""
    if target.exists() and target.read_bytes() == source.read_bytes():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)
