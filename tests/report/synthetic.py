"""A synthetic study on disk: records, a failure, a missing run, a broken record, executed notebooks."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
from pathlib import Path

import nbformat
import pandas as pd
from nbformat import v4
from PIL import Image

from fragile_lib.study.collect import collect

REPOSITORY = Path(__file__).parents[2]
SEEDS = range(5)
HOSTILE = "<script>alert(1)</script> & <b>bold</b>"

IRIS_YAML = """
notebook: iris
parameters:
  activation: {type: str, choices: [relu, tanh], help: nonlinearity}
  depth: {type: int, min: 1, help: hidden layers}
  width: {type: int, min: 1, help: units of a layer}
  weight_decay: {type: float, min: 0, help: L2 coefficient}
  seeds: {type: list, of: int, help: starts}
base: {activation: relu, depth: 1, width: 5, weight_decay: 0.005, seeds: [0, 1, 2, 3, 4]}
run_id: "iris-{activation}-d{depth}-w{width}-wd{weight_decay:g}"
profiles:
  quick:
    grids:
      depth: {depth: [1, 2, 4, 6, 8], weight_decay: [0.005, 0.0]}
      width: {width: [8, 50]}
      tanh: {activation: [tanh], depth: [1, 5]}
page: {depth: 1}
"""
METHODS = r"""
methods:
  - {name: exact, kind: estimator, title: Influence with the Hessian, formula: 'g^\top (H + \delta I)^{-1} g_i',
     asks: "Where would it move?", leaves_out: Noise., parameters: damping, applies: small networks}
  - {name: minimum, kind: truth, title: The minimum without them, formula: '\arg\min_\theta J(\theta; w)',
     asks: A., leaves_out: B., parameters: tolerance, applies: everywhere}
  - {name: pbrf, kind: truth, title: Proximal response, formula: '\unknownmacro',
     asks: C., leaves_out: D., parameters: d, applies: where run}
"""
MISSING, FAILED, LATER, BROKEN = (f"iris-relu-{s}-wd0.005" for s in ("d1-w50", "d1-w8", "d2-w5", "d4-w5"))
WITH_NOTEBOOK = "iris-relu-d1-w5-wd0.005"


def spearman(depth: int, decay: float, seed: int, estimator: str, width: int = 5) -> float:
    """The made-up truth: 0.97 at depth 1, falling by 0.09 a layer, lower without decay, lower for LiSSA."""
    value = 0.97 - 0.09 * (depth - 1) - 0.006 * (width - 5) + 0.004 * (seed - 2)
    return value - (0.3 if decay == 0 else 0) - (0.02 * depth if estimator == "lissa_single" else 0)


def rows(depth: int, decay: float, width: int = 5) -> pd.DataFrame:
    """Rows of one run, the columns of results.csv beyond the run block."""
    tests, trains, estimators = ("max_loss", "p50_loss"), ("top_influence", "top_loss"), ("exact", "lissa_single")
    choices = itertools.product(SEEDS, tests, trains, estimators, ("warm_descent", "minimum"))
    found = []
    for seed, test, train, estimator, truth in choices:
        dead = depth == 8 and seed == 4
        value = spearman(depth, decay, seed, estimator, width)
        found.append({
            "seed": seed, "test_point": 17, "test_choice": test, "train_choice": train, "n_points": 20,
            "estimator": estimator, "ground_truth": truth, "pearson": value, "spearman": None if dead else value,
            "slope": 1.0, "grad_norm": 1e-6, "eig_min": -0.1, "eig_max": 5.0 * depth + seed,
            "status": "constant" if dead else "ok", "fit": "descent" if truth == "warm_descent" else "certified",
            "norm_spearman": value, "norm_ratio": 1.0 + 0.1 * depth + (0.6 if decay == 0 else 0),
        })  # fmt: skip
    return pd.DataFrame(found)


def record(run_id: str, activation: str, depth: int, width: int, decay: float) -> dict:
    """A result.json."""
    table = rows(depth, decay, width).astype(object)
    table = table.where(table.notna(), None)
    return {
        "schema": 1, "run_id": run_id, "profile": "quick", "notebook": "iris", "status": "ok",
        "run": {"dataset": "iris", "architecture": "mlp", "activation": activation, "depth": depth, "width": width,
                "weight_decay": decay, "n_train": 120, "n_params": 43},
        "parameters": {"depth": depth}, "rows": {"columns": list(table), "data": table.to_numpy().tolist()},
        "certificates": [{"seed": s, "fit": "descent", "status": "constant" if (depth, s) == (8, 4) else "ok"}
                         for s in SEEDS],
        "points": [point(), point() | ORDINARY] if run_id == WITH_NOTEBOOK else [], "seeds": list(SEEDS),
        "versions": {"python": "3.11.7", "torch": "2.0"}, "fingerprint": "", "seconds_by_part": {},
        "git": {"commit": "0123abc", "dirty": depth == 2}, "device": "cpu", "threads": 1, "seconds": 12.5 * depth,
        "peak_memory_mb": 512.0, "started": "2025-01-01T10:00:00Z", "finished": "2025-01-02T10:00:00Z",
    }  # fmt: skip


def point() -> dict:
    """Compared changes of four removals, with the images of the test point and of two of them."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((24, 8)).save(buffer, "png")
    return {
        "seed": 0, "test_point": 17, "test_choice": "max_loss", "train_choice": "top_influence", "index": [3, 5, 8, 13],
        "estimate": {"exact": [0.2, -0.1, 0.05, 0.1], "identity": [0.1, 0.2, None, 0.3],
                     "exact, damping 0.1": [0.02, 0.01, 0.03, None], "exact, damping 0.001": [0.2, -0.1, 0.05, 0.1]},
        "truth": {"warm": [1.2, 0.9, 1.05, 1.1], "warm_minus_control": [0.2, -0.1, 0.05, 0.1]},
        "error": {"warm_minus_control": [0.01, 0.02, 0.03, 0.04]},
        "labels": [7, 1, 2], "pictured": [0, 3], "pixels": base64.b64encode(buffer.getvalue()).decode(),
    }  # fmt: skip


ORDINARY = {"train_choice": "p30_influence", "truth": {"warm_minus_control": [0.2, -0.1, 0.05, 0.1]}}


def png() -> str:
    """A small figure."""
    buffer = io.BytesIO()
    Image.effect_mandelbrot((640, 360), (-2, -1, 1, 1), 30).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


PROSE = r"""# Iris: can an influence function be believed?

What this notebook asks, and see [the summary](summary.ipynb#Result), [the plan](../README.md),
[depth](#Fall-with-depth) and [the paper](https://arxiv.org/abs/2006.14651).
The estimate is $-\nabla f^\top H^{-1} g$ with

$$ J(\theta; w) = \sum_{i=1}^n w_i \, \ell(z_i, \theta) + \frac{\lambda}{2} \lVert \theta \rVert^2,
\qquad \theta^\star(w) = \arg\min_\theta J(\theta; w) $$

#### A level skipped

| choice | meaning |
|---|---|
| `max_loss` | the test point of highest loss |

![remote](https://example.org/picture.png) <script src="https://example.org/x.js"></script>
"""
HEAD = "".join(f"<th>column {i}</th>" for i in range(9))
BODY = "".join(
    f"<tr><th>{row}</th>" + "".join(f"<td>{row / (i + 1):.6f}</td>" for i in range(9)) + "</tr>" for row in range(4)
)
# As pandas writes it.
TABLE = (
    "<div><style scoped>.dataframe td {color: red}</style>"
    f'<table border="1" class="dataframe"><thead><tr style="text-align: right;"><th></th>{HEAD}</tr></thead>'
    f"<tbody>{BODY}</tbody></table></div>"
)
ALT = "Spearman falls from 0.97 at depth 1 to 0.34 at depth 8."
CAPTION = "Agreement against depth.\nIris; 2 runs.\nMeans over 5 seeds."
ROWS = f"run_id,value\n{WITH_NOTEBOOK},0.97\nunknown,0.34\n"


def code(source: str, *outputs: nbformat.NotebookNode, tags: tuple[str, ...] = ()) -> nbformat.NotebookNode:
    """A code cell."""
    return v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)} if tags else {})


def shown(data: dict[str, str], about: dict | None = None) -> nbformat.NotebookNode:
    """An output of a code cell."""
    return v4.new_output("display_data", data, metadata=about or {})


def notebook(image: str, title: str = PROSE) -> nbformat.NotebookNode:
    """An executed notebook with prose, math, a table, figures, printed text, warnings and an injected cell."""
    told = {"alt": ALT, "caption": CAPTION, "runs": [WITH_NOTEBOOK, "unknown"], "rows": ROWS}
    figure = shown({"image/png": image, "text/plain": "<Figure>"}, {"image/png": told})
    error = v4.new_output("error", ename="ValueError", evalue="bad", traceback=["\x1b[0;31mValueError\x1b[0m: bad"])
    stdout = v4.new_output("stream", name="stdout", text="a" * 300 + "\n")
    stderr = v4.new_output("stream", name="stderr", text="\x1b[31mwarning\x1b[0m: 10%\r100%\n")
    table = shown({"text/html": TABLE, "text/plain": "-"}, {"text/html": {"caption": "Means over seeds."}})
    claims = {"tags": ["claim-I3", "claim-I5"]}
    return v4.new_notebook(cells=[
        v4.new_markdown_cell(title),
        code("depth = 1  # hidden layers", tags=("parameters",)),
        code("# Parameters\ndepth = 3", tags=("injected-parameters",)),
        code("# Train the networks\nprint('a' * 300)", stdout, stderr),
        v4.new_markdown_cell("## Fall with depth\n\nText before the figure.", metadata=claims),
        code("plot(results)", figure, tags=("headline", "claim-I1")),
        v4.new_markdown_cell("### Details\n\n## Fall with depth\n\nThe same heading twice."),
        code("table", table),
        code("table.T", table),
        code("plot(again)", shown({"image/png": image})),
        code("bad()", error),
    ])  # fmt: skip


def make_study(root: Path) -> tuple[Path, Path]:
    """Write runs/quick and params/ under `root`; return (source, params_dir)."""
    params, source = root / "params", root / "runs" / "quick"
    params.mkdir(parents=True)
    (source / "pages").mkdir(parents=True)
    for name in ("claims.yaml", "report.yaml"):
        shutil.copy(REPOSITORY / "params" / name, params / name)
    (params / "iris.yaml").write_text(IRIS_YAML)
    entry = {"what": "Split", "paper": "not known", "here": HOSTILE, "why": "a reason", "notebook": "iris"}
    (params / "deviations.yaml").write_text(json.dumps({"deviations": [entry]}))
    (params / "methods.yaml").write_text(METHODS)
    points = [("relu", d, 5, wd) for d in (1, 2, 4, 6, 8) for wd in (0.005, 0.0)]
    points += [("relu", 1, 8, 0.005), ("relu", 1, 50, 0.005), ("tanh", 1, 5, 0.005), ("tanh", 5, 5, 0.005)]
    for activation, depth, width, decay in points:
        run_id = f"iris-{activation}-d{depth}-w{width}-wd{decay:g}"
        if run_id == MISSING:
            continue
        folder = source / run_id
        folder.mkdir()
        if run_id in (FAILED, LATER):
            failure = {"error": "RuntimeError", "message": HOSTILE, "traceback": "line 1\nline 2"}
            (folder / "failure.json").write_text(json.dumps(failure))
        if run_id != FAILED:
            text = json.dumps(record(run_id, activation, depth, width, decay))
            (folder / "result.json").write_text(text[: len(text) // 2] if run_id == BROKEN else text)
    collect(sorted(source.glob("*/result.json")), source / "results.csv")
    image = png()
    nbformat.write(notebook(image), source / WITH_NOTEBOOK / "run.ipynb")
    nbformat.write(notebook(image), source / "pages" / "iris.ipynb")
    summary = notebook(image, "# Summary\n\n## Result\n\nSee [iris](iris.ipynb).")
    nbformat.write(summary, source / "pages" / "summary.ipynb")
    return source, params
