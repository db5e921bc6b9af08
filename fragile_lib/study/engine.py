"""Snakemake as the engine of a grid: started, watched, and ended together with the study.

One study at a time works on a profile. That is kept by a lock on `runs/.<profile>.lock` which the operating system
frees when its holder ends in whatever way, so after `kill -9` there is nothing to unlock by hand. Snakemake's own
lock would stay behind and cannot tell whether its owner lives, so it is switched off (`--nolock`) in this use; who
calls the Snakefile directly, on a cluster say, has it as usual.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from fragile_lib.study.files import profile_dir, shown
from fragile_lib.study.plan import Job
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.processes import OWNERS, end_tree

WORKFLOW = Path("workflow")
NEWS = re.compile(r"(finished|failed) ([A-Za-z0-9._-]+)\b.*")


def default_jobs() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def lock(root: Path, profile: str) -> Iterator[None]:
    """Hold a profile for this process; raise InputError where a living study holds it."""
    path = root / "runs" / f".{profile}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            holder = f"process {handle.read().strip() or '(unknown)'}"
            raise bad_input("profile", profile, f"is being run by {holder}; wait for it or end it") from None
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield
        handle.truncate(0)


def command(root: Path, profile: str, notebook: str | None, jobs: int) -> list[str]:
    """Return the Snakemake command of a profile's grid."""
    # A study on toy parameters (FRAGILE_ROOT) has no workflow of its own and takes the project's.
    home = root if (root / WORKFLOW / "Snakefile").exists() else Path(__file__).resolve().parents[2]
    config = [f"profile={profile}", *([f"notebook={notebook}"] if notebook else [])]
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(home / WORKFLOW / "Snakefile")),
        *("--workflow-profile", str(home / WORKFLOW / "profiles" / "default")),
        *("--directory", str(root), "--cores", str(jobs), "--nolock", "--quiet", "all", "--config", *config),
    ]


def run_grid(root: Path, jobs: list[Job], cores: int, notebook: str | None, tell: Callable[[str], None]) -> None:
    """Run the unfinished jobs of one profile and tell of each; what failed is left to be read from the runs' folders.

    On KeyboardInterrupt all processes are ended before it is raised again; what was finished stays finished.
    """
    pending = {job.run.run_id for job in jobs if job.state != "finished"}
    done, total, begun = len(jobs) - len(pending), len(jobs), time.time()
    if not pending:
        return tell(f"[{done} of {total}] all runs are up to date")
    tell(f"[{done} of {total}] finished already; {len(pending)} to run, {min(cores, len(pending))} at a time")
    profile = jobs[0].run.profile
    log = profile_dir(root, profile) / "snakemake.log"
    environment = {**os.environ, OWNERS: str(os.getpid()), "FRAGILE_ROOT": str(root), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    started = command(root, profile, notebook, cores)
    process = subprocess.Popen(started, text=True, errors="replace", env=environment, **pipes)
    news = 0
    try:
        with log.open("w", encoding="utf-8") as handle:
            for line in process.stdout:  # type: ignore[union-attr]
                handle.write(line)
                handle.flush()
                match = NEWS.match(line)
                if match and match[2] in pending:
                    news += 1
                    done += match[1] == "finished"
                    tell(f"[{done} of {total}] {line.rstrip()}")
        process.wait()
    finally:
        if process.poll() is None:
            end_tree(psutil.Process(process.pid))
            process.wait()
    done = sum(job.state == "finished" for job in jobs)
    tell(f"[{done} of {total}] finished in {time.time() - begun:.0f} s")
    if process.returncode and not news:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-20:])
        tell(f"Snakemake ended with exit code {process.returncode} and ran nothing; {shown(log, root)} ends:\n{tail}")
