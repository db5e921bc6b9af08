"""Scores of all training examples of a user's network, with what says how far they can be believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn

from fragile_lib.choices import Chosen, Estimate, Points, Removals, Truth, rows_of
from fragile_lib.estimates.by_name import SOLVERS
from fragile_lib.estimates.influence import Direction, from_slopes
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.network import Network
from fragile_lib.objectives.losses import Loss
from fragile_lib.own.examples import Examples, OwnObjective
from fragile_lib.own.network import MEASUREMENTS, Certificate, network_of, trained_on
from fragile_lib.own.projected import trak
from fragile_lib.rows import compare
from fragile_lib.solvers.base import AppliedInverse, Solution, Solver
from fragile_lib.solvers.dense import ExactSolver
from fragile_lib.tools.checks import check_count, check_name
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.files import write_whole
from fragile_lib.tools.measure import Peak
from fragile_lib.truths import leave_out

ARRAYS = {"scores": "changes", "self_influence": "self_influence", "test_values": "test_values"}  # in a file: here
ITERATED = "cg", "cg_ggn", "minres"  # by many products with one matrix
NOT_KEPT = {"removals", "norms", "indefinite", "network", *ARRAYS.values()}


@dataclass(frozen=True, kw_only=True)
class Studied(Estimate):
    """What leaving out each of n training examples would do to a measurement on each of m test examples.

    scores (n, m): the measurement after the removal minus before it, on the scale of real leave-one-out. An example
    whose removal makes a test example worse is helpful: a loss that rises, a margin or logit that falls.

    Args:
        residual: the largest relative residual of the solver's answers, on the full curvature; nan where it was not
            measured.
        status: the solver's outcome (`fragile_lib.solvers`).
        seconds: of all of it; products: with the whole curvature, a test example.
        test_values: the measurement (m,) on the test examples.
        self_influence: what leaving out each example does to its own loss (n,); nan where that was not asked for.
        certificate: ||grad J||, J, n, P, and with a dense solver the least and largest eigenvalue of its matrix. What
            takes a pass over the examples is measured when it is first read.
        estimator, measurement: their names.
        network: what was examined, for `leave_out_again`; None of a study that was read from a file.
    """

    test_values: np.ndarray
    self_influence: np.ndarray
    certificate: Mapping[str, float]
    estimator: str
    measurement: str
    network: Network | None = field(default=None, repr=False, compare=False)

    @property
    def scores(self) -> np.ndarray:
        """See above."""
        return self.changes

    @property
    def points(self) -> Points:
        """All test examples."""
        m = self.changes.shape[1]
        return Points(np.arange(m), ["all"] * m)

    def at(self, places: Sequence[int]) -> Studied:
        """For some of the test examples alone."""
        some = list(rows_of("places", places, self.changes.shape[1]))
        return replace(self, changes=self.changes[:, some], test_values=self.test_values[some])

    def helpful(self, point: int = 0, count: int = 10) -> list[tuple[int, float]]:
        """(index, score) of the training examples that help a test example most, the most helpful first."""
        return self._extreme(point, count, 1.0)

    def harmful(self, point: int = 0, count: int = 10) -> list[tuple[int, float]]:
        """(index, score) of those that harm it most, the most harmful first."""
        return self._extreme(point, count, -1.0)

    def _extreme(self, point: int, count: int, sign: float) -> list[tuple[int, float]]:
        check_count("count", count)
        (point,) = rows_of("point", [point], self.changes.shape[1])
        column = self.changes[:, point]
        better = -sign if self.measurement in MEASUREMENTS else sign
        order = np.argsort(-better * column, kind="stable")[:count]
        return [(int(i), float(column[i])) for i in order if better * column[i] > 0]

    def agreement(self, truths: Mapping[str, Truth]) -> pd.DataFrame:
        """One row for each test example and truth of `leave_out_again`: the columns of the results table.

        pearson, spearman and slope with the mean of R repetitions; what their noise leaves to say
        (`agreement.beside_reliability`): the correlation with a single one, the reliability of one and of the mean, the
        corrected correlation, intervals. A correlation without a reliability says nothing: with one repetition that is
        nan.
        """
        network = self._examined()
        if not truths:
            raise bad_input("truths", truths, "give what leave_out_again gave")
        left = next(iter(truths.values())).removals
        of = [self.points], [Chosen({"given": [left] * len(self.points)})], [{self.estimator: self}], [dict(truths)]
        return pd.DataFrame(compare([network], *of))

    def _examined(self) -> Network:
        if self.network is None:
            raise bad_input("studied", "read from a file", "give the study itself: its network and data are asked for")
        return self.network

    def save(self, path: Path | str) -> Path:
        """Write all of it but the network to one file of safetensors, whole or not at all.

        Raises:
            InputError: a path where no file can be written.
        """
        told = {name: value for name, value in vars(self).items() if name not in NOT_KEPT}
        told["certificate"] = dict(self.certificate)
        arrays = {name: np.ascontiguousarray(getattr(self, held)) for name, held in ARRAYS.items()}
        path = Path(path).expanduser()
        try:
            write_whole(path, save(arrays, {"studied": json.dumps(told)}))
        except OSError as error:
            raise bad_input("path", str(path), f"give a file in a folder that can be written ({error})") from None
        return path

    @classmethod
    def load(cls, path: Path | str) -> Studied:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or one that `save` did not write.
        """
        path = Path(path).expanduser()
        try:
            with safe_open(path, "np") as file:
                told = json.loads(file.metadata()["studied"])
                arrays = {held: file.get_tensor(name) for name, held in ARRAYS.items()}
            n = len(arrays["changes"])
            return cls(Removals.single(range(n), n), **arrays, **told)
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise bad_input("path", str(path), f"is no file that Studied.save wrote ({reason})") from None


def study_model(
    module: nn.Module,
    loss: Loss | Callable[[Tensor, Tensor], Tensor],
    train: Examples,
    test: Examples,
    *,
    estimator: str = "cg_ggn",
    options: Mapping[str, object] | None = None,
    self_influence: Iterable[int] | None = None,
    **settings: object,
) -> Studied:
    """Estimate what leaving out each training example would do to each test example.

    grad f^T (C + damping)^-1 grad loss_i / n, f the measurement, C the curvature over the training examples of
    J = mean loss + (weight_decay / 2) ||theta||^2 (Koh and Liang 2017).

    Args:
        module, loss, train, test: as in `network_of`.
        estimator: a solver by its name in `params/methods.yaml`, or `trak`; options: of it, and `residual: False` for
            scores of kfac, ekfac, datainf and identity alone: the residual is a product with the curvature for each
            test example.
        self_influence: the training examples for which it is wanted, or a mask: a solve for each, so none by trak.
        **settings: those of `network_of`: weight_decay, decayed, parameters, measurement, damping, schedule, seed,
            chunk, device.

    Raises:
        InputError: what cannot be taken, by its name, with a remedy; before anything expensive.
    """
    began = perf_counter()
    check_name("estimator", estimator, (*SOLVERS, "trak"))
    network = network_of(module, loss, train, test, **settings)
    wanted = () if self_influence is None else rows_of("self_influence", self_influence, network.train.n)
    m, measurement = network.test.n, settings.get("measurement", "loss")
    points = Points(np.arange(m), ["all"] * m)
    if estimator == "trak":
        if len(wanted):
            raise bad_input("self_influence", list(wanted), "trak solves nothing; choose a solver, or leave it out")
        solver, found = None, trak(network, points, **(options or {}))
    else:
        solver = solver_of(estimator, network, **(options or {}))
        found = scores_of(network, points, solver)
    itself = np.full(network.train.n, np.nan)
    for rows in np.array_split(np.array(wanted, dtype=int), max(1, -(-len(wanted) // network.train.chunk))):
        itself[rows] = _own_influence(network, solver, rows)
    return Studied(
        **vars(found) | {"seconds": perf_counter() - began},
        test_values=network.test_losses().double().cpu().numpy(),
        self_influence=itself,
        certificate=Certificate(partial(_certificate, network, _edges(solver))),
        estimator=estimator,
        measurement=measurement if isinstance(measurement, str) else getattr(measurement, "__name__", "own"),
        network=network,
    )


def scores_of(network: Network, points: Points, solver: Solver) -> Estimate:
    """`influence` of all training examples, with one watch over its memory: of small networks it costs a third."""
    began = perf_counter()
    with Peak() as peak:
        found = solver(network.test_gradients(points))
        slopes = network.slopes(found.x).double().cpu().numpy()
    seconds = max(perf_counter() - began, found.seconds)
    costs = float(found.residual.max()), 0.0, found.products / len(found.x), peak.mb, found.status
    return from_slopes(network, Direction(found.x, *costs), slopes, None, seconds)


def solver_of(estimator: str, network: Network, residual: bool = True, **options: object) -> Solver:
    """The solver of a name; `residual`: whether one that applies an approximate inverse measures how far it is from it.

    Raises:
        InputError: without its residual an estimator that solves by it.
    """
    if estimator == "lissa_random" and not network.hessian.finite:
        return network.hessian  # its scale would be made from eigenvalues; without numbers all solvers say the same
    if estimator in ITERATED and isinstance(network.train, OwnObjective) and network.curved is None:
        network = replace(network, curved=network.train.often())
    solver = SOLVERS[estimator](network, **options)
    if residual:
        return solver
    if not isinstance(solver, AppliedInverse):
        raise bad_input("residual", residual, f"{estimator} solves by its residual; leave it on")
    return partial(applied, solver)


def applied(solver: AppliedInverse, v: Tensor) -> Solution:
    """The approximate inverse on rows v (K, P) alone, which is not called a solution: its residual is not known."""
    x = solver.apply(v)
    status = "not_converged" if bool(torch.isfinite(x).all()) else "solver_diverged"
    return Solution(x, torch.full_like(v[:, 0], torch.nan), solver.seconds, status)


def leave_out_again(
    studied: Studied,
    removals: Iterable[int] | Iterable[Iterable[int]],
    fit: Callable[[np.ndarray, int], nn.Module] | None = None,
    repeats: int = 3,
    schedule: Schedule | None = None,
) -> dict[str, Truth]:
    """Train without each removal, `repeats` times, each time beside a control on all examples.

    Anew by `fit` (the truth `scratch_fit`), or going on from the studied network by a `schedule` (`warm_minibatch`, and
    the same minus its control): {name: Truth}, whose removals are in order and each there once.

    Args:
        studied: of `study_model`, whose test examples and measurement are taken.
        removals: training examples, each left out by itself (a mask leaves out what it marks); or groups of them, each
            left out as a whole.
        fit: (rows (n',), seed) -> the module trained on these training examples, in evaluation mode. The same seed must
            mean the same start and the same order of what is left; dropout and the like go on, but drawn from it.
        repeats: R, with the seeds 0 .. R - 1.
        schedule: how to go on, in the place of `fit`.

    Raises:
        InputError: a study that was read from a file, an index that is none, R below 1, no removals, or neither or both
            of fit and schedule.
    """
    network = studied._examined()
    if (fit is None) == (schedule is None):
        raise bad_input("fit", fit, "say how to train: by fit(rows, seed), or by a schedule to go on by")
    left = _removals(removals, network.train.n)
    if schedule is None and not callable(fit):
        raise bad_input("fit", fit, "give a function (rows, seed) -> the trained module")
    name, how = ("scratch_fit", {"fit": fit}) if schedule is None else ("warm_minibatch", {"schedule": schedule})
    network = network if schedule is None else trained_on(network, schedule)
    chosen = Chosen({"given": [left] * len(studied.points)})
    return leave_out([network], [studied.points], [chosen], [name], repeats, {name: how})[0]


def _removals(given: Iterable[int] | Iterable[Iterable[int]], n: int) -> Removals:
    given = given if isinstance(given, torch.Tensor | np.ndarray) or not np.iterable(given) else list(given)
    remedy = "give training examples to leave out, or groups of them, none of them empty"
    single = {np.ndim(one) == 0 for one in given} if np.iterable(given) else ()
    if len(single) != 1:
        raise bad_input("removals", given, remedy)
    found = Removals.single(given, n) if single == {True} else Removals.groups(given, n)
    if not found.members or not all(found.members):
        raise bad_input("removals", found.members, remedy)
    return found


def _own_influence(network: Network, solver: Solver, rows: np.ndarray) -> np.ndarray:
    """g_i^T (C + damping)^-1 g_i / n for some training examples."""
    if not len(rows):
        return np.zeros(0)
    gradients = network.train.part(rows).example_gradients(network.theta[None])[0]
    return (solver(gradients).x * gradients).sum(1).double().cpu().numpy() / network.train.n


def _certificate(network: Network, edges: dict[str, float]) -> dict[str, float]:
    train, theta = network.train, network.theta[None]
    told = {
        "grad_norm": network.certificate["grad_norm"],
        "objective": float(train.value(theta, train.uniform(1))),
        "n": train.n,
        "n_params": theta.shape[1],
    }
    return told | edges


def _edges(solver: Solver | None) -> dict[str, float]:
    """The least and the largest eigenvalue of a dense solver's matrix."""
    if not (isinstance(solver, ExactSolver) and solver.finite):
        return {}
    return {"eig_min": float(solver.spectrum[0]), "eig_max": float(solver.spectrum[-1])}
