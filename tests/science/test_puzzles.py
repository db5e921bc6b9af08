"""The public puzzles: stacked training against torch.optim, DataInf against its matrices, the convex minimum."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from fragile_lib import plots
from fragile_lib.choices import Points, Removals
from fragile_lib.objectives.losses import CROSS_ENTROPY, SquaredError
from fragile_lib.own import network_of, puzzles
from fragile_lib.own.stacked import BATCHES, Recipe, forward, retrain
from fragile_lib.tools.errors import InputError

RECIPE = Recipe((5, 4, 3), epochs=3, batch=4, learning_rate=0.1, momentum=0.9, weight_decay=0.02)
GROUPS = [(), (2,), (0, 9)]


def examples(n: int = 10, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(n)
    x = torch.randn(n, 5, generator=draw, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=draw)


def by_torch(x: torch.Tensor, y: torch.Tensor, batches: list[list[int]], removed: tuple[int, ...], masked: bool):
    """Three epochs of torch.optim.SGD over the same batches in one order."""
    module = RECIPE.module([part[None].to(x) for part in RECIPE.start(3)])
    sgd = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.02)
    for rows in batches * 3:
        kept = [i for i in rows if i not in removed]
        sgd.zero_grad()
        total = nn.functional.cross_entropy(module(x[kept]), y[kept], reduction="sum")
        (total / max(1, len(rows) if masked else len(kept))).backward()  # of no examples: all zero
        sgd.step()
    return module


@pytest.mark.parametrize("batches", ["masked", "shifted"])
def test_each_network_of_a_stack_is_trained_as_torch_trains_one(batches):
    (x, y), recipe = examples(), Recipe(**{**vars(RECIPE), "batches": batches})
    theta = recipe.train(x, y, CROSS_ENTROPY, GROUPS, 0, 3)
    for place, group in enumerate(GROUPS):
        order = list(range(10)) if batches == "masked" else [i for i in range(10) if i not in group]
        parts = [order[k : k + 4] for k in range(0, 10, 4)]  # of eight examples the last batch is empty
        want = by_torch(x, y, parts, group, batches == "masked")
        torch.testing.assert_close(recipe.module(theta, place)(x), want(x), rtol=1e-10, atol=1e-12)


def test_batches_miss_what_is_left_out_and_nothing_else():
    for batches in BATCHES:
        recipe = Recipe(**{**vars(RECIPE), "batches": batches})
        for rows, there in recipe.orders(10, GROUPS, 1):
            for row, kept, group in zip(rows, there, GROUPS, strict=True):
                assert sorted(row) == list(range(10)) and set(row[kept]) == set(range(10)) - set(group)
        same = [(row == rows[0]).all() for row in rows]
        assert all(same) if batches == "masked" else not any(same[1:])


def test_dropout_is_of_places_has_mean_one_and_changes_training():
    (x, y), dropping = examples(), Recipe(**{**vars(RECIPE), "dropout": 0.5})
    theta = dropping.train(x, y, CROSS_ENTROPY, [(), ()], 0, 3)
    assert all(torch.equal(part[0], part[1]) for part in theta)
    assert not torch.equal(theta[0][0], RECIPE.train(x, y, CROSS_ENTROPY, [()], 0, 3)[0][0])
    ones = [torch.ones(1, 1, 4000), torch.zeros(1, 1, 4000), torch.eye(4000)[None], torch.zeros(1, 1, 4000)]
    out = forward(ones, torch.ones(1, 1, 1), 0.25, torch.Generator().manual_seed(0))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3]) and abs(float(out.mean()) - 1) < 0.05


def test_retraining_is_after_minus_the_control_of_the_same_order():
    (x, y), removals = examples(), Removals.single([2, 7], 10)
    truth, controls = retrain(RECIPE, (x, y), (x[:4], y[:4]), CROSS_ENTROPY, removals, 2)
    theta = RECIPE.train(x, y, CROSS_ENTROPY, [(), (7,)], 1, 0)
    losses = [CROSS_ENTROPY.values(RECIPE.module(theta, k)(x[:4]), y[:4]).detach().numpy() for k in (0, 1)]
    np.testing.assert_allclose(controls[1], losses[0], rtol=1e-10)
    np.testing.assert_allclose(truth.repeats[1, 1], losses[1] - losses[0], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(truth.changes, truth.repeats.mean(0))
    with pytest.raises(InputError, match="^batches = 'same'"):
        Recipe((5, 3), 1, 4, 0.1, batches="same")


def test_datainf_is_the_mean_of_inverses():
    (x, y), module = examples(), nn.Linear(5, 3).double().eval()
    network = network_of(module, CROSS_ENTROPY, (x, y), (x[:2], y[:2]), damping=0.3)
    g, v = (
        network.train.example_gradients(network.theta[None])[0],
        network.test_gradients(Points(np.arange(2), ["all"] * 2)),
    )
    eye = 0.3 * torch.eye(g.shape[1], dtype=torch.float64)
    mean = torch.stack([torch.linalg.inv(torch.outer(one, one) + eye) for one in g]).mean(0)
    found = puzzles.datainf(network, Points(np.arange(2), ["all"] * 2))
    np.testing.assert_allclose(found.changes, (g @ mean @ v.T / len(g)).numpy(), rtol=1e-10)


def test_the_convex_minimum_is_scikit_learns():
    (x, y), decay = examples(40), 0.05
    network = puzzles.convex_minimum((x, y), (x[:3], y[:3]), decay)
    ones = torch.cat([x, torch.ones(40, 1)], 1).numpy()  # the bias decays too
    other = LogisticRegression(C=1 / (40 * decay), fit_intercept=False, tol=1e-12, max_iter=10_000).fit(ones, y.numpy())
    weight, bias = network.theta[:15].reshape(3, 5), network.theta[15:]
    np.testing.assert_allclose(torch.cat([weight, bias[:, None]], 1).numpy(), other.coef_, atol=1e-5)
    assert network.certified and network.certificate["grad_norm"] < 1e-8


def test_the_curve_leaves_out_the_most_helpful_and_tells_the_loss_in_the_scale_of_torch():
    plan = Recipe((1, 6, 1), 2, 32, 0.03, weight_decay=1e-3, shuffled=True, whole=True, scale=2)
    rows = pd.DataFrame(puzzles.curve_rows("diabetes", plan, [2, 4], 5, 2, 0.1))
    train, (x, y) = puzzles.table_of("diabetes")
    plan = Recipe(**{**vars(plan), "widths": (10, 6, 1)})
    module = [plan.module(plan.train(*train, SquaredError(), [()], s, s)) for s in (0, 1)]
    mse = np.mean([float(nn.functional.mse_loss(one(x[:5]), y[:5]).detach()) for one in module])
    assert rows.loss_before.to_numpy() == pytest.approx(mse, rel=1e-5)
    helpful = rows[rows.estimator != "random"].pivot(index="estimator", columns="removed", values="estimated")
    assert (helpful[4] > helpful[2]).all() and (helpful[2] > 0).all()
    assert rows.loss_error.gt(0).all() and len(rows) == 8


def test_tables_are_standardised_by_their_training_part(tmp_path):
    for name, shape in (("concrete", (927, 8)), ("diabetes", (398, 10))):
        (x, y), (_, held) = puzzles.table_of(name)
        assert x.shape == shape and len(held) == round(len(x) / 9)
        for columns in (x, y):
            torch.testing.assert_close(columns.std(0, correction=0), torch.ones(columns.shape[1]), rtol=0, atol=1e-4)
    np.savetxt(tmp_path / "mine.txt", np.arange(60.0).reshape(20, 3) % 7)
    assert puzzles.table_of(str(tmp_path / "mine.txt"))[0][0].shape == (18, 2)
    (tmp_path / "words.txt").write_text("one two\n")
    for path in (tmp_path / "words.txt", tmp_path / "none.txt"):
        with pytest.raises(InputError, match="give diabetes, concrete, or the path"):
            puzzles.table_of(str(path))


def test_figures_draw_what_rows_there_are_and_nothing_else():
    common = {"test_point": 0, "run_id": "r", "spearman": 0.5, "pearson": 0.5, "slope": 2.0, "reliability_single": 0.25}
    choices = [common | {"train_choice": choice, "estimator": "ekfac"} for choice in ("random", "top_influence")]
    way = {
        "puzzle": "perceptron",
        "fit": "masked, dropout 0",
        "dropout": 0.0,
        "batches": "masked",
        "spearman_single": 0.4,
    }
    ways, damped = ([row | told for row in choices] for told in (way, {"puzzle": "logistic", "damping": 0.1}))
    curve = {"puzzle": "curve", "fit": "concrete", "estimator": "random", "removed": 5, "repeats": 2}
    curve |= {"loss_before": 1.0, "loss_after": 2.0, "loss_error": 0.1}
    draw = (plots.ways_of_training, plots.over_damping, plots.after_removal)
    for one, rows in zip(draw, (ways, damped, [curve]), strict=True):
        found = one(pd.DataFrame(rows))
        assert found.figure is not None and found.alt and found.caption.count("\n") == 2
        assert one(pd.DataFrame()).figure is None
    (drawn,) = plots.ways_of_training(pd.DataFrame(ways)).rows.ceiling_single.unique()
    assert drawn == 0.5
    assert puzzles.means(pd.DataFrame(ways), "perceptron", ["fit"], ["spearman"]).iloc[0, 0] == 0.5
