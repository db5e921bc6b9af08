"""What the ImageNet notebook shows: every photograph with its score, and never ImageNet's name on a stand-in."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fragile_lib import plots
from fragile_lib.examination import Estimated
from fragile_lib.plots.imagenet import _short


def picture(count: int, dataset: str = "imagenet_standin"):
    rng = np.random.default_rng(0)
    photographs = list(rng.integers(0, 256, (count + 1, 12, 12, 3), dtype=np.uint8))
    scores = np.linspace(-2e-3, 1e-3, count) if count else []
    return plots.influential_pictures(photographs[0], photographs[1:], scores, "dog", ["dog"] * count, dataset)


@pytest.mark.parametrize("count", [1, 8, 50])
def test_every_photograph_is_shown_with_its_score_the_largest_first(count):
    figure, alt, caption = picture(count)
    left, right = figure.subfigs
    shown = [ax for ax in right.axes if ax.images]
    assert len(shown) == count and len(left.axes[0].images) == 1
    assert shown[0].get_xlabel() == "−2.0"
    sizes = [abs(float(ax.get_xlabel().replace("−", "-"))) for ax in shown]
    assert sizes == sorted(sizes, reverse=True)
    assert alt.startswith("Stand-in, not ImageNet") and caption.startswith("Stand-in, not ImageNet.")
    assert f"of {count} help, {count} are of its class" in caption
    packed = io.BytesIO()
    figure.savefig(packed, dpi=50)
    assert Image.open(packed).size[0] == 320


def test_without_photographs_the_figure_says_so():
    assert picture(0).alt.startswith("Empty figure")
    assert picture(3, "imagenet").caption.startswith("ImageNet.")


def test_the_tables_name_the_set_and_the_arithmetic():
    row = {"ground_truth": "loo_warm", "dataset": "imagenet_standin", "test_point": 3.0, "estimator": "lissa"}
    row |= {"n_points": 8, "pearson": 0.1, "spearman": -0.2, "slope": 12.0, "control_change": np.nan}
    other = row | {"ground_truth": "loo_warm_minus_control"}
    table = plots.photographs_table(pd.DataFrame([row, other])).data
    assert table["set"].tolist() == ["stand-in, not ImageNet"] and table["control"].tolist() == ["no number"]
    projected = pd.DataFrame(
        {
            "images": [10],
            "images_per_second": [2.0],
            "hours_here": [48.0],
            "flops_per_image": [1e9],
            "gpu_hours": [0.5],
        },
        index=["scoring"],
    )
    styled = plots.imagenet_cost_table(projected, 224, 40.0, "this machine")
    assert styled.data.loc["days here", "scoring"] == "2.00" and "40 x 10^12" in styled.caption


def test_the_table_of_solves_has_short_numbers_and_words():
    solved = {
        "lissa": Estimated(np.zeros((3, 1)), 4.8571234, 247.123, 8.75, 1564.2, "ok"),
        "cg_ggn": Estimated(np.zeros((3, 1)), 6.8e-7, 1.5, 8.0, 2484.0, "not_converged"),
        "ekfac": Estimated(np.zeros((3, 1)), float("nan"), 203.5, 0.0, 2042.0, "solver_diverged"),
    }
    text = plots.solver_table(solved, "test image").to_html()
    for expected in ("products a test image", "LiSSA", "4.86", "247", "8.75", "1,564", "6.8e-7", "stopped", "diverged"):
        assert f">{expected}<" in text
    assert "no number" in text and "nan" not in text


@pytest.mark.parametrize(
    ("score", "label"),
    [(2.24, "+2.2"), (-0.1, "−0.1"), (-0.05, "−0.05"), (0.0078, "+8e−3"), (-0.000712, "−7e−4"), (0.0, "+0.0")],
)
def test_labels_of_scores_are_short(score, label):
    assert _short(score) == label and len(label) <= 6
