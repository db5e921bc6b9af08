"""Scores of all training examples of a user's network, with what says how far they can be believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn

from fragile_lib.choices import Points, Removals, rows_of
from fragile_lib.estimates.by_name import SOLVERS
from fragile_lib.estimates.influence import influence
from fragile_lib.network import Network
from fragile_lib.objectives.base import resolve_device
from fragile_lib.objectives.losses import Loss, as_loss
from fragile_lib.own.examples import Examples, first_of, objective_of
from fragile_lib.own.modules import model_of, outputs_of
from fragile_lib.solvers.base import Solver
from fragile_lib.solvers.dense import ExactSolver
from fragile_lib.tools.checks import check_count, check_name
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.files import write_whole

ARRAYS = ("scores", "self_influence", "test_values")


def logit(z: Tensor, y: Tensor) -> Tensor:
    """The label's own output (n,) of z (n, C)."""
    return z.gather(1, y.long()[:, None])[:, 0]


def margin(z: Tensor, y: Tensor) -> Tensor:
    """log p / (1 - p) of the label (n,), p the softmax of z (n, C)."""
    others = torch.arange(z.shape[1], device=z.device) != y.long()[:, None]
    return logit(z, y) - torch.where(others, z, -torch.inf).logsumexp(1)


MEASUREMENTS = {"margin": margin, "logit": logit}  # the higher, the better; of losses and functions the lower


@dataclass(frozen=True)
class Studied:
    """What leaving out each of n training examples would do to a measurement on each of m test examples.

    scores (n, m): the measurement after the removal minus before it, on the scale of real leave-one-out. An example
    whose removal makes a test example worse is helpful: a loss that rises, a margin or logit that falls.

    Args:
        scores: see above.
        test_values: the measurement (m,) on the test examples.
        self_influence: what leaving out each example does to its own loss (n,); nan where that was not asked for.
        residual: the largest relative residual of the solver's answers, on the full curvature.
        status: the solver's outcome (`fragile_lib.solvers`).
        certificate: ||grad J||, J, n, P, and with a dense solver the least and largest eigenvalue of its matrix.
        estimator, measurement: their names; seconds: of all of it; products: with the whole curvature, a test example.
        network: what was examined, for `leave_out_again`; None of a study that was read from a file.
    """

    scores: np.ndarray
    test_values: np.ndarray
    self_influence: np.ndarray
    residual: float
    status: str
    certificate: dict[str, float]
    estimator: str
    measurement: str
    seconds: float
    products: float
    network: Network | None = field(default=None, repr=False, compare=False)

    def helpful(self, point: int = 0, count: int = 10) -> list[tuple[int, float]]:
        """(index, score) of the training examples that help a test example most, the most helpful first."""
        return self._extreme(point, count, 1.0)

    def harmful(self, point: int = 0, count: int = 10) -> list[tuple[int, float]]:
        """(index, score) of those that harm it most, the most harmful first."""
        return self._extreme(point, count, -1.0)

    def _extreme(self, point: int, count: int, sign: float) -> list[tuple[int, float]]:
        check_count("count", count)
        (point,) = rows_of("point", [point], self.scores.shape[1])
        column = self.scores[:, point]
        better = -sign if self.measurement in MEASUREMENTS else sign
        order = np.argsort(-better * column, kind="stable")[:count]
        return [(int(i), float(column[i])) for i in order if better * column[i] > 0]

    def of(self, removals: Removals) -> np.ndarray:
        """(k, m) of removals of several examples each: the sums of their members' scores."""
        return removals.sums(self.scores)

    def save(self, path: Path | str) -> Path:
        """Write all of it but the network to one file of safetensors, whole or not at all."""
        told = {name: value for name, value in vars(self).items() if name not in (*ARRAYS, "network")}
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ARRAYS}
        path = Path(path).expanduser()
        write_whole(path, save(arrays, {"studied": json.dumps(told)}))
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
                return cls(**{name: file.get_tensor(name) for name in ARRAYS}, **told)
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise bad_input("path", str(path), f"is no file that Studied.save wrote ({reason})") from None


def study_model(
    module: nn.Module,
    loss: Loss | Callable[[Tensor, Tensor], Tensor],
    train: Examples,
    test: Examples,
    *,
    weight_decay: float = 0.0,
    decayed: str | Sequence[str] = "all",
    parameters: str | Sequence[str] = "all",
    measurement: str | Callable[[Tensor, Tensor], Tensor] = "loss",
    estimator: str = "cg_ggn",
    damping: float = 0.01,
    options: Mapping[str, object] | None = None,
    self_influence: Iterable[int] | None = None,
    chunk: int = 50,
    device: str = "auto",
) -> Studied:
    """Estimate what leaving out each training example would do to each test example.

    grad f^T (C + damping)^-1 grad loss_i / n, f the measurement, C the curvature over the training examples of
    J = mean loss + (weight_decay / 2) ||theta||^2 (Koh and Liang 2017). Training examples of a Dataset or DataLoader
    are streamed, once for each product and once for the scores, by their index in the dataset; K-FAC and Gram solvers
    hold all of them.

    Args:
        module: trained, in evaluation mode, in float32 or float64; a copy is taken.
        loss: of one example: one of `objectives.losses`, or a function (outputs, targets) -> (n,).
        train, test: (x, y) tensors of n and m examples, a Dataset of pairs, or a DataLoader over one.
        weight_decay: as in torch.optim's SGD, on the parameters that `decayed` names: `all`, `weights` (of two
            dimensions or more), or names.
        parameters: with respect to which: `all`, `last` (of the last layer), or names or beginnings of names.
        measurement: on test examples: `loss`, `margin`, `logit`, or a function (outputs, targets) -> (m,), the lower
            the better.
        estimator: a solver by its name in `params/methods.yaml`.
        damping: added to the curvature; options: of the estimator.
        self_influence: the training examples for which it is wanted, or a mask: a solve for each.
        chunk: examples whose activations are held at once.
        device: auto, cpu or cuda.

    Raises:
        InputError: what cannot be taken, by its name, with a remedy; before anything expensive.
    """
    began, loss = perf_counter(), as_loss(loss)
    check_name("estimator", estimator, tuple(SOLVERS))
    check_count("chunk", chunk)
    if not callable(measurement):
        check_name("measurement", measurement, ("loss", *MEASUREMENTS))
    module = deepcopy(module).to(resolve_device(device))
    x = first_of(train, next(module.parameters(), torch.zeros(())))
    model = model_of(module, outputs_of(module, x), parameters, decayed)
    objective = objective_of(model, train, weight_decay, chunk, loss)
    measured = objective_of(model, test, 0.0, chunk, loss, streamed=False)
    if measurement in MEASUREMENTS and (model.n_classes < 2 or measured.data.y.ndim != 2):
        raise bad_input("measurement", measurement, "is of examples with one label of several classes; give a function")
    if measurement != "loss":
        measured = measured.like(measured.data, loss=as_loss(MEASUREMENTS.get(measurement, measurement)))
    wanted = () if self_influence is None else rows_of("self_influence", self_influence, objective.n)
    network = Network(model.theta, objective, measured, damping)
    solver = SOLVERS[estimator](network, **(options or {}))
    points = Points(np.arange(measured.n), ["all"] * measured.n)
    found = influence(network, points, solver)
    itself = np.full(objective.n, np.nan)
    for rows in np.array_split(np.array(wanted, dtype=int), max(1, -(-len(wanted) // chunk))):
        itself[rows] = _own_influence(network, solver, rows)
    return Studied(
        scores=found.changes,
        test_values=measured.losses(model.theta[None])[0].double().cpu().numpy(),
        self_influence=itself,
        residual=found.residual,
        status=found.status,
        certificate=_certificate(network, solver),
        estimator=estimator,
        measurement=measurement if isinstance(measurement, str) else getattr(measurement, "__name__", "own"),
        seconds=perf_counter() - began,
        products=found.products,
        network=network,
    )


def _own_influence(network: Network, solver: Solver, rows: np.ndarray) -> np.ndarray:
    """g_i^T (C + damping)^-1 g_i / n for some training examples."""
    if not len(rows):
        return np.zeros(0)
    some, theta = network.train.part(rows), network.theta
    gradients = some.gradient(theta.expand(some.n, -1), torch.eye(some.n).to(theta))
    return (solver(gradients).x * gradients).sum(1).double().cpu().numpy() / network.train.n


def _certificate(network: Network, solver: Solver) -> dict[str, float]:
    train, theta = network.train, network.theta[None]
    weights = train.uniform(1)
    told = {
        "grad_norm": float(train.gradient(theta, weights).norm()),
        "objective": float(train.value(theta, weights)),
        "n": train.n,
        "n_params": theta.shape[1],
    }
    if isinstance(solver, ExactSolver) and solver.finite:
        told |= {"eig_min": float(solver.spectrum[0]), "eig_max": float(solver.spectrum[-1])}
    return told
