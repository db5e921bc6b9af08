"""What each inverse-curvature-vector product reached and cost, as a table."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from pandas.io.formats.style import Styler

from fragile_lib.plots import words

OUTCOMES = {"ok": "finished", "not_converged": "stopped", "solver_diverged": "diverged"}


def solver_table(solved: Mapping[str, object], unit: str = "test point") -> Styler:
    """Residual, products, seconds, memory and outcome by estimator.

    Args:
        solved: for each estimator an object with residual, products, seconds, memory_mb and status.
        unit: what one product is for.
    """
    table = pd.DataFrame(
        [
            {
                "estimator": words.value_word("", name),
                "relative residual": words.number(one.residual),
                f"products a {unit}": words.number(one.products),
                "seconds": words.number(one.seconds),
                "memory (MB)": f"{one.memory_mb:,.0f}",
                "outcome": OUTCOMES.get(one.status, one.status),
            }
            for name, one in solved.items()
        ]
    )
    caption = "The residual is that of the system which each solves; stopped: before its tolerance was reached."
    return Styler(table, uuid="solvers", cell_ids=False, caption=caption).hide(axis="index")
