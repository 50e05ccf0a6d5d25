"""Parameter groups: which parameter of a model gets which direction, and a table that shows it."""

import fnmatch
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .buckets import Group
from .checks import choice, unknown_name
from .directions import DIRECTIONS
from .heads import output_heads
from .hidden_matrices import matrix_options
from .matrices import OPTIONS as MATRIX_OPTIONS
from .matrices import layout_of, update_scale
from .module_tree import Owned, is_layer, owned_parameters
from .options import OPTIONS

Override = tuple[str, str | Mapping[str, Any]]
Decaying = Literal["all", "matrices"]
_FUSED = re.compile(r"(^|\.)(\w*qkv\w*|c_attn)\.weight$")


class ParamGroups(list[dict[str, Any]]):
    """What `param_groups` returns: a list of groups, with what `report` says about them.

    Attributes:
        notes: Sentences about what was guessed, and what could be better.
    """

    notes: tuple[str, ...] = ()


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


def _is_weight(owned: Owned, heads: Collection[nn.Module]) -> bool:
    """Whether something is multiplied by it: a layer's matrix or kernel, and no bias, scale or embedding."""
    if owned.parameter.dim() < 2 or owned.name.endswith((".weight_g", ".original0")):  # weight norm's scale
        return False
    return is_layer(owned.module) or (owned.module in heads and not isinstance(owned.module, nn.Embedding))


def param_groups(
    model: nn.Module,
    *,
    matrices: str = "muon",
    auxiliary: str = "adamw",
    overrides: Sequence[Override] = (),
    weight_decay: float | None = None,
    decaying: Decaying = "all",
) -> ParamGroups:
    """Parameter groups of a model: every trainable parameter exactly once, named, each with its direction.

    Hidden matrices, convolution kernels and stacked experts get `matrices`; embeddings, output heads, norms,
    depthwise kernels, tables of vectors and everything with fewer than two dimensions get `auxiliary`.
    Decided by module type and identity first (a head tied to an embedding is the embedding), then by the
    model's own `get_output_embeddings()` or `get_classifier()`, then by name; where no head is found so, the
    last linear layer of a plain network is taken for it. `report(groups)` shows the result and says what was
    guessed.

    Args:
        model: Any module, and the same groups come out whatever wraps it or its parts: `torch.compile`, DDP,
            FSDP, activation checkpointing. Parameters with `requires_grad=False` are left out.
        matrices: Direction of the hidden matrices: "muon", or another one for matrices.
        auxiliary: Direction of the rest: "adamw", "sgd", or another one that is not for matrices. With "sgd"
            the matrices get the "spectral" scale.
        overrides: Pairs (pattern, options), applied in order, later ones on top: a shell-style pattern on
            full parameter names (without what wrappers add), and a direction or a dict of group options such
            as `("*.lora_*", "adamw")`, `("*.qkv.weight", {"split_rows": (512, 512, 512)})`.
        weight_decay: Decay of every group that decays; None leaves it to the optimizer.
        decaying: What weight decay acts on. "all": every parameter, as AMUSE was published. "matrices": what
            an input is multiplied by, that is hidden matrices, kernels and output heads; embeddings, heads
            tied to one, norms, biases and other vectors get `weight_decay` 0, as is usual with AdamW.

    Returns:
        Group dicts for `AMUSE`, parameters as (name, parameter) pairs in the model's order.

    Raises:
        ValueError: For a model without trainable parameters, a pattern that matches nothing, an unknown
            option, two parameters that share memory without being one, or FSDP1's flat parameters.

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
    choice(*get_args(Decaying))("decaying", decaying)
    owned = list(owned_parameters(model))
    if not owned:
        raise ValueError("the model has no trainable parameters")
    heads, guessed = output_heads(model)

    chosen: dict[nn.Parameter, tuple[str, dict[str, Any]]] = {}
    memory: dict[int, str] = {}
    still: set[nn.Parameter] = set()  # what does not decay
    for one in owned:
        options = None if one.module in heads else matrix_options(one)
        settings = {"direction": auxiliary} if options is None else {"direction": matrices, **options}
        if decaying == "matrices" and options is None and not _is_weight(one, heads):
            still.add(one.parameter)
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
                    settings = {key: value for key, value in settings.items() if key not in MATRIX_OPTIONS}
                settings = settings | options
        if DIRECTIONS[settings["direction"]].for_matrices and auxiliary == "sgd":
            settings = {"scale": "spectral"} | settings
        is_matrix = DIRECTIONS[settings["direction"]].for_matrices
        decay = 0.0 if parameter in still and not is_matrix else weight_decay
        if decay is not None:
            settings = {"weight_decay": decay} | settings
        key = tuple(sorted((option, repr(value)) for option, value in settings.items()))
        groups.setdefault(key, {"params": [], **settings})["params"].append((name, parameter))
    made = ParamGroups(groups.values())
    if guessed and any(one.name.startswith(f"{guessed}.") for one in owned):
        made.notes += (
            f"{guessed!r} was taken for the output head: it is the last linear layer, and nothing else says "
            "what the head is. overrides= changes that.",
        )
    fused = [
        name
        for group in made
        if DIRECTIONS[group["direction"]].for_matrices and not {"split_rows", "num_heads"} & group.keys()
        for name, _ in group["params"]
        if _FUSED.search(name)
    ]
    if fused:
        made.notes += (
            f"{fused[0]!r} seems to hold queries, keys and values, which move as one matrix: an override "
            "with split_rows=(rows of each), where they lie one after the other, orthogonalizes them apart, "
            "which has helped (docs/anytime.md).",
        )
    return made


def report(groups: Sequence[Group]) -> str:
    """Format parameter groups as a text table.

    Args:
        groups: Groups from `param_groups(model)`, or `optimizer.param_groups`.

    Returns:
        A header, one line per parameter with its name, shape, direction, matrices (count and shape), scale
        and weight decay, and a line of totals. "-" stands for no matrices, or for the optimizer's decay.

    Example:
        >>> import torch
        >>> from amuse_optim import param_groups, report
        >>> print(report(param_groups(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)))))
        parameter  shape  direction  matrices  scale  decay
        0.weight   8x4    muon       8x4       0.566  -
        0.bias     8      adamw      -         -      -
        1.weight   2x8    adamw      -         -      -
        1.bias     2      adamw      -         -      -
        58 parameters: 32 muon, 26 adamw
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
                scale = " + ".join(f"{update_scale(rows, cols, kind):.3g}" for _, rows, cols in blocks)
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
    lines.append(f"{sum(count.values()):,} parameters: {totals}")
    kept = sorted({kappa for group in groups for kappa in group.get("averages", ())})
    if kept:
        held = sum(
            len(group.get("averages", ()))
            * parameter.numel()
            * (8 if parameter.dtype == torch.float64 else 4)
            for group in groups
            for _, parameter in _members(group)
        )
        named = ", ".join(f"{kappa:g}" for kappa in kept)
        lines.append(f"averages for reading: kappa {named}, {held:,} bytes of state")
    return "\n".join([*lines, *getattr(groups, "notes", ())])


def _members(group: Group) -> Iterator[tuple[str, Tensor]]:
    names = group.get("param_names")
    for i, member in enumerate(group["params"]):
        if isinstance(member, tuple):
            yield member
        else:
            yield (names[i] if names else f"({i})"), member
