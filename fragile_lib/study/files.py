"""Where things lie, and how files are written: whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import fragile_lib
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.files import write_whole


def study_root() -> Path:
    """Return the folder that holds params/, notebooks/ and runs/: the checkout, or the variable FRAGILE_ROOT."""
    given = os.environ.get("FRAGILE_ROOT")
    root = Path(given) if given else Path(fragile_lib.__file__).parents[1]
    if not (root / "params").is_dir():
        raise bad_input(
            "FRAGILE_ROOT", str(root), "has no params/ folder; install with `pip install -e .` or name the checkout"
        )
    return root.resolve()


def package_dir(root: Path) -> Path:
    """Return the folder of the science modules: the root's own, or this package's for a study of parameters alone."""
    own = root / "fragile_lib"
    return own if own.is_dir() else Path(fragile_lib.__file__).resolve().parent


def profile_dir(root: Path, profile: str) -> Path:
    """Return the folder of a profile's runs."""
    return root / "runs" / profile


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old content or the new, never a part; may raise OSError."""
    write_whole(path, lambda handle: handle.write(text.encode()))


def write_if_changed(path: Path, text: str) -> bool:
    """Write `text` unless the file already holds it, so that its time stamp moves only with its content."""
    try:
        if path.read_text(encoding="utf-8") == text:
            return False
    except (OSError, UnicodeDecodeError):
        pass
    write_atomic(path, text)
    return True


def write_json(path: Path, content: object) -> None:
    """Write `content` as JSON, atomically; NaN is an error here: `record.plain` turns it into null before."""
    write_atomic(path, json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n")


def shown(path: Path, root: Path) -> str:
    """Return a path as messages show it: relative to the root where it lies under it."""
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return str(path)
