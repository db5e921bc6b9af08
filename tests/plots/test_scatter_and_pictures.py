"""Scatters of single removals, photographs with their scores, and the tables that notebooks make of what they hold."""

from __future__ import annotations

import base64
import io
import types

import numpy as np
import pandas as pd
import plot_tables
import pytest
from PIL import Image

from fragile_lib import plots
from fragile_lib.agreement import compare
from fragile_lib.plots.photographs import short_score
from fragile_lib.plots.words import number


def panels(picture) -> list:
    return [ax for ax in picture.figure.axes if ax.axison]


def test_all_pairs_of_a_network_are_pooled_beside_the_estimate_that_belongs_to_the_truth():
    given = plot_tables.points(tests=8)
    picture = plots.figure("small_mnist_together", given)
    top = [p for p in given if p["train_choice"] == "top_influence"]
    axes = panels(picture)
    assert len(axes) == 3
    for ax, (truth, estimator) in zip(
        axes, (("warm_minibatch", "exact"), ("pbrf", "exact_ggn"), ("minimum", "exact")), strict=True
    ):
        assert ax.get_xlim() == ax.get_ylim() and ax.get_aspect() == 1
        pair = [
            np.concatenate([p[side][name] for p in top]) for side, name in (("estimate", estimator), ("truth", truth))
        ]
        drawn = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
        np.testing.assert_allclose(drawn, np.transpose(pair))
        a = compare(*pair)
        text = f"Pearson {number(a.pearson)}, Spearman {number(a.spearman)}, slope {number(a.slope)}"
        assert text in picture.alt and text in picture.caption
        assert text.replace(", ", "\n") in ax.get_title()
    assert len(picture.rows) == 3 * 160 and picture.told["runs"] == [] and picture.caption.count("\n") == 2
    assert "160 pairs of 1 seed" in picture.alt and "8 test points by colour, of 1 seed" in picture.caption
    assert "Small MNIST" in picture.alt and "weight decay 0.001" in picture.caption


def test_numbers_are_of_each_seed_and_averaged_and_a_wrong_sign_shows():
    given = plot_tables.points(seeds=3, tests=1, truths={"warm_minibatch": (1, 1), "minimum": (-1, 0)})
    picture = plots.figure("small_mnist_together", given)
    of = [compare(p["estimate"]["exact"], p["truth"]["warm_minibatch"]).spearman for p in given[::2]]
    assert f"Spearman {number(np.mean(of))}" in picture.alt and "3 seeds by colour" in picture.caption
    assert "Spearman −1.00, slope −1.00" in picture.alt
    one = plots.figure("small_mnist_together", given, seed=1)
    assert f"Spearman {number(of[1])}" in one.alt and "one seed" in one.caption


@pytest.mark.parametrize(("seeds", "tests"), [(1, 1), (2, 2), (3, 8), (12, 1)])
def test_shapes_and_legends(seeds, tests):
    picture = plots.figure("small_mnist_together", plot_tables.points(seeds, tests))
    png = plots.png_bytes(picture)
    assert len(png) < 60_000
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert (pixels[0] == 255).all() and (pixels[-1] == 255).all()
    labels = [text.get_text() for legend in picture.figure.legends for text in legend.get_texts()]
    assert len(labels) == (0 if seeds * tests == 1 else seeds * tests if seeds * tests <= 10 else min(seeds, 99))


def test_very_different_sizes_have_a_symlog_axis_and_others_do_not():
    bent, straight = (plots.figure("small_mnist_together", plot_tables.points(spread=s)) for s in (3, 0))
    assert (panels(bent)[0].get_xscale(), panels(straight)[0].get_xscale()) == ("symlog", "linear")
    assert "logarithmic outwards" in bent.caption and "logarithmic" not in straight.caption


def test_gaps_are_told_and_nothing_is_no_figure():
    given = plot_tables.points(tests=2, truths={"warm_minibatch": (1, 1)})
    given[0]["truth"]["warm_minibatch"][3] = None
    given[2]["estimate"]["exact"][5] = None
    assert "38 pairs of 1 seed; 2 more without a number" in plots.figure("small_mnist_together", given).alt
    constant = plot_tables.points(seeds=2, tests=1, truths={"warm_minibatch": (0, 0)})
    assert "no number, 2 constant" in plots.figure("small_mnist_together", constant).alt
    for point in given:
        point["truth"]["warm_minibatch"] = None
    for nothing in ([], given, plot_tables.points()[1::2], [{**p, "test_choice": "p50_loss"} for p in given]):
        assert plots.figure("small_mnist_together", nothing).alt.startswith("No points")


def test_estimators_and_choices_can_be_named_and_finished_training_goes_first():
    given = plot_tables.points(tests=1)
    exact, ggn = (plots.figure("networks_points", given, estimator=e).alt for e in ("exact", "exact_ggn"))
    assert "by exact Hessian" in exact and "by exact GGN" in ggn and exact != ggn
    every = plots.figure("iris_points", plot_tables.points(truths={"minimum": (1, 0)}), train_choice="all")
    assert "all training points" in every.caption and "Certified minimum by exact Hessian" in every.alt
    twice = [{**p, "fit": "certified", "truth": {"warm_minibatch": [0.0] * 20}} for p in given]
    assert plots.figure("networks_points", [*twice, *given]).alt == plots.figure("networks_points", given).alt


def test_damped_and_undamped_estimates_stand_at_the_test_point_with_most_minima():
    given = [p for p in plot_tables.points(tests=4, k=12) if p["train_choice"] == "top_influence"]
    for reached, p in enumerate(given):
        undamped = np.asarray(p["estimate"]["exact"]) * 3
        truth = np.where(np.arange(12) <= reached + 2, undamped, np.nan)
        p["estimate"]["exact_undamped"], p["truth"] = undamped.tolist(), {"minimum": truth.tolist()}
    picture = plots.figure("small_mnist_damped", given)
    assert len(panels(picture)) == 2 and "6 pairs of 1 seed; 6 more without" in picture.alt
    assert "slope 3" in picture.alt and "slope 1" in picture.alt  # damped estimates are a third of the truth here
    assert plots.figure("small_mnist_damped", plot_tables.points()).figure is None  # none without damping


def photographs(count: int, dataset: str = "imagenet_standin") -> plots.Picture:
    pixels = list(np.random.default_rng(0).integers(0, 256, (count + 1, 12, 12, 3), dtype=np.uint8))
    scores = np.linspace(-2e-3, 1e-3, count) if count else []
    words = ("dog", ["dog"] * count, dataset, "lissa_partition")
    return plots.influential_pictures(pixels[0], pixels[1:], scores, *words)


@pytest.mark.parametrize("count", [1, 8, 50])
def test_every_photograph_is_shown_with_its_score_the_largest_first(count):
    picture = photographs(count)
    left, right = picture.figure.subfigs
    shown = [ax for ax in right.axes if ax.images]
    assert len(shown) == count and len(left.axes[0].images) == 1
    assert shown[0].get_xlabel() == "−2.0"
    sizes = [abs(float(ax.get_xlabel().replace("−", "-"))) for ax in shown]
    assert sizes == sorted(sizes, reverse=True)
    assert picture.alt.startswith("Stand-in, not ImageNet") and picture.caption.startswith("Stand-in, not ImageNet:")
    assert f"of {count} help, {count} are of its class" in picture.caption
    image = Image.open(io.BytesIO(plots.png_bytes(picture)))
    assert image.size[0] == 704 and len(image.getcolors(256) or []) > 48


def test_photographs_of_imagenet_have_its_name_and_none_are_no_figure():
    assert photographs(3, "imagenet").caption.startswith("ImageNet:")
    assert photographs(0).figure is None and plots.show(photographs(0)) is None
    assert plots.dataset_word("imagenet_standin") == "stand-in, not ImageNet"


@pytest.mark.parametrize(
    ("score", "label"),
    [(2.24, "+2.2"), (-0.1, "−0.1"), (-0.05, "−0.05"), (0.0078, "+8e−3"), (-0.000712, "−7e−4"), (0.0, "+0.0")],
)
def test_labels_of_scores_are_short(score, label):
    assert short_score(score) == label and len(label) <= 6


def test_the_tables_name_the_set_and_the_arithmetic():
    table = plots.figure("photographs_table", plot_tables.everything()).data
    assert table["set"].tolist() == ["stand-in, not ImageNet"] and table["control"].tolist() == ["no number"]
    columns = ["images", "images_per_second", "hours_here", "flops_per_image", "gpu_hours"]
    projected = pd.DataFrame([[10, 2.0, 48.0, 1e9, 0.5]], columns=columns, index=["scoring"])
    styled = plots.imagenet_cost_table(projected, 224, 40.0, "this machine")
    assert styled.data.loc["days here", "scoring"] == "2.00" and "40 x 10^12" in styled.caption


def test_the_table_of_solves_has_short_numbers_and_words():
    names = ("residual", "seconds", "products", "memory_mb", "status")
    solved = {
        "lissa_partition": (4.8571234, 247.123, 8.75, 1564.2, "ok"),
        "cg_ggn": (6.8e-7, 1.5, 8.0, 2484.0, "not_converged"),
        "ekfac": (float("nan"), 203.5, 0.0, 2042.0, "solver_diverged"),
    }
    solved = {name: types.SimpleNamespace(**dict(zip(names, v, strict=True))) for name, v in solved.items()}
    text = plots.solver_table(solved, "test image").to_html()
    for expected in (
        "products a test image",
        "LiSSA (fixed batches)",
        "4.86",
        "247",
        "8.75",
        "1,564",
        "6.8e−7",
        "stopped",
    ):
        assert f">{expected}<" in text
    assert "no number" in text and "diverged" in text and "nan" not in text


def recorded(dataset: str, n_train: int, seed: int, choice: str = "top_influence", sign: float = 1.0) -> dict:
    """A point of a record with the images of its test point (bright) and of six removals (the darker the later)."""
    strip = np.concatenate([np.full((4, 4), 255 - 30 * i, np.uint8) for i in range(7)], axis=1)
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, "png")
    estimate = [sign * x for x in (0.3, -0.2, 0.1, 0.05, -0.01, 0.2, 9.0)]
    point = {"dataset": dataset, "n_train": n_train, "seed": seed, "run_id": f"{dataset}-{n_train}-s{seed}"}
    point |= {"architecture": "lenet", "weight_decay": 0.001, "test_point": 5, "train_choice": choice}
    point |= {"index": list(range(10, 17)), "estimate": {"ekfac": estimate}, "truth": {"minimum": estimate}}
    return point | {
        "error": {"minimum": [0.01] * 7},
        "pictured": list(range(6)),
        "labels": [3, 0, 1, 2, 3, 4, 5],
        "pixels": base64.b64encode(buffer.getvalue()).decode(),
    }


def test_images_stand_with_both_changes_the_helpful_above_the_harmful_and_the_ordinary():
    given = [recorded("mnist", 500, 0), recorded("mnist", 5000, 1), recorded("mnist", 5000, 1, "random")]
    given += [recorded("cifar10", 500, 0), {**recorded("mnist", 9000, 0), "pixels": None, "pictured": []} | {"seed": 7}]
    given[-1].pop("pixels")
    first, second = plots.pictures(given)
    assert [p.told["runs"] for p in (first, second)] == [["mnist-5000-s1"], ["cifar10-500-s0"]]
    assert first.photographs and first.caption.count("\n") == 2 and "standard error" in first.caption
    shown = [ax for ax in first.figure.axes if ax.images]
    # the test image, four that help and two that harm by the estimate, five of the six at random nearest to the 30th
    # percentile of |estimate|, which is 0.075 here; the seventh has no image
    assert [ax.get_xlabel().split("\n")[0] for ax in shown[1:7]] == [
        *("est. +3.0", "est. +2.0", "est. +1.0", "est. +0.5", "est. −2.0", "est. −0.1")
    ]
    ordinary = {ax.get_xlabel().split("\n")[0] for ax in shown[7:]}
    assert ordinary == {"est. +0.5", "est. +1.0", "est. −0.1", "est. −2.0", "est. +2.0"}
    assert "among 6 images drawn at random" in first.caption
    assert len(shown) == 1 + 4 + 2 + 5 and shown[1].get_xlabel().endswith("true +3.0 ± 0.1")
    assert [int(np.asarray(ax.images[0].get_array()).mean()) for ax in shown[:3]] == [255, 225, 75]
    assert "Most helpful: estimated 0.05 to 0.30" in first.alt and "30th percentile" in first.alt
    assert second.alt.startswith("CIFAR-10") and "cat" in second.alt
    assert plots.pictures(given, dataset="cifar100") == [] and len(plots.pictures(given, dataset=["cifar10"])) == 1
    assert len(first.rows) == 12 and set(first.rows["train_choice"]) == {"top_influence", "random"}


def test_photographs_that_were_left_out_stand_with_both_changes():
    point = recorded("imagenet_standin", 200, 0) | {"profile": "laptop"}
    order = np.argsort(-np.abs(point["estimate"]["ekfac"]), kind="stable")
    pixels = [np.full((8, 8, 3), 30 * i, np.uint8) for i in order]
    scores = [point["estimate"]["ekfac"][i] for i in order]
    given = {"test": np.full((8, 8, 3), 255, np.uint8), "train": pixels, "scores": scores, "test_class": "dog"}
    given |= {"train_classes": [f"class {i}" for i in order], "dataset": "imagenet_standin", "estimator": "ekfac"}
    made = plots.left_out_photographs(point, **given)
    shown = [ax for ax in made.figure.axes if ax.images]
    assert [int(np.asarray(ax.images[0].get_array()).mean()) for ax in shown] == [255, 180, 0, 150, 60, 90, 30, 120]
    assert shown[2].get_title() == "class 0" and shown[2].get_xlabel() == "est. +0.3\ntrue +0.3 ± 0.0"
    assert made.told["runs"] == ["imagenet_standin-200-s0"] and made.caption.startswith("Stand-in, not ImageNet: what")
    assert "200 training photographs, profile laptop" in made.caption and "standard error" in made.caption
    without = plots.left_out_photographs({k: v for k, v in point.items() if k != "error"}, **given)
    assert "±" not in without.caption
    arrays = {part: {k: np.asarray(v) for k, v in point[part].items()} for part in ("estimate", "truth", "error")}
    assert plots.left_out_photographs(point | arrays, **given).caption == made.caption  # as a notebook holds them
    assert plots.left_out_photographs(point | {"truth": {}}, **given).figure is None
