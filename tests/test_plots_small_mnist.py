"""The figures of the small-MNIST study on synthetic tables: the texts give the table's numbers, gaps do no harm."""

from __future__ import annotations

import io
import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fragile_lib import plots
from fragile_lib.agreement import bootstrap_interval, compare
from fragile_lib.plots.base import CYCLE
from fragile_lib.plots.small_mnist import with_itself
from fragile_lib.plots.words import number

BLUE, ORANGE = CYCLE[:2]
DECAYS = (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SOLVERS = {  # relative residual and seconds
    "exact": (3e-15, 20.0),
    "exact_ggn": (0.4, 18.0),
    "cg": (1e-5, 60.0),
    "cg_ggn": (0.4, 50.0),
    "minres": (2e-5, 75.0),
    "lissa": (0.1, 200.0),
    "arnoldi": (0.6, 30.0),
    "nystroem": (0.05, 12.0),
    "kfac": (1.7, 3.0),
    "ekfac": (1.2, 4.0),
    "identity": (30.0, 0.5),
    "tracin": (np.nan, 5.0),
    "trak": (np.nan, 9.0),
}
TRUTHS = {"loo_warm": 0.4, "loo_warm_minus_control": 0.45, "loo_tilted": 0.97, "pbrf": 0.99}
OF_RESULTS = [
    plots.by_test_point,
    plots.against_decay,
    plots.solver_page,
    plots.truth_page,
    plots.finish_against_decay,
]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def full() -> pd.DataFrame:
    return make_results()


def make_results(seeds: int = 2, count: int = 8) -> pd.DataFrame:
    rng = np.random.default_rng(11)
    rows = []
    for decay, seed in itertools.product(DECAYS, range(seeds)):
        network = _network(decay, seed, rng)
        for test_choice in ("max_loss", "p50_loss"):
            tests = rng.choice(1000, count, replace=False)
            losses = np.sort(rng.gamma(2, 3, count)) if test_choice == "max_loss" else rng.uniform(0.02, 0.03, count)
            for test_point, loss in zip(tests, losses, strict=True):
                place = {"test_point": float(test_point), "test_choice": test_choice, "test_loss": loss}
                rows += [network | place | row for row in _rows(decay, rng)]
            rows.append(network | {"test_choice": f"{test_choice}_together"} | _row("exact", "loo_warm", 0.9, rng))
    return pd.DataFrame(rows)


def _network(decay: float, seed: int, rng: np.random.Generator) -> dict:
    return {
        "run_id": f"small_mnist-wd{decay:g}",
        "profile": "laptop",
        "dataset": "small_mnist",
        "architecture": "small_cnn",
        "activation": "tanh",
        "weight_decay": decay,
        "n_train": 5500,
        "n_params": 2616,
        "seed": seed,
        "fit": "finished",
        "grad_norm": 10 ** (-5 - 30 * decay * rng.uniform()),
        "eig_min": -0.3 * np.exp(-decay * 300) * rng.uniform(0.5, 1) + decay,
        "eig_max": 20 * rng.uniform(),
    }


def _row(estimator: str, truth: str, value: float, rng: np.random.Generator, train: str = "top_influence") -> dict:
    residual, seconds = SOLVERS.get(estimator, (np.nan, np.nan))
    spearman = float(np.clip(value + 0.15 * rng.normal() * (1.05 - value), -1, 1))
    repeated = truth in ("loo_warm", "group", "loo_scratch")
    return {
        "train_choice": train,
        "estimator": estimator,
        "ground_truth": truth,
        "n_points": 100,
        "pearson": spearman,
        "spearman": spearman,
        "slope": spearman,
        "ceiling_pearson": 0.6 + 0.05 * rng.normal() if repeated else np.nan,
        "ceiling_spearman": 0.6 + 0.05 * rng.normal() if repeated else np.nan,
        "solver_residual": residual * rng.uniform(0.8, 1.2),
        "status": {"lissa": "not_converged", "exact": "indefinite"}.get(estimator, "ok"),
        "seconds_estimate": seconds,
        "seconds_retrain": 100.0,
        "products": 10,
        "memory_mb": 100.0,
    }


def _rows(decay: float, rng: np.random.Generator) -> list[dict]:
    rows = []
    loss = 0.5 * (decay > 0.01) + 0.3 * (decay == 0)
    for truth, value in TRUTHS.items():
        for train in ("top_influence", "p30_influence"):
            weaker = 0.3 * (train == "p30_influence") * (truth != "pbrf")
            rows.append(_row("exact", truth, value - loss * 0.6 - weaker, rng, train))
        if decay == 1e-3:
            for estimator, (residual, _) in SOLVERS.items():
                if estimator != "exact":
                    worse = 0.3 if np.isnan(residual) else 0.2 * residual / (1 + residual)
                    rows.append(_row(estimator, truth, value - worse, rng))
    if decay >= 1e-3:
        rows += [_row("exact", "loo_certified", 0.95, rng, t) | {"fit": "certified"} for t in ("top_influence",)]
    if decay == 1e-3:
        rows.append(_row("exact", "loo_scratch", 0.1, rng, "scratch"))
        for train, value in (("random_groups", 0.5), ("same_class_groups", 0.6), ("top_influence_groups", 0.75)):
            rows += [_row(e, "group", value + 0.1 * (e != "exact"), rng, train) for e in ("exact", "second_order")]
    return rows


def make_points(seeds: int = 1, count: int = 8, k: int = 100, spread: float = 1.5) -> list[dict]:
    rng = np.random.default_rng(4)
    found = []
    for seed, test_point, train in itertools.product(
        range(seeds), range(40, 40 + count), ("top_influence", "p30_influence")
    ):
        estimate = rng.normal(size=k) * np.exp(spread * rng.normal(size=k)) * 1e-3
        noise = rng.normal(size=k) * 1e-3
        truth = {"loo_warm": estimate + noise, "loo_tilted": 0.9 * estimate + 0.1 * noise, "pbrf": estimate}
        found.append(
            {
                "seed": seed,
                "fit": "finished",
                "weight_decay": 0.001,
                "test_choice": "max_loss",
                "train_choice": train,
                "test_point": test_point,
                "index": list(range(k)),
                "estimate": {"exact": estimate.tolist(), "exact_ggn": (0.9 * estimate + 0.2 * noise).tolist()},
                "truth": {name: values.tolist() for name, values in truth.items()},
            }
        )
    return found


def chosen(table: pd.DataFrame, **where) -> pd.DataFrame:
    defaults = {"weight_decay": 0.001, "estimator": "exact", "train_choice": "top_influence", "test_choice": "max_loss"}
    for column, value in (defaults | where).items():
        table = table[table[column] == value]
    return table


def one_network(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["seed"] == 0) & (table["weight_decay"] == 0.001)]


def one_test_point(table: pd.DataFrame) -> pd.DataFrame:
    table = one_network(table)
    return table[table["test_point"] == table["test_point"].iloc[0]]


SINGLE = [plots.by_test_point, plots.against_decay, plots.truth_page]
VARIANTS = {  # a change of the table, and the figures to which it can matter
    "one truth": (lambda t: t[t["ground_truth"] == "loo_tilted"], OF_RESULTS[:4]),
    "one seed": (lambda t: t[t["seed"] == 0], OF_RESULTS),
    "one network": (one_network, SINGLE[1:]),
    "one test point": (one_test_point, OF_RESULTS),
    "no ceilings": (lambda t: t.assign(ceiling_spearman=np.nan), [plots.by_test_point, plots.truth_page]),
    "no column of ceilings": (lambda t: t.drop(columns=["ceiling_spearman", "ceiling_pearson"]), SINGLE),
    "no numbers": (
        lambda t: t.assign(spearman=np.nan, status="diverged", grad_norm=np.nan, eig_min=np.nan),
        OF_RESULTS,
    ),
    "no residuals": (lambda t: t.assign(solver_residual=np.nan), [plots.solver_page]),
    "exact only": (lambda t: t[t["estimator"] == "exact"], [plots.solver_page, plots.truth_page]),
}


@pytest.mark.parametrize(("name", "function"), [(name, f) for name, (_, fs) in VARIANTS.items() for f in fs])
def test_figures_bear_gaps(name, function, full):
    table = VARIANTS[name][0](full)
    before = table.copy()
    picture = function(table)
    png = plots.png_bytes(picture.figure, dpi=60)
    pd.testing.assert_frame_equal(table, before)
    assert Image.open(io.BytesIO(png)).size[0] == 384
    assert picture.alt.endswith(".") and picture.caption.endswith(".")
    assert "nan" not in (picture.alt + picture.caption).lower()


@pytest.mark.parametrize("function", OF_RESULTS, ids=lambda f: f.__name__)
def test_empty_tables_give_the_empty_picture(function, full):
    for table in (pd.DataFrame(), full.iloc[:0], full[full["weight_decay"] == -1]):
        assert function(table).alt.startswith("Empty figure. No rows")


@pytest.mark.parametrize("function", OF_RESULTS, ids=lambda f: f.__name__)
def test_the_order_of_rows_does_not_matter(function, full):
    first, second = function(full), function(full.sample(frac=1, random_state=3))
    assert (first.alt, first.caption) == (second.alt, second.caption)
    assert plots.png_bytes(first.figure, 60) == plots.png_bytes(second.figure, 60)


@pytest.mark.parametrize("function", OF_RESULTS, ids=lambda f: f.__name__)
def test_nothing_is_cut_off_and_files_are_small(function, full):
    png = plots.png_bytes(function(full).figure)
    assert len(png) < 90_000
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0]):
        assert (edge == 255).all()


def test_by_test_point_gives_means_ranges_and_the_count_in_the_papers_range(full):
    picture = plots.by_test_point(full)
    titles = [f"{name}, estimate by Hessian" for name in ("warm-start LOO", "local LOO", "certified LOO")]
    titles += ["PBRF, estimate by Gauss-Newton"]
    assert [ax.get_title() for ax in picture.figure.axes] == titles
    own = (("loo_warm", "Warm-start LOO", "exact"), ("pbrf", "PBRF", "exact_ggn"))
    for truth, name, estimator in own:
        values = chosen(full, ground_truth=truth, estimator=estimator)["spearman"]
        text = (
            f"{name}, training points of largest |influence|, test points of highest loss: "
            f"mean {number(values.mean())}, from {number(values.min())} to {number(values.max())} over 16 test points, "
            f"{values.between(0.38, 0.92).sum()} of them in the paper's range"
        )
        assert text in picture.alt
    assert "8 of highest loss and 8 of median loss, for each of 2 seeds" in picture.caption
    assert "5,500 training examples, 2,616 parameters" in picture.caption and "profile laptop" in picture.caption
    assert (
        "Reduced" not in picture.caption
        and "Reduced scale: profile quick" in plots.by_test_point(full.assign(profile="quick")).caption
    )


def test_by_test_point_orders_test_points_by_loss(full):
    ax = plots.by_test_point(full[full["seed"] == 0]).figure.axes[0]
    rows = chosen(full, ground_truth="loo_warm", seed=0).sort_values("test_loss", ascending=False)
    line = next(line for line in ax.get_lines() if len(line.get_xdata()) == 16)
    x, y = (np.asarray(v, dtype=float) for v in line.get_data())
    np.testing.assert_allclose(y[np.argsort(x)][:8], rows["spearman"])


def dashed(ax):
    """Heights of the dashed lines, by colour."""
    lines = [line for line in ax.get_lines() if line.is_dashed() and len(line.get_ydata())]
    return {line.get_color(): (line.get_ydata()[0], line.get_xdata()) for line in lines}


def repeated(full, decays=DECAYS):
    """Warm-start retraining was repeated, at these decays: 0.61 and 0.27 for the two choices of training points."""
    heights = full["train_choice"].map({"top_influence": 0.61, "p30_influence": 0.27})
    told = (full["ground_truth"] == "loo_warm") & full["weight_decay"].isin(decays)
    return full.assign(ceiling_spearman=heights.where(told))


def test_a_truths_agreement_with_itself_is_drawn_beside_the_correlations(full):
    picture = plots.by_test_point(repeated(full))
    first, *others = picture.figure.axes
    assert {colour: h for colour, (h, _) in dashed(first).items()} == pytest.approx({BLUE: 0.61, ORANGE: 0.27})
    assert not any(dashed(ax) for ax in others)
    assert picture.alt.count("; agreement of the truth with itself 0.61") == 2  # highest and median loss
    assert "Dashed: agreement of the truth with itself" in picture.caption


def test_the_ceiling_stands_at_the_weight_decays_where_a_truth_was_repeated(full):
    picture = plots.against_decay(repeated(full, decays=[0.001]))
    height, ends = dashed(picture.figure.axes[0])[BLUE]
    assert height == pytest.approx(0.61) and ends[0] < DECAYS.index(0.001) < ends[1] < ends[0] + 2
    words = "training points of largest |influence|, weight decay 0.001; agreement of the truth with itself 0.61"
    assert words in picture.alt and "Dashed: " in picture.caption


def test_a_test_point_counts_once_in_the_ceiling_whatever_number_of_estimators_it_has():
    rows = pd.DataFrame({"seed": [2, 2, 2, 3, 3], "test_point": [7, 7, 7, 9, 4]})
    assert with_itself(rows.assign(ceiling_spearman=[0.4, 0.4, 0.4, 0.1, np.nan])) == pytest.approx(0.25)


def test_the_solver_page_has_each_truths_ceiling(full):
    picture = plots.solver_page(repeated(full))
    _, warm, *others = picture.figure.axes
    assert [h for h, _ in dashed(warm).values()] == pytest.approx([0.61]) and not any(dashed(ax) for ax in others)
    assert "agreement of the truth with itself 0.61" in picture.alt and "Dashed: " in picture.caption


def test_pearson_has_no_published_range(full):
    assert "paper's range" not in plots.by_test_point(full, statistic="pearson").alt


def test_against_decay_averages_over_test_points_of_all_seeds(full):
    picture = plots.against_decay(full)
    titles = [ax.get_title() for ax in picture.figure.axes]
    assert [title.split("\n")[0] for title in titles] == ["warm-start LOO", "local LOO", "certified LOO", "PBRF"]
    values = chosen(full, ground_truth="loo_tilted", weight_decay=0.0)["spearman"]
    interval = bootstrap_interval(values.to_numpy())
    assert interval.n == 16
    middle = f"{number(interval.mean)} (95% interval {number(interval.low)} to {number(interval.high)})"
    # the bootstrap depends on the order of values in the last digits alone
    assert f"Local LOO, training points of largest |influence|: {middle} at weight decay 0," in picture.alt
    assert len(plots.against_decay(full[full["ground_truth"] == "pbrf"]).figure.axes) == 1


def test_a_truth_known_after_two_fits_counts_once(full):
    twice = pd.concat([full, full[full["ground_truth"] == "pbrf"].assign(fit="certified", spearman=-1.0)])
    assert plots.against_decay(twice).alt == plots.against_decay(full).alt


def test_solver_page_gives_cost_residual_and_correlation(full):
    picture = plots.solver_page(full)
    rows = chosen(full, estimator="kfac", ground_truth="pbrf")
    residual = chosen(full, estimator="kfac")
    drawn = residual["ground_truth"].isin(["pbrf", "loo_tilted", "loo_certified", "loo_warm"])
    residual = residual[drawn]["solver_residual"].median()
    assert f"K-FAC: relative residual {number(residual)}, 3.00 seconds" in picture.alt
    assert "TRAK: no residual, 9.00 seconds" in picture.alt
    with_pbrf = picture.alt.split("Mean Spearman with PBRF")[1]
    assert f"K-FAC {number(rows['spearman'].mean())}" in with_pbrf
    upper, *lower = picture.figure.axes
    names = ("warm-start LOO", "local LOO", "certified LOO", "PBRF")
    assert [ax.get_title() for ax in lower] == [f"with {name}" for name in names]
    hollow = {line.get_label() for line in upper.get_lines() if line.get_markerfacecolor() == "white"}
    assert hollow == {"LiSSA"} and "flagged by the solver (LiSSA)" in picture.caption
    assert "no\nresidual" in [label.get_text() for label in lower[-1].get_xticklabels()]


def test_solver_page_tells_products_and_memory(full):
    spent = full.assign(products=31.0, memory_mb=1250.4)
    spent.loc[spent["estimator"] == "trak", "products"] = np.nan
    caption = plots.solver_page(spent).caption
    assert "K-FAC (31, 1,250 MB)" in caption and "TRAK (none, 1,250 MB)" in caption
    assert "peak memory" not in plots.solver_page(full.drop(columns=["products"], errors="ignore")).caption


@pytest.mark.parametrize("factor", [1, 1e4])
def test_seconds_of_the_solvers_are_plain_numbers_with_room_between_them(full, factor):
    rows = full.assign(seconds_estimate=full["seconds_estimate"].where(full["estimator"] != "trak", 9 * factor))
    figure = plots.solver_page(rows).figure
    figure.canvas.draw()
    axis, (low, high) = figure.axes[0].xaxis, figure.axes[0].get_xlim()
    labels = [label for label in axis.get_ticklabels(which="both") if low <= label.get_position()[0] <= high]
    assert len(labels) >= 2 and all(float(label.get_text().replace(",", "")) > 0 for label in labels)
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in zip(boxes[:-1], boxes[1:], strict=True))


def test_truth_page_has_a_line_for_each_truth_and_kind_of_group(full):
    picture = plots.truth_page(full)
    # four truths, three of them at the 30th percentile too, one from scratch, three kinds of group
    assert len(picture.figure.axes[0].get_yticks()) == 11
    rows = chosen(full, ground_truth="loo_warm")
    mean, ceiling = rows["spearman"].mean(), rows["ceiling_spearman"].mean()
    assert f"Warm-start LOO, Hessian: mean {number(mean)} (95% interval" in picture.alt
    assert f"agreement of the truth with itself {number(ceiling)}" in picture.alt
    for estimator, name in (("exact", "Hessian"), ("second_order", "Gauss-Newton, second order")):
        mean = chosen(full, ground_truth="group", train_choice="random_groups", estimator=estimator)["spearman"].mean()
        assert f"group removal, random groups, {name}: mean {number(mean)}" in picture.alt.replace("Group", "group")


def test_finish_against_decay_counts_what_is_certified_and_indefinite(full):
    picture = plots.finish_against_decay(full, damping=0.01, limit=1e-5)
    networks = full[full["fit"] == "finished"].drop_duplicates(["weight_decay", "seed"])
    below = (networks["eig_min"] < -0.01).sum()
    assert 0 < below < len(networks)
    certified = full[full["fit"] == "certified"].drop_duplicates(["weight_decay", "seed"])
    total, below = len(networks) + len(certified), below + (certified["eig_min"] < -0.01).sum()
    assert f"indefinite: {below} of {total}" in picture.alt and f"{below} of {total}" in picture.caption
    lower = picture.figure.axes[1]
    assert any(np.allclose(line.get_ydata(), -0.01) for line in lower.get_lines())
    certificates = networks[["weight_decay", "seed", "grad_norm", "eig_min"]].assign(tolerance=1e-5)
    assert "within the limit 1.0e-5" in plots.finish_against_decay(certificates).alt
    assert "within" not in plots.finish_against_decay(full).alt


def test_together_pools_the_pairs_of_all_test_points():
    given = make_points()
    picture = plots.together(given)
    axes = [ax for ax in picture.figure.axes if ax.axison]
    assert len(axes) >= 3 and all(ax.get_xlim() == ax.get_ylim() for ax in axes)
    for ax, truth in zip(axes, ("loo_warm", "loo_tilted", "pbrf"), strict=True):
        top = [p for p in given if p["train_choice"] == "top_influence"]
        estimator = "exact_ggn" if truth == "pbrf" else "exact"
        estimate = np.concatenate([p["estimate"][estimator] for p in top])
        agreement = compare(estimate, np.concatenate([p["truth"][truth] for p in top]))
        text = f"Pearson {number(agreement.pearson)}, Spearman {number(agreement.spearman)}"
        assert text in picture.alt and text.replace(", ", "\n") in ax.get_title()
    assert "800 pairs" in picture.alt and "8 test points by colour, of 1 seed" in picture.caption


def test_together_with_gaps_two_seeds_one_truth_and_nothing():
    given = make_points(seeds=2, count=3, k=10)
    given[0]["truth"]["loo_warm"][3] = None
    for p in given:
        p["truth"] = {"loo_warm": p["truth"]["loo_warm"]}
    picture = plots.together(given)
    plots.png_bytes(picture.figure, 60)
    assert "29 pairs" in picture.alt and "mean over 2 seeds" in picture.alt
    assert "10 pairs" in plots.together(given, {"train_choice": "p30_influence", "seed": 1, "test_point": 41}).alt
    for nothing in ([], [{**given[0], "test_choice": "p50_loss"}], [{**given[0], "truth": {"loo_warm": None}}]):
        assert "No points" in plots.together(nothing).alt


def test_damped_or_not_shows_the_test_point_with_most_minima():
    given = [p for p in make_points(k=12) if p["train_choice"] == "top_influence"]
    for reached, p in enumerate(given):
        undamped = np.asarray(p["estimate"]["exact"]) * 3
        truth = undamped * np.where(np.arange(12) <= reached + 2, 1.0, np.nan)
        p["fit"], p["truth"] = "certified", {"loo_certified": truth.tolist()}
        p["estimate"]["exact_undamped"] = undamped.tolist()
    picture = plots.damped_or_not(given)
    assert len([ax for ax in picture.figure.axes if ax.axison]) == 2
    assert "10 points of 1 seed" in picture.alt and "undamped" in picture.alt
    assert "slope 3" in picture.alt and "slope 1" in picture.alt  # damped estimates are a third of the truth here
    for nothing in ([], make_points(k=12)):
        assert "No points" in plots.damped_or_not(nothing).alt


def test_truth_page_leaves_out_what_was_reached_for_too_few(full):
    few = full[(full["ground_truth"] == "pbrf") & (full["train_choice"] == "top_influence")]
    picture = plots.truth_page(pd.concat([full, few.assign(spearman=-1.0, status="not_certified")]))
    shown = chosen(full, ground_truth="pbrf")["spearman"].mean()
    assert f"PBRF, Hessian: mean {number(shown)} (95%" in picture.alt.replace("Pbrf", "PBRF")
    assert "Not drawn" in picture.caption and "Not drawn" not in plots.truth_page(full).caption


def test_truth_page_shows_undamped_estimates_beside_the_others(full):
    certified = full[(full["ground_truth"] == "loo_tilted") & (full["estimator"] == "exact")]
    both = [certified.assign(estimator=name, ground_truth="loo_certified") for name in ("exact", "exact_undamped")]
    picture = plots.truth_page(pd.concat([full[full["ground_truth"] != "loo_certified"], *both]))
    assert "Certified LOO, Hessian, undamped" in picture.alt
