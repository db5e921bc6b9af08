"""Synthetic results tables of all studies, and points of records: depth hurts, decay helps, every outcome is there."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pandas as pd

DECAYS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
GROUPS = ("random_groups", "same_class_groups", "top_influence_groups")
NETWORKS = {  # depth, parameters, width, mean Spearman on MNIST with decay
    "small_cnn": (7, 2_616, 1.0, 0.85),
    "lenet": (5, 61_706, 1.0, 0.5),
    "vgg13": (13, 148_706, 0.125, 0.3),
    "resnet18": (18, 176_258, 0.125, 0.1),
    "resnet50": (50, 375_618, 0.125, -0.2),
}
ESTIMATORS = {"lissa_partition": 10.0, "cg_ggn": 12.0, "ekfac": 5.0, "identity": 0.4}  # seconds
SOLVERS = {  # relative residual and seconds
    "exact": (3e-15, 20.0),
    "exact_ggn": (0.4, 18.0),
    "cg": (1e-5, 60.0),
    "lissa_random": (0.1, 200.0),
    "kfac": (1.7, 3.0),
    "trak": (np.nan, 9.0),
}
SMALL_TRUTHS = {"warm_minibatch": 0.4, "warm_minibatch_minus_control": 0.45, "tilted_minimum": 0.97, "pbrf": 0.99}


PLACE = ["run_id", "seed", "test_point", "test_choice", "train_choice", "fit", "estimator", "ground_truth"]
REPEATED = ("mlp", "small_cnn", "lenet", "resnet18")  # architectures whose truths were repeated


def score(value: float, rng: np.random.Generator, **more: object) -> dict:
    """A noisy correlation in all columns of agreement."""
    noisy = float(np.clip(value + 0.1 * rng.normal(), -1, 1))
    return {"spearman": noisy, "pearson": min(1.0, noisy + 0.05), "slope": 2 * noisy, "norm_spearman": noisy} | more


@functools.cache
def _iris(depths: tuple, widths: tuple, seeds: int, decays: tuple, activations: tuple) -> pd.DataFrame:
    rng, rows = np.random.default_rng(5), []
    sizes = [(d, 5) for d in depths] + [(1, w) for w in widths]
    for (depth, width), activation, decay, seed in itertools.product(sizes, activations, decays, range(seeds)):
        run = {"run_id": f"iris-{activation}-d{depth}-w{width}-wd{decay:g}", "profile": "quick", "dataset": "iris"}
        run |= {"architecture": "mlp", "activation": activation, "depth": depth, "width": width, "n_train": 120}
        run |= {"weight_decay": decay, "seed": seed, "n_params": 100, "test_point": 3}
        run |= {"grad_norm": 10 ** (-6 + depth / 2 + rng.normal()), "eig_max": 2.0**depth * rng.uniform(1, 2)}
        run["eig_min"] = rng.normal() * 1e-3 * depth
        ways = itertools.product(
            ("exact", "exact_ggn", "lissa_single"),
            ("descent", "certified"),
            ("max_loss", "p50_loss"),
            ("top_influence", "top_loss"),
        )
        for estimator, fit, test, train in ways:
            named = {"estimator": estimator, "fit": fit, "test_choice": test, "train_choice": train}
            truths = ("warm_descent", "warm_descent_minus_control") if fit == "descent" else ("minimum",)
            for truth in truths:
                status = ("constant", "indefinite", "diverged", "ok")[seed % 4] if depth == 8 and decay == 0 else "ok"
                status = "not_certified" if fit == "certified" and depth == 8 and seed == 3 else status
                row = score(1.05 - 0.1 * depth - 0.2 * (decay == 0), rng, norm_ratio=np.exp(depth * rng.normal()))
                row = row if status in ("ok", "indefinite") else dict.fromkeys(row, np.nan)
                rows.append(run | named | {"ground_truth": truth, "status": status} | row)
    return pd.DataFrame(rows)


def iris(depths=(1, 4, 8), widths=(), seeds=4, decays=(0.005, 0.0), activations=("relu",)) -> pd.DataFrame:
    return _iris(tuple(depths), tuple(widths), seeds, decays, activations).copy()


@functools.cache
def _small_mnist(seeds: int, count: int) -> pd.DataFrame:
    rng, rows = np.random.default_rng(11), []
    for decay, seed in itertools.product(DECAYS, range(seeds)):
        run = {"run_id": f"small_mnist-wd{decay:g}-s{seed}", "profile": "laptop", "dataset": "small_mnist"}
        run |= {"architecture": "small_cnn", "activation": "tanh", "weight_decay": decay, "n_train": 5500}
        run |= {"n_params": 2616, "seed": seed, "fit": "finished", "grad_norm": 10 ** (-5 - 30 * decay * rng.uniform())}
        run |= {"eig_min": -0.3 * np.exp(-decay * 300) * rng.uniform(0.5, 1) + decay, "eig_max": 20 * rng.uniform()}
        for test_choice in ("max_loss", "p50_loss"):
            tests = rng.choice(1000, count, replace=False)
            losses = np.sort(rng.gamma(2, 3, count)) if test_choice == "max_loss" else rng.uniform(0.02, 0.03, count)
            for test_point, loss in zip(tests, losses, strict=True):
                place = {"test_point": float(test_point), "test_choice": test_choice, "test_loss": loss}
                rows += [run | place | row for row in _small_rows(decay, rng)]
            together = _small_row("exact", "warm_minibatch", 0.9, rng)
            rows.append(run | {"test_choice": f"{test_choice}_together"} | together)
    return pd.DataFrame(rows)


def small_mnist(seeds: int = 2, count: int = 8) -> pd.DataFrame:
    return _small_mnist(seeds, count).copy()


def _small_row(estimator: str, truth: str, value: float, rng, train: str = "top_influence") -> dict:
    residual, seconds = SOLVERS.get(estimator, (np.nan, np.nan))
    again = 0.6 + 0.05 * rng.normal() if truth in ("warm_minibatch", "scratch_starts") else np.nan
    row = {"train_choice": train, "estimator": estimator, "ground_truth": truth, "n_points": 100}
    row |= {"ceiling_pearson": again, "ceiling_spearman": again, "solver_residual": residual * rng.uniform(0.8, 1.2)}
    row |= {"status": {"lissa_random": "not_converged"}.get(estimator, "ok"), "seconds_estimate": seconds}
    return score(value, rng, products=10, memory_mb=100.0) | row


def _small_rows(decay: float, rng: np.random.Generator) -> list[dict]:
    rows, loss = [], 0.3 * (decay > 0.01) + 0.2 * (decay == 0)
    for truth, value in SMALL_TRUTHS.items():
        for train in ("top_influence", "p30_influence"):
            weaker = 0.3 * (train == "p30_influence") * (truth != "pbrf")
            for estimator in ("exact", "exact_ggn") if decay == 1e-3 or truth == "pbrf" else ("exact",):
                rows.append(_small_row(estimator, truth, value - loss - weaker, rng, train))
        if decay == 1e-3:
            rows += [_small_row(e, truth, value - 0.2, rng) for e in SOLVERS if not e.startswith("exact")]
    if decay >= 1e-3:
        rows.append(_small_row("exact", "minimum", 0.95, rng) | {"fit": "certified"})
    if decay == 1e-3:
        rows.append(_small_row("exact", "scratch_starts", 0.1, rng, "scratch"))
        for train, value in zip(GROUPS, (0.5, 0.6, 0.75), strict=True):
            rows += [_small_row(e, "pbrf", value, rng, train) for e in ("exact_ggn", "second_order")]
    return rows


def dampings(values: tuple[float, ...] = (0.0003, 0.001, 0.01, 0.1), count: int = 3) -> pd.DataFrame:
    """A run over dampings: rows at the network's own (no number), and at each value; damping makes estimates small."""
    rng, rows = np.random.default_rng(21), []
    run = {"run_id": "small_mnist-wd0.001-s2-dampings", "profile": "laptop", "dataset": "small_mnist", "seed": 2}
    run |= {"architecture": "small_cnn", "weight_decay": 1e-3, "n_train": 5500, "n_params": 2616, "fit": "certified"}
    run |= {"test_choice": "max_loss", "activation": "tanh", "grad_norm": 1e-7, "eig_min": 1e-6, "eig_max": 20.0}
    ways = itertools.product(
        range(count),
        ("top_influence", "p30_influence"),
        ("minimum", "warm_minibatch", "unrolled_minibatch"),
        (np.nan, *values),
    )
    for test_point, train, truth, damping in ways:
        value = 0.9 - 10 * np.nan_to_num(damping, nan=0.5) ** 1.5
        row = _small_row("exact", truth, value, rng, train) | {"reliability": 0.81, "damping": damping}
        row["slope"] = 1 + 30 * np.nan_to_num(damping, nan=0.5)
        rows.append(run | {"test_point": float(test_point), "test_loss": 3.0 - test_point} | row)
    return pd.DataFrame(rows)


@functools.cache
def _networks() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    runs = list(itertools.product(("mnist", "cifar10"), NETWORKS, (0.001, 0.0), ["adam"], [0]))
    runs += [("mnist", a, 0.001, "adam", s) for a in ("small_cnn", "lenet") for s in (1, 2, 3)]
    runs += [("mnist", "lenet", 0.001, o, 0) for o in ("sgd", "nesterov", "rmsprop")]
    return pd.DataFrame([row for run in runs for row in _network_rows(*run, rng)])


def networks() -> pd.DataFrame:
    return _networks().copy()


def _network_rows(dataset: str, architecture: str, decay: float, optimiser: str, seed: int, rng) -> list[dict]:
    depth, n_params, width, level = NETWORKS[architecture]
    level -= 0.15 * (decay == 0) - 0.1 * (dataset == "cifar10")
    run = {"run_id": f"{dataset}-{architecture}-wd{decay:g}-{optimiser}-s{seed}", "profile": "laptop"}
    run |= {"dataset": dataset, "architecture": architecture, "depth": depth, "weight_decay": decay, "n_train": 500}
    run |= {"n_params": n_params + 144 * (dataset == "cifar10"), "width_multiplier": width, "optimiser": optimiser}
    run |= {"seed": seed, "fit": "trained", "status": "ok", "n_points": 40, "seconds_retrain": n_params**0.5}
    rows = []

    def add(value: float, estimator: str, truth: str, train: str, **more: object) -> None:
        seconds = ESTIMATORS.get(estimator, np.nan) * (n_params / 60_000) ** 0.7
        named = {"estimator": estimator, "ground_truth": truth, "train_choice": train, "seconds_estimate": seconds}
        rows.append(run | named | score(value, rng) | more)

    main = (dataset, architecture, optimiser, seed, decay) == ("mnist", "lenet", "adam", 0, 0.001)
    for choice, first in (("max_loss", 10), ("p50_loss", 50)):
        for test_point in range(first, first + 3):
            place = {"test_choice": choice, "test_point": float(test_point)}
            again = {"ceiling_spearman": 0.6 + 0.4 * level if test_point == 10 else np.nan}
            for i, e in enumerate(ESTIMATORS):
                for train in ("top_influence", "random"):
                    value = level - 0.05 * i - 0.3 * (train == "random")
                    add(value, e, "warm_minibatch", train, **place, **again)
                    add(value, e, "warm_minibatch_minus_control", train, **place, **again)
                if architecture == "resnet18" and decay:
                    for k, g in enumerate(GROUPS):
                        add(0.1 * k, e, "warm_minibatch", g, **place, n_points=10, seconds_retrain=1e-3)
                if main:
                    for truth in ("warm_minibatch_0.25", "warm_minibatch_1"):
                        add(0.8, e, truth, "top_influence", **place, **again)
            if main:
                add(0.5, "lissa_partition", "warm_minibatch", "scratch", **place)
                add(0.05, "lissa_partition", "scratch_batches", "scratch", **place)
                add(-0.1, "warm_minibatch", "scratch_batches", "scratch", **place)
        add(0.9, "lissa_partition", "warm_minibatch", "top_influence", test_choice=f"{choice}_together")
    return rows


def of_ones_own() -> pd.DataFrame:
    """A regression and a transformer, each trained anew and gone on with, with two decays and two seeds."""
    rng, rows = np.random.default_rng(8), []
    ways = (("diabetes", "digits"), (0.003, 0.03), (0, 1), ("cg_ggn", "identity"), ("scratch_fit", "warm_minibatch"))
    for dataset, decay, seed, estimator, truth in itertools.product(*ways):
        row = {
            "run_id": f"your_model-{dataset}-wd{decay}-s{seed}",
            "profile": "quick",
            "dataset": dataset,
            "seed": seed,
        }
        row |= {"weight_decay": decay, "estimator": estimator, "ground_truth": truth, "status": "ok", "n_train": 300}
        row |= {"train_choice": "top_influence", "fit": "trained", "repeats": 2, "reliability": 0.7}
        rows += [row | score(0.5, rng, test_choice=c, test_point=p) for c, p in (("max_loss", 4), ("p50_loss", 9))]
    return pd.DataFrame(rows)


def puzzles() -> pd.DataFrame:
    """A perceptron trained in two ways, estimates at two dampings, and the loss after removals by two scores."""
    run = {"profile": "laptop", "dataset": "puzzle", "n_train": 1000, "n_points": 8, "seed": 0, "status": "ok"}
    rng, rows = np.random.default_rng(9), []
    for puzzle, way in itertools.product(("perceptron", "logistic"), (0, 1)):
        told = {"puzzle": puzzle, "architecture": puzzle, "run_id": f"puzzles-{puzzle}"}
        if puzzle == "perceptron":
            told |= {"run_id": f"puzzles-{way}", "fit": f"masked, dropout {way}", "batches": "masked", "dropout": way}
        else:
            told |= {"damping": 10.0**-way}
        ways = itertools.product(("random", "top_influence"), ("exact", "identity"), range(3))
        for train, estimator, point in ways:
            place = {"train_choice": train, "estimator": estimator, "test_choice": "max_loss", "test_point": point}
            rows.append(run | told | place | score(0.6, rng, spearman_single=0.4, reliability_single=0.25))
    curve = run | {"puzzle": "curve", "architecture": "curve", "run_id": "puzzles-curve", "repeats": 8}
    for by, removed, estimator in itertools.product(("ekfac", "random"), (5, 10), ("ekfac", "identity")):
        told = {"fit": "concrete", "selected_by": by, "removed": removed, "estimator": estimator}
        told |= {"test_choice": "all_together", "train_choice": f"most_helpful_{removed}", "ground_truth": "minimum"}
        rows.append(curve | told | {"loss_before": 1.0, "loss_after": 1 + removed / 10, "loss_error": 0.1})
    return pd.DataFrame(rows)


def everything(count: int = 8) -> pd.DataFrame:
    """All studies in one table, with photographs beside them, as a grid writes it.

    `count`: test points of each kind of a network of small MNIST, by far the most rows.
    """
    row = {"ground_truth": "warm_minibatch", "dataset": "imagenet_standin", "test_point": 3.0, "n_points": 8}
    row |= {"estimator": "lissa_partition", "pearson": 0.1, "spearman": -0.2, "slope": 12.0, "control_change": np.nan}
    row |= {"run_id": "photographs", "seed": 0, "status": "ok", "test_choice": "random", "n_train": 200}
    minus = row | {"ground_truth": "warm_minibatch_minus_control"}
    tables = [
        iris(activations=("relu", "tanh"), widths=(8, 50)),
        small_mnist(count=count),
        networks(),
        of_ones_own(),
        puzzles(),
        pd.DataFrame([row, minus]),
    ]
    table = pd.concat(tables, ignore_index=True)
    again = repeated(table)
    once = table.merge(again[PLACE].drop_duplicates(), on=PLACE, how="left", indicator=True)["_merge"] == "left_only"
    return pd.concat([table[once.to_numpy()], again, subsets(again), dampings()], ignore_index=True)


def repeated(table: pd.DataFrame) -> pd.DataFrame:
    """Some of the networks again on more examples, as truths that were measured eight times, with their derivatives."""
    chosen = table["ground_truth"].isin(["warm_descent", "warm_minibatch"]) & (table["seed"] < 2)
    chosen &= table["estimator"].isin(["exact", "lissa_partition"]) & table["architecture"].isin(REPEATED)
    again = table[chosen & (table["optimiser"].isna() | (table["optimiser"] == "adam"))]
    again = again[again["train_choice"] != "scratch"]
    spearman = again["spearman"].astype(float)
    again = again.assign(repeats=8, spearman_single=spearman - 0.1, spearman_corrected=spearman + 0.05)
    again = again.assign(reliability_single=0.5, reliability=0.8, reliability_pearson=0.85)
    unrolled = again["ground_truth"].str.replace("warm", "unrolled")
    found = [again, again.assign(ground_truth=unrolled), again.assign(estimator=unrolled, spearman=spearman + 0.1)]
    larger = again["architecture"].isin(["lenet", "small_cnn"])
    for n in (2000, 5000):
        named = {"n_train": n, "run_id": again["run_id"] + f"-n{n}"}
        found += [part.assign(**named)[larger] for part in found[:3]]
    return pd.concat(found, ignore_index=True)


def subsets(again: pd.DataFrame) -> pd.DataFrame:
    """Repeated truths of random subsets, of networks that are trained anew as well."""
    warm = again[again["ground_truth"].str.startswith("warm") & (again["train_choice"] == "top_influence")]
    warm = warm[warm["n_train"].isin([120, 2000, 5500])].assign(run_id=warm["run_id"] + "-subsets", n_points=64)
    anew = {"iris": "scratch_descent", "small_mnist": "scratch_starts", "mnist": "scratch_batches"}
    found = [warm, warm.assign(ground_truth=warm["dataset"].map(anew), reliability=0.3).dropna(subset="ground_truth")]
    return pd.concat([part.assign(train_choice=f"removed_{s}") for part in found for s in ("0", "0.05", "0.5")])


def points(seeds: int = 1, tests: int = 3, k: int = 20, spread: float = 0.0, truths: dict | None = None) -> list[dict]:
    """Points as in records: `truths` maps each truth to the factor and the noise that make it of the estimates."""
    rng, found = np.random.default_rng(4), []
    truths = truths or {"warm_minibatch": (1, 1), "pbrf": (1, 0), "minimum": (0.5, 0)}
    for seed, test_point, train in itertools.product(range(seeds), range(40, 40 + tests), ("top_influence", "all")):
        estimate = rng.normal(size=k) * np.exp(spread * rng.normal(size=k))
        noise = rng.normal(size=k)
        point = {"seed": seed, "weight_decay": 0.001, "test_choice": "max_loss", "train_choice": train}
        point |= {"test_point": test_point, "index": list(range(k)), "dataset": "small_mnist", "fit": "finished"}
        point["estimate"] = {"exact": estimate.tolist(), "exact_ggn": (0.9 * estimate + 0.2 * noise).tolist()}
        point["truth"] = {name: (f * estimate + n * noise).tolist() for name, (f, n) in truths.items()}
        found.append(point)
    return found


def held_out() -> pd.DataFrame:
    """Cases of several networks with what a rule gave them, and a reliability measured beside one that was foretold."""
    draws, sets = np.random.default_rng(5), ("mnist", "cifar10", "small_mnist", "diabetes", "digits")
    table = pd.DataFrame({"dataset": np.repeat(sets, 40), "good": draws.random(200) < 0.4, "score": draws.random(200)})
    table = table.assign(network=table["dataset"] + " lenet of depth 5", run_id="a-run", n_train=500, test_point=3)
    told = {"ground_truth": "warm_minibatch", "train_choice": "random", "foretold": table["score"]}
    return table.assign(**told, measured=table["score"] ** 2)
