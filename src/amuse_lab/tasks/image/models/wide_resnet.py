"""Wide residual networks for small images (arXiv 1605.07146), as in the published run on CIFAR-10."""

from dataclasses import dataclass, replace
from typing import Self

import torch.nn.functional as F  # noqa: N812 - the name everyone reads it by
from torch import Tensor, nn

from amuse_lab.errors import require
from amuse_lab.tasks.image.models.config import ImageModelConfig, Shape, thinned


@dataclass(frozen=True)
class WideResNetConfig(ImageModelConfig):
    """A wide residual network.

    Attributes:
        depth: Depth as in the name WRN-16-8: 4 + 6 n for n blocks in each of the three stages.
        width: Factor of the widths 16, 32 and 64 of the three stages.
    """

    depth: int = 16
    width: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.depth >= 10 and (self.depth - 4) % 6 == 0
        require(fits, "depth", "4 and a multiple of 6", self.depth)

    def reduced(self) -> Self:
        """Return ten layers of the narrowest width."""
        return replace(self, depth=10, width=1)

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Build the network."""
        return WideResNet(self, shape[0], classes)


class _Block(nn.Module):
    """Two convolutions, each after a norm; the second has the stride, the shortcut has no norm."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1)
        self.stride = stride
        same = before == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.conv1(F.relu(self.norm1(x), inplace=True))
        inside = self.conv2(F.relu(self.norm2(inside), inplace=True))
        added: Tensor = inside + self.shortcut(thinned(x, self.stride))
        return added


class WideResNet(nn.Module):
    """Three stages of pre-activation blocks; every convolution has a bias."""

    def __init__(self, config: WideResNetConfig, channels: int, classes: int) -> None:
        super().__init__()
        blocks = (config.depth - 4) // 6
        before, widths = 16, [stage * config.width for stage in (16, 32, 64)]
        self.stem = nn.Conv2d(channels, before, 3, padding=1)
        stages: list[nn.Module] = []
        for number, width in enumerate(widths):
            for block in range(blocks):
                stages.append(_Block(before, width, 2 if number > 0 and block == 0 else 1))
                before = width
        self.blocks = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(before, momentum=0.9)
        self.head = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (batch, classes)."""
        features = F.relu(self.norm(self.blocks(self.stem(images))), inplace=True)
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits
