"""What README shows can be run as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml

from fragile_lib.choices import Points
from fragile_lib.estimates import influence
from fragile_lib.own import Studied
from fragile_lib.solvers import ExactSolver
from fragile_lib.study.params import load_specs
from fragile_lib.study.plan import prepare
from fragile_lib.tools.files import dump_yaml, load_yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(section):
    """The python code of a section of README."""
    (text,) = re.findall(rf"^## {section}\n(.*?)^## ", README, re.S | re.M)
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_library_in_ten_lines_gives_the_scores_and_rows_it_promises():
    (block,) = blocks("The library in ten lines")
    namespace: dict = {}
    exec(block, namespace)
    scores = namespace["scores"][0]["exact"].changes
    assert scores.shape == (120, 4) and np.isfinite(scores).all() and np.abs(scores).max() > 1e-3
    rows = namespace["rows"]
    assert len(rows) == 4 and all(row["n_points"] >= 16 and row["spearman"] > 0.8 for row in rows)


def test_a_model_of_ones_own_goes_from_scores_to_their_reliability(tmp_path, monkeypatch):
    training, calls, again = blocks("Your own model")
    assert max(sum(bool(line) for line in block.splitlines()) for block in (calls, again)) <= 10
    monkeypatch.chdir(tmp_path)
    shown: dict = {}
    exec(training + calls + again, shown)
    found, told = shown["found"], shown["found"].agreement(shown["again"])
    assert found.scores.shape == (1000, 20) and found.status == "ok" and found.residual <= 1e-4
    exact = ExactSolver(found.network.train, found.network.theta, 1e-3, gauss_newton=True)
    points = Points(np.arange(20), ["all"] * 20)
    expected = influence(found.network, points, exact).changes
    assert np.abs(found.scores - expected).max() <= 1e-3 * np.abs(expected).max()
    np.testing.assert_array_equal(Studied.load(tmp_path / "scores.safetensors").scores, found.scores)
    assert told.reliability[0] > 0.5 and told.spearman[0] > 0.5


def test_every_file_it_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


# -- commands, on a study whose notebooks hold nothing but their parameters and a record ------------------------------

RECORD = """
from fragile_lib.study import check_parameters, read_results, record
parameters = check_parameters("{name}", globals())
print(len(read_results(grid_results)), "rows of the grid")
row = {{"seed": 0, "test_choice": "max_loss", "estimator": "exact", "ground_truth": "minimum", "spearman": 0.5}}
if "output_dir" in globals():
    record(output_dir=output_dir, run_id=run_id, profile=profile, notebook="{name}", run={{"dataset": "toy"}},
           parameters=parameters, rows=[row], seeds=[0])
"""


# The notebooks and the profiles that README's commands speak of, and pages of two notebooks, as each is a kernel.
KEPT = {"iris": ("quick", "laptop"), "mnist_cifar10": ("gpu",), "imagenet": ("paper",)}
KEPT |= dict.fromkeys(("small_mnist", "summary"), ())
PAGES = ("iris", "summary")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project at toy size: parameters files and notebooks, with one run a profile that records one row."""
    root = tmp_path_factory.mktemp("readme") / "project"
    for name in ("params", "workflow"):
        shutil.copytree(ROOT / name, root / name)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    for name in ("notebooks", "tests", "data/imagenet/train", "reports"):
        (root / name).mkdir(parents=True)
    (root / "reports" / "results.csv").write_text("run_id\n")
    (root / "tests" / "test_toy.py").write_text("def test_toy():\n    pass\n")
    (root / ".venv").symlink_to(sys.prefix)
    os.environ["FRAGILE_DATA"] = str(root / "data")  # as the grids that need data are cut, too
    for name, spec in load_specs(ROOT / "params").items():
        if name not in KEPT:
            (root / "params" / f"{name}.yaml").unlink()
            continue
        content = load_yaml(root / "params" / f"{name}.yaml")
        content["profiles"] = {}
        if name not in PAGES:
            content.pop("page", None)
        for profile in KEPT[name]:
            run = spec.runs(profile)[0]
            (first, value), *others = run.parameters.items()
            grid = {"run_id": run.run_id, "set": dict(others), first: [value]}
            content["profiles"][profile] = {"grids": {"one": grid}}
        (root / "params" / f"{name}.yaml").write_text(dump_yaml(content))
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        notebook.cells = [*cells, nbformat.v4.new_code_cell(RECORD.format(name=name))]
        nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")
    prepare(root, "quick")
    del os.environ["FRAGILE_DATA"]
    return root


def shell(project, block, *changes, expected=0):
    """Run a block of commands in the toy project, after some changes; return what they say."""
    for old, new in changes:
        assert old in block
        block = block.replace(old, new)
    environment = os.environ | {"FRAGILE_ROOT": str(project), "FRAGILE_DATA": str(project / "data")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["PYTHONPATH"] = str(ROOT)
    lines = [f"( {line} )" if line.startswith("cd ") else line for line in block.splitlines()]
    words = ["bash", "-euc", "\n".join(lines)]
    call = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, timeout=900)
    assert call.returncode == expected, call.stdout + call.stderr
    return call.stdout + call.stderr


def two_commands(project, block):
    said = shell(project, block, ("make study", "make study VENV="), ("make test", "make test VENV="))
    assert "iris-relu-d1-w5-wd0.005" in said and "report: open file:" in said and "failed" not in said


def whole_studies(project, block):
    said = shell(project, block, ("make study", "make study VENV="), ("make lab", "make lab VENV= LAB_ARGS=--version"))
    assert (project / "reports" / "index.html").exists() and "[1 of 1] all runs are up to date" in said


def by_hand(project, block):
    assert not re.search("failed|Error", shell(project, block))
    specs = load_specs(ROOT / "params")
    for line in block.splitlines():  # the notebooks themselves take these values
        (name,) = re.findall(r"papermill (\w+)\.ipynb", line)
        for parameter, value in re.findall(r"-p (\w+) (\S+)", line):
            specs[name].declarations[parameter].check(yaml.safe_load(value))


def imagenet(project, block):
    (torchrun,) = re.findall("torchrun.*\n", block)
    said = shell(project, block, ("/data", str(project / "data")), ("make study", "make study VENV="), (torchrun, ""))
    assert "[1 of 1] finished in" in said
    alone = (("8", "1"), ("$FRAGILE_DATA/imagenet-checkpoint/scores", str(project / "nowhere")))
    assert "nowhere" in shell(project, torchrun, *alone, expected=1)


def own_grid(project, block):
    """A profile of one file alone, with every command, with and without a notebook, and in the Snakefile."""
    path = project / "params" / "iris.yaml"
    before = path.read_text()
    assert block.startswith("profiles:\n")
    path.write_text(before.replace("profiles:\n", block, 1))
    study = "python -m fragile_lib.study"
    try:
        for chosen in ("", " --notebook iris"):
            assert "0 of 4 finished" in shell(project, f"{study} list --profile mine{chosen}")
        cluster = "snakemake -s workflow/Snakefile --workflow-profile workflow/profiles/default --config profile=mine"
        for chosen in ("", " notebook=iris"):
            assert re.search(r"run +4\b", shell(project, f"{cluster}{chosen} -n --cores 1"))
        said = shell(project, "make study VENV= PROFILE=mine NOTEBOOK=iris")
        assert "[4 of 4] finished in" in said and "page iris: executed" in said and "page summary" not in said
        said = shell(project, "make study VENV= PROFILE=mine")
        assert "[4 of 4] all runs are up to date" in said and "page summary: executed" in said
        for command in ("collect", "pages", "report"):
            shell(project, f"{study} {command} --profile mine")
        assert "profile = 'mine': is never published" in shell(project, f"{study} publish --profile mine", expected=2)
        assert "Nothing to be done" in shell(project, f"{cluster} --cores 1")
        assert len((project / "runs/mine/results.csv").read_text().splitlines()) == 5
    finally:
        path.write_text(before)


def on_a_card(project, block):
    said = shell(project, block, ("/data", str(project / "data")), ("--seconds 600", "--seconds 60"))
    assert "all are finished" in said


def on_a_cluster(project, block):
    """With this machine for an executor: the same on a SLURM is in tests/study/test_slurm.py."""
    install, *rest = block.splitlines()
    assert install == "pip install snakemake-executor-plugin-slurm"
    said = shell(project, "\n".join(rest), ("workflow/profiles/slurm", "workflow/profiles/default --cores 1"))
    assert re.search("This was a dry-run|Nothing to be done", said) and "[1 of 1] all runs are up to date" in said


RECIPES = {  # by the word that each block of commands holds
    "make test": two_commands,
    "make lab": whole_studies,
    "iris.ipynb": by_hand,
    "mnist_cifar10.ipynb": by_hand,
    "torchrun": imagenet,
    "profiles:": own_grid,
    "--profile gpu": on_a_card,
    "pip install": on_a_cluster,
}
COMMANDS = [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", README, re.S | re.M) if kind != "python"]


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(COMMANDS)))
def test_every_block_of_commands_does_what_it_says(project, place):
    (recipe,) = [recipe for word, recipe in RECIPES.items() if word in COMMANDS[place]]
    recipe(project, COMMANDS[place])


def test_every_block_of_python_is_run_above():
    found = re.findall(r"^```python\n", README, re.M)
    assert len(found) == sum(len(blocks(section)) for section in ("The library in ten lines", "Your own model"))
