"""Progress bars that keep quiet in batch."""

from __future__ import annotations

import os
from typing import Any

from tqdm.auto import tqdm


def progress(*args: Any, **kwargs: Any) -> tqdm:
    """A `tqdm.auto` bar, off where TQDM_DISABLE is set: the notebook's own kind of bar does not look at it."""
    return tqdm(*args, leave=False, disable=bool(os.environ.get("TQDM_DISABLE")), **kwargs)
