"""Networks as functions of one flat parameter vector, theta (P,), x -> outputs."""

from fragile_lib.models.architectures import DEPTHS, INPUTS, build
from fragile_lib.models.mlp import MLP
from fragile_lib.models.module import ModuleModel
from fragile_lib.models.small_cnn import SmallCNN

__all__ = ["DEPTHS", "INPUTS", "MLP", "ModuleModel", "SmallCNN", "build"]
