"""Further figures of the study over architectures: optimisers and starts, groups, and training from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fragile_lib.plots import base, words
from fragile_lib.plots.architectures_rows import (
    DATASETS,
    Line,
    Mark,
    ceiling_sentence,
    choose,
    correlations_along_x,
    draw_lines,
    finite,
    name,
    plain_mean,
    points_sentence,
    present,
    rounded,
    scale_sentence,
    told,
)
from fragile_lib.plots.base import Picture
from fragile_lib.plots.small_mnist import DECAY
from fragile_lib.plots.small_mnist_checks import GROUPS

OPTIMISERS = ("adam", "sgd", "nesterov", "rmsprop")
OVER_OPTIMISERS = (0.56, 0.11)  # the paper's mean Spearman of LeNet over optimisers, and its spread
STARTED = ("small_cnn", "lenet", "resnet18")
OF_GROUPS = {"mnist": (0.01, 0.21), "cifar100": (0.01, 0.18)}  # the paper's range of Spearman over groups
LEFT_OUT, SCRATCH = "ResNet-18: groups left out", "LeNet, MNIST: warm start and from scratch"
BAND = {"color": "0.85", "lw": 0, "zorder": 0.5}


def further_axes(results: pd.DataFrame, where: Mapping | None = None) -> Picture:
    """Spearman on MNIST with weight decay: LeNet over four optimisers, and several networks over starts of Adam.

    Grey: the paper's 0.56 +- 0.11 of LeNet over optimisers.
    """
    setting = {"dataset": "mnist", "weight_decay": DECAY, "architecture": list(STARTED), "optimiser": list(OPTIMISERS)}
    rows = choose(results, where, **setting, seed=None)
    if rows.empty:
        return base.empty_picture(words.nothing("spearman", "optimiser"))
    panels = {"LeNet over optimisers": _optimisers(rows), "Starts of Adam": _starts(rows)}
    panels = {head: lines for head, lines in panels.items() if lines}
    spreads = {head: _spreads(lines) for head, lines in panels.items()}
    with base.theme():
        sizes = [0.5 * sum(len(line.marks) for line in lines) + 0.7 for lines in panels.values()]
        figure, axes = base.new_figure(1.0 + 0.7 * sum(sizes), rows=len(panels))
        axes[0, 0].get_gridspec().set_height_ratios(sizes)
        for ax, (head, lines) in zip(axes[:, 0], panels.items(), strict=True):
            draw_lines(ax, lines)
            ax.set_title(head, loc="left")
            if head.startswith("LeNet"):
                centre, spread = OVER_OPTIMISERS
                ax.axvspan(centre - spread, centre + spread, label="the paper's range", **BAND)
        correlations_along_x(axes[:, 0], [line for lines in panels.values() for line in lines])
        axes[-1, 0].set_xlabel("Spearman correlation")
        base.legend_below(figure, list(axes[:, 0]))
    caption = words.sentences(
        *[f"{head}: {text}" for head, text in spreads.items() if text],
        "The paper: 0.56 ± 0.11 for LeNet over optimisers" if "LeNet over optimisers" in panels else "",
        words.setting_sentence(rows.drop(columns="profile", errors="ignore"), ["depth"]),
        points_sentence(rows),
        scale_sentence(rows),
        words.outcome_sentence(rows, "spearman", dots=False, counts=False),
    )
    sentences = [s for head, lines in panels.items() for s in (head, *told(lines))]
    return Picture(figure, words.sentences("Mean Spearman with 95% intervals", *sentences), caption)


def groups_and_scratch(results: pd.DataFrame, where: Mapping | None = None) -> Picture:
    """Groups left out of ResNet-18, of all its starts, beside single images; LeNet's warm start and from scratch.

    Grey: the paper's range over groups. The last line is the agreement of LeNet's two truths with each other.
    """
    common = {"dataset": list(DATASETS), "weight_decay": [DECAY, 0.0005]}
    removal = {"train_choice": ["top_influence", *GROUPS], "ground_truth": ["loo_warm", "group"]}
    scratch = {"estimator": ["lissa", "loo_warm"], "ground_truth": ["loo_warm", "loo_scratch"]}
    removed = choose(results, where, **common, **removal, architecture="resnet18", seed=None)
    common["dataset"] = "mnist"
    trained = choose(results, where, **common, **scratch, architecture="lenet", train_choice="scratch")
    groups = _groups(removed)
    panels = {LEFT_OUT: [line for _, line in groups], SCRATCH: _scratch(trained)}
    panels = {head: lines for head, lines in panels.items() if lines}
    if not panels:
        return base.empty_picture(words.nothing("spearman", "ground_truth"))
    every = [line for some in panels.values() for line in some]
    with base.theme():
        sizes = [0.44 * len(lines) + 0.7 for lines in panels.values()]
        figure, axes = base.new_figure(0.9 + sum(sizes), rows=len(panels))
        axes[0, 0].get_gridspec().set_height_ratios(sizes)
        for ax, (head, some) in zip(axes[:, 0], panels.items(), strict=True):
            draw_lines(ax, some)
            ax.set_title(head, loc="left")
        for y, (dataset, line) in enumerate(groups):
            if dataset in OF_GROUPS and "groups" in line.label:
                x, label = OF_GROUPS[dataset], "the paper's range"
                axes[0, 0].fill_betweenx([y - 0.5, y + 0.5], *x, label=label, **BAND)
        correlations_along_x(axes[:, 0], every)
        axes[-1, 0].set_xlabel("Spearman correlation")
        base.legend_below(figure, list(axes[:, 0]))
    rows = pd.concat([part for part in (removed if groups else trained, trained) if len(part)], ignore_index=True)
    rows = rows.drop_duplicates(ignore_index=True)
    ranges = [f"{name(d)} {low:.2f} to {high:.2f}" for d, (low, high) in OF_GROUPS.items() if d in dict(groups)]
    caption = words.sentences(
        *_of_groups(groups),
        "; ".join([SCRATCH, *told(panels[SCRATCH], lambda m: rounded(m.mean))]) if SCRATCH in panels else "",
        f"The paper's range over groups: {words.joined(ranges)}" if ranges else "",
        _sizes(removed),
        points_sentence(rows),
        ceiling_sentence(rows),
        scale_sentence(rows),
        words.outcome_sentence(rows, "spearman", dots=False, counts=False),
    )
    sentences = [s for head, some in panels.items() for s in (head, *told(some))]
    return Picture(figure, words.sentences("Mean Spearman with 95% intervals", *sentences), caption)


def _optimisers(rows: pd.DataFrame) -> list[Line]:
    lenet = rows[(rows["architecture"] == "lenet") & (rows["seed"] == 0)]
    return [
        Line(name(o), [_mark(lenet[lenet["optimiser"] == o], "lenet")]) for o in present(lenet, "optimiser", OPTIMISERS)
    ]


def _starts(rows: pd.DataFrame) -> list[Line]:
    adam = rows[rows["optimiser"] == "adam"]
    several = adam.groupby("architecture")["seed"].nunique()
    networks = [a for a in present(adam, "architecture", STARTED) if several[a] > 1]
    adam = adam[adam["architecture"].isin(networks)]
    return [
        Line(f"start {seed:g}", [_mark(part[part["architecture"] == a], a) for a in networks])
        for seed, part in adam.groupby("seed")
    ]


def _mark(rows: pd.DataFrame, architecture: str) -> Mark:
    i = STARTED.index(architecture)
    return Mark(name(architecture), rows["spearman"].to_numpy(), base.CYCLE[i], base.MARKERS[i])


def _spreads(lines: Sequence[Line]) -> str:
    """For each network the mean of its lines' means, and their standard deviation: the paper's form."""
    parts = []
    for network in dict.fromkeys(mark.name for line in lines for mark in line.marks):
        means = finite(plain_mean(m.values) for line in lines for m in line.marks if m.name == network)
        if means.size > 1:
            parts.append(f"{network} {rounded(means.mean())} ± {rounded(means.std(ddof=1))}")
    return f"{', '.join(parts)} (mean and standard deviation of the marks)" if parts else ""


def _groups(rows: pd.DataFrame) -> list[tuple[str, Line]]:
    """(data set, line) for single images of largest |influence| and each kind of group; none without groups."""
    found = []
    for i, dataset in enumerate(DATASETS):
        here = rows[rows["dataset"] == dataset] if len(rows) else rows
        if here.empty or not (here["ground_truth"] == "group").any():
            continue
        kinds = {"loo_warm": ["top_influence"], "group": GROUPS}
        for truth, train in ((truth, train) for truth, trains in kinds.items() for train in trains):
            part = here[(here["ground_truth"] == truth) & (here["train_choice"] == train)]
            if len(part):
                what = words.value_word("", train) if truth == "group" else "single images"
                mark = Mark(name(dataset), part["spearman"].to_numpy(), base.CYCLE[i], base.MARKERS[i])
                label = f"{name(dataset)},\n{what.replace('groups of largest', 'groups, largest')}"
                found.append((dataset, Line(label, [mark], plain_mean(part["ceiling_spearman"]))))
    return found


def _scratch(rows: pd.DataFrame) -> list[Line]:
    """LiSSA against each truth on the same images, and the two truths against each other."""
    wanted = {
        ("lissa", "loo_warm"): ("LiSSA against\nwarm start", 2),
        ("lissa", "loo_scratch"): ("LiSSA against\nfrom scratch", 2),
        ("loo_warm", "loo_scratch"): ("warm start against\nfrom scratch", 3),
    }
    lines = []
    for (estimator, truth), (label, i) in wanted.items():
        part = rows[(rows["estimator"] == estimator) & (rows["ground_truth"] == truth)] if len(rows) else rows
        if len(part):
            kind = "LeNet, estimate with truth" if i == 2 else "LeNet, truth with truth"
            mark = Mark(kind, part["spearman"].to_numpy(), base.CYCLE[i], base.MARKERS[i])
            lines.append(Line(label, [mark], plain_mean(part["ceiling_spearman"])))
    return lines


def _of_groups(groups: Sequence[tuple[str, Line]]) -> list[str]:
    """From where to where the means over groups reach, and how many lie in the paper's range, where it gives one."""
    found = []
    for dataset in dict.fromkeys(d for d, _ in groups):
        means = finite(plain_mean(s.marks[0].values) for d, s in groups if d == dataset and "groups" in s.label)
        if means.size:
            low, high = OF_GROUPS.get(dataset, (np.nan, np.nan))
            inside = f", {((low <= means) & (means <= high)).sum()} of {means.size} in the paper's range"
            span = f"from {rounded(means[0])} to {rounded(means[-1])}"
            found.append(f"{name(dataset)}, mean over each kind of group: {span}{inside if low == low else ''}")
    return found


def _sizes(rows: pd.DataFrame) -> str:
    """How many groups of each kind there were."""
    if rows.empty or "n_points" not in rows.columns:
        return ""
    counts = finite(rows.loc[rows["ground_truth"] == "group", "n_points"])
    same = counts.size and counts[0] == counts[-1]
    return f"{counts[0]:g} groups of each kind" if same else ""
