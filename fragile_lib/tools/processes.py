"""What processes say to those that started them, and that they end together with them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil

OWNERS = "FRAGILE_OWNERS"  # the variable of the environment that names them to what they start


def say(*lines: str) -> None:
    """Print lines at once, also into a pipe."""
    for line in lines:
        print(line, flush=True)


@contextlib.contextmanager
def ending_children() -> Iterator[None]:
    """Within: what this process starts ends with the block, however that is left."""
    try:
        yield
    finally:
        for child in psutil.Process().children():
            end_tree(child)


def end_tree(process: psutil.Process, patience: float = 15.0) -> None:
    """End a process and all below it: asked first, killed after `patience` seconds."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.send_signal(signal.SIGINT if member == process else signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=patience)
    for member in left:
        with contextlib.suppress(psutil.Error):
            member.kill()
    psutil.wait_procs(left, timeout=5)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that ends while it is asked for does not."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def end_with_owners() -> None:
    """End this process and its kernel within a second once a process that started it on this machine is gone.

    Without it, a `kill -9` of the study would leave its notebooks computing, and in the way of the next study.
    """
    pids = [int(pid) for pid in os.environ.get(OWNERS, "").split(",") if pid]
    if not pids:
        return
    try:
        owners = [psutil.Process(pid) for pid in pids]
    except psutil.NoSuchProcess:
        os._exit(1)

    def watch() -> None:
        while all(map(is_alive, owners)):
            time.sleep(1)
        try:
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):  # ended by itself meanwhile
                    child.kill()
        finally:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
