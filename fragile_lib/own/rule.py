"""When to believe an estimate: a rule fitted on runs whose truth is known, and judged on networks that it never saw.

Two questions. Of a *run*, one estimator on one test point of one network: is its correlation with the truth, corrected
for the truth's noise, at least `GOOD`? Of a *pair*, one left-out example and one test point: has the estimate the right
sign, and is it within a factor of `FACTOR`? Both are judged only where the truth could tell.

A rule is a logistic regression on one signal, on two, or on all (`signals.signals`); what is held out is a whole
network (data set, architecture and depth) or a whole data set, and takes no part in fitting, scaling or filling gaps.
Networks differ in the number of their cases from a few to hundreds: each network weighs alike, in fitting and in areas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from fragile_lib.agreement import SEED, percentiles, retrainings_for
from fragile_lib.own.fitted import RUN_SIGNALS, Rule, as_taken, log_size
from fragile_lib.own.trust import ENOUGH
from fragile_lib.tools.errors import bad_input

GOOD = 0.8  # corrected correlation of a run that is believed
FACTOR = 2.0  # within which an estimate is believed
TELLS = 0.5  # reliability of a truth from which a run is judged
CLEAR = 2.0  # standard errors that a true change must be away from zero for its pair to be judged
MARGIN = 0.02  # of the area under the curve: a simpler rule this near the best is as good
SHOWN = 12  # rules of a table
DRAWS = 1_000  # resamples of an interval; each ranks all cases anew
# Which truth judges a run, the first that it has: a minimum where there is one, else the retraining.
TRUTHS = ("minimum", "pbrf", "warm_descent", "warm_minibatch")
RETRAINED = ("warm_descent", "warm_minibatch")
# Which truth judges a pair: of a retraining that less what its control does, since a sign counts.
COLUMNS = {"rule": "rule", "area": "area", "low": "from", "high": "to", "by_cases": "each case alike", "brier": "Brier"}
COLUMNS |= {"simplest": f"simplest within {MARGIN:g}", "baseline": "baseline"}
PAIR_TRUTHS = ("minimum", "pbrf", "warm_descent_minus_control", "warm_minibatch_minus_control")
RUN_KEYS = ["run_id", "seed", "fit", "test_point", "train_choice", "estimator"]
PAIR_SIGNALS = (*RUN_SIGNALS, "size", "pair_signal", "pair_damping", "trace")
# The derivative of going on itself costs one pass back through it: `unrolled` is its correlation with the estimates.
# `BEFORE`: what the estimates tell without going on at all.
UNROLLED = ("unrolled_descent", "unrolled_minibatch")
BEFORE = [name for name in RUN_SIGNALS if name not in ("signal", "predicted_reliability", "metasmoothness")]
RUN_CHECKS = ("unrolled", "agreement", "damping_rank", "signal", "residual")
PAIR_CHECKS = ("pair_unrolled", "size", "pair_damping", "damping_rank", "trace")
APART = 3.0  # powers of ten between an estimate and the unrolled derivative: not more, and where the signs differ
CHOSEN = "the rule that the others choose"
BASELINES = {
    "metasmoothness": ("metasmoothness",),
    "stability under damping": ("damping_rank",),
    "surrogate of damping": ("surrogate",),
}


def judged_runs(known: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The signals of each run whose truth could tell, with `network`, `dataset` and whether it is `good`.

    `unrolled`: Spearman's correlation of the estimates with the unrolled derivative of going on; nan where that was not
    asked of this run, as where a minimum judges it.

    Args:
        known: rows of `signals.signals` of several runs, with `run_id` and the facts of the run.
        rows: the results table.
    """
    told = rows[rows["reliability"].ge(TELLS) & rows["spearman_corrected"].notna()]
    told = told.assign(order=told["ground_truth"].map({name: place for place, name in enumerate(TRUTHS)}))
    told = told.dropna(subset=["order"]).sort_values("order").drop_duplicates(RUN_KEYS)
    kept = told[[*RUN_KEYS, "ground_truth", "spearman_corrected", "reliability_single"]]
    asked = rows[rows["ground_truth"].isin(UNROLLED)].drop_duplicates(RUN_KEYS)[[*RUN_KEYS, "spearman"]]
    found = (
        with_surrogate(known)
        .merge(kept, on=RUN_KEYS)
        .merge(asked.rename(columns={"spearman": "unrolled"}), "left", RUN_KEYS)
    )
    return _prepared(found).assign(good=found["spearman_corrected"].ge(GOOD).to_numpy())


def judged_pairs(known: pd.DataFrame, points: Iterable[dict]) -> pd.DataFrame:
    """One row for each pair whose true change stands clear of its error, with the signals of its run and its own.

    Own: `size`, the logarithm of |estimate| over the largest of its run; `pair_signal`, over the control's spread;
    `pair_damping`, of the estimate at the higher damping over that at the lower; `trace` of the example's curvature;
    `pair_unrolled`, |log10| of the estimate over the unrolled derivative, `APART` where their signs differ.

    Args:
        known: as in `judged_runs`, with `pairs`.
        points: compared points of the records, with `run_id`.
    """
    keys = ("run_id", "seed", "fit", "test_point")
    by = {(*map(p.get, keys), i): (p, k) for p in points for k, i in enumerate(p.get("index", ()))}
    found = []
    for row in with_surrogate(known[known["pairs"].notna()]).to_dict("records") if "pairs" in known else ():
        pairs = row.pop("pairs")
        largest = np.nanmax(np.abs(pairs["estimate"]))
        for place, index in enumerate(pairs["index"]):
            point, k = by.get((row["run_id"], row["seed"], row["fit"], row["test_point"], index), (None, 0))
            true = None if point is None else _clear(point, k)
            if true is None:
                continue
            estimate, more, less, trace = (float(pairs[name][place]) for name in ("estimate", "more", "less", "trace"))
            own = {
                "size": log_size(abs(estimate) / largest),
                "pair_signal": log_size(abs(estimate) / (row["control_spread"] or np.nan)),
                "pair_damping": log_size(abs(more / less)) if less else np.nan,
                "trace": log_size(trace),
                "pair_unrolled": _apart(estimate, point, k),
            }
            good = 1 / FACTOR <= true / estimate <= FACTOR if estimate else False
            found.append(row | own | {"index": index, "true": true, "estimate": estimate, "good": good})
    return _prepared(pd.DataFrame(found)) if found else pd.DataFrame(columns=[*PAIR_SIGNALS, "good", "network"])


def with_surrogate(known: pd.DataFrame) -> pd.DataFrame:
    """The same rows with `surrogate`: cos(t, -dt / d log damping), t the estimates; a mean over a run's test points.

    A higher damping raises the cosine of t and any truth o exactly where cos(o, r) < cos(o, t) cos(t, r), r = -dt /
    d damping. So cos(t, r), which needs no truth, says how much there is to gain: it is 1 where only the size of the
    estimates depends on the damping. This is how arXiv 2505.24261 chooses a damping without retraining, as its abstract
    tells and as derived here (its full text was not consulted). The derivative is by differences between the two other
    dampings of `signals.signals`, over the removals of its `pairs`; nan for a run without them.
    """
    of = [key for key in RUN_KEYS if key not in ("test_point", "train_choice")]
    pairs = known["pairs"] if "pairs" in known else pd.Series(None, known.index, dtype=object)
    told = known.assign(surrogate=[_surrogate(**one) if isinstance(one, dict) else np.nan for one in pairs])
    return told.assign(surrogate=told.groupby(of, dropna=False)["surrogate"].transform("mean"))


def _surrogate(estimate: Sequence[float], more: Sequence[float], less: Sequence[float], **_: object) -> float:
    t, fall = np.array(estimate, dtype=float), np.array(less, dtype=float) - np.array(more, dtype=float)
    sizes = np.linalg.norm(t) * np.linalg.norm(fall)
    return float(t @ fall / sizes) if sizes > 0 else np.nan


def _apart(estimate: float, point: dict, place: int) -> float:
    derivative = next((point["truth"][name][place] for name in UNROLLED if name in point["truth"]), None)
    if derivative is None or not np.isfinite(derivative):
        return np.nan
    return min(abs(log_size(estimate / derivative)), APART) if estimate * derivative > 0 else APART


def _clear(point: dict, place: int) -> float | None:
    """The true change of a pair where it stands clear of its standard error; None else."""
    for name in PAIR_TRUTHS:
        if name in point["truth"]:
            true, error = point["truth"][name][place], point.get("error", {}).get(name, [None] * (place + 1))[place]
            known = true is not None and error is not None and np.isfinite(true) and abs(true) > CLEAR * error
            return float(true) if known else None
    return None


def _prepared(found: pd.DataFrame) -> pd.DataFrame:
    """Signals as rules take them, and what is held out together: `network`."""
    return _named(as_taken(found))


def _named(found: pd.DataFrame) -> pd.DataFrame:
    depth = found["depth"].map(lambda d: "" if pd.isna(d) else f" of depth {d:g}")
    return found.assign(network=found["dataset"] + " " + found["architecture"] + depth)


@dataclass(frozen=True)
class Judged:
    """One rule on what was held out: area under the curve, the Brier score, and each case's score.

    Each network weighs alike, but for `by_cases`, the area in which each case does.
    """

    signals: tuple[str, ...]
    area: float
    by_cases: float
    brier: float
    scores: np.ndarray


def held_out(cases: pd.DataFrame, signals: Sequence[str], by: str) -> np.ndarray:
    """The probability (cases,) of `good` by a rule fitted without the case's own group of the column `by`.

    nan for a group without which there are no cases of both kinds.
    """
    scores, values = np.full(len(cases), np.nan), cases[list(signals)].astype(float).to_numpy()
    good, groups, weights = cases["good"].to_numpy(bool), cases[by].to_numpy(), alike(cases)
    for group in pd.unique(groups):
        out = groups == group
        if len(np.unique(good[~out])) == 2:
            scores[out] = _fitted(values[~out], good[~out], weights[~out]).predict_proba(values[out])[:, 1]
    return scores


def alike(cases: pd.DataFrame) -> np.ndarray:
    """The weight (cases,) of each case: networks weigh alike, and the mean weight is 1."""
    counts = cases["network"].map(cases["network"].value_counts()).to_numpy(float)
    return len(cases) / (cases["network"].nunique() * counts)


def _fitted(values: np.ndarray, good: np.ndarray, weights: np.ndarray) -> Pipeline:
    filled = SimpleImputer(strategy="median", keep_empty_features=True)
    steps = make_pipeline(filled, StandardScaler(), LogisticRegression(max_iter=1_000))
    return steps.fit(values, good, standardscaler__sample_weight=weights, logisticregression__sample_weight=weights)


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
    good, weights = cases["good"].to_numpy(bool)[kept], alike(cases)[kept]
    brier = float(brier_score_loss(good, scores[kept], sample_weight=weights)) if kept.any() else float("nan")
    areas = area_under(good, scores[kept], weights), area_under(good, scores[kept])
    return Judged(tuple(signals), *areas, brier, scores)


def chosen_without(cases: pd.DataFrame, tried: Sequence[Sequence[str]], by: str) -> np.ndarray:
    """The probability (cases,) of `good` by a rule that was also *chosen* without the case's own group.

    For each group that of largest held-out area among the others. The best of many rules by their own held-out areas
    flatters itself; this does not.
    """
    scores, good, weights = np.full(len(cases), np.nan), cases["good"].to_numpy(bool), alike(cases)
    areas = np.array([_areas_without(cases, signals, by) for signals in tried])
    for group, reached in zip(pd.unique(cases[by]), areas.T, strict=True):
        out = (cases[by] == group).to_numpy()
        if len(np.unique(good[~out])) < 2 or np.isnan(reached).all():
            continue
        values = cases[list(tried[int(np.nanargmax(reached))])].astype(float).to_numpy()
        scores[out] = _fitted(values[~out], good[~out], weights[~out]).predict_proba(values[out])[:, 1]
    return scores


def _areas_without(cases: pd.DataFrame, signals: Sequence[str], by: str) -> list[float]:
    """For each group of the column `by` the area under the curve of held-out cases of the others; nan for none.

    One fit without two groups serves both, each as the one that is held out where the other takes no part.
    """
    names, of = np.unique(cases[by].to_numpy(), return_inverse=True)
    scores, values = np.full((len(names), len(cases)), np.nan), cases[list(signals)].astype(float).to_numpy()
    good, weights = cases["good"].to_numpy(bool), alike(cases)
    for pair in combinations(range(len(names)), 2):
        kept = ~np.isin(of, pair)
        if len(np.unique(good[kept])) == 2:
            model = _fitted(values[kept], good[kept], weights[kept])
            for out, asked in (pair, pair[::-1]):
                scores[out, of == asked] = model.predict_proba(values[of == asked])[:, 1]
    told = np.isfinite(scores)
    areas = {name: area_under(good[k], s[k], weights[k]) for name, s, k in zip(names, scores, told, strict=True)}
    return [areas[name] for name in pd.unique(cases[by])]


def area_interval(cases: pd.DataFrame, scores: np.ndarray) -> tuple[float, float]:
    """95% interval of the area under the curve, whole networks resampled; nan for a single one."""
    kept = np.isfinite(scores)
    good, scores, networks = cases["good"].to_numpy(bool)[kept], scores[kept], cases["network"].to_numpy()[kept]
    weights, (of, names) = alike(cases)[kept], pd.factorize(networks)
    if len(names) < 2:
        return float("nan"), float("nan")
    # A draw counts networks, so that the cases are sorted once, into sums of each network at each score.
    values, place = np.unique(scores, return_inverse=True)
    sums = np.zeros((2, len(names), len(values)))
    np.add.at(sums, (good.astype(int), of, place), weights)
    drawn = np.random.default_rng(SEED).integers(0, len(names), (DRAWS, len(names)))
    wrong, right = np.stack([np.bincount(one, minlength=len(names)) for one in drawn]) @ sums
    found = _area(right, wrong)
    return percentiles(found[np.isfinite(found)])


def area_under(good: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The area under the ROC curve: how often a good case has the larger score; nan without cases of both kinds.

    By sums over equal scores, of which resampling makes a thousand at once; scikit-learn's takes twenty times as long.

    Args:
        good: (cases,) labels.
        scores: (cases,).
        weights: (cases,) of each case; None for equal ones.
    """
    if not 0 < int(good.sum()) < len(good):
        return float("nan")
    weights = np.ones(len(good)) if weights is None else weights
    values, place = np.unique(scores, return_inverse=True)
    right, wrong = (np.bincount(place, weights * of, len(values)) for of in (good, ~good))
    return float(_area(right, wrong))


def _area(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """The areas (...,) from the weights (..., scores) of good cases and of others at each score, the least first."""
    with np.errstate(invalid="ignore"):  # a resample of cases of one kind has no area
        found = (right * (np.cumsum(wrong, axis=-1) - wrong / 2)).sum(axis=-1)
        return found / (right.sum(axis=-1) * wrong.sum(axis=-1))


@threadpool_limits.wrap(limits=1)  # for problems as small as these a second thread only waits
def rules(cases: pd.DataFrame, names: Sequence[str], by: str) -> pd.DataFrame:
    """Each rule of one signal and of two, of all, the baselines, and the choice among them, on held-out groups.

    By area, the best first. `CHOSEN` is the rule that is chosen anew without each group (`chosen_without`). `simplest`:
    the rule of fewest signals whose area is within `MARGIN` of the best. `shown`: the `SHOWN` best, the simplest, the
    choice and the baselines, which have intervals.
    """
    names = [name for name in names if cases[name].notna().any()]
    tried = {f"{name}": (name,) for name in names} | {" and ".join(pair): pair for pair in combinations(names, 2)}
    told = [name for name in cases if cases[name].notna().any()]
    tried |= {"all": tuple(names)} | {name: one for name, one in BASELINES.items() if set(one) <= set(told)}
    found = [(name, judge(cases, some, by)) for name, some in tried.items()]
    columns = ["rule", "signals", "area", "by_cases", "brier", "baseline", "used", "scores"]
    values = [(n, len(f.signals), f.area, f.by_cases, f.brier, n in BASELINES, f.signals, f.scores) for n, f in found]
    own = [some for name, some in tried.items() if name not in BASELINES]
    chosen = _judged((), cases, chosen_without(cases, own, by))
    values.append((CHOSEN, 0, chosen.area, chosen.by_cases, chosen.brier, False, (), chosen.scores))
    table = pd.DataFrame(values, columns=columns).sort_values("area", ascending=False, ignore_index=True)
    real, choice = table["signals"].gt(0), table["rule"].eq(CHOSEN)
    near = table[real & ~table["baseline"] & table["area"].ge(table.loc[real, "area"].max() - MARGIN)]
    simplest = table.index.isin(near.sort_values(["signals", "area"], ascending=[True, False]).index[:1])
    table = table.assign(simplest=simplest, shown=simplest | choice | table["baseline"] | (table.index < SHOWN))
    intervals = [area_interval(cases, row.scores) if row.shown else (np.nan, np.nan) for row in table.itertuples()]
    return table.assign(low=[low for low, _ in intervals], high=[high for _, high in intervals])


def fitted(runs: pd.DataFrame, tables: dict[str, pd.DataFrame], allowed: Sequence[str]) -> Rule:
    """The simplest rule near the best that takes `allowed` signals alone, fitted on all runs that have them.

    Near the best on held-out data sets, where there are several, else on held-out networks.

    Args:
        runs: of `judged_runs`.
        tables: of `rules`, by what was held out.
        allowed: signals.
    """
    widest = next(tables[by] for by in ("dataset", "network") if by in tables)
    named = widest[[len(used) > 0 and set(used) <= set(allowed) for used in widest["used"]]]
    near = named[named["area"].ge(named["area"].max() - MARGIN)].sort_values(
        ["signals", "area"], ascending=[True, False]
    )
    simplest = next(near.itertuples())
    signals = list(simplest.used)
    known = runs.dropna(subset=signals)
    good = known["good"].to_numpy(bool)
    steps = _fitted(known[signals].astype(float).to_numpy(), good, alike(known))
    scaled, model = steps["standardscaler"], steps["logisticregression"]
    reached = {}
    for by, table in tables.items():
        (same,) = table[table["rule"] == simplest.rule].itertuples()
        reached[by] = [round(float(x), 3) for x in (same.area, *area_interval(runs, same.scores))]
    return Rule(
        signals=signals,
        mean=scaled.mean_.round(6).tolist(),
        scale=scaled.scale_.round(6).tolist(),
        weights=model.coef_[0].round(6).tolist(),
        intercept=round(float(model.intercept_[0]), 6),
        reached=reached,
        networks=int(known["network"].nunique()),
        runs=len(known),
    )


# -- what is shown of it -----------------------------------------------------------------------------------------------

WORST = 6  # mistakes of a table
SHOWN = 5  # signals of a mistake that are shown: a table of more is wider than a screen


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
    """The best rules, the simplest and the baselines, in words."""
    found = table.loc[table["shown"], list(COLUMNS)].rename(columns=COLUMNS)
    yes = {COLUMNS[name]: table[name].map({True: "yes", False: ""}) for name in ("simplest", "baseline")}
    return found.assign(rule=found["rule"].str.replace("_", " "), **yes)


def answer(table: pd.DataFrame, by: str, goal: float) -> str:
    """What rules reach on held-out groups, in a few lines, beside a goal: above all one chosen without them."""

    def told(row: object) -> str:
        return f"{row.rule} {row.area:.2f} ({row.low:.2f} to {row.high:.2f}; each case alike {row.by_cases:.2f})"

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
            f"{told(chosen)};",
            f"the goal of {goal:g} {said}.",
            "Best by these very areas, which flatters it:",
            f"{told(best)}.",
            f"Simplest near it: {told(simplest)}.",
            f"What others go by: {others}.",
        ]
    )


def scores(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """What the best rule, the simplest and the baselines gave each held-out case."""
    named = table[table["simplest"] | table["baseline"] | table["rule"].isin([CHOSEN, table["rule"].iloc[0]])]
    return dict(zip(named["rule"], named["scores"], strict=True))


def mistakes(cases: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The cases that the simplest rule was surest of and wrong about: those it believed, then those it doubted.

    Of the rule's signals the first `SHOWN` stand beside them.
    """
    (simplest,) = table[table["simplest"]].itertuples()
    judged = cases.assign(probability=simplest.scores).dropna(subset=["probability"])
    believed = judged[~judged["good"]].nlargest(WORST, "probability")
    doubted = judged[judged["good"]].nsmallest(WORST, "probability")
    found = pd.concat({"believed, and bad": believed, "doubted, and good": doubted}, names=["the rule"])
    told = ["run_id", "seed", "fit", "test_point", "index", "estimator", "spearman_corrected", "true", "estimate"]
    told = [name for name in (*told, "probability", *simplest.used[:SHOWN]) if name in found]
    return found[told].reset_index("the rule")


def retrainings(known: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Of each test point and choice of removals: the reliability of one retraining, measured, and foretold twice.

    `foretold`: the reliability of one unrolled derivative over several orders of the batches, for which nothing is left
    out. `by controls`: V / (V + c s^2), V the variance of the estimates over the removals and s^2 that of controls, c
    the median over the other networks of what the measured reliability asks for.

    Args:
        known: as in `judged_runs`.
        rows: the results table.
    """
    keys = [key for key in RUN_KEYS if key != "estimator"]
    single = rows.dropna(subset=["reliability_single"])
    measured = single[single["ground_truth"].isin(RETRAINED)].rename(columns={"reliability_single": "measured"})
    derived = single[single["ground_truth"].isin(UNROLLED)].rename(columns={"reliability_single": "foretold"})
    facts = ["dataset", "architecture", "depth", "n_train", "ground_truth", "measured"]
    told = measured.drop_duplicates(keys)[keys + facts].merge(
        derived.drop_duplicates(keys)[[*keys, "foretold"]], on=keys
    )
    told = told.merge(known.drop_duplicates(keys)[[*keys, "control_spread", "estimate_spread"]], "left", keys)
    told = _named(told)
    noise = (told["control_spread"].astype(float) / told["estimate_spread"].astype(float)) ** 2  # s^2 / V
    asked = (told["measured"].clip(0.01, 0.999).rdiv(1) - 1) / noise.where(noise > 0)  # c
    other = {name: asked[told["network"] != name].median() for name in told["network"].unique()}
    return told.assign(**{"by controls": 1 / (1 + told["network"].map(other) * noise)})


def retrainings_needed(told: pd.DataFrame) -> pd.DataFrame:
    """Of each network and number of examples: medians of `retrainings`, and the R that `ENOUGH` takes by each.

    The mean of R retrainings has the reliability R r / (1 + (R - 1) r), r that of one (Spearman and Brown).
    """
    columns = ["measured", "foretold", "by controls"]
    table = told.groupby(["network", "n_train"])[columns].median()
    for name in columns:
        table[f"R, {name}"] = pd.array([retrainings_for(ENOUGH, single) for single in table[name]], dtype="Int64")
    return table.reset_index()
