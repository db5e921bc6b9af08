"""Every estimator and every truth on each kind of network, by the same calls."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import iris_subset
from torch import nn

from fragile_lib.choices import Chosen, Removals, choose_points
from fragile_lib.data.sets import Data, small_mnist
from fragile_lib.estimates import ESTIMATORS, estimate
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.minimise.stack import StackTrainer
from fragile_lib.models.mlp import MLP
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.network import Network, dense, modules, stack
from fragile_lib.rows import compare
from fragile_lib.tools.errors import InputError
from fragile_lib.truths import MINUS_CONTROL, TRUTHS, leave_out

AGAIN = Schedule(steps=6, batch=10, learning_rate=1e-2, drops=())


class Ramp(nn.Module):
    """Ten outputs of any data."""

    def __init__(self, rows: np.ndarray, seed: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1 / (1 + seed + rows.sum() % 7)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.slope * x.flatten(1).sum(1, keepdim=True) * torch.linspace(-1, 1, 10).to(x)


SMALL = {"lissa_single": {"depth": 20}, "lissa_random": {"depth": 20, "batch": 5}, "nystroem": {"rank": 8}}
SMALL |= {"lissa_partition": {"depth": 5, "batch": 5}, "arnoldi": {"rank": 8}, "source": {"time": 5.0}}
HOW = {
    "warm_descent": {"steps": 5, "learning_rate": 0.1, "momentum": 0.9},
    "warm_minibatch": {"schedule": AGAIN},
    "unrolled_descent": {"steps": 5, "learning_rate": 0.1, "momentum": 0.9},
    "unrolled_minibatch": {"schedule": AGAIN},
    "scratch_descent": {"steps": 5, "learning_rate": 0.1, "momentum": 0.9, "seeds": [0, 1]},
    "scratch_starts": {"schedule": AGAIN, "seeds": [0, 1]},
    "scratch_batches": {"seeds": [0, 1]},
    "scratch_fit": {"fit": Ramp},
}
REFUSED = {"module": {"scratch_descent"}}  # whose start is known to its trainer alone
ANEW = ("scratch_descent", "scratch_starts", "scratch_batches")  # whose seeds are their repetitions
LEFT_OUT = 5


def with_a_past(network: Network) -> Network:
    """Checkpoints, as they are kept of minibatch training."""
    return replace(
        network, checkpoints=torch.stack([1.1 * network.theta, network.theta]), rates=torch.tensor([0.1, 0.1])
    )


def perceptrons() -> list[Network]:
    """Two of one stack, at certified minima, with a way to go on by minibatches."""
    sets = [iris_subset(8, seed) for seed in (4, 7)]
    data = [Data(torch.cat([d[k].x for d in sets]), torch.cat([d[k].y for d in sets])) for k in (0, 1)]
    found = stack.driven_on(stack.descended(MLP(1, 3, "tanh"), *data, 0.05, 1e-3, [4, 7], 400, 0.1, 0.9))
    trained = [replace(n, trainer=StackTrainer(n.alone().train, n.theta), schedule=AGAIN) for n in found]
    return [with_a_past(network) for network in trained]


def small_cnn() -> list[Network]:
    train, test = small_mnist("digits", 60, 40, seed=0)
    return [dense.prepare(SmallCNN(2), train, test, 0.02, 0.02, Schedule(100, 20, 1e-2), 1, minimum_rounds=8)]


def module() -> list[Network]:
    draw = torch.Generator().manual_seed(0)
    data = Data(torch.randn(1, 24, 1, 5, 5, generator=draw, dtype=torch.float64), torch.arange(24)[None] % 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(2, 3)).double()
    schedule = Schedule(30, 8, 0.02)
    return [with_a_past(modules.prepare(network, 3, data, data, 0.05, 0.3, schedule, "none", 10, "cpu"))]


@pytest.fixture(scope="module")
def two() -> list[Network]:
    return perceptrons()


def asked(networks: list[Network]) -> tuple:
    points = [choose_points(network.test_losses(), {"max_loss": 2}) for network in networks]
    return networks, points, [Chosen({"some": [Removals.single(range(LEFT_OUT), n.train.n)] * 2}) for n in networks]


@pytest.mark.parametrize("make", [perceptrons, small_cnn, module])
def test_all_go_through_the_same_calls(make) -> None:
    networks, points, chosen = asked(make())
    refused = REFUSED.get(make.__name__, set())
    estimates = estimate(networks, points, sorted(set(ESTIMATORS) - refused), chosen, SMALL)
    truths = leave_out(networks, points, chosen, sorted(set(TRUTHS) - refused), options=HOW)
    for name, found in ((name, found) for by in estimates for name, found in by.items()):
        assert found.changes.shape == (LEFT_OUT, 2) and np.isfinite(found.changes).all(), name
    rows = compare(networks, points, chosen, estimates, truths)
    assert {row["estimator"] for row in rows} == set(ESTIMATORS) - refused
    warm = {name + MINUS_CONTROL for name in TRUTHS if name.startswith("warm_")}
    assert {row["ground_truth"] for row in rows} == (set(TRUTHS) | warm) - refused
    assert len(rows) == 2 * sum(len(by) * len(of) for by, of in zip(estimates, truths, strict=True))


def test_training_anew_by_descent_is_refused_of_a_network_whose_start_is_not_known() -> None:
    networks, points, chosen = asked(module())
    with pytest.raises(InputError, match="its starts are not known"):
        leave_out(networks, points, chosen, ["scratch_descent"], options=HOW)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimate_of_one_of_a_stack_is_that_of_the_network_alone(two: list[Network], name: str) -> None:
    """Of its own training data, that is."""
    networks, points, chosen = asked(two)
    together = estimate(networks, points, [name], chosen, SMALL)
    alone = estimate([network.alone() for network in networks], points, [name], chosen, SMALL)
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(found[name].changes, expected[name].changes, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", TRUTHS)
def test_a_truth_of_one_of_a_stack_is_that_of_the_network_alone(two: list[Network], name: str) -> None:
    networks, points, chosen = asked(two)
    together = leave_out(networks, points, chosen, [name], options=HOW)
    for network, some, one, found in zip(networks, points, chosen, together, strict=True):
        (expected,) = leave_out([network.alone()], [some], [one], [name], options=HOW)
        np.testing.assert_allclose(found[name].changes, expected[name].changes, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found[name].control, expected[name].control, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["warm_descent", "minimum", "warm_minibatch"])
def test_leaving_nothing_out_is_the_control(two: list[Network], name: str) -> None:
    networks, points, _ = asked(two)
    chosen = [Chosen({"some": [Removals(((), (3,)), network.train.n)] * 2}) for network in networks]
    for found in leave_out(networks, points, chosen, [name], options=HOW):
        np.testing.assert_array_equal(found[name].changes[0], found[name].control)
        assert (found[name].changes[1] != found[name].control).all()


def test_training_anew_is_the_trainers_each_seed_against_its_own_control(two: list[Network]) -> None:
    networks, points, chosen = asked(two[1:])
    (found,) = leave_out(networks, points, chosen, ["scratch_starts", "scratch_batches"], options=HOW)
    members, test = [np.array([i]) for i in range(LEFT_OUT)], networks[0].on_points(points[0])
    for name, seeds in {"scratch_starts": [(1000, 1000), (1001, 1001)], "scratch_batches": [(0, 7), (1, 7)]}.items():
        for repetition, (order, start) in zip(found[name].repeats, seeds, strict=True):
            alone = networks[0].trainer.from_scratch(replace(AGAIN, seed=order), members, test, start)
            np.testing.assert_array_equal(repetition, alone.removed - alone.control)
        np.testing.assert_allclose(found[name].changes, found[name].repeats.mean(axis=0))


@pytest.mark.parametrize("name", sorted(set(TRUTHS) - {*ANEW, "minimum"}))
def test_a_truth_is_the_mean_of_its_repetitions_each_less_its_own_control(two: list[Network], name: str) -> None:
    networks, points, chosen = asked(two)
    for found, once in zip(
        leave_out(networks, points, chosen, [name], 3, HOW),
        leave_out(networks, points, chosen, [name], 1, HOW),
        strict=True,
    ):
        truth = found[name]
        np.testing.assert_array_equal(truth.repeats[0][:, 0], once[name].changes[:, 0])
        assert len(truth.repeats) == 3 and not np.allclose(truth.repeats[0, :, 0], truth.repeats[2, :, 0], rtol=1e-9)
        if truth.averaged:
            np.testing.assert_allclose(truth.changes, truth.repeats.mean(axis=0))
    for count in (0, True, 1.0):
        with pytest.raises(InputError, match="repeats"):
            leave_out(networks, points, chosen, [name], count, HOW)


@pytest.mark.parametrize("make", [perceptrons, module])
@pytest.mark.parametrize("kind", ["descent", "minibatch"])
def test_the_unrolled_derivative_is_what_retraining_does_to_first_order(make, kind: str) -> None:
    networks, points, chosen = asked(make())
    smooth = Schedule(steps=6, batch=8, learning_rate=0.05, drops=(), optimiser="sgd", momentum=0.5)
    how = HOW if make is module else HOW | dict.fromkeys(["warm_minibatch", "unrolled_minibatch"], {"schedule": smooth})
    for found in leave_out(networks, points, chosen, [f"warm_{kind}", f"unrolled_{kind}"], 2, how):
        warm, unrolled = found[f"warm_{kind}_minus_control"].repeats, found[f"unrolled_{kind}"].repeats
        np.testing.assert_allclose(unrolled, warm, atol=0.15 * np.abs(warm).max())
        assert np.corrcoef(unrolled.ravel(), warm.ravel())[0, 1] > 0.99
        np.testing.assert_allclose(
            found[f"unrolled_{kind}"].control, found[f"warm_{kind}"].control, rtol=1e-5, atol=1e-9
        )
        np.testing.assert_array_equal(found[f"unrolled_{kind}"].unseen, found[f"warm_{kind}"].unseen)


def test_what_cannot_be_trained_on_by_known_steps_is_refused(two: list[Network]) -> None:
    networks, points, chosen = asked(two[:1])
    bare = [replace(networks[0], trainer=None)]
    for name in ("warm_minibatch", "unrolled_minibatch"):
        with pytest.raises(InputError, match="trainer"):
            leave_out(bare, points, chosen, [name], options=HOW)
        with pytest.raises(InputError, match="schedule"):
            leave_out([replace(networks[0], schedule=None)], points, chosen, [name], options={name: {"fraction": 0.1}})


def test_a_stack_counts_the_images_of_networks_that_left_the_control_and_what_no_batch_held(two: list[Network]) -> None:
    network, points = two[0], choose_points(two[0].test_losses(), {"max_loss": 2})
    short = replace(AGAIN, steps=2)
    members = [np.array([i]) for i in range(network.train.n)]
    first = short.first_use(network.train.n, members)
    found = network.trainer.go_on(short, members, network.on_points(points))
    assert found.unseen.tolist() == (first == 2).tolist() and 0 < found.unseen.sum() < len(members)
    assert found.images == 10 * (2 + (2 - first).sum())
    np.testing.assert_array_equal(found.removed[found.unseen], np.tile(found.control, (found.unseen.sum(), 1)))
    np.testing.assert_allclose(found.before, network.test_losses()[points.index])


def test_a_left_out_network_that_diverged_is_not_there_at_any_point(two: list[Network]) -> None:
    networks, points, chosen = asked(two[:1])
    real = networks[0].trainer.go_on(AGAIN, [np.array([i]) for i in range(LEFT_OUT)], networks[0].on_points(points[0]))
    real.removed[1, 0] = np.inf

    class Trainer:
        def go_on(self, *_: object) -> object:
            return real

    networks = [replace(networks[0], trainer=Trainer())]
    (found,) = leave_out(networks, points, chosen, ["warm_minibatch"], options=HOW)
    assert np.isnan(found["warm_minibatch"].changes).all(axis=1).tolist() == [False, True, False, False, False]
    assert np.isfinite(np.delete(found["warm_minibatch"].changes, 1, axis=0)).all()
