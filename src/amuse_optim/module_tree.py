"""The modules of a model and its parameters, named as if nothing wrapped them.

`torch.compile`, DDP, FSDP, activation checkpointing and the like put a module into another one that holds
nothing else; here such a wrapper is the module inside it, wherever it stands.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

# What wrappers call the one module that they hold.
WRAPPERS = frozenset(
    {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module"}
)


def unwrapped(module: nn.Module) -> nn.Module:
    """What is inside all wrappers of a module: the module itself where there are none."""
    while True:
        children = [(name, child) for name, child in module.named_children() if child is not None]
        if len(children) != 1 or children[0][0] not in WRAPPERS or module._parameters:
            return module
        module = children[0][1]


@dataclass(frozen=True)
class Located:
    """A module and where it stands.

    Args:
        path: Its name, part by part, without wrappers; empty for the model.
        module: The module itself, taken out of all wrappers.
        parents: The modules that hold it, from the model downwards; as many as `path` has parts.
    """

    path: tuple[str, ...]
    module: nn.Module
    parents: tuple[nn.Module, ...]


def located_modules(model: nn.Module) -> Iterator[Located]:
    """Every module once, in the order of registration, as `named_modules` without wrappers."""
    seen: set[nn.Module] = set()

    def visit(path: tuple[str, ...], module: nn.Module, parents: tuple[nn.Module, ...]) -> Iterator[Located]:
        module = unwrapped(module)
        if module in seen:
            return
        seen.add(module)
        yield Located(path, module, parents)
        for name, child in module.named_children():
            yield from visit((*path, name), child, (*parents, module))

    return visit((), model, ())


def is_layer(module: nn.Module) -> bool:
    """Whether it multiplies its input by a weight: linear layers and convolutions."""
    return isinstance(module, (nn.Linear, _ConvNd)) or stores_inputs_first(module)


def has_class(module: nn.Module, name: str) -> bool:
    """Whether a class of this name is among its classes: packages that need not be installed have some."""
    return any(kind.__name__ == name for kind in type(module).__mro__)


def stores_inputs_first(module: nn.Module) -> bool:
    """Whether its weight is (in, out, *k): transformers' Conv1D, torch's transposed convolutions."""
    if isinstance(module, _ConvNd):
        return module.transposed
    return has_class(module, "Conv1D") and hasattr(module, "weight")


@dataclass(frozen=True)
class Owned:
    """A trainable parameter and the module that uses it.

    Args:
        name: Its full name, without wrappers.
        module: The module that holds it, or whose attribute a parametrization makes of it.
        attribute: What that module calls it; of a member of a ParameterDict or ParameterList, what the
            owner of that calls it.
        parameter: The parameter itself; under a parametrization, a tensor that the attribute is made from.
    """

    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter


def owned_parameters(model: nn.Module) -> Iterator[Owned]:
    """Every trainable parameter of every module; one that several hold comes several times.

    Raises:
        ValueError: For parameters that a wrapper has made flat, which no longer are matrices.
    """
    for found in located_modules(model):
        for attribute, parameter in found.module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            name = ".".join((*found.path, attribute))
            module = found.module
            if isinstance(module, ParametrizationList):  # of "weight" of the module that is two levels up
                module, attribute = found.parents[-2], found.path[-1]
            elif isinstance(module, (nn.ParameterDict, nn.ParameterList)) and found.path:
                module, attribute = found.parents[-1], f"{found.path[-1]}_{attribute}"
            flat = getattr(parameter, "_is_flat_param", False) or (
                is_layer(module) and attribute == "weight" and parameter.ndim < 2
            )
            if flat:
                raise ValueError(
                    f"{name!r} of shape {tuple(parameter.shape)} is a flat piece of parameters, as FSDP1 "
                    "makes them, and no matrix can be found in it; shard the model with FSDP2 "
                    "(torch.distributed.fsdp.fully_shard), or wrap it with use_orig_params=True and "
                    "ShardingStrategy.NO_SHARD, which keep the parameters as they are"
                )
            yield Owned(name, module, attribute, parameter)
