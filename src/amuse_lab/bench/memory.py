"""Measures the memory of an optimizer's state, and the peak memory of a step beside it."""

import gc
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

_WINDOW = "amuse_lab.bench.window"


class PeakMemory:
    """Measures the peak of allocated bytes inside a window, beyond those allocated when measuring began.

    On a CPU torch's profiler reports every allocation and release of torch's allocator, so temporaries that a
    kernel makes internally count. Memory that oneDNN and MKL take directly from the system does not count,
    and releasing memory that was allocated before the measurement does not lower the result. On CUDA the
    caching allocator's own peak is read.

    Args:
        device: The device whose memory counts.

    Attributes:
        bytes: The result, once the `with` block has ended.

    Example:
        >>> import torch
        >>> with PeakMemory(torch.device("cpu")) as peak:
        ...     kept = torch.ones(1024)
        ...     with peak.window():
        ...         _ = kept.clone().clone()
        >>> peak.bytes
        12288
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._profile: Any = None
        self._before = 0
        self.bytes = 0

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # it announces itself on stderr
            # With this, the profiler does not warn that events of several cycles would be kept.
            self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
            self._profile.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._profile is not None:
            self._profile.__exit__(*failure)
            if failure[0] is None:
                self.bytes = _peak_of(self._profile.profiler.kineto_results.events())
            self._profile = None

    @contextmanager
    def window(self) -> Iterator[None]:
        """Context manager: allocations count towards the peak; once per measurement."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            yield
            torch.cuda.synchronize(self._device)
            self.bytes = torch.cuda.max_memory_allocated(self._device) - self._before
        else:
            with record_function(_WINDOW):
                yield


def _peak_of(events: Iterable[Any]) -> int:
    """The highest running sum of the profiler's allocations and releases within the window."""
    changes: list[tuple[int, int]] = []
    start = end = 0
    for event in events:
        if event.name() == "[memory]" and event.device_type() == torch.profiler.DeviceType.CPU:
            changes.append((event.start_ns(), event.nbytes()))
        elif event.name() == _WINDOW:
            start, end = event.start_ns(), event.end_ns()
    live = sum(change for time, change in changes if time < start)
    inside = sorted((entry for entry in changes if start <= entry[0] <= end), key=lambda entry: entry[0])
    return max(itertools.accumulate((change for _, change in inside), initial=live))


def state_bytes(optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Return the bytes of all tensors in the optimizers' state, however nested; each tensor counts once."""
    tensors = {id(tensor): tensor for each in optimizers for tensor in _tensors(each.state)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
