"""A small convolutional network on real digits from training to estimates and truths of every kind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fragile_lib import truths
from fragile_lib.data.sets import mnist_digits
from fragile_lib.estimators import ESTIMATORS, estimate_by, make_solver
from fragile_lib.examination import Points, choose_test_points, choose_training_points, rows_of
from fragile_lib.group_truths import group_rows
from fragile_lib.groups import group_removals
from fragile_lib.minimise.kept import Made, keep, load, settings
from fragile_lib.minimise.minibatch import Protocol
from fragile_lib.minimise.near_optimum import Optimum
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.prepared import Prepared, prepare
from fragile_lib.solvers import ExactSolver
from fragile_lib.tools.errors import InputError
from fragile_lib.truths import Minima, from_scratch, ground_truths, groups_left_out, left_out

DAMPING, DECAY = 0.02, 0.02


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    train, test = mnist_digits(200, 60, seed=0)
    return prepare(SmallCNN(channels=4), train, test, 0.001, DAMPING, Protocol(300, 50, 1e-2), rounds=2, checkpoints=3)


@pytest.fixture(scope="module")
def points(prepared: Prepared) -> Points:
    return choose_test_points(prepared.test.losses(prepared.theta[None])[0], {"max_loss": 2, "p50_loss": 1})


def test_it_says_how_far_it_was_driven_and_what_that_cost(prepared: Prepared) -> None:
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


def at_a_minimum(networks: Path | str = "", seed: int = 0) -> Prepared:
    train, test = mnist_digits(60, 40, seed=0)
    protocol = Protocol(100, 20, 1e-2, seed=seed)
    return prepare(SmallCNN(2), train, test, DECAY, DAMPING, protocol, 1, minimum_rounds=8, networks=networks)


def test_minimum_rounds_certify_where_rounds_alone_do_not() -> None:
    further = at_a_minimum()
    assert further.certified and further.certificate["status"] == "ok"
    found = choose_test_points(further.test.losses(further.theta[None])[0], {"max_loss": 2})
    by_newton = left_out(further, found, "loo_certified", np.arange(10))
    truth = left_out(further, found, "loo_certified", np.arange(10), further=np.arange(8))
    reached, before = (np.isfinite(t.changes[:10, 0]) for t in (truth, by_newton))
    assert reached[:8].sum() > before[:8].sum() + 3 and (reached[8:] == before[8:]).all()
    np.testing.assert_array_equal(truth.changes[:10][before], by_newton.changes[:10][before])
    assert np.abs(truth.control).max() < 1e-3 * np.nanmax(np.abs(truth.changes))  # the network was a minimum


def test_a_repetition_speaks_for_the_first_test_point_alone(prepared: Prepared, points: Points) -> None:
    truth = left_out(prepared, points, "pbrf", np.arange(20), again=np.arange(5, 20))
    once, again = truth.repeats[:, :, 0]
    both = np.isfinite(once) & np.isfinite(again)
    assert both[5:20].sum() >= 10 and not both[:5].any()
    np.testing.assert_allclose(again[both], once[both], atol=0.05 * np.abs(once[both]).max())
    assert np.isnan(truth.repeats[:, :, 1:]).all() and np.isfinite(truth.changes[:20, 1]).sum() >= 10


def test_minima_that_newton_steps_do_not_find_are_repeated_too() -> None:
    network = at_a_minimum()
    found = choose_test_points(network.test.losses(network.theta[None])[0], {"max_loss": 2})
    by_newton = left_out(network, found, "loo_certified", np.arange(10))
    truth = left_out(network, found, "loo_certified", np.arange(10), again=np.arange(10), further=np.arange(10))
    once, again = truth.repeats[:, :10, 0]
    hard, both = ~np.isfinite(by_newton.changes[:10, 0]), np.isfinite(once) & np.isfinite(again)
    assert both.sum() == np.isfinite(once).sum() >= 5 and (both & hard).any()
    np.testing.assert_allclose(again[both], once[both], atol=0.05 * np.abs(once[both]).max())


def test_groups_are_repeated_where_newton_steps_do_not_follow_them() -> None:
    network = at_a_minimum()
    found = choose_test_points(network.test.losses(network.theta[None])[0], {"max_loss": 2})
    removals = group_removals(torch.arange(18).reshape(6, 3), network.train.n)
    once, again = groups_left_out(network, found, "pbrf", removals, repeat=True).repeats
    assert np.isfinite(again).all() and not np.array_equal(once, again)
    np.testing.assert_allclose(again, once, atol=0.05 * np.abs(once).max())


@pytest.mark.parametrize("kind", ["pbrf", "loo_tilted"])
def test_groups_that_newton_steps_do_not_follow_are_found_by_bfgs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = at_a_minimum()
    found = choose_test_points(network.test.losses(network.theta[None])[0], {"max_loss": 2})
    removals = group_removals(torch.arange(18).reshape(6, 3), network.train.n)
    truth, respond = groups_left_out(network, found, kind, removals), Minima(network, kind)
    networks, kept = respond(removals, network.theta, further=range(6))
    monkeypatch.setattr(truths, "left_out_minimum", lambda *at: Optimum(at[2], np.inf, 0))
    by_newton = groups_left_out(network, found, kind, removals)
    reached, before = (np.isfinite(t.changes[:, 0]) for t in (truth, by_newton))
    assert reached.all() and not before.all()
    weights = network.train.uniform(6) + removals
    norms = respond.objective.gradient(networks, weights).norm(dim=1)
    caused = (removals @ respond.gradients).norm(dim=1)
    assert kept.all() and (norms <= 0.01 * caused).all()
    expected = network.test.losses(networks)[:, found.index] - network.test.losses(network.theta[None])[:, found.index]
    np.testing.assert_allclose(truth.changes, expected.numpy(), atol=1e-6)


def test_a_network_at_a_minimum_is_kept_and_certified_anew(tmp_path: Path) -> None:
    first = at_a_minimum(tmp_path / "networks")
    (path,) = (tmp_path / "networks").iterdir()
    assert path.name.startswith("wd0.02-s0-") and set(first.seconds) > {"minibatch", "optimum"}
    again = at_a_minimum(tmp_path / "networks")
    assert torch.equal(again.theta, first.theta) and again.certificate == first.certificate
    assert not {"minibatch", "optimum"} & set(again.seconds)  # neither was done
    torch.testing.assert_close(again.checkpoints, first.checkpoints)
    torch.testing.assert_close(again.rates, first.rates)
    at_a_minimum(tmp_path / "networks", seed=1)
    assert len(list((tmp_path / "networks").iterdir())) == 2  # another seed is another network


def test_a_kept_network_that_is_no_minimum_is_not_believed(tmp_path: Path) -> None:
    first = at_a_minimum(tmp_path)
    made_with = settings(
        first.train.model, first.train.data, DECAY, Protocol(100, 20, 1e-2), rounds=1, minimum_rounds=8, checkpoints=5
    )
    keep(tmp_path, made_with, replace(load(tmp_path, made_with), theta=first.theta + 0.01))
    assert at_a_minimum(tmp_path).certificate["status"] == "not_certified"


def test_a_broken_file_and_a_folder_that_cannot_be_written_to_are_named(tmp_path: Path) -> None:
    at_a_minimum(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=f"networks.*{path.name}.*delete it"):
        at_a_minimum(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="networks.*cannot be written to"):
        at_a_minimum(file / "below")
    with pytest.raises(InputError, match="networks.*cannot be written to"):
        keep(file / "below", settings(SmallCNN(2), mnist_digits(60, 40)[0], DECAY, Protocol(1)), at_nothing())


def at_nothing() -> Made:
    return Made(torch.zeros(3), torch.zeros(1, 3), torch.zeros(1), 0)


def test_no_part_of_a_network_is_left_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="not kept"):
        assert at_a_minimum(tmp_path).certified  # the network is not lost to the run
    with pytest.raises(InputError, match="No space left"):
        keep(tmp_path, settings(SmallCNN(2), mnist_digits(60, 40)[0], DECAY, Protocol(1)), at_nothing())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("gauss_newton", [False, True])
def test_the_dense_solver_is_exact_though_its_matrix_is_single(prepared: Prepared, gauss_newton: bool) -> None:
    v = torch.randn(3, len(prepared.theta), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solver = prepared.gauss_newton if gauss_newton else prepared.hessian
    found, exact = solver(v), ExactSolver(prepared.train, prepared.theta, DAMPING, gauss_newton)(v)
    torch.testing.assert_close(found.x, exact.x, rtol=1e-5, atol=1e-6)
    assert found.residual.max() < 1e-6 and found.status == exact.status


def test_the_dense_solver_takes_another_damping_and_refines_until_it_is_solved(prepared: Prepared) -> None:
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


def test_the_absolute_inverse_is_that_of_the_eigenvalues_magnitudes(prepared: Prepared) -> None:
    solver = prepared.hessian
    product = solver.absolute_inverse(0.1) @ solver.vectors
    torch.testing.assert_close(product, solver.vectors / (solver.spectrum.abs() + 0.1))
    assert torch.linalg.eigvalsh(solver.absolute_inverse(0.1))[0] > 0


def test_every_estimator_gives_finite_scores_and_the_solvers_agree(prepared: Prepared, points: Points) -> None:
    small = {"lissa": {"batch": 10, "depth": 2000}, "nystroem": {"rank": 300}, "arnoldi": {"rank": 100}}
    found = {name: estimate_by(prepared, points, name, **small.get(name, {})) for name in ESTIMATORS}
    for name, estimated in found.items():
        assert estimated.changes.shape == (200, 3) and np.isfinite(estimated.changes).all(), name
        assert estimated.seconds > 0 and estimated.memory_mb >= 0

    def correlation(name: str, direct: str) -> float:
        return np.corrcoef(found[name].changes.ravel(), found[direct].changes.ravel())[0, 1]

    if found["exact"].status == "ok":
        assert correlation("cg", "exact") > 0.99 and correlation("minres", "exact") > 0.99
    assert correlation("cg_ggn", "exact_ggn") > 0.99 and correlation("nystroem", "exact_ggn") > 0.99
    assert correlation("ekfac", "exact_ggn") > 0.3 and correlation("identity", "exact_ggn") > 0  # crude, right in sign


def test_truths_say_what_they_left_out_and_how_they_repeat(prepared: Prepared, points: Points) -> None:
    exact = {name: estimate_by(prepared, points, name) for name in ("exact", "exact_ggn")}
    chosen = {
        choice: [choose_training_points(s, choice, 6) for s in exact["exact"].changes.T]
        for choice in ("top_influence", "p30_influence")
    }
    again = Protocol(steps=20, batch=20, learning_rate=1e-4, drops=())
    kinds = ["loo_certified", "loo_tilted", "pbrf", "loo_warm"]
    found = ground_truths(prepared, points, chosen, kinds, again, repeat=True)
    assert set(found) >= {"loo_tilted", "pbrf", "loo_warm", "loo_warm_minus_control"}
    assert ("loo_certified" in found) == prepared.certified
    rows = rows_of(points, chosen, exact, found, {})
    by = {(r["estimator"], r["ground_truth"], r["test_point"], r["train_choice"]): r for r in rows}
    first = int(points.index[0])
    tilted = [r for r in rows if (r["estimator"], r["ground_truth"]) == ("exact", "loo_tilted")]
    assert len(tilted) == 6  # where too few minima are certified, the row says so and has no status ok
    assert all(r["status"] != "ok" for r in tilted if r["n_uncertified"] > 1)
    assert by["exact_ggn", "pbrf", first, "top_influence"]["spearman"] > 0.5
    for choice in chosen:  # repeated for all that is left out at the first test point
        for truth in ("pbrf", "loo_warm", "loo_warm_minus_control"):
            assert np.isfinite(by["exact_ggn", truth, first, choice]["ceiling_spearman"])
        assert by["exact_ggn", "pbrf", first, choice]["ceiling_spearman"] > 0.9
    assert all(np.isnan(r["ceiling_spearman"]) for r in rows if r["test_point"] != first)
    assert (found["pbrf"].control == 0).all()  # its objective has its minimum at the network
    assert {r["test_choice"] for r in rows if r["ground_truth"] == "loo_warm"} == set(points.choice)
    moved = found["loo_warm"].changes - found["loo_warm_minus_control"].changes
    kept = np.isfinite(moved[:, 0])
    np.testing.assert_allclose(moved[kept], np.broadcast_to(found["loo_warm"].control, moved[kept].shape), atol=1e-12)


def test_groups_to_second_order(prepared: Prepared, points: Points) -> None:
    scores = estimate_by(prepared, points, "exact_ggn").changes
    rows = group_rows(prepared, points, scores, count=6, size=4, repeat=True, shared={"seed": 0})
    assert len(rows) == 3 * 2 * 3 and {r["ground_truth"] for r in rows} == {"group"}
    assert {r["train_choice"] for r in rows} == {"random_groups", "same_class_groups", "top_influence_groups"}
    some = [r for r in rows if r["n_points"] >= 3]
    assert some and all(np.isfinite(r["spearman"]) for r in some)


def test_from_scratch_has_its_own_control_and_starts(prepared: Prepared, points: Points) -> None:
    again = Protocol(steps=30, batch=20, learning_rate=1e-2, drops=())
    truth = from_scratch(prepared, points, again, np.array([3, 8, 11, 40]), [0, 1])
    assert truth.repeats.shape == (2, 200, 3) and np.isfinite(truth.changes[[3, 8, 11, 40]]).all()
    np.testing.assert_allclose(truth.changes[3], truth.repeats[:, 3].mean(axis=0))
    alone = from_scratch(prepared, points, replace(again, steps=0), np.array([3]), [0])
    assert (alone.changes[3] == 0).all()  # not trained: no difference to the control


def test_unknown_estimator(prepared: Prepared) -> None:
    with pytest.raises(InputError, match="estimator"):
        make_solver(prepared, "magic")
