"""Photographs in folders as people keep them: read, streamed, scored and retrained against those in memory."""

from __future__ import annotations

import multiprocessing
import os
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import in_chunks
from PIL import Image

from fragile_lib.choices import Points, choose
from fragile_lib.data import photographs as reading
from fragile_lib.data import standin
from fragile_lib.data.folder import find_sets, list_folder
from fragile_lib.data.photographs import Loading, Notes, Photo, PhotoSet, batches_of, in_memory, stream
from fragile_lib.data.sets import Data
from fragile_lib.estimates import estimate
from fragile_lib.estimates.by_name import SOLVERS
from fragile_lib.estimates.streamed import direction_of
from fragile_lib.minimise import photographs as training
from fragile_lib.minimise.modules import ModuleTrainer, Trained, losses_of, make_optimiser
from fragile_lib.minimise.photographs import PhotoTrainer
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.models import weights
from fragile_lib.models.module import ModuleModel
from fragile_lib.network import photographs
from fragile_lib.objectives.photographs import PhotoObjective, Scoring, read_job, score, score_by
from fragile_lib.objectives.score import main
from fragile_lib.rows import compare
from fragile_lib.solvers.base import Solution, nowhere
from fragile_lib.solvers.kfac import eigen
from fragile_lib.tools.checkpoint import Checkpoint
from fragile_lib.tools.errors import InputError
from fragile_lib.truths import leave_out

# -- whole sets ------------------------------------------------------------------------------------------------------


HERE = Loading()
SIZE, CLASSES, N = 16, 3, 21


def draw(path: Path, rng: np.random.Generator, mode: str = "RGB", side: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (side, side + 3, 3), dtype=np.uint8)).convert(mode).save(path)


def tree(root: Path, per_class: int = N // CLASSES, side: int = 20) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", per_class), ("val", 2)):
        for name in ("ant", "bee", "cow"):
            for number in range(count):
                draw(root / part / name / f"{number:03d}.png", rng, side=side)
    return root


def narrow(seed: int = 0, outputs: int = CLASSES) -> torch.nn.Module:
    """ResNet-50 at a sixteenth of its width, in double precision, with statistics that are not those of its start."""
    network = weights.make_network(outputs, SIZE, 0.0625, seed).double()
    generator = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.copy_(0.1 * torch.randn(part.num_features, generator=generator))
            part.running_var.copy_(0.5 + torch.rand(part.num_features, generator=generator))
    return network.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tree(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def photos(folder):
    return PhotoSet(find_sets(folder)[0], SIZE, torch.float64)


@pytest.fixture(scope="module")
def network():
    return narrow()


@pytest.fixture(scope="module")
def directions(network):
    count = sum(p.numel() for p in network.parameters())
    return torch.randn(3, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def scoring(place, network, directions, photos, batch=4, shard=8):
    return Scoring(place, network, directions, photos, batch, shard)


# -- folders ---------------------------------------------------------------------------------------------------------


def test_photographs_are_listed_by_class_and_name_with_the_labels_of_the_training_set(folder, tmp_path):
    train, test = find_sets(folder)
    assert (len(train), len(test)) == (N, 6) and train.classes == ("ant", "bee", "cow")
    assert train.name(0) == "ant/000.png" and train.path(N - 1) == folder / "train" / "cow" / "006.png"
    assert train.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7 and train.dataset == "imagefolder"
    rng = np.random.default_rng(0)
    draw(tmp_path / "cow" / "inner" / "é.png", rng)
    draw(tmp_path / "cow" / ".hidden.png", rng)
    other = list_folder(tmp_path).labelled_by(train.classes)
    assert other.labels.tolist() == [2] and other.path(0).exists() and other.digest != train.digest
    assert find_sets(folder / "train", folder / "val")[0].digest == train.digest


def test_folders_that_are_none_are_refused(folder, tmp_path):
    (tmp_path / "nothing").mkdir()
    draw(tmp_path / "val" / "flat.png", np.random.default_rng(0))
    (tmp_path / "classes" / "empty").mkdir(parents=True)
    draw(tmp_path / "strange" / "dodo" / "0.png", np.random.default_rng(0))
    for call, places, words in (
        (list_folder, [tmp_path / "nowhere"], "is no folder"),
        (list_folder, [tmp_path / "nothing"], "holds no images"),
        (list_folder, [tmp_path / "val"], r"without classes.*split='val'"),
        (list_folder, [tmp_path / "classes"], "class folders without an image: empty"),
        (find_sets, [""], "^folder = ''"),
        (find_sets, [folder / "train", tmp_path / "strange"], "training set lacks, such as dodo"),
        (find_sets, [folder / "train"], "has no train/ and val/"),
    ):
        with pytest.raises(InputError, match=words):
            call(*places)


# -- images ----------------------------------------------------------------------------------------------------------


def test_order_and_pixels_do_not_depend_on_the_number_of_workers(photos):
    rows = np.random.default_rng(0).permutation(N)
    state = torch.random.get_rng_state()
    found = [list(stream(photos, batches_of(rows, 4), Notes(), Loading(workers))) for workers in (0, 2)]
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        torch.testing.assert_close(one.x, other.x, rtol=0, atol=0)
        torch.testing.assert_close(one.y, other.y, rtol=0, atol=0)
    assert np.concatenate([batch.rows for batch in found[0]]).tolist() == rows.tolist()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_images_of_other_modes_are_converted_and_told_and_no_photographs_refused(tmp_path):
    rng = np.random.default_rng(0)
    for at, mode in enumerate(("RGB", "L", "P", "RGBA", "CMYK", "I;16")):
        draw(tmp_path / "a" / f"{at}.{'jpg' if mode == 'CMYK' else 'png'}", rng, "RGB" if mode == "I;16" else mode)
    grey = np.zeros((20, 20), np.uint16)
    Image.fromarray(grey).save(tmp_path / "a" / "5.png")
    draw(tmp_path / "b" / "0.png", rng)
    photos, notes = PhotoSet(list_folder(tmp_path), SIZE), Notes()
    rows = np.concatenate(
        [batch.rows for batch in stream(photos, batches_of(np.arange(7), 3), notes, Loading(on_bad="skip"))]
    )
    assert rows.tolist() == [0, 1, 2, 3, 4, 6]
    assert notes.converted == {1: "L", 2: "P", 3: "RGBA", 4: "CMYK"} and list(notes.bad) == [5]
    with pytest.raises(InputError, match=r"a/5.png'.*mode I;16.*skip"):
        list(stream(photos, batches_of(np.arange(7), 3), Notes()))


@pytest.fixture
def broken(tmp_path):
    """Rows 0 and 5 cannot be read: cut off, and no image at all."""
    listing = find_sets(tree(tmp_path))[0]
    content = listing.path(0).read_bytes()
    listing.path(0).write_bytes(content[: len(content) // 2])
    listing.path(5).write_text("no image")
    return PhotoSet(listing, SIZE, torch.float64)


def test_broken_images_are_an_error_or_named_counted_and_without_a_score(broken, tmp_path, network, directions):
    whole = scoring(tmp_path / "scores", network, directions, broken)
    with pytest.raises(InputError, match=r"ant/000.png'.*cannot be decoded"):
        score(whole, Loading(on_bad="error", workers=1))
    found = score(whole, Loading(on_bad="skip"))
    assert sorted(found.notes.bad) == [0, 5] and found.images == N - 2
    assert np.isnan(found.values).all(axis=1).nonzero()[0].tolist() == [0, 5]
    objective = PhotoObjective(network, broken, Loading(on_bad="skip"), tmp_path / "again", 4, 8)
    slopes = objective.directional(None, directions[None])[0]
    np.testing.assert_allclose(slopes.T, found.values, rtol=1e-10)
    assert objective.n == N - 2 and objective.usable.tolist() == [row for row in range(N) if row not in (0, 5)]
    assert "left out: ant/000.png: cannot be decoded" in objective.said
    assert set(objective.facts["unreadable"]) == {"ant/000.png", "ant/005.png"}
    with pytest.raises(InputError, match="3 to 19"):
        choose(found.values, {"top_influence": N})
    assert photographs.random_points(broken, N - 2, 0, on_bad="skip").size == N - 2
    with pytest.raises(InputError, match="skip"):
        photographs.random_points(broken, N, 0)


# -- the scoring pass ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory, network, directions, photos):
    return score(scoring(tmp_path_factory.mktemp("whole") / "scores", network, directions, photos), HERE)


def test_streamed_scores_are_the_directional_derivatives_in_memory(reference, network, directions, photos):
    data, _ = in_memory(photos, np.arange(N), Notes())
    model = ModuleModel(network, CLASSES)
    expected = in_chunks(model, data, 0.0, chunk=N).directional(model.theta[None], directions[None])[0].T
    np.testing.assert_allclose(reference.values, expected, rtol=1e-9, atol=1e-12)
    assert reference.images == N and not reference.notes.bad


@pytest.mark.slow
def test_a_killed_pass_goes_on_where_it_was_and_gives_the_same_scores(tmp_path, network, directions, photos):
    """SIGKILL in the middle, at a moment nobody chose; then again, to the end."""
    killed = scoring(tmp_path / "killed", network, directions, photos, batch=1, shard=1)
    killed.save_job()
    way = "spawn" if torch.cuda.is_available() else "fork"  # a fork need not import anything, but cannot use a card
    process = multiprocessing.get_context(way).Process(target=main, args=([str(tmp_path / "killed"), "--device=cpu"],))
    process.start()
    while len(killed.missing()) > N - 3 and process.is_alive():
        time.sleep(0.002)
    process.kill()
    process.join()
    left = killed.missing()
    assert 0 < len(left) <= N - 3
    done = [number for number in range(N) if number not in left]
    written = {number: (tmp_path / "killed" / f"scores-{number:06d}.npz").stat().st_mtime_ns for number in done}
    with pytest.raises(InputError, match="shards are missing"):
        killed.gathered()
    resumed = score(read_job(tmp_path / "killed"), HERE)
    whole = score(scoring(tmp_path / "whole", network, directions, photos, batch=1, shard=1), HERE)
    np.testing.assert_array_equal(resumed.values, whole.values)
    for number, at in written.items():  # nothing was computed twice
        assert (tmp_path / "killed" / f"scores-{number:06d}.npz").stat().st_mtime_ns == at


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(tmp_path, network, directions, photos, reference, monkeypatch):
    for name in ("OMP_NUM_THREADS", "TQDM_DISABLE"):
        monkeypatch.setenv(name, "1")
    shared = scoring(tmp_path / "two", network, directions, photos)
    found = score_by(shared, HERE, processes=2)
    np.testing.assert_array_equal(found.values, reference.values)
    assert found.images == N
    with pytest.raises(InputError, match="processes = 0"):
        score_by(shared, HERE, processes=0)


def test_two_runs_on_one_folder_are_told_apart(tmp_path, network, directions, photos, capsys):
    one = scoring(tmp_path / "scores", network, directions, photos)
    one.save_job()
    with one.checkpoint.locked():
        with pytest.raises(InputError, match=f"in use by process {os.getpid()}"):
            score(scoring(tmp_path / "scores", network, directions, photos), HERE)
        assert main([str(tmp_path / "scores")]) == 2 and "in use" in capsys.readouterr().err
    with pytest.raises(InputError, match="run with other directions, batch;"):
        score(scoring(tmp_path / "scores", network, directions[:2], photos, batch=5), HERE)
    assert main([str(tmp_path / "nowhere")]) == 2 and "no checkpoint" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        Checkpoint(tmp_path / "full", {})


def test_a_part_that_was_damaged_is_named(tmp_path, network, directions, photos):
    one = scoring(tmp_path / "scores", network, directions, photos)
    score(one, HERE)
    (tmp_path / "scores" / "scores-000001.npz").write_bytes(b"PK no archive")
    with pytest.raises(InputError, match=r"scores-000001.npz'.*remove it"):
        one.gathered()


def test_a_pass_without_numbers_is_refused(tmp_path, network, directions, photos):
    with pytest.raises(InputError, match="batch = 0"):
        scoring(tmp_path, network, directions, photos, batch=0)
    with pytest.raises(InputError, match="give vectors"):
        scoring(tmp_path, network, directions[:, 1:], photos)


def test_memory_is_bounded_by_the_batch_and_not_by_the_set(tmp_path):
    """A set eight times as large, of pixels that would be 70 MB in memory, peaks at the same place."""
    listing = find_sets(tree(tmp_path, per_class=40, side=8))[0]
    photos = PhotoSet(listing, 224, torch.float32)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 7, 16), torch.nn.ReLU(), torch.nn.Flatten())
    network.append(torch.nn.Linear(2 * 14 * 14, 3))
    direction = torch.ones(1, sum(p.numel() for p in network.parameters()))
    objective = PhotoObjective(network, photos, HERE, tmp_path / "scores", 5)
    objective.scoring = Scoring(tmp_path / "scores", network, direction, photos, 5)
    table = photographs.memory_at_two_sizes(objective, part=8)
    small, large = table["peak_mb"]
    assert table["images"].tolist() == [15, 120] and large - small < 20


# -- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_checked_key_by_key(tmp_path):
    network = narrow()
    state = network.state_dict()
    place = str(tmp_path / "w.pt")
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "classes": ["ant", "bee", "cow"]}, place)
    read, classes = weights.read_state(place)
    assert classes == ("ant", "bee", "cow")
    again = weights.load_state(narrow(seed=3), read, place)
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    torch.testing.assert_close(again(x), network(x), rtol=0, atol=0)
    for wrong, words in (
        ({k: v for k, v in state.items() if k != "fc.bias"}, 'Missing key.*"fc.bias"'),
        ({**state, "extra": torch.ones(1)}, 'Unexpected key.*"extra"'),
        ({**state, "fc.bias": torch.ones(5)}, "size mismatch for fc.bias"),
        ({**state, "fc.bias": torch.full((3,), torch.nan)}, "fc.bias is not finite"),
    ):
        with pytest.raises(InputError, match=words):
            weights.load_state(again, wrong, place)


def test_a_checkpoint_of_another_architecture_or_kind_is_refused(tmp_path, folder):
    listing = find_sets(folder)[0]
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(InputError, match='are not ResNet-50.s: Missing key.*"conv1.weight"'):
        photographs.pretrained(str(tmp_path / "linear.pt"), listing)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    (tmp_path / "text.pt").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pt")
    alone = "cannot be read as weights alone"
    wrong = {"module": alone, "text": alone, "list": "holds no state dictionary", "nowhere": "is no file"}
    for name, words in wrong.items():
        with pytest.raises(InputError, match=words):
            weights.read_state(str(tmp_path / f"{name}.pt"))


def test_class_folders_have_to_be_the_weights_classes(folder):
    listing = find_sets(folder)[0]
    listing.check_outputs(3, ("ant", "bee", "cow"))
    for outputs, classes, imagenet, words in (
        (1000, (), True, "has 3 class folders, and the weights 1000 outputs"),
        (3, ("ant", "cat", "cow"), False, "class folder bee stands where the weights have cat"),
        (3, (), True, "from ant to cow, and not from n01440764"),
    ):
        with pytest.raises(InputError, match=words):
            listing.check_outputs(outputs, classes, imagenet=imagenet)


def test_the_network_is_torchvisions_resnet_50():
    network = weights.make_network()
    assert sum(p.numel() for p in network.parameters()) == 25_557_032
    from torchvision.models import resnet50

    theirs = resnet50().eval()
    weights.load_state(network, theirs.state_dict(), "theirs")
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(network(x), theirs(x), rtol=1e-4, atol=1e-5)


# -- retraining ------------------------------------------------------------------------------------------------------


def of_all(network, photos, place, **options):
    return PhotoObjective(network, photos, HERE, place, 4, 8, **options)


def fresh(network, schedule, weight_decay=0.01):
    return Trained(network, make_optimiser(network, schedule, weight_decay), 0, 0.0)


def planned(steps, batch, optimiser, seed=0):
    return Schedule.named(optimiser, steps=steps, batch=batch, learning_rate=0.01, drops=(), seed=seed)


def test_streamed_retraining_gives_the_numbers_of_data_in_memory(tmp_path, network, photos, monkeypatch):
    """In groups of two, the groups kept in a folder: one of them is then not computed again."""
    rows = np.delete(np.arange(N), 4)  # one that cannot be read, say
    monkeypatch.setattr(PhotoObjective, "usable", rows)
    schedule = planned(6, 5, "nesterov", seed=2)
    start, data = fresh(network, schedule), in_memory(photos, rows, Notes())[0]
    test = in_chunks(ModuleModel(network, CLASSES), Data(data.x[:, :2].flip(4), data.y[:, :2]))
    members = [np.array([row]) for row in (7, 0, 20, 11, 3)]
    places = [np.searchsorted(rows, group) for group in members]
    expected = ModuleTrainer(start, (data.x[0], data.y[0]), 0.01, network).go_on(schedule, places, test)
    trainer = PhotoTrainer(start, of_all(network, photos, tmp_path / "s"), 0.01, 2, tmp_path / "retraining")
    found = trainer.go_on(schedule, members, test)
    np.testing.assert_allclose(found.removed, expected.removed, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.control, expected.control, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.before, losses_of(network, test))
    assert not np.allclose(found.removed[0], found.control) and found.unseen.tolist() == expected.unseen.tolist()
    (tmp_path / "retraining" / "order-2" / "left-out-0001.npz").unlink()
    np.testing.assert_array_equal(trainer.go_on(schedule, members, test).removed, found.removed)
    with pytest.raises(InputError, match="run with other schedule"):
        trainer.go_on(planned(3, 5, "sgd", seed=2), members, test)
    with pytest.raises(InputError, match="at_once = 0"):
        PhotoTrainer(start, of_all(network, photos, tmp_path / "s"), 0.01, 0).go_on(schedule, members, test)


def prepared(trained, photos, rows, tmp_path, curvature_images=12, damping=0.1, **options):
    sizes = {"chunk": 5, "shard": 8, "at_once": 2, "checkpoint": tmp_path}
    return photographs.prepare(
        trained, photos, photos, np.array(rows), 0.01, damping, 0, HERE, curvature_images, **(sizes | options)
    )


def test_photographs_go_the_whole_way_by_the_calls_of_all_networks(photos, tmp_path):
    schedule = replace(planned(2, 5, "sgd"), learning_rate=1e-5)
    trained = training.train_streamed(narrow(1).train(), photos, np.arange(N), schedule, 0.01, HERE)
    assert not trained.module.training and trained.images == 10
    network, points = prepared(trained, photos, [2, 9], tmp_path)
    assert np.isfinite(network.test_losses()).all() and network.certificate["grad_norm"] > 0
    names = ["identity", "cg_ggn", "lissa_partition", "ekfac"]
    options = {"lissa_partition": {"depth": 2, "batch": 4}, "cg_ggn": {"max_iterations": 3}, "ekfac": {"batch": 5}}
    estimates = estimate([network], [points], names, options=options)
    slopes = network.train.slopes.values[:, :2] / N  # one pass for all estimators, the first of them without a solver
    np.testing.assert_allclose(estimates[0]["identity"].changes, slopes, rtol=1e-9)
    chosen = [choose(estimates[0]["identity"].changes, {"top_influence": 3}, selected_by="identity")]
    how = {"warm_minibatch": {"schedule": photographs.further(schedule, N, 1, trained_here=True)}}
    found = leave_out([network], [points], chosen, how, options=how)
    warm, less = found[0]["warm_minibatch"], found[0]["warm_minibatch_minus_control"]
    np.testing.assert_allclose(less.changes, warm.changes - warm.control)
    rows = compare([network], [points], chosen, estimates, found)
    assert {row["test_point"] for row in rows} == {2, 9} and len(rows) == 2 * 4 * 2
    assert all(row["test_choice"] == "random" and row["n_points"] == 3 for row in rows)
    with pytest.raises(InputError, match="curvature_images = 99"):
        prepared(trained, photos, [2], tmp_path, 99)


def test_going_on_takes_the_rate_of_where_the_weights_are_from():
    schedule = Schedule(9, 4, 0.1, ((2 / 3, 0.1),), "sgd", seed=3)
    here, elsewhere = (photographs.further(schedule, 22, 2, trained_here=where) for where in (True, False))
    assert (here.steps, here.learning_rate, here.seed) == (10, pytest.approx(0.01), 4)
    assert elsewhere.learning_rate == 0.1 and elsewhere.drops == ()
    with pytest.raises(InputError, match="batch = 4"):
        photographs.further(schedule, 3, 2, True)


# -- estimates -------------------------------------------------------------------------------------------------------


def test_directions_solve_the_damped_system_and_are_kept(tmp_path, photos):
    start = fresh(narrow(2), planned(2, 7, "sgd"))
    network, points = prepared(start, photos, [2], tmp_path, N, damping=5.0)
    found = direction_of(network, points, "cg_ggn", max_iterations=40, tolerance=1e-2)
    assert found.status == "ok" and found.residual <= 1e-2 and found.finite
    j, theta = network.curvature, network.theta[None]
    curved = j.products(theta, found.x[None], j.uniform(1), None, True)[0] + 5.0 * found.x
    gradient = network.test_gradients(points)
    assert float((curved - gradient).norm() / gradient.norm()) < 2e-2
    again = direction_of(network, points, "cg_ggn", max_iterations=40, tolerance=1e-2)
    torch.testing.assert_close(again.x, found.x, rtol=0, atol=0)
    assert (again.seconds, again.status) == (found.seconds, found.status)
    with pytest.raises(InputError, match="run with other options"):
        direction_of(network, points, "cg_ggn", max_iterations=3)
    with pytest.raises(InputError, match="estimator = 'trak': choose one of"):
        direction_of(network, points, "trak")


def test_an_estimator_that_diverges_takes_no_other_with_it(tmp_path, photos, monkeypatch):
    network, points = prepared(fresh(narrow(2), planned(2, 7, "sgd")), photos, [2], tmp_path)
    monkeypatch.setitem(SOLVERS, "ekfac", lambda *_, **__: lambda v: Solution(*nowhere(v), 0.0, "solver_diverged"))
    found = estimate([network], [points], ["ekfac", "identity"])[0]
    assert found["ekfac"].status == "solver_diverged" and np.isnan(found["ekfac"].changes).all()
    assert np.isfinite(found["identity"].changes).all()
    with pytest.raises(InputError, match="all diverged"):
        estimate([network], [points], ["ekfac"])
    assert isinstance(points, Points)


def test_accuracies_count_the_largest_and_the_five_largest_logits(photos):
    network = narrow(4, outputs=9)
    found = photographs.accuracies(network, photos, 8, HERE)
    data, _ = in_memory(photos, np.arange(N), Notes())
    logits = network(data.x[0])
    ranks = (logits > logits.gather(1, data.y[0][:, None])).sum(1)
    assert found["top1"] == pytest.approx(float((ranks < 1).double().mean()))
    assert found["top5"] == pytest.approx(float((ranks < 5).double().mean()))
    assert found["images"] == N and found["unreadable"] == 0


def test_projections_are_images_over_rates_and_operations_over_speed():
    rates = {"scoring": 10.0, "retraining": 20.0, "flops_per_image": 8e9}
    table = photographs.projection(rates, n_directions=6, networks=101, epochs=2, tflops=40.0, images=3_600_000)
    assert table.loc["scoring", "hours_here"] == pytest.approx(100)
    assert table.loc["retraining", "images"] == 3_600_000 * 202
    assert table.loc["scoring", "gpu_hours"] == pytest.approx(3.6e6 * 13 * 8e9 / 40e12 / 3600)


# -- the stand-in ----------------------------------------------------------------------------------------------------


def fake_cifar(monkeypatch):
    from fragile_lib.data.raw import Raw

    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8), np.arange(60, dtype=np.uint8) % 10
    monkeypatch.setattr(standin, "cifar10_raw", lambda: Raw(pixels, labels, pixels[:30], labels[:30]))


def test_the_stand_in_has_the_layout_of_imagenet_and_is_made_once(tmp_path, monkeypatch, capsys):
    fake_cifar(monkeypatch)
    monkeypatch.setenv("FRAGILE_DATA", str(tmp_path))
    monkeypatch.setattr(standin, "raw_files", lambda wanted: {"imagenet_00_243.jpg": b"a photograph"})
    place = standin.standin_folder(train_per_class=2, test_per_class=1)
    train, test = find_sets(place)
    assert (len(train), len(test)) == (20, 11) and train.classes == standin.CLASSES
    assert train.is_standin and test.dataset == "imagenet_standin"
    assert Image.open(train.path(0)).size == (256, 256)
    assert (place / "val" / "dog" / "photo-imagenet_00_243.jpg").read_bytes() == b"a photograph"
    before = train.path(0).stat().st_mtime_ns
    assert standin.main(["--train", "2", "--test", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(place) and train.path(0).stat().st_mtime_ns == before
    train.path(0).unlink()  # what is not whole is made again
    standin.standin_folder(train_per_class=2, test_per_class=1)
    assert standin.is_whole(place) and not list(tmp_path.rglob(".fetch-*"))


def test_a_stand_in_without_imagenets_photographs_says_so(tmp_path, monkeypatch):
    fake_cifar(monkeypatch)
    monkeypatch.setenv("FRAGILE_DATA", str(tmp_path))

    def nowhere(wanted):
        raise InputError("not to be had")

    monkeypatch.setattr(standin, "raw_files", nowhere)
    with pytest.warns(UserWarning, match="none of ImageNet's own photographs"):
        place = standin.standin_folder(train_per_class=1, test_per_class=1)
    assert len(find_sets(place)[1]) == 10


def test_crops_need_nothing_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("FRAGILE_DATA", str(tmp_path))
    train, test = find_sets(standin.standin_folder("crops", 3, 1))
    assert (len(train), len(test)) == (6, 2) and train.classes == ("flower", "temple") and train.is_standin
    for options in ({"source": "web"}, {"train_per_class": 0}, {"test_per_class": 1001}):
        with pytest.raises(InputError):
            standin.standin_folder(**options)


def test_random_points_are_seeded_and_photographs_can_go_first(photos):
    assert photographs.random_points(photos, 3, 5).tolist() == photographs.random_points(photos, 3, 5).tolist()
    assert set(photographs.random_points(photos, 3, 0, prefer="006")) == {6, 13, 20}
    with pytest.raises(InputError, match="test_count = 0"):
        photographs.random_points(photos, 0, 0)


def test_pixels_are_what_the_network_sees(photos):
    point = {"test_point": 1, "index": [0, 4, 2], "estimate": {"cg": [0.1, -0.5, 0.2]}}
    found = photographs.pictures_of(point, "cg", photos, photos, most=2)
    assert found["scores"].tolist() == [-0.5, 0.2] and found["train_classes"] == ["ant", "ant"]
    shown, whole = found["train"][1], np.asarray(Image.open(photos.listing.path(2)))
    assert shown.shape == (photographs.SHOWN, photographs.SHOWN, 3) and shown.dtype == np.uint8
    assert abs(float(shown.mean()) - float(whole.mean())) < 15


def test_a_factor_on_which_one_driver_fails_is_decomposed_by_another(monkeypatch):
    a = torch.randn(3, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor = a.T @ a

    def failing(matrix):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    values, vectors = eigen(factor)
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, factor)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(60, dtype=torch.float64))
    assert all(torch.isnan(part).all() for part in eigen(factor * float("nan")))


# -- single files ----------------------------------------------------------------------------------------------------


def noise(path: Path, **settings: object) -> np.ndarray:
    """Write a photograph of noise and return its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return pixels


def read(path: Path, size: int = 64) -> Photo:
    """Read the one photograph of a folder of classes."""
    return PhotoSet(list_folder(path.parents[1]), size)[0]


def test_a_folder_that_many_links_lead_to_is_listed_once(tmp_path):
    names = [f"class{i:02d}" for i in range(12)]  # along every way there would be more than ten million images
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "own.png")
    for name in names:
        for other in set(names) - {name}:
            (tmp_path / name / other).symlink_to(tmp_path / other)
    with pytest.warns(UserWarning, match="passed over as links to nowhere, circles"):
        found = list_folder(tmp_path)
    assert np.bincount(found.labels).tolist() == [12] * 12


def test_links_in_circles_and_what_is_no_file_are_named_and_passed_over_at_once(tmp_path):
    for name in ("ant/0.png", "bee/inner/1.png"):
        noise(tmp_path / name)
    ant, bee = tmp_path / "ant", tmp_path / "bee"
    os.mkfifo(ant / "fifo.png")
    os.mkfifo(ant / "fifo-without-an-image's-name")
    (ant / "device.png").symlink_to("/dev/zero")
    (ant / "nowhere.png").symlink_to("gone.png")
    (ant / "itself").symlink_to("itself")
    (bee / "inner" / "up").symlink_to(tmp_path)
    (bee / "linked.png").symlink_to(ant / "0.png")
    (tmp_path / "cow").symlink_to("cow")
    odd = "cow, ant/device.png, ant/fifo.png, ant/itself, ant/nowhere.png, bee/inner/up"
    with pytest.warns(UserWarning) as told:
        listing = list_folder(tmp_path)
    assert str(told[0].message).endswith(f": {odd}")
    assert [listing.name(row) for row in range(len(listing))] == ["ant/0.png", "bee/inner/1.png", "bee/linked.png"]
    assert listing.classes == ("ant", "bee")


def test_a_camera_s_note_of_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    noise(tmp_path / "plain" / "a" / "0.png")
    noise(tmp_path / "turned" / "a" / "0.png", exif=exif)
    plain, turned = (read(tmp_path / name / "a" / "0.png") for name in ("plain", "turned"))
    assert Image.open(tmp_path / "turned" / "a" / "0.png").getexif()[0x0112] == 6
    assert plain.pixels.equal(turned.pixels) and not turned.note


def test_more_pixels_than_can_be_held_are_refused_before_they_are_decoded(tmp_path, monkeypatch, recwarn):
    path = tmp_path / "a" / "0.png"
    noise(path)
    monkeypatch.setattr(reading, "MOST_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("was decoded"))
    found = read(path)
    assert found.pixels is None and found.note == "has 64 x 64 pixels; 4095 at most" and not len(recwarn)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # from twice its own limit on Pillow refuses itself
    assert "exceeds limit" in read(path).note


def test_colour_of_16_bits_counts_by_its_upper_eight(tmp_path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    upper = noise(tmp_path / "eight" / "a" / "0.png")
    lower = np.random.default_rng(1).integers(0, 256, upper.shape, dtype=np.uint8)
    rows = [b"\0" + row.tobytes() for row in np.stack([upper, lower], axis=-1)]
    head = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"".join(rows))), chunk(b"IEND", b"")
    path = tmp_path / "sixteen" / "a" / "0.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    eight, sixteen = read(tmp_path / "eight" / "a" / "0.png"), read(path)
    assert sixteen.pixels.equal(eight.pixels) and not sixteen.note


def test_a_jpeg_cut_short_is_told_and_one_damaged_in_its_middle_is_not(tmp_path):
    path = tmp_path / "a" / "0.jpg"
    noise(path)
    whole, content = read(path), bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    assert read(path).pixels is None and "truncated" in read(path).note
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    damaged = read(path)
    assert not damaged.note and not damaged.pixels.equal(whole.pixels)
