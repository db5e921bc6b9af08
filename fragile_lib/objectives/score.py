"""The scoring pass as a command, on one process or on many by torchrun.

    python -m fragile_lib.objectives.score CHECKPOINT
    torchrun --nproc-per-node 8 -m fragile_lib.objectives.score CHECKPOINT

CHECKPOINT is a folder into which the notebook has written its job. Every process takes shards by its number, writes
them there as they are finished, and uses the GPU of its local number where there is one. With several machines the
folder and the images lie where all of them see both.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from fragile_lib.data.photographs import ON_BAD, Loading
from fragile_lib.objectives.base import resolve_device
from fragile_lib.objectives.photographs import read_job, score
from fragile_lib.tools.errors import InputError, bad_input

PATIENCE = timedelta(days=14)  # that a process which has finished its share waits for the others


def main(arguments: list[str] | None = None) -> int:
    """Run the pass of a checkpoint folder; 0 when all scores are there, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m fragile_lib.objectives.score", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="folder that the notebook has written its job into")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images, for each process")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--on-bad-image", default="error", choices=ON_BAD, help="what to do about broken files")
    given = parser.parse_args(arguments)
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        loading = Loading(given.workers, given.on_bad_image, _own_device(given.device))
        scoring = read_job(given.checkpoint)
        if together:
            dist.init_process_group("gloo", timeout=PATIENCE)  # only barriers: no number travels between processes
        found = score(scoring, loading)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if found is not None:
        rate = found.images / max(found.seconds, 1e-9)
        print(f"{found.images} images scored, {len(found.notes.bad)} left out, {rate:.1f} images a second a process")
    if together:
        dist.destroy_process_group()
    return 0


def _own_device(device: str) -> str:
    device = resolve_device(device)
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and number >= torch.cuda.device_count():
        remedy = f"this machine has {torch.cuda.device_count()} GPUs; start as many processes"
        raise bad_input("nproc-per-node", number + 1, remedy)
    return f"cuda:{number}" if device == "cuda" else device


if __name__ == "__main__":
    sys.exit(main())
