"""The command line of the study: `python -m fragile_lib.study {list,run,cells,execute,collect,pages,...}`.

A command is a function: its name, its docstring, and its parameters but the root are what the command line asks for.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fragile_lib.study import study
from fragile_lib.study.execute import NotebookFailed
from fragile_lib.study.files import profile_dir, study_root
from fragile_lib.study.params import load_specs, select
from fragile_lib.study.plan import left_out, make_plan, validated
from fragile_lib.study.run import build_page
from fragile_lib.study.run import execute as execute_run
from fragile_lib.tools.errors import InputError, bad_input, require
from fragile_lib.tools.processes import end_with_owners, say

PROFILE = "quick (minutes), laptop (hours; the study of record), gpu or paper (the published scale); default quick"
OPTIONS = {
    "profile": {"default": "quick", "help": PROFILE},
    "notebook": {"help": "one notebook, e.g. iris; default all"},
    "jobs": {"help": "runs side by side; default the number of cores"},
    "only_runs": {"action": "store_true", "help": "stop after the runs: no table, pages, report"},
    "seconds": {"type": float, "default": 600.0, "help": "how long; a run is ended then, and not kept; default 600"},
    "plain": {"action": "store_true", "help": "its cells as plain Python, without papermill and figures"},
    "published": {"action": "store_true", "help": "reports/, from its committed records"},
    "run_dir": {"type": Path, "help": "its folder, e.g. runs/quick/iris-relu-d1-w5-wd0.005"},
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 1 where runs failed, 2 for bad input, 130 when interrupted."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    given: dict[str, object] = {}
    try:
        given = vars(parser().parse_args(arguments))
        asked = {name: value for name, value in given.items() if name != "command"}
        return 1 if COMMANDS[given["command"]](study_root(), **asked) else 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except OSError as error:
        print(f"error: {error}; free the disk or correct the rights, then run again", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        if given.get("command") == "run":
            say("interrupted; what finished is kept, and the same command runs only the rest")
        return 130


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are those of all other bad input."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        raise bad_input("command line", message, f"see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = Parser(prog="python -m fragile_lib.study", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for name, function in COMMANDS.items():
        text = inspect.getdoc(function).partition("\n")[0]
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        for option in list(inspect.signature(function).parameters)[1:]:
            name = option if option == "run_dir" else f"--{option.replace('_', '-')}"
            command.add_argument(name, **OPTIONS[option])
    return top


def list_(root: Path, profile: str, notebook: str | None) -> None:
    """Show the runs of a profile and how each stands; write nothing."""
    states = {job.run.run_id: job.state for job in make_plan(root, profile, notebook)}
    say(*(f"{state:10} {run_id}" for run_id, state in states.items()))
    say(f"{list(states.values()).count('finished')} of {len(states)} finished", *left_out(root, profile, notebook))


def run(root: Path, profile: str, notebook: str | None, jobs: str | None, only_runs: bool) -> int:
    """Run what is not up to date, then collect, execute pages, build the report."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = jobs or str(cores)
    remedy = "give an int, at least 1 and at most 9999, without leading zeros: the number of runs side by side"
    require(re.fullmatch("[1-9][0-9]{0,3}", text), "jobs", text, remedy)
    return study.run_study(root, profile, notebook, int(text), only_runs)


def execute(_: Path, plain: bool, run_dir: Path) -> int:
    """Execute one planned run (what Snakemake calls)."""
    run_id = run_dir.resolve().name
    return _attempt(f"finished {run_id} in {{:.1f}} s", f"failed {run_id}", execute_run, run_dir, plain)


def collect(root: Path, profile: str) -> None:
    """Write results.csv from the finished runs."""
    say(*study.collect_profile(root, profile))


def pages(root: Path, profile: str, notebook: str | None) -> int:
    """Execute the notebooks' pages that are not up to date."""
    chosen = [spec for spec in validated(root, profile, notebook).values() if spec.page is not None]
    given = [(f"page {spec.notebook}: {{}}", f"failed: page {spec.notebook}", spec) for spec in chosen]
    return sum(_attempt(told, failed, build_page, root, profile, spec) for told, failed, spec in given)


def _attempt(told: str, failed: str, work: Callable[..., object], *given: object) -> int:
    """Execute a notebook while the study lives that asked for it; say what came of it; return 1 where it failed."""
    end_with_owners()
    try:
        news, code = told.format(work(*given)), 0
    except NotebookFailed as failure:
        news, code = f"{failed}: {failure.message}", 1
    # One write, as several runs share the pipe to the study, which reads it line by line.
    os.write(1, f"{news}\n".encode())
    return code


def report(root: Path, profile: str, published: bool) -> None:
    """Collect, and build the HTML report of a profile, or of the published study."""
    if published:
        say(*study.collect_published(root), study.build(root, root / "reports", root / "reports"))
        return
    home = profile_dir(root, profile)
    say(*study.collect_profile(root, profile), study.build(root, home, home / "report"))


def pdf(root: Path, profile: str, published: bool) -> None:
    """Print the whole report into study.pdf beside its folder."""
    from fragile_lib.study.report.whole import print_report

    select(load_specs(root / "params"), profile)
    out = root / "reports" if published else profile_dir(root, profile) / "report"
    remedy = "is not there; build it first (make study, make reports)"
    require((out / "index.html").exists(), "report", str(out), remedy)
    say(f"printed: {print_report(out, out.parent / 'study.pdf')}")


def publish(root: Path, profile: str, notebook: str | None) -> None:
    """Copy finished records and pages to reports/ (laptop, gpu or paper only)."""
    say(*study.publish(root, profile, validated(root, profile, notebook)))
    say(study.build(root, root / "reports", root / "reports"))


COMMANDS: dict[str, Callable[..., int | None]] = {  # each returns how many runs or pages failed
    function.__name__.rstrip("_"): function
    for function in (list_, run, study.cells, execute, collect, pages, report, pdf, publish)
}

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # papermill's idle threads would cost a moment more
