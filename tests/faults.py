"""Break grids in every way that is known, and compare what comes of them with an undisturbed one: `make test-faults`.

    python tests/faults.py [--kills N] [--seed S] [SCENARIO ...]

A toy notebook stands for the study: runs of about a second, twenty of them, each in a kernel of its own. After every
fault the same command is given again until all runs are finished. Then every record must equal the undisturbed one but
for times, none may be missing or stand twice in the table, and no process or lock may be left. Scenarios, which wait
more than they compute, run side by side, each with a study of its own.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil

sys.path.insert(0, str(Path(__file__).parent / "study"))
from toy import CELLS, QUICK_GRID, Toy, wait_for  # noqa: E402

from fragile_lib.study.plan import make_plan, prepare  # noqa: E402
from fragile_lib.study.record_file import read_record  # noqa: E402

TIMES = ("started", "finished", "seconds", "seconds_total", "orchestration_seconds", "peak_memory_mb", "digest")
RUNS = 20
MINUTES = 10  # that a study may take at most before it counts as hanging
BESIDE = 3  # scenarios side by side
Expected = Callable[[], dict[str, dict]]  # the undisturbed records, when they are there
WORK = """
import resource, time
end = time.monotonic() + 0.5
while time.monotonic() < end or (mode == "hold" and os.path.exists("hold")):
    time.sleep(0.05)
if mode == "memory" and os.path.exists("hold"):
    resource.setrlimit(resource.RLIMIT_AS, (8 * 10**9, 8 * 10**9))
    bytearray(16 * 10**9)
"""
# Loaded by every Python of a study, when this folder is on its path: a kill at an exact place, a clock that jumps.
CUSTOMIZE = """
import os, random, signal, time
marks = os.environ.get("FAULT_MARKS")
if marks:
    replace = os.replace
    def replaced(source, target, **more):
        aimed = os.path.basename(source) == "result.json" and ".partial-" not in str(target)
        place = os.path.join(marks, os.path.basename(os.path.dirname(target)))
        if aimed and not os.path.exists(place):  # once for each run: before its record is in place, or right after
            open(place, "w").close()
            if hash(place) % 2:
                replace(source, target, **more)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target, **more)
    os.replace = replaced
if os.environ.get("FAULT_CLOCK"):
    now = time.time
    time.time = lambda: now() + random.uniform(-1e5, 1e5)
"""


class Grid(Toy):
    """A toy study with a folder of customizations beside it."""

    def __init__(self, root: Path, runs: int = RUNS, mode: str = "ok") -> None:
        super().__init__(root / "study")
        self.custom = root / "custom"
        (self.custom / "marks").mkdir(parents=True)
        (self.custom / "sitecustomize.py").write_text(CUSTOMIZE)
        self.environment["PYTHONPATH"] = f"{self.custom}:{os.environ.get('PYTHONPATH', '')}"
        self.write_notebook(CELLS | {"work": WORK})
        self.edit("silent]", "silent, memory]")
        self.edit(QUICK_GRID, f"quick:\n    grids: {{all: {{depth: {list(range(1, runs + 1))}, mode: [{mode}]}}}}")

    def start(self, *more: str, **environment: str) -> subprocess.Popen:
        """Start the study in a session of its own; what it says goes to a file."""
        heed = ["env", "--default-signal=INT,HUP"]  # which a shell's background or nohup has children ignore
        with (self.root / "said").open("a") as said:
            pipes = {"stdout": said, "stderr": said, "stdin": subprocess.DEVNULL}
            words = [*heed, *self.command("run", "--only-runs", "--jobs", "2", *more)]
            return subprocess.Popen(words, env=self.environment | environment, **pipes)

    def run(self, *more: str, **environment: str) -> tuple[int, str]:
        """Run the study to its end; return its exit code and what it said."""
        before = self.said()
        code = self.start(*more, **environment).wait(MINUTES * 60)
        return code, self.said()[len(before) :]

    def said(self) -> str:
        """Return all that the study said."""
        return (self.root / "said").read_text() if (self.root / "said").exists() else ""

    def records(self, profile: str = "quick") -> dict[str, dict]:
        """Return what each finished record says, but for times."""
        jobs = [job for job in make_plan(self.root, profile) if job.state == "finished"]
        found = {job.run.run_id: read_record(job.record) for job in jobs}
        return {name: {k: v for k, v in record.items() if k not in TIMES} for name, record in found.items()}


def check_quiet(grid: Grid) -> None:
    """No process is left after a few seconds, and no lock."""
    with suppress(AssertionError):
        wait_for(lambda: not grid.processes(), "the study's processes end")
    assert not (left := grid.processes()), f"still there: {left}"
    locks = [path for path in (grid.root / "runs").glob(".*.lock") if path.read_text()]
    if locks:  # a killed study leaves its name in the file; the lock itself is free
        assert subprocess.run(["flock", "-n", *map(str, locks), "true"]).returncode == 0, locks


def check_whole(grid: Grid, expected: Expected, profile: str = "quick") -> None:
    """Every run has its record, which equals the undisturbed one; the table holds each once; nothing is left."""
    check_quiet(grid)
    found = grid.records(profile)
    planned = {job.run.run_id for job in make_plan(grid.root, profile)}
    assert set(found) == planned, f"missing: {sorted(planned - set(found))}"
    for name in planned:
        assert found[name] == {**expected()[name], "profile": profile}, f"{name} differs from the undisturbed grid's"
    collected = grid.call("collect", "--profile", profile)
    assert collected.returncode == 0, collected.stderr
    rows = (grid.root / "runs" / profile / "results.csv").read_text().splitlines()[1:]
    assert len(rows) == len(set(rows)) == 2 * len(planned), "rows are missing or stand twice"
    left = [p for name in planned for p in grid.run_dir(name, profile).iterdir() if p.name.startswith(".partial")]
    assert not left, left


def finish(grid: Grid, times: int = 5, **environment: str) -> str:
    """Give the same command until all runs are finished; return what was said last."""
    for _ in range(times):
        code, said = grid.run(**environment)
        if code == 0:
            return said
    raise AssertionError(f"not finished after {times} more calls: {said[-2000:]}")


ROLES = {  # each with a word of its command line, and how often it is killed beside the others
    "scheduler": ("--nolock", 1),
    "papermill": ("execute", 2),
    "kernel": ("fragile_lib.study.sources", 3),
    "study": ("--only-runs", 0),  # a fifth as often as the three together
}


def undisturbed(place: Path, _: Expected, __: argparse.Namespace) -> dict[str, dict]:
    """The records that all others must equal."""
    finish(grid := Grid(place))
    assert len(found := grid.records()) == RUNS
    return found


def kills(place: Path, expected: Expected, asked: argparse.Namespace) -> str:
    """Random SIGKILLs of scheduler, papermill, kernel and study, and aimed ones between and after the two renames."""
    grid, draw, done = Grid(place), random.Random(asked.seed), Counter()
    environment = {"FAULT_MARKS": str(grid.custom / "marks"), "PYTHONHASHSEED": "0"}
    process, starts = grid.start(**environment), 1
    roles = draw.choices(list(ROLES), [often for _, often in ROLES.values()], k=asked.kills)
    roles += ["study"] * (asked.kills // 5)
    draw.shuffle(roles)
    for role in roles:
        before = done[role]
        while done[role] == before:
            if process.poll() is not None:
                assert process.returncode, "all runs were finished before there were enough kills"
                check_quiet(grid)
                process, starts = grid.start(**environment), starts + 1
            time.sleep(draw.uniform(0.05, 1))
            with suppress(psutil.Error, IndexError):  # none is there, or it has just ended
                draw.choice(grid.processes(ROLES[role][0])).kill()
                done[role] += 1
    process.wait(MINUTES * 60)
    finish(grid, **environment, times=RUNS)
    aimed = len(list((grid.custom / "marks").iterdir()))
    assert aimed >= RUNS // 2, f"only {aimed} aimed kills"
    check_whole(grid, expected)
    told = ", ".join(f"{count} of {role}" for role, count in sorted(done.items()))
    return f"{sum(done.values())} random ({told}) and {aimed} aimed; {starts} starts"


def signals(place: Path, expected: Expected, _: argparse.Namespace) -> str:
    """SIGTERM, SIGINT and SIGHUP to the study while runs compute: it ends with all that it started."""
    grid, ends = Grid(place, 4), []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process = grid.start()
        wait_for(lambda: grid.processes("fragile_lib.study.sources"), "a kernel", 300)
        process.send_signal(number)
        begun = time.monotonic()
        assert process.wait(60) == 130, f"{number.name}: exit code {process.returncode}"
        check_quiet(grid)
        ends.append(time.monotonic() - begun)
        assert "interrupted; what finished is kept" in grid.said().splitlines()[-1]
    finish(grid)
    check_whole(grid, expected)
    return f"ended with all processes within {max(ends):.1f} s"


def several(place: Path, expected: Expected, _: argparse.Namespace) -> str:
    """Three studies of one profile and one of another at once: one of the three runs, the two others are refused."""
    grid = Grid(place, 4)
    grid.edit("set: {seeds: [0, 1, 2]}\n    grids: {depths: {depth: [1, 2]}}", "grids: {all: {depth: [1, 2]}}")
    three, other = [grid.start() for _ in range(3)], grid.start("--profile", "laptop")
    codes = sorted(process.wait(MINUTES * 60) for process in three)
    assert codes == [0, 2, 2], f"{codes}\n{grid.said()}"
    assert (code := other.wait(MINUTES * 60)) == 0, f"the other profile: exit code {code}\n{grid.said()}"
    assert (refused := grid.said().count("is being run by process")) == 2, f"{refused} refused\n{grid.said()}"
    for profile in ("quick", "laptop"):
        check_whole(grid, expected, profile)
    return "three of one profile, one of another: two refused, both profiles whole"


@contextmanager
def own_disk(grid: Grid, size: str):
    """A small disk in the place of the study's runs; yields a call that mounts it anew, with other options."""
    runs = grid.root / "runs"
    runs.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", runs], capture_output=True).returncode:
        yield None
        return
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", runs], check=True)
    finally:
        subprocess.run(["umount", runs], check=True)


def full_disk(place: Path, expected: Expected, _: argparse.Namespace) -> str:
    """A disk that is full before, and one that fills up during, the grid: the reason is named, then all is finished."""
    grid = Grid(place, 6)
    with own_disk(grid, "100k") as remount:
        if remount is None:
            return "skipped: no right to mount a small disk"
        code, said = grid.run()
        assert code == 1 and ("disk is full" in said or "No space left" in said), said
        failed = [line for line in said.splitlines() if line.startswith("failed: ")]
        assert all("disk is full" in line or "No space left" in line for line in failed), said
        held = len(grid.records())
        remount("size=100m")
        finish(grid)
        check_whole(grid, expected)
    return f"{held} of 6 finished on a small disk, the reason named for each of the others, then all"


def read_only(place: Path, expected: Expected, _: argparse.Namespace) -> str:
    """A folder of runs that cannot be written, and one run's folder that cannot."""
    grid = Grid(place, 2)
    with own_disk(grid, "100m") as remount:
        if remount is None:
            return "skipped: no right to mount a disk"
        remount("ro")
        code, said = grid.run()
        assert code == 1 and said.count("\n") == 1 and "Read-only file system" in said and "rights" in said, said
        remount("rw")
        prepare(grid.root, "quick")
        one = grid.run_dir("toy-d1")
        subprocess.run(["mount", "--bind", one, one], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", one], check=True)
            code, said = grid.run()
        finally:
            subprocess.run(["umount", one], check=True)
        assert code == 1 and set(grid.records()) == {"toy-d2"}, said
        assert re.search(r"^failed: toy-d1: .*Read-only file system.*rights$", said, re.M), said
        finish(grid)
        check_whole(grid, expected)
    return "named in one line, one run's folder stops no other, then all"


def memory(place: Path, expected: Expected, _: argparse.Namespace) -> str:
    """A kernel that is refused the memory it asks for says so, and what to do."""
    grid = Grid(place, 2, "memory")
    (grid.notebook.parent / "hold").touch()
    code, said = grid.run()
    assert code == 1 and said.count("failed: toy-d") == 2, said
    assert "the memory was not enough (MemoryError: )" in said and "fewer side by side" in said, said
    check_quiet(grid)
    (grid.notebook.parent / "hold").unlink()
    finish(grid)
    check_quiet(grid)
    assert len(grid.records()) == 2
    return "named with a remedy, then all"


def clock(place: Path, expected: Expected, _: argparse.Namespace) -> str:
    """A clock that is set back and forth by up to a day at every look, and files from the future."""
    grid = Grid(place, 3)
    grid.call("list")
    finish(grid, FAULT_CLOCK="1")
    for job in make_plan(grid.root, "quick"):
        record = read_record(job.record)
        assert 0 < record["seconds"] < record["seconds_total"] < 600, "elapsed times follow the clock"
        ahead = time.time() + 86_400
        os.utime(job.directory / ".job.json", (ahead, ahead))
    code, said = grid.run(FAULT_CLOCK="1")
    assert code == 0 and "all runs are up to date" in said, said
    grid.edit("[1, 2, 3]", "[1, 2, 3, 4]")
    finish(grid)
    assert grid.said().count("finished toy-d") == 4, "runs were repeated"
    check_whole(grid, expected)
    return "elapsed times stay right, nothing is repeated"


def edits(place: Path, expected: Expected, _: argparse.Namespace) -> str:
    """Notebook and library edited while runs compute: no record of the new code under the old fingerprint."""
    refused = []
    for what, old, new in (("notebook", "1 / (1 + depth)", "9 / (1 + depth)"), ("library", "return 1", "return 2")):
        grid = Grid(place / what, 4, "hold")
        module, hold = grid.root / "fragile_lib" / "extra.py", grid.notebook.parent / "hold"
        module.parent.mkdir()
        module.write_text("def f():\n    return 1\n")
        grid.write_notebook(CELLS | {"work": f"if False:\n    from fragile_lib.extra import f\n    f()\n{WORK}"})
        path = grid.notebook if what == "notebook" else module
        text = path.read_text()
        hold.touch()
        process = grid.start()
        wait_for(lambda root=grid.root: len(list(root.glob("runs/quick/*/.partial-*/run.ipynb"))) >= 2, "two runs", 120)
        path.write_text(text.replace(old, new))
        hold.unlink()
        assert process.wait(MINUTES * 60) == 1
        assert not grid.records(), f"{sorted(grid.records())} are believed to be of the new code"
        path.write_text(text)
        kept = grid.records()  # what papermill had read before the edit is a record of the old code
        assert all(record["rows"] == expected()[name]["rows"] for name, record in kept.items())
        refused.append(4 - len(kept))
        finish(grid)
        check_quiet(grid)
        assert len(grid.records()) == 4
    return f"of four runs each {refused[0]} (notebook) and {refused[1]} (library) refused, none of unplanned code"


SCENARIOS = {f.__name__: f for f in (undisturbed, kills, edits, signals, full_disk, several, clock, memory, read_only)}


def main() -> int:
    """Run the scenarios; return 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; default all")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, ThreadPoolExecutor(BESIDE) as pool:

        def timed(name: str) -> tuple[str, float, object]:
            begun, place = time.monotonic(), Path(home) / name
            try:
                found = SCENARIOS[name](place, lambda: running["undisturbed"].result()[2], asked)
            except (AssertionError, subprocess.SubprocessError) as error:
                found = AssertionError(f"{error} [{traceback.extract_tb(error.__traceback__)[-1].line}]")
                for root in place.rglob("study"):
                    for process in Grid.processes(SimpleNamespace(root=root)):
                        process.kill()
            return name, time.monotonic() - begun, found

        running = {}
        for name in dict.fromkeys(["undisturbed", *(asked.scenarios or SCENARIOS)]):
            running[name] = pool.submit(timed, name)
        for future in as_completed(running.values()):
            name, seconds, found = future.result()
            failed += isinstance(found, Exception)
            said = f"{len(found)} runs" if isinstance(found, dict) else found
            print(f"{name:12} {seconds:4.0f} s  {'FAILED: ' * isinstance(found, Exception)}{said}", flush=True)
    print(f"{time.monotonic() - began:.0f} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
