"""What the published scale would take, predicted from the runs that there are."""

from __future__ import annotations

from pathlib import Path

from pandas.io.formats.style import Styler

from fragile_lib.plots.architectures_table import LEFT

STYLE = [*LEFT, {"selector": "thead th", "props": "white-space: normal"}]


def predicted_costs(grid_results: str | Path) -> Styler:
    """One row for each architecture and data set of the profile `paper`: predicted hours of a GPU, and memory.

    The model of `deep.cost` is fitted to the records of notebook mnist_cifar10 that lie beside the results table. With
    too few of them, or without a table, there are no rows and the caption says so.

    Args:
        grid_results: the results table, as in `study.collect.read_results`.
    """
    from fragile_lib.plots.predicted_costs_rows import costs_table  # brings torch, which no other figure needs

    table, caption = costs_table(grid_results)
    return Styler(table, uuid="predicted_costs", cell_ids=False, caption=caption).set_table_styles(STYLE)
