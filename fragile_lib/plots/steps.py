"""What happens to the chosen rows before they are averaged: each step returns rows, and a sentence for the caption."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fragile_lib.agreement import MIN_SEEDS
from fragile_lib.plots import words
from fragile_lib.plots.rows import Step

# The estimate that a truth is compared with unless a figure shows several: a damped Gauss-Newton estimate is the
# derivative of the proximal Bregman response, the Hessian's that of the others.
OWN = {"pbrf": "exact_ggn"}
SHORTEST = 0.06  # share of the training steps that the protocol's own retraining takes


def widest(axis: str, other: str) -> Step:
    """Of another size (width beside depth) the one value at which `axis` was studied most widely."""

    def step(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
        spread = rows.groupby(other)[axis].nunique()
        return (rows[rows[other] == spread.index[spread == spread.max()].min()], "") if len(spread) else (rows, "")

    return step


def several(column: str, of: str) -> Step:
    """The values of `of` that have several values of `column`."""
    return lambda rows: (rows[rows.groupby(of)[column].transform("nunique") > 1], "")


def differences(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The column `difference`: each row's Spearman minus that of the exact estimate for the same network and points."""
    keys = ["depth", "width", "weight_decay", "seed", "test_point", "test_choice", "train_choice"]
    exact = rows[rows["estimator"] == "exact"].set_index(keys)["spearman"]
    rows = rows.assign(difference=rows["spearman"] - rows.join(exact.rename("exact"), on=keys)["exact"])
    both = rows.loc[rows["estimator"] != "exact", "difference"].notna().any()
    return rows, "Differences are paired by seed" if both else "No seed has both solvers: there is no difference"


def by_outcome(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A row for each network and outcome: `outcome`, and `networks`, which is 1 where the network ended so, else 0.

    A network with several rows counts with its first outcome that is not ok; outcomes that a panel lacks are left out.
    """
    rows = rows.assign(ended=rows["status"].fillna("ok")).sort_values("ended", key=lambda s: s == "ok", kind="stable")
    rows = rows.drop_duplicates(["depth", "width", "weight_decay", "fit", "seed"]).assign(status="ok")
    counts = rows["ended"].value_counts()
    kinds = sorted(counts.index, key=lambda kind: (kind != "ok", kind))
    told = ", ".join(f"{words.code(kind)} {counts[kind]}" for kind in kinds)
    rows = rows.merge(pd.DataFrame({"outcome": kinds, "outcome_order": range(len(kinds))}), how="cross")
    rows = rows.assign(networks=(rows["ended"] == rows["outcome"]).astype(float))
    there = rows.groupby(["fit", "weight_decay", "outcome"])["networks"].transform("max") > 0
    return rows[there], f"Of {counts.sum()} networks: {told}"


def later_fit(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Of a truth that is known after two fits, the rows of finished training."""
    keys = [rows[c] for c in ("weight_decay", "seed", "ground_truth", "train_choice")]
    later = (rows["fit"] != "finished").astype(int)
    return rows[later == later.groupby(keys).transform("min")], ""


def reached(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows whose truth was reached for enough of the training points, and how many others there are.

    Random subsets have a figure of their own.
    """
    rows = rows[~rows["train_choice"].str.startswith("removed_")]
    found = rows[rows["status"] != "not_certified"]
    lost = len(rows) - len(found)
    few = f"Not drawn: {lost} of {len(rows)} rows, whose truth was reached for fewer than four in five training points"
    return found, few if lost else ""


def over_dampings(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows at a damping of their own, without ceilings, which are the same at all of them and told in words."""
    rows = rows[rows["damping"].notna()]
    known = rows.dropna(subset="reliability") if "reliability" in rows.columns else rows.iloc[:0]
    reached = np.sqrt(known.groupby(["ground_truth", "train_choice"])["reliability"].mean().clip(lower=0))
    told = [
        f"{words.code(truth)}, images {words.code(choice)}: {words.number(ceiling)}"
        for (truth, choice), ceiling in reached.items()
    ]
    note = f"What an estimate without error would reach: {'; '.join(told)}" if told else ""
    return rows.drop(columns=["reliability", "ceiling_spearman"], errors="ignore"), note


def own_estimates(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Of each ground truth the rows with the estimate that belongs to it (`OWN`)."""
    own = rows["ground_truth"].map(lambda truth: OWN.get(truth, "exact"))
    named = {truth: words.code(OWN.get(truth, "exact")) for truth in words.ordered(rows["ground_truth"])}
    by = [
        f"{words.joined(words.code(t) for t in named if named[t] == e)} by {e}" for e in dict.fromkeys(named.values())
    ]
    return rows[rows["estimator"] == own], f"Estimates: {'; '.join(by)}"


def whole_repeats(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Of the runs of one study size (`main_size`), repetitions that are of all that a test point asks for.

    Where a table does not say how often a truth was repeated, only the first test point's images were left out again;
    elsewhere a few share them by chance.
    """
    rows, note = main_size(rows)
    there = (rows["first_point"] & (rows["train_choice"] == "top_influence")) | rows["repeats"].notna()
    return rows.assign(**{c: rows[c].where(there) for c in ("ceiling_spearman", "ceiling_pearson")}), note


def main_size(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Of each data set the number of training examples with most runs: networks are compared at one size."""
    sizes = rows.drop_duplicates(["dataset", "run_id"]).groupby("dataset")["n_train"].agg(lambda n: n.mode().min())
    return rows[rows["n_train"] == rows["dataset"].map(sizes)], ""


def largest_size(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Of each network the rows with the most training examples that enough starts have (`MIN_SEEDS`), else the most."""
    of = ["dataset", "architecture"]
    starts = rows.groupby([*of, "n_train"])["seed"].transform("nunique")
    enough = (starts >= MIN_SEEDS) | ~(starts >= MIN_SEEDS).groupby([rows[c] for c in of]).transform("any")
    rows = rows[enough]
    return rows[rows["n_train"] == rows.groupby(of)["n_train"].transform("max")], ""


def measures(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Each row once for each `measure` of its agreement, in the column spearman: with one repetition, and so on."""
    rows = _repeated(rows)
    named = {
        "one retraining": "spearman_single",
        "mean of the repetitions": "spearman",
        "corrected for their noise": "spearman_corrected",
        "ceiling of one retraining": "reliability_single",
        "ceiling of the mean": "reliability",
    }
    return _stacked("measure", {name: (rows, column) for name, column in named.items()}), ""


def rungs(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Each agreement between one retraining and an estimate as a `rung`, in the column spearman.

    From the noise of one retraining, over what finite removals add to the derivative, to what other estimators that are
    shown and then the exact Hessian miss of it.
    """
    rows, name = _repeated(rows), words.code("exact")
    own, derivative = rows["estimator"] == "exact", rows["ground_truth"].str.startswith("unrolled")
    unrolled = rows["estimator"].str.startswith("unrolled")
    real, other = rows[own & ~derivative], rows[~own & ~unrolled & ~derivative]
    others = {f"{words.code(e)}, with the mean": (part, "spearman") for e, part in other.groupby("estimator")}
    named = {
        "ceiling: one retraining": (real, "reliability_single"),
        "ceiling: mean of repetitions": (real, "reliability"),
        "unrolled derivative, with the mean": (rows[unrolled & ~derivative], "spearman"),
        **others,
        f"{name}, with the unrolled derivative": (rows[own & derivative], "spearman"),
        f"{name}, with the mean": (real, "spearman"),
        f"{name}, with one retraining": (real, "spearman_single"),
    }
    return _stacked("rung", named), ""


# From perfect agreement down to what one retraining shows: what each step adds to the comparison above it.
FINITE, *_, NOISE = FALLS = (
    "a removal is not small",
    "damping",
    "training cut short",
    "stochastic solver",
    "noise of one retraining",
)
SIZED = 2_000  # training images from which on a network trained by minibatches shows the noise of its batches


def falls(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Rows of each `network` by `rung`, one of `FALLS`, in the column spearman: its agreement with that rung in it.

    A network's rungs are of the same test points; one that shares none with those above it is missing, as is one
    without rows.
    """
    kept, told = [rows.iloc[:0].assign(rung=None, network=None)], []
    for order, (name, of) in enumerate(_networks(rows)):
        found, unseen = _shared(_chain(of)), of["unseen"].mean()
        if FINITE in found and len(found) > 1:
            kept.append(_stacked("rung", found).assign(network=name, network_order=order))
            told += [f"{unseen:.0%} of those of {name}"] if np.isfinite(unseen) else []
    note = f"Removals that no batch of a retraining held: {words.joined(told)}" if told else ""
    return pd.concat(kept[1:] or kept, ignore_index=True), note


def _networks(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The shallowest and the deepest on Iris, small MNIST by training points, others at their largest size."""
    found, top = [], rows["train_choice"] == "top_influence"
    iris = rows[(rows["dataset"] == "iris") & top & (rows["activation"] == "relu")]
    iris, _ = widest("depth", "width")(iris)
    for depth in sorted({iris["depth"].min(), iris["depth"].max()}) if len(iris) else ():
        layers = "1 hidden layer" if depth == 1 else f"{depth:g} hidden layers"
        found.append((f"Iris, {layers}", iris[iris["depth"] == depth]))
    small = rows[rows["dataset"] == "small_mnist"]
    for choice in words.ordered(small["train_choice"]):
        found.append(
            (
                f"small MNIST, images {words.code(choice).removesuffix(' of |influence|')}",
                small[small["train_choice"] == choice],
            )
        )
    large, _ = largest_size(rows[top & (rows["n_train"] >= SIZED) & ~rows["dataset"].isin(["iris", "small_mnist"])])
    for dataset in words.ordered(large["dataset"]):
        for architecture in words.ordered(large.loc[large["dataset"] == dataset, "architecture"]):
            of = large[(large["dataset"] == dataset) & (large["architecture"] == architecture)]
            size = f"{of['n_train'].iloc[0]:,.0f} {words.code(dataset)} images"
            found.append((f"{words.code(architecture)}, {size}", of))
    return found


def _chain(of: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, str]]:
    """The rows of each rung. Of networks without left-out minima the unrolled derivative tells what is not small."""
    minimum, warm = (of[of["ground_truth"].str.startswith(t)] for t in ("minimum", "warm"))
    undamped, damped = (minimum[minimum["estimator"] == e] for e in ("exact_undamped", "exact"))
    unrolled, lissa = (warm[warm["estimator"].str.startswith(e)] for e in ("unrolled", "lissa"))
    direct = next((part for e in ("exact", "ekfac") if len(part := warm[warm["estimator"] == e])), warm.iloc[:0])
    finite = next((part for part in (undamped, damped, unrolled) if len(part)), of.iloc[:0])
    damped = damped if len(undamped) else of.iloc[:0]
    chain = dict(zip(FALLS, (finite, damped, direct, lissa), strict=False))
    noise = {NOISE: (lissa if len(lissa) else direct, "spearman_single")}
    return {rung: (part, "spearman") for rung, part in chain.items()} | noise


def _shared(chain: dict[str, tuple[pd.DataFrame, str]]) -> dict[str, tuple[pd.DataFrame, str]]:
    """The rungs that have numbers, of the test points that all of these have."""
    units, found = None, {}
    for rung, (rows, column) in chain.items():
        rows = rows[rows[column].notna() & (rows["status"] != "not_certified")]
        own = pd.MultiIndex.from_frame(rows[["run_id", "seed", "test_point"]])
        both = own if units is None else units.intersection(own)
        if len(both):
            units, found[rung] = both.unique(), (rows.set_index(own), column)
    return {rung: (rows[rows.index.isin(units)], column) for rung, (rows, column) in found.items()}


def _repeated(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose truth was measured several times."""
    return rows[rows["repeats"].notna()]


def _stacked(column: str, named: dict[str, tuple[pd.DataFrame, str]]) -> pd.DataFrame:
    """The rows of each name with the numbers of one of their columns as `spearman`; of a reliability its root."""
    parts = []
    for place, (name, (rows, source)) in enumerate(named.items()):
        numbers = rows[source].astype(float) if source in rows.columns else pd.Series(np.nan, index=rows.index)
        numbers = np.sqrt(numbers.clip(lower=0)) if source.startswith("reliability") else numbers
        found = rows.drop(columns=["reliability", "ceiling_spearman"], errors="ignore")
        parts.append(found.assign(**{column: name, f"{column}_order": place, "spearman": numbers}))
    return pd.concat(parts, ignore_index=True)


def ranked(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The column `rank`: the place of a test point by its loss, the largest first, among those of its choice."""
    keys = ["test_choice", "seed", "test_point"]
    points = rows.drop_duplicates(keys).sort_values(["test_loss", *keys[1:]], ascending=[False, True, True])[keys]
    return rows.merge(points.assign(rank=points.groupby("test_choice").cumcount() + 1), on=keys), ""


def shares(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The column `share` of the training steps that a retraining took, of the networks that took more than one."""
    told = rows["ground_truth"].str.extract(r"^warm_minibatch_([\d.]+)$")[0].astype(float)
    rows = rows.assign(share=told.fillna(SHORTEST))
    rows = rows[rows["ground_truth"].isin(["warm_minibatch"]) | told.notna()]
    return several("share", "run_id")(rows)


def subsets(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of random subsets, with the column `left_out`: the share of the training points in each."""
    share = rows["train_choice"].str.extract(r"^removed_([\d.e-]+)$")[0].astype(float)
    rows = rows.assign(left_out=share)[share.notna()]
    counts = rows["n_points"].unique()
    note = "At 50% the correlation is the linear datamodelling score"
    return rows, f"{counts[0]:g} random subsets of each size. {note}" if len(counts) == 1 else note


def networks(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Each network once, however many runs ask it; the outcomes there are of estimates, not of training, and go."""
    return rows.drop_duplicates(["weight_decay", "seed", "fit"]).assign(status="ok"), ""


def targets(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The column `target`: a truth, and the training points where they are not those of largest |influence|.

    Within a test point the control moves all changes alike, so that truths minus control are left out.
    """
    rows = rows[~rows["ground_truth"].str.endswith("_minus_control")]
    truth, train = rows["ground_truth"], rows["train_choice"]
    plain = (train == "top_influence") | train.str.startswith("scratch")
    target = truth.map(words.code) + (", " + train.map(words.code)).mask(plain, "")
    stem = truth.str.replace(r"_[\d.]+$", "", regex=True)  # of another length, right below that of the protocol's
    order = [stem.map(words.ORDER).fillna(999) + (stem != truth) / 2, train.map(words.ORDER).fillna(999)]
    note = "Training points of largest |influence|, but for lines that name others, and those from scratch"
    return rows.assign(target=target, target_order=1000 * order[0] + order[1]), note


def compared(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The networks and test points on which most solvers were tried; others would count for the direct ones alone."""
    tried = rows.groupby(["run_id", "test_point"])["estimator"].transform("nunique")
    return rows[(tried == tried.max()) & (tried > 3)], ""


def with_groups(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The data sets on which groups were left out, and how many of each kind; the column `removed` names the kinds."""
    groups = rows["train_choice"].str.endswith("_groups")
    counts = rows.loc[groups, "n_points"].unique()
    note = f"{counts[0]:g} groups of each kind, beside single images" if len(counts) == 1 else ""
    rows = rows.assign(removed=rows["train_choice"].where(groups, "single_images"))
    return rows[rows["dataset"].isin(rows.loc[groups, "dataset"])], note


def ways(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The column `way`: how the perceptron was trained, and what sets some runs apart from most."""
    way = rows["fit"]
    for name, unit in (("n_train", "images"), ("n_points", "left out")):
        apart = rows[name].notna() & (rows[name] != rows[name].mode().min())
        way = way.where(~apart, way + ", " + rows[name].map("{:,.0f}".format) + f" {unit}")
    order = rows.groupby(["dropout", "batches", "n_train", "n_points"], dropna=False).ngroup()
    return rows.assign(way=way, way_order=order), ""


def from_nothing_on(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Each removal once, whatever estimators it stands beside, with the count `without`; before them the control."""
    rows = rows.assign(without=rows["removed"]).drop_duplicates(["fit", "selected_by", "removed", "seed"])
    rows = rows.drop(columns="estimator")
    control = rows.drop_duplicates(["fit", "selected_by", "seed"])
    control = control.assign(without=0, loss_after=control["loss_before"], loss_error=0.0)
    note = f"Means over {words.counted(int(rows['repeats'].max()), 'training')} anew from other starts"
    return pd.concat([control, rows], ignore_index=True), note
