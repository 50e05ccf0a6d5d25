"""Optional Triton kernels, each beside the plain-torch function it must equal.

`averaging` moves y and z of many parameters in one launch, as `averaging.advance_` does one by one;
`symmetric` computes half of a symmetric product and mirrors it, where `orthogonalize.iterate` computes all.
Both import triton, so they are imported where `available` says so and nowhere else.

Not yet run on a GPU: the tests run them in Triton's interpreter and compile them for compute capability 9.0.
Until they have been, the optimizer uses them only where the environment says AMUSE_OPTIM_KERNELS=1.
"""

import os
from functools import cache

import torch

__all__ = ["available", "enabled"]


@cache
def _triton_imports() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def available(device: torch.device) -> bool:
    """Whether the kernels can run on a device: it is a CUDA device, and triton can be imported."""
    return device.type == "cuda" and _triton_imports()


def enabled(device: torch.device) -> bool:
    """Whether the optimizer uses them on a device: they are `available`, and AMUSE_OPTIM_KERNELS is 1."""
    return available(device) and os.environ.get("AMUSE_OPTIM_KERNELS") == "1"
