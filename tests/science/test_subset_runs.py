"""Runs of random subsets, by the notebooks' own cells at a tiny size: all rows are of subsets, by every estimator."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SUBSETS = {"removed_shares": [0.0, 0.5], "subsets": 4, "scratch_seeds": [0, 1]}
RUNS = {
    "iris": (
        {"seeds": [3], "steps": 300, "loo_steps": 30, "learning_rate": 0.05, "lissa_depth": 20} | {"certify": False},
        "scratch_descent",
    ),
    "mnist_cifar10": (
        {"n_train": 60, "n_test": 40, "epochs": 2, "test_count": 1, "own_curvature": [], "longer": [0.5]},
        "scratch_batches",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_subsets_has_rows_of_subsets_alone_with_each_truths_reliability(name, monkeypatch) -> None:
    monkeypatch.chdir(NOTEBOOKS)
    given, anew = RUNS[name]
    cells = [c for c in json.loads(Path(f"{name}.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    drawn = next(at for at, source in enumerate(sources) if source.startswith("# The grid's results"))
    names: dict = {"display": lambda *_: None}
    exec(sources[0], names)  # the parameters
    names |= SUBSETS | given | {"grid_results": ""}
    for source in sources[1:drawn]:
        exec(source, names)
    rows = names["rows"][names["rows"].test_point.notna()]
    assert set(rows.train_choice) == {"removed_0", "removed_0.5"} and set(rows.n_points) == {4}
    assert {*names["estimators"]} <= set(rows.estimator) and anew in set(rows.ground_truth)
    assert not rows.duplicated(["fit", "test_point", "train_choice", "estimator", "ground_truth"]).any()
    assert (rows.repeats == 2).all() and rows[rows.ground_truth == anew].estimator.nunique() >= 4
