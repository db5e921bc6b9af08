"""The command line of the study: `python -m fragile_lib.study {list,run,cells,execute,collect,pages,...}`."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from fragile_lib.study.files import profile_dir, study_root
from fragile_lib.tools.errors import InputError, bad_input, require

PROFILE = "quick (minutes), laptop (hours; the study of record), gpu or paper (the published scale); default quick"
OPTIONS = {
    "--profile": {"default": "quick", "help": PROFILE},
    "--notebook": {"help": "one notebook, e.g. iris; default all"},
    "--jobs": {"help": "runs side by side; default the number of cores"},
    "--only-runs": {"action": "store_true", "help": "stop after the runs: no table, pages, report"},
    "--seconds": {"type": float, "default": 600.0, "help": "how long; a run is ended then, and not kept; default 600"},
    "--plain": {"action": "store_true", "help": "its cells as plain Python, without papermill and figures"},
    "--published": {"action": "store_true", "help": "reports/, from its committed records"},
    "run_dir": {"type": Path, "help": "its folder, e.g. runs/quick/iris-relu-d1-w5-wd0.005"},
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 1 where runs failed, 2 for bad input, 130 when interrupted."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    given = None
    try:
        given = parser().parse_args(arguments)
        return COMMANDS[given.command][0](given, study_root())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except OSError as error:
        print(f"error: {error}; free the disk or correct the rights, then run again", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        if given and given.command == "run":
            print("interrupted; what finished is kept, and the same command runs only the rest", flush=True)
        return 130


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are those of all other bad input."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        raise bad_input("command line", message, f"see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = Parser(prog="python -m fragile_lib.study", description=__doc__, allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for name, (_, text, options) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        for option in options.split():
            command.add_argument(option, **OPTIONS[option])
    return top


def _list(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.plan import left_out, make_plan

    states = {job.run.run_id: job.state for job in make_plan(root, given.profile, given.notebook)}
    for run_id, state in states.items():
        print(f"{state:10} {run_id}")
    print(f"{list(states.values()).count('finished')} of {len(states)} finished")
    for line in left_out(root, given.profile, given.notebook):
        print(line)
    return 0


def _run(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.study import run_study

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = given.jobs or str(cores)
    remedy = "give an int, at least 1 and at most 9999, without leading zeros: the number of runs side by side"
    require(re.fullmatch("[1-9][0-9]{0,3}", text), "jobs", text, remedy)
    return 1 if run_study(root, given.profile, given.notebook, int(text), given.only_runs) else 0


def _cells(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.cells import run_cells

    return 1 if run_cells(root, given.profile, given.notebook, given.seconds, partial(print, flush=True)) else 0


def _execute(given: argparse.Namespace, _: Path) -> int:
    from fragile_lib.study.run import execute

    run_id = given.run_dir.resolve().name
    return _attempt(lambda: f"finished {run_id} in {execute(given.run_dir, given.plain):.1f} s", f"failed {run_id}")


def _pages(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.plan import validated
    from fragile_lib.study.run import build_page

    chosen = validated(root, given.profile, given.notebook)
    pages = {name: spec for name, spec in chosen.items() if spec.page is not None}

    def build(name: str) -> str:
        return f"page {name}: {build_page(root, given.profile, pages[name])}"

    return max([_attempt(partial(build, name), f"failed: page {name}") for name in pages], default=0)


def _attempt(execute: Callable[[], str], failed: str) -> int:
    """Execute a notebook while the study lives that asked for it; say what came of it, and return the exit code."""
    from fragile_lib.study.execute import NotebookFailed
    from fragile_lib.tools.processes import end_with_owners

    end_with_owners()
    try:
        news, code = execute(), 0
    except NotebookFailed as failure:
        news, code = f"{failed}: {failure.message}", 1
    # One write, as several runs share the pipe to the study, which reads it line by line.
    os.write(1, f"{news}\n".encode())
    return code


def _collect(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.study import collect_profile, say

    return say(*collect_profile(root, given.profile))


def _report(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.params import load_specs, select
    from fragile_lib.study.study import build, collect_published, say

    if given.published:
        return say(*collect_published(root), build(root, root / "reports", root / "reports"))
    select(load_specs(root / "params"), given.profile)
    home = profile_dir(root, given.profile)
    return say(build(root, home, home / "report"))


def _pdf(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.report.whole import print_report
    from fragile_lib.study.study import say

    out = root / "reports" if given.published else profile_dir(root, given.profile) / "report"
    require(
        (out / "index.html").exists(), "report", str(out), "is not there; build it first (make study, make reports)"
    )
    return say(f"printed: {print_report(out, out.parent / 'study.pdf')}")


def _publish(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.plan import validated
    from fragile_lib.study.study import build, publish, say

    told = publish(root, given.profile, validated(root, given.profile, given.notebook))
    return say(*told, build(root, root / "reports", root / "reports"))


COMMANDS = {
    "list": (_list, "show the runs of a profile and how each stands; writes nothing", "--profile --notebook"),
    "run": (
        _run,
        "run what is not up to date, then collect, execute pages, build the report",
        "--profile --notebook --jobs --only-runs",
    ),
    "cells": (
        _cells,
        "run as many runs as some seconds allow, one after the other, with little more than torch",
        "--profile --notebook --seconds",
    ),
    "execute": (_execute, "execute one planned run (what Snakemake calls)", "--plain run_dir"),
    "collect": (_collect, "write results.csv from the finished runs", "--profile"),
    "pages": (_pages, "execute the notebooks' pages that are not up to date", "--profile --notebook"),
    "report": (_report, "build the HTML report of a profile, or of the published study", "--profile --published"),
    "pdf": (_pdf, "print the whole report into study.pdf beside its folder", "--profile --published"),
    "publish": (
        _publish,
        "copy finished records and pages to reports/ (laptop, gpu or paper only)",
        "--profile --notebook",
    ),
}

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # papermill's idle threads would cost a moment more
