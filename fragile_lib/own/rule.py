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

from fragile_lib.agreement import SEED, percentiles
from fragile_lib.tools.errors import bad_input

GOOD = 0.8  # corrected correlation of a run that is believed
FACTOR = 2.0  # within which an estimate is believed
TELLS = 0.5  # reliability of a truth from which a run is judged
CLEAR = 2.0  # standard errors that a true change must be away from zero for its pair to be judged
ENOUGH = 0.8  # reliability that a number of retrainings is asked for
MARGIN = 0.02  # of the area under the curve: a simpler rule this near the best is as good
SHOWN = 12  # rules of a table
DRAWS = 1_000  # resamples of an interval; each ranks all cases anew
# Which truth judges a run, the first that it has: a minimum where there is one, else the retraining.
TRUTHS = ("minimum", "pbrf", "warm_descent", "warm_minibatch")
RUN_KEYS = ["run_id", "seed", "fit", "test_point", "train_choice", "estimator"]
# Each signal as a rule takes it: sizes by their logarithm, ratios by their distance from 1.
LOG = ("residual", "gradient_share", "signal", "test_curvature", "left_out_gradient")
PLAIN = ("trace_share", "metasmoothness", "agreement", "damping_rank")
RUN_SIGNALS = (*LOG, *PLAIN, "eig_share", "damping_ratio", "predicted_reliability")
PAIR_SIGNALS = (*RUN_SIGNALS, "size", "pair_signal", "pair_damping", "trace")
CHOSEN = "the rule that the others choose"
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
    keys = ("run_id", "seed", "fit", "test_point")
    by = {(*map(p.get, keys), i): (p, k) for p in points for k, i in enumerate(p.get("index", ()))}
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
    """One rule on what was held out: area under the curve, the Brier score, and each case's score."""

    signals: tuple[str, ...]
    area: float
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
    """A rule on held-out groups.

    Raises:
        InputError: no cases, or none of one kind.
    """
    if cases.empty or cases["good"].nunique() < 2:
        raise bad_input("cases", len(cases), "a rule needs runs that are good and runs that are not; run more of them")
    return _judged(signals, cases, held_out(cases, signals, by))


def _judged(signals: Sequence[str], cases: pd.DataFrame, scores: np.ndarray) -> Judged:
    kept = np.isfinite(scores)
    good = cases["good"].to_numpy(bool)[kept]
    brier = float(brier_score_loss(good, scores[kept])) if kept.any() else float("nan")
    return Judged(tuple(signals), area_under(good, scores[kept]), brier, scores)


def chosen_without(cases: pd.DataFrame, tried: Sequence[Sequence[str]], by: str) -> np.ndarray:
    """The probability (cases,) of `good` by a rule that was also *chosen* without the case's own group.

    For each group that of largest held-out area among the others. The best of many rules by their own held-out areas
    flatters itself; this does not.
    """
    scores = np.full(len(cases), np.nan)
    for group in pd.unique(cases[by]):
        out = (cases[by] == group).to_numpy()
        others = cases[~out]
        if others["good"].nunique() < 2 or others[by].nunique() < 2:
            continue
        labels = others["good"].to_numpy(bool)
        areas = [np.nan_to_num(area_under(labels, held_out(others, signals, by))) for signals in tried]
        best = list(tried[int(np.argmax(areas))])
        values = others[best].astype(float).to_numpy()
        scores[out] = _fitted(values, labels).predict_proba(cases.loc[out, best].astype(float).to_numpy())[:, 1]
    return scores


def area_interval(cases: pd.DataFrame, scores: np.ndarray) -> tuple[float, float]:
    """95% interval of the area under the curve, whole networks resampled; nan for a single one."""
    kept = np.isfinite(scores)
    good, scores, networks = cases["good"].to_numpy(bool)[kept], scores[kept], cases["network"].to_numpy()[kept]
    parts = [np.flatnonzero(networks == name) for name in pd.unique(networks)]
    if len(parts) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(SEED)
    drawn = (np.concatenate([parts[i] for i in rng.integers(0, len(parts), len(parts))]) for _ in range(DRAWS))
    found = np.array([area_under(good[rows], scores[rows]) for rows in drawn])
    return percentiles(found[np.isfinite(found)])


def area_under(good: np.ndarray, scores: np.ndarray) -> float:
    """The area under the ROC curve: how often a good case has the larger score; nan without cases of both kinds.

    By ranks (Mann and Whitney), which resampling makes a thousand times; scikit-learn's takes twenty times as long.
    """
    n, n_good = len(good), int(good.sum())
    if not 0 < n_good < n:
        return float("nan")
    return float((rankdata(scores)[good].sum() - n_good * (n_good + 1) / 2) / (n_good * (n - n_good)))


def rules(cases: pd.DataFrame, names: Sequence[str], by: str) -> pd.DataFrame:
    """Each rule of one signal and of two, of all, the baselines, and the choice among them, on held-out groups.

    By area, the best first. `CHOSEN` is the rule that is chosen anew without each group (`chosen_without`). `simplest`:
    the rule of fewest signals whose area is within `MARGIN` of the best. `shown`: the `SHOWN` best, the simplest, the
    choice and the baselines, which have intervals.
    """
    names = [name for name in names if cases[name].notna().any()]
    tried = {f"{name}": (name,) for name in names} | {" and ".join(pair): pair for pair in combinations(names, 2)}
    tried |= {"all": tuple(names)} | {name: one for name, one in BASELINES.items() if set(one) <= set(names)}
    found = [(name, judge(cases, some, by)) for name, some in tried.items()]
    columns = ["rule", "signals", "area", "brier", "baseline", "used", "scores"]
    values = [(n, len(f.signals), f.area, f.brier, n in BASELINES, f.signals, f.scores) for n, f in found]
    own = [some for name, some in tried.items() if name not in BASELINES]
    chosen = _judged((), cases, chosen_without(cases, own, by))
    values.append((CHOSEN, 0, chosen.area, chosen.brier, False, (), chosen.scores))
    table = pd.DataFrame(values, columns=columns).sort_values("area", ascending=False, ignore_index=True)
    real, choice = table["signals"].gt(0), table["rule"].eq(CHOSEN)
    near = table[real & ~table["baseline"] & table["area"].ge(table.loc[real, "area"].max() - MARGIN)]
    simplest = table.index.isin(near.sort_values(["signals", "area"], ascending=[True, False]).index[:1])
    table = table.assign(simplest=simplest, shown=simplest | choice | table["baseline"] | (table.index < SHOWN))
    intervals = [area_interval(cases, row.scores) if row.shown else (np.nan, np.nan) for row in table.itertuples()]
    return table.assign(low=[low for low, _ in intervals], high=[high for _, high in intervals])


# -- what is shown of it -----------------------------------------------------------------------------------------------

WORST = 6  # mistakes of a table


def counted(runs: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """How many runs and pairs of each network could be judged, and the share of them that was good."""
    parts = {
        name: cases.groupby(["dataset", "network"])["good"].agg(["size", "mean"])
        for name, cases in (("runs", runs), ("pairs", pairs))
        if len(cases)
    }
    table = pd.concat(parts, axis=1)
    table.columns = [f"{'judged' if what == 'size' else 'good share of'} {name}" for name, what in table.columns]
    return table.reset_index()


def splits(cases: pd.DataFrame) -> list[str]:
    """By what cases can be held out: columns of which rules fitted on other groups meet cases of both kinds."""

    def judged(by: str) -> pd.Series:
        groups = {name: cases["good"][cases[by] != name].nunique() == 2 for name in cases[by].unique()}
        return cases["good"][cases[by].map(groups).astype(bool)]

    return [by for by in ("network", "dataset") if len(cases) and judged(by).nunique() == 2]


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The best rules, the simplest and the baselines."""
    return table.loc[table["shown"], ["rule", "area", "low", "high", "brier", "simplest", "baseline"]]


def answer(table: pd.DataFrame, by: str, goal: float) -> str:
    """What rules reach on held-out groups, in a few lines, beside a goal: above all one chosen without them."""

    def told(row: object) -> str:
        return f"{row.rule} {row.area:.2f} ({row.low:.2f} to {row.high:.2f})"

    (chosen,) = table[table["rule"] == CHOSEN].itertuples()
    best, (simplest,) = next(table[table["rule"] != CHOSEN].itertuples()), table[table["simplest"]].itertuples()
    others = "; ".join(told(row) for row in table[table["baseline"]].itertuples()) or "none was measured"
    if not np.isfinite(chosen.area):
        said = f"cannot be judged, with so few groups of one {by}"
    else:
        said = "is not reached" if chosen.area < goal else "is reached"
        said += " but for the interval" if chosen.low < goal <= chosen.area else ""
    return "\n".join(
        [
            f"Area under the curve, one {by} held out at a time:",
            f"{told(chosen)}; the goal of {goal:g} {said}.",
            f"Best by these very areas, which flatters it: {told(best)}.",
            f"Simplest near it: {told(simplest)}.",
            f"What others go by: {others}.",
        ]
    )


def scores(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """What the best rule, the simplest and the baselines gave each held-out case."""
    named = table[table["simplest"] | table["baseline"] | table["rule"].isin([CHOSEN, table["rule"].iloc[0]])]
    return dict(zip(named["rule"], named["scores"], strict=True))


def mistakes(cases: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The cases that the simplest rule was surest of and wrong about: those it believed, then those it doubted."""
    (simplest,) = table[table["simplest"]].itertuples()
    judged = cases.assign(probability=simplest.scores).dropna(subset=["probability"])
    believed = judged[~judged["good"]].nlargest(WORST, "probability")
    doubted = judged[judged["good"]].nsmallest(WORST, "probability")
    found = pd.concat({"believed, and bad": believed, "doubted, and good": doubted}, names=["the rule"])
    told = ["run_id", "seed", "fit", "test_point", "index", "estimator", "spearman_corrected", "true", "estimate"]
    told = [name for name in (*told, "probability", *simplest.used) if name in found]
    return found[told].reset_index("the rule")


def retrainings(runs: pd.DataFrame) -> pd.DataFrame:
    """Of each network: the reliability of one retraining, predicted by V / (V + c s^2) and measured; R for `ENOUGH`.

    V is the variance of the estimates over the removals, s^2 that of the controls, both medians over the network's
    runs; c is the median over the other networks of what the measured reliability of one asks for.
    """
    usable = runs[
        runs["reliability_single"].between(0.01, 0.999) & runs["predicted_reliability"].between(1e-6, 1 - 1e-9)
    ]
    if usable["network"].nunique() < 2:
        return pd.DataFrame()
    noise = usable["predicted_reliability"].rdiv(1) - 1  # s^2 / V
    asked = (usable["reliability_single"].rdiv(1) - 1) / noise  # c
    rows = []
    for name, part in usable.groupby("network"):
        c = float(asked[usable["network"] != name].median())
        ratio, measured = c * float(noise[part.index].median()), float(part["reliability_single"].median())
        needed, really = (max(1, int(np.ceil(ENOUGH / (1 - ENOUGH) * x - 1e-9))) for x in (ratio, 1 / measured - 1))
        told = {"network": name, "c": c, "predicted reliability of one": 1 / (1 + ratio), "measured": measured}
        rows.append(told | {f"retrainings for {ENOUGH:g}, predicted": needed, "by the measured": really})
    return pd.DataFrame(rows)
