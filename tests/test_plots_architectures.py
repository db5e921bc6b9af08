"""The figures and the table over architectures on a synthetic table: they give its numbers, and gaps do no harm."""

from __future__ import annotations

import io
import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from fragile_lib import plots
from fragile_lib.agreement import bootstrap_interval
from fragile_lib.plots.architectures import GAP, _apart
from fragile_lib.plots.architectures_rows import rounded
from fragile_lib.study.collect import COLUMNS
from fragile_lib.tools.errors import InputError

NETWORKS = {  # depth, parameters, width, name, mean Spearman on MNIST with decay
    "small_cnn": (7, 2_616, 1.0, "small CNN", 0.85),
    "lenet": (5, 61_706, 1.0, "LeNet", 0.5),
    "vgg13": (13, 148_706, 0.125, "VGG13", 0.3),
    "vgg14": (14, 185_762, 0.125, "VGG14", 0.25),
    "resnet18": (18, 176_258, 0.125, "ResNet-18", 0.1),
    "resnet50": (50, 375_618, 0.125, "ResNet-50", -0.2),
}
ESTIMATORS = {"lissa": 10.0, "cg_ggn": 12.0, "ekfac": 5.0, "identity": 0.4}  # seconds
GROUPS = ("random_groups", "same_class_groups", "top_influence_groups")
FIGURES = [
    plots.over_architectures,
    plots.estimators_by_architecture,
    plots.further_axes,
    plots.groups_and_scratch,
    plots.longer_retraining,
    plots.costs,
]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def full() -> pd.DataFrame:
    return make_results()


@pytest.fixture(scope="module")
def pictures(full) -> dict:
    """Each figure of the full table, drawn once for all tests."""
    return {function: function(full) for function in FIGURES}


def make_results() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    runs = list(itertools.product(("mnist", "cifar10"), NETWORKS, (0.001, 0.0), ["adam"], [0]))
    runs += [("mnist", a, 0.001, "adam", s) for a in ("small_cnn", "lenet") for s in (1, 2, 3)]
    runs += [("mnist", "lenet", 0.001, o, 0) for o in ("sgd", "nesterov", "rmsprop")]
    return pd.DataFrame([row for run in runs for row in _rows_of(*run, rng)])


def _rows_of(dataset: str, architecture: str, decay: float, optimiser: str, seed: int, rng) -> list[dict]:
    depth, n_params, width, _, level = NETWORKS[architecture]
    level -= 0.15 * (decay == 0) - 0.1 * (dataset == "cifar10")
    network = dict.fromkeys(COLUMNS, np.nan) | {
        "run_id": f"{dataset}-{architecture}-wd{decay:g}-{optimiser}-s{seed}",
        "profile": "laptop",
        "dataset": dataset,
        "architecture": architecture,
        "depth": depth,
        "weight_decay": decay,
        "n_train": 500,
        "n_params": n_params + 144 * (dataset == "cifar10"),
        "width_multiplier": width,
        "norm": "batch",
        "optimiser": optimiser,
        "seed": seed,
        "fit": "trained",
        "status": "ok",
        "n_points": 40,
        "seconds_retrain": n_params**0.5,
    }

    def row(value: float, estimator: str, truth: str, train: str, **more) -> dict:
        noisy = np.clip(value + 0.12 * rng.normal(), -0.95, 0.99)
        seconds = ESTIMATORS.get(estimator, np.nan) * (n_params / 60_000) ** 0.7
        named = {"estimator": estimator, "ground_truth": truth, "train_choice": train, "seconds_estimate": seconds}
        return network | named | {"spearman": noisy, "pearson": np.clip(noisy + 0.05, -1, 1), "slope": noisy} | more

    rows = []
    for choice, first in (("max_loss", 10), ("p50_loss", 50)):
        for test_point in range(first, first + 3):
            place = {"test_choice": choice, "test_point": float(test_point)}
            for i, e in enumerate(ESTIMATORS):
                for truth, train in itertools.product(
                    ("loo_warm", "loo_warm_minus_control"), ("top_influence", "random")
                ):
                    again = {"ceiling_spearman": 0.6 + 0.4 * level, "ceiling_pearson": 0.7 + 0.3 * level}
                    again = again if test_point == 10 else {}
                    value = level - 0.05 * i - 0.3 * (train == "random")
                    rows.append(row(value, e, truth, train, **place, **again))
                if architecture == "resnet18" and decay:
                    rows += [row(0.1 * k, e, "group", g, **place, n_points=10) for k, g in enumerate(GROUPS)]
            if (dataset, architecture, optimiser, seed, decay) == ("mnist", "lenet", "adam", 0, 0.001):
                rows.append(row(0.5, "lissa", "loo_warm", "scratch", **place))
                rows.append(row(0.05, "lissa", "loo_scratch", "scratch", **place, ceiling_spearman=0.1))
                rows.append(row(-0.1, "loo_warm", "loo_scratch", "scratch", **place))
                again = {"ceiling_spearman": 0.95} if test_point == 10 else {}
                for e, truth in itertools.product(ESTIMATORS, ("loo_warm_0.25", "loo_warm_1")):
                    rows.append(row(0.8, e, truth, "top_influence", **place, **again))
        rows.append(row(0.9, "lissa", "loo_warm", "top_influence", test_choice=f"{choice}_together"))
    return rows


def chosen(table: pd.DataFrame, **where) -> pd.Series:
    defaults = {"dataset": "mnist", "weight_decay": 0.001, "optimiser": "adam", "seed": 0, "estimator": "lissa"}
    defaults |= {"ground_truth": "loo_warm", "test_choice": "max_loss", "train_choice": "top_influence"}
    for column, value in (defaults | where).items():
        table = table[table[column] == value]
    return table["spearman"]


SIZES, SOLVERS, FURTHER, GROUPED, LONGER, COSTS = FIGURES
VARIANTS = {  # a change of the table, and the figures to which it can matter
    "one data set": (lambda t: t[t["dataset"] == "cifar10"], [SIZES, FURTHER, GROUPED]),
    "two networks": (lambda t: t[t["architecture"].isin(["lenet", "resnet18"])], [SOLVERS]),
    "one network": (lambda t: t[t["run_id"] == "mnist-lenet-wd0.001-adam-s0"], [SIZES, GROUPED, LONGER, COSTS]),
    "one test point": (lambda t: t[t["test_point"].isin([11, 51])], [SIZES, GROUPED, LONGER]),
    "no numbers": (
        lambda t: t.assign(spearman=np.nan, pearson=np.nan, status="solver_diverged", seconds_estimate=np.nan),
        FIGURES,
    ),
    "other notebooks": (
        lambda t: pd.concat([t, pd.DataFrame({"dataset": ["iris"], "architecture": ["mlp"]})]),
        [FURTHER],
    ),
    "no ceilings": (
        lambda t: t.drop(columns=["ceiling_spearman", "ceiling_pearson", "width_multiplier"]),
        [SIZES, GROUPED, LONGER],
    ),
}


@pytest.mark.parametrize("change", VARIANTS)
def test_gaps_do_no_harm(change, full):
    make, functions = VARIANTS[change]
    table = make(full)
    before = table.copy()
    for function in functions:
        picture = function(table)
        assert picture.alt.endswith(".") and picture.caption.endswith("."), function
        assert "nan" not in (picture.alt + picture.caption).lower(), function
        if function in (SIZES, SOLVERS) and change == "no numbers":
            plots.png_bytes(picture.figure, dpi=50)
    assert "nan" not in plots.architecture_table(table).to_html().lower()
    pd.testing.assert_frame_equal(table, before)


def test_empty_tables_say_so(full):
    for table in (pd.DataFrame(), full.iloc[:0], full.assign(dataset="iris")):
        assert all(function(table).alt.startswith("Empty figure. No rows") for function in FIGURES)
        assert "No rows" in BeautifulSoup(plots.architecture_table(table).to_html(), "html.parser").caption.text


def test_a_missing_column_and_an_unknown_axis_are_named(full):
    with pytest.raises(InputError, match="optimiser"):
        plots.over_architectures(full.drop(columns="optimiser"))
    for options in ({"axis": "width"}, {"statistic": "slope"}, {"where": {"no_such": 1}}):
        with pytest.raises(InputError, match="width|slope|no_such"):
            plots.over_architectures(full, **options)


def test_the_order_of_rows_does_not_matter(full, pictures):
    mixed = full.sample(frac=1, random_state=2)
    for function in (SIZES, GROUPED, COSTS):
        first, second = pictures[function], function(mixed)
        assert (first.alt, first.caption) == (second.alt, second.caption)
    assert plots.architecture_table(full).to_html() == plots.architecture_table(mixed).to_html()


@pytest.mark.parametrize("function", FIGURES, ids=lambda f: f.__name__)
def test_nothing_is_cut_off_and_files_are_small(function, pictures):
    png = plots.png_bytes(pictures[function].figure)
    assert len(png) < 90_000
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()


@pytest.mark.parametrize("axis", ["n_params", "depth"])
def test_over_architectures_tells_and_draws_every_mean(axis, full, pictures):
    picture = pictures[SIZES] if axis == "n_params" else SIZES(full, axis)
    upper, lower = picture.figure.axes
    order = sorted(NETWORKS, key=lambda a: NETWORKS[a][0 if axis == "depth" else 1])
    for ax, dataset, title in ((upper, "mnist", "MNIST"), (lower, "cifar10", "CIFAR-10")):
        for decay, word in ((0.001, "weight decay 0.001"), (0.0, "no weight decay")):
            where = {"dataset": dataset, "weight_decay": decay}
            means = [chosen(full, architecture=a, **where).mean() for a in order]
            told = ", ".join(f"{NETWORKS[a][3]} {rounded(m)}" for a, m in zip(order, means, strict=True))
            assert f"{title}, {word}: {told}" in picture.alt
            line = next(line for line in ax.get_lines() if line.get_label() == word)
            np.testing.assert_allclose(line.get_ydata(), means)
            assert (np.diff(line.get_xdata()) > 0.99 * GAP).all()
    assert chosen(full, architecture="resnet50").mean() < 0 and "ResNet-50 -0." in picture.alt
    assert upper.get_ylim() == lower.get_ylim() and upper.get_ylim()[0] < chosen(full, architecture="resnet50").min()
    stars = {
        float(line.get_ydata()[0]) for line in upper.get_lines() if line.get_marker() == "*" and len(line.get_ydata())
    }
    assert stars == {0.87, 0.51, 0.22, 0.13}
    assert "500 training images; VGG13, VGG14, ResNet-18 and ResNet-50 at 0.125 of" in picture.caption


def test_single_test_points_and_intervals_are_drawn(full):
    ax = plots.over_architectures(full[full["architecture"] == "lenet"]).figure.axes[0]
    values = np.sort(chosen(full, architecture="lenet"))
    dots = [np.sort(np.asarray(c.get_offsets())[:, 1]) for c in ax.collections if len(c.get_offsets()) == 3]
    assert any(np.allclose(d, values) for d in dots)
    interval = bootstrap_interval(values)
    bars = [c.get_segments()[0][:, 1] for c in ax.collections if hasattr(c, "get_segments")]
    assert any(np.allclose(bar, (interval.low, interval.high)) for bar in bars)


def test_pearson_and_median_test_points_have_their_own_references(full):
    pearson = plots.over_architectures(full, statistic="pearson")
    assert "The paper, MNIST, weight decay 0.001, LeNet: 0.83" in pearson.alt
    median = plots.over_architectures(full, where={"test_choice": "p50_loss"})
    assert "The paper" not in median.alt and "of median loss" in median.alt and "Black marks" not in median.caption


def test_networks_that_would_overlap_are_moved_apart_by_the_least():
    np.testing.assert_allclose(_apart(np.array([0.0, 5.0, 10.0])), [0, 0.5, 1])  # far enough: not moved
    places = _apart(np.log([2.0, 100.0, 101.0, 1000.0]))
    assert np.diff(places).min() == pytest.approx(GAP) and places[0] == 0 and places[-1] == 1
    exact = np.log([50.0, 50.5]) / np.log(500)
    np.testing.assert_allclose(places[1:3].mean(), exact.mean())
    assert _apart(np.log([3.0])).tolist() == [0.0]


def cells(table: pd.DataFrame, **options) -> tuple[dict, BeautifulSoup]:
    soup = BeautifulSoup(plots.architecture_table(table, **options).to_html(), "html.parser")
    rows = {}
    for row in soup.tbody("tr"):
        rows[row.th.text] = [list(cell.stripped_strings) for cell in row("td")]
    return rows, soup


def test_the_table_has_the_papers_form(full):
    rows, soup = cells(full)
    assert list(rows) == [name for *_, name, _ in NETWORKS.values()]
    heads = [[th.text.strip() for th in row("th")] for row in soup.thead("tr")]
    assert heads[0][1:3] == ["MNIST", "CIFAR-10"]
    assert heads[1][1:] == ["decay 0.001", "no decay", "decay 0.001", "no decay", "parameters"]
    values = chosen(full, architecture="lenet")
    interval = bootstrap_interval(np.sort(values))
    pearson = full.loc[values.index, "pearson"].mean()
    assert rows["LeNet"][0] == [
        f"{rounded(pearson)} / {rounded(values.mean())}",
        f"{rounded(interval.low)} to {rounded(interval.high)}",
        "paper 0.83 / 0.51",
    ]
    assert rows["ResNet-50"][1][2] == "paper ? / 0.13" and rows["ResNet-50"][0][0].split(" / ")[1].startswith("-0.")
    assert [len(cell) for cell in rows["VGG13"][:4]] == [2] * 4  # no published figure is known
    assert rows["VGG13"][4] == ["148,706 to", "148,850"]
    for text in (
        "over 3 test points of highest loss",
        "500 training images",
        "shorter",
        "mean Pearson / mean Spearman",
    ):
        assert text in soup.caption.text


def test_the_table_names_what_is_not_there(full):
    lost = full[(full["dataset"] != "cifar10") | (full["architecture"] != "vgg14")].copy()
    failed = lost["run_id"].eq("cifar10-resnet50-wd0-adam-s0") & lost["estimator"].eq("lissa")
    lost.loc[failed, ["spearman", "pearson", "status"]] = [np.nan, np.nan, "solver_diverged"]
    lost.loc[chosen(lost, architecture="vgg13").index[0], "spearman"] = np.nan
    rows, soup = cells(lost)
    assert rows["VGG14"][2] == ["not run"] and rows["ResNet-50"][3] == ["no number", "(solver diverged)"]
    assert rows["VGG13"][0][-1] == "2 of 3 points" and "No number in 4 of 66 rows" in soup.caption.text
    median, soup = cells(full, test_choice="p50_loss")
    assert "paper" not in str(median) and "of median loss" in soup.caption.text


def test_cifar100_has_a_column_of_its_own_where_it_was_run(full, pictures):
    more = full[full["run_id"] == "cifar10-resnet18-wd0.001-adam-s0"]
    more = more.assign(dataset="cifar100", weight_decay=0.0005, n_train=1000, run_id="cifar100-resnet18")
    both = pd.concat([full, more], ignore_index=True)
    rows, soup = cells(both)
    assert rows["ResNet-18"][4][-1] == "paper 0.15 / 0.11" and rows["LeNet"][4] == ["not run"]
    assert (
        "500 training images of MNIST" in soup.caption.text
        and "1,000 training images of CIFAR-100" in soup.caption.text
    )
    assert "CIFAR-100 0.01 to 0.18" in plots.groups_and_scratch(both).caption
    assert SIZES(both).alt == pictures[SIZES].alt


def test_estimators_are_compared_on_influential_and_on_random_points(full, pictures):
    picture = pictures[plots.estimators_by_architecture]
    titles = [f"{d}, {t}" for d in ("MNIST", "CIFAR-10") for t in ("largest |influence|", "random")]
    assert [ax.get_title() for ax in picture.figure.axes] == titles
    names = {"lissa": "LiSSA", "cg_ggn": "CG (GGN)", "ekfac": "EK-FAC", "identity": "gradient product"}
    for train, part in zip(("top_influence", "random"), picture.alt.split("training points: ")[1:], strict=False):
        for architecture, (*_, name, level) in NETWORKS.items():
            values = {e: chosen(full, architecture=architecture, estimator=e, train_choice=train) for e in names}
            means = ", ".join(f"{names[e]} {rounded(v.mean())}" for e, v in values.items())
            repeated = train == "top_influence"  # of random points only those that are among these, which are few
            itself = f"; agreement of the truth with itself {rounded(0.6 + 0.4 * level)}" if repeated else ". "
            assert f"{name}: {means}{itself}".lower() in part.lower()
    assert "Mean over 12 networks, training points largest |influence|: LiSSA" in picture.caption
    few = full[full["architecture"].isin(["vgg13", "vgg14"])]
    lost = few["spearman"].where((few["estimator"] != "ekfac") | (few["architecture"] != "vgg13"))
    assert "Mean over 2 networks" in plots.estimators_by_architecture(few.assign(spearman=lost)).caption


def test_optimisers_and_starts_give_their_spread(full, pictures):
    picture = pictures[plots.further_axes]
    upper, lower = picture.figure.axes
    names = [t.get_text() for t in upper.get_yticklabels()]
    assert names == ["Adam", "gradient descent", "Nesterov", "RMSProp"]
    assert [t.get_text() for t in lower.get_yticklabels()] == [f"start {s}" for s in range(4)]
    means = [chosen(full, architecture="lenet", optimiser=o).mean() for o in ("adam", "sgd", "nesterov", "rmsprop")]
    assert f"LeNet {rounded(np.mean(means))} ± {rounded(np.std(means, ddof=1))}" in picture.caption
    for name, mean in zip(names, means, strict=True):
        assert f"{name}: {rounded(mean)} (".lower() in picture.alt.lower()
    band = next(patch for patch in upper.patches if patch.get_label() == "the paper's range")
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((0.45, 0.67))
    starts = [chosen(full, architecture="small_cnn", seed=s).mean() for s in range(4)]
    assert f"small CNN {rounded(np.mean(starts))} ± {rounded(np.std(starts, ddof=1))}" in picture.caption


def test_longer_retraining_shows_networks_that_went_on_longer_at_all_lengths(full, pictures):
    picture = pictures[plots.longer_retraining]
    titles = [ax.get_title(loc="left") for ax in picture.figure.axes]
    assert titles == ["LeNet: Spearman", "LeNet: slope"]
    ticks = [[t.get_text() for t in ax.get_xticklabels()] for ax in picture.figure.axes]
    assert ticks == [["6%", "25%", "100%"]] * 2
    for estimator, name in {"lissa": "LiSSA", "ekfac": "EK-FAC", "identity": "gradient product"}.items():
        where = {"architecture": "lenet", "estimator": estimator}
        short, long = chosen(full, **where), chosen(full, **where, ground_truth="loo_warm_1")
        assert f"{name} {rounded(short.mean())} to {rounded(long.mean())}" in picture.caption
    assert "all lengths" in picture.caption and "gradient product" not in picture.alt.split("LeNet, slope")[1]


def test_longer_retraining_is_empty_without_networks_that_went_on(full):
    short = full[~full["ground_truth"].str.startswith("loo_warm_", na=False)]
    assert "no" in plots.longer_retraining(short).alt.lower()


def test_groups_stand_beside_single_images_and_scratch_beside_the_warm_start(full, pictures):
    picture = pictures[plots.groups_and_scratch]
    upper, lower = picture.figure.axes
    assert (len(upper.get_yticks()), len(lower.get_yticks())) == (8, 3)
    for dataset, name in (("mnist", "MNIST"), ("cifar10", "CIFAR-10")):
        where = {"dataset": dataset, "architecture": "resnet18", "ground_truth": "group"}
        means = [chosen(full, train_choice=g, **where).mean() for g in GROUPS]
        assert f"{name}, random groups: {rounded(means[0])} (" in picture.alt
        assert (
            f"{name}, mean over each kind of group: from {rounded(min(means))} to {rounded(max(means))}"
            in picture.caption
        )
        assert (
            f"{name}, single images: {rounded(chosen(full, dataset=dataset, architecture='resnet18').mean())} ("
            in picture.alt
        )
    truths = chosen(
        full, architecture="lenet", train_choice="scratch", estimator="loo_warm", ground_truth="loo_scratch"
    )
    assert truths.mean() < 0 and f"Warm start against from scratch: {rounded(truths.mean())} (" in picture.alt
    assert "10 groups of each kind" in picture.caption
    assert len(plots.groups_and_scratch(full[full["architecture"] == "lenet"]).figure.axes) == 1


def test_costs_are_of_each_network_once(pictures):
    picture = pictures[plots.costs]
    assert all(ax.get_xscale() == "log" for ax in picture.figure.axes)
    assert f"LeNet: LiSSA {10 * (61706 / 60000) ** 0.7:.1f}, CG (GGN)" in picture.alt
    assert f"retraining {61706**0.5:.0f}" in picture.alt and "times as long as LiSSA" in picture.caption
