"""Pages: every notebook executed once more after its grid, with the grid's results in view.

A page is executed again when its parameters, its code, the modules it imports (figures included) or the results
table have changed. When only its prose has, the outputs are kept and the new text is put around them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from fragile_lib.study.figures import put_back
from fragile_lib.study.files import package_dir, profile_dir
from fragile_lib.study.fingerprint import canonical_code, digest, science_code
from fragile_lib.study.notebook_file import as_json, code_cells, read_notebook, refreshed
from fragile_lib.study.params import Spec
from fragile_lib.study.plan import RESTORED_PROFILES
from fragile_lib.study.run import attempt, execute_for_study
from fragile_lib.tools.errors import InputError
from fragile_lib.tools.files import write_if_changed, write_whole


def page_path(root: Path, profile: str, notebook: str) -> Path:
    """Return where the executed page of a notebook lies."""
    return profile_dir(root, profile) / "pages" / f"{notebook}.ipynb"


def build_page(root: Path, profile: str, spec: Spec) -> str:
    """Bring a notebook's page up to date; return what was done: `up to date`, `new text`, `restored`, `executed`.

    Raises NotebookFailed where the notebook fails; the reason then lies in `pages/.failed/` and an older page stays.
    """
    source = read_notebook(root / "notebooks" / f"{spec.notebook}.ipynb", root)
    target, results = page_path(root, profile, spec.notebook), profile_dir(root, profile) / "results.csv"
    fingerprint = page_fingerprint(root, profile, spec, results)
    failed = target.parent / ".failed" / spec.notebook
    places = [target, *([root / "reports" / "pages" / target.name] if profile in RESTORED_PROFILES else [])]
    for place in places:
        with suppress(InputError, OSError):
            executed = put_back(read_notebook(place, root), place.parent.parent)
            if executed.get("metadata", {}).get("fragile", {}).get("fingerprint") == fingerprint:
                shutil.rmtree(failed, ignore_errors=True)
                changed = write_if_changed(target, as_json(refreshed(source, executed)))
                return ("new text" if place == target else "restored") if changed else "up to date"
    job = {"run_id": f"{spec.notebook}-page", "notebook": spec.notebook, "profile": profile, "fingerprint": fingerprint}
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.stem}.{os.getpid()}.ipynb")
    try:
        with attempt(failed, partial, root, job):
            parameters, table = spec.page_parameters(profile) or {}, results if results.exists() else None
            execute_for_study(partial, parameters, root, {**job, **spec.limits}, None, table)
            executed = read_notebook(partial, root)
            executed["metadata"]["fragile"] = {"page": spec.notebook, "profile": profile, "fingerprint": fingerprint}
            write_whole(target, as_json(refreshed(source, executed)))
    finally:
        partial.unlink(missing_ok=True)
    shutil.rmtree(failed, ignore_errors=True)
    return "executed"


def page_fingerprint(root: Path, profile: str, spec: Spec, results: Path) -> str:
    """Return what a page depends on, as one hash."""
    cells = code_cells(read_notebook(root / "notebooks" / f"{spec.notebook}.ipynb", root))
    modules = science_code(cells, package_dir(root), also=("plots",))
    table = hashlib.sha256(results.read_bytes()).hexdigest() if results.exists() else ""
    return digest([spec.page_parameters(profile), [canonical_code(cell) for cell in cells], modules, table])
