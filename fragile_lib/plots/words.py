"""The words of every figure: codes of the results table as readers know them, statistics, numbers as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

CODES = {
    # estimators
    "exact": "exact Hessian",
    "exact_ggn": "exact GGN",
    "exact_undamped": "exact Hessian undamped",
    "second_order": "GGN to second order",
    "lissa_single": "LiSSA (single draws)",
    "lissa_random": "LiSSA (random batches)",
    "lissa_partition": "LiSSA (fixed batches)",
    "cg": "CG (Hessian)",
    "cg_ggn": "CG (GGN)",
    "gram_ggn": "GGN by examples",
    "minres": "MINRES",
    "arnoldi": "Arnoldi",
    "nystroem": "Nyström",
    "kfac": "K-FAC",
    "ekfac": "EK-FAC",
    "identity": "gradient product",
    "datainf": "DataInf",
    "source": "SOURCE",
    "tracin": "TracIn",
    "trak": "TRAK",
    "rescaled": "rescaled influence",
    "newton_step": "Newton step",
    # ground truths; `_minus_control` and the share of the training steps are added by `code`
    "warm_descent": "warm-start descent",
    "warm_minibatch": "warm-start minibatches",
    "unrolled_descent": "unrolled derivative",
    "unrolled_minibatch": "unrolled derivative",
    "tilted_minimum": "tilted minimum",
    "minimum": "certified minimum",
    "pbrf": "PBRF",
    "scratch_descent": "from scratch (other starts)",
    "scratch_starts": "from scratch (other starts)",
    "scratch_batches": "from scratch (other batches)",
    "scratch_fit": "from scratch (one's own training)",
    # how training ended
    "descent": "gradient descent",
    "finished": "finished training",
    "certified": "certified optimum",
    # test and training points
    "max_loss": "of highest loss",
    "p50_loss": "of median loss",
    "top_loss": "of highest loss",
    "top_influence": "of largest |influence|",
    "p30_influence": "at the 30th percentile of |influence|",
    "random": "drawn at random",
    "scratch": "drawn for training from scratch",
    "single_images": "single images",
    "random_groups": "random groups",
    "same_class_groups": "groups of one class",
    "top_influence_groups": "groups of largest |influence|",
    "too_few": "too few points",
    # data sets, networks, optimisers
    "iris": "Iris",
    "small_mnist": "small MNIST",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet",
    "imagenet_standin": "stand-in, not ImageNet",
    "imagefolder": "a folder of photographs",
    "diabetes": "diabetes",
    "digits": "digits",
    "puzzle": "public puzzles",
    "relu": "ReLU",
    "tanh": "tanh",
    "small_cnn": "small CNN",
    "lenet": "LeNet",
    "vgg13": "VGG13",
    "vgg14": "VGG14",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "logistic": "softmax regression",
    "curve": "perceptron",
    "adam": "Adam",
    "sgd": "gradient descent",
    "nesterov": "Nesterov",
    "rmsprop": "RMSProp",
}
ORDER = {name: place for place, name in enumerate(CODES)}  # of legends, panels and lines
PHOTOGRAPHS = ("imagenet", "imagenet_standin", "imagefolder")  # sets whose examples are shown
OF_RECORD = ("laptop", "gpu", "paper")  # profiles whose figures need no warning
MINUS = "\N{MINUS SIGN}"
COLUMNS = {
    "depth": "depth (hidden layers)",
    "width": "width (units per layer)",
    "rank": "rank by loss (the largest first)",
    "architecture": "network",
    "n_params": "number of parameters",
    "train_choice": "training points",
    "test_choice": "test points",
    "removed": "training points",
    "without": "examples left out",
    "way": "way of training",
    "target": "ground truth",
    "share": "share of the training steps",
    "left_out": "share left out (of the training points)",
    "n_train": "training images",
    "rung": "what is compared",
    "measure": "agreement",
}


class Statistic(NamedTuple):
    """What a column of the results is called, how it is averaged and drawn, and at which values lines stand."""

    label: str
    scale: str = "correlation"  # correlation: to 1, zero in sight; linear; log; symlog
    average: Callable[..., float] = np.mean
    lines: tuple[float, ...] = (0.0,)


# Medians say the same on a log axis as on a linear one, and bear zeros.
STATISTICS = {
    "spearman": Statistic("Spearman correlation"),
    "spearman_single": Statistic("Spearman correlation with one retraining"),
    "pearson": Statistic("Pearson correlation"),
    "norm_spearman": Statistic("Spearman of norms"),
    "slope": Statistic("slope of truth on estimate", "log", np.mean, (1.0,)),
    "norm_ratio": Statistic("estimated / true norm", "log", np.median, (1.0,)),
    "difference": Statistic("LiSSA minus exact", "linear"),
    "eig_max": Statistic("largest eigenvalue of H", "log", np.median, ()),
    "eig_min": Statistic("smallest eigenvalue of H", "symlog", np.median),
    "grad_norm": Statistic("norm of the gradient of J", "log", np.median, ()),
    "seconds_estimate": Statistic("seconds", "log", np.median, ()),
    "solver_residual": Statistic("relative residual", "log", np.median, ()),
    "products": Statistic("curvature products", "log", np.median, ()),
    "memory_mb": Statistic("peak memory (MB)", "log", np.median, ()),
    "seconds_retrain": Statistic("seconds of the retraining", "log", np.median, ()),
    "networks": Statistic("share of networks"),
    "loss_after": Statistic("loss of the test examples", "linear", np.mean, ()),
}


def code(value: object) -> str:
    """A code of the results table in words; one without a word of its own is given with spaces.

    "warm_minibatch_minus_control", "warm_minibatch_0.25" (a share of the steps) and "unrolled_minibatch_30000" (steps)
    are made of the words for what stands before.
    """
    text = str(value)
    if text in CODES:
        return CODES[text]
    stem = text.removesuffix("_minus_control")
    if stem != text:
        return f"{code(stem)} minus control"
    stem, _, share = text.rpartition("_")
    if stem == "removed":
        return f"in random subsets of {100 * float(share):g}%" if float(share) else "one by one, at random"
    if stem in CODES and share.replace(".", "", 1).isdigit():
        length = f"{float(share):.0%} of the steps" if float(share) <= 1 else f"{float(share):,.0f} steps"
        return f"{CODES[stem]} for {length}"
    return text.replace("_", " ")


def column(name: str) -> str:
    """A column's name for an axis."""
    return STATISTICS[name].label if name in STATISTICS else COLUMNS.get(name, name.replace("_", " "))


def short(name: str) -> str:
    """A column's name within a sentence, without what stands in brackets."""
    return column(name).split(" (")[0]


def tick(name: str, value: object) -> str:
    """A value of a column where the column's name stands beside it: 8, 0.005, 25%, LeNet."""
    if isinstance(value, str):
        return code(value)
    if name == "left_out":
        return f"{100 * value:g}%" if value else "one"
    return f"{value:.0%}" if name == "share" else f"{value:g}"


def value(name: str, value: object) -> str:
    """A value with as much of its column's name as it needs alone: "weight decay 0.005", "ReLU", "width 5"."""
    if name == "weight_decay" and value == 0:
        return "no weight decay"
    if name in ("test_choice", "train_choice"):
        return "all training points" if value == "all" else f"{column(name)} {code(value)}"
    return tick(name, value) if isinstance(value, str) or name == "share" else f"{short(name)} {tick(name, value)}"


def label(name: str, what: object) -> str:
    """A value for a legend or a line of a figure: codes without their column's name."""
    return code(what) if isinstance(what, str) else value(name, what)


def number(x: float) -> str:
    """Two decimals where that says enough, else two significant digits: 0.97, −0.04, 12.5, 3.2e−5."""
    if not math.isfinite(x):
        return "no number"
    mantissa, exponent = f"{x:.1e}".split("e")
    text = f"{x:.0f}" if 100 <= abs(x) < 10_000 else f"{mantissa}e{int(exponent)}"
    if x == 0 or 0.005 <= abs(x) < 100:
        text = f"{x:.2f}" if abs(x) < 10 else f"{x:.1f}"
    return text.replace("-", MINUS)


def interval(mean: float, low: float, high: float) -> str:
    """A mean, and its interval where there is one: "0.86 (0.70 to 0.96)"."""
    return f"{number(mean)} ({number(low)} to {number(high)})" if low < high else number(mean)


def change(x: float) -> str:
    """A difference with its sign: "+0.02", "−0.28", "0.00"."""
    text = f"{x:+.2f}".replace("-", MINUS)
    return "0.00" if float(f"{x:.2f}") == 0 else text


def counted(n: int, what: str) -> str:
    """ "1 seed", "2 seeds"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def span(values: Iterable[float], form: Callable[[float], str] = number) -> str:
    """ "0.63", or "0.63 to 0.97" where values differ."""
    ends = [form(x) for x in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def joined(parts: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *others, last = parts or [""]
    return f"{', '.join(others)} and {last}" if others else last


def sentences(*parts: str) -> str:
    """The parts that say something, each with a capital at its start and a full stop at its end."""
    return " ".join(f"{p[:1].upper()}{p[1:]}{'' if p.endswith('.') else '.'}" for p in parts if p)


def caption(*lines: Iterable[str]) -> str:
    """A caption's point, setting and details, each the sentences of a line."""
    return "\n".join(sentences(*line) for line in lines)


def ordered(values: Iterable, descending: bool = False) -> list:
    """The different values: codes in the order of `CODES`, numbers by size."""
    found = set(values)
    if all(isinstance(v, str) for v in found):
        return sorted(found, key=lambda v: (ORDER.get(v, len(ORDER)), v))
    return sorted(found, reverse=descending)
