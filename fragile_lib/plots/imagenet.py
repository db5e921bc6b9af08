"""What the ImageNet notebook shows: photographs with their scores, and what a whole pass would cost."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from PIL import Image

from fragile_lib.plots import base, words
from fragile_lib.plots.architectures_table import LEFT
from fragile_lib.plots.base import Picture

GRIDS = ((4, 2), (9, 3), (16, 4), (25, 5), (math.inf, 7))  # up to so many photographs, so many side by side
TEST_WIDTH = 2.0  # inches, of the test photograph
DPI = 110  # of pages of photographs: 700 pixels
TITLES = {
    "imagenet": "ImageNet",
    "imagenet_standin": "stand-in, not ImageNet",
    "imagefolder": "a folder of photographs",
}
PHOTOGRAPHS = tuple(TITLES)


def dataset_word(dataset: str) -> str:
    """What a data set of this study is called: `stand-in, not ImageNet` for that."""
    return TITLES.get(dataset, dataset)


def influential_pictures(
    test: np.ndarray,
    train: Sequence[np.ndarray],
    scores: Sequence[float],
    test_class: str,
    train_classes: Sequence[str],
    dataset: str,
    estimator: str = "lissa",
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
        return base.empty_picture("No training photographs were chosen.")
    order = np.argsort(-np.abs(scores), kind="stable")
    exponent = int(np.floor(np.log10(np.abs(scores).max()))) if np.abs(scores).max() > 0 else 0
    columns = next(columns for most, columns in GRIDS if len(order) <= most)
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
            scaled = scores[place] / 10.0**exponent
            _photograph(ax, train[place], _short(scaled), base.BLUE if scores[place] > 0 else base.VERMILLION)
    counts = Counter(train_classes).most_common()
    shown = words.joined([f"{count} of {name}" for name, count in counts[:4]])
    shown += f" and {len(counts) - 4} other classes" if len(counts) > 4 else ""
    same, helpful = sum(name == test_class for name in train_classes), int((scores > 0).sum())
    told = f"{helpful} of {len(scores)} help, {same} are of its class; scores from {words.number(scores.min())} "
    told += f"to {words.number(scores.max())}"
    name = words.value_word("", estimator)
    alt = words.sentences(
        f"{dataset_word(dataset)}: a test photograph, {test_class}, beside its most influential training photographs",
        told,
    )
    caption = words.sentences(
        dataset_word(dataset)[0].upper() + dataset_word(dataset)[1:],
        f"A test photograph and the {len(scores)} training photographs of largest |influence| on it by {name}: {shown}",
        "The score is the estimated change of the test loss on leaving the photograph out; with a blue frame it helps, "
        "with a red one it harms",
        told,
    )
    return Picture(figure, alt, caption)


def show_photographs(figure: Figure, alt: str, caption: str = "") -> None:
    """`plots.show` for photographs: with 256 dithered colours, which they need and drawings do not."""
    raw = io.BytesIO()
    with base.theme():
        figure.savefig(raw, format="png", dpi=DPI, facecolor="white", transparent=False)
    image = Image.open(raw).convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT)
    small = io.BytesIO()
    image.save(small, format="PNG", optimize=True)
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return
    if get_ipython() is None:
        return
    data = {"image/png": base64.b64encode(small.getvalue()).decode("ascii"), "text/plain": alt}
    display(data, metadata={"image/png": {"alt": alt, "caption": caption}}, raw=True)


def imagenet_cost_table(projected: pd.DataFrame, size: int, tflops: float, machine: str) -> Styler:
    """Images, rates and hours of scoring and retraining all of ImageNet, with the arithmetic in the caption.

    Args:
        projected: of `imagenet.cost.projection`.
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
    return Styler(table, uuid="imagenet_cost", cell_ids=False, caption=caption).set_table_styles(LEFT)


def _short(score: float) -> str:
    """A score with its sign, in six characters at most: +2.2, −0.05, −7e−4."""
    if score == 0 or abs(score) >= 0.1:
        return f"{score:+.1f}".replace("-", "−")
    mantissa, exponent = f"{score:+.0e}".split("e")
    return (f"{score:+.2f}" if int(exponent) == -2 else f"{mantissa}e{int(exponent)}").replace("-", "−")


def photographs_table(results: pd.DataFrame) -> Styler:
    """Agreement by set, test photograph and estimator, and how far the control alone moved each test loss.

    Args:
        results: rows of single test points, of the sets in `PHOTOGRAPHS`.
    """
    numbers = {"pearson": "Pearson", "spearman": "Spearman", "slope": "slope", "control_change": "control"}
    rows = results[results["ground_truth"] == "loo_warm"]
    table = pd.DataFrame(
        {
            "set": [dataset_word(name) for name in rows["dataset"]],
            "test photograph": [f"{point:.0f}" for point in rows["test_point"]],
            "estimator": [words.value_word("", name) for name in rows["estimator"]],
            "n": [f"{count:.0f}" for count in rows["n_points"]],
            **{label: [words.number(x) for x in rows[column]] for column, label in numbers.items()},
        }
    )
    caption = words.sentences(
        "Agreement of estimate and warm-start retraining over the n training photographs of largest |influence| on one "
        "test photograph; control is the change of its loss on going on with all photographs",
        "In the paper both correlations are below 0.15, and the control moves the two losses by −0.679 and +0.066",
    )
    styler = Styler(table, uuid="photographs", cell_ids=False, caption=caption).set_table_styles(LEFT)
    return styler.hide(axis="index")


def _photograph(ax: Axes, pixels: np.ndarray, label: str, colour: str = "0.3") -> None:
    """A photograph in a frame, its label below."""
    ax.set_axis_on()
    ax.imshow(pixels, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.5)
    if label:
        ax.set_xlabel(label, fontsize=12, labelpad=2)
