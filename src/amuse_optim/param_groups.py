"""Parameter groups: which parameter of a model gets which direction, and a table that shows it."""

import fnmatch
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

from .buckets import Group
from .checks import choice, unknown_name
from .directions import DIRECTIONS
from .matrices import layout_of, update_scale
from .options import OPTIONS

Override = tuple[str, str | Mapping[str, Any]]

# Names that mean an output head wherever they stand, those that mean one only at a model's top, and those
# that mean one there if they name a single layer (a "decoder" of many layers is none).
_HEADS = frozenset(
    {"lm_head", "mlp_head", "to_logits", "prediction_head", "classifier", "embed_out", "unembed", "logits"}
    | {"score", "qa_outputs"}
)
_TOP_LEVEL_HEADS = frozenset({"head", "heads", "fc", "readout"})
_TOP_LEVEL_LAYERS = frozenset({"output", "out", "decoder", "proj_out"})
_WRAPPERS = frozenset({"module", "_orig_mod", "model", "net", "network"})
_LOOKED_UP = re.compile(r"embed|(^|_)emb($|_)|token|(^|_)pos($|_)|position", re.IGNORECASE)


@dataclass(frozen=True)
class _Owned:
    """A parameter as one module holds it, or as what a parametrization of its makes a tensor of."""

    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter


def _owned(model: nn.Module) -> Iterator[_Owned]:
    for prefix, module in model.named_modules():
        owner, tensor = module, None
        if isinstance(module, ParametrizationList):  # of "weight" of the module that is two levels up
            *path, _, tensor = prefix.split(".")
            owner = model.get_submodule(".".join(path))
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                name = f"{prefix}.{attribute}" if prefix else attribute
                yield _Owned(name, owner, tensor or attribute, parameter)


def _last_linear(module: nn.Module) -> nn.Module | None:
    """The module itself, or the last one inside it, that multiplies by a matrix."""
    inside = [m for m in module.modules() if isinstance(m, (nn.Linear, _ConvNd))]
    return inside[-1] if inside else None


def _takes_no_arguments(method: Callable[..., Any]) -> bool:
    """Whether it can be an accessor; one that wants arguments means something else by its name."""
    required = (
        p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        for p in inspect.signature(method).parameters.values()
    )
    return not any(required)


def _accessible_heads(module: nn.Module) -> Iterator[nn.Module]:
    """What the accessors of transformers' and timm's models name."""
    for accessor in ("get_output_embeddings", "get_classifier"):
        method = getattr(module, accessor, None)
        if not callable(method) or not _takes_no_arguments(method):
            continue
        try:
            found = method()
        except (AttributeError, NotImplementedError):  # how models say that they have no such layer
            continue
        candidates = found if isinstance(found, (tuple, list)) else (found,)
        yield from (candidate for candidate in candidates if isinstance(candidate, nn.Module))


def _heads(model: nn.Module) -> list[nn.Module]:
    """Output heads: by the model's own accessors first, then by name."""
    heads: list[nn.Module | None] = []
    for name, module in model.named_modules():
        heads += _accessible_heads(module)
        *path, last = name.split(".")
        at_top = all(part in _WRAPPERS for part in path)
        named = last in _HEADS or (at_top and last in _TOP_LEVEL_HEADS)
        if named or (at_top and last in _TOP_LEVEL_LAYERS and isinstance(module, nn.Linear)):
            heads.append(_last_linear(module))
        elif isinstance(module, nn.Sequential) and name in ("", "module", "_orig_mod") and len(module) > 0:
            last_layer = module[len(module) - 1]  # the model is a plain chain
            heads.append(last_layer if isinstance(last_layer, nn.Linear) else None)
    return [head for head in heads if head is not None]


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or type(module).__name__.endswith("Embedding")


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _settings(owned: _Owned, matrices: str, auxiliary: str) -> dict[str, Any]:
    """The direction of a parameter that is no output head, and how it splits into matrices."""
    module, parameter = owned.module, owned.parameter
    shape = parameter.shape
    matrix: dict[str, Any] = {"direction": matrices}
    rest: dict[str, Any] = {"direction": auxiliary}
    if parameter.ndim < 2 or _is_embedding(module) or _is_norm(module):
        return rest
    if shape[1:].numel() == 1:
        return rest  # a vector written as a kernel or a matrix
    if isinstance(module, _ConvNd):
        depthwise = module.groups > 1 and shape[1] == 1
        if depthwise:
            return rest
        return matrix | ({"conv_groups": module.groups} if module.groups > 1 else {})
    if isinstance(module, nn.MultiheadAttention) and owned.attribute == "in_proj_weight":
        return matrix | {"split_rows": (shape[0] // 3,) * 3}
    if isinstance(module, nn.RNNBase) and owned.attribute.startswith(("weight_ih", "weight_hh")):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        return matrix | ({"split_rows": (shape[0] // gates,) * gates} if gates > 1 else {})
    if min(shape[-2:]) == 1 or (parameter.ndim > 2 and shape[0] == 1):
        return rest
    if not isinstance(module, (nn.Linear, nn.RNNBase, nn.MultiheadAttention)) and _LOOKED_UP.search(
        owned.attribute
    ):
        return rest
    return matrix | ({"stacked": True} if parameter.ndim > 2 else {})


def _check_overrides(overrides: Sequence[Override], names: Iterable[str]) -> list[tuple[str, dict[str, Any]]]:
    names = list(names)
    checked = []
    for pattern, options in overrides:
        chosen = {"direction": options} if isinstance(options, str) else dict(options)
        for key in chosen:
            if key not in OPTIONS:
                raise ValueError(unknown_name(f"option in the override of {pattern!r}", key, OPTIONS))
        if "direction" in chosen:
            choice(*DIRECTIONS)(f"direction in the override of {pattern!r}", chosen["direction"])
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"the override pattern {pattern!r} matches no trainable parameter; "
                f"names look like {names[0]!r}"
            )
        checked.append((pattern, chosen))
    return checked


def param_groups(
    model: nn.Module,
    *,
    matrices: str = "muon",
    auxiliary: Literal["adamw", "sgd"] = "adamw",
    overrides: Sequence[Override] = (),
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups of a model: every trainable parameter exactly once, named, each with its direction.

    Hidden matrices, convolution kernels and stacked experts get `matrices`; embeddings, output heads, norms,
    depthwise kernels and everything with fewer than two dimensions get `auxiliary`. Decided by module type
    and identity first (a head tied to an embedding is the embedding), then by the model's own
    `get_output_embeddings()` or `get_classifier()`, then by name. `report(groups)` shows the result.

    Args:
        model: Any module. Parameters with `requires_grad=False` are left out.
        matrices: Direction of the hidden matrices: "muon", or another one for matrices.
        auxiliary: Direction of the rest. With "sgd" the matrices get the "spectral" scale.
        overrides: Pairs (pattern, options), applied in order, later ones on top: a shell-style pattern on
            full parameter names, and a direction or a dict of group options such as
            `("*.lora_*", "adamw")`, `("*.qkv.weight", {"split_rows": (512, 512, 512)})`.
        weight_decay: Decay of every group; None leaves it to the optimizer.

    Returns:
        Group dicts for `AMUSE`, parameters as (name, parameter) pairs in the model's order.

    Raises:
        ValueError: For a model without trainable parameters, a pattern that matches nothing, an unknown
            option, or two parameters that share memory without being one.

    Example:
        >>> import torch
        >>> from amuse_optim import param_groups
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> [(g["direction"], [name for name, _ in g["params"]]) for g in param_groups(model)]
        [('muon', ['0.weight']), ('adamw', ['0.bias', '2.weight', '2.bias'])]
    """
    choice(*(name for name, direction in DIRECTIONS.items() if direction.for_matrices))("matrices", matrices)
    choice(*(name for name, direction in DIRECTIONS.items() if not direction.for_matrices))(
        "auxiliary", auxiliary
    )
    owned = list(_owned(model))
    if not owned:
        raise ValueError("the model has no trainable parameters")
    heads = set(_heads(model))

    chosen: dict[nn.Parameter, tuple[str, dict[str, Any]]] = {}
    memory: dict[int, str] = {}
    for one in owned:
        settings = _settings(one, matrices, auxiliary)
        if one.module in heads:
            settings = {"direction": auxiliary}
        if one.parameter in chosen:  # tied: any auxiliary use decides
            if settings["direction"] == auxiliary:
                chosen[one.parameter] = (chosen[one.parameter][0], settings)
            continue
        address = one.parameter.data_ptr()
        if address and one.parameter.numel() and memory.setdefault(address, one.name) != one.name:
            raise ValueError(
                f"{one.name!r} and {memory[address]!r} share memory but are two parameters, which would be "
                "updated twice; tie them by assigning the same Parameter to both modules"
            )
        chosen[one.parameter] = (one.name, settings)

    patterns = _check_overrides(overrides, (name for name, _ in chosen.values()))
    groups: dict[object, dict[str, Any]] = {}
    for parameter, (name, settings) in chosen.items():
        for pattern, options in patterns:
            if fnmatch.fnmatchcase(name, pattern):
                if "direction" in options and not DIRECTIONS[options["direction"]].for_matrices:
                    settings = {}
                settings = settings | options
        if DIRECTIONS[settings["direction"]].for_matrices and auxiliary == "sgd":
            settings = {"scale": "spectral"} | settings
        if weight_decay is not None:
            settings = {"weight_decay": weight_decay} | settings
        key = tuple(sorted((option, repr(value)) for option, value in settings.items()))
        groups.setdefault(key, {"params": [], **settings})["params"].append((name, parameter))
    return list(groups.values())


def report(groups: Sequence[Group]) -> str:
    """A table of what `param_groups` decided, or of an optimizer's groups.

    Args:
        groups: From `param_groups(model)`, or `optimizer.param_groups`.

    Returns:
        One line a parameter: name, shape, direction, matrices (count and shape), scale, weight decay;
        then a line of totals. A "-" stands for "as the optimizer says".
    """
    rows = [("parameter", "shape", "direction", "matrices", "scale", "decay")]
    count = dict.fromkeys(DIRECTIONS, 0)
    for group in groups:
        for name, parameter in _members(group):
            matrices = scale = "-"
            if DIRECTIONS[group["direction"]].for_matrices:
                blocks = layout_of(group, parameter.shape).blocks
                matrices = " + ".join(f"{n} of {r}x{c}" if n > 1 else f"{r}x{c}" for n, r, c in blocks)
                kind = group.get("scale", "match_rms")
                scale = f"{update_scale(*blocks[0][1:], kind):.3g}"
            decay = group.get("weight_decay")
            shape = "x".join(map(str, parameter.shape)) or "scalar"
            rows.append(
                (name, shape, group["direction"], matrices, scale, "-" if decay is None else f"{decay:g}")
            )
            count[group["direction"]] += parameter.numel()
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    totals = ", ".join(f"{number:,} {direction}" for direction, number in count.items() if number)
    return "\n".join([*lines, f"{sum(count.values()):,} parameters: {totals}"])


def _members(group: Group) -> Iterator[tuple[str, Tensor]]:
    names = group.get("param_names")
    for i, member in enumerate(group["params"]):
        if isinstance(member, tuple):
            yield member
        else:
            yield (names[i] if names else f"({i})"), member
