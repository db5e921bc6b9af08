"""One notebook executed for the study, beside the old result that is replaced only by a complete one: runs and pages.

Files appear in a run's folder in this order: `run.ipynb`, then `result.json`, which marks the run as finished. A
failure leaves `failure.json` and `failed.ipynb` and touches nothing else.

A page is a notebook executed once more after its grid, with the grid's results in view. It is executed again when its
parameters, its code, the modules it imports (figures included) or the results table have changed. When only its prose
has, the outputs are kept and the new text is put around them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fragile_lib.study.execute import NotebookFailed, execute_notebook, execute_plainly, explain
from fragile_lib.study.files import package_dir, profile_dir, study_root
from fragile_lib.study.fingerprint import page_fingerprint, run_fingerprint
from fragile_lib.study.notebook_file import (
    Notebook,
    as_json,
    code_cells,
    parameters_cell,
    put_back,
    read_notebook,
    refreshed,
)  # fmt: skip
from fragile_lib.study.params import DEFAULT_LIMITS, Spec
from fragile_lib.study.plan import RESTORED_PROFILES
from fragile_lib.study.record_file import read_record, write_record
from fragile_lib.study.sources import KEPT, as_imported
from fragile_lib.tools.errors import InputError, require
from fragile_lib.tools.files import json_text, load_json, load_yaml, plain, remove, write_if_changed, write_whole
from fragile_lib.tools.machine import PROCESS, timestamp

NOTEBOOK = "run.ipynb"
CHANGED = "its notebook, the library or its parameters were changed since it was planned; run the study again"
IDENTITY = ("run_id", "notebook", "profile", "fingerprint")
JOB_KEYS = {*IDENTITY, *DEFAULT_LIMITS}


def execute(run_dir: Path, plainly: bool = False) -> float:
    """Execute the run that `run_dir` describes (`.job.json`, `params.yaml`); return its seconds, start to end.

    `plainly`: without papermill (`execute_plainly`).

    Raises InputError where the folder describes no run, NotebookFailed where the notebook fails or has changed since
    the run was planned; both leave an older finished result as it was. OSError where not even the failure can be
    written.
    """
    root, run_dir = study_root(), run_dir.resolve()
    job = read_job(run_dir)
    parameters = load_yaml(run_dir / "params.yaml", f"{run_dir.name}/params.yaml")

    def depends_on(notebook: Notebook, package: Path) -> str:
        return run_fingerprint(parameters, code_cells(notebook, parameters=False), package)

    with attempt(run_dir, root, job) as partial:
        in_cells = execute_for_study(partial / NOTEBOOK, parameters, root, job, depends_on, partial, plainly=plainly)
        content = _finished_record(partial / "result.json", job)
        content["seconds_total"] = round(PROCESS.seconds(), 3)
        content["orchestration_seconds"] = round(content["seconds_total"] - in_cells, 3)
        write_record(partial / "result.json", content)
        for name in (NOTEBOOK, "result.json"):
            (partial / name).replace(run_dir / name)
    for name in ("failure.json", "failed.ipynb", "result.json.unreadable"):
        remove(run_dir / name)
    return content["seconds_total"]


def execute_for_study(
    output: Path,
    parameters: dict[str, Any],
    root: Path,
    job: dict[str, Any],
    depends_on: Callable[[Notebook, Path], str],
    record: Path | None = None,
    results: Path | None = None,
    plainly: bool = False,
) -> float:
    """Execute a job's notebook into `output`, with those of the study's own parameters that it has; return its seconds.

    `record` is the folder for the notebook's record, `results` the table of a grid that it draws from. Raises
    NotebookFailed where `depends_on` gives another fingerprint than the plan: before of the notebook and the library,
    afterwards of the executed copy, which holds what papermill read, and of the modules as they were imported.
    """

    def check(notebook: Path, package: Path) -> None:
        if depends_on(read_notebook(notebook, root), package) != job["fingerprint"]:
            raise NotebookFailed("Changed", CHANGED)

    source, package = root / "notebooks" / f"{job['notebook']}.ipynb", package_dir(root)
    check(source, package)
    places = {"output_dir": record, "grid_results": results}
    given = {name: Path(os.path.relpath(p, source.parent)).as_posix() if p else "" for name, p in places.items()}
    given |= {name: job[name] for name in ("profile", "run_id")}
    known = parameters_cell(read_notebook(source, root), source.name)
    parameters = {**parameters, **{name: value for name, value in given.items() if name in known}}
    limits = {name: job[name] for name in DEFAULT_LIMITS}
    with tempfile.TemporaryDirectory(prefix="fragile-") as kept:
        os.environ |= {"FRAGILE_FINGERPRINT": job["fingerprint"] if record else "", KEPT: kept}
        seconds = (execute_plainly if plainly else execute_notebook)(source, output, parameters, root, **limits)
        check(output, as_imported(package, Path(kept)))
    return seconds


def read_job(run_dir: Path) -> dict[str, Any]:
    """Return the description that the plan wrote; raise InputError where there is none."""
    try:
        job = load_json(run_dir / ".job.json")
    except (OSError, ValueError):
        job = {}
    right = isinstance(job, dict) and job.get("run_id") == run_dir.name and not JOB_KEYS - job.keys()
    remedy = "is no folder of a planned run; see `python -m fragile_lib.study list`"
    require(right, "run folder", str(run_dir), remedy)
    return job


@contextmanager
def attempt(folder: Path, root: Path, job: dict[str, Any]) -> Iterator[Path]:
    """Yield a folder for what is incomplete; what fails, the disk included, is noted and raised as NotebookFailed."""
    for left in folder.glob(".partial-*"):
        shutil.rmtree(left, ignore_errors=True)
    partial = folder / f".partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        yield partial
    except (NotebookFailed, InputError, OSError) as error:
        failure = error if isinstance(error, NotebookFailed) else explain(error)
        # Folders of the machine are nobody's business in a published report.
        said = {name: getattr(failure, name).replace(f"{root}/", "") for name in ("message", "traceback")}
        note = {**{key: job[key] for key in IDENTITY}, "error": failure.error, **said, "finished": timestamp()}
        try:
            write_whole(folder / "failure.json", json_text(plain(note)))
            if (partial / NOTEBOOK).exists():
                (partial / NOTEBOOK).replace(folder / "failed.ipynb")
        except OSError as full:  # which must not hide the failure itself
            print(f"the failure of {folder.name} could not be written either ({full})", flush=True)
        raise failure from (None if failure is error else error)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _finished_record(path: Path, job: dict[str, Any]) -> dict[str, Any]:
    try:
        content = read_record(path, job["run_id"])
    except InputError as error:
        raise NotebookFailed("NoRecord", f"the notebook ended without a good record: {error}") from error
    for key in IDENTITY:
        if content.get(key) != job[key]:
            raise NotebookFailed("NoRecord", f"the record names {key} {content.get(key)!r}, not {job[key]!r}")
    return content


def page_path(root: Path, profile: str, notebook: str) -> Path:
    """Return where the executed page of a notebook lies."""
    return profile_dir(root, profile) / "pages" / f"{notebook}.ipynb"


def build_page(root: Path, profile: str, spec: Spec) -> str:
    """Bring a notebook's page up to date; return what was done: `up to date`, `new text`, `restored`, `executed`.

    Raises NotebookFailed where the notebook fails; the reason then lies in `pages/.failed/` and an older page stays.
    """
    source = read_notebook(root / "notebooks" / f"{spec.notebook}.ipynb", root)
    target, results = page_path(root, profile, spec.notebook), profile_dir(root, profile) / "results.csv"
    parameters, failed = spec.page_parameters(profile) or {}, target.parent / ".failed" / spec.notebook

    def depends_on(notebook: Notebook, package: Path) -> str:
        table = hashlib.sha256(results.read_bytes()).hexdigest() if results.is_file() else ""
        return page_fingerprint([parameters, table], code_cells(notebook), package)

    fingerprint = depends_on(source, package_dir(root))
    for place in (target, *([root / "reports" / "pages" / target.name] if profile in RESTORED_PROFILES else [])):
        with suppress(ValueError, OSError):
            executed = put_back(read_notebook(place, root), spec.notebook, place.parent.parent)
            if executed.get("metadata", {}).get("fragile", {}).get("fingerprint") == fingerprint:
                shutil.rmtree(failed, ignore_errors=True)
                changed = write_if_changed(target, as_json(refreshed(source, executed)))
                return ("new text" if place == target else "restored") if changed else "up to date"
    job = {"run_id": f"{spec.notebook}-page", "notebook": spec.notebook, "profile": profile, "fingerprint": fingerprint}
    with attempt(failed, root, job) as partial:
        given = {"results": results} if results.is_file() else {}
        execute_for_study(partial / NOTEBOOK, parameters, root, job | spec.limits, depends_on, **given)
        executed = read_notebook(partial / NOTEBOOK, root)
        executed["metadata"]["fragile"] = {"page": spec.notebook, "profile": profile, "fingerprint": fingerprint}
        write_whole(target, as_json(refreshed(source, executed)))
    shutil.rmtree(failed, ignore_errors=True)
    return "executed"
