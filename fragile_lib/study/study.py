"""The whole study of a profile, in order: check, run, collect, pages, report, publish."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from fragile_lib.study import engine
from fragile_lib.study.collect import collect
from fragile_lib.study.files import profile_dir, shown
from fragile_lib.study.params import Spec
from fragile_lib.study.plan import RESTORED_PROFILES, Job, make_plan, prepare, validated
from fragile_lib.study.publish import publish, published_records
from fragile_lib.study.run import OWNERS

# Published as soon as it has run; a profile of larger scale takes its place only by the command `publish`.
OF_RECORD = "laptop"


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def run_study(root: Path, profile: str, notebook: str | None, cores: int, only_runs: bool = False) -> int:
    """Run a profile and report it; return the number of runs and pages that failed (they are named at the end).

    Raises InputError before anything is written; KeyboardInterrupt with all finished results kept.
    """
    chosen = validated(root, profile, notebook)
    with engine.lock(root, profile) as held:
        jobs, told = prepare(root, profile, notebook)
        for line in told:
            say(line)
        engine.run_grid(root, jobs, cores, held, notebook, say)
        problems = [problem for job in jobs if (problem := failure_of(job))]
        problems += [] if only_runs else report_study(root, profile, chosen, cores)
    for problem in problems:
        say(f"failed: {problem}")
    if problems:
        say(f"{len(problems)} failed; what finished is kept, and the same command runs only the rest")
    return len(problems)


def failure_of(job: Job) -> str | None:
    """Return the name of an unfinished run with its reason, or None."""
    if job.state == "finished":
        return None
    try:
        failure = json.loads((job.directory / "failure.json").read_text(encoding="utf-8"))
        reason = failure["message"] if failure.get("fingerprint") == job.fingerprint else "it was not run"
    except (OSError, ValueError, KeyError):
        reason = "it ended without a result"
    return f"{job.run.run_id}: {reason}"


def report_study(root: Path, profile: str, chosen: dict[str, Spec], cores: int) -> list[str]:
    """Collect, execute the pages, build the report, publish where the profile is of record; return what failed."""
    collect_profile(root, profile)
    problems = run_pages(root, profile, chosen, cores)
    home = profile_dir(root, profile)
    try:
        places = [(home, home / "report")]
        if profile == OF_RECORD:
            for line in publish(root, profile, chosen):
                say(line)
            places.append((root / "reports", root / "reports"))
        for source, out in places:
            say(f"report: open {build(root, source, out).resolve().as_uri()}")
    except Exception as error:  # a fault in the report must not hide that the runs are done
        problems.append(f"report of {profile}: {type(error).__name__}: {error}")
    return problems


def collect_profile(root: Path, profile: str) -> int:
    """Write runs/<profile>/results.csv from all finished runs of all notebooks; return their number."""
    jobs = make_plan(root, profile)
    states = {job.run.run_id: job.state for job in jobs}
    finished = [job.directory / "result.json" for job in jobs if states[job.run.run_id] == "finished"]
    for job in jobs:
        if states[job.run.run_id] != "finished" and (job.directory / "result.json").exists():
            say(f"left out of the table: {job.run.run_id}, its result is of other parameters or code")
    target = profile_dir(root, profile) / "results.csv"
    count, told = collect(finished, target)
    for line in told:
        say(line)
    say(f"{shown(target, root)}: {count} of {len(jobs)} runs")
    return count


def run_pages(root: Path, profile: str, chosen: dict[str, Spec], cores: int) -> list[str]:
    """Bring the pages up to date, each in a process of its own, on `cores` cores; return what failed.

    A page that computes with several threads has as many cores to itself: two such side by side wait for each other.
    """
    environment = {**os.environ, OWNERS: str(os.getpid()), "FRAGILE_ROOT": str(root)}
    waiting = {name: spec.limits["threads"] for name, spec in chosen.items() if spec.page is not None}
    running: dict[subprocess.Popen[str], int] = {}
    problems = []
    try:
        while waiting or running:
            free = cores - sum(running.values())
            while name := next((name for name, threads in waiting.items() if threads <= free or not running), None):
                command = [sys.executable, "-m", "fragile_lib.study", "pages", "--profile", profile, "--notebook", name]
                pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
                threads = waiting.pop(name)
                running[subprocess.Popen(command, text=True, env=environment, **pipes)] = threads
                free -= threads
            done = next((process for process in running if process.poll() is not None), None)
            if done is None:
                time.sleep(0.1)
                continue
            del running[done]
            last = (done.communicate()[0].strip().splitlines() or ["the page's process ended without a word"])[-1]
            say(last)
            if done.returncode:
                problems.append(last.removeprefix("error: ").removeprefix("failed: "))
    finally:
        for process in running:
            engine.end_tree(psutil.Process(process.pid))
    return problems


def build(root: Path, source: Path, out: Path) -> Path:
    """Build the HTML report of a study; return its index."""
    from fragile_lib.study.report import build_report

    return build_report(source, out, root / "params")


def rebuild_published(root: Path) -> Path:
    """Render reports/ again from the committed records, without a run; return its index."""
    jobs: dict[str, Job] = {}
    for job in (job for profile in RESTORED_PROFILES for job in plan_if_any(root, profile)):
        jobs.setdefault(job.run.run_id, job)  # in the order in which a profile publishes its runs
    paths = published_records(root, list(jobs.values()))
    if paths:
        _, told = collect(paths, root / "reports" / "results.csv")
        for line in told:
            say(line)
    return build(root, root / "reports", root / "reports")


def plan_if_any(root: Path, profile: str) -> list[Job]:
    """Return the plan of a profile, empty where no notebook has it."""
    specs = validated_all(root)
    return make_plan(root, profile) if any(profile in spec.profiles for spec in specs.values()) else []


def validated_all(root: Path) -> dict[str, Spec]:
    """Return all specs, checked."""
    from fragile_lib.study.params import load_specs

    return load_specs(root / "params")
