"""The quick profile, really run, from parameters to the report."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from fragile_lib.study.record_file import read_record, row_dicts

ROOT = Path(__file__).parents[2]
PRIMARY = {"test_choice": "max_loss", "train_choice": "top_influence"}
# Each file of parameters: what the study here has otherwise. Two threads wait for each other where tests run besides.
SMALLER = {
    "iris": {
        "set: {seeds: [0, 1, 2], repeats: 1": "set: {seeds: [0, 1], repeats: 1",
        "{depth: [1, 5], weight_decay: [0.005, 0.0]}":
            "{depth: [1, 5], weight_decay: [0.005]}\n      open: {depth: [5], weight_decay: [0.0]}",
    },
    "imagenet": {
        "standin_train: 3\n": "standin_train: 3\n      width_multiplier: 0.125\n",
        "limits: {threads: 2}": "limits: {threads: 1}",
        "lissa_depth: 3": "lissa_depth: 1",
        "<<: &small\n        epochs: 2": "<<: &small\n        epochs: 1",
        "cg_iterations: 2": "cg_iterations: 1",
    },
    "mnist_cifar10": {
        "width_multiplier: 0.25, test_count: 1": "width_multiplier: 0.125, train_count: 6, epochs: 4, test_count: 1",
    },
    "small_mnist": {
        "test_count: 2\n      train_count: 8": "test_count: 1\n      train_count: 8",
        "decay: {set: {seed: 0}, weight_decay: [0.001, 0.0]}":
            "decay: {set: {seed: 0}, weight_decay: [0.001]}\n      open: {set: {seed: 0, train_count: 6, "
            "truths: [pbrf, warm_minibatch, unrolled_minibatch]}, weight_decay: [0.0]}",
    },
    "your_model": {
        "{model: diabetes}, weight_decay: [0.03]}": "{model: diabetes, train_count: 5}, weight_decay: [0.03]}",
        "{model: digits, damping: 0.01, learning_rate: 0.01, steps: 300,":
            "{model: digits, train_count: 3, damping: 0.01, learning_rate: 0.01, steps: 150,",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A study root with the project's notebooks and parameters after the quick profile's runs but one, two seeds each.

    Of the pages those are made that have no runs of their own, and so see few rows here: every notebook is run as it
    opens by `make test-notebooks`.
    """
    root = tmp_path_factory.mktemp("quick")
    for name in ("params", "notebooks", "workflow"):
        shutil.copytree(ROOT / name, root / name)
    for name, changes in SMALLER.items():
        path = root / "params" / f"{name}.yaml"
        for given, smaller in changes.items():
            assert path.read_text().count(given) == 1
            path.write_text(path.read_text().replace(given, smaller))
    environment = os.environ | {"FRAGILE_ROOT": str(root)}
    said = ""
    for command in (
        "run --only-runs --jobs 1",
        "collect",
        "pages --notebook summary",
        "pages --notebook believe",
        "report",
    ):
        words = [sys.executable, "-m", "fragile_lib.study", *command.split(), "--profile", "quick"]
        call = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
        said += f"{command}: {call.returncode}\n{call.stdout}{call.stderr}"
    return SimpleNamespace(root=root, said=said, out=root / "runs" / "quick", environment=environment)


def found(folder: Path) -> tuple[dict, pd.DataFrame]:
    record = read_record(folder / "result.json")
    return record, pd.DataFrame(row_dicts(record))


def mean(table: pd.DataFrame, statistic: str, **where: object) -> float:
    for column, value in (PRIMARY | where).items():
        table = table[table[column] == value]
    assert len(table)
    return table[statistic].mean()


def test_every_run_is_recorded_and_collected(quick):
    assert re.findall(r"^(\w+)[^:\n]*: (\d+)$", quick.said, re.M) == [
        ("run", "0"), ("collect", "0"), ("pages", "0"), ("pages", "0"), ("report", "0")
    ], quick.said  # fmt: skip
    table = pd.read_csv(quick.out / "results.csv")
    assert table.run_id.nunique() == 11
    named = {"ok", "indefinite", "separable", "not_certified", "constant", "too_few"}
    assert set(table.status) <= named | {"not_converged", "solver_diverged"}
    iris = [found(path.parent)[0] for path in sorted(quick.out.glob("iris-*/result.json"))]
    assert len(iris) == 3
    for record in iris:
        assert record["seeds"] == [0, 1] and record["status"] == "ok"
        fits = {(seed, fit) for seed in (0, 1) for fit in ("descent", "certified")}
        assert {(c["seed"], c["fit"]) for c in record["certificates"]} == fits
        assert record["versions"]["torch"] and record["fingerprint"] and record["peak_memory_mb"] > 0
        assert record["orchestration_seconds"] >= 0


def test_small_mnist_is_recorded_with_every_truth_and_its_noise(quick):
    records = [found(path.parent) for path in sorted(quick.out.glob("small_mnist-*/result.json"))]
    assert {record["run"]["weight_decay"] for record, _ in records} == {0.0, 0.001}
    for record, table in records:
        assert record["status"] == "ok" and record["certificates"][0]["status"] in ("ok", "not_certified", "separable")
        assert {"warm_minibatch", "warm_minibatch_minus_control", "pbrf"} <= set(table.ground_truth)
        warm = table[table.ground_truth == "warm_minibatch"]
        assert warm[warm.train_choice == "top_influence"].spearman.notna().all()
        for _, chosen in warm.groupby("train_choice"):  # all that is chosen is left out, for test points of both kinds
            assert {"max_loss", "p50_loss"} <= set(chosen.test_choice)
        assert set(warm.train_choice) == {"top_influence", "p30_influence"}
        assert (table.solver_residual.dropna() < 1e-3).all()
        assert table.ceiling_spearman.notna().any()
        assert {p["test_choice"] for p in record["points"]} == {"max_loss"}
        # Removals that change little: nearly linear, so that the response follows the estimate that linearises it.
        little = table[(table.train_choice == "p30_influence") & (table.ground_truth == "pbrf") & (table.n_points >= 8)]
        if record["run"]["weight_decay"]:
            assert little[little.estimator == "exact_ggn"].spearman.mean() > 0.8


def test_a_model_of_ones_own_ends_with_what_to_believe(quick):
    """The regression is at a minimum, and its scores are what training anew and going on do."""
    (path,) = quick.out.glob("your_model-diabetes-*/result.json")
    record, table = found(path.parent)
    going_on = {"warm_minibatch", "warm_minibatch_minus_control", "unrolled_minibatch"}
    assert set(table.ground_truth) == {"scratch_fit"} | going_on
    for truth in ("scratch_fit", "warm_minibatch_minus_control"):
        assert mean(table, "spearman", estimator="exact", ground_truth=truth) > 0.7
        assert 0.8 < mean(table, "slope", estimator="exact", ground_truth=truth) < 1.3
    assert [line["so"] for line in record["beliefs"][:2]] == ["yes", "yes"] and len(record["beliefs"]) == 6
    (path,) = quick.out.glob("your_model-digits-*/result.json")
    record, table = found(path.parent)
    assert record["run"]["architecture"] == "RowTransformer" and table.reliability.notna().any()
    assert record["beliefs"][0]["so"].startswith("no") and record["beliefs"][1]["so"] == "yes"


def test_the_stand_in_goes_the_whole_way_and_judges_no_claim(quick):
    """At an eighth of the width; that of the whole is counted in tests/science/test_photographs.py."""
    (path,) = quick.out.glob("photographs-*/result.json")
    record, table = found(path.parent)
    assert record["run"]["n_params"] > 500_000 and record["run"]["dataset"] == "imagenet_standin"
    assert set(table.ground_truth) == {"warm_minibatch", "warm_minibatch_minus_control"}
    assert table.control_change.notna().any() and {"lissa_partition", "cg_ggn"} == set(table.estimator)
    assert min(record["throughput"].values()) > 0 and not record["unreadable"]
    text = BeautifulSoup((quick.out / "report" / "index.html").read_text(encoding="utf-8"), "html.parser")
    assert "not run" in text.find(id="claim-N1").get_text(" ").lower()


def test_numbers_of_the_shallow_decayed_network(quick):
    _, table = found(quick.out / "iris-relu-d1-w5-wd0.005")
    descent = {"fit": "descent", "estimator": "exact", "ground_truth": "warm_descent"}
    certified = {"fit": "certified", "estimator": "exact", "ground_truth": "minimum"}
    assert 0.8 < mean(table, "spearman", **descent) < 0.99
    assert 0.8 < mean(table, "slope", **descent) < 1.6
    assert mean(table, "spearman", **certified) > 0.98
    assert 1.0 < mean(table, "slope", **certified) < 2.0
    assert (table[table.fit == "certified"].grad_norm <= 1e-8).all()
    assert (table[table.fit == "descent"].grad_norm > 1e-4).all()
    assert (table[(table.estimator == "exact") & (table.fit == "certified")].solver_residual < 1e-10).all()


def test_subtracting_the_control_moves_no_correlation(quick):
    _, table = found(quick.out / "iris-relu-d5-w5-wd0.005")
    keys = ["seed", "test_choice", "train_choice", "estimator"]
    both = table[table.fit == "descent"].pivot(index=keys, columns="ground_truth", values="spearman")
    gap = (both["warm_descent"] - both["warm_descent_minus_control"]).abs()
    assert gap.max() < 0.02  # ties at the last digit may change places


def test_networks_without_decay_have_no_stationary_point(quick):
    _, table = found(quick.out / "iris-relu-d5-w5-wd0")
    certified = table[table.fit == "certified"]
    assert set(certified.status) == {"separable"} and certified.spearman.isna().all()


def test_the_flat_file_reruns_a_run_to_the_same_numbers(quick, tmp_path):
    run, notebook = quick.out / "iris-relu-d1-w5-wd0.005", quick.root / "notebooks" / "iris.ipynb"
    command = [sys.executable, "-m", "papermill", str(notebook), str(tmp_path / "o.ipynb")]
    command += ["-f", str(run / "params.yaml"), "-p", "output_dir", str(tmp_path / run.name), "-p", "grid_results", ""]
    command += ["-p", "profile", "quick", "-p", "run_id", run.name]
    environment = quick.environment | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, cwd=quick.root / "notebooks", check=True, capture_output=True, timeout=600)
    costs = ["seconds_estimate", "seconds_retrain", "memory_mb"]  # measured in the process, not computed
    first, again = (found(folder)[1].drop(columns=costs) for folder in (run, tmp_path / run.name))
    pd.testing.assert_frame_equal(first, again)


def test_the_report_judges_the_claims_and_links_to_nothing_missing(quick):
    index = quick.out / "report" / "index.html"
    text = BeautifulSoup(index.read_text(encoding="utf-8"), "html.parser").get_text(" ")
    assert re.search(r"I1\b.*reproduced", text, re.S)
    for folder in (index.parent, ROOT / "reports"):
        for page in folder.rglob("*.html"):
            for link in BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select("[href], [src]"):
                target = (link.get("href") or link.get("src")).split("#")[0]
                if target and not target.startswith(("http", "data:")):
                    assert (page.parent / target).exists(), (page.name, target)
