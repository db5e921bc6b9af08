"""ResNet-50 and its weights: torchvision's, a local checkpoint's, or none; checked key by key before they are used."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50

from fragile_lib.models.architectures import build, drawing_from, not_in_place
from fragile_lib.tools.checks import check_count
from fragile_lib.tools.errors import bad_input

NONE, TORCHVISION = "none", "torchvision"
OUTPUTS = len(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])  # of ImageNet's networks
TIMEOUT = 10  # seconds that the download may be silent


class MeanOverPlaces(nn.Module):
    """The mean over height and width, as the pool it stands for: that one has no batching rule for many tangents."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, C, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


def make_network(outputs: int = OUTPUTS, size: int = 224, width_multiplier: float = 1.0, seed: int = 0) -> nn.Module:
    """torchvision's ResNet-50 as it starts (25,557,032 parameters with 1000 outputs), in training mode, on the CPU.

    With another width it is `architectures.build`'s ResNet-50 of that width, for tests and quick looks.

    Raises:
        InputError: fewer than two outputs, or what `build` raises.
    """
    check_count("outputs", outputs, least=2)
    if width_multiplier != 1:
        network = build("resnet50", 3, size, outputs, width_multiplier, stem="strided", seed=seed)
    else:
        with drawing_from(seed):
            network = resnet50(num_classes=outputs)
    network.avgpool = MeanOverPlaces()
    network.width_multiplier = width_multiplier  # a scoring job has to make the same network elsewhere
    return not_in_place(network)


def read_state(weights: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """(state, names of the classes where the file has them) of `torchvision`, or of a local file.

    The file is read by torch.load with weights_only, so that nothing in it is run: a state dictionary, or one under
    `state_dict`, `model` or `model_state_dict`, with DataParallel's prefix or without; `classes` beside it is optional.

    Raises:
        InputError: torchvision's weights are neither in torch's cache nor to be had; no file; or one of another kind.
    """
    if weights == TORCHVISION:
        return _torchvision_state(), ()
    path = Path(weights).expanduser()
    if not path.is_file():
        raise bad_input("weights", weights, f"is no file; give a checkpoint, {TORCHVISION}, or {NONE}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = f"cannot be read as weights alone ({reason}); save module.state_dict() by torch.save"
        raise bad_input("weights", weights, remedy) from None
    classes = content.get("classes", ()) if isinstance(content, Mapping) else ()
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise bad_input("weights", weights, "holds no state dictionary; save module.state_dict() by torch.save")
    return {name.removeprefix("module."): value for name, value in content.items()}, tuple(classes)


def load_state(network: nn.Module, state: Mapping[str, Tensor], weights: str) -> nn.Module:
    """Put a state into the network, which is then in evaluation mode; older ones may lack counters of batches.

    Raises:
        InputError: keys that are missing or left over, other shapes, or numbers that are not finite: each is named.
    """
    faults = [f"{name} is not finite" for name, value in state.items() if not bool(torch.isfinite(value).all())]
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        faults += [line.strip() for line in str(error).splitlines()[1:]]
    if faults:
        raise bad_input("weights", weights, f"are not ResNet-50's: {' '.join(faults)[:500]}")
    return network.eval()


def _torchvision_state() -> dict[str, Tensor]:
    known, before = ResNet50_Weights.IMAGENET1K_V1, socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        return dict(known.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a wrong checksum is a RuntimeError
        place = Path(torch.hub.get_dir()) / "checkpoints" / known.url.rpartition("/")[2]
        remedy = f"are not in {place} and could not be fetched from {known.url} ({error}); put the file there by hand"
        raise bad_input("weights", TORCHVISION, f"{remedy}, or give a checkpoint of your own") from None
    finally:
        socket.setdefaulttimeout(before)
