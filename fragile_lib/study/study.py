"""The whole study of a profile, in order: check, run, collect, pages, report, publish."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from fragile_lib.study import engine
from fragile_lib.study.files import profile_dir
from fragile_lib.study.params import Spec
from fragile_lib.study.plan import Job, prepare, validated
from fragile_lib.study.publish import collect_profile, publish
from fragile_lib.tools.processes import OWNERS, end_tree

# Published as soon as it has run; a profile of larger scale takes its place only by the command `publish`.
OF_RECORD = "laptop"


def say(*lines: str) -> None:
    """Print lines at once, also into a pipe."""
    for line in lines:
        print(line, flush=True)


def run_study(root: Path, profile: str, notebook: str | None, cores: int, only_runs: bool = False) -> int:
    """Run a profile and report it; return the number of runs and pages that failed (they are named at the end).

    Raises InputError before anything is written; KeyboardInterrupt with all finished results kept.
    """
    chosen = validated(root, profile, notebook)
    with engine.lock(root, profile):
        jobs, told = prepare(root, profile, notebook)
        say(*told)
        engine.run_grid(root, jobs, cores, notebook, say)
        problems = [f"{job.run.run_id}: {reason_of(job)}" for job in jobs if job.state != "finished"]
        problems += [] if only_runs else report_study(root, profile, chosen, cores)
    say(*(f"failed: {problem}" for problem in problems))
    if problems:
        say(f"{len(problems)} failed; what finished is kept, and the same command runs only the rest")
    return len(problems)


def reason_of(job: Job) -> str:
    """Return why a run is not finished."""
    try:
        failure = json.loads((job.directory / "failure.json").read_text(encoding="utf-8"))
        return failure["message"] if failure.get("fingerprint") == job.fingerprint else "it was not run"
    except (OSError, ValueError, KeyError):
        return "it ended without a result"


def report_study(root: Path, profile: str, chosen: dict[str, Spec], cores: int) -> list[str]:
    """Collect, execute the pages, build the report, publish where the profile is of record; return what failed."""
    say(*collect_profile(root, profile))
    problems = run_pages(root, profile, chosen, cores)
    home = profile_dir(root, profile)
    try:
        say(build(root, home, home / "report"))
        if profile == OF_RECORD:
            say(*publish(root, profile, chosen), build(root, root / "reports", root / "reports"))
    except Exception as error:  # a fault in the report must not hide that the runs are done
        problems.append(f"report of {profile}: {type(error).__name__}: {error}")
    return problems


def run_pages(root: Path, profile: str, chosen: dict[str, Spec], cores: int) -> list[str]:
    """Bring the pages up to date, each in a process of its own, on `cores` cores; return what failed.

    A page that computes with several threads has as many cores to itself: two such side by side wait for each other.
    """
    command = [sys.executable, "-m", "fragile_lib.study", "pages", "--profile", profile, "--notebook"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    pipes["env"] = {**os.environ, OWNERS: str(os.getpid()), "FRAGILE_ROOT": str(root)}
    pages = [spec for spec in chosen.values() if spec.page is not None]
    problems: list[str] = []
    for threads in sorted({spec.limits["threads"] for spec in pages}):
        names = [spec.notebook for spec in pages if spec.limits["threads"] == threads]
        with ThreadPoolExecutor(max(1, cores // threads)) as pool:
            try:
                for call in pool.map(lambda name: subprocess.run([*command, name], **pipes), names):
                    last = (call.stdout.strip().splitlines() or ["the page's process ended without a word"])[-1]
                    say(last)
                    problems += [last.removeprefix("error: ").removeprefix("failed: ")] if call.returncode else []
            finally:
                for process in psutil.Process().children():
                    end_tree(process)
    return problems


def build(root: Path, source: Path, out: Path) -> str:
    """Build the HTML report of a study; return where to open it, in words."""
    from fragile_lib.study.report import build_report

    return f"report: open {build_report(source, out, root / 'params').resolve().as_uri()}"
