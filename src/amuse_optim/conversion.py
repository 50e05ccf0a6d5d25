"""State of other optimizers as state dicts of `AMUSE`: schedulefree's, and the authors' released one.

Both keep z beside parameters that hold y or x, as `AMUSE` does. Only what their groups hold is taken from
them; options that they do not have keep the values of the optimizer that is to go on.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .buckets import Group
from .checks import choice
from .modes import Mode
from .optimizer import unwrapped
from .options import FOREIGN_KEYS, describe
from .schedule import averaging_window, schedule_of
from .state import initial_state, kept_tensors

# What every group must have beside "params" to be one of theirs.
_SCHEDULEFREE = ("k", "train_mode", "weight_sum", "lr_max", "scheduled_lr", "warmup_steps", "lr")
_PUBLISHED = ("k", "weight_sum", "base_lr", "lr", "beta1", "update_type", "warmup_steps", "weight_decay")
# How the released code differs from our defaults, or would if they changed.
_PUBLISHED_OPTIONS = {
    "weight_decay_at": "z",
    "c_warmup_steps": 0,
    "beta_clock": "window",
    "nesterov": True,
    "orthogonalize": "quintic",
    "orthogonalize_steps": 5,
    "auxiliary_momentum": 0.0,
    "state_precision": "full",
}


def from_schedulefree(state_dict: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of schedulefree's `AdamWScheduleFree` or `SGDScheduleFree` as a state dict for `AMUSE`.

    Load it with `optimizer.load_state_dict`, and into the model the weights that were saved with it; the
    optimizer is then in the mode that the other one was in. With `rho=0` it takes the steps that the other
    one would have taken; with a larger `rho` beta rises from where it was. The bias correction counts the
    group's steps there and the parameter's own here, beginning with the group's.

    Args:
        state_dict: From `state_dict()` of one of the two. Their `Paper` and `Closure` variants and
            `RAdamScheduleFree` take other steps; all but `AdamWScheduleFreePaper`, whose state looks like
            `AdamWScheduleFree`'s, are refused.
        optimizer: The `AMUSE` that is to go on, or a framework's wrapper around it, with the same parameters
            in the same groups, of direction "adamw" or "sgd"; not changed.

    Returns:
        A state dict whose lr, warm-up, beta1, beta2, eps, r, weight_lr_power and weight decay (at y) are the
        other optimizer's.

    Raises:
        ValueError: For state of another optimizer, other groups, a group of another direction, or a beta1
            of 0. What else does not fit, such as a parameter's shape, is refused when it is loaded.

    Example:
        >>> import torch
        >>> from amuse_optim import AMUSE, from_schedulefree
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = AMUSE([weight], lr=1.0, direction="sgd", warmup_steps=0, beta1=0.9, rho=0.0,
        ...                   weight_decay_at="y")
        >>> group = {"params": [0], "k": 1, "train_mode": True, "weight_sum": 1.0, "lr_max": 1.0, "lr": 1.0,
        ...          "scheduled_lr": 1.0, "warmup_steps": 0, "momentum": 0.9, "r": 0.0,
        ...          "weight_lr_power": 2.0, "weight_decay": 0.0}  # of SGDScheduleFree
        >>> saved = {"state": {0: {"z": torch.zeros(3)}}, "param_groups": [group]}
        >>> optimizer.load_state_dict(from_schedulefree(saved, optimizer))
        >>> optimizer.param_groups[0]["t"]
        1
    """
    pairs = _paired(
        state_dict, optimizer, "schedulefree's AdamWScheduleFree or SGDScheduleFree", _SCHEDULEFREE
    )
    if len({theirs["train_mode"] for theirs, _ in pairs}) > 1:
        raise ValueError(
            "some groups of state_dict are in train mode, others not: call train() and save again"
        )
    states: dict[Any, dict[str, Any]] = {}
    groups = []
    for theirs, ours in pairs:
        adamw = "betas" in theirs
        _check_direction(ours, "adamw" if adamw else "sgd")
        beta1 = theirs["betas"][0] if adamw else theirs["momentum"]
        if beta1 == 0.0:
            name = "betas[0]" if adamw else "momentum"
            raise ValueError(f"{name} must be > 0, got 0: this state does not hold the average x")
        lr_max, k = max(theirs["lr_max"], 0.0), theirs["k"]
        weight = k ** theirs["r"] * lr_max ** theirs["weight_lr_power"]
        options: dict[str, Any] = {
            name: theirs[name] for name in ("warmup_steps", "r", "weight_lr_power", "weight_decay")
        }
        options |= {"lr": float(theirs["lr"]), "beta1": beta1, "weight_decay_at": "y", "c_warmup_steps": 0}
        options |= {"parity": "exact", "state_precision": "full"}
        if adamw:
            options |= {"beta2": theirs["betas"][1], "eps": theirs["eps"], "auxiliary_momentum": 0.0}
        group = _group(theirs, ours, options, "train" if theirs["train_mode"] else "eval")
        group |= {"lr_max": lr_max, "lr_t": float(theirs["scheduled_lr"]), "beta_t": beta1}
        group["c_t"] = weight / theirs["weight_sum"] if theirs["weight_sum"] > 0 else 1.0
        group["reference_window"] = averaging_window(group["c_t"], 0.0)
        groups.append(group)
        states |= _states(state_dict, theirs["params"], ours, group)
    return {"state": states, "param_groups": groups}


def from_published(
    state_dict: Mapping[str, Any], optimizer: torch.optim.Optimizer, *, mode: Mode
) -> dict[str, Any]:
    """The state of the authors' released optimizer (arXiv 2605.22432) as a state dict for `AMUSE`.

    Load it with `optimizer.load_state_dict`, and into the model the weights that were saved with it. With
    `parity="published"` the optimizer takes the steps that the released one would have taken, up to the
    precision of the orthogonalization, which is bfloat16 there; with `parity="exact"` it averages exactly
    from here on. The beta that resting parameters were built with is not in the state: theirs are taken for
    built with the last one.

    Args:
        state_dict: From `state_dict()` of the released optimizer.
        optimizer: The `AMUSE` that is to go on, or a framework's wrapper around it; not changed. It has the
            same groups, each with its parameters in the order in which they were given to the released
            optimizer (which sorts those of a Muon group itself), and the run's `beta1`, `rho`, `r` and
            `weight_lr_power`, which the state does not hold.
        mode: What the weights saved beside the state are, which the state does not say either: "train" if
            they are y, as after a step, "eval" if the optimizer's `eval()` had put x into them.

    Returns:
        A state dict whose lr, warm-up (also T0), momentum, beta2, eps, scale and weight decay are the
        released optimizer's. A run with `weight_decay_at_y`, which the state does not hold, sets
        `group["weight_decay_at"] = "y"` and `group["weight_decay"]` after loading.

    Raises:
        ValueError: For state of another optimizer, other groups, a group of another direction, averaging that
            does not follow from the optimizer's `beta1`, `rho`, `r` and `weight_lr_power`, or state that was
            saved after a step with a learning rate of 0. What else does not fit, such as a parameter's shape,
            is refused when it is loaded.

    Example:
        >>> import torch
        >>> from amuse_optim import AMUSE, from_published
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = AMUSE([weight], lr=0.5, direction="sgd", warmup_steps=2, parity="published")
        >>> group = {"params": [0], "k": 1, "weight_sum": 0.0625, "base_lr": 0.5, "lr": 0.25, "ckp1": 1.0,
        ...          "beta1": 0.6, "update_type": "sgd", "warmup_steps": 2, "weight_decay": 0.0}
        >>> saved = {"state": {0: {"z": torch.zeros(3)}}, "param_groups": [group]}
        >>> optimizer.load_state_dict(from_published(saved, optimizer, mode="train"))
        >>> optimizer.param_groups[0]["t"]
        1
    """
    choice("train", "eval")("mode", mode)
    states: dict[Any, dict[str, Any]] = {}
    groups = []
    for theirs, ours in _paired(state_dict, optimizer, "the released AMUSE", _PUBLISHED):
        _check_direction(ours, theirs["update_type"])
        k, warmup_steps = theirs["k"], theirs["warmup_steps"]
        options: dict[str, Any] = {
            name: theirs[name] for name in ("momentum", "beta2", "eps") if name in theirs
        }
        options |= {"lr": float(theirs["base_lr"]), "warmup_steps": warmup_steps, "t0_steps": warmup_steps}
        options |= {"weight_decay": theirs["weight_decay"], **_PUBLISHED_OPTIONS}
        if "aux_update_type" in theirs:
            options["scale"] = "match_rms" if theirs["aux_update_type"] == "adamw" else "spectral"
        lr = float(theirs["lr"]) if k > 0 else 0.0
        c = theirs.get("ckp1", 1.0)
        reference = theirs.get("c_warmup", 1.0 / warmup_steps)  # which is not read before T0
        group = _group(theirs, ours, options, mode)
        group |= {"lr_max": lr, "lr_t": lr, "c_t": c, "beta_t": theirs["beta1"]}
        group["reference_window"] = averaging_window(reference, 0.0)
        if k > 0:
            _check_averaging({**ours, **group})
            if lr == 0.0 and theirs["weight_sum"] > 0 and ours["weight_lr_power"] > 0:
                raise ValueError(
                    "state_dict was saved after a step with a learning rate of 0, and the largest one so "
                    "far, which the averaging goes on from, is not in it: convert one saved before that"
                )
        groups.append(group)
        ids = theirs["params"]
        if theirs["update_type"] == "muon":  # whose parameters the released code sorts by shape
            shapes = [tuple(parameter.shape) for parameter in ours["params"]]
            order = sorted(range(len(shapes)), key=shapes.__getitem__, reverse=True)
            ids = [i for _, i in sorted(zip(order, ids, strict=True))]
            group["params"] = ids
        group.pop("param_names", None)  # which it does not sort
        states |= _states(state_dict, ids, ours, group)
    return {"state": states, "param_groups": groups}


def _paired(
    state_dict: Mapping[str, Any], optimizer: torch.optim.Optimizer, maker: str, keys: Sequence[str]
) -> list[tuple[Group, Group]]:
    """The groups of a state dict with those of the optimizer.

    Raises:
        ValueError: If they do not correspond, or lack keys that its maker gives them.
    """
    found, groups = state_dict.get("param_groups", ()), unwrapped(optimizer).param_groups
    missing = sorted({key for group in found for key in keys if key not in group})
    if missing or not found or "state" not in state_dict:
        lack = f"its groups lack {', '.join(missing)}" if missing else "it has no 'state' or 'param_groups'"
        raise ValueError(f"state_dict must be of {maker}: {lack}")
    sizes = [[len(group["params"]) for group in side] for side in (found, groups)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"state_dict must have the same parameter groups: it has groups of {sizes[0]} parameters, the "
            f"optimizer of {sizes[1]}"
        )
    return list(zip(found, groups, strict=True))


def _check_direction(group: Group, direction: str) -> None:
    if group["params"] and group["direction"] != direction:
        raise ValueError(
            f"{describe(group, 0)} has direction {group['direction']!r}, but its state is for {direction!r}: "
            f"build the optimizer with direction={direction!r} for its group"
        )


def _group(theirs: Group, ours: Group, options: Mapping[str, Any], mode: Mode) -> Group:
    """A group in the first format of our state dicts, whose sum of weights is the plain one, as theirs."""
    group = {key: theirs[key] for key in FOREIGN_KEYS if key in theirs}
    clock = {"t": theirs["k"], "weight_sum": float(theirs["weight_sum"]), "skipped_steps": 0, "mode": mode}
    return group | {"direction": ours["direction"]} | dict(options) | clock


def _states(
    state_dict: Mapping[str, Any], ids: Sequence[Any], ours: Group, group: Group
) -> dict[Any, dict[str, Any]]:
    """The state of a group's parameters; z and momenta are theirs, and fresh where there were no steps."""
    states = {}
    settings = {**ours, **group}
    for i, parameter in zip(ids, ours["params"], strict=True):
        theirs = state_dict["state"].get(i) or {}
        if "z" in theirs:
            tensors = {name: theirs[name] for name in kept_tensors(parameter, settings) if name in theirs}
            states[i] = {"step": group["t"], "beta": group["beta_t"], **tensors}
        else:
            states[i] = dict(initial_state(parameter, settings))
    return states


def _check_averaging(group: Group) -> None:
    """Check that the c and beta of the last step follow from the options.

    Raises:
        ValueError: If they do not.
    """
    k, window = group["t"], averaging_window(group["c_t"], 0.0)
    c = k ** group["r"] * group["lr_t"] ** group["weight_lr_power"] / (group["weight_sum"] or 1.0)
    beta = schedule_of(group).beta(k, window, group["reference_window"])
    for name, told, found, options in (
        ("averaging coefficient", c, group["c_t"], ("r", "weight_lr_power")),
        ("beta", beta, group["beta_t"], ("beta1", "rho")),
    ):
        if not math.isclose(float(told), found, rel_tol=1e-6):
            values = " and ".join(f"{option}={group[option]!r}" for option in options)
            raise ValueError(
                f"state_dict has the {name} {found:.6g} at step {k}, but {values} of the optimizer give "
                f"{float(told):.6g}: build it with the values of the run"
            )
