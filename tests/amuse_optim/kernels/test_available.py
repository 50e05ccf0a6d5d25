"""When the kernel is used, what happens where it does not run, and what that costs those who have none."""

import importlib
import subprocess
import sys
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from amuse_optim import kernels
from amuse_optim.averaging import StepNumbers

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def forgetful() -> None:
    kernels._triton_imports.cache_clear()
    kernels._works.cache_clear()


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setattr(torch.version, "hip", None)


def trying(monkeypatch: pytest.MonkeyPatch, outcome: Exception | None) -> list[int]:
    """Puts a kernel into place that ends so; returns the list of its calls."""
    calls = []

    def advance_(*_: Any) -> None:
        calls.append(1)
        if outcome is not None:
            raise outcome

    modules = {"amuse_optim.kernels.fused": SimpleNamespace(advance_=advance_)}
    monkeypatch.setattr(importlib, "import_module", modules.__getitem__)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(1))
    return calls


@pytest.mark.usefixtures("with_triton")
def test_only_on_cuda_devices_with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.available(torch.device("cuda", 1))
    assert not kernels.available(CPU)
    assert not kernels.available(torch.device("meta"))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not kernels.available(CUDA)  # where nobody has tried it


def test_not_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not kernels.available(CUDA)
    assert not kernels.enabled(CUDA)


@pytest.mark.usefixtures("with_triton")
def test_the_environment_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = trying(monkeypatch, None)
    monkeypatch.setenv("AMUSE_OPTIM_KERNELS", "0")
    assert not kernels.enabled(CUDA)
    assert not tried
    monkeypatch.delenv("AMUSE_OPTIM_KERNELS")
    assert kernels.enabled(CUDA)
    assert not kernels.enabled(CPU)
    monkeypatch.setenv("AMUSE_OPTIM_KERNELS", "1")
    assert kernels.enabled(CUDA)
    assert len(tried) == 1


@pytest.mark.usefixtures("with_triton")
def test_a_kernel_that_does_not_run_is_said_once_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = trying(monkeypatch, RuntimeError("Failed to find C compiler\nand more"))
    monkeypatch.delenv("AMUSE_OPTIM_KERNELS", raising=False)
    with pytest.warns(UserWarning, match=r"RuntimeError: Failed to find C compiler\..*AMUSE_OPTIM_KERNELS=0"):
        assert not kernels.enabled(CUDA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not kernels.enabled(CUDA)
    assert len(tried) == 1


def test_tensors_without_memory_do_not_try_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps on fake tensors say nothing about the device that they stand for."""
    monkeypatch.setattr(kernels, "enabled", lambda _: pytest.fail("the kernel was tried"))
    with FakeTensorMode():
        y, z, d = ([torch.empty(3, device="cuda")] for _ in range(3))
        kernels.advance_(y, z, d, 1.0, StepNumbers(0.5, 0.0, "z", beta=0.5, c=0.5, beta_next=0.5))
    assert y[0].device.type == "cuda"


@pytest.mark.requirement("D6")
def test_library_does_not_import_triton() -> None:
    program = (
        "import sys, torch, amuse_optim; from amuse_optim.kernels import enabled;"
        "enabled(torch.device('cpu')); sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
