"""The small model that tests of the library train, and the loops that train it."""

from typing import Any

import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, param_groups

# A group of every form that state and steps have.
KINDS: dict[str, dict[str, Any]] = {
    "muon": {"direction": "muon"},
    "normuon": {"direction": "normuon"},
    "adamw": {"direction": "adamw", "auxiliary_momentum": 0.9},
    "gradients at z": {"direction": "sgd", "beta1": 0.0, "rho": 0.0},
    "lean": {"direction": "muon", "state_precision": "lean"},
    "captured": {"direction": "adamw", "capturable": True, "nonfinite": "ignore"},
}


def build(seed: int = 0, **options: Any) -> tuple[nn.Module, AMUSE]:
    """A perceptron with two matrices for Muon and a head, and its optimizer."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    settings: dict[str, Any] = {"lr": 0.02, "warmup_steps": 4, "weight_decay": 0.1} | options
    return model, AMUSE(param_groups(model), **settings)


def loss_of(model: nn.Module, step: int, rows: slice = slice(None)) -> Tensor:
    """How far the perceptron is from a sine, on a batch of its own for every step."""
    inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))[rows]
    return (model(inputs) - inputs[:, :3].sin()).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    """Steps on that loss."""
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def take_steps(optimizer: torch.optim.Optimizer, steps: range, *, without: int | None = None) -> None:
    """Steps with random gradients, which depend on the step and the parameter's place alone.

    In odd steps the parameter at place `without`, counted through the groups, has no gradient.
    """
    for step in steps:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for place, parameter in enumerate(parameters):
            rests = place == without and step % 2 == 1
            parameter.grad = None if rests else random_gradient(parameter, step, place)
        optimizer.step()


def random_gradient(parameter: Tensor, step: int, place: int = 0) -> Tensor:
    """Normal numbers, the same whatever the dtype, in the parameter's dtype and memory format."""
    generator = torch.Generator().manual_seed(1000 * step + place)
    random = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return torch.empty_like(parameter, requires_grad=False).copy_(random)


def bits(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of all tensors of a model's parameters and of its optimizer's state."""
    tensors = [p.detach() for p in model.parameters()]
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return [tensor.clone() for tensor in tensors]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal to the bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def build_list(
    count: int, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[nn.ParameterList, AMUSE]:
    """Random named parameters of shape (4, 3), and their optimizer."""
    generator = torch.Generator().manual_seed(0)
    model = nn.ParameterList(torch.randn(4, 3, generator=generator).to(dtype) for _ in range(count))
    settings: dict[str, Any] = {"direction": "adamw", "lr": 0.1, "warmup_steps": 3, **options}
    return model, AMUSE(list(model.named_parameters()), **settings)


def train_list(model: nn.ParameterList, optimizer: AMUSE, steps: range) -> None:
    """Steps with random gradients."""
    for step in steps:
        for i, parameter in enumerate(model):
            generator = torch.Generator().manual_seed(10 * step + i)
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()
