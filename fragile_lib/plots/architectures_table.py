"""The results over architectures in the form of the paper's table."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from pandas.io.formats.style import Styler

from fragile_lib.plots import words
from fragile_lib.plots.architectures_rows import (
    ARCHITECTURES,
    DATASETS,
    MAIN,
    PAPER,
    choose,
    mean_of,
    name,
    plain_mean,
    present,
    rounded,
    scale_sentence,
)

BREAK = "<br>"
LEFT = [
    {"selector": "caption", "props": "text-align: left; max-width: 42rem"},
    {"selector": "td, th", "props": "text-align: left; vertical-align: top; white-space: nowrap; padding-right: 0.8em"},
]


def architecture_table(results: pd.DataFrame, test_choice: str = "max_loss", where: Mapping | None = None) -> Styler:
    """One row for each network, one column for each data set and weight decay; a cell is "Pearson / Spearman".

    Both are means over the test points of one network. Below them in a cell are the 95% bootstrap interval of Spearman
    over these points and, where it is known, the paper's pair; the caption says so, and at what scale. A table without
    rows has a caption alone.
    """
    rows = choose(results, where, ["pearson", "spearman"], test_choice=test_choice)
    if rows.empty:
        return _styled(pd.DataFrame(), words.nothing("spearman", "architecture"), test_choice)
    settings = [
        (dataset, decay)
        for dataset in present(rows, "dataset", DATASETS)
        for decay in sorted(rows.loc[rows["dataset"] == dataset, "weight_decay"].unique(), reverse=True)
    ]
    lines, published = {}, False
    for architecture in present(rows, "architecture", ARCHITECTURES):
        of_network = rows[rows["architecture"] == architecture]
        cells = {}
        for dataset, decay in settings:
            part = of_network[(of_network["dataset"] == dataset) & (of_network["weight_decay"] == decay)]
            pair = PAPER.get((dataset, decay, architecture)) if _papers_own(rows) else None
            cells[name(dataset), f"decay {decay:g}" if decay else "no decay"] = _cell(part, pair)
            published |= pair is not None
        cells["", "parameters"] = _span(of_network["n_params"])
        lines[name(architecture)] = cells
    return _styled(pd.DataFrame.from_dict(lines, orient="index"), _caption(rows, published), test_choice)


def _papers_own(rows: pd.DataFrame) -> bool:
    """Whether the rows are of the choices that the paper's table is of."""
    return all(set(rows[column]) == {MAIN[column]} for column in ("estimator", "ground_truth", "test_choice"))


def _cell(rows: pd.DataFrame, paper: tuple | None) -> str:
    """Mean Pearson / Spearman, interval of Spearman, the paper's pair: each in a line of the cell."""
    found = mean_of(rows["spearman"])
    if rows.empty:
        lines = ["not run"]
    elif not found.n:
        status = sorted({words.value_word("", s) for s in rows["status"].dropna()} - {"ok"})
        lines = ["no number", *([f"({words.joined(status)})"] if status else [])]
    else:
        lines = [f"{rounded(plain_mean(rows['pearson']))} / {rounded(found.mean)}"]
        lines += [f"{rounded(found.low)} to {rounded(found.high)}"] if found.n > 1 else []
        lines += [f"{found.n} of {len(rows)} points"] if found.n < len(rows) else []
    if paper:
        lines.append("paper " + " / ".join("?" if value is None else f"{value:.2f}" for value in paper))
    return BREAK.join(lines)


def _span(values: pd.Series) -> str:
    """The value, or the smallest and the largest where data sets of another shape need another number."""
    low, high = values.min(), values.max()
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to{BREAK}{high:,.0f}"


def _caption(rows: pd.DataFrame, published: bool) -> str:
    points = rows.drop_duplicates(["run_id", "test_choice", "test_point"]).groupby("run_id").size()
    few, most = points.min(), points.max()
    number = f"{few}" if few == most else f"{few} to {most}"
    tests, trains, estimators, truths = (
        words.joined([words.value_word("", v) for v in sorted(rows[column].unique())])
        for column in ("test_choice", "train_choice", "estimator", "ground_truth")
    )
    short = " (too short with so few)" if few < 10 else ""
    interval = f"; below it the 95% bootstrap interval of Spearman over these points alone{short}" if most > 1 else ""
    return words.sentences(
        f"Each cell: mean Pearson / mean Spearman of one network over {number} test point{'s' if most > 1 else ''} "
        f"{tests}, {estimators} with {truths}, training points {trains}{interval}",
        "Where known, the paper's figures are in the last line of a cell (a question mark where one of the two is not)"
        if published
        else "",
        scale_sentence(rows),
        "Training is shorter, too" if "reduced from" in scale_sentence(rows) else "",
        words.outcome_sentence(rows, "spearman", dots=False, counts=False),
    )


def _styled(table: pd.DataFrame, caption: str, test_choice: str) -> Styler:
    """The table with its caption; its name in the page does not change from one run to the next."""
    styler = Styler(table, uuid=f"architectures_{test_choice}", cell_ids=False, caption=caption)
    return styler.set_table_styles(LEFT)
