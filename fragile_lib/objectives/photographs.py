"""Slopes of all training photographs' losses by forward mode, streamed shard by shard, on one process or several."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fragile_lib.data.folder import list_folder
from fragile_lib.data.photographs import Batch, Loading, Notes, PhotoSet, batches_of, stream
from fragile_lib.data.sets import Data
from fragile_lib.models.module import ModuleModel
from fragile_lib.models.weights import load_state, make_network
from fragile_lib.objectives.base import Objective
from fragile_lib.tools.checkpoint import Checkpoint, digest_of
from fragile_lib.tools.checks import check_count
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.progress import progress


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
    forward pass. shard: images in one file, made a multiple of `batch`.
    """

    folder: Path
    network: nn.Module
    directions: Tensor
    photos: PhotoSet
    batch: int = 50
    shard: int = 1000

    def __post_init__(self) -> None:
        for name in ("batch", "shard"):
            check_count(name, getattr(self, name))
        n_params = sum(p.numel() for p in self.network.parameters())
        if self.directions.ndim != 2 or self.directions.shape[1] != n_params or not len(self.directions):
            raise bad_input("directions", tuple(self.directions.shape), f"give vectors (K, {n_params}), K at least 1")

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The folder's checkpoint, with the facts that the scores follow from; refused where it is another's."""
        state = self.network.state_dict()
        facts = {
            "images": self.photos.listing.digest,
            "image_size": self.photos.size,
            "weights": digest_of(*(state[name] for name in sorted(state))),
            "directions": digest_of(self.directions),
            "batch": self.batch,
            "shard": self.shard,
            "dtype": str(self.photos.dtype),
        }
        return Checkpoint(self.folder, facts)

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
                told = np.array(json.dumps([notes.bad, notes.converted]))
                self.checkpoint.save(_name(number), values=values, told=told, seconds=np.array(now - began))
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
            for kept, told in zip((notes.bad, notes.converted), json.loads(str(part["told"])), strict=True):
                kept.update({int(row): why for row, why in told.items()})
            seconds += float(part["seconds"])
        return Slopes(np.concatenate(values), notes, len(self.photos) - len(notes.bad), seconds)

    def on_rows(self, rows: np.ndarray, loading: Loading) -> np.ndarray:
        """(k, K) of some images, with no checkpoint: for measurements."""
        return np.concatenate([s for _, s in self._slopes(batches_of(rows, self.batch), Notes(), loading)])

    def save_job(self) -> None:
        """Write into the folder what other processes need to take part: network, directions, and where images lie."""
        state = {f"state.{name}": value.cpu().numpy() for name, value in self.network.state_dict().items()}
        where = {"listed": np.array(str(self.photos.listing.folder)), "dtype": np.array(str(self.photos.dtype))}
        numbers = {name: np.array(getattr(self, name)) for name in ("batch", "shard")}
        width = np.array(getattr(self.network, "width_multiplier", 1.0))
        directions = self.directions.cpu().numpy()
        size = np.array(self.photos.size)
        self.checkpoint.save("job", **state, **where, **numbers, width=width, size=size, directions=directions)

    def _slopes(self, batches: list[np.ndarray], notes: Notes, loading: Loading) -> Iterator[tuple[Batch, np.ndarray]]:
        theta = torch.cat([p.detach().flatten() for p in self.network.parameters()]).to(loading.device)
        v = self.directions.to(loading.device)
        network = self.network.to(loading.device)
        blank = Data(theta.new_zeros(1, 1, 3, self.photos.size, self.photos.size), torch.zeros(1, 1, dtype=torch.int64))
        outputs = len(list(network.parameters())[-1])
        window = Objective(ModuleModel(network, outputs), blank, chunk=self.batch)
        for batch in stream(self.photos, batches, notes, loading):
            if not len(batch.rows):
                yield batch, np.empty((0, len(v)))
                continue
            window.data = Data(batch.x[None], batch.y[None])  # the same objective, moved on to other images
            yield batch, window.directional(theta[None], v[None])[0].T.double().cpu().numpy()


def score(scoring: Scoring, loading: Loading) -> Slopes | None:
    """All scores, by this process alone or by all of torch.distributed's group, under the lock of the folder.

    Every process of a group has to call it. The first one has the lock and gathers the scores; the others return None
    when all are finished.

    Raises:
        InputError: the folder is in use or another run's, or an image is broken and broken ones are not skipped.
    """
    together = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    with scoring.checkpoint.locked() if rank == 0 else nullcontext():
        if together:
            dist.barrier()  # nobody begins before the folder is held
        scoring.run(loading, rank, world)
        if together:
            dist.barrier()
        return scoring.gathered() if rank == 0 else None


def score_by(scoring: Scoring, loading: Loading, processes: int = 1) -> Slopes:
    """All scores, by this process or by several on this machine, which torchrun starts; on a GPU each has its own.

    Raises:
        InputError: a number of processes below 1; what `score` raises; the processes did not come to their end.
    """
    check_count("processes", processes)
    if processes == 1:
        return score(scoring, loading)
    scoring.save_job()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "fragile_lib.objectives.score", str(scoring.folder), f"--workers={loading.workers}"]
    command += [f"--device={loading.device}", f"--on-bad-image={loading.on_bad}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        reason = told[0].removeprefix("error: ") if told else done.stderr.strip()[-500:]
        raise bad_input("processes", processes, f"the scoring processes ended early: {reason}")
    return scoring.gathered()


class PhotoObjective:
    """The training losses of a set of photographs, streamed; what `Network.train` is where images do not fit in memory.

    Only slopes along directions can be asked of it, in one pass over the set for all of them. The curvature is that of
    some images in memory (`Network.curved`).

    Args:
        module: in evaluation mode.
        photos: the training photographs.
        loading: how they are read.
        folder: in which finished shards are kept; a killed pass goes on with what is missing.
        batch: images in one forward pass; shard: in one file.
        processes: that share the pass.
        joinable: whether the job is written into the folder, so that other processes can take part.
    """

    def __init__(
        self,
        module: nn.Module,
        photos: PhotoSet,
        loading: Loading,
        folder: Path,
        batch: int = 50,
        shard: int = 1000,
        processes: int = 1,
        joinable: bool = False,
    ) -> None:
        self.module, self.photos, self.loading, self.folder = module, photos, loading, folder
        self.batch, self.shard, self.processes, self.joinable = batch, shard, processes, joinable
        self.scoring: Scoring | None = None
        self.slopes: Slopes | None = None

    @property
    def n(self) -> int:
        """The number of photographs that can be read, as far as a pass has told."""
        return len(self.photos) - (len(self.slopes.notes.bad) if self.slopes else 0)

    @property
    def usable(self) -> np.ndarray:
        """Rows of the photographs that could be read."""
        bad = np.fromiter(self.slopes.notes.bad if self.slopes else (), dtype=int)
        return np.setdiff1d(np.arange(len(self.photos)), bad)

    @property
    def facts(self) -> dict:
        """What the last pass is recorded with: images a second, broken files by name, how many were made RGB."""
        notes, listing = self.slopes.notes, self.photos.listing
        return {
            "throughput": {"scoring": self.slopes.images / self.slopes.seconds},
            "unreadable": {listing.name(row): why for row, why in notes.bad.items()},
            "converted": len(notes.converted),
        }

    @property
    def said(self) -> str:
        """The same in words, with the first ten broken files."""
        facts = self.facts
        lines = [f"left out: {name}: {why}" for name, why in list(facts["unreadable"].items())[:10]]
        rate = f"{self.slopes.images:,} images scored, {facts['throughput']['scoring']:.1f} a second and process"
        return "\n".join(
            [*lines, f"{rate}; {len(facts['unreadable'])} unreadable, {facts['converted']} converted to RGB"]
        )

    def directional(self, theta: Tensor, v: Tensor, dataset: Tensor | None = None) -> Tensor:
        """v_k . grad loss_i (1, K, n) of all photographs for v (1, K, P), at the module's own theta; nan if broken."""
        self.scoring = Scoring(self.folder, self.module, v[0], self.photos, self.batch, self.shard)
        if self.joinable:
            self.scoring.save_job()
        self.slopes = score_by(self.scoring, self.loading, self.processes)
        return torch.from_numpy(self.slopes.values.T)[None]


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
    numbers = {name: int(job[name]) for name in ("batch", "shard")}
    directions = torch.from_numpy(job["directions"])
    found = Scoring(checkpoint.folder, network, directions, PhotoSet(listing, size, dtype), **numbers)
    found.checkpoint  # noqa: B018 - refuses what does not fit the manifest
    return found


def _name(number: int) -> str:
    return f"scores-{number:06d}"
