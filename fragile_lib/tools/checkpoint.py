"""A folder of finished parts of a long computation: whole files or none, one run at a time, and only its own."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.files import locked, write_whole

MANIFEST = "manifest.json"
LOCK = ".lock"
IN_USE = "is in use by {}; wait for its end, or give another folder"


class Checkpoint:
    """Named parts, each a few arrays in one file, in a folder that belongs to one computation.

    A part is written under another name, brought to the disk, and renamed: a process that is killed at any moment
    leaves whole parts and at most one file that nothing reads. `facts` are what the parts follow from; they stand in
    the folder's manifest, and a folder with other facts is refused.

    Args:
        folder: made where it is not there.
        facts: in the types of JSON.

    Raises:
        InputError: a folder with the parts of another computation, one that holds other files, or a manifest that
            cannot be read.
    """

    def __init__(self, folder: Path | str, facts: Mapping[str, object]) -> None:
        self.folder, self.facts = Path(folder).expanduser().absolute(), json.loads(json.dumps(dict(facts)))
        if (self.folder / MANIFEST).exists():
            found = _facts(self.folder)
            differing = [name for name in {**found, **self.facts} if found.get(name) != self.facts.get(name)]
            if differing:
                remedy = f"belongs to a run with other {', '.join(differing)}; give another folder, or remove this one"
                raise bad_input("checkpoint", str(self.folder), remedy)
            return
        if self.folder.is_dir() and any(self.folder.glob("[!.]*")):
            raise bad_input("checkpoint", str(folder), "holds other files; give an empty or a new folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / MANIFEST, json.dumps(self.facts, indent=1))

    @classmethod
    def opened(cls, folder: Path | str) -> Checkpoint:
        """The checkpoint that is in a folder, whatever its facts.

        Raises:
            InputError: none is there.
        """
        return cls(folder, _facts(Path(folder).expanduser().absolute()))

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return self._path(name).exists()

    def save(self, name: str, **arrays: np.ndarray) -> None:
        """Write a part, in one step."""
        write_whole(self._path(name), lambda file: np.savez(file, **arrays))

    def load(self, name: str) -> dict[str, np.ndarray]:
        """Read a part.

        Raises:
            InputError: it is not there or cannot be read.
        """
        try:
            with np.load(self._path(name), allow_pickle=False) as parts:
                return {key: parts[key] for key in parts.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            remedy = f"cannot be read ({error}); remove it, and it is computed again"
            raise bad_input("checkpoint", str(self._path(name)), remedy) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the system lets go of it however the process ends.

        Raises:
            InputError: another process holds it.
        """
        with locked(self.folder / LOCK, "checkpoint", str(self.folder), IN_USE):
            for left in self.folder.glob(".*.npz.*"):  # of killed processes
                left.unlink(missing_ok=True)
            yield

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


def digest_of(*tensors: Tensor | np.ndarray) -> str:
    """SHA-256 of the numbers of tensors, with their shapes and types."""
    found = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else tensor
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _facts(folder: Path) -> dict:
    try:
        return json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise bad_input("checkpoint", str(folder), "holds no checkpoint; the notebook makes one") from None
    except (OSError, ValueError) as error:
        remedy = f"its {MANIFEST} cannot be read ({error}); remove the folder or give another"
        raise bad_input("checkpoint", str(folder), remedy) from None
