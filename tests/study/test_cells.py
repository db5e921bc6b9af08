"""Runs without papermill: the toy study's, and the `gpu` profile at toy size on a CPU with few packages to import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from toy import wait_for

from fragile_lib.study.__main__ import main
from fragile_lib.study.params import load_spec
from fragile_lib.study.plan import prepare
from fragile_lib.study.record_file import read_record

PROJECT = Path(__file__).resolve().parents[2]
ABSENT = (
    "papermill nbclient nbformat nbconvert jupyter_client IPython ipykernel ipywidgets snakemake seaborn platformdirs"
)
BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {[*ABSENT.split(), "platformdirs"]}:
            raise ModuleNotFoundError(f"{{name}} is not on this machine")
sys.meta_path.insert(0, Blocker())
"""
TINY = {
    "source": "digits", "n_train": 40, "n_test": 20, "epochs": 2, "batch": 10, "train_count": 5, "repeats": 2,
    "lissa_depth": 3, "lissa_batch": 10, "chunk": 30, "device": "cpu",
}  # fmt: skip


def record_of(toy, run_id):
    return read_record(toy.run_dir(run_id) / "result.json")


def test_cells_give_the_record_that_papermill_gives(toy):
    prepare(toy.root, "quick")
    assert toy.call("execute", str(toy.run_dir("toy-d1"))).returncode == 0
    by_papermill = record_of(toy, "toy-d1")
    shutil.rmtree(toy.root / "runs")
    done = toy.call("cells", "--seconds", "100")
    assert done.returncode == 0, done.stderr
    assert "0 of 2 finished already" in done.stdout and "finished toy-d2 in " in done.stdout
    assert done.stdout.endswith("all are finished\n")
    same = ("run_id", "profile", "notebook", "run", "parameters", "rows", "seeds", "fingerprint", "status")
    assert {k: by_papermill[k] for k in same} == {k: record_of(toy, "toy-d1")[k] for k in same}
    assert by_papermill.keys() == record_of(toy, "toy-d1").keys()
    assert "2 of 2 finished already" in toy.call("cells").stdout
    assert "2 of 2 finished" in toy.call("list").stdout
    assert not list((toy.root / "runs").rglob(".partial*"))


def test_a_cell_that_fails_is_told_and_the_next_one_runs(toy):
    toy.edit("grids: {depths: {depth: [1, 2]}}", "grids: {bad: {depth: [1], set: {mode: error}}, good: {depth: [2]}}")
    done = toy.call("cells")
    assert done.returncode == 1 and "failed toy-d1: AssertionError: told to fail" in done.stdout
    assert "finished toy-d2 in " in done.stdout and "open: toy-d1\n" in done.stdout
    failure = json.loads((toy.run_dir("toy-d1") / "failure.json").read_text())
    assert failure["error"] == "AssertionError" and "toy.ipynb[3]" in failure["traceback"]


def test_a_notebook_without_a_record_fails(toy):
    toy.edit("mode: ok}", "mode: silent}")
    done = toy.call("cells")
    assert done.returncode == 1 and "the notebook ended without a good record" in done.stdout


def test_what_the_seconds_do_not_suffice_for_is_ended_and_told(toy):
    toy.edit("mode: ok}", "mode: hold}")
    (toy.notebook.parent / "hold").touch()
    done = toy.call("cells", "--seconds", "6")
    assert done.returncode == 0 and "toy-d1 was not finished in the 6 s" in done.stdout
    assert "open: toy-d1, toy-d2" in done.stdout and not toy.processes()
    killed = subprocess.Popen(toy.command("cells"), env=toy.environment, stdout=subprocess.DEVNULL)
    wait_for(lambda: list(toy.run_dir("toy-d1").glob(".partial-*/run.ipynb")), "a cell that computes")
    killed.kill()
    killed.wait()
    wait_for(lambda: not toy.processes(), "all to end", 20)


def test_no_seconds_are_refused(toy, capsys):
    for text, named in (("0", "seconds = 0.0"), ("nan", "seconds = nan")):
        assert main(["cells", "--seconds", text]) == 2
        assert f"{named}: give a number above 0" in capsys.readouterr().err


# -- the profile itself ----------------------------------------------------------------------------------------------


def test_the_profile_is_what_the_plan_asks_for():
    """Full width, 50,000 images, both sets, every architecture in order of importance, often enough repeated."""
    runs = [run.parameters for run in load_spec(PROJECT / "params" / "mnist_cifar10.yaml").runs("gpu")]
    names = ["lenet", "small_cnn", "vgg13", "resnet18", "resnet50"]
    assert [(p["dataset"], p["architecture"]) for p in runs] == [(d, a) for d in ("mnist", "cifar10") for a in names]
    for p in runs:
        assert p["n_train"] == 50_000 and p["width_multiplier"] == 1 and p["device"] == "cuda"
        assert p["repeats"] >= (16 if p["architecture"] in ("lenet", "small_cnn") else 4)


@pytest.mark.slow
def test_the_profile_runs_at_toy_size_on_a_cpu_with_little_more_than_torch(tmp_path):
    root, blocked = tmp_path / "study", tmp_path / "blocked"
    for folder in (root / "params", root / "notebooks", blocked):
        folder.mkdir(parents=True)
    shutil.copy(PROJECT / "notebooks" / "mnist_cifar10.ipynb", root / "notebooks")
    content = yaml.safe_load((PROJECT / "params" / "mnist_cifar10.yaml").read_text())
    gpu = content["profiles"]["gpu"]
    gpu["grids"] = {"deepest_mnist": gpu["grids"]["deepest_mnist"]}
    axes = gpu["grids"]["deepest_mnist"]
    axes["set"] = axes.get("set", {}) | TINY | {"width_multiplier": 0.125, "architecture": "resnet18"}
    (root / "params" / "mnist_cifar10.yaml").write_text(yaml.safe_dump(content))
    (blocked / "sitecustomize.py").write_text(BLOCKER)
    paths = os.pathsep.join([str(blocked), str(PROJECT)])
    environment = {**os.environ, "FRAGILE_ROOT": str(root), "PYTHONPATH": paths, "FRAGILE_DATA": str(tmp_path / "none")}
    command = [sys.executable, "-m", "fragile_lib.study", "cells", "--profile", "gpu", "--seconds", "300"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("all are finished\n"), done.stdout + done.stderr
    (path,) = (root / "runs" / "gpu").glob("*/result.json")
    record = read_record(path)
    rows = [dict(zip(record["rows"]["columns"], row, strict=True)) for row in record["rows"]["data"]]
    found = {(row["estimator"], row["ground_truth"]) for row in rows}
    assert found >= {("ekfac", "warm_minibatch"), ("identity", "unrolled_minibatch")}
    assert {row["repeats"] for row in rows if row["ground_truth"] == "warm_minibatch"} >= {2}
    assert record["profile"] == "gpu" and record["device"] == "cpu" and "cores" in record["machine"]
    blocked_one = subprocess.run([sys.executable, "-c", "import seaborn"], env=environment, capture_output=True)
    assert blocked_one.returncode == 1  # the blocker does block
