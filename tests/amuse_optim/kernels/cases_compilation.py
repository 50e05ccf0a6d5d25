"""What the compiler makes of the kernels for compute capability 9.0, as they are launched, without a GPU."""

import re
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from amuse_optim.kernels import symmetric
from amuse_optim.kernels.averaging import BLOCK, AveragingPlan, MoveCoefficients
from amuse_optim.schedule import DecayAt

CPU = torch.device("cpu")
SHARED_MEMORY = 227 * 1024  # what one program can have on an H100
NOW = MoveCoefficients(rate=0.02, decay=0.001, beta=0.7, c=0.01, beta_next=0.71)


class Hopper:
    """What the compiler asks a GPU for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], Any]:
    """Calls a function and returns the one kernel it launches, compiled and not launched."""
    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, warmup: bool, **kwargs: Any) -> None:
        assert not warmup
        kernels.append(run(self, *args, warmup=True, **kwargs))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", Hopper())

    def call(function: Callable[[], object]) -> Any:
        function()
        return kernels.pop()

    return call


def resources(kernel: Any) -> dict[str, int]:
    """Registers a thread, and bytes of stack, which only spilled registers take here."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", report)}


@pytest.mark.parametrize("at", ["z", "y"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averaging_has_wide_accesses_and_few_registers(
    compiled: Callable[[Callable[[], object]], Any], dtype: torch.dtype, at: DecayAt
) -> None:
    y, z, d = torch.zeros(3, 2, BLOCK).unbind()
    plan = AveragingPlan([BLOCK, BLOCK], CPU)
    kernel = compiled(
        lambda: plan.advance_(list(y), list(z), list(d.to(dtype)), NOW.on(CPU), at=at),
    )
    ptx = kernel.asm["ptx"]
    whole_blocks = {torch.float32: (3, 0), torch.bfloat16: (2, 1)}[dtype]
    assert (ptx.count("ld.global.v4.b32"), ptx.count("ld.global.v2.b32")) == whole_blocks
    assert ptx.count("st.global.v4.b32") == 2
    assert "shared" not in re.sub(r"\.(extern|reqntid).*", "", ptx)  # nothing is rearranged among threads
    used = resources(kernel)
    assert used["REG"] <= 40  # six programs of 256 threads on a multiprocessor
    assert used["STACK"] == 0


def test_averaging_of_one_parameter_and_of_addresses_that_are_not_aligned(
    compiled: Callable[[Callable[[], object]], Any],
) -> None:
    tensors = [[torch.zeros(BLOCK + 1)[1:]] for _ in range(3)]
    plan = AveragingPlan([BLOCK], CPU)
    kernel = compiled(lambda: plan.advance_(*tensors, NOW.on(CPU), at="z"))
    assert not re.search(r"(ld|st)\.global\.v", kernel.asm["ptx"])
    assert resources(kernel)["STACK"] == 0


def test_products_run_on_tensor_cores(compiled: Callable[[Callable[[], object]], Any]) -> None:
    """With the tiling for little work and with the one for much."""
    small, large = (torch.zeros(n, 256, 512, dtype=torch.bfloat16) for n in (1, 64))
    g = torch.zeros(64, 256, 256, dtype=torch.bfloat16)
    calls = [
        lambda: symmetric.gram(small),
        lambda: symmetric.gram(large),
        lambda: symmetric.gram(large.mT.contiguous().mT),
        lambda: symmetric.polynomial(g, a=1.0, b=2.0, c=3.0),
    ]
    for call in calls:
        kernel = compiled(call)
        ptx = kernel.asm["ptx"]
        assert "wgmma.mma_async" in ptx
        assert "cp.async.cg.shared.global" in ptx  # loads run ahead, 16 bytes at a time
        assert "st.global.v4.b32" in ptx
        assert not re.search(r"(ld|st)\.global\.b", ptx)
        assert resources(kernel)["STACK"] == 0
        assert kernel.metadata.shared <= SHARED_MEMORY


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_of_any_size(compiled: Callable[[Callable[[], object]], Any], dtype: torch.dtype) -> None:
    """Sizes that are 1, which the compiler treats apart, or no multiples of 16."""
    calls = [
        lambda: symmetric.gram(torch.zeros(1, 1, 1, dtype=dtype)),
        lambda: symmetric.polynomial(torch.zeros(2, 65, 65, dtype=dtype), a=1.0, b=2.0, c=3.0),
    ]
    for call in calls:
        kernel = compiled(call)
        assert kernel.metadata.shared <= SHARED_MEMORY
        assert ("wgmma" in kernel.asm["ptx"]) == (dtype == torch.bfloat16)
        assert "tf32" not in kernel.asm["ptx"]
