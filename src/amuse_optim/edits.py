"""Weights that a user edits between steps, and what z and x make of it."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .optimizer import AMUSE, unwrapped
from .sharding import gather_anew
from .state import averages_of, initial_state, sequences, store_sequences


@torch.inference_mode(False)
@torch.no_grad()
def accept_weights(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor] | None = None) -> None:
    """Go on from weights that were set between steps: z and the averages become the parameter as it stands.

    For weights that were loaded, reset or pruned in the middle of a training. Momenta, step counts and the
    schedule's clock stay. State in bfloat16 takes the weights over as precisely as it can.

    Args:
        optimizer: An `AMUSE` in train or eval mode, or a framework's wrapper around one. What the parameters
            hold becomes z, x and y.
        parameters: Parameters of the optimizer whose weights were set; None means all of them. Where the
            state of one is gone, it is made anew.

    Raises:
        ValueError: For a parameter that the optimizer does not have.

    Example:
        >>> import torch
        >>> from amuse_optim import AMUSE, accept_weights, averaged_state_dict
        >>> layer = torch.nn.Linear(2, 2)
        >>> optimizer = AMUSE(layer.parameters(), direction="adamw", warmup_steps=2)
        >>> layer(torch.ones(2)).sum().backward()
        >>> optimizer.step()
        >>> with torch.no_grad():
        ...     weight = layer.weight.fill_(7.0)
        >>> accept_weights(optimizer, [layer.weight])
        >>> averaged_state_dict(layer, optimizer)["weight"].unique()
        tensor([7.])
    """
    amuse = unwrapped(optimizer)
    chosen = _chosen(amuse, parameters)
    for group in amuse.param_groups:
        for parameter in group["params"]:
            if parameter in chosen and not {"step", "beta"} <= amuse.state.get(parameter, {}).keys():
                amuse.state[parameter] = initial_state(parameter, group)
    for _, parameter, state in amuse.members():
        if parameter in chosen:
            value = parameter.detach().clone()
            for average in averages_of(state):
                average.copy_(value)
            store_sequences(parameter, state, value, value, amuse.mode, amuse.readout)
    gather_anew(chosen)
    amuse.versions = amuse.versions.accepted(chosen)


@torch.inference_mode(False)
@torch.no_grad()
def project(
    optimizer: torch.optim.Optimizer,
    function: Callable[[Tensor], object],
    parameters: Iterable[Tensor] | None = None,
) -> None:
    """Apply a function in place to z and the averages, and rebuild y from them: for masks and bounds.

    Edits of the parameter alone do not reach x, which is decoded from it. Call this after every step that may
    leave the set. Entries that a mask makes 0 are 0 in all three; bounds hold up to rounding, and for y if
    the set is convex.

    Args:
        optimizer: An `AMUSE` in train or eval mode, or a framework's wrapper around one.
        function: Changes a tensor of the parameter's shape in place, in the precision that z and x are
            computed in.
        parameters: Which ones; by default all that the optimizer has.

    Raises:
        ValueError: For a parameter that the optimizer does not have, or a function that returns another
            tensor instead of changing the one it is given. What this or `function` raises for one parameter
            leaves that one as it was; those before it have been changed.

    Example:
        >>> import torch
        >>> from amuse_optim import AMUSE, project
        >>> layer = torch.nn.Linear(2, 2)
        >>> optimizer = AMUSE(layer.parameters(), direction="adamw", warmup_steps=2)
        >>> mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> project(optimizer, lambda tensor: tensor.mul_(mask), [layer.weight])
        >>> layer.weight.count_nonzero()
        tensor(2)
    """
    amuse = unwrapped(optimizer)
    chosen = _chosen(amuse, parameters)
    done = set()
    try:
        for _, parameter, state in amuse.members():
            if parameter in chosen:
                z, x, _ = sequences(parameter, state, amuse.mode)
                averages = averages_of(state)
                new_z, new_x, *others = (_changed(tensor.clone(), function) for tensor in (z, x, *averages))
                for average, other in zip(averages, others, strict=True):
                    average.copy_(other)
                store_sequences(parameter, state, new_z, new_x, amuse.mode, amuse.readout)
                done.add(parameter)
    finally:
        gather_anew(done)
        amuse.versions = amuse.versions.accepted(done)


def _changed(tensor: Tensor, function: Callable[[Tensor], object]) -> Tensor:
    """The tensor, after the function has changed it.

    Raises:
        ValueError: If the function returns another one.
    """
    returned = function(tensor)
    if isinstance(returned, Tensor) and returned is not tensor:
        raise ValueError(
            "function must change the tensor in place, it returned another one: use mul_ for a mask, clamp_ "
            "for a bound, copy_ for anything else"
        )
    return tensor


def _chosen(optimizer: AMUSE, parameters: Iterable[Tensor] | None) -> set[Tensor]:
    """The parameters that are meant.

    Raises:
        ValueError: For one that the optimizer does not have.
    """
    present = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if parameters is None:
        return present
    chosen = {parameters} if isinstance(parameters, Tensor) else set(parameters)
    for parameter in chosen - present:
        raise ValueError(
            f"parameters must be the optimizer's own, got one of shape {tuple(parameter.shape)} that is not: "
            "pass the parameters themselves, not copies or state"
        )
    return chosen
