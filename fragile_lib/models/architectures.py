"""The networks of the paper's larger studies as torch.nn modules: small CNN, LeNet, VGG, ResNet.

VGG and ResNet are torchvision's own layers in the forms that images of 28 and 32 pixels need; what differs is said at
each. Letters: n images of C channels and H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from math import floor, isfinite
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vgg import cfgs

from fragile_lib.models.layers import SmallImageResNet, SmallImageVGG, lenet, small_cnn
from fragile_lib.tools.checks import check_count, check_name
from fragile_lib.tools.errors import bad_input

# Layers with weights on the longest path; VGG's number counts the three linear layers of its original form, where the
# form here has one.
DEPTHS = {"small_cnn": 7, "lenet": 5, "vgg13": 13, "vgg14": 14, "resnet18": 18, "resnet50": 50}
ARCHITECTURES = tuple(DEPTHS)
NORMS = ("batch", "group", "none")
STEMS = ("small", "strided")
# (channels, size, n_classes) of each data set.
INPUTS = {"mnist": (1, 28, 10), "cifar10": (3, 32, 10), "cifar100": (3, 32, 100)}

# The smallest images for which no valid convolution runs out of pixels and no layer halves a map of a single pixel.
_LEAST = {"small_cnn": 21, "lenet": 12, "vgg13": 17, "vgg14": 17, "resnet18": 5, "resnet50": 5}
_LEAST_STRIDED = {"resnet18": 9, "resnet50": 9}
_NARROWEST = {"small_cnn": 8, "lenet": 6, "vgg13": 64, "vgg14": 64, "resnet18": 64, "resnet50": 64}

# torchvision's list of VGG-13. Where VGG-14 has its one more convolution is not known: here it closes the last block.
_VGG = {"vgg13": cfgs["B"], "vgg14": [*cfgs["B"][:-1], 512, "M"]}
_RESNET = {"resnet18": (BasicBlock, (2, 2, 2, 2)), "resnet50": (Bottleneck, (3, 4, 6, 3))}


def build(
    architecture: str,
    channels: int,
    size: int,
    n_classes: int,
    width_multiplier: float = 1.0,
    norm: str = "batch",
    stem: str = "small",
    seed: int = 0,
) -> nn.Module:
    """A network (n, channels, size, size) -> logits (n, n_classes), float32, on the CPU, in training mode.

    * `small_cnn`: Koh and Liang's (2017), as `conv.SmallCNN`, with their start. The 1x1 convolution makes 10 maps, or
      n_classes where there are more: with fewer maps than classes the logits would be tied to a subspace.
    * `lenet`: LeNet-5 with ReLU and max pooling. Made for 32 pixels; smaller images are padded by 2. torch's start.
    * `vgg13`, `vgg14`: torchvision's, with pools in ceil mode, so that 28 pixels last for five of them, and one linear
      layer on the mean of the last maps, which are one pixel up to 32. Convolutions keep their biases. torchvision's
      start: He et al. (2015), by fan out.
    * `resnet18`, `resnet50`: torchvision's, with another stem and no max pool after it. torchvision's start.

    Normalisation is a layer after each convolution of VGG and ResNet. `small_cnn` and `lenet` have none, and `norm` is
    ignored there. `group` takes `layers.groups_of` groups. `none` leaves it out; a ResNet then has no biases but that
    of its last layer. The start is then He's by fan in, that of VGG's head by 1 / sqrt(fan in), and zero in the last
    convolution of each residual branch. On 600 digits (150 steps of 50, rate 0.05, an eighth of the width, two seeds)
    ResNet-18 came to losses of 0.09 and 0.21, from torchvision's start to 0.54 and 0.40. VGG-13 stays hard to train: at
    a rate of 0.02 it came to 0.34, 0.18 and 2.30 on three seeds (torchvision's start: 0.54, 0.64, 2.37).

    Args:
        architecture: one of `ARCHITECTURES`.
        channels: of the images.
        size: pixels a side.
        n_classes: number of logits.
        width_multiplier: of the channels and units of all hidden layers, each rounded to the next whole number (halves
            up). Not of the small CNN's maps before its mean, which are its classes.
        norm: one of `NORMS`.
        stem: of a ResNet, ignored elsewhere: a 3x3 convolution of stride 1 (`small`, the form for CIFAR) or 2
            (`strided`: a quarter of the cost).
        seed: of the start, which depends on nothing else; the global generator is left as it was.

    Raises:
        InputError: an unknown name; channels or size below 1; a size too small for the network; fewer than two
            classes; a multiplier that is not finite and positive, or that empties a layer; a negative seed.
    """
    check_name("architecture", architecture, ARCHITECTURES)
    check_name("norm", norm, NORMS)
    check_name("stem", stem, STEMS)
    check_count("channels", channels)
    check_count("size", size)
    check_count("n_classes", n_classes, least=2)
    check_count("seed", seed, least=0)
    least = (_LEAST | _LEAST_STRIDED if stem == "strided" else _LEAST)[architecture]
    if size < least:
        raise bad_input("size", size, f"{architecture} needs images of at least {least} pixels a side")
    is_number = isinstance(width_multiplier, Real) and not isinstance(width_multiplier, bool)
    if not (is_number and isfinite(width_multiplier) and width_multiplier > 0):
        raise bad_input("width_multiplier", width_multiplier, "give a finite number above 0")

    def scaled(width: int) -> int:
        return floor(width * width_multiplier + 0.5)

    narrowest = _NARROWEST[architecture]
    if scaled(narrowest) < 1:
        remedy = f"nothing is left of a layer of {narrowest} channels"
        remedy += f"; the smallest multiplier that works is {0.5 / narrowest}"
        raise bad_input("width_multiplier", width_multiplier, remedy)
    with drawing_from(seed):
        if architecture == "small_cnn":
            network = small_cnn(channels, scaled(8), n_classes)
        elif architecture == "lenet":
            network = lenet(channels, size, n_classes, scaled)
        elif architecture in _VGG:
            widths = [v if v == "M" else scaled(v) for v in _VGG[architecture]]
            network = SmallImageVGG(widths, channels, n_classes, norm)
        else:
            block, counts = _RESNET[architecture]
            planes = [scaled(v) for v in (64, 128, 256, 512)]
            network = SmallImageResNet(block, counts, planes, channels, n_classes, norm, 2 if stem == "strided" else 1)
    return not_in_place(network)


def not_in_place(network: nn.Module) -> nn.Module:
    """The network, whose layers write over nothing that hooks and transforms may hold."""
    for part in network.modules():
        if hasattr(part, "inplace"):
            part.inplace = False
    return network


def check_batch(norm: str, batch: int) -> None:
    """Whether a network of this normalisation can be trained on batches of this size.

    Raises:
        InputError: a batch below 1, a batch of one image under batch normalisation, or an unknown normalisation.
    """
    check_name("norm", norm, NORMS)
    check_count("batch", batch)
    if norm == "batch" and batch == 1:
        raise bad_input("batch", batch, "batch normalisation needs 2 images or more; or choose norm group or none")


def frozen_statistics(module: nn.Module, x: Tensor, batch: int) -> nn.Module:
    """A copy of `module` in evaluation mode: the logits of an example depend on that example alone.

    The running mean and variance of each batch normalisation become the plain averages of those of the n / batch
    consecutive batches of x (variances with divisor count - 1), each batch normalised by its own statistics on its way
    through the network, as in training. Without batch normalisation x and batch have no effect.

    Args:
        module: images -> logits; left as it is.
        x: (n, C, H, W) of the floating type of the module, on any device.
        batch: images at a time; a divisor of n, so that all images count alike.

    Raises:
        InputError: x of other dimensions or without images; a batch below 1; under batch normalisation, a batch of
            one image or one that does not divide n.
    """
    if x.dim() != 4 or len(x) == 0:
        raise bad_input("x.shape", tuple(x.shape), "give images (n, C, H, W), at least one")
    frozen = deepcopy(module)
    normalised = any(isinstance(part, _BatchNorm) for part in frozen.modules())
    check_batch("batch" if normalised else "none", batch)
    if normalised:
        if len(x) % batch:
            raise bad_input("batch", batch, f"all batches must be of equal size: give a divisor of n = {len(x)}")
        update_bn((part.clone() for part in x.split(batch)), frozen, next(frozen.parameters()).device)
    return frozen.eval()


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Make modules on the CPU in float32 from this seed, whatever the global defaults, and leave these alone."""
    kind = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the accelerators too
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(kind)
