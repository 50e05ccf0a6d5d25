"""One optimizer step without forward and backward: AMUSE in its forms against the naive form and the peers.

Times are those of `amuse-lab bench`, interleaved in one process. Beside them: how many kernels a step
launches, and how near it comes to the least time that this machine's own ceilings, measured first, leave it:
the products at the rate of a large bfloat16 product, and gradients read once and parameters and state read
and written once at the rate of a large copy.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from amuse_lab.bench.contestants import CONTESTANTS, LR, WEIGHT_DECAY, Contestant, Optimizers
from amuse_lab.bench.measure import Bench, Footprint, Result, ratio
from amuse_lab.bench.sizes import SIZES, ParameterSet
from amuse_lab.errors import RequestError
from amuse_optim import AMUSE, param_groups
from amuse_optim.kernels import SWITCH, available
from benchmarks.gpu.part import Part, main
from benchmarks.gpu_kernels import Rates, Times, measured_rates, on_gpu
from benchmarks.gpu_kernels import run as run_kernels

EAGER_STEPS = 2  # before a step is captured
KERNEL_SECONDS = 45.0  # what the kernel by itself takes, about


@contextmanager
def kernel_switched(on: bool) -> Iterator[None]:
    """Inside, the optimizer uses its Triton kernel where it runs, or does not."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1" if on else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before


class Plain:
    """An optimizer whose steps are taken without the Triton kernel."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.state = optimizer.state

    def step(self) -> None:
        """Take a step."""
        with kernel_switched(False):
            self._optimizer.step()


class Captured:
    """An optimizer whose step is replayed from a CUDA graph, after two that are not.

    Parameters and gradients have to stay where they are.
    """

    def __init__(self, optimizer: AMUSE) -> None:
        self._optimizer = optimizer
        self._graph: torch.cuda.CUDAGraph | None = None
        self._steps = 0
        self.state = optimizer.state

    def step(self) -> None:
        """Take a step."""
        self._steps += 1
        if self._steps <= EAGER_STEPS:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._optimizer.step()
            torch.cuda.current_stream().wait_stream(stream)
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._optimizer.step()
        self._graph.replay()


def _capturable(model: nn.Module) -> AMUSE:
    options: dict[str, Any] = {"capturable": True, "nonfinite": "ignore", "warmup_steps": 2}
    return AMUSE(param_groups(model), lr=LR, weight_decay=WEIGHT_DECAY, **options)


def _forms() -> list[Contestant]:
    """AMUSE without its kernel, captured, and both."""

    def plain(model: nn.Module) -> Optimizers:
        return [Plain(optimizer) for optimizer in CONTESTANTS["amuse"].build(model)]

    def captured(model: nn.Module) -> Optimizers:
        return [Captured(_capturable(model))]

    def both(model: nn.Module) -> Optimizers:
        return [Plain(Captured(_capturable(model)))]

    return [
        Contestant("amuse-plain", "AMUSE without its Triton kernel", plain),
        Contestant("amuse-captured", "AMUSE in a CUDA graph", captured),
        Contestant("amuse-captured-plain", "AMUSE in a CUDA graph without its kernel", both),
    ]


def contestants(device: torch.device) -> list[Contestant]:
    """Return who is measured on a device: AMUSE first, then its other forms, then the installed others."""
    own, *others = [each for each in CONTESTANTS.values() if each.usual and each.installed]
    forms = [] if device.type != "cuda" else _forms()
    # Without the kernel every form is a plain one.
    return [own, *(form for form in forms if "plain" not in form.name or available(device)), *others]


def results(bench: Bench, part: Part, size: str, rounds: int) -> dict[str, Result]:
    """Measure all contestants that can step these parameters; those that cannot are recorded as failures."""
    asked = contestants(part.device)
    while asked:
        try:
            with kernel_switched(True):
                return bench.run(asked, rounds)
        except RequestError as error:
            # It begins with the name of who cannot.
            failing = next((each for each in asked if str(error).startswith(f"{each.name} ")), None)
            if failing is None:
                raise
            part.add(f"{size}: {failing.name}", failure=str(error))
            asked.remove(failing)
    raise RuntimeError("nobody could step")


def kernels_of(contestant: Contestant, size: ParameterSet, device: torch.device) -> int:
    """Count what one step does on the device: kernels, copies and fills."""
    torch.manual_seed(0)
    model = size.build().to(device)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    with kernel_switched(True):
        optimizers = contestant.build(model)
        for _ in range(EAGER_STEPS + 2):
            for optimizer in optimizers:
                optimizer.step()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as taken:
            for optimizer in optimizers:
                optimizer.step()
            torch.cuda.synchronize()
    on_device = torch.profiler.DeviceType.CUDA
    return sum(event.device_type() == on_device for event in taken.profiler.kineto_results.events())


def floor_seconds(footprint: Footprint, flops: int, rates: Rates) -> float:
    """Return the least time of a step with so many operations, float32 parameters and this state."""
    once, twice = 4 * footprint.parameters, 2 * (4 * footprint.parameters + footprint.state_bytes)
    return flops / rates.flops_per_second + (once + twice) / rates.copy_bytes_per_second


def by_the_clock(function: Callable[[], object]) -> Times:
    """Time a function on the CPU, where nothing is captured: the best of three."""
    best = []
    for _ in range(3):
        started = time.perf_counter()
        function()
        best.append(1e3 * (time.perf_counter() - started))
    return Times([min(best)], [min(best)])


def measure_size(part: Part, size: ParameterSet, rates: Rates, rounds: int) -> None:
    """Measure everybody on one parameter set."""
    measured = results(Bench(size, part.device, torch.float32), part, size.name, rounds)
    reference = measured.get("amuse", next(iter(measured.values())))
    everybody = {each.name: each for each in contestants(part.device)}
    for name, result in measured.items():
        taken = result.footprint
        # What a graph does is not counted: its products are those of the other forms.
        flops = reference.footprint.flops if name.startswith("amuse") else taken.flops
        floor = floor_seconds(taken, flops, rates)
        captured, kernels = "captured" in name, None
        if part.device.type == "cuda":
            with part.trying(f"{size.name}: {name}, kernels"):
                kernels = kernels_of(everybody[name], size, part.device)
        part.add(
            f"{size.name}: {name}",
            size=size.name,
            optimizer=name,
            milliseconds=1e3 * result.median,
            ratio_to_amuse=ratio(result.seconds, reference.seconds),
            share_of_floor=floor / result.median,
            floor_milliseconds=1e3 * floor,
            kernels=kernels,
            launches=1 if captured else kernels,
            operations=taken.operations - taken.views,
            state_bytes_per_parameter=taken.state_bytes / taken.parameters,
            # A graph keeps the memory of its step for itself, where the allocator does not count it.
            extra_bytes_per_parameter=None if captured else taken.extra_bytes / taken.parameters,
            parameters=taken.parameters,
            rounds=len(result.seconds),
            spread=statistics.pstdev(result.seconds) / result.median,
        )


def sizes(tiny: bool) -> Sequence[ParameterSet]:
    """Return the parameter sets, small ones first."""
    return [SIZES[name] for name in (("256-wide",) if tiny else ("1m", "7m", "30m", "124m"))]


def measure(part: Part) -> None:
    """Measure the ceilings, then the sizes one by one, then the kernel by itself."""
    gpu = part.device.type == "cuda"
    timer = on_gpu if gpu else by_the_clock
    copied, side = (2**31, 8192) if gpu else (2**24, 256)
    rates = measured_rates(part.device, timer, copied=copied, side=side)
    part.tell(ceilings=asdict(rates))
    for size in sizes(part.tiny):
        with part.trying(size.name):
            if part.left < 20:
                raise TimeoutError("no time was left")
            # Built on the device, where random numbers are drawn fast.
            measure_size(
                part, replace(size, build=_on(part.device, size.build)), rates, 2 if part.tiny else 30
            )
    if gpu and available(part.device) and part.out is not None:
        with part.trying("kernel by itself"):
            if part.left < KERNEL_SECONDS:
                raise TimeoutError(f"less than {KERNEL_SECONDS:.0f} s were left")
            wrong = run_kernels(part.device, timer, part.out.with_name("kernels.json"))
            part.add("kernel by itself", all_right=wrong == 0)


def _on(device: torch.device, build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def built() -> nn.Module:
        with device:
            return build()

    return built


if __name__ == "__main__":
    sys.exit(main(measure))
