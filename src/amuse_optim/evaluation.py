"""Reading the average x: for evaluation, for shipping, for BatchNorm statistics."""

import contextlib
import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .optimizer import AMUSE, unwrapped
from .reference import AMUSEReference
from .state import averaged_value

# Blocks of `averaged` may begin and end in several threads.
_switching = threading.RLock()


@contextlib.contextmanager
def averaged(optimizer: torch.optim.Optimizer, *, kappa: float | None = None) -> Iterator[None]:
    """Context manager: eval mode at the averaged weights x; on exit the parameters are restored bit for bit.

    Blocks of one average may be nested, and may overlap (threads, asyncio): y then comes back after the last
    of them.

    Args:
        optimizer: An `AMUSE` in train or eval mode, a framework's wrapper around one, or an `AMUSEReference`.
        kappa: One of the optimizer's `averages`, to be read instead of x.

    Raises:
        ValueError: If no average with this kappa is kept.
        OptimizerModeError: Inside a block of another average, and from `optimizer.step()` inside the block.

    Example:
        >>> import torch
        >>> from amuse_optim import AMUSE, averaged
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = AMUSE([weight], direction="sgd", warmup_steps=2)
        >>> with averaged(optimizer):
        ...     norm = weight.norm()
    """
    amuse: Any = optimizer if isinstance(optimizer, AMUSEReference) else unwrapped(optimizer)
    with _switching:
        block = [amuse.mode]
        show = amuse.eval if kappa is None else partial(amuse.eval, kappa=kappa)
        show()
        amuse.averaged_blocks = (*getattr(amuse, "averaged_blocks", ()), block)
    try:
        yield
    finally:
        with _switching:
            blocks = amuse.averaged_blocks
            younger = next((other for earlier, other in pairwise(blocks) if earlier is block), None)
            amuse.averaged_blocks = tuple(other for other in blocks if other is not block)
            if younger is not None:  # a block that began within this one and still reads x
                younger[:] = block
            elif block == ["train"]:
                amuse.train()
            else:
                show()


@torch.no_grad()
def averaged_state_dict(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, kappa: float | None = None
) -> dict[str, Tensor]:
    """The model's state dict with the average x in place of its parameters: the model to ship.

    Neither the model nor the optimizer is touched. Parameters that are not in the optimizer, and buffers,
    are copied as they are; parameters shared under several names stay shared.

    Args:
        model: The model that the optimizer trains.
        optimizer: An `AMUSE` in train or eval mode, or a framework's wrapper around one.
        kappa: One of the optimizer's `averages`, to be shipped instead of x.

    Returns:
        New tensors under the names of `model.state_dict()`, in the parameters' dtypes.

    Raises:
        ValueError: If no average with this kappa is kept, if none of the model's parameters is in the
            optimizer, or if one of those that are is missing in the model's state dict because a hook changes
            it; call `model.state_dict()` inside `averaged(optimizer)` instead.
        OptimizerModeError: Inside a block of another average.

    Example:
        >>> import torch
        >>> from amuse_optim import AMUSE, averaged_state_dict, param_groups
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = AMUSE(param_groups(model), warmup_steps=10)
        >>> sorted(averaged_state_dict(model, optimizer))
        ['bias', 'weight']
    """
    amuse = unwrapped(optimizer)
    trained = {parameter: state for _, parameter, state in amuse.members()}
    amuse.check_readout(kappa)
    amuse.notice_edits()
    expected = {parameter for parameter in model.parameters() if parameter in trained}
    if not expected:
        raise ValueError(
            "none of the model's parameters is in the optimizer: is it another model's optimizer?"
        )

    copies: dict[object, Tensor] = {}
    held = model.state_dict(keep_vars=True)
    shipped = copy.copy(held)  # with the versions of modules that torch keeps beside the entries
    for name, value in held.items():
        if not isinstance(value, Tensor):
            shipped[name] = value
            continue
        if value not in copies:
            at_y = value in expected and amuse.mode == "train"
            x = averaged_value(value, trained[value], kappa) if at_y else value.detach().clone()
            copies[value] = x.to(value.dtype)
        shipped[name] = copies[value]
    missing = sum(parameter not in copies for parameter in expected)
    if missing:
        raise ValueError(
            f"{missing} of the optimizer's parameters do not appear in the model's state dict, which a hook "
            "seems to rewrite: take model.state_dict() inside `with averaged(optimizer):` instead"
        )
    return shipped


@torch.no_grad()
def refresh_batch_norm(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[Any], object] | None = None,
    layers: Callable[[str, nn.Module], bool] | None = None,
) -> None:
    """Recompute BatchNorm's running statistics at the current parameters.

    Running statistics gathered in training belong to y; call this inside `averaged(optimizer)` before
    evaluating x. The new statistics are the plain mean over the batches. Of the BatchNorm layers only those
    that are refreshed are in training mode meanwhile; their momentum and training flags and the random state
    are restored afterwards. All other modules stay in their mode: call `model.eval()` before for statistics
    without Dropout. Layers that `forward` does not reach keep their statistics, and all layers do if anything
    raises.

    Frozen layers keep their statistics: those whose parameters all have `requires_grad=False`, and those in
    eval mode while the model, or another BatchNorm layer, is in training mode.

    Args:
        model: The model; without BatchNorm layers that track running statistics nothing is done.
        batches: At least one batch, each as `forward` takes it.
        forward: Function that runs the model on one batch. None calls `model(batch)`, or `model(batch[0])`
            if the batch is a tuple or list such as (inputs, targets).
        layers: Function from the name of a BatchNorm layer and the layer to whether it is refreshed. None
            refreshes all that are not frozen.

    Raises:
        ValueError: If `batches` is empty.

    Example:
        >>> import torch
        >>> from amuse_optim import AMUSE, averaged, param_groups, refresh_batch_norm
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
        >>> optimizer = AMUSE(param_groups(model), warmup_steps=10)
        >>> with averaged(optimizer):
        ...     refresh_batch_norm(model, [torch.randn(16, 4) for _ in range(3)])
    """
    tracking = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    }
    by_mode = model.training or any(layer.training for layer in tracking.values())
    refreshed = [
        layer
        for name, layer in tracking.items()
        if not _is_frozen(layer, by_mode) and (layers is None or layers(name, layer))
    ]
    if not refreshed:
        return
    run = forward or (lambda batch: model(batch[0] if isinstance(batch, (tuple, list)) else batch))
    before = [(m.momentum, {k: v.clone() for k, v in m.named_buffers()}) for m in refreshed]
    modes = [(layer, layer.training) for layer in tracking.values()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    seen = 0
    try:
        with torch.random.fork_rng(devices=devices):
            for layer in tracking.values():
                layer.training = layer in refreshed  # the others keep to their statistics
            for layer in refreshed:
                layer.reset_running_stats()
                layer.momentum = None  # torch's name for the plain mean over batches
            for batch in batches:
                run(batch)
                seen += 1
        if not seen:
            raise ValueError("batches must not be empty: there is nothing to compute statistics from")
        for layer, (_, buffers) in zip(refreshed, before, strict=True):
            if layer.num_batches_tracked == 0:  # an auxiliary head, say, which only training uses
                for name, value in buffers.items():
                    layer.get_buffer(name).copy_(value)
    except BaseException:
        for layer, (_, buffers) in zip(refreshed, before, strict=True):
            for name, value in buffers.items():
                layer.get_buffer(name).copy_(value)
        raise
    finally:
        for layer, (momentum, _) in zip(refreshed, before, strict=True):
            layer.momentum = momentum
        for layer, training in modes:
            layer.training = training


def _is_frozen(layer: nn.Module, by_mode: bool) -> bool:
    """Whether a layer is left alone by the training; `by_mode` says whether its mode can tell."""
    parameters = list(layer.parameters())
    untrained = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
    return untrained or (by_mode and not layer.training)


class Attachment:
    """Handle that `attach` returns; `remove()` undoes the attachment."""

    def __init__(self, optimizer: AMUSE, model: nn.Module) -> None:
        self._optimizer, self._model = optimizer, model
        vars(model)["train"] = self._switch
        # Lightning calls modules inside the attached one, not the attached one itself.
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            *(
                module.register_forward_pre_hook(self._before_forward, prepend=True)
                for module in (model, *model.children())
            ),
        ]
        self._follow()

    def _switch(self, mode: bool = True) -> nn.Module:
        type(self._model).train(self._model, mode)
        self._follow()
        return self._model

    def _follow(self) -> None:
        """Take the mode of the model's flag; within `averaged` the next forward pass after it does."""
        if self._optimizer.averaged_blocks:
            return
        if self._model.training:
            self._optimizer.train()
        else:
            self._optimizer.eval()

    def _before_forward(self, *_: object) -> None:
        """Follow the model's flag, if it was set by hand or a state of the other mode was loaded."""
        if not torch.compiler.is_compiling():
            self._follow()

    def _before_step(self, *_: object) -> None:
        """Follow the flag before a closure runs; not where there are gradients of what is shown now."""
        groups = self._optimizer.param_groups
        if not any(parameter.grad is not None for group in groups for parameter in group["params"]):
            self._before_forward()

    def gives_way_to(self, optimizer: AMUSE) -> bool:
        """Whether this is of another optimizer, which has some of the same parameters."""
        ours = {parameter for group in self._optimizer.param_groups for parameter in group["params"]}
        theirs = (parameter for group in optimizer.param_groups for parameter in group["params"])
        return self._optimizer is not optimizer and any(parameter in ours for parameter in theirs)

    def remove(self) -> None:
        """Undo `attach`: `model.train()` and `model.eval()` no longer switch the optimizer's mode."""
        vars(self._model).pop("train", None)
        for handle in self._handles:
            handle.remove()


def attach(optimizer: torch.optim.Optimizer, model: nn.Module) -> Attachment:
    """Make `model.eval()` and `model.train()` switch the optimizer's mode too.

    Within `averaged` the parameters stay x, whatever the model is switched to. Where the modes have come
    apart, because of that, because `module.training` was set by hand or a state of the other mode was loaded,
    the next forward pass of the model or of a direct child sets the optimizer right, unless that pass is
    compiled as a whole or within `averaged`; so does a step that is given a closure and has no gradients yet.
    Under Lightning, which sets flags by hand and saves by itself, use
    `amuse_optim.integrations.lightning.AMUSECallback` instead.

    Args:
        optimizer: The `AMUSE` of the model's parameters, or a framework's wrapper around it. If the model is
            attached to another optimizer of the same parameters, this one takes its place.
        model: The model. `copy.deepcopy` of it copies the attached optimizer as well.

    Returns:
        A handle; its `remove()` undoes the attachment.

    Raises:
        ValueError: If this model is attached to this optimizer already, or to one of other parameters.

    Example:
        >>> import torch
        >>> from amuse_optim import AMUSE, attach, param_groups
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = AMUSE(param_groups(model), warmup_steps=10)
        >>> handle = attach(optimizer, model)
        >>> _ = model.eval()
        >>> optimizer.mode
        'eval'
    """
    amuse = unwrapped(optimizer)
    if "train" in vars(model):
        attached = getattr(vars(model)["train"], "__self__", None)
        if not (isinstance(attached, Attachment) and attached.gives_way_to(amuse)):
            raise ValueError("this model is attached to an optimizer already; remove() that handle first")
        attached.remove()
    return Attachment(amuse, model)
