"""A loss over fixed batches as a function of parameters, and how a module becomes one."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.attention import SDPBackend, sdpa_kernel

from .coordinates import Coordinates

Parameters = dict[str, Tensor]
Loss = Callable[[Parameters, Any], Tensor]
Run = Callable[..., Any]

REPEATED_WITHIN = 1e3
"""Largest relative difference, in units of the dtype's epsilon, of two evaluations that count as the same."""


@dataclass(frozen=True)
class CompositeLoss:
    """A loss in two parts, `criterion(outputs(parameters, batch), batch)`, for `gauss_newton`.

    Args:
        outputs: Function of parameters by name and a batch that returns the model's outputs, one tensor.
        criterion: Function of outputs and a batch that returns the mean loss of the batch, a scalar.
    """

    outputs: Loss
    criterion: Callable[[Tensor, Any], Tensor]

    def __call__(self, parameters: Parameters, batch: Any) -> Tensor:
        """The mean loss of a batch."""
        return self.criterion(self.outputs(parameters, batch), batch)


def first_of_batch(run: Run, batch: Any) -> Tensor:
    """The outputs for the first element of a batch such as (inputs, targets)."""
    outputs: Tensor = run(batch[0])
    return outputs


def module_loss(
    module: nn.Module,
    criterion: Callable[[Tensor, Any], Tensor],
    *,
    forward: Callable[[Run, Any], Tensor] = first_of_batch,
    buffers_may_change: bool = False,
) -> CompositeLoss:
    """Make a loss of parameters out of a module, which is only ever read.

    The module runs on the parameters that the loss is given, on detached ones of its own for names that it is
    not given, and on copies of its buffers, in the precision of the parameters. Its mode is the one it has
    when the loss is called.

    Args:
        module: The model. Call `module.eval()` first unless the loss of the train mode is wanted.
        criterion: Function of the module's outputs and a batch that returns the mean loss, a scalar.
        forward: Function of `run` and a batch that returns the outputs, where `run` is called like the
            module. The default is `run(batch[0])`.
        buffers_may_change: Whether a forward pass may change buffers. The changes are dropped.

    Returns:
        The loss.

    Raises:
        ValueError: When the loss is called and the forward pass changes a buffer, as BatchNorm's does in
            train mode, unless `buffers_may_change`.

    Example:
        >>> import torch
        >>> from amuse_optim.landscape import module_loss
        >>> model = torch.nn.Linear(2, 1)
        >>> loss = module_loss(model, lambda outputs, batch: (outputs - batch[1]).square().mean())
        >>> zeros = {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}
        >>> loss(zeros, (torch.ones(3, 2), torch.full((3, 1), 2.0)))
        tensor(4.)
    """

    def outputs(parameters: Parameters, batch: Any) -> Tensor:
        dtype = next(iter(parameters.values())).dtype
        kept = {name: value.detach() for name, value in module.named_parameters() if name not in parameters}
        buffers = {
            name: value.to(dtype, copy=True) if value.is_floating_point() else value.clone()
            for name, value in module.named_buffers()
        }
        before = {name: value.clone() for name, value in buffers.items()}
        state = {**kept, **parameters, **buffers}  # functional_call puts reassigned buffers into it
        returned = forward(lambda *args, **kwargs: functional_call(module, state, args, kwargs), batch)
        for name, value in before.items():
            if not (buffers_may_change or torch.equal(state[name], value)):
                raise ValueError(
                    f"buffer {name!r} must not change in a forward pass: call module.eval() first "
                    "(BatchNorm then uses its running statistics), or pass buffers_may_change=True to "
                    "module_loss if the loss of the train mode is wanted"
                )
        return returned

    return CompositeLoss(outputs, criterion)


class Objective:
    """The mean of a loss over fixed batches, as a function of parameters.

    Everything is computed batch by batch, so that memory is that of one batch, with
    `scaled_dot_product_attention` in its plain mathematical form (fused attention has no second derivatives
    on CPUs), and leaves torch's global random state as it was.

    Args:
        loss: Function of parameters by name and a batch that returns the mean loss of the batch, a scalar,
            such as `module_loss` makes. It must be differentiable by `torch.func`.
        batches: The batches, kept as they are.
        weights: What each batch counts in the mean, such as its number of unmasked tokens. By default its
            number of rows: the first dimension of the first tensor in it.

    Raises:
        ValueError: If there are no batches, or the weights do not fit them.
    """

    def __init__(self, loss: Loss, batches: Iterable[Any], *, weights: Sequence[float] | None = None) -> None:
        self.loss = loss
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed even where it does not shuffle
            self.batches = tuple(batches)
        if not self.batches:
            raise ValueError("batches must not be empty")
        weights = [rows(batch) for batch in self.batches] if weights is None else weights
        fits = len(weights) == len(self.batches) and all(0 < weight < math.inf for weight in weights)
        if not fits:
            raise ValueError(
                f"weights must be {len(self.batches)} positive numbers, one for each batch, got {weights!r}"
            )
        self.weights = tuple(weight / sum(weights) for weight in weights)

    def mean(self, of: Callable[[Any], Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        """The weighted mean over batches of what a function returns for each of them.

        Args:
            of: Function of a batch that returns a tensor, of one shape for all batches.
            parameters: The tensors that the function uses, by name; the random state of their devices is
                restored.
        """
        with unchanged_random_state(parameters), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            return self._mean(of)

    def _mean(self, of: Callable[[Any], Tensor]) -> Tensor:
        mean: Tensor | None = None
        for weight, batch in zip(self.weights, self.batches, strict=True):
            value = of(batch).mul(weight)
            mean = value if mean is None else mean + value
        assert mean is not None  # there are batches
        return mean

    def value(self, parameters: Parameters) -> Tensor:
        """The mean loss, a scalar.

        Args:
            parameters: The point to evaluate at, tensors by name as `loss` takes them.
        """
        return self.mean(lambda batch: self.loss(parameters, batch), parameters)

    def gradient(self, parameters: Parameters) -> Parameters:
        """The gradient of the mean loss, by name.

        Args:
            parameters: The point to evaluate at, tensors by name: all float32 or all float64, on one device.
        """
        coordinates = Coordinates.of(parameters)
        fixed = {name: value.detach() for name, value in parameters.items()}
        return coordinates.unflatten(
            self.mean(lambda batch: self._value_and_gradient(fixed, batch)[1:], fixed)
        )

    def _value_and_gradient(self, parameters: Parameters, batch: Any) -> Tensor:
        gradient, value = grad_and_value(self.loss)(parameters, batch)
        return torch.cat([value.reshape(1), *(gradient[name].flatten() for name in parameters)])

    def check_determinism(self, parameters: Parameters) -> None:
        """Check that two evaluations give the same loss and the same gradient.

        Args:
            parameters: The point to evaluate at, tensors by name.

        Raises:
            ValueError: If they differ by more than rounding.
        """
        with unchanged_random_state(parameters), sdpa_kernel(SDPBackend.MATH):
            first, again = (
                self._mean(lambda batch: self._value_and_gradient(parameters, batch)) for _ in range(2)
            )
        within = REPEATED_WITHIN * torch.finfo(first.dtype).eps
        for what, one, other in (("loss", first[:1], again[:1]), ("gradient", first[1:], again[1:])):
            if not one.isfinite().all():
                raise ValueError(
                    f"the {what} at these parameters must be finite: check parameters and batches"
                )
            if (one - other).norm() > within * one.norm():
                raise ValueError(
                    f"loss must be deterministic, got a {what} of norm {one.norm().item():.9g} and then one "
                    f"that differs by {(one - other).norm().item():.3g} for the same parameters and batches. "
                    "Call model.eval() for dropout and the like, and let neither order nor augmentation of "
                    "the data change between calls; or pass check_determinism=False"
                )


def unchanged_random_state(parameters: Mapping[str, Tensor]) -> AbstractContextManager[None]:
    """Context manager: restores the global random states of the CPU and of the parameters' GPUs."""
    devices = {value.device.index or 0 for value in parameters.values() if value.device.type == "cuda"}
    return torch.random.fork_rng(devices=sorted(devices))


def rows(batch: Any) -> int:
    """The first dimension of the first tensor in a batch.

    Raises:
        ValueError: If there is none.
    """
    if isinstance(batch, Tensor) and batch.dim() > 0:
        return batch.shape[0]
    if isinstance(batch, Mapping):
        return rows(next(iter(batch.values()), None))
    if isinstance(batch, (tuple, list)) and batch:
        return rows(batch[0])
    raise ValueError(
        f"weights must be given for batches without a first dimension, got {type(batch).__name__}"
    )
