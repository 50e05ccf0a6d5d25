"""AMUSE for timm: `create_optimizer_v2(model, opt="amuse", ...)`."""

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from torch import Tensor, nn

from amuse_optim.buckets import Group
from amuse_optim.directions import DIRECTIONS
from amuse_optim.optimizer import AMUSE
from amuse_optim.options import OPTIONS
from amuse_optim.param_groups import param_groups

NAME = "amuse"


def register() -> None:
    """Add AMUSE to timm's optimizers under the name "amuse"; calling it again has no effect.

    Example:
        .. code-block:: python

            from timm.optim import create_optimizer_v2
            from amuse_optim.integrations import timm

            timm.register()
            optimizer = create_optimizer_v2(
                model, opt="amuse", lr=0.01, weight_decay=0.05, momentum=0.95, warmup_steps=500, model=model
            )
    """
    from timm.optim import OptimInfo
    from timm.optim._optim_factory import default_registry  # which timm.optim does not export

    known = NAME in default_registry.list_optimizers()
    if known and default_registry.get_optimizer_info(NAME).opt_class is amuse:
        return
    default_registry.register(
        OptimInfo(
            name=NAME,
            opt_class=amuse,
            description="Muon with Schedule-Free averaging, evaluated at the average",
            has_eps=True,
            has_momentum=True,
            has_betas=True,
        )
    )


def amuse(
    params: Iterable[Any],
    lr: float | Tensor | None = None,
    *,
    warmup_steps: int | float,
    model: nn.Module | None = None,
    betas: tuple[float, float] | None = None,
    **options: Any,
) -> AMUSE:
    """An `AMUSE` from what timm's factory makes of a model: what `create_optimizer_v2` calls for "amuse".

    timm's groups keep their weight decay (none for parameters with one dimension), and their `lr_scale`
    (layer decay) becomes part of their learning rate, where timm's and torch's schedulers take it up. Groups
    with `use_fallback` (`fallback_list`) get the direction "adamw". timm passes `momentum=0.9` on unless it
    is told otherwise; AMUSE's own default is 0.95.

    Args:
        params: Tensors, or timm's parameter groups. Groups that have a `direction`, as with
            `param_group_fn=param_groups`, keep it.
        lr: Learning rate; None means AMUSE's default.
        warmup_steps: Steps of linear learning-rate warm-up, as for `AMUSE`; leave timm's own warm-up at 0.
        model: The model that the parameters belong to. With it the directions are those of
            `param_groups(model)`. Without it they follow shapes, as those of timm's Muon do, which takes
            heads and embeddings for matrices: name these in `fallback_list`.
        betas: Decays of the first and the second moment of the "adamw" direction, as in timm's Muon:
            `auxiliary_momentum` and `beta2`. None means AMUSE's defaults.
        options: Any other option of `AMUSE`.

    Raises:
        ValueError: For a parameter that is not a trainable one of `model`, and as `AMUSE` does.
        TypeError: As `AMUSE` does.
    """
    if betas is not None:
        options = {"auxiliary_momentum": betas[0], "beta2": betas[1]} | options
    base = OPTIONS["lr"].default if lr is None else lr
    rest = options.get("lr_rest")
    members = list(params)
    given = members if members and isinstance(members[0], Mapping) else [{"params": members}]
    routed = {} if model is None else _routed(model)
    groups = [group for one in given for group in _split(one, routed, by_model=model is not None)]
    for group in groups:
        if "lr_scale" in group:
            own = base if rest is None or DIRECTIONS[group["direction"]].for_matrices else rest
            group["lr"] = group.get("lr", own) * group.pop("lr_scale")
    return AMUSE(groups, lr=base, warmup_steps=warmup_steps, **options)


def _routed(model: nn.Module) -> dict[Tensor, tuple[str, dict[str, Any]]]:
    """The name of each trainable parameter, and what `param_groups` says about it."""
    return {
        parameter: (name, {key: value for key, value in group.items() if key != "params"})
        for group in param_groups(model)
        for name, parameter in group["params"]
    }


def _split(
    group: Mapping[str, Any], routed: Mapping[Tensor, tuple[str, dict[str, Any]]], *, by_model: bool
) -> list[Group]:
    """One of timm's groups as groups of AMUSE, in the order of their first parameters."""
    common = {key: value for key, value in group.items() if key not in ("params", "use_fallback")}
    fallback = group.get("use_fallback", False)
    if "direction" in common and not fallback:
        return [{**common, "params": group["params"]}]
    made: dict[str, Group] = {}
    params = group["params"]
    for parameter in [params] if isinstance(params, Tensor) else params:
        member, settings = parameter, {"direction": "muon" if _is_matrix(parameter.shape) else "adamw"}
        if by_model:
            if parameter not in routed:
                raise ValueError(
                    "model must be the model that timm makes the optimizer of, got one that does not have a "
                    f"parameter of shape {tuple(parameter.shape)}, or has it frozen"
                )
            name, settings = routed[parameter]
            member = (name, parameter)
        if fallback:
            settings = {"direction": "adamw"}
        made.setdefault(repr(settings), {**common, **settings, "params": []})["params"].append(member)
    return list(made.values())


def _is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether timm's Muon orthogonalizes a parameter of this shape, flattened to (out, everything else)."""
    if len(shape) < 2 or 1 in shape[:2]:
        return False
    rows, columns = shape[0], prod(shape[1:])
    return min(rows, columns) >= 4 and max(rows, columns) <= 128 * min(rows, columns)
