"""One notebook executed: a complete output file, or an exception that says what went wrong.

Through papermill, or its code cells as plain Python, for a machine that has little more than torch: what is computed
and recorded is the same, fingerprint included; figures are left out, and with them what draws them.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from fragile_lib.study.notebook_file import as_json, is_tagged, read_notebook, source_of
from fragile_lib.study.sources import keep_imported
from fragile_lib.tools.errors import InputError
from fragile_lib.tools.files import write_whole

THREADED = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "NUMBA")  # each with a variable like OMP_NUM_THREADS
# What libraries say to their own developers: torch.compile in the place of torch.jit, a batching rule that is missing.
LIBRARY_WARNINGS = {"`torch.jit.script` is deprecated": FutureWarning, "There is a performance drop": UserWarning}
START_ERRORS = ("Kernel didn't respond in", "Kernel died before replying to kernel_info")
# What Python, NumPy, torch on a CPU and torch on a GPU say.
NO_MEMORY = ("Cannot allocate memory", "Unable to allocate", "can't allocate memory", "out of memory")
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours and other commands to a terminal


class NotebookFailed(RuntimeError):
    """A notebook did not run to its end: `error` names the kind, the message says it in one line."""

    def __init__(self, error: str, message: str, traceback: str = "") -> None:
        """Keep the kind of error, its one-line message and the tail of its traceback."""
        super().__init__(message)
        self.error, self.message, self.traceback = error, message, traceback


def execute_notebook(
    source: Path, output: Path, parameters: dict[str, Any], root: Path, *, threads: int = 1, cell_minutes: float = 120
) -> float:
    """Execute `source` into `output` in the folder of `source`; return the seconds its cells took.

    Raises NotebookFailed for an error in a cell, a dead kernel, a timed-out cell, a full disk. `output` may then hold
    an incomplete notebook. A kernel that did not start is tried once more; nothing else is.
    """
    prepare_environment(threads)
    for last in (False, True):
        try:
            notebook = _papermill(source, output, parameters, cell_minutes)
            break
        except Exception as error:
            if last or not str(error).startswith(START_ERRORS):
                raise explain(error, cell_minutes) from error
    # Papermill's note of where it ran: a published page does not tell of the machine's folders.
    note = notebook.metadata.get("papermill", {})
    note |= {key: os.path.relpath(note[key], root) for key in ("input_path", "output_path") if note.get(key)}
    write_whole(output, as_json(notebook))
    return sum(cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in notebook.cells)


def prepare_environment(threads: int) -> None:
    """Set what the kernel inherits: its number of threads, no progress bars, no start-up or library chatter."""
    os.environ |= {f"{name}_NUM_THREADS": str(threads) for name in THREADED}
    os.environ |= {"TQDM_DISABLE": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONHASHSEED": "0"}
    given = filter(None, os.environ.get("PYTHONWARNINGS", "").split(","))
    ours = (f"ignore:{text}:{kind.__name__}" for text, kind in LIBRARY_WARNINGS.items())
    os.environ["PYTHONWARNINGS"] = ",".join(dict.fromkeys([*given, *ours]))


def spare_the_grammar() -> None:
    """Let what imports nbformat from now on do without a grammar that takes about 2 s to compile at each start.

    nbformat imports jsonschema, that the grammar of internationalised addresses, which no notebook needs; jsonschema
    does without it where it cannot be imported.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


def _papermill(source: Path, output: Path, parameters: dict[str, Any], cell_minutes: float) -> Any:
    spare_the_grammar()
    import papermill
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets.config import Config

    class OwnKernelManager(AsyncKernelManager):
        """Starts this very interpreter, whatever kernels are installed: a user's `python3` may be another Python."""

        @property
        def kernel_spec(self) -> KernelSpec:
            """A spec for `sys.executable`; without history, whose one database parallel kernels would lock."""
            argv = [sys.executable, "-m", "fragile_lib.study.sources", "-f", "{connection_file}"]
            argv.append("--HistoryManager.enabled=False")
            # Without this note the connection is not encrypted, and the kernel warns of it at each start.
            able = {"supported_encryption": ["curve"]}
            return KernelSpec(argv=argv, display_name="Python 3", language="python", metadata=able)

    return papermill.execute_notebook(
        source,
        output,
        parameters=parameters,
        kernel_name="python3",
        language="python",
        cwd=source.parent,
        progress_bar=False,
        start_timeout=120,
        execution_timeout=max(1, round(cell_minutes * 60)),
        kernel_manager_class=OwnKernelManager,
        # The record is written by then; waiting for a polite shutdown would only cost time.
        shutdown_kernel="immediate",
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),
    )


def execute_plainly(source: Path, output: Path, parameters: dict[str, Any], root: Path, **limits: int) -> float:
    """Execute the code cells of `source` in this process, in its folder; return the seconds they took.

    `output` becomes a copy of it, without outputs. Meant for a process that does nothing else. Raises NotebookFailed
    for an error in a cell.
    """
    notebook, began = read_notebook(source, root), time.monotonic()
    keep_imported()
    namespace = {"__name__": "__main__", "display": lambda *_: None}
    sys.modules["fragile_lib.plots"] = MagicMock()  # whatever it is asked for, it shows nothing
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


def explain(error: Exception, cell_minutes: float = 0) -> NotebookFailed:
    """Return what went wrong, in one line with a remedy."""
    kind, text = type(error).__name__, ANSI.sub("", str(error)).strip()
    value = text
    if kind == "PapermillExecutionError":
        text = ANSI.sub("", "\n".join(error.traceback))  # type: ignore[attr-defined]
        kind, value = error.ename, str(error.evalue).strip()  # type: ignore[attr-defined]
    said = f"{kind}: {(value.splitlines() or [''])[0]}"
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in value:
        kind, said = "OSError", "the disk is full (No space left on device); free some and run again"
    elif kind.endswith("MemoryError") or any(words in value for words in NO_MEMORY):
        said = f"the memory was not enough ({said[:200]}); raise its limit, or run fewer side by side (JOBS)"
    elif kind == "DeadKernelError":
        said = "the kernel died in mid-run; often the memory was not enough: see `failed.ipynb`"
    elif kind == "CellTimeoutError":
        remedy = "raise limits.cell_minutes in its parameters file"
        said = f"a cell ran longer than {cell_minutes:g} minutes; {remedy}"
    elif isinstance(error, InputError):
        said = text
    elif isinstance(error, OSError):
        said = f"{value}; free the disk or correct its rights"
    return NotebookFailed(kind, said, text[-4000:])
