"""Alternative texts and captions of figures of means, computed from the marks that are drawn."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from fragile_lib.plots import words
from fragile_lib.plots.axes import placed
from fragile_lib.plots.means import CEILING
from fragile_lib.plots.published import published
from fragile_lib.plots.rows import Shown

FULL_SIZE = 50_000  # training images of the published networks, at least
FEW = 10  # below so many values a bootstrap interval is too short
FACTS = ("dataset", "architecture", "activation", "depth", "width", "weight_decay", "optimiser")
CHOICES = ("train_choice", "test_choice", "estimator", "ground_truth")
OF_NETWORKS = {"eig_max", "eig_min", "grad_norm", "networks"}  # which no choice of points and no estimate can change
SEVERAL = 3  # values below which a mean is not worth a headline where others have more
SUMMED = 5  # numbers of an axis from which on a series is told by its ends and extremes
SERIES = 3  # whose numbers stand in a figure's point; all of them stand in the alternative text


def alt(shown: Shown, damping: float | None) -> str:
    """Every panel and series in words: all marks of a category, the ends and extremes along a longer axis.

    Where each mark is a single unit, groups of them are summed up.
    """
    spec, told = shown.spec, [_subject(shown)]
    by = ["statistic" if len(spec.statistics) > 1 else None, spec.rows, spec.columns, spec.hue]
    if spec.sums and shown.marks["n"].max() < 2:
        told += sums(shown)
    else:
        told += [_headed(key, _series(shown, marks)) for key, marks in _by(shown.marks, by)]
    again = shown.marks.dropna(subset=["ceiling"]).sort_values(spec.at, kind="stable")
    by = [c for c in by if c not in ("estimator", "statistic")]  # which a truth does not depend on
    for key, marks in _by(again, by) if len(again) else ():
        each = {words.label(spec.at, getattr(m, spec.at)): m.ceiling for m in marks.itertuples()}
        text = ", ".join(f"{place} {words.number(r)}" for place, r in each.items())
        told.append(f"{', '.join([CEILING, *_named(key)])}: {text}")
    for row in published(shown).to_dict("records"):
        if row["low"] == row["high"]:
            named = _named({c: row[c] for c in spec.keys})
            told.append(f"the paper, {', '.join(named)}: {words.number(row['low'])}")
    return words.sentences(*told, _indefinite(shown, damping))


def caption(shown: Shown, damping: float | None) -> str:
    """Three lines: the point; data, size, profile, runs; then setting, averages, what is missing, the paper's part."""
    spec, rows = shown.spec, shown.rows
    lines = (
        [point(shown)],
        [brief(rows)],
        [
            setting(rows, spec.keys, () if set(spec.statistics) <= OF_NETWORKS else CHOICES),
            scale(rows),
            *(sums(shown) if spec.sums is not None and shown.marks["n"].max() > 1 else []),
            averages(shown),
            ceiling_sentence(shown.marks["ceiling"]),
            outcomes(shown),
            _off_axis(shown),
            _indefinite(shown, damping),
            *shown.notes,
            spec.note,
            _paper_sentence(published(shown)),
        ],
    )
    return words.caption(*lines)


def _subject(shown: Shown) -> str:
    """ "Spearman correlation against depth"."""
    log = ", log scale" if {words.STATISTICS[s].scale for s in shown.spec.statistics} == {"log"} else ""
    return f"{words.joined(map(words.short, shown.levels('statistic')))} against {words.short(shown.spec.at)}{log}"


def point(shown: Shown) -> str:
    """What the figure says, in one sentence with its numbers."""
    spec, panels = shown.spec, shown.panels()
    if spec.falls:
        most = [_largest_fall(p.marks.set_index(spec.at)["mean"]) for p in panels]
        rungs = sorted(set(most), key=lambda rung: (-most.count(rung), rung))
        if len(most) > 1:
            first, *others = (f"{rung} ({most.count(rung)}" for rung in rungs)
            rungs = [f"{first} of {len(most)} panels)", *(f"{other})" for other in others)]
        return f"{spec.topic}: most to {words.joined(rungs)}"
    told, head = {}, [spec.topic or _subject(shown)]
    least = max(1, min(SEVERAL, shown.marks["n"].max())) if spec.by_panel else 1
    for panel in panels if spec.by_panel else panels[:1]:
        marks = panel.marks[(panel.marks["statistic"] == panel.statistic) & (panel.marks["n"] >= least)]
        series = _by(marks, [spec.hue]) if len(marks) else []
        for key, part in series[:1] if spec.by_panel else series:
            told[panel.title if spec.by_panel else ", ".join(_named(key))] = _in_short(shown, part)
            head += _named(key) if spec.by_panel and len(told) == 1 else []
    head += [panels[0].title] if len(panels) > 1 and panels[0].title and not spec.by_panel else []
    numbers = "; ".join(f"{name} {text}".strip() for name, text in [*told.items()][:SERIES])
    return f"{', '.join(head)}: {numbers}" if numbers else ", ".join(head)


def _largest_fall(means: pd.Series) -> str:
    """Which category loses most against the one above it, the first against 1."""
    means = means.dropna().astype(float)
    return (means - means.shift(fill_value=1.0)).idxmin()


def _in_short(shown: Shown, marks: pd.DataFrame) -> str:
    """A series along a line by its ends, else by its mean and range."""
    mean = marks["mean"].astype(float)
    if len(marks) < 2:
        return words.number(mean.iloc[0])
    if words.STATISTICS[marks["statistic"].iloc[0]].scale in ("log", "symlog") and shown.spec.kind != "lines":
        return words.span(mean)
    if shown.spec.kind == "lines":
        return " to ".join(words.number(x) for x in mean.iloc[[0, -1]])
    return f"mean {words.number(mean.mean())}, {words.number(mean.min())} to {words.number(mean.max())}"


def sums(shown: Shown) -> list[str]:
    """For each group of the columns `Spec.sums`: mean and spread of its marks, their extremes, and how many agree."""
    name, at = shown.spec.statistics[0], shown.spec.at
    marks = shown.marks[(shown.marks["statistic"] == name) & (shown.marks["n"] > 0)]
    told = []
    for key, group in _by(marks, shown.spec.sums):
        group = group.sort_values("mean", kind="stable")
        means, ends = group["mean"].astype(float), group.iloc[[0, -1]]
        text = f"mean {words.number(means.mean())}"
        if len(group) > 1:
            text += f" ± {words.number(means.std())} (standard deviation), from "
            text += " to ".join(
                f"{words.number(m)} ({words.label(at, x)})" for m, x in zip(ends["mean"], ends[at], strict=True)
            )
        text += f", over {words.counted(len(group), 'mark')}" + _within(group, published(shown))
        told.append(_headed(key, text))
    return told


def _within(marks: pd.DataFrame, paper: pd.DataFrame) -> str:
    """How many of the marks that the paper gives a range for lie in it."""
    ranges = paper[paper["low"] < paper["high"]]
    found = marks.merge(ranges, on=[c for c in paper.columns if c not in ("low", "high")], suffixes=("_own", ""))
    inside = int(found["mean"].between(found["low"], found["high"]).sum())
    return f", {inside} of {len(found)} in the paper's range" if len(found) else ""


def _by(table: pd.DataFrame, columns: Iterable[str | None]) -> Iterable[tuple[dict, pd.DataFrame]]:
    """Groups of the columns' values in the order in which they are shown."""
    by = [c for c in dict.fromkeys(columns) if c]
    groups = table.groupby(by, observed=True) if by else [((), table)]
    return [(dict(zip(by, key, strict=True)), part) for key, part in groups]


def _named(key: dict) -> list[str]:
    return [words.short(v) if c == "statistic" else words.value(c, v) for c, v in key.items()]


def _headed(key: dict, text: str) -> str:
    return f"{', '.join(_named(key))}: {text}" if key else text


def _series(shown: Shown, marks: pd.DataFrame) -> str:
    """One series in words."""
    at, levels = shown.spec.at, shown.levels(shown.spec.at)
    known = [m for m in marks.itertuples() if m.n]
    if not known:
        return "no number"
    if isinstance(levels[0], str) or len(levels) < SUMMED:
        each = [f"{words.label(at, getattr(m, at))} {words.interval(m.mean, m.low, m.high)}" for m in known]
        return ", ".join(each + ["no number at the others"] * (len(known) < len(marks)))
    place = {m: f" at {words.short(at)} {words.tick(at, getattr(m, at))}" for m in known}
    ends = dict.fromkeys((known[0], known[-1]))
    parts, told = [words.interval(m.mean, m.low, m.high) + place[m] for m in ends], [words.number(m.mean) for m in ends]
    for word, m in (("lowest", min(known, key=lambda m: m.mean)), ("highest", max(known, key=lambda m: m.mean))):
        parts += [f"{word} {words.number(m.mean)}{place[m]}"] if words.number(m.mean) not in told else []
    return ", ".join(parts)


def ceiling_sentence(ceiling: pd.Series) -> str:
    """What the noise of a truth leaves to be reached."""
    r = ceiling.dropna().astype(float)
    if r.empty:
        return ""
    reached = words.span(r, words.number)
    return f"Black marks: the ceiling, what an estimate without error would reach beside so noisy a truth, {reached}"


def _paper_sentence(paper: pd.DataFrame) -> str:
    ranges = paper[paper["low"] < paper["high"]].drop_duplicates(["low", "high"])
    told = [f"{low:.2f} to {high:.2f}" for low, high in zip(ranges["low"], ranges["high"], strict=True)]
    stars = "Stars: the paper's figures" if (paper["low"] == paper["high"]).any() else ""
    return words.sentences(stars, f"Grey: the paper's range, {words.joined(told)}" if told else "")


def brief(rows: pd.DataFrame) -> str:
    """Data set, networks, size, profile and runs, in one line."""
    named = [words.joined(map(words.code, words.ordered(rows["dataset"].dropna())))] if "dataset" in rows else []
    networks = words.ordered(rows["architecture"].dropna()) if "architecture" in rows else []
    if networks and networks != ["mlp"]:
        few = len(networks) <= SERIES
        named.append(words.joined(map(words.code, networks)) if few else words.counted(len(networks), "network"))
    if "n_train" in rows and rows["n_train"].notna().any():
        named.append(f"{words.span(rows['n_train'], lambda n: f'{n:,.0f}')} training examples")
    if "profile" in rows:
        profiles = sorted(rows["profile"].dropna().astype(str).unique())
        small = "" if set(profiles) <= set(words.OF_RECORD) else " (reduced: not a study of record)"
        named += [f"profile {words.joined(profiles)}{small}"] if profiles else []
    named += [words.counted(rows["run_id"].nunique(), "run")] if "run_id" in rows else []
    return ", ".join(named)


def setting(rows: pd.DataFrame, shown: Iterable[str], choices: Iterable[str] = CHOICES) -> str:
    """What all rows have in common: data set, network, chosen points, estimate and truth."""
    told = [c for c in (*FACTS, *choices) if c in rows.columns and c not in shown and rows[c].notna().all()]
    common = {c: rows[c].iloc[0] for c in told if rows[c].nunique() == 1}
    if common.get("architecture") == "mlp":
        del common["architecture"]
    elif "architecture" in common:
        common.pop("depth", None)  # goes without saying
    parts = [", ".join(words.value(c, v) for c, v in common.items() if c in FACTS)]
    parts += [words.value(c, v) for c, v in common.items() if c in ("train_choice", "test_choice")]
    parts += [f"{words.short(c)} {words.code(v)}" for c, v in common.items() if c in ("estimator", "ground_truth")]
    return "; ".join(p for p in parts if p)


def scale(rows: pd.DataFrame) -> str:
    """Training examples, parameters, which networks are narrower than published; whether that is reduced."""
    width, counts = rows["width_multiplier"].astype(float), rows["n_train"].dropna()
    parts = [f"{words.span(counts, lambda n: f'{n:,.0f}')} training examples"] if len(counts) else []
    if rows["n_params"].nunique() == 1:
        parts.append(f"{rows['n_params'].dropna().iloc[0]:,.0f} parameters")
    for factor in sorted(width[width < 1].unique()):
        names = [words.code(a) for a in words.ordered(rows.loc[width == factor, "architecture"])]
        parts.append(f"{words.joined(names)} at {factor:g} of the published width")
    reduced = width.notna().any() and ((width < 1).any() or (rows["n_train"] < FULL_SIZE).any())
    return f"{'Scale, reduced from the published one: ' if reduced else ''}{', '.join(parts)}"


def averages(shown: Shown) -> str:
    """What was averaged over how many seeds or test points, and what the bars are."""
    spec, rows = shown.spec, shown.rows
    median = sorted({words.STATISTICS[s].average is np.median for s in shown.levels("statistic")})
    average = {(True,): "Medians", (False,): "Means"}.get(tuple(median), "Means (of sizes: medians)")
    over, unit = words.counted(rows["seed"].nunique(), "seed"), "seed"
    if spec.unit != ("seed",):
        network, unit = [c for c in ("run_id", "seed", "weight_decay") if c in rows], "test point"
        points = rows.drop_duplicates([*network, "test_choice", "test_point"])
        counts = points.groupby([*network, "test_choice"], dropna=False).size().groupby("test_choice")
        each = [
            f"{words.span(n, str)} test point{'' if n.max() == 1 else 's'} {words.code(choice)}" for choice, n in counts
        ]
        over = f"{words.joined(each)} of each network, {over}"
    if spec.error:
        return ""
    most = int(shown.marks["n"].max())
    if most < 2:
        return f"Marks are single {unit}s ({over}), so there is no interval"
    few = " (too short with so few)" if most < FEW else ""
    faint = f"; faint dots are single {unit}s" if spec.dots else ""
    return f"{average} over {over}, with 95% bootstrap intervals over these {unit}s alone{few}{faint}"


def outcomes(shown: Shown) -> str:
    """How many rows have no number, and of which outcome; which others are flagged."""
    cells = shown.cells[shown.cells["statistic"] == shown.spec.statistics[0]]
    missing, told = cells["value"].isna(), []
    for text, chosen in (
        (f"No number in {missing.sum()} of {len(cells)} rows", missing),
        ("Hollow marks are flagged but counted", cells["flagged"] & ~missing),
    ):
        counts = cells.loc[chosen, "status"].fillna("unnamed").replace("ok", "unnamed").value_counts()
        tally = ", ".join(f"{words.code(name)} {counts[name]}" for name in sorted(counts.index))
        told.append(f"{text}: {tally}" if tally else "")
    return words.sentences(*told)


def _off_axis(shown: Shown) -> str:
    """How many units and marks have no place on a log axis."""
    logs = [s for s in shown.spec.statistics if words.STATISTICS[s].scale == "log"]
    marks, units = (t[t["statistic"].isin(logs)] for t in (shown.marks, shown.units))
    off, lost = int((units["value"] <= 0).sum()), int((marks["n"] > 0).sum()) - len(placed(marks))
    text = f"Off the log axis, at or below zero: {words.counted(off, 'value')}, and {words.counted(lost, 'mean')} with"
    return f"{text} all or part of the interval" if off or lost else ""


def _indefinite(shown: Shown, damping: float | None) -> str:
    """How many networks have a damped Hessian with a negative eigenvalue."""
    if "eig_min" not in shown.spec.statistics or not damping:
        return ""
    values = shown.units.loc[shown.units["statistic"] == "eig_min", "value"].dropna()
    below = int((values < -damping).sum())
    return f"Below the dashed line at {-damping:g}, where the damped Hessian is indefinite: {below} of {len(values)}"
