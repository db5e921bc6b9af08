"""What the notebook of one's own model opens, by name or from a file; and what it says is to be believed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_own_study import ridge, targets
from torch import nn

from fragile_lib.minimise.modules import train
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.objectives.losses import SquaredError
from fragile_lib.own import beliefs, leave_out_again, network_of, open_case, study_model
from fragile_lib.tools.errors import InputError

HOW = Schedule(8, 20, 0.05, drops=(), seed=3)


def flat(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach()


@pytest.mark.parametrize(("name", "n", "m"), [("diabetes", 342, 100), ("digits", 300, 40)])
def test_the_cases_are_the_whole_sets_apart_and_train_by_seed_without_what_is_left_out(name, n, m):
    case = open_case(name)
    (x, y), (xt, yt) = case.data
    assert (case.n, len(y), len(xt), len(yt)) == (n, n, m, m)
    assert not (x.flatten(1)[:, None] == xt.flatten(1)[None]).all(2).any()  # none is on both sides
    fit, rows = case.fitter(HOW, 0.01), np.delete(np.arange(n), [4, 7])
    module = fit(rows, 2)
    assert torch.equal(flat(module), flat(fit(rows, 2))) and not module.training
    assert not torch.equal(flat(module), flat(fit(rows, 1)))
    torch.manual_seed(5)
    by_hand = train(case.module(), x, y, replace(HOW, seed=5), 0.01, [4, 7], case.loss).module
    assert torch.equal(flat(module), flat(by_hand))
    network = network_of(module, case.loss, *case.data, decayed="weights", weight_decay=0.01)
    assert torch.isfinite(network.test_losses()).all()


def test_features_are_standardised_by_the_training_half():
    (x, y), _ = open_case("diabetes").data
    for columns in (x, y):
        torch.testing.assert_close(columns.mean(0), torch.zeros_like(columns[0]), rtol=0, atol=1e-12)
        torch.testing.assert_close(columns.std(0), torch.ones_like(columns[0]))


FILE = """
import torch
from torch import nn
x = torch.arange(12.0).reshape(6, 2)
data = (x, x.sum(1, keepdim=True)), (x[:3], x[:3, :1])


def loss(outputs, targets):
    return (outputs - targets).square().sum(1)
"""


@pytest.mark.parametrize(
    "more",
    ["module = nn.Linear(2, 1)", "def module():\n    return nn.Linear(2, 1)", "module = lambda: nn.Linear(2, 1)"],
)
def test_a_file_gives_module_data_and_loss(tmp_path, more):
    path = tmp_path / "mine.py"
    path.write_text(FILE + more)
    case = open_case(str(path))
    fit = case.fitter(replace(HOW, batch=6), 0.0)
    assert case.name == "mine" and case.n == 6 and isinstance(fit(np.arange(6), 0), nn.Linear)
    found = study_model(fit(range(6), 0), case.loss, *case.data, estimator="exact", damping=1e-3)
    assert found.scores.shape == (6, 3) and found.residual < 1e-3


def test_a_fit_of_ones_own_takes_the_place_of_training_here(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE + "def fit(rows, seed):\n    return len(rows), seed")
    assert open_case(str(path)).fitter(HOW, 0.0)(range(4), 2) == (4, 5)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is no file; give diabetes, digits, or the path"),
        ("def", "does not run .SyntaxError"),
        ("import nothing_of_this_name", "does not run .ModuleNotFoundError"),
        (FILE, "has to define module"),
        ("module = lambda: None", "has to define data = .train, test.; loss"),
        (FILE + "module = nn.Linear(2, 1)\ndata = torch.utils.data.TensorDataset(x), x", "two tensors"),
    ],
)
def test_a_file_that_lacks_something_is_refused_in_one_line(tmp_path, content, says):
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"^model = .*{says}") as told:
        open_case(str(path))
    assert "\n" not in str(told.value)


# -- what to believe -------------------------------------------------------------------------------------------------


def believed(scale: float = 1.0, noise: float = 0.0, repeats: int = 3) -> pd.DataFrame:
    """Of a ridge regression whose parameters are `scale` times the minimum's, and whose retraining is noisy."""
    module = ridge(np.arange(40), 0)
    with torch.no_grad():
        module.weight *= scale
    how = {"estimator": "exact", "weight_decay": 0.05, "damping": 1e-9, "device": "cpu"}
    study = study_model(module, SquaredError(), targets(40), targets(3), **how)
    truths = leave_out_again(study, range(20), lambda rows, seed: ridge(rows, seed, noise), repeats)
    return beliefs(study.network, study, study.agreement(truths))


def test_at_a_minimum_with_a_quiet_truth_all_is_to_be_believed():
    found = believed()
    assert found.so.tolist() == ["yes", "yes", *["the order does"] * 3]
    assert "reliability 1.00" in found.measured[2] and "residual" in found.measured[1]


def test_what_is_not_a_minimum_or_too_noisy_or_measured_once_is_told():
    assert believed(scale=1.5).so[0].startswith("no")
    assert set(believed(noise=0.5, repeats=2).so[2:]) == {"not known: the retraining is too noisy"}
    assert set(believed(repeats=1).so[2:]) == {"not known: no agreement of repetitions"}


def test_an_equation_that_is_not_solved_is_told():
    module = ridge(np.arange(40), 0)
    how = {"estimator": "identity", "weight_decay": 0.05, "damping": 5.0, "device": "cpu"}
    study = study_model(module, SquaredError(), targets(40), targets(3), **how)
    rows = study.agreement(leave_out_again(study, range(5), ridge, 1))
    assert beliefs(study.network, study, rows).so[1].startswith("no")
