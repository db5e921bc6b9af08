"""What README shows can be run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from fragile_lib.influence import influence

from fragile_lib.solvers import ExactSolver

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(section):
    """The python code of a section of README."""
    (text,) = re.findall(rf"^## {section}\n(.*?)^## ", README, re.S | re.M)
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_ten_lines_give_the_scores_they_promise():
    (block,) = blocks("The library in ten lines")
    namespace: dict = {}
    exec(block, namespace)
    scores = namespace["scores"]
    assert scores.shape == (120, 30)
    assert torch.isfinite(scores).all()
    assert scores.abs().max() > 1e-3


def test_a_solver_takes_a_model_of_ones_own_in_ten_lines():
    training, ten_lines = blocks("Use a solver on your own model")
    assert sum(bool(line) for line in ten_lines.splitlines()) == 10
    torch.manual_seed(0)
    shown: dict = {}
    exec(training + ten_lines, shown)
    estimate, model, solver = shown["estimate"], shown["model"], shown["solver"]
    assert estimate.changes.shape == (1500, 20)
    assert estimate.status == "ok"
    assert estimate.residual <= solver.tolerance
    exact = ExactSolver(shown["train"], model.theta, 0.01, gauss_newton=True)
    arguments = shown["train"], shown["test"], model.theta, shown["removals"], torch.arange(20)
    expected = influence(*arguments, exact).changes
    assert (estimate.changes - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_every_file_it_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
