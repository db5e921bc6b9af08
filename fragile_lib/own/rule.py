"""When to believe an estimate: a rule fitted on runs whose truth is known, and judged on networks that it never saw.

Two questions. Of a *run*, one estimator on one test point of one network: is its correlation with the truth, corrected
for the truth's noise, at least `GOOD`? Of a *pair*, one left-out example and one test point: has the estimate the right
sign, and is it within a factor of `FACTOR`? Both are judged only where the truth could tell.

A rule is a logistic regression on one signal, on two, or on all (`signals.signals`); what is held out is a whole
network (data set, architecture and depth) or a whole data set, and takes no part in fitting, scaling or filling gaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from fragile_lib.agreement import SEED, Interval, percentiles
from fragile_lib.tools.errors import bad_input

GOOD = 0.8  # corrected correlation of a run that is believed
FACTOR = 2.0  # within which an estimate is believed
TELLS = 0.5  # reliability of a truth from which a run is judged
CLEAR = 2.0  # standard errors that a true change must be away from zero for its pair to be judged
MARGIN = 0.02  # of the area under the curve: a simpler rule this near the best is as good
DRAWS = 1_000  # resamples of an interval; each ranks all cases anew
# Which truth judges a run, the first that it has: a minimum where there is one, else the retraining.
TRUTHS = ("minimum", "pbrf", "warm_descent", "warm_minibatch")
RUN_KEYS = ["run_id", "seed", "fit", "test_point", "train_choice", "estimator"]
# Each signal as a rule takes it: sizes by their logarithm, ratios by their distance from 1.
LOG = ("residual", "gradient_share", "signal", "test_curvature", "left_out_gradient")
PLAIN = ("trace_share", "metasmoothness", "agreement", "damping_rank")
RUN_SIGNALS = (*LOG, *PLAIN, "eig_share", "damping_ratio", "predicted_reliability")
PAIR_SIGNALS = (*RUN_SIGNALS, "size", "pair_signal", "pair_damping", "trace")
BASELINES = {"metasmoothness": ("metasmoothness",), "stability under damping": ("damping_rank",)}


def judged_runs(known: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The signals of each run whose truth could tell, with `network`, `dataset` and whether it is `good`.

    Args:
        known: rows of `signals.signals` of several runs, with `run_id` and the facts of the run.
        rows: the results table.
    """
    told = rows[rows["reliability"].ge(TELLS) & rows["spearman_corrected"].notna()]
    told = told.assign(order=told["ground_truth"].map({name: place for place, name in enumerate(TRUTHS)}))
    told = told.dropna(subset=["order"]).sort_values("order").drop_duplicates(RUN_KEYS)
    kept = told[[*RUN_KEYS, "ground_truth", "spearman_corrected", "reliability_single"]]
    found = known.merge(kept, on=RUN_KEYS)
    return _prepared(found).assign(good=found["spearman_corrected"].ge(GOOD).to_numpy())


def judged_pairs(known: pd.DataFrame, points: Iterable[dict]) -> pd.DataFrame:
    """One row for each pair whose true change stands clear of its error, with the signals of its run and its own.

    Own: `size`, the logarithm of |estimate| over the largest of its run; `pair_signal`, over the control's spread;
    `pair_damping`, of the estimate at the higher damping over that at the lower; `trace` of the example's curvature.

    Args:
        known: as in `judged_runs`, with `pairs`.
        points: compared points of the records, with `run_id`.
    """
    by = {
        (p["run_id"], p["seed"], p["fit"], p["test_point"], i): (p, k) for p in points for k, i in enumerate(p["index"])
    }
    found = []
    for row in known[known["pairs"].notna()].to_dict("records") if "pairs" in known else ():
        pairs = row.pop("pairs")
        largest = np.nanmax(np.abs(pairs["estimate"]))
        for place, index in enumerate(pairs["index"]):
            point, k = by.get((row["run_id"], row["seed"], row["fit"], row["test_point"], index), (None, 0))
            true = None if point is None else _clear(point, k)
            if true is None:
                continue
            estimate, more, less, trace = (float(pairs[name][place]) for name in ("estimate", "more", "less", "trace"))
            own = {
                "size": _log(abs(estimate) / largest),
                "pair_signal": _log(abs(estimate) / (row["control_spread"] or np.nan)),
                "pair_damping": _log(abs(more / less)) if less else np.nan,
                "trace": _log(trace),
            }
            good = 1 / FACTOR <= true / estimate <= FACTOR if estimate else False
            found.append(row | own | {"index": index, "true": true, "estimate": estimate, "good": good})
    return _prepared(pd.DataFrame(found)) if found else pd.DataFrame(columns=[*PAIR_SIGNALS, "good", "network"])


def _clear(point: dict, place: int) -> float | None:
    """The true change of a pair where it stands clear of its standard error; None else."""
    for name in TRUTHS:
        if name in point["truth"]:
            true, error = point["truth"][name][place], point.get("error", {}).get(name, [None] * (place + 1))[place]
            known = true is not None and error is not None and np.isfinite(true) and abs(true) > CLEAR * error
            return float(true) if known else None
    return None


def _prepared(found: pd.DataFrame) -> pd.DataFrame:
    """Signals as rules take them, and what is held out together: `network`."""
    spread, noise = found["estimate_spread"].astype(float) ** 2, found["control_spread"].astype(float) ** 2
    found = found.assign(predicted_reliability=spread / (spread + noise))
    for name in LOG:
        found[name] = found[name].astype(float).map(_log)
    found["damping_ratio"] = found["damping_ratio"].astype(float).map(_log).abs()
    found["eig_share"] = np.arcsinh(found["eig_share"].astype(float))
    depth = found["depth"].map(lambda d: "" if pd.isna(d) else f" of depth {d:g}")
    return found.assign(network=found["dataset"] + " " + found["architecture"] + depth)


def _log(size: float) -> float:
    return float(np.log10(max(size, 1e-12))) if size is not None and np.isfinite(size) else np.nan


@dataclass(frozen=True)
class Judged:
    """One rule on what was held out: area under the curve with its interval, the Brier score, and each case's score."""

    signals: tuple[str, ...]
    area: Interval
    brier: float
    scores: np.ndarray


def held_out(cases: pd.DataFrame, signals: Sequence[str], by: str) -> np.ndarray:
    """The probability (cases,) of `good` by a rule fitted without the case's own group of the column `by`.

    nan for a group without which there are no cases of both kinds.
    """
    scores, values = np.full(len(cases), np.nan), cases[list(signals)].astype(float).to_numpy()
    good, groups = cases["good"].to_numpy(bool), cases[by].to_numpy()
    for group in pd.unique(groups):
        out = groups == group
        if len(np.unique(good[~out])) == 2:
            scores[out] = _fitted(values[~out], good[~out]).predict_proba(values[out])[:, 1]
    return scores


def _fitted(values: np.ndarray, good: np.ndarray) -> Pipeline:
    filled = SimpleImputer(strategy="median", keep_empty_features=True)
    return make_pipeline(filled, StandardScaler(), LogisticRegression(max_iter=1_000)).fit(values, good)


def judge(cases: pd.DataFrame, signals: Sequence[str], by: str) -> Judged:
    """A rule on held-out groups; the interval of its area resamples whole networks.

    Raises:
        InputError: no cases, or none of one kind.
    """
    if cases.empty or cases["good"].nunique() < 2:
        raise bad_input("cases", len(cases), "a rule needs runs that are good and runs that are not; run more of them")
    scores = held_out(cases, signals, by)
    kept = np.isfinite(scores)
    good, networks = cases["good"].to_numpy(bool)[kept], cases["network"].to_numpy()[kept]
    area = _area(good, scores[kept], networks)
    brier = float(brier_score_loss(good, scores[kept])) if kept.any() else float("nan")
    return Judged(tuple(signals), area, brier, scores)


def _area(good: np.ndarray, scores: np.ndarray, networks: np.ndarray) -> Interval:
    parts = [np.flatnonzero(networks == name) for name in pd.unique(networks)]
    rng, found = np.random.default_rng(SEED), []
    for _ in range(DRAWS if len(parts) > 1 else 0):
        rows = np.concatenate([parts[i] for i in rng.integers(0, len(parts), len(parts))])
        if len(np.unique(good[rows])) == 2:
            found.append(area_under(good[rows], scores[rows]))
    low, high = percentiles(np.array(found)) if found else (np.nan, np.nan)
    return Interval(area_under(good, scores), low, high, len(parts))


def area_under(good: np.ndarray, scores: np.ndarray) -> float:
    """The area under the ROC curve: how often a good case has the larger score; nan without cases of both kinds.

    By ranks (Mann and Whitney), which resampling makes a thousand times; scikit-learn's takes twenty times as long.
    """
    n, n_good = len(good), int(good.sum())
    if not 0 < n_good < n:
        return float("nan")
    return float((rankdata(scores)[good].sum() - n_good * (n_good + 1) / 2) / (n_good * (n - n_good)))


def rules(cases: pd.DataFrame, names: Sequence[str], by: str) -> pd.DataFrame:
    """Each rule of one signal and of two, of all, and the baselines, on held-out groups: best area first.

    `simplest`: the rule of fewest signals whose area is within `MARGIN` of the best.
    """
    names = [name for name in names if cases[name].notna().any()]
    tried = {f"{name}": (name,) for name in names} | {" and ".join(pair): pair for pair in combinations(names, 2)}
    tried |= {"all": tuple(names)} | {name: one for name, one in BASELINES.items() if set(one) <= set(names)}
    found = [(name, judge(cases, some, by)) for name, some in tried.items()]
    table = pd.DataFrame(
        {
            "rule": [name for name, _ in found],
            "signals": [len(one.signals) for _, one in found],
            "area": [one.area.mean for _, one in found],
            "low": [one.area.low for _, one in found],
            "high": [one.area.high for _, one in found],
            "brier": [one.brier for _, one in found],
            "baseline": [name in BASELINES for name, _ in found],
        }
    )
    near = table[~table["baseline"] & table["area"].ge(table["area"].max() - MARGIN)]
    simplest = near.sort_values(["signals", "area"], ascending=[True, False]).index[:1]
    return table.assign(simplest=table.index.isin(simplest)).sort_values("area", ascending=False, ignore_index=True)
