"""What a piece of work costs in memory."""

from __future__ import annotations

import threading

import psutil


class Peak:
    """Within: the resident memory of this process is watched; `mb` is its highest rise, in megabytes (10^6 bytes).

    A sample is taken every 5 milliseconds, so a shorter rise can escape it. Memory that was free before and is used
    again does not show.
    """

    def __init__(self) -> None:
        self._process, self._done = psutil.Process(), threading.Event()
        self.mb = 0.0

    def __enter__(self) -> Peak:
        self._start = self._process.memory_info().rss
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watch.join()
        self._look()

    def _look(self) -> None:
        self.mb = max(self.mb, (self._process.memory_info().rss - self._start) / 1e6)

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            self._look()
