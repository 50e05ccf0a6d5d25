"""Precision: which dtype state is kept in, and bfloat16 storage that stays right on average.

bfloat16 keeps 8 bits: 1 - 1e-3 rounds back to 1, and an average stalls once its coefficient is below 2^-8.
Two remedies: state in float32 ("full"), or bfloat16 with stochastic rounding ("lean"), where a value is
rounded up or down with the probability that makes the expectation exact.
"""

from typing import Literal

import torch
from torch import Tensor

StatePrecision = Literal["full", "lean"]

_RANDOM_BITS = 16  # what float32 has more than bfloat16


def is_low(dtype: torch.dtype) -> bool:
    """Whether a dtype is less precise than float32."""
    return torch.finfo(dtype).bits < 32


def state_dtype(parameter_dtype: torch.dtype, precision: StatePrecision) -> torch.dtype:
    """The dtype of z, x and the momenta of a parameter.

    Raises:
        ValueError: For float64 parameters with lean state.
    """
    if precision == "lean":
        if parameter_dtype == torch.float64:
            raise ValueError(
                "state_precision='lean' keeps state in bfloat16 and is for parameters in float32 and below, "
                "got torch.float64: use 'full' from the first step on"
            )
        return torch.bfloat16
    return torch.float32 if is_low(parameter_dtype) else parameter_dtype


def working(tensor: Tensor) -> Tensor:
    """The tensor itself where it is float32 or float64, else a float32 copy to compute with."""
    return tensor.float() if is_low(tensor.dtype) else tensor


def rounding_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator that depends on `key` alone, so that rounding repeats itself in a resumed run.

    Args:
        device: The device of the generator.
        key: Non-negative integers: the step, then indices of group and parameter, below a million each, so
            that no two keys of a run are the same.
    """
    seed = 0
    for number in key:
        seed = (seed * 1_000_003 + number + 1) % (2**63)
    return torch.Generator(device).manual_seed(seed)


def stochastic_round(value: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 to bfloat16, up or down with the probability that keeps the expectation.

    Adds 16 random bits below the bits that bfloat16 keeps, and cuts. Values that bfloat16 holds, infinities
    and NaN stay what they are.

    Args:
        value: A float32 tensor of any shape; not changed.
        generator: Source of the random bits, on the tensor's device.
    """
    noise = torch.empty_like(value, dtype=torch.int32).random_(0, 2**_RANDOM_BITS, generator=generator)
    bits = value.view(torch.int32).add(noise).bitwise_and_(-(2**_RANDOM_BITS))
    return torch.where(value.isfinite(), bits.view(torch.float32), value).to(torch.bfloat16)
