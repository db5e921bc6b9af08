"""A setting out of its range is refused by its name, by whatever takes it."""

from functools import partial

import pytest
import torch
from helpers import iris_subset, leave_one_out, linear_problem, mlp_problem, planted
from torch import nn

from fragile_lib.data.sets import iris_splits, small_mnist
from fragile_lib.minimise.descent import descend
from fragile_lib.minimise.near_optimum import approach
from fragile_lib.minimise.quasi_newton import minimum
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.models.mlp import MLP
from fragile_lib.models.module import ModuleModel
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.objectives.base import Objective, resolve_device
from fragile_lib.objectives.fused import FusedObjective
from fragile_lib.objectives.losses import CrossEntropy, Huber, as_loss
from fragile_lib.objectives.proximal import ProximalObjective
from fragile_lib.solvers import (
    ArnoldiSolver,
    BlockCGSolver,
    EkfacSolver,
    ExactSolver,
    KfacSolver,
    LissaSolver,
    MinresSolver,
    NystroemSolver,
    trak,
)
from fragile_lib.tools.errors import InputError

NAN, INF = float("nan"), float("inf")
TRAIN, THETA, MODULE = mlp_problem()
LINEAR, TEST, FITTED, _ = linear_problem()
PLANTED = planted("well conditioned")
ON_PLANTED = {"objective": PLANTED, "theta": PLANTED.theta, "damping": 0.1}
ON_NETWORK = {"objective": TRAIN, "theta": THETA, "damping": 0.1}
KRONECKER = {"damping": (0.0, -1.0), "batch": (0, 1.5), "samples": (0, 1.5)}
ITERATIVE = {"tolerance": (0.0, 1.0, -1e-3, NAN), "max_iterations": (0, 2.5)}
RANK = (0, -1, 13, 2.5, True)

# What takes the settings, the others given; then values that each of its settings must not have.
CALLS = {
    "perceptron": (
        partial(MLP, depth=1, width=5),
        {"depth": (0, 1.0), "width": (-1, True), "n_features": (0,), "n_classes": ("3",), "activation": ("gelu",)}
        | {"sharpness": (NAN, INF, 0.0)},
    ),
    "small CNN": (SmallCNN, {"channels": (0, True), "n_classes": (2.0,), "side": (20, -1), "activation": ("gelu",)}),
    "module": (partial(ModuleModel, nn.Linear(4, 2)), {"n_classes": (0, 2.0)}),
    "cross-entropy": (
        CrossEntropy,
        {"label_smoothing": (1.0, "0.1"), "weight": ([1.0, -1.0],), "places": ("all",)},
    ),
    "Huber": (Huber, {"delta": (0.0,)}),
    "loss": (as_loss, {"loss": ("mse", nn.MSELoss)}),
    "schedule": (
        partial(Schedule, steps=10),
        {"steps": (-1, 2.0), "batch": (0,), "seed": (-1,), "learning_rate": (0.0, NAN), "epsilon": (-1e-8,)}
        | {"drops": (((0.5, 0.1), (0.2, 0.1)), ((1.5, 0.1),), ((0.5, 0.0),)), "optimiser": ("lbfgs",)}
        | {"momentum": (1.0,), "betas": ((0.9, 1.0),), "nesterov": (True,)},
    ),
    "descent": (
        partial(descend, TRAIN, THETA[None], TRAIN.uniform(1), steps=1, learning_rate=0.1, momentum=0.9),
        {"steps": (-1,), "learning_rate": (0.0, NAN, INF), "momentum": (1.0, -0.1, NAN)},
    ),
    "whitened descent": (partial(approach, TRAIN, THETA, rounds=1), {"tolerance": (0.0, -1.0, NAN)}),
    "quasi-Newton": (
        partial(minimum, TRAIN, THETA, tolerance=1e-6),
        {"tolerance": (0.0, NAN), "rounds": (0,), "steps": (0,)},
    ),
    "reference": (partial(Objective, MLP(1, 5), iris_subset(2)[0]), {"weight_decay": (-1e-3, NAN, INF)}),
    "kernels": (partial(FusedObjective, MLP(1, 5), iris_subset(2)[0]), {"weight_decay": (-1e-3, NAN, INF)}),
    "proximal": (partial(ProximalObjective, TRAIN, THETA), {"damping": (-0.1, NAN)}),
    "device": (resolve_device, {"device": ("gpu", "", "cuda:7")}),
    "exact": (partial(ExactSolver, **ON_NETWORK), {"damping": (-1e-9, NAN, INF)}),
    "LiSSA": (
        partial(LissaSolver, **ON_NETWORK),
        {"damping": (-1e-9, NAN, INF), "depth": (0,), "repeats": (0,), "batch": (22,), "draws": ("sorted",)}
        | {"scale": (0.0, -1.0, NAN)},
    ),
    "CG": (partial(BlockCGSolver, **ON_PLANTED), ITERATIVE),
    "MINRES": (partial(MinresSolver, **ON_PLANTED), ITERATIVE),
    "Arnoldi": (
        partial(ArnoldiSolver, rank=3, **ON_PLANTED),
        {"rank": RANK, "tolerance": (1.0, -1e-3), "max_restarts": (0,), "damping": (0.0,)},
    ),
    "Nystroem": (partial(NystroemSolver, rank=3, **ON_PLANTED), {"rank": RANK, "damping": (0.0,)}),
    "K-FAC": (partial(KfacSolver, module=MODULE, **ON_NETWORK), KRONECKER),
    "EK-FAC": (partial(EkfacSolver, module=MODULE, **ON_NETWORK), KRONECKER),
    "TRAK": (
        partial(trak, LINEAR, TEST, FITTED[None], leave_one_out(torch.arange(30), 30), torch.arange(2)),
        {"dim": (0, 31), "chunk": (0,), "damping": (-1.0, NAN)},
    ),
    "Iris": (partial(iris_splits, seeds=[0]), {"test_fraction": (0.0, 1.0, -0.2, 1.5, 0.01), "seeds": ([],)}),
    "digits": (partial(small_mnist, "digits", 100, 100), {"seed": (-1, 2**32, 0.5, None, True)}),
}


@pytest.mark.parametrize(
    ("taker", "name", "value"),
    [(taker, name, value) for taker, (_, bad) in CALLS.items() for name, values in bad.items() for value in values],
)
def test_a_bad_setting_is_named(taker, name, value):
    with pytest.raises(InputError, match=f"^(lissa_)?{name} = .*: .*(give|choose|need)"):
        CALLS[taker][0](**{name: value})
