"""Residual networks (arXiv 1512.03385): small ones for small images, ResNet3-96 and ResNet-50."""

from dataclasses import dataclass, replace
from typing import Self

import torch.nn.functional as F  # noqa: N812 - the name everyone reads it by
from torch import Tensor, nn

from amuse_lab.errors import require
from amuse_lab.tasks.image.models.config import ImageModelConfig, Shape, thinned

_EXPANSION = 4


@dataclass(frozen=True)
class ResNetConfig(ImageModelConfig):
    """A residual network.

    Attributes:
        depths: Blocks of each stage. Every stage but the first halves the resolution.
        widths: Channels of each stage, which a bottleneck block multiplies by 4 at its end.
        bottleneck: Whether blocks are 1x1, 3x3, 1x1 rather than 3x3, 3x3.
        large_stem: Whether the network begins with a 7x7 convolution of stride 2 and a maximum over 3x3 of
            stride 2, for large images, rather than with a 3x3 convolution.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    bottleneck: bool = False
    large_stem: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = len(self.widths) == len(self.depths)
        require(fits, "widths", f"one for each of the {len(self.depths)} stages", self.widths)

    def reduced(self) -> Self:
        """Return one block a stage."""
        return replace(
            self, depths=(1,) * len(self.depths), widths=tuple(8 * 2**n for n in range(len(self.widths)))
        )

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Build the network."""
        return ResNet(self, shape[0], classes)


def _convolution(before: int, width: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias, and its norm."""
    return nn.Sequential(
        nn.Conv2d(before, width, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(width)
    )


class _Block(nn.Module):
    """Convolutions and a shortcut, which is a projection with a norm where the shape changes."""

    def __init__(self, before: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        after = width * _EXPANSION if bottleneck else width
        layers = (
            [
                _convolution(before, width, 1),
                _convolution(width, width, 3, stride),
                _convolution(width, after, 1),
            ]
            if bottleneck
            else [_convolution(before, width, 3, stride), _convolution(width, after, 3)]
        )
        self.layers = nn.Sequential(*layers)
        self.stride = stride
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else _convolution(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        *first, last = self.layers
        inside = x
        for layer in first:
            inside = F.relu(layer(inside), inplace=True)
        return F.relu(last(inside) + self.shortcut(thinned(x, self.stride)), inplace=True)


class ResNet(nn.Module):
    """Stages of residual blocks; kernels begin as He et al. have them (arXiv 1502.01852, outgoing)."""

    def __init__(self, config: ResNetConfig, channels: int, classes: int) -> None:
        super().__init__()
        before = config.widths[0]
        if config.large_stem:
            self.stem = _convolution(channels, before, 7, 2)
            self.pool: nn.Module = nn.MaxPool2d(3, 2, padding=1)
        else:
            self.stem = _convolution(channels, before, 3)
            self.pool = nn.Identity()
        blocks: list[nn.Module] = []
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(_Block(before, width, stride, bottleneck=config.bottleneck))
                before = width * _EXPANSION if config.bottleneck else width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (batch, classes)."""
        features = self.blocks(self.pool(F.relu(self.stem(images), inplace=True)))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits
