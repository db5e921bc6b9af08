"""Scores of all training images by forward mode, streamed: shard by shard, on one process or several, resumable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from fragile_lib.data.folder import list_folder
from fragile_lib.data.photographs import Batch, Notes, PhotoSet, batches_of, stream
from fragile_lib.data.sets import Data
from fragile_lib.models.module import ModuleModel
from fragile_lib.models.weights import load_state, make_network
from fragile_lib.objectives.streamed import StreamedObjective
from fragile_lib.solvers.operator import check_count
from fragile_lib.tools.checkpoint import Checkpoint, digest_of
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.progress import progress


@dataclass(frozen=True)
class Loading:
    """How images are read in a pass; no score depends on it.

    workers: processes that decode images. on_bad: `error`, or `skip` to leave broken files out. device: `cpu`, `cuda`.
    """

    workers: int = 0
    on_bad: str = "error"
    device: str = "cpu"


@dataclass(frozen=True)
class Slopes:
    """v_k . grad loss_i for n images and K directions: (n, K), nan where a file is broken; and what the pass cost.

    images: that were scored. seconds: of all processes together.
    """

    values: np.ndarray
    notes: Notes
    images: int
    seconds: float


@dataclass(frozen=True)
class Scoring:
    """A pass over a set, cut into shards of whole batches; each shard is a part of the checkpoint.

    Batches are the same whichever process computes them and wherever a pass was broken off, so that the scores are the
    same, bit for bit, on one kind of machine with one number of threads.

    network: in evaluation mode, of which theta (P,) are the parameters. directions: (K, P). batch: images in one
    forward pass. shard: images in one file, made a multiple of `batch`. vectors: directions multiplied at once.
    """

    folder: Path
    network: nn.Module
    directions: Tensor
    photos: PhotoSet
    batch: int = 50
    shard: int = 1000
    vectors: int = 8
    _made: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("batch", "shard", "vectors"):
            check_count(name, getattr(self, name))
        n_params = sum(p.numel() for p in self.network.parameters())
        if self.directions.ndim != 2 or self.directions.shape[1] != n_params or not len(self.directions):
            raise bad_input("directions", tuple(self.directions.shape), f"give vectors (K, {n_params}), K at least 1")

    @property
    def checkpoint(self) -> Checkpoint:
        """The folder's checkpoint, with the facts that the scores follow from; refused where it is another's."""
        if "checkpoint" not in self._made:
            state = self.network.state_dict()
            facts = {
                "images": self.photos.listing.digest,
                "image_size": self.photos.size,
                "weights": digest_of(*(state[name] for name in sorted(state))),
                "directions": digest_of(self.directions),
                "batch": self.batch,
                "shard": self.shard,
                "vectors": self.vectors,
                "dtype": str(self.photos.dtype),
            }
            self._made["checkpoint"] = Checkpoint(self.folder, facts)
        return self._made["checkpoint"]

    @property
    def shards(self) -> list[np.ndarray]:
        """The rows of each shard."""
        whole = self.batch * max(1, self.shard // self.batch)
        return batches_of(np.arange(len(self.photos)), whole)

    def missing(self) -> list[int]:
        """Numbers of the shards that are not finished."""
        return [number for number in range(len(self.shards)) if not self.checkpoint.has(_name(number))]

    def run(self, loading: Loading, rank: int = 0, world: int = 1) -> None:
        """Compute this process's share of what is missing; each shard is written when it is complete.

        Raises:
            InputError: a broken image where these are not skipped.
        """
        shards = self.shards
        mine = [number for number in self.missing() if number % world == rank]
        pieces = [(number, batches_of(shards[number], self.batch)) for number in mine]
        batches = [rows for _, part in pieces for rows in part]
        notes, began = Notes(), perf_counter()
        found = self._slopes(batches, notes, loading)
        with progress(total=sum(map(len, batches)), unit="img", desc="scoring") as bar:
            for number, part in pieces:
                values = np.full((len(shards[number]), len(self.directions)), np.nan)
                for rows in part:
                    batch, slopes = next(found)
                    values[batch.rows - shards[number][0]] = slopes
                    bar.update(len(rows))
                now = perf_counter()
                self.checkpoint.save(_name(number), values=values, **_told(notes), seconds=np.array(now - began))
                notes.bad.clear()
                notes.converted.clear()
                began = now

    def gathered(self) -> Slopes:
        """All shards together.

        Raises:
            InputError: some are missing.
        """
        if missing := self.missing():
            raise bad_input("checkpoint", str(self.folder), f"{len(missing)} shards are missing; run the pass again")
        values, notes, seconds = [], Notes(), 0.0
        for number in range(len(self.shards)):
            part = self.checkpoint.load(_name(number))
            values.append(part["values"])
            notes.bad |= dict(zip(part["bad"].tolist(), part["why"].tolist(), strict=True))
            notes.converted |= dict(zip(part["converted"].tolist(), part["mode"].tolist(), strict=True))
            seconds += float(part["seconds"])
        return Slopes(np.concatenate(values), notes, len(self.photos) - len(notes.bad), seconds)

    def on_rows(self, rows: np.ndarray, loading: Loading) -> np.ndarray:
        """(k, K) of some images, with no checkpoint: for measurements."""
        return np.concatenate([s for _, s in self._slopes(batches_of(rows, self.batch), Notes(), loading)])

    def save_job(self) -> None:
        """Write into the folder what other processes need to take part: network, directions, and where images lie."""
        state = {f"state.{name}": value.cpu().numpy() for name, value in self.network.state_dict().items()}
        where = {"listed": np.array(str(self.photos.listing.folder)), "dtype": np.array(str(self.photos.dtype))}
        numbers = {name: np.array(getattr(self, name)) for name in ("batch", "shard", "vectors")}
        width = np.array(getattr(self.network, "width_multiplier", 1.0))
        directions = self.directions.cpu().numpy()
        size = np.array(self.photos.size)
        self.checkpoint.save("job", **state, **where, **numbers, width=width, size=size, directions=directions)

    def _slopes(self, batches: list[np.ndarray], notes: Notes, loading: Loading) -> Iterator[tuple[Batch, np.ndarray]]:
        theta = torch.cat([p.detach().flatten() for p in self.network.parameters()]).to(loading.device)
        v = self.directions.to(loading.device)
        network = self.network.to(loading.device)
        blank = Data(theta.new_empty(1, 0, 3, self.photos.size, self.photos.size), torch.empty(1, 0, dtype=torch.int64))
        outputs = len(list(network.parameters())[-1])
        window = StreamedObjective(ModuleModel(network, outputs), blank, 0.0, loading.device, self.batch, self.vectors)
        for batch in stream(self.photos, batches, notes, loading.on_bad, loading.workers, loading.device):
            if not len(batch.rows):
                yield batch, np.empty((0, len(v)))
                continue
            window.data = Data(batch.x[None], batch.y[None])  # the same objective, moved on to other images
            yield batch, window.directional(theta[None], v[None])[0].T.double().cpu().numpy()


def read_job(folder: Path | str) -> Scoring:
    """The pass that `save_job` described in a folder.

    Raises:
        InputError: no job is there, or the images are not those that it was written for.
    """
    checkpoint = Checkpoint.opened(folder)
    if not checkpoint.has("job"):
        raise bad_input("checkpoint", str(folder), "holds no scoring job yet; the notebook writes it after the solves")
    job = checkpoint.load("job")
    listing = list_folder(str(job["listed"]))
    state = {name.removeprefix("state."): torch.from_numpy(v) for name, v in job.items() if name.startswith("state.")}
    dtype = getattr(torch, str(job["dtype"]).removeprefix("torch."))
    size, width = int(job["size"]), float(job["width"])
    network = make_network(len(state["fc.weight"]), size, width).to(dtype)
    network = load_state(network, state, str(folder))
    numbers = {name: int(job[name]) for name in ("batch", "shard", "vectors")}
    directions = torch.from_numpy(job["directions"])
    found = Scoring(checkpoint.folder, network, directions, PhotoSet(listing, size, dtype), **numbers)
    found.checkpoint  # noqa: B018 - refuses what does not fit the manifest
    return found


def _name(number: int) -> str:
    return f"scores-{number:06d}"


def _told(notes: Notes) -> dict[str, np.ndarray]:
    return {
        "bad": np.array(list(notes.bad), dtype=np.int64),
        "why": np.array(list(notes.bad.values()), dtype=str),
        "converted": np.array(list(notes.converted), dtype=np.int64),
        "mode": np.array(list(notes.converted.values()), dtype=str),
    }
