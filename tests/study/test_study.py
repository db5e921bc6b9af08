"""The whole grid under Snakemake: what runs, what runs again, what does not."""

import subprocess
import sys
from pathlib import Path

WORKFLOW = Path(__file__).parents[2] / "workflow"


def stamp_of(path):
    return path.stat().st_mtime_ns


def test_a_grid_with_a_failure_and_its_repair(toy):
    toy.edit(
        "quick:\n    grids: {depths: {depth: [1, 2]}}",
        "quick:\n    grids: {good: {depth: [1, 2]}, bad: {depth: [3], mode: [die]}}",
    )
    first = toy.call("run", "--only-runs", "--jobs", "2")
    assert first.returncode == 1, first.stdout + first.stderr
    assert "[2 of 3] finished toy-d" in first.stdout and "failed: toy-d3: the kernel died in mid-run" in first.stdout
    results = {d: toy.run_dir(f"toy-d{d}") / "result.json" for d in (1, 2, 3)}
    assert results[1].exists() and results[2].exists() and not results[3].exists()

    # Repair the one, truncate another: only these two run again.
    toy.edit("mode: [die]", "mode: [ok]")
    results[2].write_text(results[2].read_text()[:100])
    before = stamp_of(results[1])
    second = toy.call("run", "--only-runs", "--jobs", "2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "toy-d2/result.json" in second.stdout and "the run is repeated" in second.stdout
    assert "[1 of 3] finished already; 2 to run" in second.stdout and "[3 of 3] finished in" in second.stdout
    assert stamp_of(results[1]) == before and not (toy.run_dir("toy-d3") / "failure.json").exists()

    third = toy.call("run", "--only-runs")
    assert third.returncode == 0 and third.stdout == "[3 of 3] all runs are up to date\n"

    # Called directly, as on a cluster, Snakemake finds the same.
    command = [sys.executable, "-m", "snakemake", "-s", WORKFLOW / "Snakefile", "-d", toy.root, "-n", "--cores", "1"]
    command += ["--workflow-profile", WORKFLOW / "profiles" / "default"]
    dry = subprocess.run(command, env=toy.environment, capture_output=True, text=True, timeout=60)
    assert dry.returncode == 0 and "Nothing to be done" in dry.stdout + dry.stderr
