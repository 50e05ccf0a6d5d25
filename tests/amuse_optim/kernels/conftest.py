"""Where the kernel runs. `test_kernels.py` runs the files `cases_*.py` in processes of their own."""

import os

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """The CPU under Triton's interpreter, the GPU without it."""
    return torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda:0")
