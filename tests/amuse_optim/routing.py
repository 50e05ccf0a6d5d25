"""Small models whose parameters are divided into groups, and ways to read which got what."""

from typing import Any

from torch import nn

from amuse_optim import param_groups


def directions(model: nn.Module, **options: Any) -> dict[str, str]:
    return {name: g["direction"] for g in param_groups(model, **options) for name, _ in g["params"]}


def option(model: nn.Module, parameter: str, key: str) -> Any:
    for group in param_groups(model):
        if parameter in [name for name, _ in group["params"]]:
            return group.get(key)
    raise KeyError(parameter)


def auxiliary_weights(model: nn.Module) -> set[str]:
    """The layers whose weight gets the auxiliary direction."""
    found = directions(model)
    return {n.removesuffix(".weight") for n, d in found.items() if n.endswith("weight") and d == "adamw"}


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
    """Named parts, each a module or a parameter."""

    def __init__(self, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
