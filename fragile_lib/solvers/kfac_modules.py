"""The old name of `kfac.EkfacSolver` with one drawn label an example, for those who still use it."""

from __future__ import annotations

from functools import partial

from fragile_lib.solvers.kfac import EkfacSolver, eigen

__all__ = ["ModuleEkfacSolver", "eigen"]

ModuleEkfacSolver = partial(EkfacSolver, batch=64, samples=1)
