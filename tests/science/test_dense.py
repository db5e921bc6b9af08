"""A small convolutional network on real digits from training to estimates and truths of every kind."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch

from fragile_lib.choices import Chosen, Points, Removals, Truth, choose, choose_points
from fragile_lib.data.sets import small_mnist
from fragile_lib.estimates import estimate
from fragile_lib.minimise.kept import Made, keep, load, settings
from fragile_lib.minimise.near_optimum import Optimum
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.network import Network
from fragile_lib.network.dense import prepare
from fragile_lib.own.lengths import over_lengths
from fragile_lib.rows import compare
from fragile_lib.solvers import ExactSolver
from fragile_lib.tools.errors import InputError
from fragile_lib.truths import leave_out, minima
from fragile_lib.truths.minima import Minima

DAMPING, DECAY = 0.02, 0.02


@pytest.fixture(scope="module")
def prepared() -> Network:
    train, test = small_mnist("digits", 200, 60, seed=0)
    return prepare(SmallCNN(channels=4), train, test, 0.001, DAMPING, Schedule(300, 50, 1e-2), rounds=2, checkpoints=3)


@pytest.fixture(scope="module")
def points(prepared: Network) -> Points:
    return choose_points(prepared.test_losses(), {"max_loss": 2, "p50_loss": 1})


def test_it_says_how_far_it_was_driven_and_what_that_cost(prepared: Network) -> None:
    weights = prepared.train.uniform(1)
    norm = float(prepared.train.gradient(prepared.theta[None], weights).norm())
    spectrum = torch.linalg.eigvalsh(prepared.train.matrices(prepared.theta[None], weights)[0])
    certificate = prepared.certificate
    assert certificate["grad_norm"] == pytest.approx(norm)
    assert certificate["eig_min"] == pytest.approx(float(spectrum[0]), abs=1e-6)
    assert certificate["eig_max"] == pytest.approx(float(spectrum[-1]), rel=1e-5)
    reached = norm <= certificate["tolerance"] and spectrum[0] >= -1e-6
    assert prepared.certified == bool(reached) and prepared.fit == ("certified" if reached else "finished")
    assert prepared.checkpoints.shape == (3, prepared.train.model.n_params)
    assert set(prepared.seconds) == {"minibatch", "optimum", "hessian"}
    trained = prepared.train.value(prepared.checkpoints[-1:], weights)
    assert certificate["objective"] < float(trained)  # minibatch training had not ended there


def at_a_minimum(networks: Path | str = "", seed: int = 0) -> Network:
    train, test = small_mnist("digits", 60, 40, seed=0)
    schedule = Schedule(100, 20, 1e-2, seed=seed)
    return prepare(SmallCNN(2), train, test, DECAY, DAMPING, schedule, 1, minimum_rounds=8, networks=networks)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `minimum` is kept."""
    return tmp_path_factory.mktemp("kept") / "networks"


@pytest.fixture(scope="module")
def minimum(networks: Path) -> Network:
    return at_a_minimum(networks)


@pytest.fixture
def folder(minimum: Network, networks: Path, tmp_path: Path) -> Path:
    """A copy of what is kept."""
    return Path(copytree(networks, tmp_path / "networks"))


def two_points(network: Network) -> Points:
    return choose_points(network.test_losses(), {"max_loss": 2})


def only(removals: Removals, m: int = 2, choice: str = "top_influence") -> Chosen:
    return Chosen({choice: [removals] * m})


def left_out(network: Network, points: Points, kind: str, chosen: Chosen, repeats: int = 1, **options: object) -> Truth:
    return leave_out([network], [points], [chosen], [kind], repeats, {kind: options})[0][kind]


def test_minimum_rounds_certify_where_rounds_alone_do_not_and_bfgs_finds_what_newton_steps_do_not(
    minimum: Network,
) -> None:
    further = minimum
    assert further.certified and further.certificate["status"] == "ok"
    found, rows = two_points(further), Removals.single(range(10), 60)
    chosen = Chosen({"top_influence": [Removals.single(range(8), 60)] * 2, "p30_influence": [rows] * 2})
    by_newton = left_out(further, found, "minimum", chosen, bfgs_points=0)
    truth = left_out(further, found, "minimum", chosen, bfgs_points=1)
    assert by_newton.removals == truth.removals == rows
    reached, before = (np.isfinite(t.changes[:, 0]) for t in (truth, by_newton))
    assert reached[:8].sum() > before[:8].sum() + 3 and (reached[8:] == before[8:]).all()
    np.testing.assert_array_equal(truth.changes[before], by_newton.changes[before])
    assert np.abs(truth.control).max() < 1e-3 * np.nanmax(np.abs(truth.changes))  # the network was a minimum


def test_minima_of_largest_influence_are_sought_for_the_first_points_alone(minimum: Network) -> None:
    further = minimum
    first, second, others = (Removals.single(rows, 60) for rows in ([0, 1, 2], [3, 4, 5], [6, 7, 8]))
    chosen = Chosen({"top_influence": [first, second], "p30_influence": [others, others]})
    truth = left_out(further, two_points(further), "minimum", chosen, bfgs_points=1)
    assert truth.covers(first) and truth.covers(others) and not truth.covers(second)
    assert left_out(further, two_points(further), "pbrf", chosen, bfgs_points=1).covers(second)
    nothing = left_out(further, two_points(further), "minimum", only(first), bfgs_points=0)
    assert nothing.changes.shape == (0, 2) and not nothing.covers(first) and nothing.control.tolist() == [0, 0]


def test_a_repetition_speaks_for_the_first_test_point_alone(prepared: Network, points: Points) -> None:
    some, others = Removals.single(range(5, 20), 200), Removals.single(range(8), 200)
    truth = left_out(prepared, points, "pbrf", Chosen({"a": [some, others, others]}), 2, bfgs_points=0)
    once, again = truth.repeats[:, :, 0]
    both = np.isfinite(once) & np.isfinite(again)
    assert both[5:20].sum() >= 10 and not both[:5].any()
    np.testing.assert_allclose(again[both], once[both], atol=0.05 * np.abs(once[both]).max())
    assert np.isnan(truth.repeats[:, :, 1:]).all() and np.isfinite(truth.changes[:20, 1]).sum() >= 10
    assert not truth.averaged


def test_minima_that_newton_steps_do_not_find_are_repeated_too(minimum: Network) -> None:
    network = minimum
    found, rows = two_points(network), Removals.single(range(10), 60)
    others = Chosen({"top_influence": [rows.none()] * 2, "p30_influence": [rows] * 2})  # for which no BFGS is made
    by_newton = left_out(network, found, "minimum", others, bfgs_points=0)
    truth = left_out(network, found, "minimum", only(rows), 2)
    once, again = truth.repeats[:, :, 0]
    hard, both = ~np.isfinite(by_newton.changes[:, 0]), np.isfinite(once) & np.isfinite(again)
    # Which descents end at a minimum, here about five of ten, turns on the last digit: processors differ by one or two.
    assert both.sum() >= max(3, np.isfinite(once).sum() - 2) and (both & hard).any()
    np.testing.assert_allclose(again[both], once[both], atol=0.05 * np.abs(once[both]).max())


@pytest.mark.parametrize("kind", ["pbrf", "tilted_minimum"])
def test_groups_that_newton_steps_do_not_follow_are_found_by_bfgs(
    kind: str, minimum: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = minimum
    found, removals = two_points(network), Removals.groups(np.arange(18).reshape(6, 3).tolist(), network.train.n)
    chosen = only(removals, choice="random_groups")
    truth, respond = left_out(network, found, kind, chosen, 2), Minima(network, kind)
    once, again = truth.repeats[:, :, 0]
    np.testing.assert_allclose(again, once, atol=0.05 * np.abs(once).max())
    assert np.isfinite(again).all() and not np.array_equal(once, again)
    networks, kept = respond(removals, network.theta, minima.STEPS, removals)
    monkeypatch.setattr(minima, "left_out_minimum", lambda *at: Optimum(at[2], np.inf, 0))
    by_newton = left_out(network, found, kind, chosen)
    reached, before = (np.isfinite(t.changes[:, 0]) for t in (truth, by_newton))
    assert reached.all() and not before.all()
    weights = network.train.uniform(6) + removals.changes()
    norms = respond.objective.gradient(networks[1:], weights).norm(dim=1)
    caused = (removals.changes() @ respond.gradients).norm(dim=1)
    assert kept[1:].all() and (norms <= 0.01 * caused).all()
    expected = network.test.losses(networks[1:])[:, found.index] - network.test_losses()[found.index]
    np.testing.assert_allclose(truth.changes, expected.numpy(), atol=1e-6)


def test_a_network_at_a_minimum_is_kept_and_certified_anew(minimum: Network, folder: Path) -> None:
    (path,) = folder.iterdir()
    assert path.name.startswith("wd0.02-s0-") and set(minimum.seconds) > {"minibatch", "optimum"}
    again = at_a_minimum(folder)
    assert torch.equal(again.theta, minimum.theta) and again.certificate == minimum.certificate
    assert not {"minibatch", "optimum"} & set(again.seconds)  # neither was done
    torch.testing.assert_close(again.checkpoints, minimum.checkpoints)
    torch.testing.assert_close(again.rates, minimum.rates)
    at_a_minimum(folder, seed=1)
    assert len(list(folder.iterdir())) == 2  # another seed is another network


def test_a_kept_network_that_is_no_minimum_is_not_believed(minimum: Network, folder: Path) -> None:
    how = {"rounds": 1, "minimum_rounds": 8, "checkpoints": 5}
    made_with = settings(minimum.train.model, minimum.train.data, DECAY, Schedule(100, 20, 1e-2), **how)
    keep(folder, made_with, replace(load(folder, made_with), theta=minimum.theta + 0.01))
    assert at_a_minimum(folder).certificate["status"] == "not_certified"


def test_a_broken_file_and_a_folder_that_cannot_be_written_to_are_named(folder: Path) -> None:
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=f"networks.*{path.name}.*delete it"):
        at_a_minimum(folder)
    file = folder / "file"
    file.write_text("")
    with pytest.raises(InputError, match="networks.*cannot be written to"):
        at_a_minimum(file / "below")
    with pytest.raises(InputError, match="networks.*cannot be written to"):
        keep(file / "below", settings(SmallCNN(2), small_mnist("digits", 60, 40)[0], DECAY, Schedule(1)), at_nothing())


def at_nothing() -> Made:
    return Made(torch.zeros(3), torch.zeros(1, 3), torch.zeros(1), 0)


def test_no_part_of_a_network_is_left_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="not kept"):
        assert at_a_minimum(tmp_path).certified  # the network is not lost to the run
    with pytest.raises(InputError, match="No space left"):
        keep(tmp_path, settings(SmallCNN(2), small_mnist("digits", 60, 40)[0], DECAY, Schedule(1)), at_nothing())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("gauss_newton", [False, True])
def test_the_dense_solver_is_exact_though_its_matrix_is_single(prepared: Network, gauss_newton: bool) -> None:
    v = torch.randn(3, len(prepared.theta), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solver = prepared.gauss_newton if gauss_newton else prepared.hessian
    found, exact = solver(v), ExactSolver(prepared.train, prepared.theta, DAMPING, gauss_newton)(v)
    torch.testing.assert_close(found.x, exact.x, rtol=1e-5, atol=1e-6)
    assert found.residual.max() < 1e-6 and found.status == exact.status


def test_the_dense_solver_takes_another_damping_and_refines_until_it_is_solved(prepared: Network) -> None:
    v = torch.randn(2, len(prepared.theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lowest = float(prepared.hessian.spectrum[0])
    for damping in (0.02 - min(lowest, 0), 1e-4 - min(lowest, 0)):  # just above what float32 has left of the matrix
        other = prepared.hessian.with_damping(damping)
        found = other(v)
        residual = (other._product(found.x) - v).norm(dim=1) / v.norm(dim=1)
        torch.testing.assert_close(found.residual, residual, rtol=1e-3, atol=1e-12)
        assert found.residual.max() <= 1e-6 and found.status == "ok"
    assert prepared.hessian.damping == DAMPING
    with pytest.raises(InputError, match="damping"):
        prepared.hessian.with_damping(-1.0)


def test_the_absolute_inverse_is_that_of_the_eigenvalues_magnitudes(prepared: Network) -> None:
    solver = prepared.hessian
    product = solver.absolute_inverse(0.1) @ solver.vectors
    torch.testing.assert_close(product, solver.vectors / (solver.spectrum.abs() + 0.1))
    assert torch.linalg.eigvalsh(solver.absolute_inverse(0.1))[0] > 0


def test_truths_say_what_they_left_out_and_how_they_repeat(prepared: Network, points: Points) -> None:
    estimates = estimate([prepared], [points], ["exact", "exact_ggn"])
    chosen = [choose(estimates[0]["exact"].changes, {"top_influence": 6, "p30_influence": 6})]
    again = Schedule(steps=20, batch=20, learning_rate=1e-4, drops=())
    kinds = ["minimum", "tilted_minimum", "pbrf", "warm_minibatch"]
    near = {"bfgs_points": 0}
    options = {"warm_minibatch": {"schedule": again}, "minimum": near, "tilted_minimum": near, "pbrf": near}
    found = leave_out([prepared], [points], chosen, kinds, 2, options)
    truths = found[0]
    assert set(truths) == {*kinds, "warm_minibatch_minus_control"}
    assert (len(truths["minimum"].removals) > 0) == prepared.certified
    rows = compare([prepared], [points], chosen, estimates, found)
    by = {(r["estimator"], r["ground_truth"], r["test_point"], r["train_choice"]): r for r in rows}
    first = int(points.index[0])
    tilted = [r for r in rows if (r["estimator"], r["ground_truth"]) == ("exact", "tilted_minimum")]
    assert len(tilted) == 6  # where too few minima are certified, the row says so and has no status ok
    assert all(r["status"] != "ok" for r in tilted if r["n_uncertified"] > 1)
    assert by["exact_ggn", "pbrf", first, "top_influence"]["spearman"] > 0.5
    for choice in chosen[0].removals:  # repeated for all that is left out at the first test point
        for truth in ("pbrf", "warm_minibatch", "warm_minibatch_minus_control"):
            assert np.isfinite(by["exact_ggn", truth, first, choice]["reliability"])
        assert by["exact_ggn", "pbrf", first, choice]["reliability"] > 0.9
    near_alone = [r for r in rows if r["test_point"] != first and not r["ground_truth"].startswith("warm")]
    assert all(np.isnan(r["ceiling_spearman"]) for r in near_alone)
    assert (truths["pbrf"].control == 0).all()  # its objective has its minimum at the network
    warm, less = truths["warm_minibatch"], truths["warm_minibatch_minus_control"]
    np.testing.assert_allclose(
        warm.changes - less.changes, np.broadcast_to(warm.control, warm.changes.shape), atol=1e-12
    )
    assert warm.unseen.shape == (len(warm.removals),) and warm.images > 0


def test_over_lengths_each_row_is_beside_the_derivative_of_its_own_schedule(prepared: Network, points: Points) -> None:
    estimates = estimate([prepared], [points], ["exact"])
    chosen = [choose(estimates[0]["exact"].changes, {"top_influence": 6})]
    schedules = [Schedule(steps, batch=20, learning_rate=1e-3, drops=()) for steps in (4, 12)]
    rows = over_lengths([prepared], [points], chosen, estimates, schedules)
    told = {}
    for schedule in schedules:
        how = {"unrolled_minibatch": {"schedule": schedule}}
        alone = compare(
            [prepared], [points], chosen, estimates, leave_out([prepared], [points], chosen, how, options=how)
        )
        found = [row["slope"] for row in rows if row["ground_truth"] == f"unrolled_minibatch_{schedule.steps}"]
        assert found == pytest.approx([row["slope"] for row in alone])
        told[schedule.steps] = found
    assert len(rows) == 2 * len(told[4]) and told[4] != pytest.approx(told[12])


def test_the_mean_of_repetitions_has_controls_of_its_own(prepared: Network, points: Points) -> None:
    again = Schedule(steps=3, batch=20, learning_rate=1e-3, drops=(), seed=2)
    chosen = only(Removals.single(range(6), 200), 3)
    options = {"warm_minibatch": {"schedule": again, "repeats": 3}}
    truth = leave_out([prepared], [points], [chosen], options, options=options)[0]["warm_minibatch"]
    assert truth.repeats.shape == (3, 6, 3) and truth.averaged
    np.testing.assert_allclose(truth.changes, truth.repeats.mean(axis=0))
    single = [replace(again, seed=2 + 1000 * r) for r in range(3)]
    for r, schedule in enumerate(single):
        alone = left_out(prepared, points, "warm_minibatch", chosen, schedule=schedule)
        np.testing.assert_array_equal(truth.repeats[r], alone.changes)
        np.testing.assert_array_equal(truth.repeat_controls[r], alone.control)
    unseen = [s.first_use(200, [[i] for i in range(6)]) == 3 for s in single]
    np.testing.assert_allclose(truth.unseen, np.mean(unseen, axis=0))
