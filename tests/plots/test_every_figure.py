"""Every named figure, on synthetic tables of all studies and on the committed one: drawn is what the rows say."""

from __future__ import annotations

import functools
import io
import itertools
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import plot_tables
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from pandas.io.formats.style import Styler
from PIL import Image

from fragile_lib import plots
from fragile_lib.agreement import bootstrap_interval
from fragile_lib.plots import base, means, words
from fragile_lib.plots.axes import placed
from fragile_lib.plots.rows import select, show_rows
from fragile_lib.study import read_points
from fragile_lib.tools.errors import InputError

PICTURED = {"small_mnist": "small_mnist-wd0.001-s0", "mnist": "mnist-lenet-n2000-s0"}
# as long as the longest on the page of rules
RULES = ("left_out_gradient and damping_ratio", "the rule that the others choose", "stability under damping", "all")
PUZZLES = [name for name in plots.SPECS if name.startswith("puzzle")]
MEANS = [name for name, spec in plots.SPECS.items() if spec.kind != "table"]
RESULTS = Path(__file__).parents[2] / "reports" / "results.csv.xz"
DAMPING = 1e-3


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@functools.cache
def table(which: str) -> pd.DataFrame:
    """A table that all figures are drawn of; none of them changes it."""
    return plot_tables.everything(count=3) if which == "synthetic" else pd.read_csv(RESULTS, low_memory=False)


@pytest.fixture(scope="module", autouse=True)
def tables_left_alone():
    """After all figures both tables are still what they were before the first."""
    before = {which: table(which).copy() for which in ("synthetic", "committed")}
    yield
    for which, rows in before.items():
        pd.testing.assert_frame_equal(table(which), rows)


@functools.cache
def drawn(name: str, which: str = "synthetic") -> plots.Picture:
    if which == "committed" and show_rows(table(which), plots.SPECS[name]) is None:
        pytest.skip("no committed run has measured this yet")
    return plots.figure(name, table(which), damping=DAMPING)


def marks_of(ax, across: bool) -> np.ndarray:
    """(k, 3) mean, low and high of everything with an error bar; NaN where there is no interval."""
    found = []
    for container in ax.containers:
        if isinstance(container, ErrorbarContainer):
            if not container[2]:  # an entry of the legend alone
                continue
            line, _, (lines,) = container
            means = line.get_xdata() if across else line.get_ydata()
            for mean, segment in zip(means, lines.get_segments() or [[]] * len(means), strict=True):
                ends = [p[0 if across else 1] for p in segment] if len(segment) else [np.nan, np.nan]
                found.append([mean, *ends])
    return np.array(found, dtype=float).reshape(-1, 3)


@pytest.mark.parametrize("which", ["synthetic", "committed"])
@pytest.mark.parametrize("name", plots.SPECS)
def test_every_figure_has_texts(name, which):
    made = drawn(name, which)
    texts = (made.caption,) if isinstance(made, Styler) else (made.alt, made.caption)
    assert all(text.endswith(".") and "nan" not in text.lower().split() and "  " not in text for text in texts)
    if isinstance(made, Styler):
        assert len(made.data) and "nan" not in made.to_html().lower()
    else:
        assert made.figure is not None and ": ." not in made.alt and ". :" not in made.alt


@pytest.mark.parametrize("which", ["synthetic", "committed"])
@pytest.mark.parametrize("name", MEANS)
def test_marks_are_the_rows_means_and_intervals_and_all_are_drawn_and_told(name, which):
    spec = plots.SPECS[name]
    picture, shown = drawn(name, which), show_rows(table(which), spec)
    keys = list(dict.fromkeys(["statistic", *spec.keys]))
    for key, cells in shown.cells.groupby(keys):  # independently of how the marks were made
        values = cells.groupby(list(spec.unit))["value"].mean()
        mark = shown.marks.merge(pd.DataFrame([key], columns=keys), on=keys).iloc[0]
        average = words.STATISTICS[mark["statistic"]].average
        assert (mark["n"], mark["units"]) == (values.notna().sum(), len(values))
        if mark["n"]:
            assert mark["mean"] == pytest.approx(average(values.dropna()))
            interval = bootstrap_interval(values, average)
            ends = [interval.low, interval.high]
            if spec.error:
                ends = mark["mean"] + cells[spec.error].fillna(0).mean() * np.array([-1, 1])
            np.testing.assert_allclose(mark[["low", "high"]].astype(float), ends)
    across = spec.kind == "dots"
    axes = [ax for ax in picture.figure.axes if ax.axison]
    assert len(axes) == len(shown.panels())
    for ax, panel in zip(axes, shown.panels(), strict=True):
        expected = placed(panel.marks)[["mean", "low", "high"]].to_numpy(dtype=float)
        found = marks_of(ax, across)
        assert len(found) == len(expected)
        order = [np.lexsort(a.T[::-1]) for a in (found, expected)]
        np.testing.assert_allclose(found[order[0]], expected[order[1]], rtol=1e-6, atol=1e-12)
        texts = [text.get_text() for text in ax.texts]
        if not len(expected):
            assert "no number" in texts
        elif across and not spec.falls:
            assert texts.count("not measured") == len(shown.levels(spec.at)) - panel.marks[spec.at].nunique()
    beside = [" ".join(text.get_text().split()) for ax in picture.figure.axes if not ax.axison for text in ax.texts]
    places = len(shown.levels(spec.rows)) * len(shown.levels(spec.columns))
    if spec.rows and spec.columns:
        assert len(beside) == places - len(axes) and all(text.endswith(": not measured") for text in beside)
    told = shown.marks[shown.marks["n"] > 0]
    if shown.marks["n"].max() > 1 and (isinstance(told[spec.at].iloc[0], str)):
        for mean in told["mean"]:
            assert words.number(mean) in picture.alt
    for r in shown.marks["ceiling"].dropna():
        assert words.number(r) in picture.alt
    if shown.marks["ceiling"].notna().any():
        assert "without error would reach" in picture.caption
    missing = shown.cells.loc[shown.cells["statistic"] == spec.statistics[0], "value"].isna().sum()
    assert (f"No number in {missing} of" in picture.caption) == (missing > 0)


@pytest.mark.parametrize("name", MEANS)
def test_series_are_told_apart_by_more_than_a_name(name):
    looks = means._looks(show_rows(table("synthetic"), plots.SPECS[name]))
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == len(looks)


@pytest.mark.parametrize("name", plots.SPECS)
def test_the_order_of_rows_does_not_matter(name):
    again = table("synthetic").sample(frac=1, random_state=3)
    first, other = (show_rows(rows, plots.SPECS[name]) for rows in (table("synthetic"), again))
    pd.testing.assert_frame_equal(first.rows, other.rows)
    pd.testing.assert_frame_equal(first.marks, other.marks)
    if name not in MEANS:
        assert plots.figure(name, again).to_html() == drawn(name).to_html()
    elif name in MEANS[::8]:
        again = plots.figure(name, again, damping=DAMPING)
        assert again.told == drawn(name).told and plots.png_bytes(again, 60) == plots.png_bytes(drawn(name), 60)


@pytest.mark.parametrize("name", MEANS)
def test_size_background_and_fit_of_the_published_picture(name):
    png = plots.png_bytes(drawn(name, "committed"))
    image = Image.open(io.BytesIO(png))
    assert image.mode == "P" and "transparency" not in image.info and 980 <= image.size[0] <= 1010
    assert len(png) < 90_000
    pixels = np.asarray(image.convert("RGB"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0]):  # white margins: nothing is cut off
        assert (edge == 255).all()
    assert (pixels[:, -1] == 255).mean() > 0.9  # grid lines may end there, no letters


def scattered(name: str) -> plots.Picture:
    truths = dict.fromkeys([truth for _, truth in plots.SCATTERS[name].panels], (1.0, 0.3))
    points = plot_tables.points(seeds=2, truths=truths)
    for point in points:
        point["estimate"]["exact_undamped"] = point["estimate"]["exact"]
    return plots.figure(name, points)


OTHERS = {
    **{name: functools.partial(scattered, name) for name in plots.SCATTERS},
    "small_mnist_dampings": lambda: drawn("small_mnist_dampings"),
    **{
        f"pictures of {name}": lambda run=run: plots.pictures(read_points(RESULTS, run))[0]
        for name, run in PICTURED.items()
    },
    "held_out_curves": lambda: plots.held_out_curves(
        plot_tables.held_out(), dict.fromkeys(RULES, plot_tables.held_out()["score"].to_numpy()), "runs"
    ),
    "foretold": lambda: plots.foretold(plot_tables.held_out()),
}


def texts_of(figure) -> list:
    """All texts that are drawn: ticks within the view, titles, names of axes, notes, legends."""
    figure.dpi = base.DPI
    with plots.theme():
        for _ in range(2):  # places are found by the first, as when a file is written
            figure.draw_without_rendering()
        found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        for ax in figure.findobj(Axes):
            for place, axis in enumerate((ax.xaxis, ax.yaxis)):
                low, high = sorted(axis.get_view_interval())
                ticks = [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]
                kept = [t for t in ticks if ax.axison and low <= t.get_position()[place] <= high]
                gone = {*axis.findobj(Text)} - {*kept, axis.label if ax.axison else None}
                found = [text for text in found if text not in gone]
    return found


@pytest.mark.parametrize("name", [*MEANS, *OTHERS])
def test_no_texts_collide_or_leave_the_figure(name):
    figure = (OTHERS[name]() if name in OTHERS else drawn(name, "committed")).figure
    texts = texts_of(figure)
    boxes = {text: text.get_window_extent() for text in texts}
    for a, b in itertools.combinations(texts, 2):
        common = Bbox.intersection(boxes[a], boxes[b])
        assert common is None or min(common.width, common.height) <= 1, (a.get_text(), b.get_text())
    assert all(box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y0 >= -1 for box in boxes.values())
    assert len(texts) > 4


def test_texts_that_collide_are_found():
    figure, ((ax,),) = base.new_figure(3.0)
    ax.set(title="a title", xlabel="a name")
    several = {text.get_text() for text in texts_of(figure)}
    assert {"a title", "a name", "0.0", "1.0"} <= several and len(several) == 8
    ax.text(0.0, 0.0, "here", transform=ax.transAxes)
    ax.set_axis_off()
    assert {text.get_text() for text in texts_of(figure)} == {"a title", "here"}


@pytest.mark.parametrize("name", [*plots.SPECS, *plots.SCATTERS])
def test_nothing_is_drawn_where_there_is_nothing(name):
    empty = [pd.DataFrame(), table("synthetic").iloc[:0], table("synthetic").assign(dataset="another")]
    for nothing in [[]] if name in plots.SCATTERS else empty:
        made = plots.figure(name, nothing)
        assert made.figure is None and made.alt.startswith("No ")
        assert plots.show(made) is None


VARIANTS = {
    "one seed": lambda t: t[t["seed"] == 0],
    "one test point": lambda t: t[t["test_point"] == t.groupby("run_id")["test_point"].transform("max")],
    "no numbers": lambda t: t.assign(
        **dict.fromkeys(("spearman", "pearson", "slope", "norm_ratio", "norm_spearman", "solver_residual"), np.nan),
        **dict.fromkeys(("grad_norm", "eig_min", "eig_max", "seconds_estimate"), np.nan),
        status="diverged",
    ),
    "zeros": lambda t: t.assign(**dict.fromkeys(("norm_ratio", "eig_max", "eig_min", "grad_norm", "slope"), 0.0)),
    "no ceilings": lambda t: t.drop(columns=["ceiling_spearman", "ceiling_pearson", "width_multiplier"]),
    "one truth": lambda t: t[t["ground_truth"].str.startswith("warm")],
    "descent": lambda t: t[t["fit"] != "certified"],
}


@functools.cache
def changed(variant: str) -> pd.DataFrame:
    return VARIANTS[variant](table("synthetic"))


@functools.cache
def chosen(name: str, variant: str = "") -> pd.DataFrame:
    return select(changed(variant) if variant else table("synthetic"), plots.SPECS[name].where)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", plots.SPECS)
def test_gaps_do_no_harm(name, variant):
    if chosen(name, variant).equals(chosen(name)):
        return  # what is drawn of these very rows is seen above
    made = plots.figure(name, changed(variant), damping=DAMPING)
    if isinstance(made, Styler) or made.figure is None:
        return
    assert "nan" not in (made.alt + made.caption).lower().replace("finance", "").split()
    made.figure.set_layout_engine("none")  # which takes most of the time, and is seen above to do no harm
    made.figure.draw_without_rendering()
    statistics = set(plots.SPECS[name].statistics)
    if variant == "zeros" and statistics & {"norm_ratio", "eig_max", "grad_norm"}:
        assert "Off the log axis" in made.caption
    if variant == "no numbers" and statistics <= {"spearman"}:
        assert "no number" in made.alt or "No number in" in made.caption


def test_new_estimators_need_a_word_alone():
    new = {"ekfac": "rescaled", "identity": "newton_step"}
    renamed = plot_tables.networks().replace({"estimator": new})
    alt = plots.figure("networks_estimators", renamed).alt
    assert "rescaled influence" in alt and "Newton step" in alt
    small = plot_tables.small_mnist()
    small = pd.concat([small, small[small["estimator"] == "exact"].assign(estimator="rescaled")])
    assert "Rescaled influence:" in plots.figure("small_mnist_truths", small).alt


def test_wrong_names_and_columns_are_named():
    rows = table("synthetic")
    with pytest.raises(InputError, match="name = 'iris_dept'"):
        plots.figure("iris_dept", rows)
    with pytest.raises(InputError, match="column = 'norm_ratio'"):
        plots.figure("iris_norms", rows.drop(columns="norm_ratio"))
    with pytest.raises(InputError, match="column = 'optimiser'"):
        plots.figure("networks_table", rows.drop(columns="optimiser"))
    with pytest.raises(InputError, match="column = 'solver'"):
        plots.figure("iris_depth", rows, solver="exact")
    assert plots.figure("iris_depth", rows.drop(columns="optimiser")).figure is not None


def test_show_takes_pictures_and_tables_and_needs_an_alternative_text():
    assert plots.show(drawn("iris_depth"), drawn("networks_table")) is None
    with pytest.raises(InputError, match="alt = ' '"):
        plots.show(drawn("iris_depth")._replace(alt=" "))


def test_show_in_a_notebook_displays_exactly_once():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    code = """import warnings; warnings.simplefilter("error")
import pandas as pd
from fragile_lib import plots
plots.show(plots.figure("iris_depth", pd.DataFrame()))
import matplotlib.pyplot as plt
figure, ax = plt.subplots()
plots.show(plots.Picture(figure, "an empty frame", "caption of it"), pd.DataFrame({"a": [1]}).style)"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the kernel's transport warns, not we
        nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [o for o in notebook.cells[0].outputs if o.output_type != "stream"]
    assert [o.output_type for o in outputs] == ["display_data", "display_data"]
    assert outputs[0].metadata["image/png"] == {"alt": "an empty frame", "caption": "caption of it"}
    assert outputs[0].data["text/plain"] == "an empty frame" and "<table" in outputs[1].data["text/html"]


@pytest.mark.parametrize("name", PUZZLES)
def test_rows_of_a_page_s_own_run_are_drawn_too(name) -> None:
    own = plots.figure(name, table("committed").drop(columns=["run_id", "profile", "n_train", "n_params"]))
    assert own.figure is not None and "run_id" not in own.rows
