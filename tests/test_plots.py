"""Every figure on synthetic tables of many shapes: what is drawn equals what was computed, and the texts say it."""

from __future__ import annotations

import functools
import inspect
import io
import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from PIL import Image

from fragile_lib import plots
from fragile_lib.agreement import bootstrap_interval, compare
from fragile_lib.tools.errors import InputError

OF_RESULTS = [
    plots.correlation_against,
    plots.parameter_change_norms,
    plots.top_eigenvalue,
    plots.smallest_eigenvalue,
    plots.solver_comparison,
    plots.finished_or_not,
    plots.outcomes,
    plots.gradient_norm,
]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@functools.cache
def cached_results(*args) -> pd.DataFrame:
    return make_results(*args)


def results(depths=(1, 4, 8), widths=(), seeds=4, decays=(0.005, 0.0), activations=("relu",)) -> pd.DataFrame:
    return cached_results(tuple(depths), widths, seeds, decays, activations).copy()


def make_results(depths, widths, seeds, decays, activations) -> pd.DataFrame:
    """A table like results.csv with all variants; depth hurts, decay helps, deep runs have every outcome."""
    rng = np.random.default_rng(5)
    sizes = [(d, 5) for d in depths] + [(1, w) for w in widths]
    rows = []
    for (depth, width), activation, decay, seed in itertools.product(sizes, activations, decays, range(seeds)):
        certificate = {
            "grad_norm": 10 ** (-6 + depth / 2 + rng.normal()),
            "eig_max": 2.0**depth * rng.uniform(1, 2),
            "eig_min": rng.normal() * 1e-3 * depth,
        }
        for estimator, fit, test_choice, train_choice in itertools.product(
            ("exact", "exact_ggn", "lissa"),
            ("descent", "certified"),
            ("max_loss", "p50_loss"),
            ("top_influence", "all"),
        ):
            truths = ("loo_warm", "loo_warm_minus_control") if fit == "descent" else ("loo_certified",)
            for truth in truths:
                value = float(np.clip(1.05 - 0.1 * depth - 0.2 * (decay == 0) + rng.normal() * 0.1, -1, 1))
                status = "ok"
                if depth == 8 and decay == 0:
                    status = ("constant", "indefinite", "diverged", "ok")[seed % 4]
                if fit == "certified" and depth == 8 and seed == 3:
                    status = "not_certified"
                if status not in ("ok", "indefinite"):
                    value = np.nan
                rows.append(
                    {
                        "run_id": f"iris-{activation}-d{depth}-w{width}-wd{decay:g}",
                        "profile": "quick",
                        "dataset": "iris",
                        "activation": activation,
                        "depth": depth,
                        "width": width,
                        "weight_decay": decay,
                        "seed": seed,
                        "test_choice": test_choice,
                        "train_choice": train_choice,
                        "estimator": estimator,
                        "ground_truth": truth,
                        "fit": fit,
                        "spearman": value,
                        "pearson": value,
                        "slope": value * 2,
                        "norm_spearman": value,
                        "norm_ratio": np.exp(depth * rng.normal()) if np.isfinite(value) else np.nan,
                        "status": status,
                        **certificate,
                    }
                )
    return pd.DataFrame(rows)


def points(seeds=3, k=12, spread=0.0) -> list[dict]:
    rng = np.random.default_rng(2)
    found = []
    for seed in range(seeds):
        estimate = rng.normal(size=k) * np.exp(spread * rng.normal(size=k))
        for fit in ("descent", "certified"):
            truth = {"loo_certified": 0.5 * estimate}
            if fit == "descent":
                truth = {"loo_warm": estimate + rng.normal(size=k), "loo_warm_minus_control": -estimate}
            found.append(
                {
                    "seed": seed,
                    "fit": fit,
                    "test_choice": "max_loss",
                    "train_choice": "top_influence",
                    "index": list(range(k)),
                    "estimate": {"exact": estimate.tolist()},
                    "truth": {name: values.tolist() for name, values in truth.items()},
                }
            )
    return found


def main_rows(table: pd.DataFrame, **where) -> pd.DataFrame:
    chosen = {
        "fit": "descent",
        "estimator": "exact",
        "ground_truth": "loo_warm",
        "test_choice": "max_loss",
        "train_choice": "top_influence",
    }
    for column, value in (chosen | where).items():
        table = table[table[column] == value]
    return table


def bars(ax) -> dict[str, ErrorbarContainer]:
    return {c.get_label(): c for c in ax.containers if isinstance(c, ErrorbarContainer)}


def drawn(container: ErrorbarContainer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    line, _, (lines,) = container
    segments = lines.get_segments()
    low = np.array([s[0][1] if len(s) else np.nan for s in segments])
    high = np.array([s[1][1] if len(s) else np.nan for s in segments])
    return np.asarray(line.get_ydata()), low, high


# -- every figure on every table ---------------------------------------------------------------------------------------


def tables() -> dict[str, pd.DataFrame]:
    full = results()
    blank = full.copy()
    blank[["spearman", "norm_ratio", "norm_spearman", "eig_max", "eig_min", "grad_norm"]] = np.nan
    zeros = full.copy()
    zeros[["norm_ratio", "eig_max", "eig_min", "grad_norm"]] = 0.0
    return {
        "full": full,
        "one depth": results(depths=(1,)),
        "one seed": results(seeds=1),
        "one depth, one seed, one decay": results(depths=(1,), seeds=1, decays=(0.0,)),
        "three decays": results(decays=(0.005, 0.001, 0.0)),
        "without certified": full[full["fit"] == "descent"],
        "without lissa": full[full["estimator"] == "exact"],
        "only tanh": full.assign(activation="tanh"),
        "no numbers": blank,
        "zeros": zeros,
        "some depths missing": full.assign(depth=full["depth"].where(full["depth"] != 4)),
        "no rows": full.iloc[:0],
        "nothing at all": pd.DataFrame(),
    }


ONLY_FOR = {  # tables that can matter to these figures alone
    "three decays": (plots.finished_or_not, plots.outcomes, plots.correlation_against),
    "without lissa": (plots.solver_comparison,),
    "without certified": (plots.finished_or_not, plots.outcomes, plots.gradient_norm),
    "only tanh": (plots.correlation_against, plots.outcomes),
    "one depth": (plots.correlation_against, plots.finished_or_not, plots.outcomes),
}
PAIRS = [(f, name) for name in tables() for f in ONLY_FOR.get(name, OF_RESULTS)]


@pytest.mark.parametrize(("function", "name"), PAIRS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_every_figure_draws_every_table(function, name):
    table = tables()[name]
    before = table.copy()
    picture = function(table)
    png = plots.png_bytes(picture.figure, dpi=60)
    pd.testing.assert_frame_equal(table, before)  # pure
    assert Image.open(io.BytesIO(png)).size[0] == 384
    assert picture.alt and picture.caption
    assert picture.alt.endswith(".") and picture.caption.endswith(".")
    if name == "zeros" and function in (plots.top_eigenvalue, plots.gradient_norm, plots.parameter_change_norms):
        assert "lie off the log axis" in picture.caption
    assert "nan" not in (picture.alt + picture.caption).lower()
    if table.empty:
        assert "No rows" in picture.alt and "No rows" in picture.caption


@pytest.mark.parametrize("function", OF_RESULTS, ids=lambda f: f.__name__)
def test_figures_are_deterministic_whatever_the_order_of_rows(function):
    table = results(depths=(1, 8))
    first, second = function(table), function(table.sample(frac=1, random_state=3))
    assert (first.alt, first.caption) == (second.alt, second.caption)
    assert plots.png_bytes(first.figure, 60) == plots.png_bytes(second.figure, 60)


@pytest.mark.parametrize("function", OF_RESULTS, ids=lambda f: f.__name__)
def test_size_background_and_fit_of_the_published_picture(function):
    picture = function(results(depths=range(1, 9), seeds=10))
    png = plots.png_bytes(picture.figure)
    image = Image.open(io.BytesIO(png))
    assert image.mode == "P" and "transparency" not in image.info
    assert 980 <= image.size[0] <= 1010
    assert len(png) < 45_000
    pixels = np.asarray(image.convert("RGB"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0]):  # white margins: nothing is cut off
        assert (edge == 255).all()
    assert (pixels[:, -1] == 255).mean() > 0.9  # grid lines may end there, no letters


@pytest.mark.parametrize("function", OF_RESULTS, ids=lambda f: f.__name__)
def test_no_labels_overlap(function):
    figure = function(results(depths=range(1, 9), seeds=10)).figure
    with plots.theme():
        figure.draw_without_rendering()
    for ax in figure.axes:
        for minor in (False, True):
            boxes = [t.get_window_extent() for t in ax.get_xticklabels(minor=minor) if t.get_text()]
            assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(sorted(boxes, key=lambda b: b.x0)))
    for legend in figure.legends:
        assert figure.bbox.width >= legend.get_window_extent().width


def test_missing_columns_are_named():
    with pytest.raises(InputError, match="column = 'norm_ratio'"):
        plots.parameter_change_norms(results().drop(columns="norm_ratio"))
    with pytest.raises(InputError, match="where = 'solver'"):
        plots.correlation_against(results(), where={"solver": "exact"})


# -- correlations ------------------------------------------------------------------------------------------------------


def test_line_is_the_mean_and_bars_are_the_interval():
    table = results(seeds=6)
    ax = plots.correlation_against(table, "depth").figure.axes[0]
    assert set(bars(ax)) == {"weight decay 0.005", "weight decay 0"}
    for decay in (0.005, 0.0):
        rows = main_rows(table, weight_decay=decay)
        expected = [bootstrap_interval(rows.loc[rows["depth"] == d, "spearman"]) for d in (1, 4, 8)]
        mean, low, high = drawn(bars(ax)[f"weight decay {decay:g}"])
        np.testing.assert_allclose(mean, [e.mean for e in expected])
        np.testing.assert_allclose(low, [e.low for e in expected])
        np.testing.assert_allclose(high, [e.high for e in expected])


def test_every_seed_is_a_dot_and_flagged_ones_are_hollow():
    table = results()
    ax = plots.correlation_against(table, "depth").figure.axes[0]
    rows = main_rows(table)
    dots = np.concatenate(
        [c.get_offsets()[:, 1] for c in ax.collections if hasattr(c, "get_sizes") and len(c.get_offsets())]
    )
    np.testing.assert_allclose(np.sort(dots), np.sort(rows["spearman"].dropna()))
    hollow = [
        c for c in ax.collections if hasattr(c, "get_sizes") and len(c.get_offsets()) and not len(c.get_facecolor())
    ]
    flagged = rows[(rows["status"] == "indefinite")]
    np.testing.assert_allclose(np.concatenate([c.get_offsets()[:, 1] for c in hollow]), flagged["spearman"])


def test_negative_correlations_stay_negative_and_zero_is_marked():
    table = results()
    table["spearman"] = -table["spearman"].abs()
    picture = plots.correlation_against(table)
    ax = picture.figure.axes[0]
    assert ax.get_ylim()[0] < table["spearman"].min() and ax.get_ylim()[1] >= 1
    assert any(np.allclose(line.get_ydata(), 0) for line in ax.get_lines())
    assert (drawn(bars(ax)["weight decay 0.005"])[0] < 0).all()
    assert "-0." in picture.alt


def test_missing_numbers_are_counted_under_the_axis():
    ax = plots.correlation_against(results()).figure.axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "4", "8"]
    assert [t.get_text() for t in ax.get_xticklabels(minor=True)] == ["", "", "2\N{EN DASH}4"]
    complete = plots.correlation_against(results(depths=(1, 4))).figure.axes[0]
    assert complete.get_xticklabels(minor=True) == []


def test_alt_and_caption_hold_the_numbers():
    table = results()
    picture = plots.correlation_against(table, paper={(1, 0.005): 0.97, (1, 0.0): 0.508, 3: 0.5})
    for decay, depth in itertools.product((0.005, 0.0), (1, 8)):
        rows = main_rows(table, weight_decay=decay, depth=depth)
        assert f"{rows['spearman'].mean():.2f}" in picture.alt
    assert "paper: 0.97 at depth 1 (weight decay 0.005)" in picture.alt.lower()
    assert "0.51 at depth 1 (weight decay 0)" in picture.alt
    assert "0.50" not in picture.alt  # the table has no depth 3
    for text in ("Iris", "ReLU", "width 5", "profile quick", "4 seeds", "95% bootstrap", "too short", "constant 1"):
        assert text in picture.caption, text
    assert "diverged 1" in picture.caption and "indefinite 1" in picture.caption


def test_axis_width_takes_the_depth_at_which_widths_were_studied():
    table = results(widths=(8, 50))
    ax = plots.correlation_against(table, "width", paper={8: 0.82}).figure.axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["5", "8", "50"]
    rows = main_rows(table, depth=1, weight_decay=0.005).groupby("width")["spearman"].mean()
    np.testing.assert_allclose(drawn(bars(ax)["weight decay 0.005"])[0], rows)
    depth = plots.correlation_against(table, "depth").figure.axes[0]
    rows = main_rows(table, width=5, weight_decay=0.005).groupby("depth")["spearman"].mean()
    np.testing.assert_allclose(drawn(bars(depth)["weight decay 0.005"])[0], rows)


def test_activation_relu_by_default_and_by_style_both():
    table = results(activations=("relu", "tanh"))
    relu = main_rows(table, activation="relu", weight_decay=0.0, depth=1)["spearman"].mean()
    assert drawn(bars(plots.correlation_against(table).figure.axes[0])["weight decay 0"])[0][0] == pytest.approx(relu)
    both = plots.correlation_against(table, style="activation")
    assert len(bars(both.figure.axes[0])) == 4
    tanh = main_rows(table, activation="tanh", weight_decay=0.0, depth=1)["spearman"].mean()
    only = plots.correlation_against(table, where={"activation": "tanh"}, hue=None)
    assert f"Weight decay 0, tanh: {tanh:.2f}" in both.alt
    assert "tanh" in only.caption


def test_where_chooses_other_rows():
    table = results()
    ax = plots.correlation_against(table, where={"test_choice": "p50_loss", "train_choice": "all"}).figure.axes[0]
    rows = main_rows(table, test_choice="p50_loss", train_choice="all", weight_decay=0.005, depth=1)
    assert drawn(bars(ax)["weight decay 0.005"])[0][0] == pytest.approx(rows["spearman"].mean())


def test_slope_has_a_line_at_one():
    table = results()
    table.loc[table["depth"] == 8, "slope"] *= 1000
    ax = plots.correlation_against(table, statistic="slope").figure.axes[0]
    assert ax.get_yscale() == "symlog"
    assert any(np.allclose(line.get_ydata(), 1) for line in ax.get_lines())


def test_solver_comparison_pairs_by_seed():
    table = results(seeds=5)
    lost = (table["estimator"] == "lissa") & (table["seed"] == 0)
    table.loc[lost, ["spearman", "status"]] = [np.nan, "solver_diverged"]
    picture = plots.solver_comparison(table)
    rows = [main_rows(table, estimator=e, weight_decay=0.005, depth=1).set_index("seed") for e in ("lissa", "exact")]
    difference = (rows[0]["spearman"] - rows[1]["spearman"]).dropna()
    assert len(difference) == 4
    lower = picture.figure.axes[1]
    assert drawn(bars(lower)["weight decay 0.005"])[0][0] == pytest.approx(difference.mean())
    assert "LiSSA minus exact, weight decay 0.005" in picture.alt and f"{difference.mean():.2f}" in picture.alt
    assert "solver diverged" in picture.caption


def test_solver_comparison_without_lissa_says_so():
    table = results()
    assert "no difference to show" in plots.solver_comparison(table[table["estimator"] != "lissa"]).alt


def test_finished_or_not_has_a_panel_for_each_fit_and_decay():
    table = results()
    picture = plots.finished_or_not(table)
    axes = picture.figure.axes
    assert [ax.get_title() for ax in axes] == [
        "descent, decay 0.005",
        "descent, decay 0",
        "certified, decay 0.005",
        "certified, decay 0",
    ]
    assert set(bars(axes[0])) == {"Hessian", "Hessian, control subtracted", "GGN"}
    assert set(bars(axes[3])) == {"Hessian", "GGN"}
    assert len({ax.get_ylim() for ax in axes}) == 1
    rows = main_rows(table, ground_truth="loo_warm_minus_control", weight_decay=0.005, depth=4)
    assert drawn(bars(axes[0])["Hessian, control subtracted"])[0][1] == pytest.approx(rows["spearman"].mean())
    rows = main_rows(
        table, fit="certified", ground_truth="loo_certified", estimator="exact_ggn", weight_decay=0.0, depth=1
    )
    assert drawn(bars(axes[3])["GGN"])[0][0] == pytest.approx(rows["spearman"].mean())
    assert f"{rows['spearman'].mean():.2f} at depth 1" in picture.alt


def test_finished_or_not_names_what_is_missing():
    table = results(decays=(0.01, 0.005, 0.0))
    picture = plots.finished_or_not(table[(table["fit"] == "descent") & (table["estimator"] == "exact")])
    assert len(picture.figure.axes) == 2
    for text in ("not run", "gradient descent: GGN", "certified optimum: Hessian", "Of 3 values of weight decay"):
        assert text in picture.caption, text


# -- norms, eigenvalues, gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "column", "scale"),
    [
        (plots.parameter_change_norms, "norm_ratio", "log"),
        (plots.top_eigenvalue, "eig_max", "log"),
        (plots.smallest_eigenvalue, "eig_min", "symlog"),
    ],
)
def test_sizes_are_medians_on_a_log_axis(function, column, scale):
    table = results(seeds=7)
    picture = function(table)
    ax = picture.figure.axes[0]
    assert ax.get_yscale() == scale
    rows = main_rows(table, weight_decay=0.005)
    expected = [bootstrap_interval(rows.loc[rows["depth"] == d, column], np.median) for d in (1, 4, 8)]
    mean, low, high = drawn(bars(ax)["weight decay 0.005"])
    np.testing.assert_allclose(mean, [e.mean for e in expected])
    np.testing.assert_allclose(low, [e.low for e in expected])
    np.testing.assert_allclose(high, [e.high for e in expected])
    assert "Median" in picture.caption


def test_norms_have_a_line_at_one_and_a_panel_of_ranks():
    table = results()
    upper, lower = plots.parameter_change_norms(table).figure.axes
    assert any(np.allclose(line.get_ydata(), 1) for line in upper.get_lines())
    rows = main_rows(table, weight_decay=0.005, depth=1)
    assert drawn(bars(lower)["weight decay 0.005"])[0][0] == pytest.approx(rows["norm_spearman"].mean())


def test_smallest_eigenvalue_counts_the_indefinite():
    table = results()
    picture = plots.smallest_eigenvalue(table, damping=2e-3)
    rows = main_rows(table)
    below = (rows["eig_min"] < -2e-3).sum()
    assert 0 < below < len(rows)
    assert f"indefinite: {below} of {len(rows)}" in picture.alt and f"{below} of {len(rows)}" in picture.caption
    assert any(np.allclose(line.get_ydata(), -2e-3) for line in picture.figure.axes[0].get_lines())


def test_gradient_norm_from_results_and_from_certificates():
    table = results()
    first = plots.gradient_norm(table)
    assert len(bars(first.figure.axes[0])) == 4
    certificates = table.drop_duplicates(["depth", "weight_decay", "seed", "fit"])
    certificates = certificates[["depth", "weight_decay", "seed", "fit", "grad_norm", "status"]]
    second = plots.gradient_norm(certificates)
    assert first.alt == second.alt
    assert second.figure.axes[0].get_yscale() == "log"
    descent = main_rows(table, weight_decay=0.005, depth=1)["grad_norm"].median()
    assert f"{descent:.1e}".replace("e-0", "e-") in first.alt


# -- outcomes ----------------------------------------------------------------------------------------------------------


def test_outcomes_count_every_seed_once():
    table = results()
    picture = plots.outcomes(table)
    axes = picture.figure.axes
    assert len(axes) == 4
    for ax in axes:
        heights = np.sum([[bar.get_height() for bar in c] for c in ax.containers], axis=0)
        np.testing.assert_array_equal(heights, [4, 4, 4])
    assert "Outcomes of 48 fits" in picture.caption
    rows = main_rows(table, weight_decay=0.0)
    assert f"{(rows['status'] == 'constant').sum()} constant (1 at depth 8)" in picture.alt
    assert "2 not certified" not in picture.alt and "not certified (1 at depth 8)" in picture.alt


def test_outcomes_of_certificates_without_fit_and_with_an_unknown_status():
    frame = pd.DataFrame({"depth": [1, 1, 2], "weight_decay": 0.0, "seed": [0, 1, 0], "status": ["ok", "melted", None]})
    picture = plots.outcomes(frame)
    assert len(picture.figure.axes) == 1
    assert "2 ok and 1 melted (1 at depth 1)" in picture.alt


# -- scatter -----------------------------------------------------------------------------------------------------------


def test_scatter_draws_the_points_on_one_scale_with_the_identity():
    given = points()
    picture = plots.scatter_estimate_truth(given)
    axes = [ax for ax in picture.figure.axes if ax.axison]
    assert len(axes) == 3
    for ax in axes:
        assert ax.get_xlim() == ax.get_ylim()
        assert ax.get_aspect() == 1
    xy = axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(xy[:, 0], given[0]["estimate"]["exact"])
    np.testing.assert_allclose(xy[:, 1], given[0]["truth"]["loo_warm"])
    mean = np.mean(
        [compare(p["estimate"]["exact"], p["truth"]["loo_warm"]).spearman for p in given if p["fit"] == "descent"]
    )
    assert f"Spearman {mean:.2f}" in axes[0].get_title() and f"Spearman {mean:.2f}" in picture.alt
    assert "Spearman -1.00, slope -1.00" in picture.alt  # the wrong sign shows
    assert "Spearman 1.00, slope 0.50" in axes[2].get_title()
    assert "3 seeds" in picture.caption


@pytest.mark.parametrize(("seeds", "combinations"), [(1, 1), (2, 2), (3, 3), (12, 3)])
def test_scatter_shapes(seeds, combinations):
    chosen = plots.scatter.COMBINATIONS[:combinations]
    picture = plots.scatter_estimate_truth(points(seeds, k=20), chosen)
    png = plots.png_bytes(picture.figure)
    assert len(png) < 45_000
    assert ("1 seed," in picture.caption) == (seeds == 1)


def test_scatter_of_very_different_sizes_is_symlog():
    ax = plots.scatter_estimate_truth(points(spread=3)).figure.axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("symlog", "symlog")
    linear = plots.scatter_estimate_truth(points(spread=3), scale="linear").figure.axes[0]
    assert linear.get_xscale() == "linear"


def test_scatter_with_nulls_constants_and_nothing():
    given = points(2)
    given[0]["truth"]["loo_warm"][3] = None
    given[2]["truth"]["loo_warm"] = [0.0] * 12
    given[1]["estimate"]["exact"] = [None] * 12
    given[3]["estimate"]["exact"] = None
    picture = plots.scatter_estimate_truth(given)
    plots.png_bytes(picture.figure, 60)
    assert "no number, 1 constant, 1 diverged" in picture.alt
    for nothing in ([], given[:0], [{**given[0], "test_choice": "p50_loss"}]):
        assert "No points" in plots.scatter_estimate_truth(nothing).alt


# -- showing -----------------------------------------------------------------------------------------------------------


def test_show_outside_of_a_notebook_draws_and_returns():
    assert plots.show(*plots.correlation_against(results())) is None
    with pytest.raises(InputError, match="alt = ' '"):
        plots.show(plots.correlation_against(results()).figure, " ")


def test_show_in_a_notebook_displays_exactly_once():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    code = """
        import warnings; warnings.simplefilter("error")
        import pandas as pd
        from fragile_lib import plots
        plots.show(*plots.correlation_against(pd.DataFrame()))
        import matplotlib.pyplot as plt
        figure, ax = plt.subplots()
        plots.show(figure, "an empty frame", "caption of it")
    """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(inspect.cleandoc(code))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the kernel's transport warns, not we
        nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [o for o in notebook.cells[0].outputs if o.output_type != "stream"]
    assert [o.output_type for o in outputs] == ["display_data", "display_data"]
    assert outputs[1].metadata["image/png"] == {"alt": "an empty frame", "caption": "caption of it"}
    assert outputs[0].metadata["image/png"]["alt"].startswith("Empty figure. No rows")
    assert outputs[0].data["text/plain"] == outputs[0].metadata["image/png"]["alt"]
