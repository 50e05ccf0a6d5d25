"""The optional Triton kernel: the fused move of y and z, beside the plain form of it in `averaging`.

`advance_` takes the kernel where it can and the plain form everywhere else. `fused` imports triton, so it is
imported where the kernel is used and nowhere else. AMUSE_OPTIM_KERNELS=0 turns the kernel off.
"""

import importlib
import os
import warnings
from functools import cache

import torch
from torch import Tensor

from amuse_optim import averaging
from amuse_optim.averaging import StepNumbers, Tensors
from amuse_optim.schedule import Number

__all__ = ["advance_", "available", "enabled"]

SWITCH = "AMUSE_OPTIM_KERNELS"
PLAIN = frozenset({Tensor, torch.nn.Parameter})  # other classes may have their memory anywhere, or none


@cache
def _triton_imports() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def available(device: torch.device) -> bool:
    """Whether there may be kernels for a device: CUDA's, with triton. On ROCm they were never run."""
    return device.type == "cuda" and torch.version.hip is None and _triton_imports()


@cache
def _works(device: torch.device) -> bool:
    """Whether a kernel compiles and starts on a device: without a C compiler, say, it does not."""
    entries = [torch.ones(1, device=device) for _ in range(3)]
    numbers = StepNumbers(lr=0.5, weight_decay=0.0, decay_at="z", beta=0.5, c=0.5, beta_next=0.5)
    try:
        fused = importlib.import_module("amuse_optim.kernels.fused")
        fused.advance_(*([tensor] for tensor in entries), 1.0, numbers)
    except Exception as error:  # whatever it is, the plain form does without it
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(
            "the fused averaging does not run on this machine and torch's operations are used instead: "
            f"{reason}. Steps are right and slower. To see no warning, set {SWITCH}=0",
            stacklevel=2,
        )
        return False
    return True


def enabled(device: torch.device) -> bool:
    """Whether the optimizer uses kernels on a device: they run there, and AMUSE_OPTIM_KERNELS is not 0."""
    return available(device) and os.environ.get(SWITCH) != "0" and _works(device)


def advance_(y: Tensors, z: Tensors, update: Tensors, scale: Number, numbers: StepNumbers) -> None:
    """`averaging.advance_`, in one launch where the kernel takes these tensors and numbers."""
    if type(y[0]) in PLAIN and enabled(y[0].device):
        fused = importlib.import_module("amuse_optim.kernels.fused")
        if fused.takes(y, z, update, scale, numbers):
            fused.advance_(y, z, update, scale, numbers)
            return
    averaging.advance_(y, z, update, scale, numbers)
