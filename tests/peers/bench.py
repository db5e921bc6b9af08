"""Seconds, memory and correctness of this library and of others on the same work: `make bench-peers`.

CASE=logistic, mlp, cnn, resnet or traps measures one alone, METHOD=cg one method, LIBRARY=fragile_lib,captum some
libraries, and what else stands in reports/peers.json is left. The libraries take turns, and the median of each counts,
in processor time, since other work may be on the machine, whose load stands beside; memory is the rise of a process of
its own. In `ALONE`, where a call is long, each is timed in that process, after a call on a few examples, and given up
after `GIVEN` seconds or where it asks for more than `MOST` bytes: its row says so.
The errors are against the dense matrix in float64 of the method
(the Hessian, the Gauss-Newton matrix, or none), the ranks against certified minima without single examples; both are
kept on disk. What cannot be done stands in `SKIPPED` with the reason; in `PARTS` it is done for some test examples.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from datetime import date
from functools import partial
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

from fragile_lib.tools.errors import InputError
from fragile_lib.tools.files import write_whole
from fragile_lib.tools.measure import Peak

OUT = Path(__file__).parents[2] / "reports" / "peers.json"
LIBRARIES = ("captum", "curvlinops-for-pytorch", "dattri", "kronfluence", "traker", "torch", "numpy", "scipy")
REPEATS = {"logistic": 9, "mlp": 5, "cnn": 1, "resnet": 1}
ALONE = "cnn", "resnet"
LONG_AS = 20  # seconds after which such a call is not made again
GIVEN = {"exact": 240, "cg": 120, "cg_ggn": 120}  # seconds of processor time of a call in `ALONE`; others: 900
MOST = 10 * 10**9  # bytes that it may ask for
LEFT_OUT = {"logistic": 1, "mlp": 10, "cnn": 55}  # every so many-th example is left out for real
TITLES = {
    "logistic": "Logistic regression, breast cancer",
    "mlp": "Perceptron with one hidden layer, digits",
    "cnn": "Small convolutional network, MNIST",
    "resnet": "ResNet-18 at a quarter of the width, CIFAR-10",
}
NO_MATRIX = "701,466 parameters: a matrix of that size needs 2 TB"
HOURS = "hundreds of products with all images for every test image: hours"
NORMS = "does not treat the scales and shifts of batch normalisation"
# (case, method, library; None: all) -> why not.
SKIPPED: dict[tuple[str, str, str | None], str] = {
    ("resnet", "exact", None): NO_MATRIX,
    ("resnet", "cg", None): HOURS,
    ("resnet", "cg_ggn", None): HOURS,
    ("resnet", "ekfac", "curvlinops"): NORMS,
    ("resnet", "ekfac", "dattri"): "treats linear layers alone",
    ("resnet", "ekfac", "kronfluence"): NORMS,
    ("resnet", "ekfac", "fragile_lib"): "nothing to compare with: no other library treats all of its parameters",
    ("cnn", "ekfac", "dattri"): "treats linear layers alone",
}
COMPILED = "fragile_lib, compiled"  # by the passes of the study's own small CNN
# (case, method, library; None: all): of so many test examples, where they are gone through one by one: all take in
# proportion.
PARTS: dict[tuple[str, str, str | None], int] = {
    ("cnn", "cg", None): 1,
    ("cnn", "cg_ggn", None): 1,
    **{("cnn", method, COMPILED): 100 for method in ("cg", "cg_ggn")},  # all at once
}


def ways_of(case: str, method: str) -> dict[str, Callable[[Problem], Tensor]]:
    """{library: scores} by one method."""
    found = dict(METHODS[method])
    if case == "cnn" and method != "trak":
        found[COMPILED] = partial(found["fragile_lib"], passes="compiled")
    return found


def reason(case: str, method: str, library: str) -> str | None:
    """Why a library does not do a method here; None where it does."""
    return entry(SKIPPED, case, method, library)


def entry(table: dict, case: str, method: str, library: str) -> object:
    """What a table says of a library, or else of all; None for nothing."""
    return table.get((case, method, library), table.get((case, method, None)))


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
    if case == "cnn":
        hessian, gauss_newton = (problem.scores(problem.dense(ggn)) for ggn in (False, True))
    else:
        hessian, gauss_newton = problem.scores(problem.hessian()), problem.scores(problem.gauss_newton())
    curved = {"exact": hessian, "cg": hessian, "cg_ggn": gauss_newton, "ekfac": gauss_newton}
    return curved | {"identity": problem.scores(None)}


def compared_with(case: str, problem: Problem) -> tuple[dict[str, Tensor], np.ndarray, np.ndarray]:
    """`references` and `truth`, from a file where this very problem has been answered before."""
    parts = problem.theta, problem.x, problem.y, problem.x_test, problem.y_test
    told = repr((case, problem.decay, problem.damping, LEFT_OUT.get(case))).encode()
    digest = hashlib.sha256(told + b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
    path = Path(tempfile.gettempdir()) / f"peers-{case}-{digest[:16]}.pt"
    if not path.exists():
        dense = references(case, problem)
        left, changes = truth(case, problem)
        torch.save((dense, torch.from_numpy(left), torch.from_numpy(changes)), path)
    dense, left, changes = torch.load(path, weights_only=True)
    return dense, left.numpy(), changes.numpy()


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


def alone(case: str, method: str, library: str, kept: str) -> tuple[Tensor, float, float]:
    """(scores, seconds, megabytes by which this process rises); the work on a few examples before counts for nothing.

    Seconds are of a second call where that is not too long.
    """
    torch.set_num_threads(1)
    problem, run = torch.load(kept, weights_only=False), ways_of(case, method)[library]
    quietly(run, problem.first(min(problem.n, 40), min(len(problem.y_test), 2)))
    with Peak() as peak:
        scores, spent = quietly(run, problem)
    return scores, spent if spent > LONG_AS else quietly(run, problem)[1], peak.mb


def in_a_process(case: str, method: str, library: str, problem: Problem) -> tuple[Tensor, float, float] | str:
    """`alone` in a process that has done nothing but import; or why it was given up."""
    clean = get_context("forkserver")
    clean.set_forkserver_preload(["bench"])
    given = 900 if library == COMPILED else GIVEN.get(method, 900)
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, clean, _bound, (given,)) as fresh:
        kept = Path(folder) / "problem.pt"
        torch.save(problem, kept)
        try:
            return fresh.submit(alone, case, method, library, str(kept)).result()
        except BrokenProcessPool:
            return f"given up after {given} s of processor time"
        except InputError as error:
            return f"refused: {error}"
        except (MemoryError, RuntimeError) as error:
            if "allocate" not in str(error):
                raise
            return f"given up: it asks for more than {MOST / 1e9:.0f} GB"


def _bound(seconds: int) -> None:
    """End this process after so much processor time, and let it have `MOST` bytes of its own."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_DATA, (MOST, MOST))


def in_turns(case: str, problem: Problem, runs: dict[str, Callable]) -> dict[str, tuple[Tensor, float]]:
    """{library: (scores, the median of its seconds)}, called one after the other, several times."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    scores = {}
    for turn in range(REPEATS[case] + 1):
        for name, run in runs.items():
            scores[name], spent = quietly(run, problem)
            took[name] += [spent] if turn else []  # a first call compiles and imports
    return {name: (scores[name], float(np.median(took[name]))) for name in runs}


def measured(case: str, before: Sequence[dict] = (), only: str = "", by: str = "") -> dict:
    """All rows of one case; of other methods and libraries than the one asked for those from before."""
    problem, rows = CASES[case](), []
    m = len(problem.y_test)
    dense, left, changes = compared_with(case, problem)
    kept = {_key(row): row for row in before}
    for method in METHODS:
        ways, ours = ways_of(case, method), None
        asked = [name for name in ways if only in ("", method) and name.startswith(tuple(by.split(",")))]
        able = {name: ways[name] for name in asked if reason(case, method, name) is None}
        timed = {} if case in ALONE else in_turns(case, problem, able)
        for name in ways:
            if name not in asked:
                rows += [kept[method, name]] if (method, name) in kept else []
                continue
            row = {"method": method, "library": name, "skipped": reason(case, method, name)}
            if name in able:
                count = entry(PARTS, case, method, name) or m
                found = in_a_process(case, method, name, problem.first(problem.n, count))
                row |= {"load": round(os.getloadavg()[0], 1)}
                row |= {"test_examples": count} if count < m else {}
                if isinstance(found, str):
                    row["skipped"] = found
                else:
                    scores, seconds, mb = found
                    scores, seconds = timed.get(name, (scores, seconds * m / count))
                    ours = scores if name == "fragile_lib" else ours
                    row |= {
                        "seconds": seconds,
                        "memory_mb": mb,
                        "error": off(scores, dense[method][:, :count]) if method in dense else None,
                        "spearman": ranks(scores.numpy()[left], changes[:, :count]),
                        "from_ours": _apart(scores, ours),
                    }
            rows.append(row)
            print(case, *row.values(), flush=True)
            if case in ALONE:  # what there is is written as it comes
                so_far = [*rows, *(old for key, old in kept.items() if key not in {_key(one) for one in rows})]
                write({case: _case(case, problem, len(left), so_far)}, [])
    return _case(case, problem, len(left), rows)


def _key(row: dict) -> tuple[str, str]:
    return row["method"], row["library"]


def _apart(scores: Tensor, ours: Tensor | None) -> float | None:
    """The difference from our scores, on the test examples of both."""
    if ours is None:
        return None
    both = min(scores.shape[1], ours.shape[1])
    return off(scores[:, :both], ours[:, :both])


def _case(case: str, problem: Problem, left_out: int, rows: list[dict]) -> dict:
    """What the file holds of a case, in the order of the methods; whether some of it has not been run yet."""
    sizes = {"n": problem.n, "m": len(problem.y_test), "parameters": len(problem.theta), "left_out": left_out}
    told = {"case": case, "title": TITLES[case], **sizes, "repeats": REPEATS[case]}
    order = [(method, name) for method in METHODS for name in ways_of(case, method)]
    there = {_key(row): row for row in rows}
    missing = {"unfinished": True} if len(there) < len(order) else {}
    return told | missing | {"rows": [there[key] for key in order if key in there]}


def main() -> None:
    """Measure, print and write."""
    warnings.filterwarnings("ignore")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    torch.set_num_threads(1)
    asked = os.environ.get("CASE", "")
    if asked and asked not in (*CASES, "traps"):
        sys.exit(f"error: CASE = {asked!r}: give one of {', '.join(CASES)}, traps, or nothing for all")
    only = [os.environ.get(name, "") for name in ("METHOD", "LIBRARY")]
    for case in (name for name in CASES if asked in ("", name)):
        before = [row for told in stored()["cases"] if told["case"] == case for row in told["rows"]]
        write({case: measured(case, before, *only)}, [])
    if asked in ("", "traps"):
        traps = [
            {"name": n, "library": trap.library, "what": trap.what, "effect": trap.effect.format(value=trap.measure())}
            for n, trap in TRAPS.items()
        ]
        write({}, traps)


def stored() -> dict:
    """What the file holds."""
    return json.loads(OUT.read_text()) if OUT.exists() else {"cases": [], "traps": []}


def write(cases: dict[str, dict], traps: list[dict]) -> None:
    """What was measured now, beside what else the file holds, with where and of what versions."""
    before = stored()
    cases = {entry["case"]: entry for entry in before["cases"]} | cases
    told = {
        "date": date.today().isoformat(),
        "machine": f"one core, {platform.machine()}, {platform.system()}, shared with other work",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "cases": [cases[name] for name in CASES if name in cases],
        "conventions": [{"library": name, "score": score, "factor": by} for name, (score, by) in CONVENTIONS.items()],
        "traps": traps or before["traps"],
    }
    write_whole(OUT, json.dumps(told, indent=1).encode())


if __name__ == "__main__":
    main()
