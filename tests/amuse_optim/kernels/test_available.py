"""When the kernels are offered, and what that costs those who have none."""

import subprocess
import sys
from types import ModuleType

import pytest
import torch

from amuse_optim import kernels


@pytest.fixture(autouse=True)
def forgetful() -> None:
    kernels._triton_imports.cache_clear()


def test_only_on_cuda_devices_with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    assert kernels.available(torch.device("cuda", 1))
    assert not kernels.available(torch.device("cpu"))


def test_the_optimizer_uses_them_only_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.delenv("AMUSE_OPTIM_KERNELS", raising=False)
    assert not kernels.enabled(cuda)
    monkeypatch.setenv("AMUSE_OPTIM_KERNELS", "1")
    assert kernels.enabled(cuda)
    assert not kernels.enabled(cpu)


def test_not_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not kernels.available(torch.device("cuda"))


@pytest.mark.requirement("D6")
def test_library_does_not_import_triton() -> None:
    program = (
        "import sys, torch, amuse_optim; from amuse_optim.kernels import available, plain;"
        "available(torch.device('cpu')); sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
