"""What is looked at before a step begins, because it could stop the step halfway."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .buckets import Group, State
from .options import check_options, describe
from .ranks import Division
from .sharding import copies, is_sharded, local, placed_like
from .state import kept_names_in, started

Gradients = dict[Tensor, Tensor]


class Look(NamedTuple):
    """The groups and gradients of a step, checked before it.

    Args:
        active: The groups that take part, by their index in the optimizer.
        gradients: The gradient of each parameter that takes part.
        usable: False if the step is to be skipped.
        measuring: Whether telemetry is measured in this step, on this rank or any other.
    """

    active: dict[int, Group]
    gradients: Gradients
    usable: bool
    measuring: bool


def looked_at(
    groups: Sequence[Group],
    states: Mapping[Tensor, State],
    division: Division | None,
    *,
    measuring: bool,
    problem: Exception | None = None,
) -> Look | None:
    """Look at everything that could stop a step halfway, before it begins and anything changes.

    Where ranks share parameters they find out together, in one collective for each set of ranks, which
    parameters have a gradient anywhere, and whether anything stops any of them.

    Args:
        groups: All groups of the optimizer.
        states: The state of their parameters.
        division: Who orthogonalizes what, where ranks share parameters.
        measuring: Whether telemetry is measured on this rank.
        problem: What has stopped this rank already.

    Returns:
        What was found; None if a rank has other groups than those of the division: it has to be made anew.

    Raises:
        ValueError: For what `check_ready` finds, and for parameters that several ranks hold a copy of, with a
            gradient on some ranks alone.
        TypeError: For a sparse gradient.
        FloatingPointError: For an infinite or NaN gradient with `nonfinite="raise"`.
        RuntimeError: If another rank found something.
    """
    gradients = {p: p.grad for group in groups for p in group["params"] if p.grad is not None}
    bad: list[list[str]] = [[] for _ in groups]
    try:
        if problem is None:
            bad = _examined(groups, states, gradients)
    except Exception as error:  # the other ranks are told before it goes on
        problem = error
    totals: Sequence[int] = [len(names) for names in bad]
    if division is not None:
        current = division.follows(groups)
        flags = [not current, problem is not None, measuring]
        numbers = [*map(int, flags), *(totals if current else [0] * division.groups)]
        having, (changed, failed, asked, *totals) = division.agree(gradients, numbers)
        if problem is None and failed:
            raise RuntimeError(
                "another rank refused the step, and its error says why; nothing was changed on any rank"
            )
        if problem is None and changed:
            return None
        measuring = asked > 0
    if problem is not None:
        raise problem
    if division is not None:
        _complete(gradients, groups, having, division)
        gradients = {parameter: placed_like(gradients[parameter], parameter) for parameter in gradients}
    active = {n: group for n, group in enumerate(groups) if any(p in gradients for p in group["params"])}
    usable = [_usable(group, names, total) for group, names, total in zip(groups, bad, totals, strict=True)]
    return Look(active, gradients, all(usable), measuring)


def _complete(
    gradients: Gradients, groups: Iterable[Group], having: Mapping[Tensor, int], division: Division
) -> None:
    """Zeros for shards without a gradient of parameters that have one on other ranks.

    Raises:
        ValueError: If several ranks hold the same part of it: their copies would not stay equal.
    """
    for group in groups:
        for index, parameter in enumerate(group["params"]):
            count = having.get(parameter, 0)
            ranks = division.shared[parameter].members.size if count else 0
            if count == ranks:
                continue
            if copies(parameter) > 1 or not is_sharded(parameter):
                raise ValueError(
                    f"{describe(group, index)} has a gradient on {count} of {ranks} ranks, and copies of it "
                    "would not stay equal: compute it on all of these ranks, or on none"
                )
            if parameter not in gradients:
                # As the other ranks have it: all must put it into the same bucket.
                dtype = getattr(parameter, "grad_dtype", None)
                gradients[parameter] = torch.zeros_like(parameter, dtype=dtype)


def _examined(
    groups: Sequence[Group], states: Mapping[Tensor, State], gradients: Gradients
) -> list[list[str]]:
    """For every group, the parameters of this rank whose gradient is not finite."""
    for group in groups:
        if any(p in gradients for p in group["params"]):
            check_ready(group, states, gradients)
    examined: list[list[tuple[int, Tensor]]] = []
    for group in groups:
        present = [(i, local(gradients[p])) for i, p in enumerate(group["params"]) if p in gradients]
        for i, gradient in present:
            if gradient.layout != torch.strided:
                raise TypeError(
                    f"the gradient of {describe(group, i)} is sparse, which AMUSE does not support: "
                    "build the embedding with sparse=False"
                )
        ignored = group["nonfinite"] == "ignore"
        examined.append([] if ignored else [(i, grad) for i, grad in present if grad.numel() > 0])
    if _all_finite([[gradient for _, gradient in present] for present in examined if present]):
        return [[] for _ in groups]
    # A norm overflows where no entry does: only now is it worth looking at every entry.
    return [
        [describe(group, i) for i, gradient in present if not gradient.isfinite().all()]
        for group, present in zip(groups, examined, strict=True)
    ]


def _usable(group: Group, names: Sequence[str], total: int) -> bool:
    """False if the step is to be skipped, because of gradients here (these) or on any rank (so many)."""
    if total and group["nonfinite"] == "raise":
        found = "gradients on another rank are not finite"
        if names:
            share = f"{len(names)} of {len(group['params'])} parameters of the group"
            found = f"the gradient of {names[0]} is not finite ({share})"
        raise FloatingPointError(
            f"{found}. Nothing was changed. Lower the learning rate or clip, or pass nonfinite='skip'"
        )
    return not total


def check_ready(group: Group, states: Mapping[Tensor, State], gradients: Mapping[Tensor, Tensor]) -> None:
    """Everything about a group that could stop a step halfway, before the step begins.

    Raises:
        ValueError: For an option that was changed to something impossible, or state that does not fit the
            parameter any more.
    """
    check_options(group)
    names_of = kept_names_in(group)
    for index, parameter in enumerate(group["params"]):
        if parameter not in gradients:
            continue
        try:
            names, like_parameter = names_of(parameter)
        except ValueError as error:
            raise ValueError(f"{describe(group, index)}: {error}") from error
        state = states[parameter]
        shape = gradients[parameter].shape
        if shape != parameter.shape:
            raise ValueError(
                f"the gradient of {describe(group, index)} has the shape {tuple(shape)}: the "
                "parameter was replaced after the backward pass; compute its gradient again"
            )
        if not started(state):
            if parameter.is_inference():
                raise ValueError(
                    f"{describe(group, index)} was made under torch.inference_mode and cannot be trained: "
                    "make the model outside of it"
                )
            continue
        if isinstance(state["step"], Tensor) and not group["capturable"]:
            raise ValueError(
                f"{describe(group, index)} has its step count on the device, from capturable=True: to turn "
                "that off, save the optimizer's state dict and load it into one without capturable=True"
            )
        if not names <= state.keys():
            missing = [name for name in names if name not in state]
            raise ValueError(
                f"{describe(group, index)} ({parameter.dtype}) needs {', '.join(missing)} in its state: its "
                "dtype, or an option that decides what is kept (beta1, direction, auxiliary_momentum, "
                "averages), was changed after its first step. Change it before, or build a new optimizer"
            )
        kept: Tensor = state[like_parameter[0]]
        # A transposed .data has the whole's shape but not the parts'; a full state dict is not sharded.
        if is_sharded(parameter) != is_sharded(kept) or local(parameter).shape != local(kept).shape:
            raise ValueError(
                f"{describe(group, index)} does not fit its state, of shape {tuple(kept.shape)}"
                f"{' in shards' if is_sharded(kept) else ''}: it was replaced or sharded after its "
                "first step. Build a new optimizer for it, or load state that was saved for it"
            )
        if kept.is_inference():
            raise ValueError(
                f"the state of {describe(group, index)} was made under torch.inference_mode, by a copy of "
                "the optimizer perhaps, and cannot be written to: load a state dict outside of it"
            )
        if parameter.device != kept.device:
            raise ValueError(
                f"{describe(group, index)} is on {parameter.device}, its state on {kept.device}: move "
                "the model before the first step, or save, move, and load the optimizer's state dict"
            )


def _all_finite(groups: Sequence[Sequence[Tensor]]) -> bool:
    """Whether the norm of each gradient is finite; waits for the device once."""
    norms = [norm for gradients in groups for norm in torch._foreach_norm(list(gradients))]
    if not norms:
        return True
    device = norms[0].device
    return bool(torch.stack([norm.to(device, torch.float32) for norm in norms]).isfinite().all())
