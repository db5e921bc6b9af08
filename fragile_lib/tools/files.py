"""Files that are written whole or not at all, and the folder of raw data."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_path


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader sees the old content of `path` or the new, never a part.

    `content` is text, bytes, or a function that fills the open file. The folder is made. What fails leaves nothing
    behind; OSError is passed on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            if callable(content):
                content(handle)
            else:
                handle.write(content.encode() if isinstance(content, str) else content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_if_changed(path: Path, content: str | bytes) -> bool:
    """Write a file whole unless it holds this already, so that its time stamp moves only with its content."""
    content = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == content:
        return False
    write_whole(path, content)
    return True


def data_root() -> Path:
    """Where raw data sets live: FRAGILE_DATA of the environment, else a cache folder of the user."""
    chosen = os.environ.get("FRAGILE_DATA")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("fragile", appauthor=False)
