"""A toy study in a folder of its own: one notebook of a few cells, that sleeps, dies or fails as told."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMS = """
notebook: toy
parameters:
  depth: {type: int, min: 1, max: 64, help: hidden layers}
  weight_decay: {type: float, min: 0, max: 10, help: decay}
  fraction: {type: float, above: 0, below: 1, help: share}
  activation: {type: str, choices: [relu, tanh], help: activation}
  seeds: {type: list, of: int, min: 0, min_length: 1, unique: true, help: seeds}
  certify: {type: bool, help: certify}
  mode: {type: str, choices: [ok, die, error, hold, silent], help: what happens}
base: {weight_decay: 0.005, fraction: 0.2, activation: relu, seeds: [0, 1], certify: true, mode: ok}
run_id: "toy-d{depth}"
profiles:
  quick:
    grids: {depths: {depth: [1, 2]}}
  laptop:
    set: {seeds: [0, 1, 2]}
    grids: {depths: {depth: [1, 2]}}
page: {depth: 1}
"""

QUICK_GRID = "quick:\n    grids: {depths: {depth: [1, 2]}}"
CELLS = {
    "parameters": """
        depth = 1
        weight_decay = 0.005
        fraction = 0.2
        activation = "relu"
        seeds = [0]
        certify = True
        mode = "ok"
        profile = "quick"
        run_id = "by-hand"
        output_dir = ""
        grid_results = "../reports/results.csv"
    """,
    "check": """
        import os, time
        from fragile_lib.study.params import check_parameters
        parameters = check_parameters("toy", globals())
    """,
    "work": """
        while mode == "hold" and os.path.exists("hold"):
            time.sleep(0.05)
        if mode == "die":
            os.kill(os.getpid(), 9)
        assert mode != "error", "told to fail"
    """,
    "record": """
        from fragile_lib.study.record import record
        rows = [{"seed": seed, "estimator": "exact", "spearman": 1 / (1 + depth)} for seed in seeds]
        if mode != "silent":
            table = record(
                output_dir=output_dir, run_id=run_id, profile=profile, notebook="toy", parameters=parameters,
                run={"dataset": "toy", "depth": depth}, rows=rows, seeds=seeds,
            )
            print(table)
    """,
}

KERNEL = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}


def wait_for(condition: Callable[[], object], what: str, seconds: float = 90.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.05)


class Toy:
    """A study root with one notebook, and the ways to call the study on it."""

    cells = CELLS

    def __init__(self, root: Path) -> None:
        self.root = root
        self.params = root / "params" / "toy.yaml"
        self.notebook = root / "notebooks" / "toy.ipynb"
        self.environment = {**os.environ, "FRAGILE_ROOT": str(root)}
        self.params.parent.mkdir(parents=True)
        self.notebook.parent.mkdir()
        self.params.write_text(PARAMS)
        self.write_notebook(CELLS)

    def write_notebook(self, cells: dict[str, str], prose: str = "# A toy") -> None:
        notebook = new_notebook(cells=[new_markdown_cell(prose, id="prose")], metadata=KERNEL)
        for name, source in cells.items():
            tags = {"tags": ["parameters"]} if name == "parameters" else {}
            notebook.cells.append(new_code_cell(textwrap.dedent(source).strip(), id=name, metadata=tags))
        self.notebook.write_text(json.dumps(notebook))

    def edit(self, old: str, new: str) -> None:
        text = self.params.read_text()
        assert old in text
        self.params.write_text(text.replace(old, new))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "fragile_lib.study", *arguments]

    def call(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=300,  # a kernel that does not start in 120 seconds is tried once more
        )

    def processes(self, word: str = "") -> list[psutil.Process]:
        """The living processes of this study that have a word in their command line."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                own = process.environ().get("FRAGILE_ROOT") == str(self.root) and process.pid != os.getpid()
                if own and process.status() != psutil.STATUS_ZOMBIE and (not word or word in process.cmdline()):
                    found.append(process)
        return found

    def run_dir(self, run_id: str, profile: str = "quick") -> Path:
        return self.root / "runs" / profile / run_id

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.root)): p.read_bytes() for p in sorted(self.root.rglob("*")) if p.is_file()}

    def finish(self, profile: str = "quick", **changes: object) -> None:
        """Write records as if the runs had finished, without a kernel."""
        from fragile_lib.study.plan import prepare

        jobs, _ = prepare(self.root, profile)
        for job in jobs:
            content = example_record(run_id=job.run.run_id, profile=profile, fingerprint=job.fingerprint, **changes)
            (job.directory / "result.json").write_text(json.dumps(content))
        prepare(self.root, profile)


def example_record(**changes: object) -> dict:
    return {
        **{"schema": 1, "run_id": "toy-d1", "profile": "quick", "notebook": "toy", "status": "ok", "parameters": {}},
        "run": {"dataset": "toy", "depth": 1},
        "rows": {"columns": ["seed", "spearman"], "data": [[0, 0.5], [1, None]]},
        **{"certificates": [], "points": [], "seeds": [0, 1], "versions": {}, "git": {"commit": "", "dirty": False}},
        **{"device": "cpu", "threads": 1, "seconds": 1.0, "seconds_by_part": {}, "peak_memory_mb": 100.0},
        **{"started": "2025-01-01T00:00:00Z", "finished": "2025-01-01T00:00:01Z", "fingerprint": ""},
        **changes,
    }
