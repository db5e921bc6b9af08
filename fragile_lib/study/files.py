"""Where things lie, and how a committed file of many numbers is kept: packed, as `<name>.xz`."""

from __future__ import annotations

import lzma
import os
from contextlib import suppress
from pathlib import Path

import fragile_lib
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.files import write_if_changed

PACKED = ".xz"  # a quarter smaller than gzip here, in Python's own library, and known to pandas by the name


def study_root() -> Path:
    """Return the folder that holds params/, notebooks/ and runs/: the checkout, or the variable FRAGILE_ROOT."""
    given = os.environ.get("FRAGILE_ROOT")
    root = Path(given) if given else Path(fragile_lib.__file__).parents[1]
    if not (root / "params").is_dir():
        remedy = "has no params/ folder; install with `pip install -e .` or name the checkout"
        raise bad_input("FRAGILE_ROOT", str(root), remedy)
    return root.resolve()


def package_dir(root: Path) -> Path:
    """Return the folder of the science modules: the root's own, or this package's for a study of parameters alone."""
    own = root / "fragile_lib"
    return own if own.is_dir() else Path(fragile_lib.__file__).resolve().parent


def profile_dir(root: Path, profile: str) -> Path:
    """Return the folder of a profile's runs."""
    return root / "runs" / profile


def shown(path: Path, root: Path) -> str:
    """Return a path as messages show it: relative to the root where it lies under it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def stored(path: Path) -> Path:
    """Return the file that holds what belongs at `path`: its packed form where there is one, else `path` itself.

    The packed form goes first: it is what git brings up to date, and a plain copy beside it may be older.
    """
    other = path.with_name(path.name + PACKED)
    return other if other.is_file() else path


def content_of(path: Path) -> bytes:
    """Return what a file holds, unpacked; OSError where it cannot be opened, ValueError where it is damaged."""
    if path.suffix != PACKED:
        return path.read_bytes()
    try:
        return lzma.decompress(path.read_bytes())
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"is no whole archive: {error}") from None


def packed_text(text: str, path: Path) -> bytes:
    """Return a text packed, as it is to be kept at `path`: what lies there already, where it holds this text.

    So nothing changes where there is no change: another version of the library may pack a text into other bytes.
    """
    with suppress(OSError, ValueError):
        if content_of(path) == text.encode():
            return path.read_bytes()
    return lzma.compress(text.encode(), preset=6 | lzma.PRESET_EXTREME)


def write_packed(path: Path, text: str) -> None:
    """Write a text packed, in place of a plain file at `path`."""
    target = path.with_name(path.name + PACKED)
    write_if_changed(target, packed_text(text, target))
    path.unlink(missing_ok=True)
