"""What the notebook of one's own model examines: two cases on scikit-learn's data, and any Python file."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn

from fragile_lib.minimise.modules import train
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.objectives.losses import CROSS_ENTROPY, Loss, SquaredError, as_loss
from fragile_lib.own.examples import Examples
from fragile_lib.tools.errors import bad_input

Fit = Callable[[np.ndarray, int], nn.Module]
HELD_OUT = {"diabetes": 100, "digits": 40}
DIGITS = 300  # training images, of 1,797


@dataclass(frozen=True)
class Case:
    """A module, its data and its loss.

    Args:
        name: what the results call the data.
        data: training and test examples, as in `network_of`.
        loss: of one example.
        module: the start of every training; or a function without arguments that draws one. None where there is `fit`.
        fit: (rows, seed) -> the module trained on these training examples, in evaluation mode; None: `fitter` trains.
    """

    name: str
    data: tuple[Examples, Examples]
    loss: Loss | Callable[[Tensor, Tensor], Tensor]
    module: nn.Module | Callable[[], nn.Module] | None = None
    fit: Fit | None = None

    @property
    def n(self) -> int:
        """The number of training examples."""
        some = self.data[0]
        return len(some[0]) if isinstance(some, tuple | list) else len(getattr(some, "dataset", some))

    def fitter(self, schedule: Schedule, weight_decay: float) -> Fit:
        """(rows, s) -> the module trained on these examples with the seed `schedule.seed + s`.

        By the case's own `fit`; else by minibatches: an example that is left out has weight zero in its batches.
        """

        def trained(rows: np.ndarray, s: int) -> nn.Module:
            rows, seed = np.asarray(rows), schedule.seed + s
            if self.fit is not None:
                return self.fit(rows, seed)
            x, y = self.data[0]
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                start = deepcopy(self.module) if isinstance(self.module, nn.Module) else self.module()
                removed, how = np.setdiff1d(np.arange(len(x)), rows), replace(schedule, seed=seed)
                return train(start, x, y, how, weight_decay, removed, as_loss(self.loss)).module.eval()

        return trained


def diabetes() -> Case:
    """Progression of diabetes from ten measurements (Efron et al. 2004): 342 patients and 100 held out, standardised.

    By a perceptron with one hidden layer of eight units and the squared error.
    """
    x, y = load_diabetes(return_X_y=True, scaled=False)
    order = np.random.default_rng(0).permutation(len(x))
    columns = torch.from_numpy(np.column_stack([x, y])[order])
    kept = columns[HELD_OUT["diabetes"] :]
    columns = (columns - kept.mean(0)) / kept.std(0)

    def perceptron() -> nn.Module:
        return nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    halves = columns[HELD_OUT["diabetes"] :], columns[: HELD_OUT["diabetes"]]
    return Case("diabetes", tuple((part[:, :-1], part[:, -1:]) for part in halves), SquaredError(), perceptron)


class RowTransformer(nn.Module):
    """One transformer block (Vaswani et al. 2017) over the rows of an 8 x 8 image, eight tokens of eight pixels."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.embedding, self.places = nn.Linear(8, width), nn.Parameter(torch.zeros(8, width))
        self.before_attention, self.before_layers = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.out = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 10) of images (n, 8, 8)."""
        z = self.embedding(x) + self.places
        u = self.before_attention(z)
        z = z + self.attention(u, u, u, need_weights=False)[0]
        z = z + self.layers(self.before_layers(z))
        return self.out(z.mean(1))


def digits() -> Case:
    """300 and 40 of scikit-learn's digits by a transformer block and the cross entropy, in float32."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))[: DIGITS + HELD_OUT["digits"]]
    x, y = torch.tensor(found.images[order] / 16).float(), torch.tensor(found.target[order])
    return Case("digits", ((x[:DIGITS], y[:DIGITS]), (x[DIGITS:], y[DIGITS:])), CROSS_ENTROPY, RowTransformer)


CASES: dict[str, Callable[[], Case]] = {"diabetes": diabetes, "digits": digits}


def open_case(model: str) -> Case:
    """One of `CASES`, or what a Python file defines: `data`, `loss`, and `module` or `fit`, as in `Case`.

    Raises:
        InputError: no such file, one that does not run, or one that lacks a name or means something else by it.
    """
    if model in CASES:
        return CASES[model]()
    path = Path(model).expanduser()
    if not path.is_file():
        raise bad_input("model", model, f"is no file; give {', '.join(CASES)}, or the path of a Python file")
    try:
        found = runpy.run_path(str(path))
    except Exception as error:
        raise bad_input("model", model, f"does not run ({type(error).__name__}: {error})") from error
    data, loss, module, fit = (found.get(name) for name in ("data", "loss", "module", "fit"))
    wrong = {
        "data = (train, test)": not (isinstance(data, tuple | list) and len(data) == 2),
        "loss, a function (outputs, targets) -> (n,) or one of fragile_lib.objectives.losses": loss is None,
        "module, a torch.nn.Module or a function that makes one, or fit(rows, seed) -> the trained module": (
            not callable(module) and not callable(fit)
        ),
        "training data of two tensors (x, y), which training here takes; or fit": (
            not callable(fit) and isinstance(data, tuple | list) and not isinstance(data[0], tuple | list)
        ),
    }
    if any(wrong.values()):
        missing = "; ".join(name for name, lacks in wrong.items() if lacks)
        raise bad_input("model", model, f"the file has to define {missing}")
    return Case(path.stem, tuple(data), loss, module, fit)
