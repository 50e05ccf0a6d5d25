"""The vision transformer (arXiv 2010.11929), with timm's names, so that its weights fit as they are."""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads it by
from torch import Tensor, nn

from amuse_lab.errors import require
from amuse_lab.tasks.image.models.config import ImageModelConfig, Shape

INIT_STD = 0.02
NORM_EPS = 1e-6


@dataclass(frozen=True)
class ViTConfig(ImageModelConfig):
    """A vision transformer.

    Attributes:
        patch: Height and width of a patch, in pixels; divides those of the images.
        width: Width of the residual stream.
        depth: How many transformer blocks follow each other.
        heads: Number of attention heads; divides the width.
    """

    patch: int
    width: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width % self.heads == 0, "width", f"a multiple of heads = {self.heads}", self.width)

    def reduced(self) -> Self:
        """Return two blocks on patches of 7 x 7."""
        return replace(self, patch=7, width=32, depth=2, heads=2)

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Build the transformer."""
        _, height, width = shape
        divides = height % self.patch == 0 and width % self.patch == 0
        require(divides, "patch", f"a divisor of the images' {height} x {width}", self.patch)
        return ViT(self, shape, classes)


class _PatchEmbedding(nn.Module):
    def __init__(self, config: ViTConfig, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, config.width, config.patch, config.patch)

    def forward(self, images: Tensor) -> Tensor:
        """From (batch, channels, height, width) to (batch, patches, width of the stream)."""
        patches: Tensor = self.proj(images)
        return patches.flatten(2).mT


class _Attention(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(-2))
        return projected


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return projected


class _Block(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = _Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = _MLP(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        added: Tensor = x + self.mlp(self.norm2(x))
        return added


class ViT(nn.Module):
    """Patches and a class token, learned positions, pre-norm blocks; the class token is classified."""

    def __init__(self, config: ViTConfig, shape: Shape, classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        patches = (height // config.patch) * (width // config.patch)
        self.patch_embed = _PatchEmbedding(config, channels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + patches, config.width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.head = nn.Linear(config.width, classes)
        nn.init.trunc_normal_(self.pos_embed, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (batch, classes)."""
        patches = self.patch_embed(images)
        x = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits
