"""Estimated against true changes of single removals, to be explored: what the page and its small script draw from."""

from __future__ import annotations

import numpy as np

from fragile_lib.agreement import compare
from fragile_lib.study.report.source import Study

MOST = 8  # networks on the page
NEEDED = {"test_point", "index", "estimate", "truth"}
LISTS = ("estimate", "truth", "error")
CONTROL = "_minus_control"
AT = ", damping "  # in the code of an estimate at a damping that is not its network's own


def point_sets(study: Study) -> list[dict]:
    """The first test point of a few networks with images of all its removals: of each data set and network the largest.

    Where no record has such images, points without them.

    Each has a name, `estimate`, `truth` and `error` by code (lists over removals), the removals' ids, and, where the
    record has images, `labels`, `pixels` and the places of the `pictured`, as in the record.
    """
    words, found = study.settings.get("words", {}), []
    for record in study.records:
        chosen = [p for p in record.get("points") or [] if p.get("train_choice") == "top_influence"]
        point = next((p for p in chosen if p.keys() >= NEEDED), None)
        if point and (record["run"].get("weight_decay") or 0) > 0:
            found.append((record, point))
    pictured = [(r, p) for r, p in found if "pixels" in p and len(p["pictured"]) == len(p["index"])]
    best: dict[tuple, dict] = {}
    for record, point in sorted(pictured or found, key=_size, reverse=True):
        key = record["run"].get("dataset"), record["run"].get("architecture")
        best.setdefault(key, _set(record, point, words))
    return list(best.values())[:MOST]


def _size(found: tuple[dict, dict]) -> tuple[int, int, bool]:
    run = found[0]["run"]
    return run.get("n_train") or 0, -(run.get("depth") or 0), bool(_dampings(found[1])[1])


def _set(record: dict, point: dict, words: dict) -> dict:
    name = f"{_network(record, words)}, test point {point['test_point']}"
    found = {"name": name, "run": record["run_id"], "ids": point["index"]}
    for kind in LISTS:  # what the control does by itself is no effect of a removal: a truth without it goes first
        lists = {name: values for name, values in (point.get(kind) or {}).items() if values}
        found[kind] = {name: lists[name] for name in sorted(lists, key=lambda n: not n.endswith(CONTROL))}
    return found | {key: point[key] for key in ("labels", "pixels", "pictured") if key in point}


def _network(record: dict, words: dict) -> str:
    run = record["run"]
    named = [str(words.get(run.get(c), run.get(c))) for c in ("dataset", "architecture") if run.get(c)]
    return f"{', '.join(dict.fromkeys(named))}, {run.get('n_train', 0):,} training examples"


def static_points(found: dict) -> list[tuple[float, float, float, float]]:
    """(x, y, low, high) in percent of the square for the set's first estimator and truth: what stands without a script.

    `low` and `high` are the ends of the error bar.
    """
    truth = next(iter(found["truth"]))
    pairs = np.array([next(iter(found["estimate"].values())), found["truth"][truth]], dtype=float)
    errors = np.nan_to_num(np.array(found["error"].get(truth) or np.zeros(pairs.shape[1]), dtype=float))
    known = np.isfinite(pairs).all(axis=0)
    ends = [pairs[:, known] + sign * np.stack([0 * errors, errors])[:, known] for sign in (0, -1, 1)]
    marks, low, high = (_placed(end, np.concatenate(ends, axis=1)) for end in ends)
    return [(*mark, a, b) for mark, (_, a), (_, b) in zip(marks, low, high, strict=True)]


def _placed(pairs: np.ndarray, among: np.ndarray) -> list[tuple[float, float]]:
    """(x, y) in percent of a square that holds zero and all of `among`; `pairs` (2, k)."""
    low, high = min(np.nanmin(among), 0.0), max(np.nanmax(among), 0.0)
    x, y = 5 + 90 * (pairs - low) / (high - low or 1.0)
    return [(round(float(a), 2), round(float(100 - b), 2)) for a, b in zip(x, y, strict=True)]


def names(study: Study, sets: list[dict]) -> dict[str, str]:
    """What each estimator and truth of the sets is called, by its code."""
    return {code: _called(code, study) for found in sets for kind in LISTS[:2] for code in found[kind]}


def _called(code: str, study: Study) -> str:
    titles = {entry["name"]: entry["title"] for entry in study.methods}
    code, _, damping = code.partition(AT)
    bare = code.removesuffix(CONTROL)
    name, _, share = bare.rpartition("_")  # a truth after another share of the training steps
    of_share = name in titles and share.replace(".", "").isdigit()
    said = f"{titles[name]}, {float(share):.0%} of the steps" if of_share else titles.get(bare, bare.replace("_", " "))
    return said + (", control subtracted" if bare != code else "") + (f", damping {damping}" if damping else "")


def _dampings(point: dict) -> tuple[str, dict[float, np.ndarray]]:
    """The first estimator of a point that has several dampings, and what it says at each; of none, nothing."""
    coded = [(*code.partition(AT)[::2], values) for code, values in point["estimate"].items() if AT in code]
    at = {float(damping): np.array(values, float) for name, damping, values in coded if name == coded[0][0]}
    return (coded[0][0], dict(sorted(at.items()))) if len(at) > 1 else ("", {})


def damping_frames(study: Study) -> dict | None:
    """Of the first run over dampings a frame for each: a panel for each truth and choice of training examples.

    A frame has its `damping` and `panels`; a panel `truth`, `choice`, `marks` (x, y in percent of a square that is the
    same in all frames, small changes spread), `spearman` and `slope`. None without such a run.
    """
    for record in study.records:
        points = [p for p in record.get("points") or [] if p.keys() >= NEEDED]
        points = [p for p in points if p["test_point"] == points[0]["test_point"] and _dampings(p)[1]]
        if points:
            return _frames(record, points, study)
    return None


def _frames(record: dict, points: list[dict], study: Study) -> dict:
    words = study.settings.get("words", {})
    estimator, first = _dampings(points[0])
    frames: dict[float, list[dict]] = {damping: [] for damping in first}
    for truth in points[0]["truth"]:
        if truth + CONTROL in points[0]["truth"]:
            continue  # the same but for a shift
        for point in (p for p in points if truth in p["truth"]):
            named = {"truth": _called(truth, study), "choice": words.get(point["train_choice"], point["train_choice"])}
            true = np.array(point["truth"][truth], dtype=float)
            for damping, panel in _panels(_dampings(point)[1], true).items():
                frames[damping].append(named | panel)
    return {
        "run": record["run_id"],
        "of": f"{_network(record, words)}, one test example",
        "estimator": _called(estimator, study),
        "frames": [{"damping": f"{damping:g}", "panels": panels} for damping, panels in frames.items()],
    }


def _panels(estimates: dict[float, np.ndarray], true: np.ndarray) -> dict[float, dict]:
    """The panel of each damping, on axes that all share; bent, since sizes differ by decades."""
    known = {damping: np.isfinite(true) & np.isfinite(estimate) for damping, estimate in estimates.items()}
    sizes = np.abs(true[np.isfinite(true) & (true != 0)])
    typical = np.quantile(sizes, 0.25) if sizes.size else 1.0
    pairs = {d: np.arcsinh(np.stack([e, true])[:, known[d]] / typical) for d, e in estimates.items()}
    among, found = np.concatenate([p.ravel() for p in pairs.values()] + [[0.0]]), {}
    for damping, estimate in estimates.items():
        agreed = compare(estimate[known[damping]], true[known[damping]])
        found[damping] = {
            "marks": _placed(pairs[damping], among),
            "zero": _placed(np.zeros((2, 1)), among)[0],
            "spearman": agreed.spearman,
            "slope": agreed.slope,
        }
    return found
