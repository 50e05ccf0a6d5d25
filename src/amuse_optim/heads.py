"""Output heads: which layers of a model make its outputs.

The model's own accessors and the names of its modules say it; where they do not, the order of registration:
what one of transformers' models has behind its trunk, or the last linear layer of a plain network.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import dropwhile, pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .module_tree import Located, is_layer, located_modules, unwrapped

# Names that mean an output wherever they stand.
_ALWAYS = re.compile(
    r"lm_head|mlp_head|prediction_head|classifier|to_logits|logits?|score|qa_outputs|embed_out|unembed"
    r"|seq_relationship|(.+_)?(class|cls|bbox|box)_(embed|pred|score|logits|reg|head)"
)
# Names that mean one outside of blocks: heads of tasks, of detectors, of pre-training.
_OUTSIDE_BLOCKS = re.compile(
    r"(?!pre_|conv_head|.*(multi|attn|attention|query|pos_|ref_point|pool|router))"
    r"((.+_)?(heads?|classifiers?|logits?|scores?|predictors?|predictions?|pred)|aux.*|predict_.+"
    r"|(heads?|logits?|classifier|output_projection)_.+|output_projection|reference_points|(feat|prob)_out)",
    re.IGNORECASE,
)
# Names that mean one at the end of a network: any layers, and a single layer (a "decoder" of many is none).
_AT_END = re.compile(r"heads?|fc|readout|cls|final_(layer|linear|conv|convolution|proj|projection)")
_AT_END_SINGLE = re.compile(r"output|out|decoder|proj_out|conv_out|conv_post")
# Of all these, what is the input of the output layer where that comes later.
_BEFORE_OUTPUT = re.compile(r"heads?|lm_head|cls|final_.+|projection_head|(.+_)?predictions?")
_OUTPUT = frozenset({"classifier", "lm_head", "score"})
# Names of what holds a whole network, or the part of one that makes its output.
_HOLDERS = frozenset(
    {"module", "model", "net", "network", "base_model", "backbone", "decoder", "head", "heads"}
)
_CHAINS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_TORCH_BLOCKS = (
    *(nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)


def output_layers(module: nn.Module) -> list[nn.Module]:
    """The layers that make the output of a head: its last one, of every head in a container of heads."""
    module = unwrapped(module)
    own = [module] if _has_matrix(module) else []
    inside = _heads_inside(module)
    if inside:
        return own + [layer for child in inside for layer in output_layers(child)]
    found = [
        located
        for located in located_modules(module)
        if _has_matrix(located.module) and not re.search("norm|modulation", ".".join(located.path), re.I)
    ]
    last = [located for located in found if not _in_block(located, module)] or found
    return own + [located.module for located in last[-1:]]


def _heads_inside(module: nn.Module) -> list[nn.Module]:
    """The heads that a head consists of: it is a container, or has parts that are called heads."""
    children = {name: child for name, child in module.named_children() if _holds_matrix(child)}
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return list(children.values())
    only = next(iter(children.values())) if len(children) == 1 else None
    if isinstance(only, (nn.ModuleList, nn.ModuleDict)) and not _is_chain_of_layers(only):
        return [only]
    # A head and its trained copies or adapters, as peft keeps them.
    kept = ("original_module", "modules_to_save", "base_layer", "lora_B")
    heads = [
        child
        for name, child in children.items()
        if name in kept or (_named_head(name) and not _feeds_predictor(name, module))
    ]
    single = [child for name, child in children.items() if _AT_END_SINGLE.fullmatch(name) and is_layer(child)]
    return heads or single


def _is_chain_of_layers(container: nn.Module) -> bool:
    """Whether every member takes as many inputs as the one before has outputs, as in a perceptron."""
    members = [unwrapped(member) for member in container.children()]
    weights = [getattr(member, "weight", None) for member in members if is_layer(member)]
    return len(weights) == len(members) and all(
        isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape[0] == after.shape[1]
        for before, after in pairwise(weights)
    )


def _named_head(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in (_ALWAYS, _OUTSIDE_BLOCKS))


def _feeds_predictor(name: str, parent: nn.Module) -> bool:
    """Whether a "box_head" only makes the features of the "box_predictor" beside it, as in torchvision."""
    return hasattr(parent, f"{name.removesuffix('_head')}_predictor")


def _holds_matrix(module: nn.Module) -> bool:
    return any(_has_matrix(inside) for inside in module.modules())


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
    """Modules that the model's own accessors, such as `get_output_embeddings`, return."""
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
    return any(
        isinstance(chain, (nn.Sequential, nn.ModuleList))
        and chain is not top
        and not isinstance(block, _CHAINS)
        and _is_composite(block)
        for chain, block in pairwise(found.parents)
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
    """Whether a module stands where networks have their heads: at the top, or behind a network's blocks."""
    if all(part in _HOLDERS for part in found.path[:-1]):
        return True
    if found.path[-1].startswith("final_"):  # parts of networks end in such layers as well
        return found.path[-2] == "decoder"
    beside = [unwrapped(child) for child in found.parents[-1].children()]
    behind = any(isinstance(child, _CHAINS) for child in beside[: beside.index(found.module)])
    return behind and _is_network(found.parents[-1])


def _is_head(found: Located, top: nn.Module, output: set[nn.Module]) -> bool:
    """Whether a module's name, where it stands, means an output head.

    Args:
        found: The module in question, with its path and the modules around it.
        top: What holds the whole network.
        output: Layers that are known to make the output.
    """
    if not found.path or "router" in ".".join(found.path).lower():
        return False
    name, outside = found.path[-1], not _in_block(found, top)
    if is_layer(found.module) and _AT_END_SINGLE.fullmatch(name):
        return _at_end(found) and name.startswith("conv_") == isinstance(found.module, _ConvNd)
    if (not is_layer(found.module) or name.startswith("final_")) and _is_before_output(found, output):
        return False
    if _AT_END.fullmatch(name):
        return _at_end(found) or (name in ("head", "heads") and outside)
    return _ALWAYS.fullmatch(name) is not None or (outside and _OUTSIDE_BLOCKS.fullmatch(name) is not None)


def _is_before_output(found: Located, output: set[nn.Module]) -> bool:
    """Whether several layers are followed by the output layer beside them, or pool tokens."""
    name, parent = found.path[-1], found.parents[-1]
    if _AT_END.fullmatch(name) and "Pool" in type(found.module).__name__:
        return True
    if _feeds_predictor(name, parent):
        return True
    beside = list(parent.modules())
    first = 0 if name.startswith("final_") else beside.index(found.module)
    later = set(beside[first:]) - set(found.module.modules())
    return _BEFORE_OUTPUT.fullmatch(name) is not None and not output.isdisjoint(later)


def output_heads(model: nn.Module) -> tuple[set[nn.Module], str | None]:
    """The layers that make a model's outputs.

    Args:
        model: Any module, wrapped or not.

    Returns:
        The layers, and the name of the one that was taken for want of any sign, if any.
    """
    modules = list(located_modules(model))
    top = _core(model)
    heads = {
        layer for found in modules for answer in _answers(found.module) for layer in output_layers(answer)
    }
    named = [found.module for found in modules if found.path and found.path[-1] in _OUTPUT]
    output = heads | {layer for module in named for layer in output_layers(module)}
    for found in modules:
        if _is_head(found, top, output):
            heads.update(output_layers(found.module))
    if isinstance(top, nn.Sequential) and len(top) > 0:
        last = unwrapped(top[len(top) - 1])
        heads |= {last} if isinstance(last, nn.Linear) else set()
    if heads:
        return heads, None
    outside_trunk = [layer for found in modules for layer in _outside_trunk(found.module)]
    if outside_trunk:
        return {outside_trunk[-1]}, None
    return _guessed(modules, top)


def _outside_trunk(module: nn.Module) -> list[nn.Module]:
    """The layers that one of transformers' models for a task has behind its `base_model`."""
    trunk = getattr(module, "base_model", None) if hasattr(module, "base_model_prefix") else None
    if not isinstance(trunk, nn.Module) or trunk is module or "For" not in type(module).__name__:
        return []
    inside = set(trunk.modules())
    behind = dropwhile(lambda m: m is not trunk, module.modules())
    return [m for m in behind if m not in inside and is_layer(m)]


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
