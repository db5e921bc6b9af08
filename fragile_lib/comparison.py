"""Lay estimates beside ground truths: the steps of a study of one setting, over all of its seeds at once.

    fit -> test points -> estimates -> points to leave out -> ground truths -> rows of the results table

Letters: S seeds, n training examples, m examined test points (one for each test choice), P parameters.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fragile_lib import agreement as evaluation
from fragile_lib.influence import influence, leave_one_out, parameter_change
from fragile_lib.minimise.descent import STATIONARY, Certificate, certify, descend
from fragile_lib.minimise.newton import finish, newton
from fragile_lib.minimise.retraining import Minimise, loss_changes, retrain
from fragile_lib.objectives.base import Objective
from fragile_lib.selection import test_point, train_points
from fragile_lib.solvers import ExactSolver, LissaSolver, Solver
from fragile_lib.tools.progress import progress

UNUSABLE = ("diverged", "constant", "separable", "not_certified")  # fits at which no influence is estimated
CERTIFIED_SHARE = 0.8  # of the left-out optima that must be certified for a row to be `ok`


@dataclass(frozen=True)
class Fit:
    """S networks at one kind of end point, `descent` or `certified`, with the objectives that they belong to."""

    name: str
    train: Objective
    test: Objective
    theta: Tensor
    certificates: list[Certificate]
    seconds: float

    def usable(self, s: int) -> bool:
        """Whether influence can be estimated at fit s at all."""
        return self.certificates[s].status not in UNUSABLE

    def table(self, seeds: list[int]) -> list[dict]:
        """The certificates as rows, for the result record."""
        return [{"seed": seed, "fit": self.name, **asdict(c)} for seed, c in zip(seeds, self.certificates, strict=True)]


@dataclass(frozen=True)
class Estimates:
    """By one estimator: loss changes (S, n, m), parameter-change norms (S, n) or nan, residual, seconds and outcome."""

    changes: np.ndarray
    norms: np.ndarray
    residual: list[float]
    seconds: list[float]
    status: list[str]


@dataclass(frozen=True)
class Truths:
    """By one ground truth: loss changes (S, n, m), parameter-change norms (S, n), nan where none was retrained."""

    changes: np.ndarray
    norms: np.ndarray
    seconds: float
    control: np.ndarray = field(default_factory=lambda: np.zeros(0))


def fit_descent(train: Objective, test: Objective, theta: Tensor, steps: int, rate: float, momentum: float) -> Fit:
    """The paper's fit: gradient descent for a stated number of steps."""
    began = perf_counter()
    theta = descend(train, theta, train.uniform(len(theta)), steps, rate, momentum, label="training")
    return Fit("descent", train, test, theta, certify(train, theta, steps, finished=False), perf_counter() - began)


def fit_certified(start: Fit) -> Fit:
    """The same networks driven on to stationary points; ReLU is smoothed for it (see `stationary.finish`)."""
    began = perf_counter()
    finished = finish(start.train, start.theta)
    train, theta = finished.objective, finished.theta
    certificates = certify(train, theta, finished.steps, finished=True)
    for s in range(len(theta)):
        if not start.usable(s):  # a diverged or constant network keeps its outcome
            theta[s], certificates[s] = start.theta[s], start.certificates[s]
    return Fit("certified", train, train.on(start.test.data), theta, certificates, perf_counter() - began)


def choose_test_points(fit: Fit, choices: list[str]) -> np.ndarray:
    """(S, m) the examined test point of each seed for each choice, by the test losses at `fit`."""
    return np.array([[test_point(losses, choice) for choice in choices] for losses in fit.test.losses(fit.theta)])


def estimate(
    fit: Fit, points: np.ndarray, name: str, damping: float, lissa_depth: int = 10_000, lissa_repeats: int = 1
) -> Estimates:
    """Influence of every training example on each seed's test points (S, m) by the estimator `name`."""
    (seeds, m), n = points.shape, fit.train.n
    found = Estimates(np.full((seeds, n, m), np.nan), np.full((seeds, n), np.nan), [], [], [])
    removals = leave_one_out(torch.arange(n), n).to(fit.theta)
    for s in progress(range(seeds), desc=f"{name}, {fit.name}"):
        if not fit.usable(s):
            found.residual.append(np.nan), found.seconds.append(0.0), found.status.append(fit.certificates[s].status)
            continue
        solver = _solver(fit, s, name, damping, lissa_depth, lissa_repeats)
        result = influence(fit.train, fit.test, fit.theta[s], removals, torch.from_numpy(points[s]), solver, s)
        found.changes[s] = result.changes.cpu()
        if name != "lissa":
            found.norms[s] = parameter_change(fit.train, fit.theta[s], removals, solver, s).norm(dim=1).cpu()
        found.residual.append(result.residual), found.seconds.append(result.seconds), found.status.append(result.status)
    return found


def _solver(fit: Fit, s: int, name: str, damping: float, lissa_depth: int, lissa_repeats: int) -> Solver:
    if name == "lissa":
        return LissaSolver(fit.train, fit.theta[s], damping, lissa_depth, lissa_repeats, seed=s, dataset=s)
    return ExactSolver(fit.train, fit.theta[s], damping, gauss_newton=name == "exact_ggn", dataset=s)


def choose_removals(
    fit: Fit, estimates: Estimates, test_choices: list[str], train_choices: list[str], fraction: float
) -> dict[tuple[str, str], list[np.ndarray]]:
    """{(test choice, training choice): for each seed the training points to leave out}, influence by `estimates`."""
    losses, chosen = fit.train.losses(fit.theta), {}
    for j, test_choice in enumerate(test_choices):
        for train_choice in train_choices:
            scores = [torch.from_numpy(changes[:, j]) for changes in estimates.changes]
            chosen[test_choice, train_choice] = [
                train_points(train_choice, fraction, losses[s].cpu(), scores[s]).numpy() for s in range(len(scores))
            ]
    return chosen


def leave_out(
    fit: Fit, points: np.ndarray, removals: dict[tuple[str, str], list[np.ndarray]], minimise: Minimise, finished: bool
) -> tuple[Truths, Truths]:
    """Ground truths at `fit` for the union of all chosen removals: as they are, and minus the control.

    Each left-out network is trained once and evaluated on all test points. With `finished`, a left-out optimum whose
    gradient norm stays above `STATIONARY` counts as not there (nan).
    """
    (seeds, m), n = points.shape, fit.train.n
    union = [np.unique(np.concatenate([chosen[s] for chosen in removals.values()])) for s in range(seeds)]
    union = [indices if fit.usable(s) else indices[:0] for s, indices in enumerate(union)]
    result = retrain(fit.train, fit.theta, [leave_one_out(torch.from_numpy(i), n) for i in union], minimise)
    changes, norms, control = np.full((seeds, n, m), np.nan), np.full((seeds, n), np.nan), np.full((seeds, m), np.nan)
    less_control, less_norms = changes.copy(), norms.copy()
    for s, indices in enumerate(union):
        places, base = torch.from_numpy(points[s]), fit.theta[s]
        kept = (result.grad_norm[s] <= STATIONARY if finished else torch.isfinite(result.grad_norm[s])).cpu().numpy()
        control[s] = loss_changes(fit.test, result.control[s : s + 1], base, places, s)[0].cpu()
        changes[s, indices[kept]] = loss_changes(fit.test, result.theta[s], base, places, s).cpu().numpy()[kept]
        norms[s, indices[kept]] = (result.theta[s] - base).norm(dim=1).cpu().numpy()[kept]
        less_control[s] = changes[s] - control[s]
        less_norms[s, indices[kept]] = (result.theta[s] - result.control[s]).norm(dim=1).cpu().numpy()[kept]
    seconds = result.seconds / seeds
    return Truths(changes, norms, seconds, control), Truths(less_control, less_norms, seconds, control)


def ground_truths(
    fit: Fit,
    points: np.ndarray,
    removals: dict[tuple[str, str], list[np.ndarray]],
    steps: int,
    rate: float,
    momentum: float,
) -> dict[str, Truths]:
    """The ground truths that belong to a fit: the paper's warm start at `descent`, certified optima at `certified`."""
    if fit.name == "certified":
        return {"loo_certified": leave_out(fit, points, removals, newton_again(fit.train), True)[0]}
    again = descent_again(fit.train, steps, rate, momentum)
    return dict(
        zip(("loo_warm", "loo_warm_minus_control"), leave_out(fit, points, removals, again, False), strict=True)
    )


def descent_again(train: Objective, steps: int, rate: float, momentum: float) -> Minimise:
    """The paper's retraining: as many steps of gradient descent from the optimum."""
    return partial(descend, train, steps=steps, learning_rate=rate, momentum=momentum, label="leave-one-out")


def newton_again(train: Objective) -> Minimise:
    """Retraining to a certified left-out optimum."""
    return partial(newton, train, max_steps=250)


def compare_all(
    fit: Fit,
    seeds: list[int],
    removals: dict[tuple[str, str], list[np.ndarray]],
    estimates: dict[str, Estimates],
    truths: dict[str, Truths],
    test_choices: list[str],
    points: np.ndarray,
) -> list[dict]:
    """One row for each seed, test choice, choice of training points, estimator and ground truth."""
    rows = []
    for (test_choice, train_choice), chosen in removals.items():
        j = test_choices.index(test_choice)
        for name, estimated in estimates.items():
            for truth_name, truth in truths.items():
                for s, seed in enumerate(seeds):
                    place = {"seed": seed, "test_point": int(points[s, j]), "test_choice": test_choice}
                    place |= {"train_choice": train_choice, "fit": fit.name, "estimator": name}
                    rows.append(place | {"ground_truth": truth_name} | _row(fit, s, j, chosen[s], estimated, truth))
    return rows


def _row(fit: Fit, s: int, j: int, chosen: np.ndarray, estimated: Estimates, truth: Truths) -> dict:
    certificate = fit.certificates[s]
    kept = chosen[np.isfinite(truth.changes[s, chosen, j])]
    agreement = evaluation.compare(estimated.changes[s, kept, j], truth.changes[s, kept, j])
    norms = evaluation.compare_norms(estimated.norms[s, kept], truth.norms[s, kept])
    return {
        "n_points": len(kept),
        "n_uncertified": len(chosen) - len(kept) if fit.usable(s) else 0,
        "pearson": agreement.pearson,
        "spearman": agreement.spearman,
        "slope": agreement.slope,
        "sign_agreement": _sign_agreement(estimated.changes[s, kept, j], truth.changes[s, kept, j]),
        "norm_spearman": norms.spearman,
        "norm_ratio": norms.ratio,
        "control_change": truth.control[s, j],
        "grad_norm": certificate.grad_norm,
        "eig_min": certificate.eig_min,
        "eig_max": certificate.eig_max,
        "kinks": certificate.kinks,
        "solver_residual": estimated.residual[s],
        "status": _status(fit, s, estimated.status[s], agreement.status, len(kept), len(chosen)),
        "seconds_estimate": estimated.seconds[s],
        "seconds_retrain": truth.seconds,
    }


def _sign_agreement(estimated: np.ndarray, true: np.ndarray) -> float:
    """Share of removals whose estimated and true change have one sign; unlike a correlation it feels the control."""
    if not len(true) or not np.isfinite(estimated).all():
        return np.nan
    return float(np.mean(np.sign(estimated) == np.sign(true)))


def _status(fit: Fit, s: int, solver: str, agreement: str, kept: int, chosen: int) -> str:
    """The first outcome that is not ok, from the fit to the comparison."""
    if not fit.usable(s):
        return fit.certificates[s].status
    if solver == "solver_diverged":
        return solver
    if fit.name == "certified" and kept < CERTIFIED_SHARE * chosen:
        return "not_certified"
    if agreement != "ok":
        return agreement
    return solver


def scatter_points(
    fit: Fit,
    seeds: list[int],
    removals: dict[tuple[str, str], list[np.ndarray]],
    estimates: dict[str, Estimates],
    truths: dict[str, Truths],
    test_choices: list[str],
    test_choice: str,
    train_choice: str,
) -> list[dict]:
    """The compared numbers themselves, for one choice of test and training points: what the scatter plots show."""
    j, found = test_choices.index(test_choice), []
    for s, seed in enumerate(seeds):
        index = removals[test_choice, train_choice][s]
        place = {"seed": seed, "fit": fit.name, "test_choice": test_choice, "train_choice": train_choice}
        found.append(
            place
            | {"index": index}
            | {"estimate": {name: e.changes[s, index, j] for name, e in estimates.items()}}
            | {"truth": {name: t.changes[s, index, j] for name, t in truths.items()}}
        )
    return found
