"""The whole grid under Snakemake: what runs, what runs again, what does not."""

import shutil
import subprocess
import sys
from pathlib import Path

from fragile_lib.study.params import load_specs

PROJECT = Path(__file__).parents[2]
WORKFLOW = PROJECT / "workflow"


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


def test_table_page_and_report_follow_the_runs(toy):
    for name in ("claims.yaml", "report.yaml"):
        shutil.copy(PROJECT / "params" / name, toy.params.parent)
    toy.finish()
    whole = toy.call("run")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert "all runs are up to date" in whole.stdout and "runs/quick/results.csv: 2 of 2 runs" in whole.stdout
    assert "page toy: executed" in whole.stdout
    index = toy.root / "runs" / "quick" / "report" / "index.html"
    assert f"report: open {index.as_uri()}" in whole.stdout and index.exists()
    assert not (toy.root / "reports").exists(), "the quick profile never touches the study of record"

    toy.edit("page: {depth: 1}", "page: {depth: 1, mode: error}")
    failed = toy.call("run")
    assert failed.returncode == 1 and "failed: page toy: AssertionError: told to fail" in failed.stdout
    assert "report: open" in failed.stdout, "the report is built all the same"


def test_the_grids_of_iris():
    iris = load_specs(PROJECT / "params")["iris"]
    for profile, seeds in (("laptop", 10), ("paper", 50)):
        runs = [run.parameters for run in iris.runs(profile)]
        points = {(p["activation"], p["depth"], p["width"], p["weight_decay"]) for p in runs}
        depths = {(a, d, 5, w) for a in ("relu", "tanh") for d in range(1, 9) for w in (0.005, 0.0)}
        widths = {("relu", 1, width, w) for width in (8, 14, 20, 30, 40, 50) for w in (0.005, 0.0)}
        assert points == depths | widths and len(runs) == len(points)
        assert all(p["seeds"] == list(range(seeds)) for p in runs)
        everywhere = [p for p in runs if "all" in p["train_choices"]]
        assert {(p["activation"], p["depth"], p["width"]) for p in everywhere} == {("relu", 1, 5)}
    assert len(iris.runs("quick")) == 4
    assert {run.run_id for run in iris.runs("quick")} < {run.run_id for run in iris.runs("laptop")}
