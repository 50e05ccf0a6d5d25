"""Small losses whose Hessians torch.func.hessian can give entry by entry, and operators of known matrices."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from amuse_lab.tasks.lm.model import Llama, ModelConfig
from amuse_optim.landscape import Coordinates, Objective, Operator, module_loss


class Problem(NamedTuple):
    module: nn.Module
    objective: Objective
    parameters: dict[str, Tensor]


def cross_entropy(outputs: Tensor, batch: Any) -> Tensor:
    return functional.cross_entropy(outputs.flatten(0, -2), batch[1].flatten())


def problem(module: nn.Module, batches: list[Any], dtype: torch.dtype = torch.float64) -> Problem:
    parameters = {name: value.detach().to(dtype) for name, value in module.named_parameters()}
    return Problem(module, Objective(module_loss(module, cross_entropy), batches), parameters)


def mlp(dtype: torch.dtype = torch.float64) -> Problem:
    """Batches of 3, 1 and 4 rows."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    batches = [(torch.randn(rows, 3).to(dtype), torch.randint(3, (rows,))) for rows in (3, 1, 4)]
    return problem(module, batches, dtype)


def convolution() -> Problem:
    """With BatchNorm in eval mode, whose statistics are not those it begins with."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(1, 2, 2, bias=False), nn.BatchNorm2d(2), nn.GELU(), nn.Flatten(), nn.Linear(8, 3)
    )
    for _ in range(5):
        module(3 * torch.randn(16, 1, 3, 3) + 1)
    batches = [(torch.randn(rows, 1, 3, 3).double(), torch.randint(3, (rows,))) for rows in (2, 5)]
    return problem(module.eval(), batches)


def llama() -> Problem:
    """A tied head, two heads of attention; weights larger than at the start, so that all of them matter."""
    torch.manual_seed(2)
    config = ModelConfig(n_embd=4, n_head=2, n_layer=1, context=6, vocabulary=7, mlp_multiple=4)
    module = Llama(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    batches = [(tokens[:, :-1], tokens[:, 1:]) for tokens in torch.randint(7, (2, 3, 7))]
    return problem(module, batches)


PROBLEMS: dict[str, Callable[[], Problem]] = {"mlp": mlp, "convolution": convolution, "llama": llama}


def written_out_attention(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> Tensor:
    assert is_causal
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return (
        scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf).softmax(-1) @ value
    )


@contextmanager
def attention_written_out() -> Iterator[None]:
    """Inside, attention is matrix products and a softmax, and forward mode may load what torch has for it."""
    with (
        mock.patch.object(functional, "scaled_dot_product_attention", written_out_attention),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        yield


def dense_hessian(problem: Problem) -> Tensor:
    """The Hessian by torch.func.hessian on all rows at once, shape (size, size)."""
    module, objective, parameters = problem
    inputs, targets = (torch.cat(parts) for parts in zip(*objective.batches, strict=True))
    sizes = [value.numel() for value in parameters.values()]
    shapes = [value.shape for value in parameters.values()]

    def loss(vector: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)]
        buffers = {
            name: value.double() for name, value in module.named_buffers() if value.is_floating_point()
        }
        state = {**dict(zip(parameters, parts, strict=True)), **buffers}
        outputs = torch.func.functional_call(module, state, (inputs,))
        return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())

    with attention_written_out():
        dense: Tensor = torch.func.hessian(loss)(torch.cat([p.flatten() for p in parameters.values()]))
    return dense


def matrix_of(operator: Operator) -> Tensor:
    """All entries of an operator, column by column."""
    size = operator.coordinates.size
    return torch.stack([operator @ unit for unit in torch.eye(size, dtype=operator.coordinates.dtype)], dim=1)


def of_matrix(matrix: Tensor) -> Operator:
    return Operator(lambda vector: matrix @ vector, Coordinates.of({"v": matrix[0]}))


def rotated(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    turn, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    matrix = turn @ eigenvalues.double().diag() @ turn.T
    return (matrix + matrix.T) / 2


def state_bits(module: nn.Module) -> Mapping[str, bytes]:
    return {
        name: value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for name, value in (*module.named_parameters(), *module.named_buffers())
    }
