"""Pages: every notebook executed once more after its grid, with the grid's results in view.

A page is executed again when its parameters, its code, the modules it imports (figures included) or the results
table have changed. When only its prose has, the outputs are kept and the new text is put around them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from fragile_lib.study.execute import NotebookFailed, execute_notebook
from fragile_lib.study.files import package_dir, profile_dir, write_atomic, write_if_changed
from fragile_lib.study.fingerprint import canonical_code, digest, science_code
from fragile_lib.study.notebook_file import code_cells, read_notebook, source_of
from fragile_lib.study.params import Spec
from fragile_lib.study.plan import RESTORED_PROFILES
from fragile_lib.study.run import known, write_failure
from fragile_lib.tools.errors import InputError


def page_path(root: Path, profile: str, notebook: str) -> Path:
    """Return where the executed page of a notebook lies."""
    return profile_dir(root, profile) / "pages" / f"{notebook}.ipynb"


def build_page(root: Path, profile: str, spec: Spec) -> str:
    """Bring a notebook's page up to date; return what was done: `up to date`, `new text`, `restored`, `executed`.

    Raises NotebookFailed where the notebook fails; the reason then lies in `pages/.failed/` and an older page stays.
    """
    source, target = root / "notebooks" / f"{spec.notebook}.ipynb", page_path(root, profile, spec.notebook)
    parameters, results = spec.page_parameters(profile), profile_dir(root, profile) / "results.csv"
    fingerprint = page_fingerprint(root, spec, parameters, results)
    failed = target.parent / ".failed" / spec.notebook
    places = [target, *([root / "reports" / "pages" / target.name] if profile in RESTORED_PROFILES else [])]
    for place in places:
        with contextlib.suppress(InputError):
            executed = read_notebook(place, root)
            if executed.get("metadata", {}).get("fragile", {}).get("fingerprint") == fingerprint:
                shutil.rmtree(failed, ignore_errors=True)
                text = as_json(refreshed(read_notebook(source, root), executed))
                changed = write_if_changed(target, text)
                return ("new text" if place == target else "restored") if changed else "up to date"
    given = {"profile": profile, "run_id": f"{spec.notebook}-page", "output_dir": ""}
    given["grid_results"] = Path(os.path.relpath(results, source.parent)).as_posix() if results.exists() else ""
    partial = target.with_name(f".{target.stem}.{os.getpid()}.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.environ["FRAGILE_FINGERPRINT"] = ""
    try:
        execute_notebook(source, partial, {**(parameters or {}), **known(source, given)}, root, **spec.limits)
        executed = read_notebook(partial, root)
        executed["metadata"]["fragile"] = {"page": spec.notebook, "profile": profile, "fingerprint": fingerprint}
        write_atomic(target, as_json(refreshed(read_notebook(source, root), executed)))
        shutil.rmtree(failed, ignore_errors=True)
        return "executed"
    except NotebookFailed as failure:
        failed.mkdir(parents=True, exist_ok=True)
        job = {"run_id": given["run_id"], "notebook": spec.notebook, "profile": profile, "fingerprint": fingerprint}
        write_failure(failed, partial, failure, root, job)
        raise
    finally:
        partial.unlink(missing_ok=True)


def page_fingerprint(root: Path, spec: Spec, parameters: dict[str, Any] | None, results: Path) -> str:
    """Return what a page depends on, as one hash."""
    cells = code_cells(read_notebook(root / "notebooks" / f"{spec.notebook}.ipynb", root))
    modules = science_code(cells, package_dir(root), also=("plots",))
    table = hashlib.sha256(results.read_bytes()).hexdigest() if results.exists() else ""
    return digest([parameters, [canonical_code(cell) for cell in cells], modules, table])


def refreshed(source: dict[str, Any], executed: dict[str, Any]) -> dict[str, Any]:
    """Return the cells of `source` with the outputs of `executed`, whose code does the same."""
    is_code = [cell for cell in executed["cells"] if cell.get("cell_type") == "code"]
    injected = [cell for cell in is_code if "injected-parameters" in cell.get("metadata", {}).get("tags", [])]
    outputs = iter([cell for cell in is_code if cell not in injected])
    cells: list[dict[str, Any]] = []
    for cell in source["cells"]:
        if cell.get("cell_type") != "code":
            cells.append(cell)
            continue
        done = next(outputs)
        cells.append({**done, "source": source_of(cell)})
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            cells += injected
    return {**executed, "cells": cells}


def as_json(notebook: dict[str, Any]) -> str:
    """Return a notebook's JSON as nbformat writes it."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
