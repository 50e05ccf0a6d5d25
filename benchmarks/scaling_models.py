"""The models whose division over ranks is planned: their matrices, and how these lie on the ranks."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard

from amuse_lab.recipes.pretraining import SIZES
from amuse_lab.tasks.lm.model import Llama
from amuse_optim import param_groups
from amuse_optim.sharding import Box
from amuse_optim.spread import Spread

MUON = {"orthogonalize": "quintic", "orthogonalize_steps": 5}


class Parameter(NamedTuple):
    """A parameter that is made of matrices.

    Attributes:
        name: Its name.
        options: Options of its group.
        shape: Its shape.
        spread: How it lies on the ranks.
    """

    name: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    spread: Spread


@cache
def parts(box: Box, shape: tuple[int, ...], spread: Spread) -> Tensor:
    """How many entries of a box every rank holds."""
    held = torch.tensor([each.box for each in spread.held(shape)])
    wanted = torch.tensor(box)
    common = torch.minimum(held[..., 1], wanted[:, 1]) - torch.maximum(held[..., 0], wanted[:, 0])
    return common.clamp(min=0).prod(dim=-1)


def on(way: str, ranks: int) -> Spread:
    """Ranks that replicate (ddp), shard (fsdp), or shard in two replicas (hsdp)."""
    order = tuple(range(ranks))
    if way == "ddp":
        return Spread((ranks,), None, order)
    if way == "fsdp":
        return Spread((ranks,), (Shard(0),), order)
    return Spread((2, ranks // 2), (Replicate(), Shard(0)), order)


def of_model(model: nn.Module, spread: Spread) -> Iterator[Parameter]:
    """The parameters of a model that Muon gets."""
    for group in param_groups(model):
        if group["direction"] == "muon":
            for name, parameter in group["params"]:
                yield Parameter(name, group | MUON, tuple(parameter.shape), spread)


def transformer(
    layers: int, shapes: dict[str, tuple[int, ...]], experts: dict[str, tuple[int, ...]], ranks: int
) -> list[Parameter]:
    """The matrices of a decoder under FSDP2; stacked experts along the experts, then along their rows."""
    plain = on("fsdp", ranks)
    found = []
    for layer in range(layers):
        for name, shape in shapes.items():
            found.append(Parameter(f"{layer}.{name}", MUON, shape, plain))
        for name, shape in experts.items():
            spread = plain
            if ranks > shape[0]:
                spread = Spread((shape[0], ranks // shape[0]), (Shard(0), Shard(1)), plain.order)
            found.append(Parameter(f"{layer}.{name}", {**MUON, "stacked": True}, shape, spread))
    return found


def models(ranks: int) -> Iterator[tuple[str, str, list[Parameter]]]:
    """Name, how it lies on the ranks, and the matrices of each model."""
    for name, size in SIZES.items():
        with torch.device("meta"):
            model = Llama(size.model)
        # Under DDP more ranks than these gain nothing, and each sends all matrices, as on 64.
        for way in ("ddp", "fsdp") if ranks <= 64 else ("fsdp",):
            yield name, way, list(of_model(model, on(way, ranks)))
    width, hidden = 6656, 17920  # Llama 30B (arXiv 2302.13971)
    dense = {
        **dict.fromkeys(("query", "key", "value", "output"), (width, width)),
        "gate": (hidden, width),
        "up": (hidden, width),
        "down": (width, hidden),
    }
    yield "30B dense", "fsdp", transformer(60, dense, {}, ranks)
    attention = {  # Qwen3-235B-A22B (arXiv 2505.09388)
        "query": (8192, 4096),
        "key": (512, 4096),
        "value": (512, 4096),
        "output": (4096, 8192),
        "router": (128, 4096),
    }
    experts = {"gate": (128, 1536, 4096), "up": (128, 1536, 4096), "down": (128, 4096, 1536)}
    yield "235B mixture of experts", "fsdp", transformer(94, attention, experts, ranks)
