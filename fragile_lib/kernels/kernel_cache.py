"""Compiled kernels that are spread over several files, kept by numba from process to process.

numba keeps a compiled function by the date of the file that it is written in. Code from other files that was compiled
into it can change unseen; here the contents of all files that belong together decide.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path

from numba import njit

CONVOLUTION = ("conv_tiles.py", "conv_plan.py", "conv_kernels.py")


def compiled(function: Callable, **options: object) -> Callable:
    """numba's njit with its cache, without the interpreter's lock, stale when any file of CONVOLUTION changes."""
    dispatcher = njit(cache=True, nogil=True, inline="never", **options)(function)
    dispatcher._cache._cache_file._source_stamp = stamp(CONVOLUTION)
    return dispatcher


@cache
def stamp(files: tuple[str, ...]) -> str:
    """A digest of the contents of files of this package."""
    here = Path(__file__).parent
    return sha256(b"".join((here / file).read_bytes() for file in files)).hexdigest()
