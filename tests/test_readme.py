"""What README shows can be run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from fragile_lib.estimates import influence
from fragile_lib.solvers import ExactSolver

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


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


def test_a_model_of_ones_own_goes_through_the_same_calls():
    training, calls = blocks("Your own model")
    assert sum(bool(line) for line in calls.splitlines()) <= 10
    torch.manual_seed(0)
    shown: dict = {}
    exec(training + calls, shown)
    found, network, points = shown["found"]["cg_ggn"], shown["network"], shown["points"]
    assert found.changes.shape == (1500, 20)
    assert found.status == "ok" and found.residual <= 1e-4
    exact = ExactSolver(network.train, network.theta, 0.01, gauss_newton=True)
    expected = influence(network, points, exact).changes
    assert np.abs(found.changes - expected).max() <= 1e-3 * np.abs(expected).max()


def test_every_file_it_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
