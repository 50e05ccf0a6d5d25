"""The parameter sets that are stepped, and gradients for them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amuse_lab.tasks.lm.model import Llama, ModelConfig

RANK = 8
NOISE = 0.05
MAGNITUDE = 1e-3


@dataclass(frozen=True)
class ParameterSet:
    """Parameters to step.

    Attributes:
        name: Name of the set, as `--sizes` takes it, such as "7m".
        description: One line about it for the help.
        rounds: How many rounds are timed unless told otherwise.
        build: Makes a model that has them.
    """

    name: str
    description: str
    rounds: int
    build: Callable[[], nn.Module]


def _llama(*, n_embd: int, n_layer: int, vocabulary: int, mlp_multiple: int = 256) -> Callable[[], Llama]:
    config = ModelConfig(
        n_embd=n_embd,
        n_head=n_embd // 64,
        n_layer=n_layer,
        context=64,
        vocabulary=vocabulary,
        mlp_multiple=mlp_multiple,
    )
    return lambda: Llama(config)


def _square_matrices() -> nn.Module:
    return nn.ModuleList(nn.Linear(256, 256, bias=False) for _ in range(8))


SIZES: Mapping[str, ParameterSet] = {
    size.name: size
    for size in (
        ParameterSet(
            "1m",
            "Llama of 0.9 M: 4 layers of 128, vocabulary 256",
            40,
            _llama(n_embd=128, n_layer=4, vocabulary=256, mlp_multiple=128),
        ),
        ParameterSet(
            "7m",
            "Llama of 6.8 M: 6 layers of 256, vocabulary 4096",
            20,
            _llama(n_embd=256, n_layer=6, vocabulary=4096, mlp_multiple=896),
        ),
        ParameterSet(
            "30m",
            "Llama of 29.4 M: 8 layers of 512, vocabulary 4096",
            10,
            _llama(n_embd=512, n_layer=8, vocabulary=4096),
        ),
        ParameterSet(
            "124m",
            "Llama of 124 M: 12 layers of 768, vocabulary 50304",
            10,
            _llama(n_embd=768, n_layer=12, vocabulary=50304),
        ),
        ParameterSet("256-wide", "8 matrices of 256 x 256", 10, _square_matrices),
    )
}
"""Every parameter set by its name. The Llamas are the laboratory's, with head and embedding tied."""

USUAL = ("1m", "7m", "30m")
LARGE = "124m"


def gradients(parameters: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Draw gradients like those of training: matrices of falling singular values, plus noise.

    The momentum of real models has a stable rank of 1 to 4. A matrix here is a sum of 8 random terms of rank
    1, of which term j is scaled by 2^-j, and of Gaussian noise scaled by 0.05.

    Args:
        parameters: Parameters that the gradients are for; they give shapes, dtypes and devices.
        seed: The same seed draws the same gradients on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Tensor] = []
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        if noise.ndim == 2:
            rows, columns = noise.shape
            left = torch.randn(rows, RANK, generator=generator) * 0.5 ** torch.arange(RANK)
            noise = left @ torch.randn(RANK, columns, generator=generator) + NOISE * noise
        drawn.append((MAGNITUDE * noise).to(parameter.device, parameter.dtype))
    return drawn
