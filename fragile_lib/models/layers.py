"""torchvision's VGG and ResNet for small images, Koh and Liang's CNN, LeNet; `architectures` checks and seeds them."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import VGG, make_layers

from fragile_lib.models.small_cnn import sequential


def groups_of(channels: int) -> int:
    """Groups of a group normalisation: the largest divisor of `channels` up to 32 that leaves two channels in each."""
    return max(groups for groups in range(1, max(1, min(32, channels // 2)) + 1) if channels % groups == 0)


class SmallImageVGG(VGG):
    """torchvision's VGG with the head for small images.

    Its constructor is not called: it would make the original head of 120 million parameters first.
    """

    def __init__(self, widths: list[int | str], channels: int, n_classes: int, norm: str) -> None:
        nn.Module.__init__(self)
        self.features = make_layers(widths, batch_norm=norm != "none")
        self.features[0] = nn.Conv2d(channels, widths[0], 3, padding=1)
        for at, part in enumerate(self.features):
            if isinstance(part, nn.MaxPool2d):
                part.ceil_mode = True
            elif norm == "group" and isinstance(part, nn.BatchNorm2d):
                self.features[at] = _group_norm(part.num_features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths[-2], n_classes)
        _he_start(self, "fan_in" if norm == "none" else "fan_out")
        nn.init.normal_(self.classifier.weight, 0, widths[-2] ** -0.5 if norm == "none" else 0.01)
        nn.init.zeros_(self.classifier.bias)


class SmallImageResNet(ResNet):
    """torchvision's ResNet of any number of planes, with the stem for small images.

    Its constructor is not called, because it knows 64, 128, 256 and 512 planes only; layers and forward
    pass are its own.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        counts: tuple[int, ...],
        planes: list[int],
        channels: int,
        n_classes: int,
        norm: str,
        stride: int,
    ) -> None:
        nn.Module.__init__(self)
        self._norm_layer = {"batch": nn.BatchNorm2d, "group": _group_norm, "none": nn.Identity}[norm]
        self.inplanes, self.dilation, self.groups, self.base_width = planes[0], 1, 1, 64  # what _make_layer reads
        self.conv1 = nn.Conv2d(channels, planes[0], 3, stride, 1, bias=False)
        self.bn1 = self._norm_layer(planes[0])
        self.relu, self.maxpool = nn.ReLU(), nn.Identity()
        for at, (width, count) in enumerate(zip(planes, counts, strict=True)):
            setattr(self, f"layer{at + 1}", self._make_layer(block, width, count, stride=2 if at else 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(planes[-1] * block.expansion, n_classes)
        _he_start(self, "fan_in" if norm == "none" else "fan_out")
        if norm == "none":
            for branch in self.modules():
                if isinstance(branch, BasicBlock | Bottleneck):
                    nn.init.zeros_((branch.conv3 if block is Bottleneck else branch.conv2).weight)


def small_cnn(channels: int, width: int, n_classes: int) -> nn.Sequential:
    """Koh and Liang's network with their start: normal weights of scale 2 / sqrt(fan in), cut at two scales."""
    network = sequential(channels, width, max(10, n_classes), n_classes)
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            scale = 2 / sqrt(layer.weight[0].numel())
            nn.init.trunc_normal_(layer.weight, 0, scale, -2 * scale, 2 * scale)
            nn.init.zeros_(layer.bias)
    return network


def lenet(channels: int, size: int, n_classes: int, scaled: Callable[[int], int]) -> nn.Sequential:
    """LeNet-5 with ReLU and max pooling, for images of 32 pixels a side and more, or padded by 2."""
    padding = 2 if size < 32 else 0
    side = ((size + 2 * padding - 4) // 2 - 4) // 2
    first, second, third, fourth = (scaled(v) for v in (6, 16, 120, 84))
    maps = [nn.Conv2d(channels, first, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)]
    maps += [nn.Conv2d(first, second, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    units = [nn.Linear(second * side**2, third), nn.ReLU(), nn.Linear(third, fourth), nn.ReLU()]
    return nn.Sequential(*maps, *units, nn.Linear(fourth, n_classes))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups_of(channels), channels)


def _he_start(network: nn.Module, fan: str) -> None:
    """He's start of convolutions; normalisations are made with scales of one and shifts of zero.

    torchvision's goes by fan out. Without normalisation that makes signals die away where channels grow in number:
    a stem of 64 channels passes an eighth of a single one.
    """
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode=fan, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
