"""The public puzzles: stacked training against torch.optim, DataInf against its matrices, the convex minimum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from fragile_lib.choices import Chosen, Points, Removals
from fragile_lib.data.raw import Raw
from fragile_lib.estimates import estimate
from fragile_lib.minimise.perceptrons import BATCHES, Loader, PerceptronTrainer, forward
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.network import Network
from fragile_lib.objectives.losses import CROSS_ENTROPY, SquaredError
from fragile_lib.own import network_of, puzzles
from fragile_lib.solvers import datainf
from fragile_lib.study.record_file import KEY
from fragile_lib.tools.errors import InputError
from fragile_lib.truths import leave_out

DECAY = 0.02
SGD = Schedule(9, 4, 0.1, drops=(), optimiser="sgd", momentum=0.9)  # three epochs of ten examples
GROUPS = [(), (2,), (0, 9)]


def examples(n: int = 10, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(n)
    x = torch.randn(n, 5, generator=draw, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=draw)


def network(damping: float = 0.3) -> Network:
    x, y = examples()
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    return network_of(module, CROSS_ENTROPY, (x, y), (x[:4], y[:4]), weight_decay=DECAY, damping=damping)


def trainer(batches: str = "masked", dropout: float = 0.0) -> PerceptronTrainer:
    return PerceptronTrainer(network().train, Loader(batches, dropout=dropout))


def by_torch(theta: torch.Tensor, batches: list[list[int]], removed: tuple[int, ...], masked: bool) -> nn.Module:
    """Three epochs of torch.optim.SGD over the same batches in one order."""
    (x, y), module = examples(), network().train.model.module(theta)
    sgd = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=DECAY)
    for rows in batches * 3:
        kept = [i for i in rows if i not in removed]
        sgd.zero_grad()
        total = nn.functional.cross_entropy(module(x[kept]), y[kept], reduction="sum")
        (total / max(1, len(rows) if masked else len(kept))).backward()  # of no examples: all zero
        sgd.step()
    return module


def test_a_start_is_torchs_own():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    want = nn.utils.parameters_to_vector(module.parameters()).detach().double()
    assert torch.equal(trainer().start(3), want)


@pytest.mark.parametrize("batches", ["masked", "shifted"])
def test_each_network_of_a_stack_is_trained_as_torch_trains_one(batches):
    made, (x, _) = trainer(batches), examples()
    start = made.start(3)
    theta = made.trained(start, GROUPS, SGD)
    for found, group in zip(theta, GROUPS, strict=True):
        order = list(range(10)) if batches == "masked" else [i for i in range(10) if i not in group]
        parts = [order[k : k + 4] for k in range(0, 10, 4)]  # of eight examples the last batch is empty
        want = by_torch(start, parts, group, batches == "masked")
        torch.testing.assert_close(made.train.model(found, x), want(x), rtol=1e-10, atol=1e-12)


def test_batches_miss_what_is_left_out_and_nothing_else():
    for batches in BATCHES:
        loader = Loader(batches)
        rows, there = next(loader.orders(10, GROUPS, 1))
        for row, kept, group in zip(rows, there, GROUPS, strict=True):
            assert sorted(row) == list(range(10)) and set(row[kept]) == set(range(10)) - set(group)
        same = [(row == rows[0]).all() for row in rows]
        assert all(same) if batches == "masked" else not any(same[1:])
        steps = list(loader.weighted(10, GROUPS, SGD))
        assert [weights.shape for _, weights in steps] == [(3, 4), (3, 4), (3, 2)] * 3
        assert all(
            torch.equal(weights[0], weights[0].new_full((len(row[0]),), 1 / len(row[0]))) for row, weights in steps
        )
    assert Loader(whole=True).steps(10, 4, 3) == 6 and Loader().steps(10, 4, 3) == 9
    with pytest.raises(InputError, match="^batches = 'same'"):
        Loader("same")


def test_dropout_is_of_places_has_mean_one_and_changes_training():
    dropping, plain = trainer(dropout=0.5), trainer()
    start = plain.start(3)
    theta = dropping.trained(start, [(), ()], SGD)
    assert torch.equal(theta[0], theta[1]) and not torch.equal(theta[0], plain.trained(start, [()], SGD)[0])
    ones = [torch.ones(1, 4000, 1), torch.zeros(1, 4000), torch.eye(4000)[None], torch.zeros(1, 4000)]
    out = forward(ones, torch.ones(1, 1, 1), 0.25, torch.Generator().manual_seed(0))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3]) and abs(float(out.mean()) - 1) < 0.05


def test_its_truths_are_after_minus_the_control_of_the_same_order():
    made, (x, y) = trainer("shifted"), examples()
    one = replace(network(), trainer=made, schedule=SGD, seed=5)
    points, removals = Points(np.array([1, 3]), ["all"] * 2), Removals.single([2, 7], 10)
    asked = {"scratch_batches": {"seeds": [0, 1]}, "scratch_starts": {"schedule": SGD, "seeds": [0, 1]}}
    chosen = [Chosen({"some": [removals] * 2})]
    (found,) = leave_out([one], [points], chosen, list(asked), options=asked)
    for name, seed, start in (("scratch_batches", 1, 5), ("scratch_starts", 1001, 1001)):
        theta = made.trained(made.start(start), [(), (2,), (7,)], replace(SGD, seed=seed))
        each = [CROSS_ENTROPY.values(made.train.model(t, x[[1, 3]]), y[[1, 3]]).numpy() for t in theta]
        np.testing.assert_allclose(found[name].repeats[1], np.array(each[1:]) - each[0], rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(found[name].changes, found[name].repeats.mean(0))
    with pytest.raises(InputError, match="ask for a truth that trains anew"):
        leave_out([one], [points], chosen, ["warm_minibatch"], options={"warm_minibatch": {"schedule": SGD}})


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_datainf_is_the_mean_of_inverses(monkeypatch, at_once):
    one, points = network(), Points(np.arange(2), ["all"] * 2)
    monkeypatch.setattr(datainf, "HELD", at_once * 8 * len(one.theta))
    x, y = examples()
    leaf = one.theta.clone().requires_grad_()
    losses = nn.functional.cross_entropy(one.train.model(leaf, x), y, reduction="none")
    g = torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses])
    eye = 0.3 * torch.eye(g.shape[1], dtype=torch.float64)
    mean = torch.stack([torch.linalg.inv(torch.outer(row, row) + eye) for row in g]).mean(0)
    (found,) = estimate([one], [points], ["datainf"])
    np.testing.assert_allclose(found["datainf"].changes, (g @ mean @ g[:2].T / len(g)).numpy(), rtol=1e-9)
    hessian = torch.func.hessian(lambda t: nn.functional.cross_entropy(one.train.model(t, x), y))(one.theta)
    missing = (hessian + (DECAY + 0.3) * torch.eye(len(hessian))) @ mean @ g[:2].T - g[:2].T
    assert found["datainf"].residual == pytest.approx(float((missing.norm(dim=0) / g[:2].norm(dim=1)).max()))
    with pytest.raises(InputError, match="^damping = 0"):
        estimate([one.with_damping(0.0)], [points], ["datainf"])


def test_the_convex_minimum_is_scikit_learns():
    (x, y), decay = examples(40), 0.05
    network = puzzles.convex_minimum((x, y), (x[:3], y[:3]), decay)
    ones = torch.cat([x, torch.ones(40, 1)], 1).numpy()  # the bias decays too
    other = LogisticRegression(C=1 / (40 * decay), fit_intercept=False, tol=1e-12, max_iter=10_000).fit(ones, y.numpy())
    weight, bias = network.theta[:15].reshape(3, 5), network.theta[15:]
    np.testing.assert_allclose(torch.cat([weight, bias[:, None]], 1).numpy(), other.coef_, atol=1e-5)
    assert network.certified and network.certificate["grad_norm"] < 1e-8


def test_the_curve_leaves_out_the_most_helpful_and_tells_the_loss_in_the_scale_of_torch():
    plan = puzzles.Recipe((1, 6, 1), 2, 32, 0.06, weight_decay=5e-4, loader=Loader(shuffled=True, whole=True))
    rows = pd.DataFrame(puzzles.curve_rows("diabetes", plan, [2, 4], 5, 2, 0.1))
    train, (x, y) = puzzles.table_of("diabetes")
    plan = replace(plan, widths=(10, 6, 1))
    of = [plan.trained(train, (x[:5], y[:5]), SquaredError(), 0.1, seed) for seed in (0, 1)]
    mse = np.mean([float(nn.functional.mse_loss(one.train.model(one.theta, x[:5]), y[:5])) for one in of])
    assert rows.loss_before.to_numpy() == pytest.approx(mse, rel=1e-5)
    assert of[1].certificate["grad_norm"] == pytest.approx(
        float(of[1].train.gradient(of[1].theta[None], of[1].train.uniform(1)).norm())
    )
    helpful = rows[rows.estimator == rows.selected_by].pivot(index="estimator", columns="removed", values="estimated")
    assert (helpful[4] > helpful[2]).all() and (helpful[2] > 0).all()
    assert rows.loss_error.gt(0).all() and len(rows) == 24 and (rows.n_points == 5).all()
    assert not rows.duplicated([name for name in KEY if name in rows]).any()  # else no record takes them


def test_digits_are_the_first_of_mnist_or_drawn(monkeypatch):
    pixels = torch.arange(60 * 784, dtype=torch.int64).remainder(251).byte().view(60, 28, 28).numpy()
    raw = Raw(pixels, np.arange(60) % 10, pixels[::-1].copy(), np.arange(60)[::-1].copy() % 10)
    monkeypatch.setattr(puzzles, "mnist_raw", lambda: raw)
    (x, y), (held, labels) = puzzles.digits(puzzles.Sizes(20, 10, 1, 3, 1, source="first"))
    want = (torch.tensor(pixels[:20]).flatten(1) / 255 - 0.13066048) / 0.30810780
    torch.testing.assert_close(x, want)
    assert y.tolist() == [*range(10)] * 2 and labels.tolist() == [*range(9, -1, -1)]
    torch.testing.assert_close(held[0] * 0.30810780 + 0.13066048, torch.tensor(pixels[-1]).flatten() / 255)
    with pytest.raises(InputError, match="^source = 'last'"):
        puzzles.digits(puzzles.Sizes(20, 10, 1, 3, 1, source="last"))


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


def test_means_are_over_what_is_not_named():
    ways = [{"puzzle": "perceptron", "fit": "masked, dropout 0", "spearman": value} for value in (0.4, 0.6)]
    assert puzzles.means(pd.DataFrame(ways), "perceptron", ["fit"], ["spearman"]).iloc[0, 0] == 0.5
    assert [puzzles.short(head) for head in (0.001, 1.0, 5, "cg")] == ["0.001", "1", "5", "cg"]
