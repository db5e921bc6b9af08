"""Three questions that public benchmarks of data attribution left open, repeated: the rows of notebooks/puzzles.ipynb.

Every row is one of the results table's, with the column `puzzle`; `fit` tells what differs between rows of a run.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from fragile_lib.choices import Chosen, Estimate, Points, Removals, Truth, choose_points
from fragile_lib.data import image_subset
from fragile_lib.data.raw import mnist_raw
from fragile_lib.data.sets import IMAGE_SETS
from fragile_lib.estimates import estimate
from fragile_lib.minimise.descent import STATIONARY
from fragile_lib.minimise.newton import newton
from fragile_lib.minimise.perceptrons import Loader, PerceptronTrainer
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.network import Network
from fragile_lib.objectives.losses import CROSS_ENTROPY, Loss, SquaredError
from fragile_lib.own.dampings import over_dampings
from fragile_lib.own.network import network_of
from fragile_lib.rows import compare, together
from fragile_lib.tools.checks import check_name
from fragile_lib.tools.errors import bad_input
from fragile_lib.truths import leave_out
from fragile_lib.truths.stacked import AGAIN

Pair = tuple[Tensor, Tensor]
NEWTON_STEPS = 50  # at most, to a convex minimum; about eight do
TORCHS = 2  # torch's squared error is so many times ours


@dataclass(frozen=True)
class Recipe:
    """How a public benchmark trains its perceptron: stochastic gradient descent on J, L2 on all parameters.

    Args:
        widths: inputs, hidden layers with ReLU, outputs.
        epochs, batch, learning_rate, momentum, weight_decay: of training.
        loader: how examples come in batches.

    Raises:
        InputError: a value outside its range, when a network is trained.
    """

    widths: tuple[int, ...]
    epochs: int
    batch: int
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    loader: Loader = Loader()

    def trained(self, train: Pair, test: Pair, loss: Loss, damping: float, seed: int) -> Network:
        """The network of a seed, in evaluation mode, with the trainer that trains it anew without examples."""
        pairs = zip(self.widths, self.widths[1:], strict=False)
        layers = [layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())]
        how = {"weight_decay": self.weight_decay, "damping": damping, "seed": seed, "chunk": 250, "device": "cpu"}
        network = network_of(nn.Sequential(*layers[:-1]).eval(), loss, train, test, **how)
        steps = self.loader.steps(len(train[0]), self.batch, self.epochs)
        sgd = {"optimiser": "sgd", "momentum": self.momentum, "drops": (), "seed": seed}
        schedule = Schedule(steps, self.batch, self.learning_rate, **sgd)
        trainer = PerceptronTrainer(network.train, self.loader)
        theta = trainer.trained(trainer.start(seed), [()], schedule)[0]
        network = network_of(network.train.model.module(theta), loss, train, test, **how)
        return replace(network, trainer=trainer, schedule=schedule)


@dataclass(frozen=True)
class Sizes:
    """How much is done: examples, test points of highest and as many of median loss, removals of each choice, R.

    source: `digits`: drawn evenly over the classes from those that need no download; `first`: the first of MNIST's
    training set, and of its test set, which are dattri's.
    """

    n_train: int
    n_test: int
    test_count: int
    train_count: int
    repeats: int
    seed: int = 0
    source: str = "digits"


def digits(sizes: Sizes) -> tuple[Pair, Pair]:
    """MNIST digits (n, 784), standardised as dattri does, with their labels.

    Raises:
        InputError: another source; MNIST cannot be had.
    """
    check_name("source", sizes.source, ("digits", "first"))
    if sizes.source == "digits":
        parts = image_subset("mnist", "digits", sizes.n_train, sizes.n_test, sizes.seed)
        return tuple((part.x[0].flatten(1), part.y[0]) for part in parts)
    raw, known = mnist_raw(), IMAGE_SETS["mnist"]
    halves = (raw.train_images, raw.train_labels, sizes.n_train), (raw.test_images, raw.test_labels, sizes.n_test)
    return tuple(
        ((torch.tensor(x[:n]).flatten(1) / 255 - known.mean[0]) / known.deviation[0], torch.tensor(y[:n]).long())
        for x, y, n in halves
    )


def perceptron_rows(
    recipe: Recipe, trainings: Iterable[tuple[str, float]], sizes: Sizes, damping: float, estimators: dict[str, dict]
) -> list[dict]:
    """The perceptron's leave-one-out by several ways of (batches, dropout), each beside estimates at its own control.

    Args:
        recipe: of training.
        trainings: the ways.
        sizes: of all of it.
        damping: of estimates.
        estimators: by name, with their options.
    """
    train, test = digits(sizes)
    rows = []
    for batches, dropout in trainings:
        loader = replace(recipe.loader, batches=batches, dropout=dropout)
        network = replace(recipe, loader=loader).trained(train, test, CROSS_ENTROPY, damping, sizes.seed)
        points = choose_points(network.test_losses(), {"max_loss": sizes.test_count, "p50_loss": sizes.test_count})
        scores = estimate([network], [points], list(estimators), options=estimators)
        chosen = both_choices(next(iter(scores[0].values())), sizes)
        orders = {"scratch_batches": {"seeds": range(sizes.repeats)}}
        truths = leave_out([network], [points], [chosen], list(orders), options=orders)
        found = compare([network], [points], [chosen], scores, truths)
        told = {"puzzle": "perceptron", "fit": f"{batches}, dropout {dropout:g}", "batches": batches}
        rows += [row | told | {"dropout": dropout} for row in found]
    return rows


def both_choices(scores: Estimate, sizes: Sizes) -> Chosen:
    """The same removals for every test point: drawn at random, and of the largest ||score|| over the test points."""
    n, m = scores.changes.shape
    drawn = np.random.default_rng([sizes.seed, 11]).permutation(n)[: sizes.train_count]
    largest = np.argsort(-np.linalg.norm(scores.changes, axis=1), kind="stable")[: sizes.train_count]
    named = {"random": drawn, "top_influence": largest}
    return Chosen({name: [Removals.single(np.sort(rows), n)] * m for name, rows in named.items()})


def logistic_rows(weight_decay: float, dampings: Sequence[float], sizes: Sizes) -> list[dict]:
    """Exact influence, EK-FAC and DataInf over dampings, beside the certified minima without each example.

    Softmax regression on digits of 14 x 14 pixels, all parameters decayed, so that there is one minimum.
    """
    halves = [(nn.functional.avg_pool2d(x.view(-1, 1, 28, 28), 2).flatten(1).double(), y) for x, y in digits(sizes)]
    network = convex_minimum(*halves, weight_decay, seed=sizes.seed)
    points = choose_points(network.test_losses(), {"max_loss": sizes.test_count, "p50_loss": sizes.test_count})
    scores = estimate([network], [points], ["exact_undamped"])
    chosen = both_choices(scores[0]["exact_undamped"], sizes)
    truths = leave_out([network], [points], [chosen], ["minimum"], sizes.repeats)
    names = ["exact", "ekfac", "identity", "datainf"]
    rows, _ = over_dampings([network], [points], [chosen], names, truths, dampings)
    return [row | {"puzzle": "logistic", "fit": f"damping {row['damping']:g}"} for row in rows]


def convex_minimum(train: Pair, test: Pair, weight_decay: float, seed: int = 0) -> Network:
    """Softmax regression at the minimum of J by Newton steps from zero, certified by ||grad J||.

    Raises:
        InputError: a weight decay that leaves the minimum too flat to be reached.
    """
    module = nn.Linear(train[0].shape[1], int(train[1].max()) + 1).double().eval()
    how = {"weight_decay": weight_decay, "seed": seed, "damping": 0.0, "chunk": 250, "device": "cpu"}
    network = network_of(module, CROSS_ENTROPY, train, test, **how)
    start, weights = torch.zeros_like(network.theta)[None], network.train.uniform(1)
    theta, norms, _ = newton(network.train, start, weights, max_steps=NEWTON_STEPS)
    norm = float(norms)
    if not norm <= STATIONARY:
        raise bad_input("weight_decay", weight_decay, f"give more: ||grad J|| ended at {norm:.1e}")
    told = {"status": "ok", "grad_norm": norm, "tolerance": STATIONARY}
    return replace(network, theta=theta[0], fit="certified", certificate=told, single=network.train)


def table_of(name: str, seed: int = 0) -> tuple[Pair, Pair]:
    """Nine tenths and a tenth of a table, standardised by the first: diabetes, concrete, or a reader's text file.

    The file: numbers in columns, the last the target.

    Raises:
        InputError: no such file, or one that holds no such numbers.
    """
    if name == "diabetes":
        table = np.column_stack(load_diabetes(return_X_y=True, scaled=False))
    else:
        try:
            packed = files("fragile_lib.data") / "concrete.txt.gz"
            path = Path(name).expanduser()
            text = gzip.decompress(packed.read_bytes()).decode() if name == "concrete" else path.read_text()
            table = np.loadtxt(text.splitlines())
        except (OSError, ValueError) as error:
            remedy = f"give diabetes, concrete, or the path of a text file of numbers ({error})"
            raise bad_input("table", name, remedy) from error
    order = np.random.RandomState(seed).permutation(len(table))
    cut = round(0.9 * len(table))
    first = table[order[:cut]]
    columns = torch.tensor((table[order] - first.mean(0)) / first.std(0)).float()
    return tuple((part[:, :-1], part[:, -1:]) for part in (columns[:cut], columns[cut:]))


def curve_rows(
    table: str, recipe: Recipe, counts: Sequence[int], queries: int, repeats: int, damping: float, seed: int = 0
) -> list[dict]:
    """The loss of some test examples together after leaving out the k that help them most, for each k of `counts`.

    `selected_by` tells by whose scores: EK-FAC's, those of conjugate gradients on the Gauss-Newton matrix, of the plain
    product of gradients, or drawn at random. Trained anew from R starts: `loss_after` and `loss_before` are means over
    the starts and the test examples, `loss_error` the standard error of their difference, `estimated` the change as the
    row's estimator has it; correlations are over the test examples.
    """
    train, (x, y) = table_of(table)
    test = x[:queries], y[:queries]
    recipe, n = replace(recipe, widths=(train[0].shape[1], *recipe.widths[1:])), len(train[0])
    network = recipe.trained(train, test, SquaredError(), damping, seed)
    points = Points(np.arange(queries), ["all"] * queries)
    scores = estimate([network], [points], ["cg_ggn", "ekfac", "identity"])[0]
    orders = {name: np.argsort(-found.changes.sum(1), kind="stable") for name, found in scores.items()}
    orders["random"] = np.random.default_rng([seed, 11]).permutation(n)
    left = {f"{name}_{k}": Removals.groups([order[:k]], n) for name, order in orders.items() for k in counts}
    chosen = Chosen({called: [one] * queries for called, one in left.items()})
    starts = {"scratch_starts": {"schedule": network.schedule, "seeds": range(-AGAIN, repeats - AGAIN)}}  # 0 .. R - 1
    truths = leave_out([network], [points], [chosen], list(starts), options=starts)
    before = TORCHS * float(np.mean([_control(network, points, start) for start in range(repeats)]))
    told = {"puzzle": "curve", "fit": table, "repeats": repeats}
    rows = together([network], [points], [chosen], [scores], truths)
    for row in rows:
        order, _, removed = row["train_choice"].rpartition("_")
        one = left[row["train_choice"]]
        row |= told | {"train_choice": f"most_helpful_{removed}", "selected_by": order, "removed": int(removed)}
        row |= _on_the_curve(truths[0]["scratch_starts"], one, before)
        row["estimated"] = TORCHS * float(scores[row["estimator"]].on(one).mean())
    return rows


def _on_the_curve(truth: Truth, removals: Removals, before: float) -> dict[str, float]:
    """The losses before and after one removal, and the standard error of their difference."""
    each = truth.changes[None] if truth.repeats is None else truth.repeats
    each = TORCHS * each[:, truth.removals.places(removals)].mean((1, 2))
    error = float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else np.nan
    return {"loss_before": before, "loss_after": before + float(each.mean()), "loss_error": error}


def _control(network: Network, points: Points, start: int) -> float:
    """The mean loss on the test points after training anew from a start with nothing left out."""
    schedule = replace(network.schedule, seed=start)
    return float(network.trainer.from_scratch(schedule, [], network.on_points(points), start).control.mean())


def means(
    rows: pd.DataFrame, puzzle: str, by: Sequence[str], measures: Sequence[str], across: str = ""
) -> pd.DataFrame:
    """Means of the measures of one puzzle's rows by some columns, one of them `across`; empty without such rows."""
    if "puzzle" not in rows or not (rows["puzzle"] == puzzle).any():
        return pd.DataFrame()
    found = rows[rows["puzzle"] == puzzle].groupby([*by], sort=False)[list(measures)].mean()
    return found.unstack(across) if across else found


def short(head: object) -> str:
    """A head of a table: a number in as few digits as it has."""
    return f"{head:g}" if isinstance(head, float) else str(head)
