"""Runs without papermill: a notebook's code cells as plain Python, for a machine that has little more than torch.

What is computed and recorded is the same, fingerprint included; figures are left out, and with them what draws them.
`run_cells` runs as many runs of a profile as some seconds allow, in the order of its grids, each in a process of its
own and its record in place as it ends: so a short time on a card yields whole records.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from fragile_lib.study.execute import NotebookFailed, explain
from fragile_lib.study.notebook_file import as_json, is_tagged, read_notebook, source_of
from fragile_lib.study.plan import prepare
from fragile_lib.study.sources import keep_imported
from fragile_lib.tools.errors import require
from fragile_lib.tools.files import write_whole
from fragile_lib.tools.processes import say

FIGURES = "fragile_lib.plots"


class Silent(ModuleType):
    """Stands for a module whose functions only show something."""

    def __getattr__(self, name: str) -> Callable[..., tuple]:
        """Return a function that finds nothing to show; a module's own names are not there."""
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: ()


def run_cells(root: Path, profile: str, notebook: str | None, seconds: float) -> int:
    """Run what is not finished of a profile while there are seconds left; return how many runs failed.

    A run that the seconds did not suffice for is ended, and begins anew with the next call.

    Raises:
        InputError: seconds that are not above 0, an unknown profile or notebook, or bad parameters.
    """
    require(seconds > 0, "seconds", seconds, "give a number above 0")
    ends, jobs = time.monotonic() + seconds, prepare(root, profile, notebook)[0]
    pending, failed, environment = [job for job in jobs if job.state != "finished"], 0, {**os.environ}
    environment |= {"FRAGILE_ROOT": str(root), "TQDM_DISABLE": "1", "PYTHONHASHSEED": "0"}
    say(f"{len(jobs) - len(pending)} of {len(jobs)} finished already")
    for job in pending:
        if (left := ends - time.monotonic()) <= 0:
            break
        command = [sys.executable, "-m", "fragile_lib.study", "execute", "--plain", str(job.directory)]
        try:
            failed += subprocess.run(command, env=environment, timeout=left, stdin=subprocess.DEVNULL).returncode != 0
        except subprocess.TimeoutExpired:
            say(f"{job.run.run_id} was not finished in the {left:.0f} s that were left")
            break
    still_open = [job.run.run_id for job in jobs if job.state != "finished"]
    say(f"open: {', '.join(still_open)}" if still_open else "all are finished")
    return failed


def execute_plainly(source: Path, output: Path, parameters: dict[str, Any], root: Path, **limits: int) -> float:
    """Execute the code cells of `source` in this process, in its folder; return the seconds they took.

    `output` becomes a copy of it, without outputs. Meant for a process that does nothing else.

    Raises:
        NotebookFailed: an error in a cell.
    """
    notebook, began = read_notebook(source, root), time.monotonic()
    keep_imported()
    namespace = {"__name__": "__main__", "display": lambda *_: None}
    sys.modules[FIGURES] = Silent(FIGURES)
    write_whole(output, as_json(notebook))
    os.chdir(source.parent)
    try:
        for number, cell in enumerate(notebook["cells"]):
            if cell["cell_type"] == "code":
                exec(compile(source_of(cell), f"{source.name}[{number}]", "exec"), namespace)
                namespace |= parameters if is_tagged(cell, "parameters") else {}
    except Exception as error:
        told = explain(error)
        raise NotebookFailed(told.error, str(told), traceback.format_exc()[-4000:]) from error
    return time.monotonic() - began
