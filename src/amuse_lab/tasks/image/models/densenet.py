"""DenseNet with bottlenecks and compression (arXiv 1608.06993), as in the published run on CIFAR-100."""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads it by
from torch import Tensor, nn

from amuse_lab.tasks.image.models.config import ImageModelConfig, Shape


@dataclass(frozen=True)
class DenseNetConfig(ImageModelConfig):
    """A densely connected network; each transition halves the channels and the resolution.

    Attributes:
        depths: Number of layers of each block, in order.
        growth: Channels that each layer adds; it computes them from 4 times as many.
    """

    depths: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 12

    def reduced(self) -> Self:
        """Return blocks of two layers."""
        return replace(self, depths=(2,) * min(3, len(self.depths)), growth=4)

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Build the network."""
        return DenseNet(self, shape[0], classes)


class _Layer(nn.Module):
    """A 1x1 and a 3x3 convolution, each after a norm; their output is concatenated in front of the input."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found = self.conv1(F.relu(self.norm1(x), inplace=True))
        found = self.conv2(F.relu(self.norm2(found), inplace=True))
        return torch.cat((found, x), dim=1)


def _transition(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(before),
        nn.ReLU(inplace=True),
        nn.Conv2d(before, after, 1, bias=False),
        nn.AvgPool2d(2),
    )


class DenseNet(nn.Module):
    """Blocks in which every layer gets the outputs of all layers before it; convolutions have no bias."""

    def __init__(self, config: DenseNetConfig, channels: int, classes: int) -> None:
        super().__init__()
        before = 2 * config.growth
        self.stem = nn.Conv2d(channels, before, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        for block, depth in enumerate(config.depths):
            if block > 0:
                layers.append(_transition(before, before // 2))
                before //= 2
            for _ in range(depth):
                layers.append(_Layer(before, config.growth))
                before += config.growth
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(before)
        self.head = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (batch, classes)."""
        features = F.relu(self.norm(self.layers(self.stem(images))), inplace=True)
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits
