"""The command line of the study: `python -m fragile_lib.study {list,run,execute,collect,pages,report,publish}`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from fragile_lib.study.files import profile_dir, study_root
from fragile_lib.tools.errors import InputError, bad_input

PROFILE_HELP = "quick (minutes), laptop (hours; the study of record) or paper (the published scale)"


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = argparse.ArgumentParser(prog="python -m fragile_lib.study", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, text: str, notebook: bool = True, profile: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        if profile:
            command.add_argument("--profile", default="quick", help=PROFILE_HELP + "; default quick")
        if notebook:
            command.add_argument("--notebook", default=None, help="one notebook, e.g. iris; default all")
        return command

    add("list", "show the runs of a profile and how each stands; writes nothing")
    run = add("run", "run what is not up to date, then collect, execute pages, build the report")
    run.add_argument("--jobs", default=None, help="runs side by side; default the number of cores")
    run.add_argument("--only-runs", action="store_true", help="stop after the runs: no table, pages, report")
    execute = commands.add_parser("execute", help="execute one planned run (what Snakemake calls)")
    execute.add_argument("run_dir", type=Path, help="its folder, e.g. runs/quick/iris-relu-d1-w5-wd0.005")
    add("collect", "write results.csv from the finished runs", notebook=False)
    add("pages", "execute the notebooks' pages that are not up to date")
    report = add("report", "build the HTML report of a profile, or of the published study", notebook=False)
    report.add_argument("--published", action="store_true", help="reports/, from its committed records")
    add("publish", "copy finished records and pages to reports/ (laptop or paper only)")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 1 where runs failed, 2 for bad input, 130 when interrupted."""
    given = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return COMMANDS[given.command](given, study_root())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except OSError as error:
        print(f"error: {error}; free the disk or correct the rights, then run again", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        if given.command == "run":
            print("interrupted; what finished is kept, and the same command runs only the rest", flush=True)
        return 130


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _list(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.plan import make_plan

    jobs = make_plan(root, given.profile, given.notebook)
    states = [job.state for job in jobs]
    for job, state in zip(jobs, states, strict=True):
        print(f"{state:10} {job.run.run_id}")
    print(f"{states.count('finished')} of {len(jobs)} finished")
    return 0


def _run(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.engine import default_jobs
    from fragile_lib.study.study import run_study

    text = given.jobs or str(default_jobs())
    if not text.isdecimal() or int(text) < 1:
        raise bad_input("jobs", text, "give an int, at least 1: the number of runs side by side")
    return 1 if run_study(root, given.profile, given.notebook, int(text), given.only_runs) else 0


def _execute(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.execute import NotebookFailed
    from fragile_lib.study.run import end_with_owners, execute

    end_with_owners()
    run_id = given.run_dir.resolve().name
    try:
        news, code = f"finished {run_id} in {execute(given.run_dir):.1f} s", 0
    except NotebookFailed as failure:
        news, code = f"failed {run_id}: {failure.message}", 1
    # One write, as several runs share the pipe to the study, which reads it line by line.
    os.write(1, f"{news}\n".encode())
    return code


def _collect(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.study import collect_profile

    collect_profile(root, given.profile)
    return 0


def _pages(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.execute import NotebookFailed
    from fragile_lib.study.pages import build_page
    from fragile_lib.study.plan import validated
    from fragile_lib.study.run import end_with_owners

    end_with_owners()
    failed = 0
    for name, spec in validated(root, given.profile, given.notebook).items():
        if spec.page is None:
            continue
        try:
            print(f"page {name}: {build_page(root, given.profile, spec)}", flush=True)
        except NotebookFailed as failure:
            failed += 1
            print(f"failed: page {name}: {failure.message}", flush=True)
    return 1 if failed else 0


def _report(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.params import load_specs, select
    from fragile_lib.study.study import build, rebuild_published

    if given.published:
        index = rebuild_published(root)
    else:
        select(load_specs(root / "params"), given.profile)
        index = build(root, profile_dir(root, given.profile), profile_dir(root, given.profile) / "report")
    print(f"report: open {index.resolve().as_uri()}")
    return 0


def _publish(given: argparse.Namespace, root: Path) -> int:
    from fragile_lib.study.plan import validated
    from fragile_lib.study.publish import check_publishable, publish
    from fragile_lib.study.study import build

    check_publishable(given.profile)
    for line in publish(root, given.profile, validated(root, given.profile, given.notebook)):
        print(line)
    print(f"report: open {build(root, root / 'reports', root / 'reports').resolve().as_uri()}")
    return 0


COMMANDS = {
    "list": _list,
    "run": _run,
    "execute": _execute,
    "collect": _collect,
    "pages": _pages,
    "report": _report,
    "publish": _publish,
}

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # papermill's idle threads would cost a moment more
