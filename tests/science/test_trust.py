"""What is told of scores before anything is left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import Regression

from fragile_lib.choices import Points, choose
from fragile_lib.estimates import estimate
from fragile_lib.own import trust
from fragile_lib.own.signals import signals
from fragile_lib.own.trust import LIGHTS
from fragile_lib.tools.errors import InputError


def told(damping: float, names=("exact", "identity"), **certificate) -> tuple:
    network = replace(
        Regression(n=60).network(damping), certificate={"grad_norm": 1e-9, "grad_norm_start": 1.0} | certificate
    )
    points = Points(np.array([2, 4]), ["max_loss", "p50_loss"])
    return network, points, estimate([network], [points], names)[0]


def lights(damping: float, **certificate) -> dict:
    table = trust(*told(damping, **certificate), count=10)
    return {(row.estimator, row.signal): row for row in table.itertuples()}


def test_lights_of_a_minimum_and_of_a_solver_that_solves_nothing():
    found = lights(1e-4)
    of_exact = {signal: row.light for (name, signal), row in found.items() if name == "exact"}
    assert of_exact.pop("trace_share") in ("green", "amber") and of_exact.pop("agreement")
    assert set(of_exact.values()) == {"green"} and {"residual", "left_out_gradient", "damping_rank"} <= set(of_exact)
    assert found["exact", "residual"].why == found["exact", "residual"].remedy == ""
    rough = found["identity", "residual"]
    assert rough.light == "amber" and "not solved its equation" in rough.why and "direct solver" in rough.remedy


def test_lights_of_heavy_damping_and_of_training_cut_short():
    found = lights(50.0, grad_norm=0.5, eig_min=-80.0)
    red = {signal for (name, signal), row in found.items() if name == "exact" and row.light == "red"}
    assert {"gradient_share", "eig_share"} <= red
    move = found["exact", "left_out_gradient"]
    assert move.light == "amber" and move.value > 0.9 and "does not lead to the optimum" in move.why


def test_values_are_those_of_the_signals():
    network, points, estimates = told(0.3)
    chosen = choose(estimates["exact"].changes[:, :1], {"top_influence": 10})
    first = Points(points.index[:1], ["max_loss"])
    (row, _) = signals([network], [first], [chosen], [estimates], [{}], ["exact", "identity"])
    found = trust(network, points, estimates, count=10)
    for one in found[found.estimator == "exact"].itertuples():
        assert one.value == row[one.signal]


@pytest.mark.parametrize(("name", "value", "light"), [
    ("residual", 0.05, "green"), ("residual", 0.5, "amber"), ("residual", 1.0, "red"), ("residual", np.nan, "unknown"),
    ("damping_rank", 0.96, "green"), ("damping_rank", 0.9, "amber"), ("damping_rank", 0.8, "red"),
    ("signal", 9.0, "green"),
])  # fmt: skip
def test_bounds(name, value, light):
    assert LIGHTS[name].of(value) == light


def test_an_estimator_without_a_solver_is_refused():
    network, points, estimates = told(0.3)
    with pytest.raises(InputError, match="signals = 'mine'"):
        trust(network, points, {"mine": estimates["exact"]}, count=10)
