"""Photographs with their scores: a test photograph beside the training photographs of largest |influence| on it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fragile_lib.plots import base, words
from fragile_lib.plots.base import Picture

TEST_WIDTH = 2.0  # inches, of the test photograph


def influential_pictures(
    test: np.ndarray,
    train: Sequence[np.ndarray],
    scores: Sequence[float],
    test_class: str,
    train_classes: Sequence[str],
    dataset: str,
    estimator: str,
) -> Picture:
    """A test photograph beside the training photographs of largest |influence| on it, the largest first.

    A score is the estimated change of the test loss on leaving the training photograph out; blue frames are of those
    that help (the loss rises without them), red ones of those that harm.

    Args:
        test: (H, W, 3) bytes.
        train: (k,) such arrays.
        scores: (k,) of them.
        test_class, train_classes: names of the classes.
        dataset: its name in the results table.
        estimator: whose scores they are.
    """
    scores = np.asarray(scores, dtype=float)
    if not len(scores):
        return Picture(None, "No training photographs were chosen.")
    counts = Counter(train_classes).most_common()
    shown = words.joined([f"{count} of {name}" for name, count in counts[:4]])
    shown += f" and {len(counts) - 4} other classes" if len(counts) > 4 else ""
    told = (
        f"{int((scores > 0).sum())} of {len(scores)} help, {list(train_classes).count(test_class)} are of its class; "
    )
    told += f"scores from {words.number(scores.min())} to {words.number(scores.max())}"
    alt = f"{words.code(dataset)}: a test photograph, {test_class}, beside its most influential training photographs"
    caption = words.sentences(
        words.code(dataset),
        f"A test photograph and the {len(scores)} training photographs of largest |influence| on it by "
        f"{words.code(estimator)}: {shown}",
        "The score is the estimated change of the test loss on leaving the photograph out; with a blue frame it helps, "
        "with a red one it harms",
        told,
    )
    return Picture(_draw(test, train, scores, test_class), words.sentences(alt, told), caption, photographs=True)


def _draw(test: np.ndarray, train: Sequence[np.ndarray], scores: np.ndarray, test_class: str) -> Figure:
    order = np.argsort(-np.abs(scores), kind="stable")
    exponent = int(np.floor(np.log10(np.abs(scores).max()))) if np.abs(scores).max() > 0 else 0
    columns = min(7, math.ceil(math.sqrt(len(order))))
    rows = -(-len(order) // columns)
    side = (base.WIDTH - TEST_WIDTH) / columns
    with base.theme():
        figure = Figure(figsize=(base.WIDTH, max((side + 0.3) * rows, TEST_WIDTH + 0.3) + 0.4), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(TEST_WIDTH, base.WIDTH - TEST_WIDTH))
        _photograph(left.subplots(), test, f"test: {test_class}")
        right.suptitle(f"scores in units of $10^{{{exponent}}}$" if exponent else "scores", fontsize=12)
        axes = right.subplots(rows, columns, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, place in zip(axes.flat, order, strict=False):
            colour = base.BLUE if scores[place] > 0 else base.VERMILLION
            _photograph(ax, train[place], short_score(scores[place] / 10.0**exponent), colour)
    return figure


def short_score(score: float) -> str:
    """A score with its sign, in six characters at most: +2.2, −0.05, −7e−4."""
    if score == 0 or abs(score) >= 0.1:
        return f"{score:+.1f}".replace("-", "−")
    mantissa, exponent = f"{score:+.0e}".split("e")
    return (f"{score:+.2f}" if int(exponent) == -2 else f"{mantissa}e{int(exponent)}").replace("-", "−")


def _photograph(ax: Axes, pixels: np.ndarray, label: str, colour: str = "0.3") -> None:
    """A photograph in a frame, its label below."""
    ax.set_axis_on()
    ax.imshow(pixels, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.5)
    ax.set_xlabel(label, fontsize=12, labelpad=2)
