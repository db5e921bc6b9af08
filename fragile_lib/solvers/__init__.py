"""Inverse-Hessian-vector products, one small class each, one protocol (see `base`)."""

from fragile_lib.solvers.base import Solution, Solver
from fragile_lib.solvers.exact import ExactSolver
from fragile_lib.solvers.lissa import LissaSolver

__all__ = ["ExactSolver", "LissaSolver", "Solution", "Solver"]
