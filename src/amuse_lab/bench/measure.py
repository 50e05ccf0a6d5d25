"""Measures the steps of several optimizers side by side in one process."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from amuse_lab.bench.contestants import Contestant, Optimizers
from amuse_lab.bench.counting import OperationCounter
from amuse_lab.bench.memory import PeakMemory, state_bytes
from amuse_lab.bench.sizes import ParameterSet, gradients
from amuse_lab.errors import RequestError

GRADIENT_SETS = 3
WARMUP_ROUNDS = 3
SEED = 0


@dataclass(frozen=True)
class Footprint:
    """Memory and operations of a contestant's step on one parameter set, whatever the machine's speed.

    Attributes:
        parameters: Number of scalar parameters that are optimized.
        state_bytes: Bytes of the optimizers' state tensors.
        extra_bytes: The most bytes held during a step beside parameters, gradients and state; includes what
            an optimizer keeps between steps outside its state.
        operations: Operations that torch dispatches; this and all that follows is from `OperationCounter`.
        views: Operations among them that only return a view.
        products: Number of matrix products; a batch of n products counts n.
        flops: Floating-point operations of the matrix products.
        elements: Elements read and written by all operations but views.
    """

    parameters: int
    state_bytes: int
    extra_bytes: int
    operations: int
    views: int
    products: int
    flops: int
    elements: int


@dataclass(frozen=True)
class Result:
    """What was measured of one contestant on one parameter set.

    Attributes:
        footprint: Memory and operations of one step.
        seconds: Time of the step in each timed round, in seconds.
    """

    footprint: Footprint
    seconds: list[float]

    @property
    def median(self) -> float:
        """Median time of a step, seconds."""
        return statistics.median(self.seconds)

    @property
    def p10(self) -> float:
        """The time that a tenth of the steps stay below, seconds."""
        if len(self.seconds) == 1:
            return self.seconds[0]
        return statistics.quantiles(self.seconds, n=10, method="inclusive")[0]


def ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Return the median over rounds of one contestant's time over another's in the same round."""
    return statistics.median(mine / other for mine, other in zip(times, reference, strict=True))


def interleaved(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yield the order of the steps: every name once per round, each round starting one name later.

    Args:
        names: Names of the contestants, in any order.
        rounds: Number of rounds; each contestant steps once in each.

    Yields:
        The round, 0 for the first, and a name.
    """
    for i in range(rounds):
        first = i % len(names)
        for name in (*names[first:], *names[:first]):
            yield i, name


class Bench:
    """One parameter set with gradients that all contestants share.

    Args:
        size: Parameter set to step; it makes the model that has the parameters.
        device: Device that the parameters are on.
        dtype: Type of the parameters and their gradients, such as torch.float32.
    """

    def __init__(self, size: ParameterSet, device: torch.device, dtype: torch.dtype) -> None:
        self._size = size
        self._device = device
        self._dtype = dtype
        shapes = [p.detach() for p in self._model().parameters()]
        self._drawn = [gradients(shapes, SEED + i) for i in range(GRADIENT_SETS)]
        self._gradients = [torch.empty_like(gradient) for gradient in self._drawn[0]]

    def _model(self) -> torch.nn.Module:
        torch.manual_seed(SEED)
        return self._size.build().to(self._device, self._dtype)

    def _load(self, model: torch.nn.Module, step: int) -> None:
        """Put this step's gradients in place, anew each time: some optimizers write into or drop them."""
        torch._foreach_copy_(self._gradients, self._drawn[step % GRADIENT_SETS])
        for parameter, gradient in zip(model.parameters(), self._gradients, strict=True):
            parameter.grad = gradient

    def examine(self, contestant: Contestant) -> Footprint:
        """Measure what does not depend on the machine's speed, on an optimizer of its own.

        Raises:
            RequestError: If the contestant cannot step these parameters.
        """
        with self._failures_of(contestant):
            with PeakMemory(self._device) as peak:
                model = self._model()
                optimizers = contestant.build(model)
                for step in range(WARMUP_ROUNDS):
                    self._load(model, step)
                    _step(optimizers)
                self._load(model, WARMUP_ROUNDS)
                with peak.window():
                    _step(optimizers)
            self._load(model, WARMUP_ROUNDS + 1)
            with OperationCounter() as counter:
                _step(optimizers)
            finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
        if not finite:
            raise RequestError(f"{contestant.name} made parameters that are not finite on {self._size.name}")
        state = state_bytes(optimizers)
        own = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        return Footprint(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            state_bytes=state,
            extra_bytes=max(0, peak.bytes - state - own),
            operations=counter.operations,
            views=counter.views,
            products=counter.products,
            flops=counter.flops,
            elements=counter.elements,
        )

    def run(self, contestants: Sequence[Contestant], rounds: int) -> dict[str, Result]:
        """Examine the contestants one by one, then time them round by round.

        Args:
            contestants: At least one, all installed.
            rounds: The rounds that count, after `WARMUP_ROUNDS` that do not.

        Returns:
            A result for each, in their order.
        """
        footprints = {contestant.name: self.examine(contestant) for contestant in contestants}
        steps = {contestant.name: self._timed(contestant) for contestant in contestants}
        times = time_rounds(steps, rounds, WARMUP_ROUNDS)
        return {name: Result(footprint, times[name]) for name, footprint in footprints.items()}

    def _timed(self, contestant: Contestant) -> Callable[[int], float]:
        """A function from the round to the seconds that the contestant's step took in it."""
        model = self._model()
        optimizers = contestant.build(model)

        def step(i: int) -> float:
            self._load(model, i)
            return timed(lambda: _step(optimizers), self._device)

        return step

    @contextmanager
    def _failures_of(self, contestant: Contestant) -> Iterator[None]:
        """Turn what a contestant raises into one line that names it."""
        try:
            yield
        except Exception as error:
            said = f"{type(error).__name__}: {error}".split("\n")[0]
            raise RequestError(
                f"{contestant.name} cannot step {self._size.name} in {str(self._dtype)[6:]} on "
                f"{self._device}: {said}; leave it out with --only"
            ) from error


def _step(optimizers: Optimizers) -> None:
    for optimizer in optimizers:
        optimizer.step()


def time_rounds(
    steps: Mapping[str, Callable[[int], float]], rounds: int, warmup: int
) -> dict[str, list[float]]:
    """Time contestants round by round, so that whatever slows the machine for a while slows them all.

    Args:
        steps: For each contestant a function from the round to the seconds its step took.
        rounds: Number of timed rounds; every contestant steps once in each.
        warmup: Number of untimed rounds before them.

    Returns:
        For each contestant the seconds of every timed round.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for i, name in interleaved(list(steps), warmup + rounds):
            seconds = steps[name](i)
            if i >= warmup:
                times[name].append(seconds)
    finally:
        if collecting:
            gc.enable()
    return times


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of one call: between two events on CUDA, by the clock elsewhere."""
    if device.type != "cuda":
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    with torch.cuda.device(device):
        event: Any = torch.cuda.Event
        begin, end = event(enable_timing=True), event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


@contextmanager
def machine_set(*, threads: int | None, onednn: bool) -> Iterator[None]:
    """Context manager: set torch's CPU threads and whether it uses oneDNN; restored at the end.

    Args:
        threads: Number of CPU threads; None keeps the present number.
        onednn: Whether oneDNN may be used; without it a CPU has no fast bfloat16 matrix products.
    """
    mkldnn: Any = torch.backends.mkldnn  # its context manager `flags` warns of TF32 on Intel's GPUs
    before = torch.get_num_threads(), mkldnn.enabled
    torch.set_num_threads(threads or before[0])
    mkldnn.enabled = onednn and before[1]
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        mkldnn.enabled = before[1]
