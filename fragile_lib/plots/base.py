"""What all figures share: one theme, one form of result (`Picture`), one way to show it (`show`)."""

from __future__ import annotations

import base64
import io
import sys
from contextlib import AbstractContextManager
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from PIL import Image

from fragile_lib.tools.errors import bad_input

WIDTH = 6.4  # inches; at the default dpi about 1000 pixels
DPI = 156
COLOURS = 24  # of the written palette: anti-aliased text and lines need no more

# Told apart by readers with any of the common colour blindnesses, and by marker and dash without colour.
CYCLE = tuple(sns.color_palette("colorblind").as_hex()[i] for i in (0, 3, 2, 4, 7, 5))
BLUE, VERMILLION = CYCLE[:2]
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))
STYLE = {
    **sns.axes_style("whitegrid"),
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that figures are the same on every machine
    "font.size": 12.5,
    "axes.labelsize": 13,
    "axes.titlesize": 12.5,
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


class Picture(NamedTuple):
    """A figure, what a reader who cannot see it is told, and what stands below it.

    Without a figure there was nothing to draw; `alt` says why, and `show` passes it over. The first line of a caption
    is its point, the second says what the numbers are of, the others are details. `rows` are the numbers that are
    drawn, with the runs that they are of in the column `run_id`, or in `runs` where a number is of all of them.
    """

    figure: Figure | None
    alt: str
    caption: str = ""
    photographs: bool = False  # which need more colours, and fewer pixels
    rows: pd.DataFrame | None = None
    runs: tuple[str, ...] = ()

    @property
    def told(self) -> dict[str, object]:
        """What stands beside the image in a notebook: the texts, the runs, the rows as CSV."""
        told: dict[str, object] = {"alt": self.alt, "caption": self.caption}
        told |= {"photographs": True} if self.photographs else {}
        if self.rows is not None and len(self.rows):
            own = self.rows["run_id"].dropna().unique() if "run_id" in self.rows.columns else []
            told |= {"runs": [str(run) for run in (*self.runs, *own) if run]}
            told |= {"rows": self.rows.to_csv(index=False, float_format="%.4g", lineterminator="\n")}
        return told


def theme() -> AbstractContextManager:
    """Draw in the house style; letters stay legible when 1000 pixels are scaled down to a phone's 330."""
    return mpl.rc_context(STYLE)


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: object) -> tuple[Figure, np.ndarray]:
    """A figure of the standard width that pyplot does not know (so nothing shows it twice), and its (rows, columns)."""
    figure = Figure(figsize=(WIDTH, height), layout=options.pop("layout", "constrained"))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        sns.despine(ax=ax, left=True)
    return figure, axes


def legend_below(figure: Figure) -> None:
    """One legend for all axes, each label once, below the figure in as many columns as fit; none for a single entry."""
    entries: dict[str, object] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if len(entries) < 2:
        return
    labels = sorted(entries, key=lambda label: not isinstance(entries[label], ErrorbarContainer))  # series come first
    tight = {"columnspacing": 1.2, "handletextpad": 0.5}
    for columns in range(min(5, len(entries)), 0, -1):
        handles = [entries[label] for label in labels]
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, **tight)
        if columns == 1 or legend.get_window_extent().width < 0.98 * figure.bbox.width:
            return
        legend.remove()


def look(place: int) -> dict:
    """Colour, marker and dash of a series; beyond the colours another marker tells apart."""
    marker = MARKERS[(place + place // len(CYCLE)) % len(MARKERS)]
    return {"color": CYCLE[place % len(CYCLE)], "marker": marker, "linestyle": DASHES[place % len(DASHES)]}


def tint(colour: str, share: float = 0.5) -> tuple[float, ...]:
    """The colour mixed with white; unlike transparency it costs no further colours where marks overlap."""
    return tuple(1 - share * (1 - channel) for channel in mpl.colors.to_rgb(colour))


def png_bytes(picture: Picture, dpi: float | None = None) -> bytes:
    """The figure as a small PNG with a palette, on opaque white, free of dates and versions."""
    raw, small = io.BytesIO(), io.BytesIO()
    with theme():  # ticks are made while drawing, so the style must hold here too
        dpi = dpi or (110 if picture.photographs else DPI)
        picture.figure.savefig(raw, format="png", dpi=dpi, facecolor="white", transparent=False)
    image = Image.open(raw).convert("RGB")
    if picture.photographs:
        image = image.quantize(256, method=Image.Quantize.MEDIANCUT)
    else:
        image = image.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        # The mean of nearly white pixels is not white, as the page around the figure is.
        image.putpalette([255 if value > 247 else value for value in image.getpalette()])
    image.save(small, format="PNG", optimize=True)
    return small.getvalue()


def show(*shown: Picture | Styler) -> None:
    """Display pictures and tables, each once; pictures without a figure are passed over.

    A picture is displayed with what is told of it (`Picture.told`) as metadata of the PNG: nbconvert reads
    `metadata["image/png"]["alt"]`, the reports all of it. Outside of IPython nothing is displayed, but the figure is
    drawn all the same, so that a plain script finds the same errors.

    Raises:
        InputError: a picture has no alternative text.
    """
    for one in shown:
        if isinstance(one, Styler):
            _display(one)
        elif one.figure is not None:
            if not one.alt.strip():
                raise bad_input("alt", one.alt, "say in words what the figure shows")
            png = base64.b64encode(png_bytes(one)).decode("ascii")
            plt.close(one.figure)  # a figure made with pyplot would otherwise be shown again at the end of the cell
            _display({"image/png": png, "text/plain": one.alt}, metadata={"image/png": one.told}, raw=True)


def _display(content: object, **options: object) -> None:
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        ipython.display.display(content, **options)
