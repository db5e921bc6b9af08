"""Estimated against true changes of single removals, to be explored: what the page's small script draws from."""

from __future__ import annotations

import numpy as np

from fragile_lib.study.report.source import Study

MOST = 8  # networks on the page
NEEDED = {"test_point", "index", "estimate", "truth"}
LISTS = ("estimate", "truth", "error")


def point_sets(study: Study) -> list[dict]:
    """The first test point of a few networks: images before others, of each data set and network the largest.

    Each has a name, `estimate`, `truth` and `error` by code (lists over removals), the removals' ids, and, where the
    record has images, `labels`, `pixels` and the places of the `pictured`, as in the record.
    """
    ranked = []
    for record in study.records:
        chosen = [p for p in record.get("points") or [] if p.get("train_choice") == "top_influence"]
        run, point = record["run"], next((p for p in chosen if p.keys() >= NEEDED), None)
        if point and (run.get("weight_decay") or 0) > 0:
            ranked.append(("pixels" in point, run.get("n_train") or 0, -(run.get("depth") or 0), record, point))
    best: dict[tuple, dict] = {}
    for *_, record, point in sorted(ranked, key=lambda entry: entry[:3], reverse=True):
        key = record["run"].get("dataset"), record["run"].get("architecture")
        best.setdefault(key, _set(record, point, study.settings.get("words", {})))
    return list(best.values())[:MOST]


def _set(record: dict, point: dict, words: dict) -> dict:
    run = record["run"]
    named = [str(words.get(run.get(c), run.get(c))) for c in ("dataset", "architecture") if run.get(c)]
    name = f"{', '.join(dict.fromkeys(named))}, {run.get('n_train', 0):,} training examples"
    name += f", test point {point['test_point']}"
    found = {"name": name, "run": record["run_id"], "ids": point["index"]}
    for kind in LISTS:  # what the control does by itself is no effect of a removal: a truth without it goes first
        lists = {name: values for name, values in (point.get(kind) or {}).items() if values}
        found[kind] = {name: lists[name] for name in sorted(lists, key=lambda n: not n.endswith("_minus_control"))}
    return found | {key: point[key] for key in ("labels", "pixels", "pictured") if key in point}


def static_points(found: dict) -> list[tuple[float, float]]:
    """(x, y) in percent of the square for the set's first estimator and truth: what stands without a script."""
    pairs = np.array([next(iter(found[kind].values())) for kind in LISTS[:2]], dtype=float)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    low, high = min(pairs.min(), 0.0), max(pairs.max(), 0.0)
    x, y = 5 + 90 * (pairs - low) / (high - low or 1.0)
    return [(round(float(a), 2), round(float(100 - b), 2)) for a, b in zip(x, y, strict=True)]
