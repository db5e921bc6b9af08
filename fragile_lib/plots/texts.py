"""Alternative texts and captions of figures of means, computed from the marks that are drawn."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from fragile_lib.plots import words
from fragile_lib.plots.axes import REPEATED, placed
from fragile_lib.plots.published import published
from fragile_lib.plots.rows import Panel, Shown

FULL_SIZE = 50_000  # training images of the published networks, at least
FEW = 10  # below so many values a bootstrap interval is too short
FACTS = ("dataset", "architecture", "activation", "depth", "width", "weight_decay", "optimiser")
CHOICES = ("train_choice", "test_choice", "estimator", "ground_truth")
SUMMED = 4  # numbers of an axis from which on a series is told by its ends and extremes


def alt(shown: Shown, damping: float | None) -> str:
    """Every panel and series in words: all marks of a category, the ends and extremes along a longer axis."""
    spec = shown.spec
    statistics = words.joined(words.short(s) for s in shown.levels("statistic"))
    scales = {words.STATISTICS[s].scale for s in spec.statistics}
    head = f"{statistics} against {words.short(spec.at)}{', log scale' if scales == {'log'} else ''}"
    if spec.brief:
        return words.sentences(head, *sums(shown), *_repeated(shown), *_paper(shown))
    told = []
    for panel in shown.panels():
        title = f"{panel.title}, " if panel.title else ""
        title += f"{words.short(panel.statistic)}, " if len(spec.statistics) > 1 and "panel" not in spec.keys else ""
        for key, marks in _by(panel.marks, shown, [c for c in (spec.hue, spec.style) if c]):
            told.append(f"{title}{', '.join([*_named(key)])}: {_series(shown, panel, marks)}".replace(", :", ":"))
    return words.sentences(head, *told, *_repeated(shown), *_paper(shown), _indefinite(shown, damping))


def caption(shown: Shown, damping: float | None) -> str:
    """Sums, setting, scale, what was averaged over what, what is missing or flagged, and the paper's part."""
    spec, rows = shown.spec, shown.rows
    return words.sentences(
        *(sums(shown) if spec.sums is not None and not spec.brief else []),
        setting(rows, spec.keys, () if spec.of_networks else CHOICES),
        scale(rows),
        averages(shown),
        repeated_sentence(shown.marks["repeated"]),
        outcomes(shown),
        _off_axis(shown),
        _indefinite(shown, damping),
        *shown.notes,
        spec.note,
        _paper_sentence(published(shown)),
    )


def sums(shown: Shown) -> list[str]:
    """For each group of the columns `Spec.sums`: mean and spread of its marks, the extremes, and how many agree.

    Along an axis of numbers: from where to where each group goes.
    """
    spec, name = shown.spec, shown.spec.statistics[0]
    marks = shown.marks[(shown.marks["statistic"] == name) & shown.marks["n"].gt(0)]
    paper, told = published(shown), []
    for key, group in _by(marks, shown, list(spec.sums or [])):
        head = ", ".join(_named(key))
        group = group.sort_values("mean", kind="stable")
        if spec.at == "share":
            ends = group.sort_values("share").iloc[[0, -1]].itertuples()
            text = " to ".join(f"{words.statistic(name, m.mean)} at {words.tick('share', m.share)}" for m in ends)
        else:
            low, high = group.iloc[0], group.iloc[-1]
            spread = f" ± {words.statistic(name, group['mean'].std())} (standard deviation)" if len(group) > 1 else ""
            text = (
                f"mean {words.statistic(name, group['mean'].mean())}{spread} over {words.counted(len(group), 'mark')}"
            )
            if len(group) > 1:
                ends = [f"{words.statistic(name, m['mean'])}{_at(shown, m)}" for m in (low, high)]
                text += f", from {ends[0]} to {ends[1]}"
            inside = group.merge(
                paper, on=[c for c in paper.columns if c not in ("low", "high")], suffixes=("_own", "")
            )
            if (inside["low"] < inside["high"]).any():
                agreeing = inside["mean"].between(inside["low"], inside["high"]).sum()
                text += f", {agreeing} of {len(inside)} in the paper's range"
        told.append(f"{head}: {text}" if head else text)
    return told


def _at(shown: Shown, mark: pd.Series) -> str:
    value = mark[shown.spec.at]
    return f" ({words.value(shown.spec.at, value)})" if shown.spec.at != "rank" else ""


def _by(table: pd.DataFrame, shown: Shown, columns: list[str]) -> Iterable[tuple[dict, pd.DataFrame]]:
    """Groups of the columns' values in the order in which they are shown."""
    if not columns:
        return [({}, table)]
    first, *others = columns
    parts = [(level, table[table[first] == level]) for level in shown.levels(first)]
    return [({first: v} | key, g) for v, part in parts for key, g in _by(part, shown, others) if len(g)]


def _named(key: dict) -> list[str]:
    return [words.value(c, v) for c, v in key.items() if c != "statistic"]


def _series(shown: Shown, panel: Panel, marks: pd.DataFrame) -> str:
    """One series in words."""
    at, name = shown.spec.at, panel.statistic
    numbers = [m for m in marks.sort_values("mean", kind="stable").itertuples() if m.n]
    if not numbers:
        return "no number"
    levels = shown.levels(at)
    along = sorted(marks.itertuples(), key=lambda m: levels.index(getattr(m, at)))

    def at_place(m: object, full: bool) -> str:
        text = words.interval(name, m.mean, m.low, m.high) if full else words.statistic(name, m.mean)
        return f"{text} at {words.short(at)} {words.tick(at, getattr(m, at))}"

    if at != "share" and not isinstance(getattr(along[0], at), str) and len(levels) >= SUMMED:
        along = [m for m in along if m.n]
        text, ends = ", ".join(at_place(m, True) for m in dict.fromkeys((along[0], along[-1]))), (along[0], along[-1])
        for word, m in (("lowest", numbers[0]), ("highest", numbers[-1])):
            if words.statistic(name, m.mean) not in [words.statistic(name, e.mean) for e in ends]:
                text += f", {word} {at_place(m, False)}"
        return text
    return ", ".join(
        f"{words.tick(at, getattr(m, at))} {words.interval(name, m.mean, m.low, m.high) if m.n else 'no number'}"
        for m in along
    )


def _repeated(shown: Shown) -> list[str]:
    """Where a truth was repeated: its agreement with its own repetition, by panel and place."""
    told = []
    marks = shown.marks.dropna(subset=["repeated"])
    facets = [c for c in (shown.spec.rows, shown.spec.columns) if c]
    for key, group in _by(marks, shown, facets):
        pairs = {}
        for m in group.itertuples():
            pairs.setdefault(words.statistic("spearman", m.repeated), []).append(_place_of(shown, m))
        each = [f"{r} ({words.joined(dict.fromkeys(places))})" for r, places in pairs.items()]
        told.append(f"{', '.join([*_named(key), REPEATED])}: {', '.join(each)}")
    return told


def _place_of(shown: Shown, mark: object) -> str:
    spec = shown.spec
    named = [spec.at, *([spec.hue] if spec.hue in ("weight_decay", "train_choice") else [])]
    return ", ".join(words.value(c, getattr(mark, c)) for c in named)


def repeated_sentence(repeated: pd.Series) -> str:
    """What the agreement of a truth with itself says of an estimate: an errorless one reaches about its square root."""
    values = repeated.dropna()
    if values.empty:
        return ""
    form = lambda r: words.statistic("spearman", r)  # noqa: E731
    return (
        f"Black marks: {REPEATED}, where it was repeated. The truth agrees with its own repetition at "
        f"{words.span(values, form)}; an errorless estimate would reach about the square root, "
        f"{words.span(np.sqrt(values.clip(lower=0)), form)}."
    )


def _paper(shown: Shown) -> list[str]:
    told = []
    for row in published(shown).to_dict("records"):
        if row["low"] == row["high"]:
            key = [words.value(c, row[c]) for c in shown.spec.keys]
            told.append(f"the paper, {', '.join(key)}: {words.number(row['low'])}")
    return told


def _paper_sentence(paper: pd.DataFrame) -> str:
    ranges = paper[paper["low"] < paper["high"]].drop_duplicates(["low", "high"])
    told = [f"{low:.2f} to {high:.2f}" for low, high in ranges[["low", "high"]].to_numpy(dtype=float)]
    parts = ["stars: the paper's figures, of networks of full size"] if len(ranges) < len(paper) and not told else []
    return words.joined([*parts, *([f"grey: the paper's range, {words.joined(told)}"] if told else [])])


def setting(rows: pd.DataFrame, shown: Iterable[str], choices: Iterable[str] = CHOICES) -> str:
    """What all rows have in common: data set, network, chosen points, estimate and truth, profile."""
    common = {
        c: rows[c].dropna().iloc[0]
        for c in (*FACTS, *choices, "profile")
        if c in rows.columns and rows[c].nunique() == 1 and c not in shown
    }
    facts = ", ".join(words.value(c, common[c]) for c in FACTS if c in common and common[c] != "mlp")
    parts = [facts, *(words.value(c, common[c]) for c in ("train_choice", "test_choice") if c in common)]
    parts += [f"{words.short(c)} {words.code(common[c])}" for c in ("estimator", "ground_truth") if c in common]
    if "profile" in rows.columns and rows["profile"].notna().any():
        parts.append(f"profile {words.joined(sorted(rows['profile'].dropna().astype(str).unique()))}")
    return "; ".join(p for p in parts if p)


def scale(rows: pd.DataFrame) -> str:
    """Training examples, parameters, which networks are narrower than published; a warning where that is reduced."""
    parts, reduced = [], False
    if "n_train" in rows.columns and rows["n_train"].notna().any():
        counts = rows.groupby("dataset")["n_train"].agg(lambda n: words.span(n, lambda x: f"{x:,.0f}"))
        several = counts.nunique() > 1
        parts += [f"{n} training examples{f' of {words.code(d)}' if several else ''}" for d, n in counts.items()][
            : None if several else 1
        ]
    if "n_params" in rows.columns and rows["n_params"].nunique() == 1:
        parts.append(f"{rows['n_params'].dropna().iloc[0]:,.0f} parameters")
    if "width_multiplier" in rows.columns and rows["width_multiplier"].notna().any():
        width = rows["width_multiplier"].astype(float)
        for factor in sorted(width[width < 1].unique()):
            names = [words.code(a) for a in words.ordered(rows.loc[width == factor, "architecture"])]
            parts.append(
                f"{words.joined(names)} at {factor:g} of {'their' if len(names) > 1 else 'its'} published width"
            )
        reduced = bool((width < 1).any() or (rows["n_train"] < FULL_SIZE).any())
    profiles = set(rows["profile"].dropna().astype(str)) if "profile" in rows.columns else set()
    small = sorted(profiles - set(words.OF_RECORD))
    return words.sentences(
        f"{'Scale, reduced from the published one: ' if reduced else ''}{', '.join(parts)}",
        f"Reduced scale: profile {words.joined(small)}, not a study of record" if small else "",
    )


def averages(shown: Shown) -> str:
    """What was averaged over how many seeds or test points, and what the bars are."""
    spec, rows = shown.spec, shown.rows
    of = {words.STATISTICS[s].average is np.median for s in spec.statistics}
    average = {(True,): "Medians", (False,): "Means", (False, True): "Means (of sizes: medians)"}[tuple(sorted(of))]
    seeds = rows["seed"].nunique()
    if spec.unit == ("seed",):
        over, dot = words.counted(seeds, "seed"), "seeds"
    else:
        points = rows.drop_duplicates([*_network(rows), "test_choice", "test_point"])
        counts = points.groupby([*_network(rows), "test_choice"]).size().groupby("test_choice")
        each = [f"{words.span(n, lambda x: f'{x:.0f}')} {words.code(choice)}" for choice, n in counts]
        over, dot = f"{words.joined(each)} test points of each network, {words.counted(seeds, 'seed')}", "test points"
    most = int(shown.marks["n"].max())
    if most < 2:
        return f"Each mark is one of {over}, so there is no interval"
    few = " (too short with so few)" if most < FEW else ""
    faint = f"; faint dots are single {dot}" if spec.dots else ""
    return f"{average} over {over}, with 95% bootstrap intervals over these {dot} alone{few}{faint}"


def _network(rows: pd.DataFrame) -> list[str]:
    return [c for c in ("run_id", "seed", "weight_decay") if c in rows.columns]


def outcomes(shown: Shown) -> str:
    """How many rows have no number, and of which outcome; which others are flagged."""
    cells = shown.cells[shown.cells["statistic"] == shown.spec.statistics[0]]
    if "status" not in cells.columns:
        return ""
    missing = cells["value"].isna()
    counted = cells["flagged"] & ~missing
    lost = f"No number in {missing.sum()} of {len(cells)} rows ({tally(cells.loc[missing, 'status'])})"
    hollow = f"Hollow marks are flagged but counted: {tally(cells.loc[counted, 'status'])}"
    return words.sentences(lost if missing.any() else "", hollow if counted.any() else "")


def tally(status: pd.Series) -> str:
    """The outcomes in words, each with how often it is there."""
    counts = status.fillna("ok").replace("ok", "unnamed").value_counts()
    return ", ".join(f"{words.code(name)} {counts[name]}" for name in sorted(counts.index))


def _off_axis(shown: Shown) -> str:
    """How many marks and units have no place on a log axis."""
    logs = [s for s in shown.spec.statistics if words.STATISTICS[s].scale == "log"]
    marks, units = (t[t["statistic"].isin(logs)] for t in (shown.marks, shown.units))
    off = int((units["value"] <= 0).sum())
    lost = int(marks["n"].gt(0).sum()) - sum(len(placed(marks[marks["statistic"] == s])) for s in logs)
    return words.sentences(
        f"{off} values that are not positive lie off the log axis" if off else "",
        f"{words.counted(lost, 'mark')} whose interval reaches zero is not drawn on it" if lost else "",
    ).removesuffix(".")


def _indefinite(shown: Shown, damping: float | None) -> str:
    """How many networks have a damped Hessian with a negative eigenvalue."""
    if "eig_min" not in shown.spec.statistics or not damping:
        return ""
    values = shown.units.loc[shown.units["statistic"] == "eig_min", "value"].dropna()
    below = int((values < -damping).sum())
    return f"Below the dashed line at {-damping:g}, where the damped Hessian is indefinite: {below} of {len(values)}"
