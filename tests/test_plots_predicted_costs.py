"""The table of predicted costs from synthetic records: it gives the model's numbers, and gaps do no harm."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bs4 import BeautifulSoup

from fragile_lib import plots
from fragile_lib.deep import cost, planned
from fragile_lib.deep.cost import CostModel
from fragile_lib.deep.planned import NetworkSize
from fragile_lib.plots import predicted_costs_rows as rows
from fragile_lib.study.files import study_root
from fragile_lib.study.params import load_spec

# Ratios that are easy to follow: a product is two training steps, so six forward passes.
KNOWN = {"step": (1e-3, 1e-10), "small_batch": (4e-3, 4e-10), "set_up": (1e-3, 1e-10)}
KNOWN |= dict.fromkeys(("hessian", "gauss_newton"), (2e-3, 2e-10))
TRUTH = CostModel(KNOWN, 3e7)
LAYERS = {"small_cnn": 5, "lenet": 8, "vgg13": 13, "vgg14": 14, "resnet18": 18, "resnet50": 50}
SIZES = {"small_cnn": 1, "lenet": 2, "vgg13": 10, "vgg14": 11, "resnet18": 20, "resnet50": 50}


def fake_size(architecture: str, dataset: str, width: float, norm: str, stem: str) -> NetworkSize:
    """In the place of real networks, which take a second each at full width."""
    wider = 1 if architecture in ("small_cnn", "lenet") else (width * 8) ** 2
    scale = SIZES[architecture] * (1 if dataset == "mnist" else 1.5) * wider
    return NetworkSize(int(4e5 * scale), int(3e3 * scale), int(1e4 * scale), LAYERS[architecture])


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    monkeypatch.setattr(rows, "network_size", fake_size)


@pytest.fixture(scope="module")
def spec():
    return load_spec(study_root() / "params" / "mnist_cifar10.yaml")


def make_record(run, **changes) -> dict:
    size = fake_size(*(run.parameters[k] for k in ("architecture", "dataset", "width_multiplier", "norm", "stem")))
    work = planned.planned_work(size, run.parameters, run.parameters["architecture"])
    for part, seconds in TRUTH.predict(work).items():
        work[part]["seconds"] = seconds
    for own in ("architecture", "n_train", "test_points", "layers"):
        del work[own]
    estimators = {"columns": ["estimator", "status"], "data": [[e, "ok"] for e in run.parameters["estimators"]]}
    memory = 1_000 + planned.run_memory_mb(size, 6, run.parameters["chunk"])
    content = {"schema": 1, "run_id": run.run_id, "profile": "laptop", "notebook": "mnist_cifar10", "status": "ok"}
    content |= {"run": {}, "parameters": run.parameters, "rows": estimators, "work": work, "device": "cpu"}
    return content | {"machine": "a machine", "threads": 1, "peak_memory_mb": memory} | changes


@pytest.fixture
def write(tmp_path):
    """Write records beside a results table, and return the table's path."""

    def writing(records, folder="records"):
        for record in records:
            place = tmp_path / folder / record["run_id"]
            place.mkdir(parents=True)
            (place / "result.json").write_text(json.dumps(record))
        return tmp_path / "results.csv"

    return writing


@pytest.fixture
def records(spec) -> list[dict]:
    return [make_record(run) for run in spec.runs("laptop") if run.parameters["seed"] == 0]


def test_one_row_for_each_network_with_the_models_numbers(write, records, spec):
    styler = plots.predicted_costs(write(records))
    table = styler.data
    names = ["small CNN", "LeNet", "VGG13", "VGG14", "ResNet-18", "ResNet-50"]
    expected = [(n, d) for n in names for d in ("MNIST", "CIFAR-10")]
    assert [key for key in table.index if key[1] != "CIFAR-100"] == expected
    run = next(r for r in spec.runs("paper") if r.run_id == "mnist-resnet50-wd0.001-adam-s0").parameters
    size, line = fake_size("resnet50", "mnist", 1.0, "batch", "small"), table.loc[("ResNet-50", "MNIST")]
    assert line["network", "parameters"] == f"{size.n_params:,}" and size.n_params == 9_600_000
    # Training: 50,000 images x 100 epochs x 3 forward passes of 1.28e9 operations at 1.6e13 a second.
    operations = 4e5 * 50 * 64
    assert line["network", "operations (10⁶)"] == "1,280.0"
    assert float(line["hours of a GPU", "training"]) == pytest.approx(5e6 * 3 * operations / 1.6e13 / 3600, abs=0.005)
    # CG: 16 x 101 products of 50,000 images and half as many as test points, each six forward passes.
    hours = 50_000 * (16 * 101 + 8) * 6 * operations / 1.6e13 / 3600
    assert float(line["hours of a GPU", "CG (GGN)"]) == pytest.approx(hours, rel=0.01)
    parts = [float(v) for (top, part), v in line.items() if top == "hours of a GPU" and part != "all"]
    assert len(parts) == 6 and float(line["hours of a GPU", "all"]) == pytest.approx(sum(parts), rel=0.01)
    memory = planned.run_memory_mb(size, 16, run["chunk"]) / 1e3
    assert float(line["", "memory (GB)"]) == pytest.approx(memory, rel=0.01)
    # LiSSA on a small network waits for its 5 layers of 10 microseconds in each pass of 10 or 256 images.
    n = 50_000
    hours = (n * 21 * 12 * 5e-5 / 10 + n * (16 + 8) * 6 * 5e-5 / 256) / 3600
    assert table.loc[("small CNN", "MNIST"), ("hours of a GPU", "LiSSA")] == f"{hours:.2f}" == "0.02"


def test_the_caption_says_what_stands_behind_it(write, records):
    caption = plots.predicted_costs(write(records)).caption
    for text in (
        "Predicted, not measured",
        f"{len(records)} runs of 12 networks (a machine, 1 thread)",
        "training 1.00 (1.00)",
        "gradient product 1.00 (1.00)",
        "12.0 for LiSSA's product of a minibatch, 6.00 for a Hessian product and 6.00 for a Gauss-Newton product",
        "16 × 10¹² operations a second in float32 was measured on one H100",
        "off by 0 in the median",
        "75% of a training step's seconds go with the operations",
        "Not modelled",
    ):
        assert text in caption, text
    assert "nan" not in caption.lower()


def test_held_out_errors_stand_in_the_caption(write, records):
    for record in records:
        if record["parameters"]["architecture"] == "resnet50":
            record["work"]["train"]["seconds"] *= 3
    caption = plots.predicted_costs(write(records)).caption
    assert "Runs of one network" not in caption  # all its runs are slow alike
    worst = float(caption.split("training ")[1].split("(")[1].split(")")[0])
    assert 2.5 < worst < 6


def test_a_busy_machine_is_told(write, records):
    records[0]["work"]["cg_ggn"]["seconds"] *= 2
    assert "differ by up to a factor of 2.00" in plots.predicted_costs(write(records)).caption


def test_only_records_of_this_notebook_on_a_cpu_count(write, records):
    others = [
        records[0] | {"run_id": "iris", "notebook": "iris"},
        records[0] | {"run_id": "gpu", "device": "cuda"},
        {k: v for k, v in records[0].items() if k != "work"} | {"run_id": "old"},
    ]
    table = write([*records, *others])
    (table.parent / "records" / "broken").mkdir()
    (table.parent / "records" / "broken" / "result.json").write_text("{")
    assert [r["run_id"] for r in rows.work_records(table)] == sorted(r["run_id"] for r in records)


def test_records_may_lie_beside_the_table(write, records):
    assert len(plots.predicted_costs(write(records, folder=".")).data)


def test_diverged_recursions_are_left_out_of_the_fit(write, records):
    for record in records[::2]:
        record["work"]["lissa"]["seconds"] = 1e-3
        record["rows"]["data"] = [[e, "solver_diverged" if e == "lissa" else s] for e, s in record["rows"]["data"]]
    assert "lissa" not in rows.work_of(records[0]) and "lissa" in rows.work_of(records[1])
    assert "LiSSA 1.00 (1.00)" in plots.predicted_costs(write(records)).caption


def test_too_little_gives_a_sentence(write, records, tmp_path):
    few = [r for r in records if r["parameters"]["architecture"] == "lenet"]
    for table in ("", tmp_path / "nowhere" / "results.csv", write(few)):
        styler = plots.predicted_costs(table)
        caption = BeautifulSoup(styler.to_html(), "html.parser").caption.text
        assert styler.data.empty and "No prediction" in caption and "distinct networks" in caption


def test_two_architectures_have_no_held_out_error(write, records):
    two = [r for r in records if r["parameters"]["architecture"] in ("lenet", "resnet50")]
    styler = plots.predicted_costs(write(two))
    assert len(styler.data) and "is not known" in styler.caption


def test_missing_estimators_give_a_sentence(write, records):
    for record in records:
        for part in ("lissa", "ekfac"):
            del record["work"][part]
    styler = plots.predicted_costs(write(records))
    assert styler.data.empty and "small_batch" in styler.caption


def test_the_page_is_the_same_each_time_and_readable(write, records):
    table = write(records)
    first = plots.predicted_costs(table).to_html()
    assert first == plots.predicted_costs(table).to_html() and "nan" not in first.lower()
    soup = BeautifulSoup(first, "html.parser")
    assert len(soup.tbody("tr")) >= 12 and "hours of a GPU" in soup.thead.text


def test_the_real_network_of_the_paper(monkeypatch):
    monkeypatch.undo()
    size = rows.network_size("resnet50", "cifar10", 1.0, "batch", "small")
    assert size.n_params == 23_520_842  # torchvision's 25,557,032, with a stem of 3x3 and ten classes
    assert size.n_params == 25_557_032 - 3 * 64 * (49 - 9) - 2048 * 990 - 990
    assert size.flops_per_image == pytest.approx(2.6e9, rel=0.01) and np.isclose(size.activations, 9.8e6, rtol=0.01)
    assert cost.PARTS[0] == "train" and size.layers == 157
