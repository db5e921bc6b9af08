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
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from fragile_lib.choices import Chosen, Estimate, Points, Removals, choose_points
from fragile_lib.data import image_subset
from fragile_lib.estimates import estimate
from fragile_lib.network import Network
from fragile_lib.objectives.losses import CROSS_ENTROPY, SquaredError
from fragile_lib.own.network import network_of
from fragile_lib.own.stacked import Recipe, retrain
from fragile_lib.rows import compare
from fragile_lib.tools.errors import bad_input
from fragile_lib.truths import leave_out

Pair = tuple[Tensor, Tensor]
STATIONARY = 1e-8  # ||grad J|| of the convex minimum


@dataclass(frozen=True)
class Sizes:
    """How much is done: examples, test points of highest and as many of median loss, removals of each choice, R."""

    n_train: int
    n_test: int
    test_count: int
    train_count: int
    repeats: int
    seed: int = 0


def digits(sizes: Sizes) -> tuple[Pair, Pair]:
    """MNIST digits (n, 784) that need no download, standardised, with their labels."""
    parts = image_subset("mnist", "digits", sizes.n_train, sizes.n_test, sizes.seed)
    return tuple((part.x[0].flatten(1), part.y[0]) for part in parts)


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
        way = replace(recipe, batches=batches, dropout=dropout)
        module = way.module(way.train(*train, CROSS_ENTROPY, [()], 0, 0))
        network = network_of(module, CROSS_ENTROPY, train, test, damping=damping, seed=sizes.seed, chunk=250)
        points = choose_points(network.test_losses(), {"max_loss": sizes.test_count, "p50_loss": sizes.test_count})
        scores = estimate([network], [points], list(estimators), options=estimators)
        chosen = both_choices(next(iter(scores[0].values())), sizes)
        of = test[0][points.index], test[1][points.index]
        truth, _ = retrain(way, train, of, CROSS_ENTROPY, chosen.all(), sizes.repeats)
        found = compare([network], [points], [chosen], scores, [{"scratch_batches": truth}])
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
    rows = []
    for damping in dampings:
        damped = network.with_damping(damping)
        found = estimate([damped], [points], ["exact", "ekfac", "identity"])
        found[0]["datainf"] = datainf(damped, points)
        told = {"puzzle": "logistic", "fit": f"damping {damping:g}", "damping": damping}
        rows += [row | told for row in compare([damped], [points], [chosen], found, truths)]
    return rows


def convex_minimum(train: Pair, test: Pair, weight_decay: float, seed: int = 0) -> Network:
    """Softmax regression at the minimum of J, by L-BFGS and steps with one Hessian, certified by ||grad J||.

    Raises:
        InputError: a weight decay that leaves the minimum too flat to be reached.
    """
    module = nn.Linear(train[0].shape[1], int(train[1].max()) + 1).double().eval()
    how = {"weight_decay": weight_decay, "seed": seed, "damping": 0.0, "chunk": 250, "device": "cpu"}
    network = network_of(module, CROSS_ENTROPY, train, test, **how)
    train_, weights = network.train, network.train.uniform(1)

    def value(theta: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.from_numpy(theta)[None]
        return float(train_.value(at, weights)), train_.gradient(at, weights)[0].numpy()

    start = np.zeros(len(network.theta))
    found = minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 0, "gtol": 1e-7})
    theta = torch.from_numpy(found.x)
    near = replace(network, theta=theta).hessian
    for _ in range(3):
        theta = theta - near.shifted(train_.gradient(theta[None], weights), 0.0)[0]
    norm = float(train_.gradient(theta[None], weights).norm())
    if not norm <= STATIONARY:
        raise bad_input("weight_decay", weight_decay, f"give more: ||grad J|| ended at {norm:.1e}")
    told = {"status": "ok", "grad_norm": norm, "tolerance": STATIONARY}
    return replace(network, theta=theta, fit="certified", certificate=told, single=train_)


def datainf(network: Network, points: Points) -> Estimate:
    """DataInf (Kwon et al. 2024, arXiv 2310.00902): the mean of inverses in the place of the inverse of the mean.

    grad f^T M grad loss_i / n with M = (1/n) sum_j (g_j g_j^T + damping I)^-1, each by Sherman and Morrison, and g_j
    the gradient of example j with the L2 term left out. All parameters are one block.
    """
    gradients, v = network.train.example_gradients(network.theta[None])[0], network.test_gradients(points)
    n, damping = len(gradients), network.damping
    shares = (v @ gradients.T) / (damping + gradients.square().sum(1)) / n
    changes = gradients @ ((v - shares @ gradients) / damping).T / n
    return Estimate(Removals.single(range(n), n), changes.double().cpu().numpy())


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

    By the scores of EK-FAC, of conjugate gradients on the Gauss-Newton matrix and of the plain product of gradients,
    and drawn at random; trained anew from R starts. `loss_after` and `loss_before` are means over the starts and the
    test examples, `loss_error` the standard error of their difference, `estimated` the change as the scores have it.
    """
    train, (x, y) = table_of(table)
    test = x[:queries], y[:queries]
    widths = (train[0].shape[1], *recipe.widths[1:])
    recipe, loss, n = replace(recipe, widths=widths), SquaredError(), len(train[0])
    module = recipe.module(recipe.train(*train, loss, [()], seed, seed))
    how = {"weight_decay": recipe.weight_decay / recipe.scale, "damping": damping, "seed": seed, "chunk": 250}
    network = network_of(module, loss, train, test, **how)
    points = Points(np.arange(queries), ["all"] * queries)
    scores = estimate([network], [points], ["cg_ggn", "ekfac", "identity"])[0]
    helps = {name: found.changes.sum(1) for name, found in scores.items()}
    orders = {name: np.argsort(-values, kind="stable") for name, values in helps.items()}
    orders["random"] = np.random.default_rng([seed, 11]).permutation(n)
    asked = [(name, k) for name in orders for k in counts]
    removals = Removals.groups([orders[name][:k] for name, k in asked], n)
    truth, controls = retrain(recipe, train, test, loss, removals, repeats, starts=True)
    each, before = recipe.scale * truth.repeats.mean(2), float(recipe.scale * controls.mean())
    rows = []
    for place, (name, k) in enumerate(asked):
        told = {"seed": seed, "test_choice": "all_together", "train_choice": f"most_helpful_{k}", "estimator": name}
        told |= {"ground_truth": "scratch_fit", "fit": table, "puzzle": "curve", "removed": k, "repeats": repeats}
        told |= {"loss_before": before, "loss_after": before + float(each[:, place].mean()), "status": "ok"}
        told |= {"loss_error": float(each[:, place].std(ddof=1) / repeats**0.5) if repeats > 1 else np.nan}
        some = helps.get(name, np.full(n, np.nan))[orders[name][:k]]
        rows.append(told | {"test_point": None, "estimated": recipe.scale * float(some.sum()) / queries})
    return rows


def means(
    rows: pd.DataFrame, puzzle: str, by: Sequence[str], measures: Sequence[str], across: str = ""
) -> pd.DataFrame:
    """Means of the measures of one puzzle's rows by some columns, one of them `across`; empty without such rows."""
    if "puzzle" not in rows or not (rows["puzzle"] == puzzle).any():
        return pd.DataFrame()
    found = rows[rows["puzzle"] == puzzle].groupby([*by], sort=False)[list(measures)].mean()
    return found.unstack(across) if across else found
