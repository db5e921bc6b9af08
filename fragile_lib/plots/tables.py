"""The tables that are made like figures: pandas Stylers with a caption computed from their rows."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from pandas.io.formats.style import Styler

from fragile_lib.plots import texts, words
from fragile_lib.plots.published import published
from fragile_lib.plots.rows import Shown, part

BREAK = "<br>"
LEFT = [
    {"selector": "caption", "props": "text-align: left; max-width: 42rem"},
    {"selector": "td, th", "props": "text-align: left; vertical-align: top; white-space: nowrap; padding-right: 0.8em"},
]
OUTCOMES = {"ok": "finished", "not_converged": "stopped", "solver_diverged": "diverged"}


def styled(table: pd.DataFrame, caption: str, name: str, index: bool = True) -> Styler:
    """A table with its caption; its name in the page does not change from one run to the next."""
    styler = Styler(table, uuid=name, cell_ids=False, caption=caption).set_table_styles(LEFT)
    return styler if index else styler.hide(axis="index")


def architectures(shown: Shown, name: str) -> Styler:
    """One row for each network, one column for each data set and weight decay; a cell is "Pearson / Spearman".

    Below them in a cell are the bootstrap interval of Spearman and, where it is known, the paper's pair.
    """
    rows, keys, columns = shown.rows, ["dataset", "weight_decay", "architecture"], {}
    paper = published(shown)
    for (dataset, decay, network), marks in shown.marks.groupby(keys, observed=True):
        own = part(paper, {"dataset": dataset, "weight_decay": decay, "architecture": network})
        column = columns.setdefault((words.code(dataset), f"decay {decay:g}" if decay else "no decay"), {})
        column[network] = _cell(marks.set_index("statistic"), own.set_index("statistic")["low"])
    table = pd.DataFrame(columns).reindex(shown.levels("architecture")).fillna("not run")
    table["", "parameters"] = rows.groupby("architecture")["n_params"].agg(
        lambda sizes: words.span(sizes, "{:,.0f}".format).replace(" to ", f" to{BREAK}")
    )
    marked = "Where known, the paper's figures are in the last line of a cell (a question mark where one is not)"
    caption = words.sentences(
        "Each cell: mean Pearson / mean Spearman, and below it the interval of Spearman",
        texts.brief(rows),
        texts.setting(rows, shown.spec.keys),
        texts.averages(shown),
        texts.scale(rows),
        texts.outcomes(shown),
        marked if len(paper) else "",
        "Training is shorter, too" if "reduced from" in texts.scale(rows) else "",
    )
    return styled(table.rename(index=words.code), caption, name)


def _cell(marks: pd.DataFrame, paper: pd.Series) -> str:
    """Mean Pearson / Spearman, interval of Spearman, how many points have a number, the paper: each in a line."""
    means, spearman = marks["mean"], marks.loc["spearman"]
    lines = [f"{words.number(means['pearson'])} / {words.number(means['spearman'])}" if spearman["n"] else "no number"]
    lines += [f"{words.number(spearman['low'])} to {words.number(spearman['high'])}"] if spearman["n"] > 1 else []
    if 0 < spearman["n"] < spearman["units"]:
        lines.append(f"{spearman['n']:.0f} of {spearman['units']:.0f} points")
    if len(paper):
        told = [f"{paper[s]:.2f}" if s in paper else "?" for s in ("pearson", "spearman")]
        lines.append(f"paper {' / '.join(told)}")
    return BREAK.join(lines)


def costs(shown: Shown, name: str) -> Styler:
    """Median seconds of each estimator and of the retraining, a row for each data set and network."""
    keys = ["dataset", "architecture"]
    table = shown.rows.groupby([*keys, "estimator"])["seconds_estimate"].median().unstack()[shown.levels("estimator")]
    table["retraining"] = shown.rows.groupby(keys)["seconds_retrain"].median()
    every = pd.MultiIndex.from_product([shown.levels(k) for k in keys])
    table = table.reindex(every).dropna(how="all").map(words.number).rename(index=words.code, columns=words.code)
    caption = words.sentences(
        "Median seconds for one network: estimates are of every training image's influence on all examined test "
        "points, retraining leaves out each chosen image in turn",
        texts.brief(shown.rows),
        texts.scale(shown.rows),
    )
    return styled(table, caption, name)


def photographs(shown: Shown, name: str) -> Styler:
    """Agreement by set, test photograph and estimator, and how far the control alone moved each test loss."""
    numbers = {"pearson": "Pearson", "spearman": "Spearman", "slope": "slope", "control_change": "control"}
    named = {"dataset": "set", "test_point": "test photograph", "estimator": "estimator", "n_points": "n"} | numbers
    table = shown.rows[[*named]]
    forms = dict.fromkeys(named, words.number) | dict.fromkeys(("dataset", "estimator"), words.code)
    forms |= dict.fromkeys(("test_point", "n_points"), "{:.0f}".format)
    table = pd.DataFrame({label: table[column].map(forms[column]) for column, label in named.items()})
    caption = words.sentences(
        "Agreement of estimate and warm-start retraining over the n training photographs of largest |influence| on one "
        "test photograph; control is the change of its loss on going on with all photographs",
        "In the paper both correlations are below 0.15, and the control moves the two losses by −0.679 and +0.066",
    )
    return styled(table, caption, name, index=False)


def imagenet_cost_table(projected: pd.DataFrame, size: int, tflops: float, machine: str) -> Styler:
    """Images, rates and hours of scoring and retraining all of ImageNet, with the arithmetic in the caption.

    Args:
        projected: a row for scoring and for retraining, with images, images_per_second, hours_here, flops_per_image
            and gpu_hours.
        size: pixels a side at which the rates were measured.
        tflops: 10^12 operations a second that the GPU of the arithmetic sustains.
        machine: where the rates were measured.
    """
    table = pd.DataFrame(
        {
            "images": projected["images"].map("{:,.0f}".format),
            "images a second here": projected["images_per_second"].map(words.number),
            "days here": (projected["hours_here"] / 24).map(words.number),
            "GFLOP an image": (projected["flops_per_image"] / 1e9).map(words.number),
            "hours of one GPU": projected["gpu_hours"].map(words.number),
        }
    ).T
    caption = words.sentences(
        "What all of ImageNet's 1,281,167 training images would take",
        f"Rates here were measured on {machine}, at {size} pixels",
        f"One GPU by arithmetic: images times operations an image, at {tflops:g} x 10^12 operations a second",
    )
    return styled(table, caption, "imagenet_cost")


def solver_table(solved: Mapping[str, object], unit: str = "test point") -> Styler:
    """Residual, products, seconds, memory and outcome by estimator.

    Args:
        solved: for each estimator an object with residual, products, seconds, memory_mb and status.
        unit: what one product is for.
    """
    table = pd.DataFrame(
        [
            {
                "estimator": words.code(name),
                "relative residual": words.number(one.residual),
                f"products a {unit}": words.number(one.products),
                "seconds": words.number(one.seconds),
                "memory (MB)": f"{one.memory_mb:,.0f}",
                "outcome": OUTCOMES.get(one.status, words.code(one.status)),
            }
            for name, one in solved.items()
        ]
    )
    caption = "The residual is that of the system which each solves; stopped: before its tolerance was reached."
    return styled(table, caption, "solvers", index=False)
