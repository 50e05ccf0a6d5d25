"""What is looked at before a step begins, because it could stop the step halfway."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .buckets import Group, State
from .options import check_options, describe
from .sharding import is_sharded, local, summed
from .state import kept_names_in, started


def check_ready(group: Group, states: Mapping[Tensor, State]) -> None:
    """Everything about a group that could stop a step halfway, before the step begins.

    Raises:
        ValueError: For an option that was changed to something impossible, or state that does not fit the
            parameter any more.
    """
    check_options(group)
    names_of = kept_names_in(group)
    for index, parameter in enumerate(group["params"]):
        if parameter.grad is None:
            continue
        names, like_parameter = names_of(parameter)
        state = states[parameter]
        if parameter.grad.shape != parameter.shape:
            raise ValueError(
                f"the gradient of {describe(group, index)} has the shape {tuple(parameter.grad.shape)}: the "
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
                "dtype, or an option such as beta1, was changed after its first step. Change it before the "
                "first step, or build a new optimizer"
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


def gradients_usable(groups: list[Group]) -> bool:
    """Check every gradient before anything changes; False if the step is to be skipped."""
    skip = False
    for group in groups:
        present = [(i, local(p.grad)) for i, p in enumerate(group["params"]) if p.grad is not None]
        for i, gradient in present:
            if gradient.layout != torch.strided:
                raise TypeError(
                    f"the gradient of {describe(group, i)} is sparse, which AMUSE does not support: "
                    "build the embedding with sparse=False"
                )
        present = [(i, gradient) for i, gradient in present if gradient.numel() > 0]
        if group["nonfinite"] == "ignore":
            continue
        bad = [describe(group, i) for i in _not_finite(present)]
        anywhere = len(bad)
        if any(is_sharded(parameter) for parameter in group["params"]):  # all ranks do the same
            count = torch.tensor(len(bad), device=group["params"][0].device)
            anywhere = int(summed(count, group["params"]))
        if not anywhere:
            continue
        if group["nonfinite"] == "raise":
            whose = f"the gradient of {bad[0]} is" if bad else "gradients on another rank are"
            raise FloatingPointError(
                f"{whose} not finite ({anywhere} of {len(group['params'])} parameters of the group). Nothing "
                "was changed. Lower the learning rate or clip, or pass nonfinite='skip'"
            )
        skip = True
    return not skip


def _not_finite(gradients: list[tuple[int, Tensor]]) -> list[int]:
    """The indices of those with an infinite or NaN entry."""
    if not gradients:
        return []
    norms = torch._foreach_norm([gradient for _, gradient in gradients])
    if torch.stack([norm.to(norms[0].device) for norm in norms]).isfinite().all():
        return []
    # A norm overflows where no entry does: only now is it worth looking at every entry.
    return [i for i, gradient in gradients if not gradient.isfinite().all()]
