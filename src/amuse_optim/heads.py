"""Output heads: which layers of a model make its outputs.

The model's own accessors are asked first, then names decide, then, where a model is known to have an output
and none was found, the order of registration.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from .module_tree import Located, is_layer, located_modules, unwrapped

# Names that mean an output wherever they stand.
_ALWAYS = re.compile(
    r"lm_head|mlp_head|prediction_head|classifier|to_logits|logits?|score|qa_outputs|embed_out|unembed"
    r"|seq_relationship|(.+_)?(class|cls|bbox|box)_(embed|pred|score|logits|reg|head)"
)
# Names that mean one outside of blocks: heads of tasks, of detectors, of pre-training, of decoders.
_OUTSIDE_BLOCKS = re.compile(
    r"(?!.*(multi|attn|attention|query|pos_|pool|router))"
    r"((.+_)?(heads?|classifiers?|logits?|scores?|predictors?|predictions?|pred)|(heads?|logits?)_.+|aux.*"
    r"|predict_.+|final_(layer|linear|conv|convolution|proj|projection)|conv_(out|post)|classifier_.+"
    r"|output_projection(_.+)?|reference_points)",
    re.IGNORECASE,
)
# Of these, the ones after which nothing else is an output: a "head" before them is their input.
_FINAL = frozenset({"classifier", "lm_head", "score"})
# Names that mean one at the end of a network: any layers, and a single layer (a "decoder" of many is none).
_NETWORK_HEADS = frozenset({"head", "heads", "fc", "readout", "cls"})
_NETWORK_LAYERS = frozenset({"output", "out", "decoder", "proj_out"})
# Names of what holds a whole network and nothing that changes what it is.
_HOLDERS = frozenset({"module", "model", "net", "network", "base_model", "backbone"})
_CHAINS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_TORCH_BLOCKS = (
    *(nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)


def output_layers(module: nn.Module) -> list[nn.Module]:
    """The layers that make the output of a head: its last one, of every head in a container of heads."""
    module = unwrapped(module)
    children = dict(module.named_children())
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        inside = list(children.values())
    else:  # a head and its trained copies or adapters, as peft keeps them
        kept = ("original_module", "modules_to_save", "base_layer", "lora_B")
        inside = [children[name] for name in kept if name in children]
    if inside:
        return [layer for child in inside for layer in output_layers(child)]
    found = [
        located.module
        for located in located_modules(module)
        if _has_matrix(located.module) and not re.search("norm|modulation", ".".join(located.path), re.I)
    ]
    return found[-1:]


def _has_matrix(module: nn.Module) -> bool:
    """Whether a head can end in it: a layer, or a module with weights of its own that are not looked up."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or "norm" in type(module).__name__.lower():
        return False
    return is_layer(module) or any(
        parameter.ndim > 1 and "weight" in name for name, parameter in module.named_parameters(recurse=False)
    )


def _takes_no_arguments(method: Callable[..., Any]) -> bool:
    """Whether it can be called with nothing; an accessor that wants arguments means something else."""
    required = (
        p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        for p in inspect.signature(method).parameters.values()
    )
    return not any(required)


def _modules_in(answer: object) -> Iterator[nn.Module]:
    """The modules in what an accessor returned: one, or a collection of them."""
    if isinstance(answer, nn.Module):
        yield answer
    elif isinstance(answer, Mapping):
        yield from (module for value in answer.values() for module in _modules_in(value))
    elif isinstance(answer, (tuple, list)):
        yield from (module for value in answer for module in _modules_in(value))


def _accessors(module: nn.Module) -> Iterator[Callable[[], object]]:
    """The methods by which transformers' and timm's models name their heads."""
    for name in ("get_output_embeddings", "get_classifier"):
        method = getattr(module, name, None)
        if callable(method) and _takes_no_arguments(method):
            yield method


def _answers(module: nn.Module) -> Iterator[nn.Module]:
    """What they name."""
    for method in _accessors(module):
        try:
            found = method()
        except (AttributeError, NotImplementedError):  # how models say that they have no such layer
            continue
        yield from _modules_in(found)


def _is_network(module: nn.Module) -> bool:
    """Whether it has chains of blocks of its own, two or more of one class: a backbone, not a block."""
    chains = [child for child in map(unwrapped, module.children()) if isinstance(child, _CHAINS)]
    kinds = [type(unwrapped(block)) for chain in chains for block in chain.children() if _is_composite(block)]
    return len(set(kinds)) < len(kinds)


def _is_composite(module: nn.Module) -> bool:
    return next(unwrapped(module).children(), None) is not None


def _in_block(found: Located, top: nn.Module) -> bool:
    """Whether a block of a chain holds it; the members of a chain that is the whole model are no blocks."""
    inside = (*found.parents, found.module)
    return any(
        part.isdigit()
        and inside[i] is not top
        and _is_composite(inside[i + 1])
        and inside[i + 1] is not found.module
        for i, part in enumerate(found.path)
        if not isinstance(inside[i + 1], _CHAINS)
    )


def _core(model: nn.Module) -> nn.Module:
    """The model, or what it does nothing but hold, as a trainer's module holds its network."""
    model = unwrapped(model)
    while True:
        children = [
            (name, child)
            for name, child in model.named_children()
            if next(child.parameters(), None) is not None
        ]
        if isinstance(model, _CHAINS) or len(children) != 1 or children[0][0] not in _HOLDERS:
            return model
        model = unwrapped(children[0][1])


def _at_end(found: Located) -> bool:
    """Whether a module stands where networks have their heads: at the top, or in a network that is inside."""
    held = all(part in _HOLDERS or part in _NETWORK_HEADS for part in found.path[:-1])
    return held or _is_network(found.parents[-1])


def output_heads(model: nn.Module) -> tuple[set[nn.Module], str | None]:
    """The layers that make a model's outputs.

    Args:
        model: Any module, wrapped or not.

    Returns:
        The layers, and the name of the one that was taken for want of any sign, if any.
    """
    modules = list(located_modules(model))
    top = _core(model)
    heads = [
        layer for found in modules for answer in _answers(found.module) for layer in output_layers(answer)
    ]
    final = set(heads)
    weak: list[Located] = []
    for found in modules:
        if not found.path or "router" in ".".join(found.path).lower():
            continue
        name, outside = found.path[-1], not _in_block(found, top)
        if name in _NETWORK_HEADS or name in _NETWORK_LAYERS:
            if _at_end(found) or (name in ("head", "heads") and outside):
                weak.append(found)
        elif _ALWAYS.fullmatch(name) or (outside and _OUTSIDE_BLOCKS.fullmatch(name)):
            heads += output_layers(found.module)
            final.update(output_layers(found.module) if name in _FINAL else ())
    for found in weak:
        if is_layer(found.module):
            heads.append(found.module)
        elif found.path[-1] in _NETWORK_HEADS and not _leads_to(final, found):
            heads += output_layers(found.module)
    if isinstance(top, nn.Sequential) and len(top) > 0:
        last = unwrapped(top[len(top) - 1])
        heads += [last] if isinstance(last, nn.Linear) else []
    if heads:
        return set(heads), None
    outside_trunk = [layer for found in modules for layer in _outside_trunk(found.module)]
    if outside_trunk:
        return {outside_trunk[-1]}, None
    return _guessed(modules, top)


def _leads_to(final: set[nn.Module], found: Located) -> bool:
    """Whether a head of several layers is followed by the output layer beside it, or pools tokens."""
    if any("Pool" in kind.__name__ for kind in type(found.module).__mro__):
        return True
    beside = list(found.parents[-1].modules())
    after = beside[beside.index(found.module) :]
    return not final.isdisjoint(set(after) - set(found.module.modules()))


def _outside_trunk(module: nn.Module) -> list[nn.Module]:
    """The layers of one of transformers' models beside its `base_model`."""
    trunk = getattr(module, "base_model", None) if hasattr(module, "base_model_prefix") else None
    if not isinstance(trunk, nn.Module) or trunk is module:
        return []
    inside = set(trunk.modules())
    return [m for m in module.modules() if m not in inside and is_layer(m)]


def _guessed(modules: list[Located], top: nn.Module) -> tuple[set[nn.Module], str | None]:
    """The last linear layer of a network that has several, and its name; none where it belongs to a block."""
    layers = [f for f in modules if is_layer(f.module) and "lora" not in ".".join(f.path).lower()]
    linear = [found for found in layers if not isinstance(found.module, _ConvNd)]
    if len(layers) < 2 or not linear or isinstance(top, (nn.ModuleList, nn.ModuleDict)):
        return set(), None
    last = linear[-1]
    headless = any(any(_accessors(module)) for module in last.parents)  # and it has said so
    if headless or _in_block(last, top) or any(isinstance(m, _TORCH_BLOCKS) for m in last.parents):
        return set(), None
    return {last.module}, ".".join(last.path)
