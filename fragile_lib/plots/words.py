"""Names of columns and values as readers know them, and numbers as text, for labels, alternative texts and captions."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

COLUMNS = {
    "depth": "depth (hidden layers)",
    "width": "width (units per layer)",
    "weight_decay": "weight decay",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "norm_spearman": "Spearman of norms",
    "norm_ratio": "estimated / true norm",
    "slope": "slope of truth on estimate",
    "eig_max": "largest eigenvalue",
    "eig_min": "smallest eigenvalue",
    "grad_norm": "gradient norm",
    "test_choice": "test point",
    "train_choice": "training points",
    "ground_truth": "ground truth",
}
VALUES = {
    "relu": "ReLU",
    "tanh": "tanh",
    "exact": "exact Hessian",
    "exact_ggn": "exact GGN",
    "lissa": "LiSSA",
    "descent": "gradient descent",
    "certified": "certified optimum",
    "loo_warm": "warm-start LOO",
    "loo_warm_minus_control": "LOO minus control",
    "loo_certified": "certified LOO",
    "max_loss": "of highest loss",
    "p50_loss": "of median loss",
    "top_loss": "of highest loss",
    "top_influence": "of largest |influence|",
    "not_certified": "not certified",
    "solver_diverged": "solver diverged",
}
TITLES = {
    "iris": "Iris",
    "mnist": "MNIST",
    "small_mnist": "small MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}


def column_word(column: str) -> str:
    """The column's name for an axis label."""
    return COLUMNS.get(column, column.replace("_", " "))


def short_word(column: str) -> str:
    """The column's name within a sentence, without a unit in brackets."""
    return column_word(column).split(" (")[0]


def value_word(column: str, value: object) -> str:
    """A value with as much of its column's name as a legend needs: "weight decay 0.005", "ReLU", "width 5"."""
    if isinstance(value, str):
        return VALUES.get(value, value.replace("_", " "))
    return f"{short_word(column)} {value:g}" if isinstance(value, int | float | np.number) else f"{column} {value}"


def number(x: float) -> str:
    """Two decimals where that says enough, else two significant digits: 0.97, -0.04, 12.5, 3.2e-5."""
    if not math.isfinite(x):
        return "no number"
    if x == 0 or 0.005 <= abs(x) < 100:
        return f"{x:.2f}" if abs(x) < 10 else f"{x:.1f}"
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{x:.0f}" if 100 <= abs(x) < 10_000 else f"{mantissa}e{int(exponent)}"


def tick(value: object) -> str:
    """An axis value: 8, 0.005, resnet18."""
    return f"{value:g}" if isinstance(value, int | float | np.number) else str(value)


def sentence(text: str) -> str:
    """The text with a capital at its start and a full stop at its end."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" if text else ""


def joined(parts: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def seeds_sentence(rows: pd.DataFrame, average: str, dots: bool = True) -> str:
    """How many seeds stand behind a point, and what its bar is."""
    n = rows["seed"].nunique() if "seed" in rows.columns else len(rows)
    if n <= 1:
        return "One seed, so no interval."
    few = " (with so few seeds the intervals are too short)" if n < 10 else ""
    return (
        f"{average} over {n} seeds with 95% bootstrap intervals{few}{'; faint dots are single seeds' if dots else ''}."
    )


def setting_sentence(rows: pd.DataFrame, leave_out: list[str]) -> str:
    """What all rows have in common: data set, network, chosen points, profile."""
    parts = []
    for column in ("dataset", "activation", "depth", "width", "weight_decay"):
        if column not in leave_out and column in rows.columns and rows[column].nunique() == 1:
            value = rows[column].dropna().iloc[0]
            parts.append(TITLES.get(value, str(value)) if column == "dataset" else value_word(column, value))
    text = ", ".join(parts)
    for column in ("train_choice", "test_choice"):
        if column not in leave_out and column in rows.columns and rows[column].nunique() == 1:
            value = rows[column].dropna().iloc[0]
            text += f"; {short_word(column)} {'all' if value == 'all' else value_word(column, value)}"
    if "profile" in rows.columns and rows["profile"].notna().any():
        profiles = sorted(rows["profile"].dropna().astype(str).unique())
        text += f"; profile {joined(profiles)}"
    return sentence(text.lstrip("; "))


def outcome_sentence(rows: pd.DataFrame, statistic: str, dots: bool = True) -> str:
    """How many rows have no number, and of which outcome; which others are flagged."""
    if "status" not in rows.columns:
        return ""
    status = rows["status"].astype(object).where(rows["status"].notna(), "ok")
    missing = ~np.isfinite(pd.to_numeric(rows[statistic], errors="coerce").astype(float))
    text = ""
    if missing.any():
        text += (
            f"No number in {missing.sum()} of {len(rows)} rows ({_tally(status[missing])}); n counts seeds with one."
        )
    flagged = ~missing & (status != "ok")
    if flagged.any():
        text += f" {'Hollow dots are flagged' if dots else 'Flagged'} but counted: {_tally(status[flagged])}."
    return text.strip()


def sentences(*parts: str) -> str:
    """The parts that say something, each as a sentence."""
    return " ".join(sentence(p) for p in parts if p)


def nothing(what: str, axis: str) -> str:
    """The sentence in place of a figure that has no rows."""
    return f"No rows: the table has nothing to show of {short_word(what)} against {short_word(axis)}."


def caption(
    rows: pd.DataFrame, varied: list, statistic: str, average: str, stars: bool = False, dots: bool = True
) -> str:
    """Setting, seeds and intervals, and what has no number: the sentences below every figure of curves."""
    return sentences(
        setting_sentence(rows, [c for c in varied if c]),
        seeds_sentence(rows, average, dots),
        outcome_sentence(rows, statistic, dots),
        "Stars are the paper's figures" if stars else "",
    )


def _tally(status: pd.Series) -> str:
    counts = status.replace("ok", "unnamed").value_counts()
    return ", ".join(f"{value_word('status', name)} {counts[name]}" for name in sorted(counts.index))
