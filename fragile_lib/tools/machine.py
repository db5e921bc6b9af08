"""Where and with what a piece of work is done: versions, commit, machine, threads, memory, time."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed, without importing them."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(root: Path, paths: Iterable[str]) -> dict[str, Any]:
    """Return the commit and whether anything under `paths` differs from it; empty where there is no git."""

    def git(*arguments: str) -> str:
        call = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=True)
        return call.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", *paths))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": "", "dirty": False}


def peak_memory_mb() -> float:
    """Return the highest resident memory of this process so far, in megabytes (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


class Clock:
    """When something began: `at` in words, and the seconds since then, by a clock that nobody sets."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Note that it begins now."""
        self.at, self._began = timestamp(), time.monotonic()

    def seconds(self) -> float:
        """Return the seconds since it began."""
        return time.monotonic() - self._began


def timestamp() -> str:
    """Return this moment as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


PROCESS, WORK = Clock(), Clock()  # since this module was imported; since what the process is for began


def machine() -> str:
    """Return the system, the processor's kind and the number of its cores, and the graphics card's name, in words."""
    torch = sys.modules.get("torch")
    card = f", {torch.cuda.get_device_name()}" if torch and torch.cuda.is_available() else ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{card}"


def threads() -> int:
    """Return the number of threads that a computation uses here."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
