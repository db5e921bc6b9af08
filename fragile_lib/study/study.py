"""The whole study of a profile, in order: check, run, collect, pages, report, publish.

Snakemake is the engine of a grid: started, watched, and ended together with the study. One study at a time works on a
profile. That is kept by a lock on `runs/.<profile>.lock` which the operating system frees when its holder ends in
whatever way, so after `kill -9` there is nothing to unlock by hand. Snakemake's own lock would stay behind and cannot
tell whether its owner lives, so it is switched off (`--nolock`) in this use; who calls the Snakefile directly, on a
cluster say, has it as usual.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from fragile_lib.study.collect import collect
from fragile_lib.study.execute import spare_the_grammar
from fragile_lib.study.files import PACKED, packed_text, profile_dir, shown, stored, write_packed
from fragile_lib.study.notebook_file import as_json, read_notebook, taken_out
from fragile_lib.study.params import Spec, load_specs, planned
from fragile_lib.study.plan import CARD, RESTORED_PROFILES, Job, make_plan, prepare, standing, validated
from fragile_lib.study.record_file import packed, read_record
from fragile_lib.study.run import page_path
from fragile_lib.tools.errors import require
from fragile_lib.tools.files import dump_yaml, json_text, locked, write_if_changed
from fragile_lib.tools.processes import OWNERS, ending_children, say

# Published as soon as it has run; a profile of larger scale takes its place only by the command `publish`.
OF_RECORD = "laptop"
NEWS = re.compile(r"(finished|failed) ([A-Za-z0-9._-]+)(?:: | )(.*)")


def run_study(root: Path, profile: str, notebook: str | None, cores: int, only_runs: bool = False) -> int:
    """Run a profile and report it; return the number of runs and pages that failed (they are named at the end).

    Raises InputError before anything is written, also where a living study holds the profile; KeyboardInterrupt with
    all finished results kept.
    """
    chosen = validated(root, profile, notebook)
    held = root / "runs" / f".{profile}.lock"
    with locked(held, "profile", profile, "is being run by {}; wait for it or end it"):
        jobs, told = prepare(root, profile, notebook)
        say(*told)
        said = run_grid(root, jobs, cores, notebook)
        failed = [job for job in jobs if job.state != "finished"]
        problems = [f"{job.run.run_id}: {said.get(job.run.run_id) or reason_of(job)}" for job in failed]
        problems += [] if only_runs else report_study(root, profile, chosen, cores)
    say(*(f"failed: {problem}" for problem in problems))
    if problems:
        say(f"{len(problems)} failed; what finished is kept, and the same command runs only the rest")
    return len(problems)


def start(root: Path, *words: str) -> subprocess.Popen[str]:
    """Start a program of this Python's, which ends when this process does; what it says comes through a pipe."""
    environment = {**os.environ, OWNERS: str(os.getpid()), "FRAGILE_ROOT": str(root), "PYTHONUNBUFFERED": "1"}
    environment |= {"TQDM_DISABLE": "1", "PYTHONHASHSEED": "0"}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, "-m", *words], text=True, errors="replace", env=environment, **pipes)


def finish(root: Path, *words: str, seconds: float | None = None) -> str:
    """Run one command of the study to its end, say its last words, and return them where it failed.

    Raises TimeoutExpired where it runs longer than `seconds`; it is then still running.
    """
    process = start(root, "fragile_lib.study", *words)
    said = (process.communicate(timeout=seconds)[0].strip().splitlines() or [f"{words[0]} ended without a word"])[-1]
    say(said)
    return said.removeprefix("error: ").removeprefix("failed: ") if process.returncode else ""


def run_grid(root: Path, jobs: list[Job], cores: int, notebook: str | None) -> dict[str, str]:
    """Run the unfinished jobs of one profile, telling of each; return what those said that failed, by run.

    On KeyboardInterrupt all processes are ended before it is raised again; what was finished stays finished.
    """
    pending = {job.run.run_id for job in jobs if job.state != "finished"}
    done, total, begun, said = len(jobs) - len(pending), len(jobs), time.monotonic(), {}
    if not pending:
        say(f"[{done} of {total}] all runs are up to date")
        return said
    say(f"[{done} of {total}] finished already; {len(pending)} to run, {min(cores, len(pending))} at a time")
    profile = jobs[0].run.profile
    # A study on toy parameters (FRAGILE_ROOT) has no workflow of its own and takes the project's.
    home = root if (root / "workflow" / "Snakefile").exists() else Path(__file__).resolve().parents[2]
    words = ["snakemake", "--snakefile", str(home / "workflow" / "Snakefile")]
    words += ["--workflow-profile", str(home / "workflow" / "profiles" / "default"), "--directory", str(root)]
    words += ["--cores", str(cores), "--nolock", "--quiet", "all", "--config", f"profile={profile}"]
    words += [f"notebook={notebook}"] if notebook else []
    log = profile_dir(root, profile) / "snakemake.log"
    with ending_children(), log.open("w", encoding="utf-8") as handle:
        process = start(root, *words)
        for line in process.stdout:  # type: ignore[union-attr]
            handle.write(line)
            handle.flush()
            match = NEWS.match(line)
            if match and match[2] in pending:
                said[match[2]] = match[3] if match[1] == "failed" else ""
                done += match[1] == "finished"
                say(f"[{done} of {total}] {line.rstrip()}")
        process.wait()
    done = sum(job.state == "finished" for job in jobs)
    say(f"[{done} of {total}] finished in {time.monotonic() - begun:.0f} s")
    if process.returncode and not said:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-20:])
        say(f"Snakemake ended with exit code {process.returncode} and ran nothing; {shown(log, root)} ends:\n{tail}")
    return said


def cells(root: Path, profile: str, notebook: str | None, seconds: float) -> int:
    """Run as many runs as some seconds allow, one after the other, with little more than torch.

    In the order of the grids, each in a process of its own and its record in place as it ends: so a short time on a
    card yields whole records. A run that the seconds did not suffice for is ended, and begins anew with the next call;
    what is finished is not run again. Returns how many runs failed.

    Raises:
        InputError: seconds that are not above 0, an unknown profile or notebook, or bad parameters.
    """
    require(seconds > 0, "seconds", seconds, "give a number above 0")
    ends, jobs = time.monotonic() + seconds, prepare(root, profile, notebook)[0]
    pending, failed = [job for job in jobs if job.state != "finished"], 0
    say(f"{len(jobs) - len(pending)} of {len(jobs)} finished already")
    for job in pending:
        if (left := ends - time.monotonic()) <= 0:
            break
        with ending_children():
            try:
                failed += bool(finish(root, "execute", "--plain", str(job.directory), seconds=left))
            except subprocess.TimeoutExpired:
                say(f"{job.run.run_id} was not finished in the {left:.0f} s that were left")
                break
    still_open = [job.run.run_id for job in jobs if job.state != "finished"]
    say(f"open: {', '.join(still_open)}" if still_open else "all are finished")
    return failed


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
    pages, problems = [spec for spec in chosen.values() if spec.page is not None], []
    page = partial(finish, root, "pages", "--profile", profile, "--notebook")
    for threads in sorted({spec.limits["threads"] for spec in pages}):
        names = [spec.notebook for spec in pages if spec.limits["threads"] == threads]
        with ThreadPoolExecutor(max(1, cores // threads)) as pool, ending_children():
            problems += filter(None, pool.map(page, names))
    return problems


def build(root: Path, source: Path, out: Path) -> str:
    """Build the HTML report of a study; return where to open it, in words."""
    spare_the_grammar()  # that nbconvert's filters would compile
    from fragile_lib.study.report import build_report

    return f"report: open {build_report(source, out, root / 'params').resolve().as_uri()}"


def collect_profile(root: Path, profile: str) -> list[str]:
    """Write runs/<profile>/results.csv from all finished runs of all notebooks; return what is to be told."""
    jobs, finished, told = make_plan(root, profile), [], []
    for job in jobs:
        state, fault = standing(job.record, job.fingerprint)
        if state == "finished":
            finished.append(job.record)
        elif state != "missing":
            fault = fault or "its result is of other parameters or code"
            told.append(f"left out of the table: {job.run.run_id}: {fault}")
    target = profile_dir(root, profile) / "results.csv"
    count, unread = collect(finished, target)
    return [*told, *unread, f"{shown(target, root)}: {count} of {len(jobs)} runs"]


def publish(root: Path, profile: str, chosen: dict[str, Spec]) -> list[str]:
    """Copy records, failures and pages of the chosen notebooks to reports/, build results.csv; return what is told.

    A run that is not finished keeps its older published record, if any, and is named; runs that are in no grid any
    more are removed (git keeps them). Cells of `CARD` stay beside those of record, and these beside them. The table is
    made from the published records, so the two always agree. Raises
    InputError for a profile too small to stand as the study of record.
    """
    remedy = f"is never published; reports/ holds the study of record, run {' or '.join(RESTORED_PROFILES)}"
    require(profile in RESTORED_PROFILES, "profile", profile, remedy)
    reports, jobs = root / "reports", make_plan(root, profile)
    told = [line for job in jobs if job.run.notebook in chosen for line in _publish_run(job, reports)]
    names = planned(load_specs(root / "params"), profile, OF_RECORD if profile == CARD else CARD)
    for folder in sorted((reports / "records").glob("*")):
        if folder.is_dir() and folder.name not in names:
            shutil.rmtree(folder)
            told.append(f"{folder.name}: in no grid any more, removed from reports/records")
    for name, spec in chosen.items():
        page = page_path(root, profile, name)
        if spec.page is not None and page.exists():
            executed = taken_out(read_notebook(page, root), name, reports)
            write_if_changed(reports / "pages" / page.name, as_json(executed))
    return told + collect_published(root)


def collect_published(root: Path) -> list[str]:
    """Make reports/results.csv.xz from the published records, in the order of the grids; return what is to be told.

    The plain table is left beside it, for who ran the command; git ignores it.
    """
    names = planned(load_specs(root / "params"), *RESTORED_PROFILES)
    paths = [root / "reports" / "records" / name / "result.json" for name in names]
    paths, table = [path for path in paths if stored(path).exists()], root / "reports" / "results.csv"
    if not paths:
        return []
    told = collect(paths, table)[1]
    packed_table = table.with_name(table.name + PACKED)
    write_if_changed(packed_table, packed_text(table.read_text(encoding="utf-8"), packed_table))
    return told


def _publish_run(job: Job, reports: Path) -> list[str]:
    target, state = reports / "records" / job.run.run_id, job.state
    if state == "finished":
        write_if_changed(target / "params.yaml", dump_yaml(job.run.parameters))
        write_packed(target / "result.json", json_text(packed(read_record(job.record))))
        (target / "failure.json").unlink(missing_ok=True)
        return []
    if (job.directory / "failure.json").exists():
        write_if_changed(target / "failure.json", (job.directory / "failure.json").read_bytes())
    kept = "; its older record stays" if stored(target / "result.json").exists() else ""
    return [f"{job.run.run_id}: {state}, not published{kept}"]
