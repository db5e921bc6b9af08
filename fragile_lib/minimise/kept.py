"""Networks whose making takes long, kept in files: a study starts from them, and computes what is not there.

A file is named after what the network is and holds the settings it was made with; it is taken only where all of these,
the training data's own digest among them, are the same. Nothing is believed of a kept network but where it is: its
gradient and its curvature are computed again by whoever loads it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from fragile_lib.data.sets import Data
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.files import write_whole

FORMAT = 1
REMEDY = "give another folder, or '' to keep nothing"


@dataclass(frozen=True)
class Made:
    """A network theta (P,) in float64, checkpoints (T, P) of its training with rates (T,), and the passes it took."""

    theta: Tensor
    checkpoints: Tensor
    rates: Tensor
    passes: int


def settings(model: Any, data: Data, weight_decay: float, schedule: Schedule, **further: int) -> dict[str, Any]:
    """What a network was made with, for `load` and `keep`: model, digest of the data, decay, schedule and the rest."""
    digest = hashlib.sha256(data.x.numpy().tobytes() + data.y.numpy().tobytes()).hexdigest()
    common = {"format": FORMAT, "model": repr(model), "data": digest, "weight_decay": weight_decay}
    return json.loads(json.dumps(common | {"protocol": asdict(schedule)} | further))


def path_of(folder: Path | str, made_with: dict[str, Any]) -> Path:
    """The file of a network: weight decay and seed, to be read, and a digest of all settings."""
    digest = hashlib.sha256(json.dumps(made_with, sort_keys=True).encode()).hexdigest()[:12]
    return Path(folder) / f"wd{made_with['weight_decay']:g}-s{made_with['protocol']['seed']}-{digest}.npz"


def load(folder: Path | str, made_with: dict[str, Any]) -> Made | None:
    """The kept network of these settings, or None.

    Raises:
        InputError: a file that cannot be read, or that holds other settings than its name says.
    """
    path = path_of(folder, made_with)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            found, held = {name: file[name] for name in ("theta", "checkpoints", "rates", "passes")}, str(file["made"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        remedy = f"is no kept network ({type(error).__name__}); delete it, and it is computed anew"
        raise bad_input("networks", str(path), remedy) from error
    if json.loads(held) != made_with or not np.isfinite(found["theta"]).all():
        raise bad_input("networks", str(path), "holds another network than its name says; delete it")
    tensors = (torch.from_numpy(found[name]).double() for name in ("theta", "checkpoints", "rates"))
    return Made(*tensors, int(found["passes"]))


def keep(folder: Path | str, made_with: dict[str, Any], made: Made) -> Path:
    """Write a network to its file, whole or not at all, and return the path; checkpoints in float32.

    Raises:
        InputError: the folder cannot be written to.
    """
    path = path_of(folder, made_with)
    content = {
        "theta": made.theta.cpu().numpy(),
        "checkpoints": made.checkpoints.float().cpu().numpy(),
        "rates": made.rates.numpy(),
        "passes": made.passes,
        "made": json.dumps(made_with),
    }
    try:
        write_whole(path, lambda handle: np.savez(handle, **content))
    except OSError as error:
        raise bad_input("networks", str(folder), f"cannot be written to ({error.strerror}); {REMEDY}") from error
    return path


def check_folder(folder: Path | str) -> None:
    """Make the folder, before anything is computed that is to be kept there.

    Raises:
        InputError: it cannot be made or written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        why = None if os.access(folder, os.W_OK | os.X_OK) else "no permission"
    except OSError as error:
        why = error.strerror
    if why:
        raise bad_input("networks", str(folder), f"cannot be written to ({why}); {REMEDY}")
