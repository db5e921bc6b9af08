"""The rows and the caption of `predicted_costs`: the cost model of `deep.cost`, fitted to records and laid out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fragile_lib.deep import cost, planned
from fragile_lib.deep.cost import CostModel
from fragile_lib.deep.planned import NetworkSize
from fragile_lib.models.architectures import build, input_of
from fragile_lib.plots import words
from fragile_lib.plots.architectures_rows import ARCHITECTURES, DATASETS, name
from fragile_lib.study.collect import read_records
from fragile_lib.study.files import study_root
from fragile_lib.study.params import load_spec
from fragile_lib.study.record import row_dicts
from fragile_lib.tools.errors import InputError

NOTEBOOK = "mnist_cifar10"
RATE = 1.6e13  # operations a second in float32: a training step of ResNet-50, 100 images of 32 pixels, on an H100
LAUNCH = 1e-5  # seconds before the computation of a layer begins: an assumption
EKFAC_BATCH = 64  # images in a pass of EK-FAC's set-up
PARTS = {"train": "training", "retrain": "retraining"} | {p: name(p) for p in ("lissa", "cg_ggn", "ekfac", "identity")}
KINDS = {
    "small_batch": "LiSSA's product of a minibatch",
    "hessian": "a Hessian product",
    "gauss_newton": "a Gauss-Newton product",
}


def costs_table(grid_results: str | Path) -> tuple[pd.DataFrame, str]:
    """The table of `predicted_costs` and its caption."""
    records = work_records(grid_results)
    works = [work_of(r) for r in records]
    try:
        model = cost.fit(works)
        wanted = _planned(load_spec(study_root() / "params" / f"{NOTEBOOK}.yaml").runs("paper"))
        lines = {key: _line(model, *of_run) for key, of_run in wanted.items()}
    except (InputError, OSError) as error:
        return pd.DataFrame(), f"No prediction of what the published scale would cost: {error}."
    table = pd.DataFrame(list(lines.values()), index=pd.MultiIndex.from_tuples(lines))
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    return table, _caption(model, works, records, [p for p, _ in wanted.values()])


def work_records(grid_results: str | Path) -> list[dict[str, Any]]:
    """The records beside a results table that say what was computed on a CPU; they lie where `read_points` looks."""
    if not str(grid_results):
        return []
    place = (study_root() / "notebooks" / grid_results).parent
    place = place / "records" if (place / "records").is_dir() else place
    records, _ = read_records(sorted(place.glob("*/result.json")))
    return [r for r in records if r["notebook"] == NOTEBOOK and r.get("work") and r.get("device") == "cpu"]


def work_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record's work with what `deep.cost` needs beside it, without recursions that were ended as diverged."""
    ended = {row["estimator"] for row in row_dicts(record) if row.get("status") == "solver_diverged"}
    p = record["parameters"]
    return {
        "architecture": p["architecture"],
        "n_train": p["n_train"],
        "test_points": 2 * p["test_count"],
        **{part: value for part, value in record["work"].items() if part not in ended},
    }


@lru_cache(maxsize=64)
def network_size(architecture: str, dataset: str, width_multiplier: float, norm: str, stem: str) -> NetworkSize:
    """The size of a network on a data set's images; it is built, and nothing is computed with it."""
    channels, size, n_classes = input_of(dataset)
    module = build(architecture, channels, size, n_classes, width_multiplier, norm, stem)
    return planned.size_of(module, (channels, size, size))


def _size(parameters: Mapping[str, Any]) -> NetworkSize:
    return network_size(*(parameters[k] for k in ("architecture", "dataset", "width_multiplier", "norm", "stem")))


def _planned(runs: Iterable) -> dict[tuple[str, str], tuple[Mapping, NetworkSize]]:
    """Parameters and size by architecture and data set, in the order of the other tables, over all weight decays."""
    found = {(run.parameters["architecture"], run.parameters["dataset"]): run.parameters for run in runs}
    order = [(a, d) for a in ARCHITECTURES for d in DATASETS if (a, d) in found]
    return {(name(a), name(d)): (found[a, d], _size(found[a, d])) for a, d in order}


def _line(model: CostModel, parameters: Mapping[str, Any], size: NetworkSize) -> dict[tuple[str, str], str]:
    work = planned.planned_work(size, parameters)
    p = parameters
    batches = {"step": p["batch"], "small_batch": p["lissa_batch"], "set_up": EKFAC_BATCH}
    batches |= dict.fromkeys(("hessian", "gauss_newton"), p["chunk"])
    seconds = model.accelerator_seconds(work, batches, RATE, LAUNCH)
    memory = planned.run_memory_mb(size, work["test_points"], p["chunk"], p["optimiser"])
    return {
        ("network", "parameters"): f"{size.n_params:,}",
        ("network", "operations (10⁶)"): f"{size.flops_per_image / 1e6:,.1f}",
        **{("hours of a GPU", PARTS[part]): _hours(s) for part, s in seconds.items()},
        ("hours of a GPU", "all"): _hours(sum(seconds.values())),
        ("", "memory (GB)"): words.number(memory / 1e3),
    }


def _hours(seconds: float) -> str:
    return words.number(seconds / 3600) if seconds >= 18 else "below 0.01"


def _caption(model: CostModel, works: Sequence, records: Sequence, wanted: Sequence[Mapping]) -> str:
    kinds = [f"{words.number(model.forward_passes(k))} for {KINDS[k]}" for k in KINDS if k in model.coefficients]
    networks, again = len({cost.network_of(w) for w in works}), cost.repeat_factor(works)
    machines = sorted({f"{r['machine']}, {r['threads']} thread{'s' if r['threads'] != 1 else ''}" for r in records})
    factor = max(p["n_train"] for p in wanted) / max(w["n_train"] for w in works)
    return words.sentences(
        "Predicted, not measured: one run of the profile paper for each network, whatever the weight decay, with the "
        "operations of a forward pass on one image",
        "Seconds for each image of each kind of pass, as a constant and a multiple of the operations, were fitted to "
        f"{len(works)} runs of {networks} networks ({'; '.join(machines)})",
        _errors(works),
        f"Runs of one network differ by up to a factor of {again:.2f} in a part, which no such model can tell"
        if again > 1.5
        else "",
        f"From the fit a pass takes as long as, in forward passes, {words.joined(kinds)}; a training step is set to 3",
        f"By the fit, in the largest measured network {100 * model.computing:.0f}% of a training step's seconds go "
        "with the operations, the rest is the same for every network",
        f"That a GPU sustains {RATE / 1e12:g} × 10¹² operations a second in float32 was measured on one H100, for "
        "training steps of ResNet-50 on batches of 100 images of 32 pixels; that each layer of each pass takes at "
        f"least {LAUNCH * 1e6:g} µs, which rules for small networks and small batches, is an assumption: hours are "
        "forward passes times the longer of the two",
        f"An upper bound of the work: no image is left out for two test points, CG takes all its iterations. The "
        f"networks are up to {_times(model, wanted)} times as large in operations as any that was measured, the "
        f"training sets {factor:,.0f} times",
        _memory(works, records),
        "Not modelled: reading data, evaluation and certificates, the eigenvectors of EK-FAC's factors and "
        "their memory, and that wide layers and large batches run faster than narrow layers and small batches",
    )


def _times(model: CostModel, wanted: Sequence[Mapping]) -> str:
    return f"{max(_size(p).flops_per_image for p in wanted) / model.flops:,.0f}"


def _errors(works: Sequence) -> str:
    """What the fit says of architectures that it has not seen, as factors."""
    try:
        found = cost.held_out_errors(works)
    except InputError:
        return "How well it predicts an architecture that it has not seen is not known: there are too few"
    parts = [f"{PARTS[p]} {exp(e.median):.2f} ({exp(e.worst):.2f})" for p, e in found.items()]
    return (
        "Fitted without each architecture in turn, it is off on that one by a factor of, in the median (and at worst), "
        + ", ".join(parts)
    )


def _memory(works: Sequence, records: Sequence) -> str:
    """Predicted and measured megabytes of each architecture above the smallest run on the same data set."""
    runs = [
        (r["parameters"], float(r["peak_memory_mb"]), w["test_points"]) for r, w in zip(records, works, strict=True)
    ]
    rows = [
        (p["dataset"], p["architecture"], mb, planned.run_memory_mb(_size(p), m, p["chunk"], p["optimiser"]))
        for p, mb, m in runs
    ]
    table = pd.DataFrame(rows, columns=["dataset", "architecture", "measured", "predicted"])
    least = table.loc[table.groupby("dataset")["measured"].idxmin()].set_index("dataset")
    for column in ("measured", "predicted"):
        table[column] -= table["dataset"].map(least[column])
    by = table.groupby("architecture")[["predicted", "measured"]].median()
    parts = [f"{name(a)} {by.predicted[a]:.0f} for {by.measured[a]:.0f}" for a in ARCHITECTURES if a in by.index]
    off = float(np.median((table["predicted"] - table["measured"]).abs()))
    return (
        "Memory is a formula fitted to nothing: weights, gradient and moments, six blocks of test gradients, a chunk's "
        "activations with their tangents. Of the megabytes above the smallest run on the same data set it gives, for "
        f"those measured, {', '.join(parts)}: off by {off:.0f} in the median"
    )
