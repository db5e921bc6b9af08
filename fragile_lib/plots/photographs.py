"""Test images beside the training images that help and harm them most, with what leaving each out does to the loss.

`pictures` draws them from records, whose points carry the images; `influential_pictures` photographs with scores alone.
"""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fragile_lib.plots import base, words
from fragile_lib.plots.base import Picture

TEST_WIDTH = 2.0  # inches, of the test photograph
SHOWN = 5  # training images in a row
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ORDINARY = {"p30_influence": "30th percentile", "random": "30th percentile"}
PERCENTILE = 0.3  # of |estimate|, for ordinary images where those left out were drawn at random
TRUTHS = ("warm_minibatch_minus_control", "warm_minibatch", "minimum", "pbrf")  # the first that a point has is shown


def pictures(points: Sequence[Mapping], **where: object) -> list[Picture]:
    """Of each data set one network's first test image, most helpful and harmful training images, and ordinary ones.

    Args:
        points: of records, with images (`rows.recorded`); of several networks the one of most training examples.
        **where: keys of a point and the values (one, or a list) that are shown.
    """
    with_images = [p for p in points if "pixels" in p and all(p.get(k) in np.ravel(v) for k, v in where.items())]
    found = []
    for dataset in words.ordered(p["dataset"] for p in with_images):
        of = [p for p in with_images if p["dataset"] == dataset]
        best = max(of, key=lambda p: (p["n_train"], -p["seed"]))["run_id"]
        found.append(_of_network([p for p in of if p["run_id"] == best]))
    return found


def _of_network(points: Sequence[Mapping]) -> Picture:
    """One test image: a row of helpful, one of harmful and one of ordinary training images, each with both changes."""
    first = next(p for p in points if p["train_choice"] == "top_influence")
    table = pd.concat([_changes(p) for p in points], ignore_index=True)
    rows = {
        **_extremes(table[table["train_choice"] == "top_influence"]),
        **{
            ORDINARY.get(choice, words.code(choice)): _ordinary(part)
            for choice, part in table[table["train_choice"] != "top_influence"].groupby("train_choice")
        },
    }
    truth, estimator = _told_of(first)
    label, network = _class(first, first["labels"][0]), words.code(first["architecture"])
    point = (
        f"{words.code(first['dataset'])}: what leaving a training image out does to the loss of one test image, {label}"
    )
    profile = f"profile {first['profile']}, " if "profile" in first else ""
    facts = f"{network}, {first['n_train']:,} training images, weight decay {first['weight_decay']:g}; estimates by "
    facts += f"{words.code(estimator)}, truth {words.code(truth)}; {profile}run {first['run_id']}"
    drawn = int((table["train_choice"] == "random").sum())
    drawn = f"The 30th percentile is that of |estimate| among {drawn} images drawn at random" if drawn else ""
    test = images_of(first)[0], _class(first, first["labels"][0])
    return _picture(test, rows, table.assign(run_id=first["run_id"]), (point, facts, drawn))


def left_out_photographs(
    point: Mapping,
    test: np.ndarray,
    train: Sequence[np.ndarray],
    scores: Sequence[float],
    test_class: str,
    train_classes: Sequence[str],
    dataset: str,
    estimator: str,
) -> Picture:
    """As `pictures`, of one test photograph and the training photographs that were really left out.

    Args:
        point: of a record, or as `rows.scatter` makes it: `index`, `estimate`, `truth` and, where repeated, `error`.
        test, train, scores, test_class, train_classes, dataset, estimator: as in `influential_pictures`; those of the
            point, by |estimate| (`network.photographs.pictures_of`).
    """
    if not point["truth"]:
        return Picture(None, "No photograph was left out.")
    truth, _ = _told_of(point)
    order = np.argsort(-np.abs(np.asarray(point["estimate"][estimator], dtype=float)), kind="stable")[: len(train)]
    numbers = {"truth": point["truth"][truth], "error": _errors(point, truth)}
    table = pd.DataFrame({name: np.asarray(values, dtype=float)[order] for name, values in numbers.items()})
    table = table.assign(estimate=scores, index=np.asarray(point["index"])[order], label=train_classes)
    run = {"run_id": point["run_id"]} if "run_id" in point else {}
    table = table.assign(pixels=list(train), **run).dropna(subset=["estimate", "truth"])
    head = f"{words.code(dataset)}: what leaving a training photograph out does to the loss of one test photograph, "
    facts = [f"{point['n_train']:,} training photographs"] if "n_train" in point else []
    facts += [f"profile {point['profile']}"] if "profile" in point else []
    facts += [f"estimates by {words.code(estimator)}, truth {words.code(truth)}"]
    return _picture((test, test_class), _extremes(table), table, (head + test_class, ", ".join(facts), ""))


def _extremes(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The most helpful and the most harmful by their estimates."""
    top = table.sort_values("estimate", ascending=False)
    return {
        "most helpful": top[top["estimate"] > 0].head(SHOWN),
        "most harmful": top[top["estimate"] < 0].tail(SHOWN)[::-1],
    }


def _picture(
    test: tuple[np.ndarray, str], rows: Mapping[str, pd.DataFrame], table: pd.DataFrame, said: tuple[str, str, str]
) -> Picture:
    """The figure of a test image (pixels, class) and rows of training images; `said`: point, setting, a detail."""
    rows, (point, facts, detail) = {name: part for name, part in rows.items() if len(part)}, said
    told = [
        f"{name}: estimated {words.span(part['estimate'])}, true {words.span(part['truth'])}"
        for name, part in rows.items()
    ]
    details = words.sentences(
        *told,
        detail,
        "Below each training image the estimated and the true change of the test loss; positive (blue): the loss rises "
        "without the image, which helped; negative (red): it harmed",
        "± is the standard error of the true change by its repetitions" if table["error"].notna().any() else "",
    )
    caption = "\n".join([words.sentences(point), words.sentences(facts), details])
    figure, table = _draw_rows(*test, rows), table.drop(columns="pixels")
    return Picture(figure, words.sentences(point, *told), caption, photographs=True, rows=table)


def _ordinary(part: pd.DataFrame) -> pd.DataFrame:
    """Some images of a choice that is not of the largest influence: of random ones those nearest to `PERCENTILE`."""
    if (part["train_choice"] == "random").all():
        sizes = part["estimate"].abs()
        part = part.loc[(sizes - sizes.quantile(PERCENTILE)).abs().sort_values(kind="stable").index]
    return part.head(SHOWN)


def _told_of(point: Mapping) -> tuple[str, str]:
    """The truth and the estimator that are shown of a point."""
    truth = next(name for name in (*TRUTHS, *point["truth"]) if name in point["truth"])
    return truth, point.get("selected_by") or next(iter(point["estimate"]))


def _errors(point: Mapping, truth: str) -> Sequence[float | None]:
    """The standard errors of a truth by its repetitions; None for each where nothing was repeated."""
    errors = point.get("error", {}).get(truth)
    return [None] * len(point["index"]) if errors is None else errors


def _changes(point: Mapping) -> pd.DataFrame:
    """A row for each training image that the point has as an image."""
    truth, estimator = _told_of(point)
    places = np.asarray(point["pictured"], dtype=int)
    numbers = {"estimate": point["estimate"][estimator], "truth": point["truth"][truth]}
    numbers["error"] = _errors(point, truth)
    table = pd.DataFrame({name: np.asarray(values, dtype=float)[places] for name, values in numbers.items()})
    index, labels = np.asarray(point["index"])[places], [_class(point, label) for label in point["labels"][1:]]
    table = table.assign(train_choice=point["train_choice"], index=index, label=labels, pixels=images_of(point)[1:])
    return table.dropna(subset=["estimate", "truth"])


def images_of(point: Mapping) -> list[np.ndarray]:
    """The images of a recorded point, the test image first."""
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(point["pixels"]))).convert("RGB"))
    return np.split(strip, len(point["labels"]), axis=1)


def _class(point: Mapping, label: int) -> str:
    return CIFAR10[label] if point["dataset"] == "cifar10" else str(label)


def _draw_rows(test: np.ndarray, test_class: str, rows: Mapping[str, pd.DataFrame]) -> Figure:
    with base.theme():
        figure = Figure(figsize=(base.WIDTH, 0.3 + 1.42 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), SHOWN + 1, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        _photograph(axes[0, 0], test, f"test image:\n{test_class}")
        for line, (name, part) in zip(axes, rows.items(), strict=True):
            largest = np.abs(part[["estimate", "truth"]].to_numpy()).max()
            exponent = int(np.floor(np.log10(largest))) if largest > 0 else 0
            for ax, one in zip(line[1:], part.itertuples(), strict=False):
                estimate, truth, error = (x / 10.0**exponent for x in (one.estimate, one.truth, one.error))
                told = np.isfinite(error)  # beside an error there is no room for more
                text = f"est. {_short(estimate, told)}\ntrue {_short(truth, told)}" + (
                    f" ± {error:.1f}" if told else ""
                )
                _photograph(ax, one.pixels, text, base.BLUE if one.estimate > 0 else base.VERMILLION, 8.6)
                ax.set_title(one.label, fontsize=10, pad=2)
            line[1].set_ylabel(f"{name}\n" + rf"$\times 10^{{{exponent}}}$", fontsize=10)
    return figure


def _short(size: float, brief: bool) -> str:
    """One decimal, or three of what would be 0.0 if not brief; signed."""
    return f"{size:{'+.1f' if brief or abs(size) >= 0.05 else '+.3f'}}".replace("-", "\N{MINUS SIGN}")


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
    lines = (
        [alt],
        [f"The {len(scores)} of largest |influence| by {words.code(estimator)}: {shown}"],
        [
            "The score is the estimated change of the test loss on leaving the photograph out; with a blue frame it "
            "helps, with a red one it harms",
            told,
        ],
    )
    caption = words.caption(*lines)
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


def _photograph(ax: Axes, pixels: np.ndarray, label: str, colour: str = "0.3", size: float = 12) -> None:
    """A photograph in a frame, its label below."""
    ax.set_axis_on()
    ax.imshow(pixels, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.5)
    ax.set_xlabel(label, fontsize=size, labelpad=2)
