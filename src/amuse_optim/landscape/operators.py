"""Hessian- and Gauss-Newton-vector products of a loss over fixed batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp

from amuse_optim.checks import unknown_name

from .coordinates import Coordinates
from .objective import CompositeLoss, Objective, Parameters

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Operator:
    """A symmetric matrix that is known by its products with vectors: `operator @ vector`.

    Args:
        product: Function that multiplies a vector of shape (size,) by the matrix.
        coordinates: What the entries of a vector stand for.
    """

    product: Product
    coordinates: Coordinates

    def __matmul__(self, vector: Tensor) -> Tensor:
        """The product with a vector.

        Args:
            vector: A vector of shape (size,), in the dtype of the coordinates.

        Raises:
            ValueError: If the vector does not fit, or the product is not finite.
        """
        coordinates = self.coordinates
        if vector.shape != (coordinates.size,) or vector.dtype != coordinates.dtype:
            raise ValueError(
                f"vector must be of shape ({coordinates.size},) and {coordinates.dtype}, got "
                f"{tuple(vector.shape)} and {vector.dtype}: coordinates.flatten makes one of named tensors"
            )
        product = self.product(vector)
        if not product.isfinite().all():
            raise ValueError("the product must be finite: check loss and gradient at these parameters")
        return product


def hessian(
    objective: Objective,
    parameters: Mapping[str, Tensor],
    *,
    only: str | Sequence[str] = "*",
    check_determinism: bool = True,
) -> Operator:
    """The Hessian of an objective, by products.

    .. code-block:: text

        H v = d/dt grad L(theta + t v) at t = 0

    A product is the backward pass of a gradient: the time of about three gradients, the memory of two for one
    batch.

    Args:
        objective: The loss over fixed batches.
        parameters: theta, tensors by name, all float32 or all float64. They are copied.
        only: Pattern or patterns of names, such as "blocks.0.*". Rows and columns of H are those of the
            parameters that match one; all others are constants.
        check_determinism: Whether to evaluate loss and gradient twice first. With False, noise of the loss is
            noise of the products.

    Returns:
        The operator; its coordinates are the parameters that match `only`.

    Raises:
        ValueError: If the parameters do not fit, no name matches, or the loss is not deterministic.

    Example:
        >>> import torch
        >>> from amuse_optim.landscape import Objective, hessian
        >>> objective = Objective(lambda p, batch: (p["w"] * batch).square().sum(), [torch.ones(1, 2)])
        >>> operator = hessian(objective, {"w": torch.tensor([3.0, 4.0])})
        >>> operator @ torch.tensor([1.0, -1.0])
        tensor([ 2., -2.])
    """
    chosen, constants, coordinates = _split(objective, parameters, only, check_determinism)

    def product(vector: Tensor) -> Tensor:
        direction = coordinates.unflatten(vector)

        def of(batch: Any) -> Tensor:
            gradient = grad(lambda moved: objective.loss({**constants, **moved}, batch))
            pull = vjp(gradient, chosen)[1]
            return coordinates.flatten(pull(direction)[0])

        return objective.mean(of, parameters)

    return Operator(product, coordinates)


def gauss_newton(
    objective: Objective,
    parameters: Mapping[str, Tensor],
    *,
    only: str | Sequence[str] = "*",
    check_determinism: bool = True,
) -> Operator:
    """The generalized Gauss-Newton matrix of an objective, by products.

    With the Jacobian J of the model's outputs and the Hessian A of the criterion in the outputs, the mean
    over batches of

    .. code-block:: text

        G = J^T A J

    Args:
        objective: An objective whose loss is a `CompositeLoss`, as `module_loss` makes it.
        parameters: theta, tensors by name, as for `hessian`.
        only: Pattern or patterns of names, as for `hessian`.
        check_determinism: Whether to evaluate loss and gradient twice first.

    Returns:
        The operator; its coordinates are the parameters that match `only`.

    Raises:
        TypeError: If the loss does not say what its outputs are.
        ValueError: As for `hessian`.
    """
    loss = objective.loss
    if not isinstance(loss, CompositeLoss):
        raise TypeError(
            f"the objective's loss must be a CompositeLoss, got {loss!r}: the Gauss-Newton matrix needs to "
            "know which part is the model and which the criterion; see module_loss"
        )
    chosen, constants, coordinates = _split(objective, parameters, only, check_determinism)

    def product(vector: Tensor) -> Tensor:
        direction = coordinates.unflatten(vector)

        def of(batch: Any) -> Tensor:
            def model(moved: Parameters) -> Tensor:
                return loss.outputs({**constants, **moved}, batch)

            def criterion(outputs: Tensor) -> Tensor:
                return loss.criterion(outputs, batch)

            outputs, pull = vjp(model, chosen)[:2]
            # u -> J^T u is linear; its own pull at any u is v -> J v, with reverse mode alone.
            push = vjp(lambda outside: pull(outside)[0], torch.zeros_like(outputs))[1]
            curve = vjp(grad(criterion), outputs)[1]
            return coordinates.flatten(pull(curve(push(direction)[0])[0])[0])

        return objective.mean(of, parameters)

    return Operator(product, coordinates)


def _split(
    objective: Objective, parameters: Mapping[str, Tensor], only: str | Sequence[str], check: bool
) -> tuple[Parameters, Parameters, Coordinates]:
    """Copies of the parameters that match and of the others; coordinates of the former."""
    Coordinates.of(parameters)
    patterns = (only,) if isinstance(only, str) else tuple(only)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise ValueError(
                f"only must match names of parameters: {unknown_name('name', pattern, parameters)}"
            )
    copied = {name: value.detach().clone() for name, value in parameters.items()}
    if check:
        objective.check_determinism(copied)
    matches = {name: any(fnmatchcase(name, pattern) for pattern in patterns) for name in copied}
    chosen = {name: value for name, value in copied.items() if matches[name]}
    constants = {name: value for name, value in copied.items() if not matches[name]}
    return chosen, constants, Coordinates.of(chosen)
