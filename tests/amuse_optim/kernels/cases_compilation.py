"""What the compiler makes of the kernel for compute capability 9.0, as it is launched, without a GPU."""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from amuse_optim.averaging import StepNumbers
from amuse_optim.kernels.fused import BLOCK, advance_
from amuse_optim.schedule import DecayAt

NOW = StepNumbers(lr=0.02, weight_decay=0.1, decay_at="z", beta=0.7, c=0.01, beta_next=0.71)


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


@pytest.mark.parametrize("held", [False, True], ids=["numbers", "on the device"])
@pytest.mark.parametrize("at", ["z", "y"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wide_accesses_and_few_registers(
    compiled: Callable[[Callable[[], object]], Any], dtype: torch.dtype, at: DecayAt, held: bool
) -> None:
    y, z, d = torch.zeros(3, 2, BLOCK).unbind()
    now = replace(NOW, decay_at=at)
    if held:
        now = replace(now, lr=torch.tensor(0.02, dtype=torch.float64))
    kernel = compiled(lambda: advance_(list(y), list(z), list(d.to(dtype)), 1.0, now))
    ptx = kernel.asm["ptx"]
    whole_blocks = {torch.float32: (3, 0), torch.bfloat16: (2, 1)}[dtype]
    assert (ptx.count("ld.global.v4.b32"), ptx.count("ld.global.v2.b32")) == whole_blocks
    assert ptx.count("st.global.v4.b32") == 2
    assert "shared" not in re.sub(r"\.(extern|reqntid).*", "", ptx)  # nothing is rearranged among threads
    used = resources(kernel)
    assert used["REG"] <= 40  # six programs of 256 threads on a multiprocessor
    assert used["STACK"] == 0


def test_one_parameter_and_addresses_that_are_not_aligned(
    compiled: Callable[[Callable[[], object]], Any],
) -> None:
    tensors = [[torch.zeros(BLOCK + 1)[1:]] for _ in range(3)]
    kernel = compiled(lambda: advance_(*tensors, 1.0, NOW))
    assert not re.search(r"(ld|st)\.global\.v", kernel.asm["ptx"])
    assert resources(kernel)["STACK"] == 0


def test_lists_of_every_length_are_one_kernel(compiled: Callable[[Callable[[], object]], Any]) -> None:
    """So that a step compiles few of them: the count of parameters is no constant of the kernel."""
    hashes = set()
    for count in (1, 2, 16):
        tensors = [list(torch.zeros(count, BLOCK)) for _ in range(3)]
        hashes.add(compiled(lambda tensors=tensors: advance_(*tensors, 1.0, NOW)).hash)
    assert len(hashes) == 1
