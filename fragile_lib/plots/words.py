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
    "solver_residual": "relative residual",
    "seconds_estimate": "seconds for the estimates",
    "n_params": "parameters",
}
VALUES = {
    "relu": "ReLU",
    "tanh": "tanh",
    "exact": "exact Hessian",
    "exact_ggn": "exact GGN",
    "exact_undamped": "exact Hessian, undamped",
    "cg": "CG, Hessian",
    "cg_ggn": "CG, GGN",
    "minres": "MINRES",
    "lissa": "LiSSA",
    "arnoldi": "Arnoldi",
    "nystroem": "Nyström",
    "kfac": "K-FAC",
    "ekfac": "EK-FAC",
    "identity": "gradient product",
    "tracin": "TracIn",
    "trak": "TRAK",
    "second_order": "second order",
    "descent": "gradient descent",
    "finished": "finished training",
    "certified": "certified optimum",
    "loo_warm": "warm-start LOO",
    "loo_warm_minus_control": "LOO minus control",
    "loo_tilted": "local LOO",
    "loo_certified": "certified LOO",
    "pbrf": "PBRF",
    "loo_scratch": "LOO from scratch",
    "group": "group removal",
    "max_loss": "of highest loss",
    "p50_loss": "of median loss",
    "top_loss": "of highest loss",
    "top_influence": "of largest |influence|",
    "p30_influence": "at the 30th percentile of |influence|",
    "random_groups": "random groups",
    "same_class_groups": "groups of one class",
    "top_influence_groups": "groups of largest |influence|",
    "scratch": "drawn for retraining from scratch",
    "not_certified": "not certified",
    "solver_diverged": "solver diverged",
    "random": "drawn at random",
    "small_cnn": "small CNN",
    "lenet": "LeNet",
    "vgg13": "VGG13",
    "vgg14": "VGG14",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "adam": "Adam",
    "sgd": "gradient descent",
    "nesterov": "Nesterov",
    "rmsprop": "RMSProp",
}
OF_RECORD = ("laptop", "paper")  # profiles whose figures need no warning
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


def scale_sentence(rows: pd.DataFrame) -> str:
    """How large the network and its training set are, and a warning where the profile is a reduced one."""
    parts = []
    for column, what in (("n_train", "training examples"), ("n_params", "parameters")):
        if column in rows.columns and rows[column].nunique() == 1:
            parts.append(f"{rows[column].dropna().iloc[0]:,.0f} {what}")
    profiles = set(rows["profile"].dropna().astype(str)) if "profile" in rows.columns else set()
    small = sorted(profiles - set(OF_RECORD))
    return sentences(
        ", ".join(parts), f"Reduced scale: profile {joined(small)}, not a study of record" if small else ""
    )


def units_sentence(rows: pd.DataFrame) -> str:
    """How many test points of how many seeds there are: "8 test points of highest loss, for each of 2 seeds"."""
    points = rows.drop_duplicates(["seed", "weight_decay", "test_choice", "test_point"])
    parts = []
    for choice, of_choice in points.groupby("test_choice", sort=False):
        counts = of_choice.groupby(["seed", "weight_decay"]).size()
        few, most = counts.min(), counts.max()
        parts.append(f"{few if few == most else f'{few} to {most}'} {value_word('test_choice', choice)}")
    n = rows["seed"].nunique()
    networks = f"each of {n} seeds" if n > 1 else "one seed"
    return f"Test points: {joined(sorted(parts))}, for {networks}."


def outcome_sentence(rows: pd.DataFrame, statistic: str, dots: bool = True, counts: bool = True) -> str:
    """How many rows have no number, and of which outcome; which others are flagged.

    `counts`: the figure has an n below its axis, which the sentence explains.
    """
    if "status" not in rows.columns:
        return ""
    status = rows["status"].astype(object).where(rows["status"].notna(), "ok")
    missing = ~np.isfinite(pd.to_numeric(rows[statistic], errors="coerce").astype(float))
    text = ""
    if missing.any():
        text += (
            f"No number in {missing.sum()} of {len(rows)} rows ({_tally(status[missing])})"
            f"{'; n counts seeds with one' if counts else ''}."
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
