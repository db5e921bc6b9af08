"""The quick profile, really run, from parameters to the report; and the committed study of record."""

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

from fragile_lib.study.record import read_record, rows_frame

ROOT = Path(__file__).parents[2]
PAGES = [f"{name}.html" for name in ("index", "iris", "small_mnist", "mnist_cifar10", "imagenet", "summary")]
PRIMARY = {"test_choice": "max_loss", "train_choice": "top_influence"}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A study root with the project's own notebooks and parameters, after `study run --profile quick`."""
    root = tmp_path_factory.mktemp("quick")
    for name in ("params", "notebooks", "workflow"):
        shutil.copytree(ROOT / name, root / name)
    environment = os.environ | {"FRAGILE_ROOT": str(root)}
    command = [sys.executable, "-m", "fragile_lib.study", "run", "--profile", "quick", "--jobs", "1"]
    call = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    return SimpleNamespace(root=root, call=call, out=root / "runs" / "quick", environment=environment)


def mean(table: pd.DataFrame, statistic: str, **where: object) -> float:
    for column, value in (PRIMARY | where).items():
        table = table[table[column] == value]
    assert len(table)
    return table[statistic].mean()


def test_every_run_is_recorded_with_certificates(quick):
    assert quick.call.returncode == 0, quick.call.stdout + quick.call.stderr
    records = [read_record(path) for path in sorted(quick.out.glob("iris-*/result.json"))]
    assert len(records) == 4
    for found in records:
        assert found["seeds"] == [0, 1, 2]
        assert found["status"] == "ok"
        assert {(c["seed"], c["fit"]) for c in found["certificates"]} == {
            (seed, fit) for seed in (0, 1, 2) for fit in ("descent", "certified")
        }
        assert found["versions"]["torch"] and found["fingerprint"] and found["peak_memory_mb"] > 0
        assert found["orchestration_seconds"] >= 0


def test_small_mnist_is_recorded_with_every_truth_and_its_noise(quick):
    records = [read_record(path) for path in sorted(quick.out.glob("small_mnist-*/result.json"))]
    assert {found["run"]["weight_decay"] for found in records} == {0.0, 0.001}
    for found in records:
        table = rows_frame(found)
        assert found["status"] == "ok" and found["certificates"][0]["status"] in ("ok", "not_certified", "separable")
        assert {"loo_warm", "loo_warm_minus_control", "pbrf"} <= set(table.ground_truth)
        warm = table[table.ground_truth == "loo_warm"]
        assert warm[warm.train_choice == "top_influence"].spearman.notna().all()
        for _, chosen in warm.groupby("train_choice"):  # all that is chosen is left out, for test points of both kinds
            assert {"max_loss", "p50_loss"} <= set(chosen.test_choice)
        assert set(warm.train_choice) == {"top_influence", "p30_influence"}
        assert (table.solver_residual.dropna() < 1e-3).all()
        assert table.ceiling_spearman.notna().any()
        assert {p["test_choice"] for p in found["points"]} == {"max_loss"}


def test_the_stand_in_goes_the_whole_way_at_full_width_and_judges_no_claim(quick):
    (path,) = quick.out.glob("photographs-*/result.json")
    found = read_record(path)
    table = rows_frame(found)
    assert found["run"]["n_params"] == 25_557_032 and found["run"]["dataset"] == "imagenet_standin"
    assert set(table.ground_truth) == {"loo_warm", "loo_warm_minus_control"}
    assert table.control_change.notna().any() and {"lissa", "cg_ggn"} == set(table.estimator)
    assert min(found["throughput"].values()) > 0 and not found["unreadable"]
    text = BeautifulSoup((quick.out / "report" / "index.html").read_text(encoding="utf-8"), "html.parser")
    assert "not run" in text.find(id="claim-N1").get_text(" ").lower()


def test_damped_gauss_newton_estimates_follow_the_response_that_they_linearise(quick):
    table = rows_frame(read_record(quick.out / "small_mnist-wd0.001-s0" / "result.json"))
    little = table[(table.train_choice == "p30_influence") & (table.ground_truth == "pbrf") & (table.n_points >= 8)]
    assert little[little.estimator == "exact_ggn"].spearman.mean() > 0.8  # small removals: nearly linear


def test_numbers_of_the_shallow_decayed_network(quick):
    table = rows_frame(read_record(quick.out / "iris-relu-d1-w5-wd0.005" / "result.json"))
    descent = {"fit": "descent", "estimator": "exact", "ground_truth": "loo_warm"}
    certified = {"fit": "certified", "estimator": "exact", "ground_truth": "loo_certified"}
    assert 0.8 < mean(table, "spearman", **descent) < 0.99
    assert 0.8 < mean(table, "slope", **descent) < 1.6
    assert mean(table, "spearman", **certified) > 0.98
    assert 1.0 < mean(table, "slope", **certified) < 2.0
    assert (table[table.fit == "certified"].grad_norm <= 1e-8).all()
    assert (table[table.fit == "descent"].grad_norm > 1e-4).all()
    assert (table[(table.estimator == "exact") & (table.fit == "certified")].solver_residual < 1e-10).all()


def test_subtracting_the_control_moves_no_correlation(quick):
    table = rows_frame(read_record(quick.out / "iris-relu-d5-w5-wd0.005" / "result.json"))
    keys = ["seed", "test_choice", "train_choice", "estimator"]
    both = table[table.fit == "descent"].pivot(index=keys, columns="ground_truth", values="spearman")
    gap = (both["loo_warm"] - both["loo_warm_minus_control"]).abs()
    assert gap.max() < 0.02  # ties at the last digit may change places


def test_networks_without_decay_have_no_stationary_point(quick):
    table = rows_frame(read_record(quick.out / "iris-relu-d5-w5-wd0" / "result.json"))
    certified = table[table.fit == "certified"]
    assert set(certified.status) == {"separable"}
    assert certified.spearman.isna().all()


def test_the_flat_file_reruns_a_run_to_the_same_numbers(quick, tmp_path):
    run = quick.out / "iris-relu-d1-w5-wd0.005"
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(quick.root / "notebooks" / "iris.ipynb"),
        str(tmp_path / "o.ipynb"),
    ]
    command += ["-f", str(run / "params.yaml"), "-p", "output_dir", str(tmp_path), "-p", "grid_results", ""]
    command += ["-p", "profile", "quick", "-p", "run_id", run.name]
    environment = quick.environment | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, cwd=quick.root / "notebooks", check=True, capture_output=True, timeout=600)
    seconds = ["seconds_estimate", "seconds_retrain"]
    first, again = (rows_frame(read_record(p / "result.json")).drop(columns=seconds) for p in (run, tmp_path))
    pd.testing.assert_frame_equal(first, again)


def test_the_results_table_is_all_records_together(quick):
    table = pd.read_csv(quick.out / "results.csv")
    assert table.run_id.nunique() == 9
    named = {"ok", "indefinite", "separable", "not_certified", "constant", "too_few"}
    assert set(table.status) <= named | {"not_converged", "solver_diverged"}


def test_the_report_judges_the_claims_and_links_to_nothing_missing(quick):
    index = quick.out / "report" / "index.html"
    text = BeautifulSoup(index.read_text(encoding="utf-8"), "html.parser").get_text(" ")
    assert re.search(r"I1\b.*reproduced", text, re.S)
    for page in index.parent.rglob("*.html"):
        for link in BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select("[href], [src]"):
            target = (link.get("href") or link.get("src")).split("#")[0]
            if target and not target.startswith(("http", "data:")):
                assert (page.parent / target).exists(), (page.name, target)


@pytest.mark.browser
@pytest.mark.parametrize("page", PAGES)
def test_the_study_of_record_reads_on_a_phone_and_asks_nobody(chromium, page):
    context = chromium.new_context(viewport={"width": 360, "height": 800})
    tab, asked = context.new_page(), []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((ROOT / "reports" / page).as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize("page", PAGES)
def test_the_study_of_record_is_accessible(chromium, page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.goto((ROOT / "reports" / page).as_uri())
    found = axe.Axe().run(tab).response["violations"]
    assert not found, [(v["id"], v["nodes"][0]["html"][:200]) for v in found]
    tab.close()
