"""Seconds, memory and correctness of this library and of others on the same work: `make bench-peers`.

CASE=logistic, mlp, cnn, resnet or traps measures one alone and leaves what else stands in reports/peers.json. The
libraries take turns, and the median of each counts, in processor time, since other work may be on the machine; memory
is the rise of a process of its own. The errors are against
the dense matrix in float64 of the method (the Hessian, the Gauss-Newton matrix, or none), the ranks against certified
minima without single examples. What would take too long, or cannot be done, stands in `SKIPPED` with the reason.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from time import process_time

import captum.influence  # noqa: F401  here, so that the processes of `memory` begin with all that a library imports
import curvlinops.examples  # noqa: F401
import dattri.algorithm.influence_function  # noqa: F401
import kronfluence.analyzer  # noqa: F401
import numpy as np
import torch
import trak  # noqa: F401
from adapters import CONVENTIONS, METHODS
from problems import CASES, Problem
from scipy.stats import spearmanr
from torch import Tensor
from traps import TRAPS, off

from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.network.dense import cnn_objective
from fragile_lib.tools.files import write_whole
from fragile_lib.tools.measure import Peak

OUT = Path(__file__).parents[2] / "reports" / "peers.json"
LIBRARIES = ("captum", "curvlinops-for-pytorch", "dattri", "kronfluence", "traker", "torch", "numpy", "scipy")
REPEATS = {"logistic": 2, "mlp": 2, "cnn": 1, "resnet": 1}
LEFT_OUT = {"logistic": 1, "mlp": 10, "cnn": 55}  # every so many-th example is left out for real
TITLES = {
    "logistic": "Logistic regression, breast cancer",
    "mlp": "Perceptron with one hidden layer, digits",
    "cnn": "Small convolutional network, MNIST",
    "resnet": "ResNet-18 at a quarter of the width, CIFAR-10",
}
LONG = "a Hessian by a backward pass for each parameter, longer than this whole comparison may take"
NO_MATRIX = "701,466 parameters: a matrix of that size needs 2 TB"
HOURS = "hundreds of products with all images for every test image: hours"
NORMS = "does not treat the scales and shifts of batch normalisation"
# (case, method, library; None: all) -> why not.
SKIPPED: dict[tuple[str, str, str | None], str] = {
    ("cnn", "exact", "captum"): LONG,
    ("cnn", "exact", "torch-influence"): LONG,
    ("cnn", "exact", "dattri"): "its Hessian is one vectorised pass over all images and parameters: 100 GB and more",
    ("cnn", "cg", None): HOURS,
    ("cnn", "cg_ggn", None): HOURS,
    ("resnet", "exact", None): NO_MATRIX,
    ("resnet", "cg", None): HOURS,
    ("resnet", "cg_ggn", None): HOURS,
    ("resnet", "ekfac", "curvlinops"): NORMS,
    ("resnet", "ekfac", "dattri"): "treats linear layers alone",
    ("resnet", "ekfac", "kronfluence"): NORMS,
    ("resnet", "ekfac", "fragile_lib"): "nothing to compare with: no other library treats all of its parameters",
    ("cnn", "ekfac", "dattri"): "treats linear layers alone",
}


def reason(case: str, method: str, library: str) -> str | None:
    """Why a library does not do a method here; None where it does."""
    return SKIPPED.get((case, method, library)) or SKIPPED.get((case, method, None))


def quietly(run: object, problem: Problem) -> tuple[Tensor, float]:
    """(scores, seconds of processor time), without progress bars."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        began = process_time()
        scores = run(problem)
        return scores.detach().double(), process_time() - began


def references(case: str, problem: Problem) -> dict[str, Tensor]:
    """{method: dense scores in float64}, of the methods that have some."""
    if case == "resnet":
        return {}
    if case == "cnn":  # by the compiled passes, which its tests hold against autograd
        data = problem.network().train.data
        objective, theta = cnn_objective(SmallCNN(), data, 0.0, "cpu"), problem.theta[None]
        found = [objective.matrices(theta, objective.uniform(1), gauss_newton=ggn)[0] for ggn in (False, True)]
    else:
        found = [problem.hessian(), problem.gauss_newton()]
    hessian, gauss_newton = (problem.scores(matrix) for matrix in found)
    curved = {"exact": hessian, "cg": hessian, "cg_ggn": gauss_newton, "ekfac": gauss_newton}
    return curved | {"identity": problem.scores(None)}


def truth(case: str, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """(rows that were left out (k,), loss changes (k, m)) where every test example has its certified minimum."""
    if case not in LEFT_OUT:
        return np.zeros(0, int), np.zeros((0, len(problem.y_test)))
    rows = np.arange(0, problem.n, LEFT_OUT[case])
    changes = problem.left_out(rows)
    kept = np.isfinite(changes).all(1)
    return rows[kept], changes[kept]


def ranks(scores: np.ndarray, changes: np.ndarray) -> float | None:
    """Spearman's correlation, the median over test examples."""
    pairs = zip(scores.T, changes.T, strict=True)
    return float(np.median([spearmanr(*pair).statistic for pair in pairs])) if len(changes) else None


def rise(method: str, library: str, kept: str) -> float:
    """Megabytes by which this process rises; the work on a few examples before that counts for nothing."""
    torch.set_num_threads(1)
    problem = torch.load(kept, weights_only=False)
    quietly(METHODS[method][library], problem.first(min(problem.n, 40), 2))
    with Peak() as peak:
        quietly(METHODS[method][library], problem)
    return peak.mb


def memory(method: str, library: str, kept: Path) -> float:
    """`rise` in a process that has done nothing but import."""
    clean = get_context("forkserver")
    clean.set_forkserver_preload(["bench"])
    with ProcessPoolExecutor(1, clean) as fresh:
        return fresh.submit(rise, method, library, str(kept)).result()


def measured(case: str) -> dict:
    """All rows of one case."""
    problem, rows = CASES[case](), []
    dense, (left, changes) = references(case, problem), truth(case, problem)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "problem.pt"
        torch.save(problem, kept)
        for method, ways in METHODS.items():
            able = {name: run for name, run in ways.items() if reason(case, method, name) is None}
            took: dict[str, list[float]] = {name: [] for name in able}
            scores = {}
            for turn in range(REPEATS[case] + (REPEATS[case] > 1)):
                for name, run in able.items():
                    scores[name], spent = quietly(run, problem)
                    took[name] += [spent] if turn or REPEATS[case] == 1 else []  # a first call compiles and imports
            for name in ways:
                row = {"method": method, "library": name, "skipped": reason(case, method, name)}
                if name in able:
                    row |= {
                        "seconds": float(np.median(took[name])),
                        "memory_mb": memory(method, name, kept),
                        "error": off(scores[name], dense[method]) if method in dense else None,
                        "spearman": ranks(scores[name].numpy()[left], changes),
                        "from_ours": off(scores[name], scores["fragile_lib"]) if "fragile_lib" in able else None,
                    }
                rows.append(row)
                print(case, *row.values(), flush=True)
    sizes = {"n": problem.n, "m": len(problem.y_test), "parameters": len(problem.theta), "left_out": len(left)}
    return {"case": case, "title": TITLES[case], **sizes, "repeats": REPEATS[case], "rows": rows}


def main() -> None:
    """Measure, print and write."""
    warnings.filterwarnings("ignore")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    torch.set_num_threads(1)
    asked = os.environ.get("CASE", "")
    if asked and asked not in (*CASES, "traps"):
        sys.exit(f"error: CASE = {asked!r}: give one of {', '.join(CASES)}, traps, or nothing for all")
    for case in (name for name in CASES if asked in ("", name)):
        write({case: measured(case)}, [])
    if asked in ("", "traps"):
        traps = [
            {"name": n, "library": trap.library, "what": trap.what, "effect": trap.effect.format(value=trap.measure())}
            for n, trap in TRAPS.items()
        ]
        write({}, traps)


def write(cases: dict[str, dict], traps: list[dict]) -> None:
    """What was measured now, beside what else the file holds, with where and of what versions."""
    stored = json.loads(OUT.read_text()) if OUT.exists() else {"cases": [], "traps": []}
    cases = {entry["case"]: entry for entry in stored["cases"]} | cases
    told = {
        "date": date.today().isoformat(),
        "machine": f"one core, {platform.machine()}, {platform.system()}, shared with other work",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "cases": [cases[name] for name in CASES if name in cases],
        "conventions": [{"library": name, "score": score, "factor": by} for name, (score, by) in CONVENTIONS.items()],
        "traps": traps or stored["traps"],
    }
    write_whole(OUT, json.dumps(told, indent=1).encode())


if __name__ == "__main__":
    main()
