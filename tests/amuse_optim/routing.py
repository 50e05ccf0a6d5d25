"""Small models whose parameters are divided into groups, and a way to read which got what."""

from typing import Any

from torch import nn

from amuse_optim import param_groups


def directions(model: nn.Module, **options: Any) -> dict[str, str]:
    return {name: g["direction"] for g in param_groups(model, **options) for name, _ in g["params"]}


class Tied(nn.Module):
    def __init__(self, tie: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 11, bias=False)
        if tie:
            self.lm_head.weight = self.embed.weight


class Parts(nn.Module):
    """Named parts, each a layer."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
