"""What a process really imports of the library, kept as it is read: an edit that is put back leaves no other trace.

Run as a program this is the kernel of a notebook (`python -m fragile_lib.study.sources -f CONNECTION_FILE`).
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType

PACKAGE = Path(__file__).parents[1]
KEPT = "FRAGILE_SOURCES"  # the variable of the environment that names the folder for what is imported


class KeepingLoader(SourceFileLoader):
    """Reads the source of a module once, keeps it, and runs just that, whatever lies in a cache of compiled files."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the module's code."""
        source, kept = self.get_data(self.path), Path(os.environ[KEPT], Path(self.path).relative_to(PACKAGE))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(source)
        return self.source_to_code(source, self.path)


class KeepingFinder:
    """Finds the modules of this package that are not imported yet."""

    @staticmethod
    def find_spec(name: str, path: list[str] | None = None, target: object = None) -> ModuleSpec | None:
        """Return how a module is to be loaded; None where it is not of this package."""
        spec = PathFinder.find_spec(name, path) if name.startswith(f"{PACKAGE.name}.") else None
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = KeepingLoader(name, spec.origin)
        return spec


def keep_imported() -> None:
    """Keep what is imported from now on, where the environment names a folder for it."""
    if os.environ.get(KEPT):
        sys.meta_path.insert(0, KeepingFinder)


def as_imported(package: Path, kept: Path) -> Path:
    """Put the modules of `package` that were not imported beside those that were kept; return the folder of all."""

    def copy(source: str, target: str) -> None:
        if not os.path.exists(target):
            shutil.copyfile(source, target)

    ignore = shutil.ignore_patterns("__pycache__", "templates")
    return shutil.copytree(package, kept, ignore=ignore, copy_function=copy, dirs_exist_ok=True)


if __name__ == "__main__":
    keep_imported()
    runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
