"""The old name of `lissa.lissa_partition`, for those who still use it."""

from __future__ import annotations

from fragile_lib.solvers.lissa import POWER_STEPS, DivergedWarning
from fragile_lib.solvers.lissa import lissa_partition as BatchLissaSolver  # noqa: N812

__all__ = ["POWER_STEPS", "BatchLissaSolver", "DivergedWarning"]
