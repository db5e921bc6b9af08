"""Where things lie."""

from __future__ import annotations

import os
from pathlib import Path

import fragile_lib
from fragile_lib.tools.errors import bad_input


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
