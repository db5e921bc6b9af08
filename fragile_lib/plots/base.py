"""What all figures share: one theme, one form of result (`Picture`), one way to show it (`show`)."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from PIL import Image

from fragile_lib.tools.errors import bad_input

WIDTH = 6.4  # inches; at the default dpi about 1000 pixels
DPI = 156
COLOURS = 48  # of the written palette: anti-aliased text and lines need no more

# Told apart by readers with any of the common colour blindnesses, and by marker and dash without colour.
BLUE, VERMILLION, GREEN, PURPLE, GREY, BROWN = (sns.color_palette("colorblind").as_hex()[i] for i in (0, 3, 2, 4, 7, 5))
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, GREY, BROWN)
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))


class Picture(NamedTuple):
    """A figure, what a reader who cannot see it is told, and what stands below it: `show(*picture)` displays it."""

    figure: Figure
    alt: str
    caption: str


@contextmanager
def theme() -> Iterator[None]:
    """Draw in the house style; letters stay legible when 1000 pixels are scaled down to a phone's 330."""
    style = {
        **sns.axes_style("whitegrid"),
        "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that figures are the same on every machine
        "font.size": 12.5,
        "axes.labelsize": 13,
        "axes.titlesize": 13,
        "xtick.labelsize": 12,
        "ytick.labelsize": 12,
        "legend.fontsize": 12,
        "legend.frameon": False,
        "axes.grid.axis": "y",
        "lines.linewidth": 1.8,
        "lines.markersize": 6,
        "figure.facecolor": "white",
        "axes.facecolor": "white",
        "axes.formatter.useoffset": False,
    }
    with mpl.rc_context(style):
        yield


def new_figure(
    height: float, rows: int = 1, columns: int = 1, share_y: bool = False, layout: str = "constrained"
) -> tuple[Figure, np.ndarray]:
    """A figure of the standard width that pyplot does not know (so nothing shows it twice), and its (rows, columns)."""
    figure = Figure(figsize=(WIDTH, height), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    for ax in axes.flat:
        sns.despine(ax=ax, left=True)
    return figure, axes


def empty_picture(sentence: str) -> Picture:
    """A figure that says in words why there is nothing to see."""
    with theme():
        figure, axes = new_figure(1.6)
        ax = axes[0, 0]
        ax.set_axis_off()
        ax.text(0.5, 0.5, sentence, ha="center", va="center", wrap=True, transform=ax.transAxes)
    return Picture(figure, f"Empty figure. {sentence}", sentence)


def legend_below(figure: Figure, axes: list[Axes]) -> None:
    """One legend for all axes, each label once, below the figure in as many columns as fit; none for a single curve."""
    entries: dict[str, object] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if len(entries) < 2:
        return
    labels = sorted(entries, key=lambda label: not isinstance(entries[label], ErrorbarContainer))  # curves come first
    handles = [entries[label] for label in labels]
    tight = {"columnspacing": 1.2, "handletextpad": 0.5}
    for columns in range(min(5, len(entries)), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, **tight)
        if columns == 1 or legend.get_window_extent().width < 0.98 * figure.bbox.width:
            return
        legend.remove()


def tint(colour: str, share: float = 0.5) -> tuple[float, ...]:
    """The colour mixed with white; unlike transparency it costs no further colours where marks overlap."""
    return tuple(1 - share * (1 - channel) for channel in mpl.colors.to_rgb(colour))


def symlog_axis(
    ax: Axes, which: str, low: float, high: float, threshold: float, most: int = 7, gap: float = 0.0
) -> None:
    """Make axis "x" or "y" linear within +- threshold and logarithmic outside; about `most` ticks, zero among them.

    With a `gap`, a share of the axis, there are as many ticks as lie that far from zero and from outer ones.
    """
    getattr(ax, f"set_{which}scale")("symlog", linthresh=threshold, linscale=0.6)
    exponents = [
        np.arange(np.ceil(np.log10(threshold)), np.floor(np.log10(max(side, threshold))) + 1) for side in (-low, high)
    ]
    step = 1 if gap else -(-sum(map(len, exponents)) // (most - 1)) or 1
    negative, positive = (10.0 ** e[::-1][::step] for e in exponents)
    axis = getattr(ax, f"{which}axis")
    place = axis.get_transform().transform
    length, kept = np.ptp(place(np.array([low, high]))), [0.0]
    for value in sorted([*-negative, *positive], key=abs, reverse=True):
        if np.abs(place(np.array(kept)) - place(np.array([value]))).min() >= gap * length:
            kept.append(value)
    axis.set_major_locator(FixedLocator(sorted(kept)))
    axis.set_minor_locator(NullLocator())
    getattr(ax, f"set_{which}lim")(low, high)


def png_bytes(figure: Figure, dpi: float = DPI) -> bytes:
    """The figure as a small PNG with a palette, on opaque white, free of dates and versions."""
    raw = io.BytesIO()
    with theme():  # ticks are made while drawing, so the style must hold here too
        figure.savefig(raw, format="png", dpi=dpi, facecolor="white", transparent=False)
    image = Image.open(raw).convert("RGB")
    image = image.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    small = io.BytesIO()
    image.save(small, format="PNG", optimize=True)
    return small.getvalue()


def show(figure: Figure, alt: str, caption: str = "", dpi: float = DPI) -> None:
    """Display the figure once, with its alternative text and caption as metadata of the PNG, and close it.

    nbconvert and the reports read `metadata["image/png"]["alt"]` and `["caption"]`. Outside of IPython nothing is
    displayed, but the figure is drawn all the same, so that a plain script finds the same errors.
    """
    if not alt.strip():
        raise bad_input("alt", alt, "say in words what the figure shows")
    png = png_bytes(figure, dpi)
    plt.close(figure)  # a figure made with pyplot would otherwise be shown again at the end of the cell
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return
    if get_ipython() is None:
        return
    data = {"image/png": base64.b64encode(png).decode("ascii"), "text/plain": alt}
    display(data, metadata={"image/png": {"alt": alt, "caption": caption}}, raw=True)
