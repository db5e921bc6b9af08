"""Inverse-Hessian-vector products, one small class each, one protocol (see `base`).

Outcomes (`Solution.status`) of all solvers:

* `ok`: nothing is known that speaks against the answer; the residual says how good it is.
* `indefinite`: C + damping I is known to have an eigenvalue at or below zero. `ExactSolver` always knows;
  `BlockCGSolver` and `MinresSolver` know it from the Krylov spaces they searched, `ArnoldiSolver` from the eigenvalues
  it found. x is the inverse all the same, as far as the residual says, but of no minimum.
* `not_converged`: an iteration ended above its tolerance, or any solver at a residual of 1 or more: that is no answer,
  though an approximate inverse ((E)K-FAC) or a product of gradients may still tell the order. x is the last iterate
  and its residual is as stated.
* `solver_diverged`: something is not finite; x and residual are NaN.
"""

from fragile_lib.solvers.base import Solution, Solver
from fragile_lib.solvers.datainf import DataInfSolver
from fragile_lib.solvers.dense import DenseSolver, ExactSolver
from fragile_lib.solvers.firstorder import IdentitySolver, tracin, trak
from fragile_lib.solvers.kfac import EkfacSolver, KfacSolver
from fragile_lib.solvers.krylov import BlockCGSolver, MinresSolver
from fragile_lib.solvers.lissa import LissaSolver, lissa_partition, lissa_random, lissa_single
from fragile_lib.solvers.lowrank import ArnoldiSolver, NystroemSolver

__all__ = [
    "ArnoldiSolver",
    "BlockCGSolver",
    "DataInfSolver",
    "DenseSolver",
    "EkfacSolver",
    "ExactSolver",
    "IdentitySolver",
    "KfacSolver",
    "LissaSolver",
    "MinresSolver",
    "NystroemSolver",
    "Solution",
    "Solver",
    "lissa_partition",
    "lissa_random",
    "lissa_single",
    "tracin",
    "trak",
]
